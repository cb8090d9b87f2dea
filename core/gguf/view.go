package gguf

import "unsafe"

// Number is the element types that tensor data can be seen as.
type Number interface {
	int8 | uint16 | int16 | uint32 | int32 | float32 | uint64 | int64 | float64
}

// View is the elements of little-endian data, such as Tensor.Data: the same
// memory where it is aligned for T and the machine is little-endian, else a copy.
// Bytes after the last whole element are left out. A view must not be written to.
func View[T Number](data []byte) []T {
	var zero T
	size := int(unsafe.Sizeof(zero))
	n := len(data) / size
	if n == 0 {
		return []T{}
	}
	p := unsafe.Pointer(unsafe.SliceData(data))
	if littleEndian() && uintptr(p)%unsafe.Alignof(zero) == 0 {
		return unsafe.Slice((*T)(p), n)
	}
	v := make([]T, n)
	copySwapped(memory(v), data[:n*size], size)
	return v
}

// Bytes is the little-endian data of v, the inverse of View: the same memory on
// a little-endian machine, else a copy. It must not be written to.
func Bytes[T Number](v []T) []byte {
	b := memory(v)
	if littleEndian() {
		return b
	}
	var zero T
	out := make([]byte, len(b))
	copySwapped(out, b, int(unsafe.Sizeof(zero)))
	return out
}

// memory is the bytes of v as they stand in memory.
func memory[T Number](v []T) []byte {
	if len(v) == 0 {
		return []byte{}
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), len(v)*int(unsafe.Sizeof(v[0])))
}

func littleEndian() bool {
	x := uint16(1)
	return *(*byte)(unsafe.Pointer(&x)) == 1
}

// copySwapped copies elements of size bytes between little-endian data and this
// machine's order.
func copySwapped(dst, src []byte, size int) {
	if littleEndian() {
		copy(dst, src)
		return
	}
	for i := 0; i < len(src); i += size {
		for k := range size {
			dst[i+k] = src[i+size-1-k]
		}
	}
}
