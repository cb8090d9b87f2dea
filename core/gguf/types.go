package gguf

import (
	"fmt"
	"math/bits"
)

// Type is the storage type of a tensor, numbered as in ggml.
type Type uint32

// The storage types. Dequantize says which it can compute with; the others can be
// listed and copied. ggml's Q8_1 and Q8_K never stand in files.
const (
	F32     Type = 0
	F16     Type = 1
	Q4_0    Type = 2
	Q4_1    Type = 3
	Q5_0    Type = 6
	Q5_1    Type = 7
	Q8_0    Type = 8
	Q2_K    Type = 10
	Q3_K    Type = 11
	Q4_K    Type = 12
	Q5_K    Type = 13
	Q6_K    Type = 14
	IQ2_XXS Type = 16
	IQ2_XS  Type = 17
	IQ3_XXS Type = 18
	IQ1_S   Type = 19
	IQ4_NL  Type = 20
	IQ3_S   Type = 21
	IQ2_S   Type = 22
	IQ4_XS  Type = 23
	I8      Type = 24
	I16     Type = 25
	I32     Type = 26
	I64     Type = 27
	F64     Type = 28
	IQ1_M   Type = 29
	BF16    Type = 30
	TQ1_0   Type = 34
	TQ2_0   Type = 35
	// I2_S is bitnet.cpp's: codes of the whole tensor, then one f32 scale and 28
	// bytes of padding. ggml once used its number for another type, now gone.
	I2_S  Type = 36
	MXFP4 Type = 39
	NVFP4 Type = 40
	Q1_0  Type = 41
)

// typeInfo: elems consecutive elements take bytes bytes, and a tensor tail more.
type typeInfo struct {
	name               string
	elems, bytes, tail uint64
}

// typeTable is indexed by Type; unknown numbers have no elements.
var typeTable = [...]typeInfo{
	F32: {"F32", 1, 4, 0}, F16: {"F16", 1, 2, 0}, BF16: {"BF16", 1, 2, 0}, F64: {"F64", 1, 8, 0},
	I8: {"I8", 1, 1, 0}, I16: {"I16", 1, 2, 0}, I32: {"I32", 1, 4, 0}, I64: {"I64", 1, 8, 0},
	Q4_0: {"Q4_0", 32, 18, 0}, Q4_1: {"Q4_1", 32, 20, 0}, Q5_0: {"Q5_0", 32, 22, 0}, Q5_1: {"Q5_1", 32, 24, 0},
	Q8_0: {"Q8_0", 32, 34, 0},
	Q2_K: {"Q2_K", 256, 84, 0}, Q3_K: {"Q3_K", 256, 110, 0}, Q4_K: {"Q4_K", 256, 144, 0}, Q5_K: {"Q5_K", 256, 176, 0},
	Q6_K:    {"Q6_K", 256, 210, 0},
	IQ2_XXS: {"IQ2_XXS", 256, 66, 0}, IQ2_XS: {"IQ2_XS", 256, 74, 0}, IQ3_XXS: {"IQ3_XXS", 256, 98, 0},
	IQ1_S: {"IQ1_S", 256, 50, 0}, IQ4_NL: {"IQ4_NL", 32, 18, 0}, IQ3_S: {"IQ3_S", 256, 110, 0},
	IQ2_S: {"IQ2_S", 256, 82, 0}, IQ4_XS: {"IQ4_XS", 256, 136, 0}, IQ1_M: {"IQ1_M", 256, 56, 0},
	TQ1_0: {"TQ1_0", 256, 54, 0}, TQ2_0: {"TQ2_0", 256, 66, 0}, I2_S: {"I2_S", 128, 32, 32},
	MXFP4: {"MXFP4", 32, 17, 0}, NVFP4: {"NVFP4", 64, 36, 0}, Q1_0: {"Q1_0", 128, 18, 0},
}

func (t Type) info() (typeInfo, bool) {
	if int64(t) >= int64(len(typeTable)) || typeTable[t].elems == 0 {
		return typeInfo{}, false
	}
	return typeTable[t], true
}

// Known reports whether t has a known size.
func (t Type) Known() bool { _, ok := t.info(); return ok }

// String is ggml's name, or "type N".
func (t Type) String() string {
	if i, ok := t.info(); ok {
		return i.name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// BlockSize is the number of consecutive elements that are stored together and
// the bytes they take; 0, 0 for an unknown type. An I2_S tensor takes 32 bytes more.
func (t Type) BlockSize() (elems, bytes int) {
	i, _ := t.info()
	return int(i.elems), int(i.bytes)
}

// Types is every known type in the order of their numbers.
func Types() []Type {
	var all []Type
	for t := range typeTable {
		if Type(t).Known() {
			all = append(all, Type(t))
		}
	}
	return all
}

// Size is the number of bytes of a tensor, or an error that says which rule its
// type and dimensions break.
func Size(t Type, dims []uint64) (uint64, error) {
	i, ok := t.info()
	if !ok {
		return 0, fmt.Errorf("storage type %d is unknown", uint32(t))
	}
	if len(dims) < 1 || len(dims) > maxDims {
		return 0, fmt.Errorf("%d dimensions, expected 1 to %d", len(dims), maxDims)
	}
	n := uint64(1)
	for d, size := range dims {
		hi, lo := bits.Mul64(n, size)
		switch {
		case size == 0:
			return 0, fmt.Errorf("dimension %d is 0", d)
		case hi != 0 || lo > 1<<62:
			return 0, fmt.Errorf("dimensions %v overflow", dims)
		}
		n = lo
	}
	if t == I2_S { // its blocks run on across rows
		if n%i.elems != 0 {
			return 0, fmt.Errorf("%d elements, expected a multiple of %d for I2_S", n, i.elems)
		}
	} else if dims[0]%i.elems != 0 {
		return 0, fmt.Errorf("dimension 0 is %d, expected a multiple of the block of %d of %s", dims[0], i.elems, i.name)
	}
	hi, lo := bits.Mul64(n/i.elems, i.bytes)
	if hi != 0 || lo > 1<<62 {
		return 0, fmt.Errorf("size of dimensions %v overflows", dims)
	}
	return lo + i.tail, nil
}
