//go:build cgo && (amd64 || arm64)

package kernels

/*
#if defined(__clang__)
#define NC_COMPILER "clang " __clang_version__
#else
#define NC_COMPILER "gcc " __VERSION__
#endif
static const char *nc_compiler(void) { return NC_COMPILER; }
*/
import "C"

// Compiler names the C compiler that built the variants, for reports; empty in
// builds without C.
func Compiler() string { return C.GoString(C.nc_compiler()) }
