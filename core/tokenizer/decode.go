package tokenizer

import "unicode/utf8"

// DecodeOptions says how ids are turned into text.
type DecodeOptions struct {
	// SkipSpecial leaves control tokens out.
	SkipSpecial bool
}

// Decode appends the bytes of ids to dst. Ids that are not in the vocabulary add
// nothing. The result may end within a character; see StreamDecoder.
func (t *Tokenizer) Decode(dst []byte, ids []int32, o DecodeOptions) []byte {
	if t.spm != nil {
		return t.spm.decode(dst, t, ids, o)
	}
	for _, id := range ids {
		if o.SkipSpecial && t.Kind(id) == Control {
			continue
		}
		dst = append(dst, t.Piece(id)...)
	}
	return dst
}

// StreamDecoder turns a stream of ids into a stream of whole characters. It holds
// back the bytes of a character until the last of them has come, and puts U+FFFD
// in place of bytes that cannot become one, as Unicode recommends (one for each
// maximal part of an ill-formed sequence).
//
// It is made for text that follows other text: a space that a SentencePiece
// vocabulary puts at the start of a text is kept.
type StreamDecoder struct {
	t    *Tokenizer
	o    DecodeOptions
	held [utf8.UTFMax - 1]byte
	n    int // bytes of held in use
}

// NewStreamDecoder returns a decoder at the start of a stream.
func (t *Tokenizer) NewStreamDecoder(o DecodeOptions) *StreamDecoder {
	return &StreamDecoder{t: t, o: o}
}

// Next appends the characters that token id completes, which may be none.
func (d *StreamDecoder) Next(dst []byte, id int32) []byte {
	if d.o.SkipSpecial && d.t.Kind(id) == Control {
		return dst
	}
	p := d.t.Piece(id)
	if d.n == 0 { // the common case: whole characters, nothing held
		if k := wholePrefix(p); k > 0 {
			dst = append(dst, p[:k]...)
			p = p[k:]
		}
	}
	for _, b := range p {
		dst = d.feed(dst, b)
	}
	return dst
}

// Flush appends U+FFFD for a character that was begun and never ended, and makes
// the decoder ready for a new stream.
func (d *StreamDecoder) Flush(dst []byte) []byte {
	if d.n > 0 {
		dst = utf8.AppendRune(dst, utf8.RuneError)
	}
	d.n = 0
	return dst
}

// feed takes one byte.
func (d *StreamDecoder) feed(dst []byte, b byte) []byte {
	if d.n > 0 {
		lo, hi := byte(0x80), byte(0xBF)
		if d.n == 1 {
			lo, hi = secondByte(d.held[0])
		}
		if b >= lo && b <= hi {
			if d.n+1 == sequenceLen(d.held[0]) {
				dst = append(append(dst, d.held[:d.n]...), b)
				d.n = 0
				return dst
			}
			d.held[d.n] = b
			d.n++
			return dst
		}
		dst = utf8.AppendRune(dst, utf8.RuneError)
		d.n = 0
	}
	switch sequenceLen(b) {
	case 0:
		return utf8.AppendRune(dst, utf8.RuneError)
	case 1:
		return append(dst, b)
	}
	d.held[0], d.n = b, 1
	return dst
}

// sequenceLen is the length of the characters that start with byte b, 0 if none do.
func sequenceLen(b byte) int {
	switch {
	case b < 0x80:
		return 1
	case b < 0xC2:
		return 0
	case b < 0xE0:
		return 2
	case b < 0xF0:
		return 3
	case b < 0xF5:
		return 4
	}
	return 0
}

// secondByte is the range of the byte that may follow the first byte b of a
// longer character: no overlong forms, no surrogates, nothing above U+10FFFF.
func secondByte(b byte) (lo, hi byte) {
	switch b {
	case 0xE0:
		return 0xA0, 0xBF
	case 0xED:
		return 0x80, 0x9F
	case 0xF0:
		return 0x90, 0xBF
	case 0xF4:
		return 0x80, 0x8F
	}
	return 0x80, 0xBF
}

// wholePrefix returns the length of the longest prefix of p that is valid UTF-8.
func wholePrefix(p []byte) int {
	i := 0
	for i < len(p) {
		if p[i] < utf8.RuneSelf {
			i++
			continue
		}
		r, n := utf8.DecodeRune(p[i:])
		if r == utf8.RuneError && n == 1 {
			break
		}
		i += n
	}
	return i
}
