package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
)

// codec converts one block of a type, or any number of plain numbers; nil
// functions are not offered.
type codec struct {
	decode func(dst []float32, src []byte)
	encode func(dst []byte, src []float32)
}

func codecOf(t Type) codec {
	switch t {
	case F32:
		return codec{decodeF32, encodeF32}
	case F16:
		return codec{decodeF16, encodeF16}
	case BF16:
		return codec{decodeBF16, encodeBF16}
	case Q8_0:
		return codec{decodeQ8_0, encodeQ8_0}
	case Q4_0:
		return codec{decodeQ4_0, encodeQ4_0}
	case Q6_K:
		return codec{decodeQ6_K, nil}
	case TQ1_0:
		return codec{decodeTQ1_0, encodeTQ1_0}
	case TQ2_0:
		return codec{decodeTQ2_0, encodeTQ2_0}
	}
	return codec{}
}

// CanDequantize reports whether Dequantize knows t.
func CanDequantize(t Type) bool { return t == I2_S || codecOf(t).decode != nil }

// CanQuantize reports whether Quantize knows t.
func CanQuantize(t Type) bool { return codecOf(t).encode != nil }

// Dequantize computes the values of src, which holds len(dst) elements: any
// number of whole blocks, so also rows or parts of rows; but for I2_S it is a
// whole tensor, because the scale is at its end.
//
// The products are those of ggml's reference, in float32.
func Dequantize(dst []float32, t Type, src []byte) error {
	size, err := Size(t, []uint64{uint64(len(dst))})
	if err != nil {
		return fmt.Errorf("gguf: dequantize %s: %w", t, err)
	}
	if size != uint64(len(src)) {
		return fmt.Errorf("gguf: dequantize %s: %d elements need %d bytes, got %d", t, len(dst), size, len(src))
	}
	if t == I2_S {
		decodeI2S(dst, src)
		return nil
	}
	c := codecOf(t)
	if c.decode == nil {
		return fmt.Errorf("gguf: dequantize %s: not supported; supported are %s", t, list(CanDequantize))
	}
	n, b := t.BlockSize()
	if n == 1 {
		n, b = len(dst), len(src)
	}
	for len(dst) > 0 {
		c.decode(dst[:n:n], src[:b:b])
		dst, src = dst[n:], src[b:]
	}
	return nil
}

// Quantize computes the data of src, as ggml's reference does, with the same
// rounding. But values that the type, or the half-precision scale of its blocks,
// cannot hold as finite numbers are an error; F32 copies everything.
func Quantize(dst []byte, t Type, src []float32) error {
	size, err := Size(t, []uint64{uint64(len(src))})
	if err != nil {
		return fmt.Errorf("gguf: quantize %s: %w", t, err)
	}
	if size != uint64(len(dst)) {
		return fmt.Errorf("gguf: quantize %s: %d elements need %d bytes, got %d", t, len(src), size, len(dst))
	}
	c := codecOf(t)
	if c.encode == nil {
		return fmt.Errorf("gguf: quantize %s: not supported; supported are %s", t, list(CanQuantize))
	}
	n, b := t.BlockSize()
	if limit := quantLimit(t); limit > 0 {
		for i, x := range src {
			if !(math.Abs(float64(x)) < limit) { // true for NaN too
				return fmt.Errorf("gguf: quantize %s: element %d is %g, expected less than %g", t, i, x, limit)
			}
		}
	}
	if n == 1 {
		n, b = len(src), len(dst)
	}
	for len(src) > 0 {
		c.encode(dst[:b:b], src[:n:n])
		dst, src = dst[b:], src[n:]
	}
	return nil
}

// quantLimit is what the magnitude of elements must stay below to be stored as
// finite numbers; 0 for no limit.
func quantLimit(t Type) float64 {
	const half = 65520 // rounds to infinity
	switch t {
	case F16:
		return half
	case BF16:
		return 0x1.ffp127
	case Q8_0:
		return 127 * half
	case Q4_0:
		return 8 * half
	case TQ1_0, TQ2_0:
		return half
	}
	return 0
}

