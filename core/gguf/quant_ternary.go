package gguf

import "encoding/binary"

// decodeTQ2_0: 64 bytes of codes value+1, a half scale. Per 128 elements, byte i
// of 32 holds elements i, i+32, i+64 and i+96, low bits first.
func decodeTQ2_0(dst []float32, src []byte) {
	d := f16to32(binary.LittleEndian.Uint16(src[64:]))
	for i := range dst {
		code := src[i/128*32+i%32] >> (i % 128 / 32 * 2) & 3
		dst[i] = d * float32(int(code)-1)
	}
}

func encodeTQ2_0(dst []byte, src []float32) {
	d, codes := ternaryCodes(src)
	for i := range 64 {
		part, l := i/32*128, i%32
		dst[i] = codes[part+l] | codes[part+l+32]<<2 | codes[part+l+64]<<4 | codes[part+l+96]<<6
	}
	binary.LittleEndian.PutUint16(dst[64:], f32to16(d))
}

// tq1Parts says how TQ1_0 spreads 256 elements over 52 bytes: a part's byte i
// holds elements first+i, first+i+bytes, … , the first the most significant.
var tq1Parts = [...]struct{ first, at, bytes, perByte int }{
	{0, 0, 32, 5}, {160, 32, 16, 5}, {240, 48, 4, 4},
}

// decodeTQ1_0: codes value+1 in base 3, five to a byte (four in the last bytes),
// as the fraction byte/256 rounded up, so that multiplying by 3 brings out the
// next digit; a half scale.
func decodeTQ1_0(dst []float32, src []byte) {
	d := f16to32(binary.LittleEndian.Uint16(src[52:]))
	for _, p := range tq1Parts {
		for l, b := range src[p.at : p.at+p.bytes] {
			for n := range p.perByte {
				digit := int(b) * 3 >> 8
				dst[p.first+n*p.bytes+l] = d * float32(digit-1)
				b *= 3
			}
		}
	}
}

func encodeTQ1_0(dst []byte, src []float32) {
	d, codes := ternaryCodes(src)
	for _, p := range tq1Parts {
		for l := range p.bytes {
			q := 0
			for n := range 5 { // the last bytes leave the fifth digit 0
				q *= 3
				if n < p.perByte {
					q += int(codes[p.first+n*p.bytes+l])
				}
			}
			dst[p.at+l] = byte((q*256 + 242) / 243)
		}
	}
	binary.LittleEndian.PutUint16(dst[52:], f32to16(d))
}

// ternaryCodes is the largest magnitude of a block and round(x/largest)+1 of its
// elements: exact for values that are a scale times -1, 0 or 1.
func ternaryCodes(src []float32) (d float32, codes [256]byte) {
	d, _ = absMax(src)
	inv := inverse(d)
	for i, x := range src {
		codes[i] = byte(roundAway(float32(x*inv)) + 1)
	}
	return d, codes
}

// decodeI2S: per 128 elements 32 bytes; byte i holds elements i, i+32, i+64 and
// i+96 as codes value+1, the first in the highest bits. After the codes of the
// tensor one float32 scale and 28 bytes of no meaning.
//
// This is the order of bitnet.cpp's default build for x86; its builds for ARM
// write blocks of 64 with the same type number, which nothing in a file tells
// apart.
func decodeI2S(dst []float32, src []byte) {
	d := TailScale(src)
	for i := range dst {
		code := src[i/128*32+i%32] >> (6 - i%128/32*2) & 3
		dst[i] = d * float32(int(code)-1)
	}
}
