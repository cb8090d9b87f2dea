//go:build cgo && (amd64 || arm64)

package kernels

// bindFloat replaces the float ops that the C table has.
func bindFloat(s *Set, c *cset) {}
