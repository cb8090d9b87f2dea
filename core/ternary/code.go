package ternary

import "fmt"

// Trit codes: the interchange form, two bits per trit, 11 for -1, 00 for 0 and 01
// for +1, four per byte with the first in the low bits. 10 is invalid.

// CodeError reports the invalid code 10.
type CodeError struct {
	Index int // of the trit
}

func (e *CodeError) Error() string {
	return fmt.Sprintf("ternary: trit %d has the invalid code 10", e.Index)
}

// PackCodes writes trits with values -1, 0 and 1 to dst, (len(trits)+3)/4 bytes.
// Unused bits of the last byte are 0.
func PackCodes(dst []byte, trits []int8) error {
	if len(dst) != (len(trits)+3)/4 {
		return fmt.Errorf("ternary: %d trits need %d bytes of codes, got %d", len(trits), (len(trits)+3)/4, len(dst))
	}
	clear(dst)
	for i, t := range trits {
		if t < -1 || t > 1 {
			return fmt.Errorf("ternary: value %d at %d is not a trit", t, i)
		}
		dst[i/4] |= byte(t) & 3 << (i % 4 * 2)
	}
	return nil
}

// UnpackCodes is the inverse of PackCodes. The invalid code gives 0.
func UnpackCodes(dst []int8, codes []byte) error {
	if len(codes) != (len(dst)+3)/4 {
		return fmt.Errorf("ternary: %d trits need %d bytes of codes, got %d", len(dst), (len(dst)+3)/4, len(codes))
	}
	for i := range dst {
		dst[i] = [4]int8{0, 1, 0, -1}[codes[i/4]>>(i%4*2)&3]
	}
	return nil
}

// VerifyCodes reports the first invalid code among n trits as a *CodeError.
func VerifyCodes(codes []byte, n int) error {
	if len(codes) != (n+3)/4 {
		return fmt.Errorf("ternary: %d trits need %d bytes of codes, got %d", n, (n+3)/4, len(codes))
	}
	for i := range n {
		if codes[i/4]>>(i%4*2)&3 == 2 {
			return &CodeError{Index: i}
		}
	}
	return nil
}
