package safetensors

import (
	"encoding/binary"
	"fmt"
	"math"
)

// DType is the type of a tensor's elements.
type DType uint8

// The types of elements, named as in files.
const (
	F32 DType = iota
	F16
	BF16
	F64
	Bool
	U8
	I8
	U16
	I16
	U32
	I32
	U64
	I64
	F8E4M3
	F8E5M2
	dtypes
)

var dtypeTable = [dtypes]struct {
	name string
	size int // bytes of an element
}{
	F32: {"F32", 4}, F16: {"F16", 2}, BF16: {"BF16", 2}, F64: {"F64", 8},
	Bool: {"BOOL", 1}, U8: {"U8", 1}, I8: {"I8", 1}, U16: {"U16", 2}, I16: {"I16", 2},
	U32: {"U32", 4}, I32: {"I32", 4}, U64: {"U64", 8}, I64: {"I64", 8},
	F8E4M3: {"F8_E4M3", 1}, F8E5M2: {"F8_E5M2", 1},
}

// String is the name of t in files.
func (t DType) String() string {
	if t >= dtypes {
		return fmt.Sprintf("dtype %d", uint8(t))
	}
	return dtypeTable[t].name
}

// Size is the bytes of an element; 0 for an unknown type.
func (t DType) Size() int {
	if t >= dtypes {
		return 0
	}
	return dtypeTable[t].size
}

func dtypeOf(name string) (DType, bool) {
	for t, d := range dtypeTable {
		if d.name == name {
			return DType(t), true
		}
	}
	return 0, false
}

// decode writes the values of src, whole elements of type t, to dst and reports
// whether it knows the type.
func decode(dst []float32, t DType, src []byte) bool {
	le := binary.LittleEndian
	switch t {
	case F32:
		for i := range dst {
			dst[i] = math.Float32frombits(le.Uint32(src[4*i:]))
		}
	case F16:
		for i := range dst {
			dst[i] = half(le.Uint16(src[2*i:]))
		}
	case BF16:
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(le.Uint16(src[2*i:])) << 16)
		}
	case F64:
		for i := range dst {
			dst[i] = float32(math.Float64frombits(le.Uint64(src[8*i:])))
		}
	default:
		return false
	}
	return true
}

// half is the value of an IEEE half.
func half(h uint16) float32 {
	sign, exp, frac := uint32(h>>15)<<31, uint32(h>>10)&31, uint32(h)&1023
	switch exp {
	case 0: // zeros and subnormals: frac·2⁻²⁴, exact
		return math.Float32frombits(math.Float32bits(float32(frac)*0x1p-24) | sign)
	case 31: // infinities and NaN
		return math.Float32frombits(sign | 255<<23 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}
