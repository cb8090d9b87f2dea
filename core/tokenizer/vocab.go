package tokenizer

import (
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
)

// Kind is what a token is for. The values are those of tokenizer.ggml.token_type.
type Kind uint8

// The kinds of tokens.
const (
	Normal      Kind = 1 // made by merges, or a single byte
	Unknown     Kind = 2 // stands for text the vocabulary cannot express
	Control     Kind = 3 // special: found in text only when asked for
	UserDefined Kind = 4 // found in text always, before merges
	Unused      Kind = 5 // fills a place; never made by Encode
	Byte        Kind = 6 // one byte of a SentencePiece vocabulary
)

// vocab holds the bytes of every token and finds tokens by their bytes.
type vocab struct {
	text []byte   // bytes of all tokens, one after the other
	end  []uint32 // end[i] is where token i ends in text
	kind []Kind

	// slots is an open-addressed hash table of id+1 over tokens that text can
	// contain (Normal, Byte, UserDefined); its length is a power of two.
	slots []int32
	seed  maphash.Seed

	byteID [256]int32 // id of the token of one byte
}

// newVocab returns an empty vocabulary with room for n tokens.
func newVocab(n, textBytes int) *vocab {
	size := 1 << bits.Len(uint(2*n+1))
	return &vocab{
		text: make([]byte, 0, textBytes), end: make([]uint32, 0, n), kind: make([]Kind, 0, n),
		slots: make([]int32, size), seed: maphash.MakeSeed(),
	}
}

// len is the number of tokens.
func (v *vocab) len() int { return len(v.end) }

// piece returns the bytes of token id, which must exist.
func (v *vocab) piece(id int32) []byte {
	lo := uint32(0)
	if id > 0 {
		lo = v.end[id-1]
	}
	hi := v.end[id]
	return v.text[lo:hi:hi]
}

// close ends the token whose bytes were just appended to v.text and enters it in
// the table. It fails where two tokens that text can contain are the same.
func (v *vocab) close(k Kind) *Error {
	id := int32(len(v.end))
	if len(v.text) > math.MaxUint32 {
		return errf("", "the tokens together are longer than 4 GiB")
	}
	v.end = append(v.end, uint32(len(v.text)))
	v.kind = append(v.kind, k)
	if k != Normal && k != UserDefined && k != Byte {
		return nil
	}
	b := v.piece(id)
	mask := len(v.slots) - 1
	for i := int(maphash.Bytes(v.seed, b)) & mask; ; i = (i + 1) & mask {
		s := v.slots[i]
		if s == 0 {
			v.slots[i] = id + 1
			return nil
		}
		if string(v.piece(s-1)) == string(b) {
			if k == v.kind[s-1] {
				return errf("", "tokens %d and %d are both %s", s-1, id, quote(b))
			}
			if k == Normal { // merges need the one they make
				v.slots[i] = id + 1
			}
			return nil
		}
	}
}

// add appends a token given by its bytes.
func (v *vocab) add(raw string, k Kind) *Error {
	v.text = append(v.text, raw...)
	return v.close(k)
}

// addMapped appends a token given in the printable form of GPT-2. A text outside
// that alphabet stands for itself, as in the decoder of `tokenizers`.
func (v *vocab) addMapped(text string, k Kind) *Error {
	out, ok := byteAlphabet.decode(v.text, text)
	if !ok {
		out = append(v.text, text...)
	}
	v.text = out
	return v.close(k)
}

// find returns the id of the token with these bytes, or -1.
func (v *vocab) find(b []byte) int32 {
	mask := len(v.slots) - 1
	for i := int(maphash.Bytes(v.seed, b)) & mask; ; i = (i + 1) & mask {
		s := v.slots[i]
		if s == 0 {
			return -1
		}
		if string(v.piece(s-1)) == string(b) {
			return s - 1
		}
	}
}

// findString is find for a string.
func (v *vocab) findString(b string) int32 {
	mask := len(v.slots) - 1
	for i := int(maphash.String(v.seed, b)) & mask; ; i = (i + 1) & mask {
		s := v.slots[i]
		if s == 0 {
			return -1
		}
		if string(v.piece(s-1)) == b {
			return s - 1
		}
	}
}

// findBytes fills byteID; every byte must have a token.
func (v *vocab) findBytes() *Error {
	for b := range v.byteID {
		v.byteID[b] = v.find([]byte{byte(b)})
		if v.byteID[b] < 0 {
			return errf("", "no token for byte 0x%02x (%q in the vocabulary), want one for each of the 256 bytes",
				b, string(byteAlphabet.char[b])).hint("only byte-level BPE vocabularies are supported")
		}
	}
	return nil
}

// quote shows at most 40 bytes of a token in a message.
func quote(b []byte) string {
	if len(b) > 40 {
		return fmt.Sprintf("%q… (%d bytes)", b[:40], len(b))
	}
	return fmt.Sprintf("%q", b)
}