func list(can func(Type) bool) string {
	s := ""
	for _, t := range Types() {
		if can(t) {
			s += " " + t.String()
		}
	}
	return s[1:]
}

// TailScale is the scale of a whole I2_S tensor's data.
func TailScale(data []byte) float32 {
	return math.Float32frombits(binary.LittleEndian.Uint32(data[len(data)-32:]))
}

func decodeF32(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

func encodeF32(dst []byte, src []float32) {
	for i, x := range src {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(x))
	}
}

func decodeF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = f16to32(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func encodeF16(dst []byte, src []float32) {
	for i, x := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], f32to16(x))
	}
}

func decodeBF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = bf16to32(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func encodeBF16(dst []byte, src []float32) {
	for i, x := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], f32toBF16(x))
	}
}

// decodeQ8_0: a half scale, then 32 int8.
func decodeQ8_0(dst []float32, src []byte) {
	d := f16to32(binary.LittleEndian.Uint16(src))
	for i := range dst {
		dst[i] = d * float32(int8(src[2+i]))
	}
}

func encodeQ8_0(dst []byte, src []float32) {
	amax, _ := absMax(src)
	d := amax / 127
	inv := inverse(d)
	binary.LittleEndian.PutUint16(dst, f32to16(d))
	for i, x := range src {
		dst[2+i] = byte(int8(roundAway(float32(x * inv))))
	}
}

// decodeQ4_0: a half scale, then 16 bytes: elements 0-15 in the low, 16-31 in
// the high halves, each the value plus 8.
func decodeQ4_0(dst []float32, src []byte) {
	d := f16to32(binary.LittleEndian.Uint16(src))
	for i, b := range src[2:18] {
		dst[i] = d * float32(int(b&15)-8)
		dst[i+16] = d * float32(int(b>>4)-8)
	}
}

func encodeQ4_0(dst []byte, src []float32) {
	_, at := absMax(src)
	d := src[at] / -8 // the largest becomes -8, the code without a positive twin
	inv := inverse(d)
	binary.LittleEndian.PutUint16(dst, f32to16(d))
	code := func(x float32) byte {
		return byte(min(max(int(float32(x*inv)+8.5), 0), 15))
	}
	for i := range 16 {
		dst[2+i] = code(src[i]) | code(src[i+16])<<4
	}
}

// decodeQ6_K: 128 bytes of low halves, 64 of upper bit pairs, 16 int8 scales of
// 16 elements each, a half scale of the scales. Per 128 elements, elements i,
// i+32, i+64 and i+96 share byte i of the pairs, low bits first; the low halves
// of the first two are in bytes i and i+32, of the others in the same bytes' high
// halves.
func decodeQ6_K(dst []float32, src []byte) {
	low, high, scales := src[:128], src[128:192], src[192:208]
	d := f16to32(binary.LittleEndian.Uint16(src[208:]))
	for i := range dst {
		part, j, l := i/128, i%128/32, i%32
		nibble := low[part*64+j%2*32+l] >> (j / 2 * 4) & 15
		pair := high[part*32+l] >> (2 * j) & 3
		q := int(nibble|pair<<4) - 32
		scale := float32(d * float32(int8(scales[i/16])))
		dst[i] = scale * float32(q)
	}
}

// absMax is the largest magnitude and the first index that has it.
func absMax(x []float32) (m float32, at int) {
	for i, v := range x {
		if v < 0 {
			v = -v
		}
		if v > m {
			m, at = v, i
		}
	}
	return m, at
}

// inverse is 1/d, or 0 where that is not finite: such a block is all zeros.
func inverse(d float32) float32 {
	if inv := 1 / d; d != 0 && !math.IsInf(float64(inv), 0) {
		return inv
	}
	return 0
}

// roundAway rounds to the nearest integer, away from zero in the middle.
func roundAway(x float32) int { return int(math.Round(float64(x))) }
