package tokenizer

import (
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestRoundTrip(t *testing.T) {
	for _, pre := range []string{"nanochat", "gpt-2", "llama-bpe", "qwen2"} {
		tok := testVocab(t, pre)
		check := func(text string) {
			for _, o := range []EncodeOptions{{}, {ParseSpecial: true}} {
				ids := tok.Encode(nil, text, o)
				require.Equal(t, text, string(tok.Decode(nil, ids, DecodeOptions{})), "%s %q", pre, text)
			}
		}
		rapid.Check(t, func(t *rapid.T) { check(rapid.String().Draw(t, "text")) })
		rapid.Check(t, func(t *rapid.T) { check(string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))) })
		check("")
	}
}

// TestMergesMatchDefinition compares both merge algorithms with BPE by definition.
func TestMergesMatchDefinition(t *testing.T) {
	tok := testVocab(t, "nanochat")
	e := tok.take()
	r := rand.New(rand.NewPCG(3, 4))
	for range 4000 {
		piece := randomText(r, 2+r.IntN(shortPiece))
		want := slowMerges(tok, piece)
		require.Equal(t, want, tok.mergeLong(nil, e, piece), "long %q", piece)
		if len(piece) <= shortPiece && len(piece) > 0 {
			require.Equal(t, want, tok.mergeShort(nil, e, piece), "short %q", piece)
		}
	}
	for _, unit := range []string{"a", "ab", " ", "::", "\xff"} {
		piece := strings.Repeat(unit, 700)
		require.Equal(t, slowMerges(tok, piece), tok.mergeLong(nil, e, piece), "%q", unit)
	}
}

// TestCacheChangesNothing encodes the same pieces many times in changing company.
func TestCacheChangesNothing(t *testing.T) {
	tok := testVocab(t, "nanochat")
	r := rand.New(rand.NewPCG(5, 6))
	text := randomText(r, 200_000)
	want := []int32{}
	for _, p := range cut(tok.pre, text) {
		want = append(want, slowMerges(tok, p)...)
	}
	for range 3 {
		require.Equal(t, want, tok.Encode(nil, text, EncodeOptions{}))
	}
}

func TestLongPieceIsNotQuadratic(t *testing.T) {
	tok := testVocab(t, "nanochat")
	text := strings.Repeat("ab", 1<<20)
	ids := tok.Encode(nil, text, EncodeOptions{}) // quadratic time would be hours
	require.Equal(t, text, string(tok.Decode(nil, ids, DecodeOptions{})))
	e := tok.take()
	require.LessOrEqual(t, cap(e.ids), keepSymbols, "the memory of a huge piece is kept")
}

func TestSpecialTokens(t *testing.T) {
	tok := testVocab(t, "nanochat")
	eot, ok := tok.ID("<|endoftext|>")
	require.True(t, ok)
	require.EqualValues(t, 256, eot)
	for role, want := range map[Role]string{
		BOS: "<|endoftext|>", EOS: "<|endoftext|>", EOT: "<|end|>", PAD: "<|pad|>", FIMPrefix: "<|fim_prefix|>",
		FIMSuffix: "<|fim_suffix|>", FIMMiddle: "<|fim_middle|>", FIMPad: "<|fim_pad|>", FIMRepo: "<|repo_name|>", FIMSep: "<|file_sep|>",
	} {
		id, ok := tok.Special(role)
		require.True(t, ok)
		require.Equal(t, want, string(tok.Piece(id)))
		require.Equal(t, Control, tok.Kind(id))
	}
	_, ok = tok.Special(UNK)
	require.False(t, ok)
	end, _ := tok.ID("<|end|>")
	require.Equal(t, []int32{eot, end}, tok.Stops())

	ids := tok.Encode(nil, "a<|endoftext|>b", EncodeOptions{ParseSpecial: true, AddBOS: true})
	require.Equal(t, []int32{eot, 'a', eot, 'b'}, ids)
	require.Equal(t, "ab", string(tok.Decode(nil, ids, DecodeOptions{SkipSpecial: true})))
	for _, id := range tok.Encode(nil, "a<|endoftext|>b", EncodeOptions{}) {
		require.NotEqual(t, Control, tok.Kind(id), "special tokens only when asked for")
	}
	require.Nil(t, tok.Piece(-1))
	require.Nil(t, tok.Piece(int32(tok.Vocab())))
	require.Empty(t, tok.Decode(nil, []int32{-5, 1 << 30}, DecodeOptions{}))
}

