package kernels

import "unsafe"

// F32Bytes is the memory of s as bytes, for a Dense matrix of type F32 that shares it.
func F32Bytes(s []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), 4*len(s))
}

// U16View is the memory of b as 16-bit values in the order of this machine, for scales
// that share it. b begins at a multiple of 2.
func U16View(b []byte) []uint16 {
	return unsafe.Slice((*uint16)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/2)
}

// f32View is the whole float32 values in b, as scratch.
func f32View(b []byte) []float32 {
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & 3
	if uintptr(len(b)) < skip+4 {
		return nil
	}
	b = b[skip:]
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4)
}

// AlignedBytes returns n zero bytes that begin at a multiple of 64, as tiles do.
func AlignedBytes(n int) []byte {
	b := make([]byte, n+63)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & 63
	return b[skip : skip+uintptr(n) : skip+uintptr(n)]
}

// Aligned reports whether b begins at a multiple of 64.
func Aligned(b []byte) bool { return uintptr(unsafe.Pointer(unsafe.SliceData(b)))&63 == 0 }
