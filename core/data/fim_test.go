package data

import (
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/internal/rng"
	"github.com/architehc/nanochat/core/tokenizer"
)

// parts takes a transformed document apart.
func parts(t testing.TB, tok *tokenizer.Tokenizer, ids []int32) (p, m, s string, spm bool) {
	special := func(r tokenizer.Role) int32 {
		id, ok := tok.Special(r)
		require.True(t, ok)
		return id
	}
	pre, suf, mid, eos := special(tokenizer.FIMPrefix), special(tokenizer.FIMSuffix), special(tokenizer.FIMMiddle), special(tokenizer.EOS)
	for len(ids) > 0 && ids[len(ids)-1] < 0 {
		ids = ids[:len(ids)-1]
	}
	require.Equal(t, pre, ids[0])
	require.Equal(t, eos, ids[len(ids)-1])
	where := map[int32]int{}
	for i, id := range ids {
		if id == pre || id == suf || id == mid || id == eos {
			require.NotContains(t, where, id, "twice in %v", ids)
			where[id] = i
		}
	}
	text := func(lo, hi int) string {
		return string(tok.Decode(nil, ids[lo:hi], tokenizer.DecodeOptions{}))
	}
	end := len(ids) - 1
	if where[suf] == 1 {
		// Where the prefix ends is not marked in SPM: m is prefix and middle.
		return "", text(where[mid]+1, end), text(2, where[mid]), true
	}
	return text(1, where[suf]), text(where[mid]+1, end), text(where[suf]+1, where[mid]), false
}

// TestFIMKeepsTheText: prefix, middle and suffix are the text, but for the end of
// the suffix that made room, and are cut between characters.
func TestFIMKeepsTheText(t *testing.T) {
	tok := trainedTokenizer(t)
	f, err := newFIM(FIM{Rate: 1, SPM: 0.5}, tok)
	require.NoError(t, err)
	bySPM := map[bool]int{}
	lost, ends := 0, 0
	const n = 10000
	for i := range n {
		f.rng.SetState(rng.State{Seed: 1, Stream: fimStream | uint64(i)})
		want := sampleText(i)
		ids := tok.Encode(nil, want, tokenizer.EncodeOptions{})
		length, before := len(ids), f.done
		f.apply(ids)
		require.Len(t, ids, length)
		if f.done == before {
			require.Equal(t, want, string(tok.Decode(nil, ids, tokenizer.DecodeOptions{})))
			continue
		}
		p, m, s, spm := parts(t, tok, ids)
		bySPM[spm]++
		require.True(t, strings.HasPrefix(want, p+m+s), "%q\n%q\n%q\n%q", want, p, m, s)
		require.True(t, utf8.ValidString(p) && utf8.ValidString(m))
		if p+m == want[:len(p+m)] && s == "" {
			ends++
		}
		lost += len(want) - len(p+m+s)
	}
	require.Equal(t, f.done, bySPM[true]+bySPM[false])
	require.Greater(t, f.done, n*99/100, "most parts fit")
	half := float64(f.done) / 2
	require.InDelta(t, half, float64(bySPM[true]), 5*math.Sqrt(half/2))
	require.Greater(t, ends, n/200, "middles that reach to the end")
	t.Logf("%d of %d transformed; %.1f bytes of the suffix given up on average", f.done, n, float64(lost)/float64(f.done))
}

func TestFIMRate(t *testing.T) {
	tok := byteTokenizer(t)
	for _, rate := range []float64{0.1, 0.5} {
		f, err := newFIM(FIM{Rate: rate, MinTokens: 20}, tok)
		require.NoError(t, err)
		const n = 4000
		tried := 0
		for i := range n {
			f.rng.SetState(rng.State{Seed: 2, Stream: uint64(i)})
			f.apply(tok.Encode(nil, "short", tokenizer.EncodeOptions{}))
			ids := tok.Encode(nil, strings.Repeat("a", 2000), tokenizer.EncodeOptions{})
			f.apply(ids)
			tried++
		}
		require.Equal(t, tried, f.tried)
		require.InDelta(t, rate*n, float64(f.done), 5*math.Sqrt(n*rate*(1-rate)))
	}
}

// TestFIMInRows: rows of transformed documents have well-formed targets.
func TestFIMInRows(t *testing.T) {
	tok := trainedTokenizer(t)
	d := dataset(t, NewVocabulary(tok), 7, encodeAll(tok, 30))
	l := load(t, d, LoaderOptions{Rows: 2, SeqLen: 80, FIM: FIM{Rate: 1}, Tokenizer: tok, Epochs: 1})
	eos, _ := tok.Special(tokenizer.EOS)
	mid, _ := tok.Special(tokenizer.FIMMiddle)
	mids := 0
	for {
		b, err := l.Next(t.Context())
		if err != nil {
			break
		}
		for i := range b.Tokens[:len(b.Tokens)-1] {
			if b.Tokens[i] == mid {
				mids++
			}
			if (i+1)%80 != 0 && b.Targets[i] >= 0 {
				require.Equal(t, b.Targets[i], b.Tokens[i+1])
			}
			if b.Tokens[i] == eos && b.Targets[i] == eos {
				t.Fatalf("an end is the target of an end")
			}
		}
	}
	require.Greater(t, mids, 30)
}
