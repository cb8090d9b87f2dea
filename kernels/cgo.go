//go:build cgo && (amd64 || arm64)

package kernels

// -std=c11 also keeps gcc from fusing a*b+c; see nc.h.

/*
#cgo CFLAGS: -std=c11 -O3 -Wall -Wextra -fno-fast-math
#cgo LDFLAGS: -lm
#include "nc.h"

extern const struct nc_set nc_set_scalar;
*/
import "C"

import "unsafe"

// cset is one variant's table of C functions.
type cset = C.struct_nc_set

// newCSet is the Go reference with every op replaced that the C table has.
func newCSet(name string, c *cset) *Set {
	s := *newGoSet()
	s.Name = name
	bindTernary(&s, c)
	bindFloat(&s, c)
	bindMatMul(&s, c)
	bindQ8(&s, c)
	bindBackward(&s, c)
	bindFused(&s)
	return &s
}

// The pointer to the first element, or nil: cgo wants typed pointers, which it
// passes without looking for pointers inside.

func f32p(s []float32) *C.float   { return (*C.float)(unsafe.SliceData(s)) }
func i8p(s []int8) *C.int8_t      { return (*C.int8_t)(unsafe.SliceData(s)) }
func u8p(s []uint8) *C.uint8_t    { return (*C.uint8_t)(unsafe.SliceData(s)) }
func u16p(s []uint16) *C.uint16_t { return (*C.uint16_t)(unsafe.SliceData(s)) }
func i32p(s []int32) *C.int32_t   { return (*C.int32_t)(unsafe.SliceData(s)) }

func i64(n int) C.int64_t { return C.int64_t(n) }