func TestSpecialsLeftmostLongest(t *testing.T) {
	var s specials
	s.add([]byte("<a"), 1, false)
	s.add([]byte("<abc"), 2, false)
	s.add([]byte("bcd"), 3, false)
	s.add([]byte("<ab"), 4, true)
	s.add(nil, 9, false)
	for _, c := range []struct {
		text    string
		control bool
		lo, hi  int
		id      int32
	}{
		{"x<abcd", true, 1, 5, 2}, {"x<abd", true, 1, 4, 4}, {"x<abd", false, 1, 3, 1}, {"xbcd", false, 1, 4, 3},
		{"<<a", false, 1, 3, 1}, {"bc", false, 2, 2, -1}, {"", true, 0, 0, -1},
	} {
		lo, hi, id := s.find(c.text, c.control)
		require.Equal(t, []int{c.lo, c.hi, int(c.id)}, []int{lo, hi, int(id)}, c.text)
	}
}

func TestNoAllocations(t *testing.T) {
	tok := testVocab(t, "llama-bpe")
	text := randomText(rand.New(rand.NewPCG(8, 8)), 20_000) + strings.Repeat("long", 200)
	ids := tok.Encode(nil, text, EncodeOptions{ParseSpecial: true})
	buf := tok.Decode(nil, ids, DecodeOptions{})
	d := tok.NewStreamDecoder(DecodeOptions{})
	require.Zero(t, testing.AllocsPerRun(20, func() {
		ids = tok.Encode(ids[:0], text, EncodeOptions{ParseSpecial: true})
		buf = tok.Decode(buf[:0], ids, DecodeOptions{})
		buf = buf[:0]
		for _, id := range ids[:100] {
			buf = d.Next(buf[:0], id)
		}
	}))
}

func TestConcurrentUse(t *testing.T) {
	tok := testVocab(t, "gpt-2")
	text := randomText(rand.New(rand.NewPCG(9, 9)), 5_000)
	want := tok.Encode(nil, text, EncodeOptions{})
	var wg sync.WaitGroup
	for range 2 * maxIdle {
		wg.Go(func() {
			for range 5 {
				if got := tok.Encode(nil, text, EncodeOptions{}); len(got) != len(want) {
					t.Errorf("got %d ids, want %d", len(got), len(want))
				}
			}
		})
	}
	wg.Wait()
}

func TestByteLevel(t *testing.T) {
	for _, size := range []int{MinVocab, 1000, 50257, 128256} {
		tok, err := NewByteLevel(size)
		require.NoError(t, err)
		require.Equal(t, size, tok.Vocab())
		seen := map[string]bool{}
		for id := range int32(size) {
			p := string(tok.Piece(id))
			require.NotEmpty(t, p)
			require.False(t, seen[p], "token %d is the same as an earlier one: %q", id, p)
			seen[p] = true
		}
		require.Equal(t, []int32{'h', 0xc3, 0xa9, '<', '|'}, tok.Encode(nil, "hé<|", EncodeOptions{}))
		require.Equal(t, []int32{256}, tok.Encode(nil, "<|endoftext|>", EncodeOptions{ParseSpecial: true}))
	}
	a, _ := NewByteLevel(5000)
	b, _ := NewByteLevel(5000)
	require.Equal(t, a.vocab.text, b.vocab.text)
	for _, size := range []int{-1, 0, 256, MinVocab - 1, 1 << 30} {
		_, err := NewByteLevel(size)
		require.ErrorContains(t, err, "want 272 to")
	}
}

var benchText = sync.OnceValue(func() string { return randomText(rand.New(rand.NewPCG(10, 10)), 1<<20) })

// BenchmarkEncode/pre: bytes of mixed text per second on one core.
func BenchmarkEncode(b *testing.B) {
	for _, p := range presplits {
		tok := testVocab(b, p.name)
		text := benchText()
		ids := tok.Encode(nil, text, EncodeOptions{})
		b.Run(p.name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				ids = tok.Encode(ids[:0], text, EncodeOptions{})
			}
		})
	}
}
