package tokenizer

import (
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// lossy replaces each maximal part of an ill-formed sequence by U+FFFD, written
// from the table of well-formed sequences in chapter 3 of the Unicode standard.
func lossy(b []byte) string {
	in := func(i int, lo, hi byte) bool { return i < len(b) && b[i] >= lo && b[i] <= hi }
	var out strings.Builder
	for len(b) > 0 {
		if b[0] < 0x80 {
			out.WriteByte(b[0])
			b = b[1:]
			continue
		}
		size, lo, hi := 0, byte(0x80), byte(0xBF)
		switch c := b[0]; {
		case c >= 0xC2 && c <= 0xDF:
			size = 2
		case c == 0xE0:
			size, lo = 3, 0xA0
		case c == 0xED:
			size, hi = 3, 0x9F
		case c >= 0xE1 && c <= 0xEF:
			size = 3
		case c == 0xF0:
			size, lo = 4, 0x90
		case c == 0xF4:
			size, hi = 4, 0x8F
		case c >= 0xF1 && c <= 0xF3:
			size = 4
		}
		k := 1
		if size > 1 && in(1, lo, hi) {
			for k = 2; k < size && in(k, 0x80, 0xBF); k++ {
			}
		}
		if k == size {
			out.Write(b[:k])
		} else {
			out.WriteString("\uFFFD")
		}
		b = b[k:]
	}
	return out.String()
}

// TestStreamDecoder: the pieces of a stream are valid UTF-8 each, and together the
// text with ill-formed parts replaced; nothing is held back that could be given.
func TestStreamDecoder(t *testing.T) {
	tok := testVocab(t, "nanochat")
	rapid.Check(t, func(rt *rapid.T) {
		var ids []int32
		if rapid.Bool().Draw(rt, "bytes") {
			edge := []byte{0, 'a', 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xed, 0xef, 0xf0, 0xf1, 0xf4, 0xf5, 0xff}
			for _, b := range rapid.SliceOf(rapid.SampledFrom(edge)).Draw(rt, "edge") {
				ids = append(ids, int32(b))
			}
		} else {
			ids = rapid.SliceOf(rapid.Int32Range(0, int32(tok.Vocab()-1))).Draw(rt, "ids")
		}
		d := tok.NewStreamDecoder(DecodeOptions{})
		var all, raw []byte
		for _, id := range ids {
			part := d.Next(nil, id)
			require.True(rt, utf8.Valid(part))
			all, raw = append(all, part...), append(raw, tok.Piece(id)...)
			held := lossy(raw)[len(all):]
			if held != "" && held != "\uFFFD" {
				rt.Fatalf("%q is held back after % x", held, raw)
			}
		}
		all = d.Flush(all)
		require.Equal(rt, lossy(tok.Decode(nil, ids, DecodeOptions{})), string(all))
		require.Empty(rt, d.Flush(nil))
	})
}

func TestStreamDecoderExamples(t *testing.T) {
	tok := testVocab(t, "nanochat")
	for _, c := range []struct {
		bytes string
		want  []string // after each byte, then after Flush
	}{
		{"aé", []string{"a", "", "é", ""}},
		{"😀", []string{"", "", "", "😀", ""}},
		{"\xe2\x82a", []string{"", "", "\uFFFDa", ""}},
		{"\xe2\xe2\x82\xac", []string{"", "\uFFFD", "", "€", ""}},
		{"\xff\x80", []string{"\uFFFD", "\uFFFD", ""}},
		{"\xed\xa0", []string{"", "\uFFFD\uFFFD", ""}},
		{"\xf0\x9f", []string{"", "", "\uFFFD"}},
	} {
		d := tok.NewStreamDecoder(DecodeOptions{})
		for i, b := range []byte(c.bytes) {
			require.Equal(t, c.want[i], string(d.Next(nil, int32(b))), "%q byte %d", c.bytes, i)
		}
		require.Equal(t, c.want[len(c.bytes)], string(d.Flush(nil)), "%q flush", c.bytes)
	}
}

func TestStreamDecoderSkipsSpecial(t *testing.T) {
	tok := testVocab(t, "nanochat")
	d := tok.NewStreamDecoder(DecodeOptions{SkipSpecial: true})
	require.Empty(t, d.Next(nil, 256))
	require.Equal(t, "x", string(d.Next(nil, 'x')))
	require.Empty(t, d.Next(nil, -1))
	require.Empty(t, d.Next(nil, 1<<30))
}

func BenchmarkStreamDecoder(b *testing.B) {
	tok := testVocab(b, "nanochat")
	ids := tok.Encode(nil, randomText(rand.New(rand.NewPCG(1, 1)), 1<<16), EncodeOptions{})
	d := tok.NewStreamDecoder(DecodeOptions{})
	var buf []byte
	for b.Loop() {
		for _, id := range ids {
			buf = d.Next(buf[:0], id)
		}
	}
	b.ReportMetric(float64(len(ids))*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}
