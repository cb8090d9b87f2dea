package tokenizer

import "unicode/utf8"

// GPT-2 writes a byte as a printable character: printable Latin-1 bytes stand
// for themselves, the others for U+0100, U+0101, … in ascending order.

// alphabet is the table in both directions. char[b] is the character of byte b;
// code[r] is the byte of character r plus one, or 0.
type alphabet struct {
	char [256]rune
	code [0x144]uint16
}

var byteAlphabet = func() *alphabet {
	a := &alphabet{}
	next := rune(0x100)
	for b := range 256 {
		r := rune(b)
		if !(r >= '!' && r <= '~' || r >= 0xA1 && r <= 0xAC || r >= 0xAE) {
			r = next
			next++
		}
		a.char[b] = r
		a.code[r] = uint16(b) + 1
	}
	return a
}()

// encode appends the printable form of raw.
func (a *alphabet) encode(dst []byte, raw []byte) []byte {
	for _, b := range raw {
		dst = utf8.AppendRune(dst, a.char[b])
	}
	return dst
}

// decode appends the bytes that text stands for; ok is false, and dst unchanged,
// where text has a character outside the alphabet.
func (a *alphabet) decode(dst []byte, text string) (out []byte, ok bool) {
	out = dst
	for i := 0; i < len(text); {
		r, n := rune(text[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(text[i:])
		}
		if int(r) >= len(a.code) || a.code[r] == 0 {
			return dst, false
		}
		out = append(out, byte(a.code[r]-1))
		i += n
	}
	return out, true
}
