package infer

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

func smallModel(t testing.TB) *model.Model {
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN = 96, 2, 4, 2, 24, 160
	c.Vocab, c.Context, c.Group, c.Streams = 211, 256, 64, 2
	c.Embedding, c.Head = config.TypeF16, config.TypeQ8_0
	m, err := model.Init(t.Context(), c, 7, model.Options{})
	require.NoError(t, err)
	return m
}

// slow says that the kernels are the reference in Go.
func slow(m *model.Model) bool { return m.Set().Name == "go" }

// bare generates with the model alone: the prompt in one step, then a token each.
func bare(t require.TestingT, m *model.Model, kv kernels.KVType, r Request) answer {
	tm := team.New(1, team.Options{})
	defer tm.Close()
	w, err := model.NewWork(m, tm, len(r.Prompt))
	require.NoError(t, err)
	p, err := model.NewPool(m, 4, kv)
	require.NoError(t, err)
	s, err := sample.New(r.Sample, m.Config().Vocab)
	require.NoError(t, err)
	s.Reset(r.Prompt)
	ws := sample.NewWorkspace(m.Config().Vocab, m.Set())
	seq := &model.Seq{}
	a := answer{reason: ReasonLength, stopID: -1}
	give := func(tok Token, row []float32) {
		if row != nil {
			tok.Top = append([]sample.Candidate(nil), s.Top()...)
		}
		if r.Logits {
			tok.Logits = slices.Clone(row)
		}
		a.tokens = append(a.tokens, tok)
	}
	generated := 0
	for next := slices.Clone(r.Prompt); ; {
		require.NoError(t, p.Grow(seq, len(next)))
		step := model.Step{Tokens: next, Seqs: []model.SeqStep{{Seq: seq, N: len(next), Logits: model.LogitsLast, Hidden: r.Embed}}}
		if generated == 0 && r.scores() {
			step.Seqs[0].Logits = model.LogitsAll
		}
		require.NoError(t, m.Forward(w, p, &step))
		if generated == 0 {
			for i, id := range r.Prompt {
				if r.Echo && (i == 0 || !r.scores()) {
					give(Token{ID: id, Echo: true}, nil)
				} else if r.Echo {
					lp, err := s.Score(ws, w.Logits(i-1), i, id)
					require.NoError(t, err)
					give(Token{ID: id, Echo: true, Logprob: lp}, w.Logits(i-1))
				}
				if r.Embed {
					if i == 0 {
						a.embedding = make([]float32, m.Config().Dim)
					}
					for j, x := range w.Hidden(0, i) {
						a.embedding[j] += x
					}
				}
			}
			for j := range a.embedding {
				a.embedding[j] /= float32(len(r.Prompt))
			}
		}
		if r.MaxTokens < 0 || len(r.Prompt)+generated == m.Config().Context {
			return a
		}
		row := w.Logits(w.Rows() - 1)
		id, lp, err := s.Sample(ws, row, seq.Len)
		require.NoError(t, err)
		s.Accept(id)
		give(Token{ID: id, Logprob: lp}, row)
		if generated++; generated == r.MaxTokens {
			return a
		}
		next = append(next[:0], id)
	}
}

// TestModelResultsNeverDependOnCompany is the same promise with a real network:
// threads, steps, company, cache, guesses and prefixes never change a bit.
func TestModelResultsNeverDependOnCompany(t *testing.T) {
	m := smallModel(t)
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		if runs++; runs > 12 && slow(m) {
			return // enough for kernels in Go
		}
		kv := rapid.SampledFrom([]kernels.KVType{kernels.KVF16, kernels.KVI8}).Draw(rt, "kv")
		e, err := New(m, Options{
			Threads:          rapid.IntRange(1, 4).Draw(rt, "threads"),
			MaxBatch:         rapid.IntRange(1, 5).Draw(rt, "batch"),
			MaxTokensPerStep: rapid.SampledFrom([]int{1, 7, 64, 256}).Draw(rt, "step"),
			Speculate:        rapid.SampledFrom([]int{0, 3, 10}).Draw(rt, "speculate"),
			KVPages:          rapid.IntRange(4, 12).Draw(rt, "pages"),
			KVType:           kv,
		})
		require.NoError(rt, err)
		defer e.Close()
		var wg sync.WaitGroup
		for range rapid.IntRange(1, 4).Draw(rt, "requests") {
			text := rapid.IntRange(0, 1).Draw(rt, "text")
			r := Request{
				Prompt:    make([]int32, rapid.IntRange(1, 200).Draw(rt, "prompt")),
				MaxTokens: rapid.SampledFrom([]int{-1, 1, 5, 40}).Draw(rt, "max"),
				Echo:      rapid.IntRange(0, 2).Draw(rt, "echo") == 0,
				Logits:    rapid.IntRange(0, 4).Draw(rt, "logits") == 0,
				Embed:     rapid.IntRange(0, 3).Draw(rt, "embed") == 0,
				Sample: sample.Options{
					Temperature: rapid.SampledFrom([]float64{0, .2, 1}).Draw(rt, "temperature"),
					Seed:        rapid.Uint64Range(0, 9).Draw(rt, "seed"), TopP: .9, Logprobs: rapid.Bool().Draw(rt, "logprobs"), TopLogprobs: rapid.SampledFrom([]int{0, 2}).Draw(rt, "top"),
				},
			}
			for i := range r.Prompt {
				r.Prompt[i] = int32((i*i*7 + text*i) % 30)
			}
			if rapid.Bool().Draw(rt, "edited") { // inside a page, more often than not
				r.Prompt[rapid.IntRange(0, len(r.Prompt)-1).Draw(rt, "edit")] = 31
			}
			s, err := e.Generate(t.Context(), r)
			require.NoError(rt, err)
			wg.Add(1)
			go func() {
				defer wg.Done()
				want, got := bare(t, m, kv, r), read(t, s, -1)
				if fmt.Sprint(want) != fmt.Sprint(got) {
					t.Errorf("%+v:\ngot  %v\nwant %v", r, got, want)
				}
			}()
		}
		wg.Wait()
	})
}

