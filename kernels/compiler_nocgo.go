//go:build !cgo || !(amd64 || arm64)

package kernels

// Compiler names the C compiler that built the variants, for reports; empty in
// builds without C.
func Compiler() string { return "" }
