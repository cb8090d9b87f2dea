package cuda

// CompileText is Compile of a source that is not among Sources.
func (c *Compiler) CompileText(name, source, arch string) ([]byte, error) {
	return c.compile(name, []byte(source), arch)
}
