package eval

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

const contextLen = 48

func testModel(t *testing.T, change ...func(*config.Model)) (*model.Model, *tokenizer.Tokenizer) {
	t.Helper()
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN, c.Vocab, c.Context, c.LogitSoftcap, c.Group = 64, 2, 2, 1, 32, 128, 300, contextLen, 15, 64
	for _, f := range change {
		f(&c)
	}
	m, err := model.Init(t.Context(), c, 3, model.Options{})
	require.NoError(t, err)
	tok, err := tokenizer.NewByteLevel(c.Vocab)
	require.NoError(t, err)
	return m, tok
}

func evaluator(t *testing.T, m *model.Model, tok *tokenizer.Tokenizer, threads, step int) *Evaluator {
	t.Helper()
	tm := team.New(threads, team.Options{})
	t.Cleanup(tm.Close)
	e, err := New(m, tok, Options{Team: tm, StepTokens: step})
	require.NoError(t, err)
	return e
}

// slow is the nats of the targets of one sequence, one token at a time and in
// float64.
func slow(t *testing.T, m *model.Model, tokens, targets []int32) (nats float64) {
	t.Helper()
	tm := team.New(1, team.Options{})
	defer tm.Close()
	w, err := model.NewWork(m, tm, 1)
	require.NoError(t, err)
	p, err := model.NewPool(m, 2+contextLen/kernels.PageLen, kernels.KVF16)
	require.NoError(t, err)
	var seq model.Seq
	for i, id := range tokens {
		require.NoError(t, p.Grow(&seq, 1))
		require.NoError(t, m.Forward(w, p, &model.Step{Tokens: []int32{id}, Seqs: []model.SeqStep{{Seq: &seq, N: 1, Logits: model.LogitsAll}}}))
		if targets[i] < 0 {
			continue
		}
		z := w.Logits(0)
		sum := 0.0
		for _, v := range z {
			sum += math.Exp(float64(v))
		}
		nats += math.Log(sum) - float64(z[targets[i]])
	}
	return nats
}

func texts(list ...string) iter.Seq2[data.Document, error] {
	return func(yield func(data.Document, error) bool) {
		for _, s := range list {
			if !yield(data.Document{Text: s}, nil) {
				return
			}
		}
	}
}

var samples = []string{
	"fn main() {}\n",
	strings.Repeat("let x = \"grüße\";\n", 11), // several windows
	"",
	"a",
	strings.Repeat("z", contextLen-1), // with BOS exactly one window of inputs
	strings.Repeat("y", contextLen),
	"\xff\x00 no text at all \xfe",
	strings.Repeat("struct S;", 40),
}

func length(list []string) (n int64) {
	for _, s := range list {
		n += int64(len(s))
	}
	return n
}

func TestDocumentsMatchTokenByToken(t *testing.T) {
	m, tok := testModel(t)
	const bos = 256
	for _, o := range []Windows{{}, {Overlap: 16}, {Window: 20}, {Window: 20, Overlap: 19}, {Window: 1}} {
		size := o.Window
		if size == 0 {
			size = contextLen
		}
		var want []float64
		for _, text := range samples {
			ids := []int32{bos}
			for _, b := range []byte(text) {
				ids = append(ids, int32(b))
			}
			ids = append(ids, bos)
			nats := 0.0
			for next := 0; next < len(ids)-1; { // windows written down another way
				from := next
				if next > 0 {
					from -= o.Overlap
				}
				end := min(from+size, len(ids)-1)
				targets := append([]int32{}, ids[from+1:end+1]...)
				for i := range next - from {
					targets[i] = -1
				}
				nats += slow(t, m, ids[from:end], targets)
				next = end
			}
			want = append(want, nats)
		}
		var got []float64
		e := evaluator(t, m, tok, 2, 0)
		s, err := e.Documents(t.Context(), texts(samples...), o, func(d data.Document, s Sums) {
			require.Equal(t, samples[len(got)], d.Text)
			require.Equal(t, len(d.Text)+1, s.Tokens)
			require.Equal(t, int64(len(d.Text)), s.Bytes)
			got = append(got, s.Nats)
		}, nil)
		require.NoError(t, err)
		require.Len(t, got, len(want))
		sum := 0.0
		for i := range want {
			require.InEpsilon(t, want[i], got[i], 1e-6, "document %d, %+v", i, o)
			sum += got[i]
		}
		require.InEpsilon(t, sum, s.Nats, 1e-12)
		require.Equal(t, length(samples), s.Bytes, "every byte once")
		require.Equal(t, int(length(samples))+len(samples), s.Tokens)
		require.Equal(t, len(samples), s.Documents)
		require.InEpsilon(t, s.Nats/math.Ln2/float64(length(samples)), s.BPB(), 1e-15)
		require.InEpsilon(t, s.Nats/float64(s.Tokens), s.PerToken(), 1e-15)
	}
}

// The result is a property of the model and the text.
func TestSameBitsForAnyStepAndTeam(t *testing.T) {
	m, tok := testModel(t)
	many := append([]string{}, samples...)
	for range 3 * mostSeqs { // more short sequences than a step takes
		many = append(many, "x")
	}
	var want Sums
	for i, o := range []struct{ threads, step int }{{1, 0}, {2, 0}, {1, 1}, {3, 7}, {2, 48}, {2, 100}, {1, 4096}} {
		e := evaluator(t, m, tok, o.threads, o.step)
		for range 2 { // again with the same memory
			s, err := e.Documents(t.Context(), texts(many...), Windows{Overlap: 5}, nil, nil)
			require.NoError(t, err)
			if i == 0 {
				want = s
			}
			require.Equal(t, want, s, "%+v", o)
			require.Equal(t, e.pool.Pages(), e.pool.Free(), "pages were not given back")
		}
	}
}

