package infer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/sample"
)

// What is asked about the prompt: its tokens, their rows of logits, its embedding.

func TestEchoOfACachedPrompt(t *testing.T) {
	f := newFake(97, 2000, 100)
	e := engine(t, f, Options{})
	r := Request{Prompt: prompt(300, 1), MaxTokens: 5}
	read(t, generate(t, e, r), -1)
	for _, c := range []struct {
		change func(r *Request)
		cached int
	}{
		{func(r *Request) { r.Echo = true }, 256}, // nothing is asked of the model
		{func(r *Request) { r.Echo, r.MaxTokens = true, -1 }, 256},
		{func(r *Request) { r.Logits = true }, 256}, // of the answer only
		{func(r *Request) { r.Echo, r.Logits = true, true }, 0},
		{func(r *Request) { r.Echo, r.Sample.Logprobs = true, true }, 0},
		{func(r *Request) { r.Echo, r.Sample.TopLogprobs, r.MaxTokens = true, 2, -1 }, 0},
		{func(r *Request) { r.Embed, r.MaxTokens = true, -1 }, 0},
	} {
		r := r
		c.change(&r)
		s := generate(t, e, r)
		want, got := plain(t, f, 2000, r), read(t, s, -1)
		require.Equal(t, fmt.Sprint(want), fmt.Sprint(got))
		require.Equal(t, c.cached, s.Result().CachedTokens, "%+v", r.Sample)
		require.Equal(t, max(r.MaxTokens, 0), s.Result().Generated)
		if r.Echo {
			require.Equal(t, r.Prompt, echoes(got.tokens))
		}
	}
}

// echoes is the tokens of the prompt among some.
func echoes(ts []Token) (out []int32) {
	for _, t := range ts {
		if t.Echo {
			out = append(out, t.ID)
		}
	}
	return out
}

// TestPromptOnly: nothing is generated, the context may be full, and what was computed
// is there for the next request.
func TestPromptOnly(t *testing.T) {
	f := newFake(97, 400, 20)
	e := engine(t, f, Options{})
	r := Request{Prompt: prompt(400, 1), MaxTokens: -1}
	got := read(t, generate(t, e, r), -1)
	require.Empty(t, got.tokens)
	require.Equal(t, ReasonLength, got.reason)
	next := generate(t, e, Request{Prompt: r.Prompt[:399], MaxTokens: 1})
	read(t, next, -1)
	require.Equal(t, 384, next.Result().CachedTokens)
	_, err := e.Generate(t.Context(), Request{Prompt: prompt(401, 1), MaxTokens: -1})
	require.EqualError(t, err, "infer: prompt has 401 tokens, the context holds 400: shorten the prompt by at least 1")
	require.Equal(t, int64(2), e.Stats().Finished)

	sess := e.NewSession()
	defer sess.Close()
	s, err := sess.Generate(t.Context(), Request{Prompt: prompt(100, 7), MaxTokens: -1})
	require.NoError(t, err)
	read(t, s, -1)
	require.False(t, sess.Busy())
	require.Equal(t, prompt(100, 7), sess.IDs())
	s, err = sess.Generate(t.Context(), Request{Prompt: prompt(102, 7), MaxTokens: 2})
	require.NoError(t, err)
	read(t, s, -1)
	require.Equal(t, 100, s.Result().CachedTokens)
}

