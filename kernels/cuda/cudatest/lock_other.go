//go:build !(linux || darwin || freebsd || netbsd || openbsd)

package cudatest

// lock does nothing: work may be done twice.
func lock(string) (unlock func()) { return func() {} }
