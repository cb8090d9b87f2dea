package tokenizer

import (
	"math"
	"strings"
	"unicode/utf8"
)

// spm is what a SentencePiece vocabulary (tokenizer.ggml.model "llama") has besides
// its tokens. There is no pre-split: neighbours anywhere in the text are joined as
// long as the result is a token, the one of the highest score first, then the
// leftmost. Characters that are no token become byte tokens.
//
// A space is U+2581 in such files. Here tokens hold the space itself.
type spm struct {
	vocab *vocab
	// rank orders tokens by descending score: lower ranks join first.
	rank []uint32
	// addSpace puts a space before the text, and before text after a special token.
	addSpace bool
	unk      int32
}

// spaceMark stands for a space in the tokens of a SentencePiece file.
const spaceMark = "\u2581"

// scoreRank maps a score to a number that is smaller for higher scores.
func scoreRank(score float32) uint32 {
	u := math.Float32bits(score)
	if u>>31 == 0 {
		return ^(u | 1<<31)
	}
	return u
}

// addSPM appends a token of a SentencePiece vocabulary.
func (v *vocab) addSPM(text string, k Kind) *Error {
	switch k {
	case Byte:
		b, ok := hexByte(text)
		if !ok {
			return errf("", "byte token %s, want <0x00> to <0xFF>", quote([]byte(text)))
		}
		v.text = append(v.text, b)
		return v.close(k)
	case Normal:
		text = strings.ReplaceAll(text, spaceMark, " ")
	}
	return v.add(text, k)
}

// hexByte reads a token text of the form <0xAB>.
func hexByte(s string) (byte, bool) {
	if len(s) != 6 || s[:3] != "<0x" || s[5] != '>' {
		return 0, false
	}
	n := 0
	for _, c := range []byte(s[3:5]) {
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 | int(c-'0')
		case c >= 'A' && c <= 'F':
			n = n<<4 | int(c-'A'+10)
		case c >= 'a' && c <= 'f':
			n = n<<4 | int(c-'a'+10)
		default:
			return 0, false
		}
	}
	return byte(n), true
}

// encode appends the ids of text without special tokens.
func (s *spm) encode(dst []int32, e *encoder, text string) []int32 {
	if s.addSpace {
		text = " " + text
	}
	for len(text) > maxPiece {
		n := maxPiece
		for n > maxPiece-utf8.UTFMax && !utf8.RuneStart(text[n]) {
			n--
		}
		dst, text = s.encodePart(dst, e, text[:n]), text[n:]
	}
	return s.encodePart(dst, e, text)
}

// encodePart is encode for a text of at most maxPiece bytes.
func (s *spm) encodePart(dst []int32, e *encoder, text string) []int32 {
	// The symbols are a linked list over the bytes of text: a symbol lives at its
	// first byte and ends where the next one begins.
	n := len(text)
	e.ids, e.prev, e.next = grow(e.ids, n), grow(e.prev, n), grow(e.next, n)
	e.pair, e.heap = grow(e.pair, n), e.heap[:0]
	ids, prev, next, pair := e.ids, e.prev, e.next, e.pair
	last := int32(-1)
	for i := 0; i < n; {
		_, size := utf8.DecodeRuneInString(text[i:])
		ids[i] = s.vocab.findString(text[i : i+size])
		prev[i], next[i] = last, int32(i+size)
		last = int32(i)
		i += size
	}
	for i := int32(0); int(i) < n; i = next[i] {
		if pair[i] = s.join(text, next, i); pair[i] != noPair {
			e.heap = append(e.heap, pair[i]&^0xffffffff|uint64(i))
		}
	}
	e.heapify()
	for len(e.heap) > 0 {
		top := e.pop()
		at := int32(uint32(top))
		if pair[at] == noPair || pair[at]>>32 != top>>32 {
			continue // a neighbour has changed since
		}
		gone := next[at]
		ids[at] = int32(uint32(pair[at]))
		pair[gone] = noPair
		next[at] = next[gone]
		if r := next[at]; int(r) < n {
			prev[r] = at
		}
		if pair[at] = s.join(text, next, at); pair[at] != noPair {
			e.push(pair[at]&^0xffffffff | uint64(at))
		}
		if l := prev[at]; l >= 0 {
			if pair[l] = s.join(text, next, l); pair[l] != noPair {
				e.push(pair[l]&^0xffffffff | uint64(l))
			}
		}
	}
	for i := int32(0); int(i) < n; i = next[i] {
		if ids[i] >= 0 {
			dst = append(dst, ids[i])
			continue
		}
		for _, b := range []byte(text[i:next[i]]) {
			if id := s.vocab.byteID[b]; id >= 0 {
				dst = append(dst, id)
			} else if s.unk >= 0 {
				dst = append(dst, s.unk)
			}
		}
	}
	return dst
}

// join returns rank<<32 | id of the symbol at i and its right neighbour as one
// token, or noPair.
func (s *spm) join(text string, next []int32, i int32) uint64 {
	r := next[i]
	if int(r) >= len(text) {
		return noPair
	}
	id := s.vocab.findString(text[i:next[r]])
	if id < 0 {
		return noPair
	}
	return uint64(s.rank[id])<<32 | uint64(uint32(id))
}

// decode appends the bytes of ids, less the space that encode puts first.
func (s *spm) decode(dst []byte, t *Tokenizer, ids []int32, o DecodeOptions) []byte {
	first := s.addSpace
	for _, id := range ids {
		k := t.Kind(id)
		if k == Control {
			if !o.SkipSpecial {
				dst = append(dst, t.Piece(id)...)
			}
			continue
		}
		p := t.Piece(id)
		if first && k == Normal && len(p) > 0 && p[0] == ' ' {
			p = p[1:]
		}
		first = false
		dst = append(dst, p...)
	}
	return dst
}

// rankScore is the inverse of scoreRank.
func rankScore(r uint32) float32 {
	if r>>31 == 0 {
		return math.Float32frombits(^r &^ (1 << 31))
	}
	return math.Float32frombits(r)
}
