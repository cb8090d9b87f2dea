package tokenizer

import (
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// fragments are texts that cut in interesting ways.
var fragments = []string{
	" ", "  ", "    ", "\t", "\n", "\r\n", "\n\n    ", "\r", "\v", "\f", "\u0085", "\u00a0", "\u2028", "\u3000",
	"fn ", "let mut x = ", "self.name.to_string()", "u32", "i64", "0x1F", "1234567", "3.14", "1_000_000u64", "x86_64",
	"'s", "'S", "'ll", "'LL", "'Ve", "'re", "'", "'a", "'static", "don't", "I'M", "'d've",
	"::", "->", "=>", "//", "///", "#[derive(Debug)]", "{", "}", ");", "&mut ", "*", "__init__", "_x", "a_b_c", "\\n", "\"",
	"héllo", "Straße", "привет", "мир", "日本語", "こんにちは", "한국어", "العربية", "עברית", "हिन्दी", "ไทย", "ελληνικά",
	"e\u0301", "\u0301", "\u200d", "👩‍👩‍👧‍👦", "🇩🇪", "😀", "½", "Ⅷ", "٣٤", "²", "\ufeff", "\x00", "\x7f", "\U0010ffff", "\ue000",
	"<|endoftext|>", "<|fim_prefix|>", "<|", "|>",
}

// randomText returns about n bytes made of fragments, words and single characters.
// Characters are those on which Go's Unicode tables and ours agree, so that it can
// be given to the regexp2 oracle.
func randomText(r *rand.Rand, n int) string {
	var b strings.Builder
	for b.Len() < n {
		switch r.IntN(6) {
		case 0, 1:
			b.WriteString(fragments[r.IntN(len(fragments))])
		case 2:
			b.WriteString(strings.Repeat(string(rune(' '+r.IntN(95))), 1+r.IntN(5)))
		case 3:
			for range 1 + r.IntN(8) {
				b.WriteByte(byte('a' + r.IntN(26)*r.IntN(2)))
			}
		case 4:
			b.WriteRune(agreedRune(r))
		case 5:
			b.WriteByte(' ')
			b.WriteRune(rune(0xA0 + r.IntN(0x500)))
		}
	}
	return b.String()
}

// agreed reports whether Go's tables give c the class that ours do.
func agreed(c rune) bool {
	k, _ := classes().at(string(c))
	return (k == letter) == unicode.IsLetter(c) && (k == mark) == unicode.IsMark(c) &&
		(k == number) == unicode.IsNumber(c) && (k >= space) == unicode.IsSpace(c)
}

func agreedRune(r *rand.Rand) rune {
	for {
		c := rune(r.IntN(0x20000))
		if utf8.ValidRune(c) && agreed(c) {
			return c
		}
	}
}

// slowMerges is BPE by definition: merge the pair of the lowest rank, the leftmost
// of several, until none is left.
func slowMerges(t *Tokenizer, piece string) []int32 {
	var ids []int32
	for _, b := range []byte(piece) {
		ids = append(ids, t.vocab.byteID[b])
	}
	for {
		best, at := noPair, -1
		for i := range len(ids) - 1 {
			if v := t.merges.find(ids[i], ids[i+1]); v < best {
				best, at = v, i
			}
		}
		if at < 0 {
			return ids
		}
		ids[at] = int32(uint32(best))
		ids = append(ids[:at+1], ids[at+2:]...)
	}
}

// slowTrain is BPE training by definition: count all pairs, join the most frequent,
// of several the one with the smallest ids, and count again. Pairs whose text is a
// token or longer than maxLen are left alone.
func slowTrain(t testing.TB, pre string, docs []string, size, maxLen int) *Tokenizer {
	tok, errOwn := newOwn(size, 0)
	require.Nil(t, errOwn)
	tok.pre, tok.merges = presplitNamed(pre), newMerges(size)
	var words [][]int32
	for _, s := range docs {
		for s != "" {
			n := min(tok.pre.next(classes(), s), maxWord)
			var w []int32
			for _, b := range []byte(s[:n]) {
				w = append(w, tok.vocab.byteID[b])
			}
			words, s = append(words, w), s[n:]
		}
	}
	text := func(pair uint64) string {
		return string(tok.vocab.piece(int32(pair>>32))) + string(tok.vocab.piece(int32(uint32(pair))))
	}
	for tok.vocab.len() < size {
		count := map[uint64]int{}
		for _, w := range words {
			for i := range len(w) - 1 {
				count[pairOf(w[i], w[i+1])]++
			}
		}
		best, most := noPair, 1
		for p, n := range count {
			if (n > most || n == most && n > 1 && p < best) && len(text(p)) <= maxLen && tok.vocab.findString(text(p)) < 0 {
				best, most = p, n
			}
		}
		if best == noPair {
			break
		}
		l, r := int32(best>>32), int32(uint32(best))
		id := int32(tok.vocab.len())
		require.Nil(t, tok.vocab.add(text(best), Normal))
		require.True(t, tok.merges.add(l, r, id))
		for k, w := range words {
			out := w[:0]
			for i := 0; i < len(w); i++ {
				if i+1 < len(w) && w[i] == l && w[i+1] == r {
					out = append(out, id)
					i++
				} else {
					out = append(out, w[i])
				}
			}
			words[k] = out
		}
	}
	return tok.finish()
}

var testVocabs sync.Map // by name of the pre-split

// testVocab returns a vocabulary with a few hundred merges, the same on every call.
func testVocab(t testing.TB, pre string) *Tokenizer {
	if tok, ok := testVocabs.Load(pre); ok {
		return tok.(*Tokenizer)
	}
	tok := slowTrain(t, pre, []string{randomText(rand.New(rand.NewPCG(1, 2)), 30_000)}, MinVocab+300, 64)
	testVocabs.Store(pre, tok)
	return tok
}