// TestRowsOfPromptsAreFew: no step computes more rows of logits than a few MB, for any
// number of prompts that want them, and others go on beside them.
func TestRowsOfPromptsAreFew(t *testing.T) {
	const vocab = 200_000 // 4 MiB are 5 rows
	f := newFake(vocab, 3000, 200)
	f.gate = make(chan struct{})
	e := engine(t, f, Options{MaxBatch: 4})
	require.Equal(t, 5, e.rows)
	var wg sync.WaitGroup
	for i := range 4 {
		r := Request{Prompt: prompt(20+i, uint64(i)), Echo: true, Logits: i < 2, MaxTokens: 3, Sample: sample.Options{Logprobs: true}}
		s := generate(t, e, r)
		require.Len(t, s.ring, map[bool]int{true: 5, false: ringLen}[r.Logits])
		wg.Add(1)
		go func() {
			defer wg.Done()
			if want, got := plain(t, f, 3000, r), read(t, s, -1); !slices.EqualFunc(want.tokens, got.tokens, func(a, b Token) bool {
				return a.ID == b.ID && a.Logprob == b.Logprob && a.Echo == b.Echo && slices.Equal(a.Logits, b.Logits)
			}) {
				t.Error("stream", i, "differs")
			}
		}()
	}
	close(f.gate)
	wg.Wait()
	most := 0
	for _, s := range f.shapes() {
		most = max(most, s.rows)
	}
	require.LessOrEqual(t, most, 5+4) // and one for each that decodes
	require.Greater(t, most, 3)
}

// TestEchoWaitsForItsReader: a prompt whose rows nobody reads is not computed on, delays
// nobody, gives its place up, and can be cancelled in the middle.
func TestEchoWaitsForItsReader(t *testing.T) {
	f := newFake(97, 2000, 40)
	e := engine(t, f, Options{MaxBatch: 1})
	r := Request{Prompt: prompt(500, 1), Echo: true, Embed: true, MaxTokens: 5, Sample: sample.Options{Logprobs: true}}
	slow, gone := generate(t, e, r), generate(t, e, r)
	for i := range 4 {
		q := Request{Prompt: prompt(40, uint64(i+5)), MaxTokens: 100}
		require.Equal(t, plain(t, f, 2000, q), read(t, generate(t, e, q), -1))
	}
	require.Nil(t, slow.Result().Embedding)
	require.Len(t, read(t, gone, 100).tokens, 100)
	gone.Close()
	require.Zero(t, gone.Result().Generated)
	_, err := gone.Next(t.Context())
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, fmt.Sprint(plain(t, f, 2000, r)), fmt.Sprint(read(t, slow, -1)))
	require.Positive(t, e.Stats().Preempted)
}

// TestEchoThatStopsHalfway: a stream with some room, but less than is worth a step, does
// not keep its place either.
func TestEchoThatStopsHalfway(t *testing.T) {
	f := newFake(97, 2000, 40)
	e := engine(t, f, Options{MaxBatch: 1, MaxTokensPerStep: 20})
	r := Request{Prompt: prompt(500, 1), Echo: true, MaxTokens: 5, Sample: sample.Options{Logprobs: true}}
	slow := generate(t, e, r)
	q := Request{Prompt: prompt(40, 5), MaxTokens: 100}
	require.Equal(t, plain(t, f, 2000, q), read(t, generate(t, e, q), -1))
	require.Positive(t, e.Stats().Preempted)
	require.Equal(t, fmt.Sprint(plain(t, f, 2000, r)), fmt.Sprint(read(t, slow, -1)))
}

func TestEchoReportsBadLogits(t *testing.T) {
	f := newFake(97, 1000, 100)
	f.nan = 13
	e := engine(t, f, Options{})
	s := generate(t, e, Request{Prompt: []int32{13, 2, 3}, Echo: true, MaxTokens: -1, Sample: sample.Options{Logprobs: true}})
	tok, err := s.Next(t.Context())
	require.NoError(t, err)
	require.Equal(t, Token{ID: 13, Echo: true}, tok)
	_, err = s.Next(t.Context())
	var le *sample.LogitError
	require.ErrorAs(t, err, &le)
	require.Equal(t, 1, le.Pos)
	require.Equal(t, ReasonError, s.Result().Reason)
}