// prepared makes a dataset of the samples, which are too short for the usual filters.
func prepared(t *testing.T, tok *tokenizer.Tokenizer) *data.Dataset {
	t.Helper()
	dir := t.TempDir()
	var lines strings.Builder
	for i, s := range []string{strings.Repeat("fn f() {}\n", 30), "pub struct A;\n", strings.Repeat("let y = 2;\n", 9), "use std::fmt;\n"} {
		b, err := json.Marshal(map[string]string{"path": string(rune('a'+i)) + "/lib.rs", "text": s})
		require.NoError(t, err)
		lines.Write(append(b, '\n'))
	}
	in := filepath.Join(dir, "in.jsonl")
	require.NoError(t, os.WriteFile(in, []byte(lines.String()), 0o666))
	out := filepath.Join(dir, "out")
	_, err := data.Prepare(t.Context(), data.PrepareOptions{Inputs: []string{in}, Out: out, Tokenizer: tok, Filter: data.FilterOptions{MinBytes: 1, MinLetters: -1}, Dedup: data.DedupOptions{Off: true}}, nil)
	require.NoError(t, err)
	d, err := data.Open(out, data.Train, data.OpenOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

func TestDatasetMatchesTheLoadersRows(t *testing.T) {
	m, tok := testModel(t)
	d := prepared(t, tok)
	const seqLen = 32
	l, err := data.NewLoader(d, data.LoaderOptions{Rows: 4, SeqLen: seqLen, Ordered: true, Epochs: 1})
	require.NoError(t, err)
	defer l.Close()
	nats, tokens, text := 0.0, 0, int64(0)
	for {
		b, err := l.Next(t.Context())
		if err != nil {
			break
		}
		tokens, text = tokens+b.Count, text+b.TextBytes
		for r := range b.Rows {
			for lo := 0; lo < seqLen; {
				hi := lo + 1
				for hi < seqLen && b.Starts[r*seqLen+hi] == int32(lo) {
					hi++
				}
				nats += slow(t, m, b.Tokens[r*seqLen+lo:r*seqLen+hi], b.Targets[r*seqLen+lo:r*seqLen+hi])
				lo = hi
			}
		}
	}
	require.Positive(t, tokens)
	var steps int
	s, err := evaluator(t, m, tok, 2, 0).Dataset(t.Context(), d, Rows{SeqLen: seqLen}, func(p Progress) {
		steps++
		require.Equal(t, d.Tokens(), p.Total)
	})
	require.NoError(t, err)
	require.InEpsilon(t, nats, s.Nats, 1e-6)
	require.Equal(t, tokens, s.Tokens)
	require.Equal(t, text, s.Bytes)
	require.Equal(t, d.TextBytes(), s.Bytes)
	require.Equal(t, d.Docs(), s.Documents)
	require.Equal(t, int(l.RowsPerEpoch()), steps)

	some, err := evaluator(t, m, tok, 2, 0).Dataset(t.Context(), d, Rows{SeqLen: seqLen, Rows: 2}, nil)
	require.NoError(t, err)
	require.Equal(t, 2*seqLen, some.Tokens)

	other, err := tokenizer.NewByteLevel(m.Config().Vocab - 1)
	require.NoError(t, err)
	_, err = evaluator(t, m, other, 1, 0).Dataset(t.Context(), d, Rows{}, nil)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Contains(t, e.Error(), "another vocabulary")
}

func TestMistakes(t *testing.T) {
	m, tok := testModel(t)
	ev := evaluator(t, m, tok, 1, 0)
	var e *Error
	for _, o := range []Windows{{Window: -1}, {Window: contextLen + 1}, {Overlap: -1}, {Overlap: contextLen}, {Window: 8, Overlap: 8}} {
		_, err := ev.Documents(t.Context(), texts("x"), o, nil, nil)
		require.ErrorAs(t, err, &e, "%+v", o)
	}
	for _, n := range []int{-1, contextLen + 1} {
		_, err := ev.Dataset(t.Context(), prepared(t, tok), Rows{SeqLen: n}, nil)
		require.ErrorAs(t, err, &e)
	}
	_, err := New(m, tok, Options{})
	require.ErrorAs(t, err, &e)
	large, err := tokenizer.NewByteLevel(m.Config().Vocab + 1)
	require.NoError(t, err)
	tm := team.New(1, team.Options{})
	defer tm.Close()
	_, err = New(m, large, Options{Team: tm})
	require.ErrorAs(t, err, &e)
	require.Contains(t, e.Error(), "301")

	_, err = ev.Documents(t.Context(), texts(), Windows{}, nil, nil)
	require.ErrorContains(t, err, "no text")
	bad := errors.New("no such file")
	_, err = ev.Documents(t.Context(), func(yield func(data.Document, error) bool) {
		_ = yield(data.Document{Text: "x"}, nil) && yield(data.Document{}, bad)
	}, Windows{}, nil, nil)
	require.ErrorIs(t, err, bad)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = ev.Documents(ctx, texts(strings.Repeat("x", 5000)), Windows{}, nil, nil)
	require.ErrorIs(t, err, context.Canceled)
	// It can be used again.
	s, err := ev.Documents(t.Context(), texts("x"), Windows{}, nil, nil)
	require.NoError(t, err)
	require.Equal(t, 2, s.Tokens)
	require.True(t, math.IsNaN(Sums{}.BPB()) && math.IsNaN(Sums{}.PerToken()))
}