func TestModelEngineAllocatesNothingPerToken(t *testing.T) {
	for _, n := range []int{1, 2} {
		e, err := New(smallModel(t), Options{Threads: n, MaxBatch: 2, Context: 250, Speculate: 2})
		require.NoError(t, err)
		s, err := e.Generate(t.Context(), Request{Prompt: prompt(20, 1), Sample: sample.Options{Temperature: 1, TopK: 50}})
		require.NoError(t, err)
		for range 100 { // buffers grow to their size
			_, err = s.Next(t.Context())
			require.NoError(t, err)
		}
		require.Zero(t, testing.AllocsPerRun(100, func() {
			if _, err := s.Next(t.Context()); err != nil {
				panic(err)
			}
		}))
		e.Close()
	}
}

func TestNewReportsWhatIsWrong(t *testing.T) {
	m := smallModel(t)
	for _, o := range []Options{{MaxBatch: -1}, {KVBytes: 100}, {KVPages: 1 << 24, KVType: 9}, {Context: 1}} {
		_, err := New(m, o)
		require.Error(t, err, "%+v", o)
	}
	e, err := New(m, Options{KVBytes: int64(3 * model.PageBytes(m, kernels.KVF16))})
	require.NoError(t, err)
	require.Equal(t, 3, e.Stats().Pages)
	require.Equal(t, 192, e.Context())
	e.Close()
	tm := team.New(2, team.Options{})
	defer tm.Close()
	e, err = New(m, Options{Team: tm})
	require.NoError(t, err)
	e.Close()
	require.NoError(t, tm.Run(func(*team.Worker) {}), "a team given is not closed")
}

// nano is the shape of the nano-125m preset with a vocabulary of 16384.
func nano(t testing.TB) *model.Model {
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN = 768, 12, 12, 12, 64, 2048
	c.Vocab, c.Context, c.Group, c.Streams = 16384, 2048, 128, 1
	c.Embedding, c.Head = config.TypeF16, config.TypeQ8_0
	m, err := model.Init(t.Context(), c, 7, model.Options{})
	require.NoError(t, err)
	return m
}

// BenchmarkOverhead compares a token by the engine with the same by bare Forward
// and greedy choice.
func BenchmarkOverhead(b *testing.B) {
	m := nano(b)
	tokens := 200
	r := Request{Prompt: prompt(10, 1), MaxTokens: tokens}
	for _, threads := range []int{1, 2} {
		b.Run(fmt.Sprintf("bare/threads%d", threads), func(b *testing.B) {
			tm := team.New(threads, team.Options{})
			defer tm.Close()
			w, _ := model.NewWork(m, tm, 256)
			p, _ := model.NewPool(m, 32, kernels.KVF16)
			for b.Loop() {
				seq := &model.Seq{}
				_ = p.Grow(seq, 300)
				next := slices.Clone(r.Prompt)
				for range tokens {
					step := model.Step{Tokens: next, Seqs: []model.SeqStep{{Seq: seq, N: len(next), Logits: model.LogitsLast}}}
					if err := m.Forward(w, p, &step); err != nil {
						b.Fatal(err)
					}
					next = append(next[:0], int32(m.Set().ArgMax(w.Logits(0))))
				}
				p.Truncate(seq, 0)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*tokens), "us/token")
		})
		for _, o := range []sample.Options{{}, {Temperature: .8, TopK: 40}, {Temperature: .8, TopP: .95}, {Temperature: 1}} {
			b.Run(fmt.Sprintf("engine/threads%d/t%g_k%d_p%g", threads, o.Temperature, o.TopK, o.TopP), func(b *testing.B) {
				e, err := New(m, Options{Threads: threads, NoPrefixCache: true})
				require.NoError(b, err)
				defer e.Close()
				r.Sample = o
				for b.Loop() {
					if got := read(b, generate(b, e, r), -1); len(got.tokens) != tokens {
						b.Fatal(len(got.tokens))
					}
				}
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*tokens), "us/token")
			})
		}
	}
}