// TestAloneAndInAnyBatch: requests of every kind, each first alone and then among others
// that come and go, give the same bytes. NANOCHAT_LONG=1 takes 500 requests.
func TestAloneAndInAnyBatch(t *testing.T) {
	n := 60
	if os.Getenv("NANOCHAT_LONG") != "" {
		n = 500
	}
	m := smallModel(t)
	if slow(m) {
		n = min(n, 20)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	requests, want := make([]Request, n), make([]string, n)
	alone, err := New(m, Options{Threads: 1, MaxBatch: 1, NoPrefixCache: true})
	require.NoError(t, err)
	defer alone.Close()
	for i := range requests {
		r := Request{Prompt: make([]int32, 1+rnd.IntN(150)), MaxTokens: 1 + rnd.IntN(60), Sample: sample.Options{
			Temperature: []float64{0, .7, 1.3}[rnd.IntN(3)], TopK: []int{0, 40}[rnd.IntN(2)], TopP: []float64{0, .9}[rnd.IntN(2)],
			RepeatPenalty: []float64{0, 1.1}[rnd.IntN(2)], Seed: rnd.Uint64(), Logprobs: rnd.IntN(2) == 0, TopLogprobs: rnd.IntN(3),
		}, Echo: rnd.IntN(4) == 0, Logits: rnd.IntN(8) == 0, Embed: rnd.IntN(4) == 0}
		for j := range r.Prompt {
			r.Prompt[j] = int32((j * j) % 40)
		}
		for range rnd.IntN(3) { // so that prompts part at many places
			r.Prompt[rnd.IntN(len(r.Prompt))] = int32(rnd.IntN(200))
		}
		requests[i], want[i] = r, fmt.Sprint(read(t, generate(t, alone, r), -1))
	}
	e, err := New(m, Options{Threads: 2, MaxBatch: 16, MaxTokensPerStep: 64, Speculate: 4})
	require.NoError(t, err)
	defer e.Close()
	var wg sync.WaitGroup
	for i, r := range requests {
		s := generate(t, e, r)
		wg.Add(1)
		go func() {
			defer wg.Done()
			if got := fmt.Sprint(read(t, s, -1)); got != want[i] {
				t.Errorf("request %d: %.300s\nalone:\n%.300s", i, got, want[i])
			}
		}()
		if rnd.IntN(10) == 0 {
			time.Sleep(time.Duration(rnd.IntN(1000)) * time.Microsecond)
		}
	}
	wg.Wait()
	st := e.Stats()
	require.Positive(t, st.CachedTokens)
	require.Positive(t, st.Accepted)
	require.Greater(t, st.Generated, st.Steps, "the requests did not share steps")
	if !t.Failed() {
		t.Logf("RELIABILITY | a request (greedy or sampled, with logprobs, logits, echo, embedding) alone, and among others that come and go, with prefix cache and speculation: the same bytes | %d of %d, %d tokens in %d steps | `core/infer TestAloneAndInAnyBatch` |",
			n, n, st.Generated, st.Steps)
	}
}

// TestStepsOfASlowModelAreShort: a prompt is read in steps after which a cancellation is
// soon noticed, however slow the model is.
func TestStepsOfASlowModelAreShort(t *testing.T) {
	f := newFake(97, 2000, 100)
	f.setFail(func(b *batch) error {
		time.Sleep(time.Duration(len(b.tokens)) * 2 * time.Millisecond)
		return nil
	})
	e := engine(t, f, Options{})
	read(t, generate(t, e, Request{Prompt: prompt(300, 1), MaxTokens: 1}), -1)
	for i, s := range f.shapes() {
		require.LessOrEqual(t, s.prefill, 75, "step %d", i) // 150 ms
	}
	require.Equal(t, 32, f.shapes()[0].prefill)

	s := generate(t, e, Request{Prompt: prompt(1500, 2)})
	for e.Stats().Running == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	began := time.Now()
	s.Close()
	require.Less(t, time.Since(began), time.Second, "0.2 s, and a busy machine's share")
}
