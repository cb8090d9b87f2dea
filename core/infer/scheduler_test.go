package infer

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/kernels"
)

func set() *kernels.Set { return kernels.Best() }

// TestAnswersFlowWhilePromptsAreRead: every step gives each running answer a
// token, and the prompts advance in every step.
func TestAnswersFlowWhilePromptsAreRead(t *testing.T) {
	f := newFake(97, 4000, 300)
	f.gate = make(chan struct{})
	e := engine(t, f, Options{MaxBatch: 10, MaxTokensPerStep: 64})
	var answers []*Stream
	for i := range 8 {
		answers = append(answers, generate(t, e, Request{Prompt: prompt(3, uint64(i)), MaxTokens: 60}))
	}
	for e.Stats().Generated < 8 {
		f.gate <- struct{}{}
	}
	from := len(f.shapes())
	long := generate(t, e, Request{Prompt: prompt(900, 50), MaxTokens: 1})
	short := generate(t, e, Request{Prompt: prompt(100, 60), MaxTokens: 1})
	for short.Result().Reason == ReasonNone || long.Result().Reason == ReasonNone {
		select {
		case f.gate <- struct{}{}:
		case <-time.After(time.Millisecond):
		}
	}
	close(f.gate)
	steps := f.shapes()[from:]
	mixed := 0
	for i, s := range steps {
		if s.prefill == 0 {
			continue
		}
		mixed++
		require.LessOrEqual(t, s.decoding+s.prefill, 64+1, "step %d", i)
		if i < 40 {
			require.GreaterOrEqual(t, s.decoding, 8, "step %d: %+v", i, s) // a last prompt token alone looks like one more
		}
	}
	require.Greater(t, mixed, 10)
	require.Less(t, short.Result().Prefill, long.Result().Prefill, "a short prompt does not wait for a long one")
	for _, s := range answers {
		require.Len(t, read(t, s, -1).tokens, 60)
	}
}

func TestPace(t *testing.T) {
	p := pace{stall: 3}
	require.Equal(t, 8, p.quota(), "nothing known yet")
	require.Equal(t, 32, p.most(), "nothing known yet")
	for range 50 {
		p.learn(8, 0, 2*time.Millisecond)
		p.learn(0, 200, 40*time.Millisecond) // 0.2 ms a token
	}
	require.InDelta(t, 20, p.quota(), 1, "2 more times 2 ms")
	require.InDelta(t, 750, p.most(), 1, "150 ms")
	p.learn(8, 0, time.Second)
	p.learn(0, 200, 40*time.Second)
	require.InDelta(t, 25*2.0/2.5, p.quota(), 6, "chance moves little")
	for range 50 {
		p.learn(8, 0, 2*time.Millisecond)
		p.learn(0, 200, 40*time.Millisecond)
	}
	p.learn(0, 1, 20*time.Millisecond)
	require.Greater(t, p.most(), 700, "one token says little")
	for range 50 {
		p.learn(8, 10, 12*time.Millisecond) // they cost 1 ms a token beside answers
	}
	require.InDelta(t, 8, p.quota(), 2)
	for range 100 {
		p.learn(0, 32, time.Second)
	}
	require.Equal(t, 8, p.quota(), "the floor")
	require.Equal(t, 16, p.most(), "the floor")
}

func TestPrefixReuse(t *testing.T) {
	f := newFake(97, 2000, 40)
	e := engine(t, f, Options{})
	p := prompt(200, 1)
	r := Request{Prompt: p, MaxTokens: 10}
	want := plain(t, f, 2000, r)
	first := generate(t, e, r)
	require.Equal(t, want.tokens, read(t, first, -1).tokens)
	require.Zero(t, first.Result().CachedTokens)

	again := generate(t, e, r)
	require.Equal(t, want.tokens, read(t, again, -1).tokens)
	require.Equal(t, 192, again.Result().CachedTokens, "whole pages")

	other := slices.Clone(p)
	other[130] ^= 1
	fork := generate(t, e, Request{Prompt: other, MaxTokens: 10})
	read(t, fork, -1)
	require.Equal(t, 128, fork.Result().CachedTokens, "a page is not copied for two tokens")

	other = slices.Clone(p)
	other[100] ^= 1
	r = Request{Prompt: other, MaxTokens: 10}
	fork = generate(t, e, r)
	require.Equal(t, plain(t, f, 2000, r).tokens, read(t, fork, -1).tokens)
	require.Equal(t, 100, fork.Result().CachedTokens, "a page and a part of a copy")

	exact := generate(t, e, Request{Prompt: p[:128], MaxTokens: 3})
	read(t, exact, -1)
	require.Equal(t, 127, exact.Result().CachedTokens, "the last token's logits have to be computed")

	// Two at once share while they run.
	q := Request{Prompt: prompt(640, 9), MaxTokens: 200}
	a := generate(t, e, q)
	for a.Result().Generated == 0 {
		time.Sleep(time.Microsecond)
	}
	b := generate(t, e, q)
	require.Equal(t, read(t, a, -1), read(t, b, -1))
	require.Equal(t, 639, b.Result().CachedTokens)
	require.Equal(t, int64(4*200+128+640+640), e.Stats().PromptTokens)
	require.Equal(t, int64(192+128+100+127+639), e.Stats().CachedTokens)
}

func TestEvictionTakesTheLongestUnused(t *testing.T) {
	f := newFake(97, 300, 8)
	e := engine(t, f, Options{})
	cached := func(seed uint64) int {
		s := generate(t, e, Request{Prompt: prompt(130, seed), MaxTokens: 1})
		read(t, s, -1)
		return s.Result().CachedTokens
	}
	for seed := range uint64(3) {
		require.Zero(t, cached(seed))
	}
	require.Equal(t, 128, cached(0), "used again")
	require.Zero(t, cached(3)) // evicts 1
	require.Equal(t, 128, cached(0))
	require.Equal(t, 128, cached(2))
	require.Less(t, cached(1), 128)
	require.Positive(t, e.Stats().EvictedPages)
}

// A page that is copied is not evicted to make room for its copy; where there is no
// room its part is computed again.
func TestCopyWithoutRoom(t *testing.T) {
	for _, pages := range []int{2, 3, 4} {
		f := newFake(97, 64*pages, pages)
		e := engine(t, f, Options{})
		p := prompt(64*pages-10, 1)
		read(t, generate(t, e, Request{Prompt: p, MaxTokens: 10}), -1)
		for _, at := range []int{64*pages - 60, 70, 20} {
			edited := slices.Clone(p)
			edited[at] ^= 1
			r := Request{Prompt: edited, MaxTokens: 10}
			s := generate(t, e, r)
			require.Equal(t, plain(t, f, 64*pages, r).tokens, read(t, s, -1).tokens, "%d pages, edit at %d", pages, at)
		}
		require.Zero(t, e.Stats().UsedPages)
	}
}

func TestSessionReusesByToken(t *testing.T) {
	f := newFake(97, 2000, 100)
	for _, noCache := range []bool{false, true} {
		e := engine(t, newFake(97, 2000, 100), Options{NoPrefixCache: noCache})
		sess := e.NewSession()
		ask := func(p []int32, read int) (cached int) {
			r := Request{Prompt: p, MaxTokens: 20, Sample: sample.Options{Temperature: 1, Seed: 3}}
			s, err := sess.Generate(t.Context(), r)
			require.NoError(t, err)
			got := readN(t, s, read)
			require.Equal(t, ids(plain(t, f, 2000, r).tokens)[:len(got)], got)
			s.Close()
			require.Equal(t, slices.Concat(p, got), sess.IDs())
			return s.Result().CachedTokens
		}
		require.Zero(t, ask(prompt(70, 1), 20))
		turn := append(sess.IDs(), 7, 8, 9)
		require.Equal(t, 89, ask(turn, 5), "all but the last generated token, which was not fed back")
		edited := slices.Clone(sess.IDs()[:90])
		edited[85] ^= 1
		require.Equal(t, 85, ask(edited, 20), "an edit inside a page that is not shared")
		if !noCache {
			long := append(sess.IDs(), prompt(100, 3)...)
			ask(long, 20)
			edited = slices.Clone(long[:100])
			require.Equal(t, 99, ask(edited, 1), "an edit inside a shared page uses a copy of it")
		}
		require.Positive(t, e.Stats().UsedPages, "kept")
		sess.Close()
		require.Zero(t, e.Stats().UsedPages)
	}
}

func readN(t *testing.T, s *Stream, n int) []int32 { return ids(read(t, s, n).tokens) }

// TestMemoryPressure: idle sessions give their pages up, younger requests
// theirs to older ones, and every answer is what it would be alone.
func TestMemoryPressure(t *testing.T) {
	f := newFake(97, 400, 9)
	e := engine(t, f, Options{MaxBatch: 6, NoPrefixCache: true})
	sess := e.NewSession()
	s, err := sess.Generate(t.Context(), Request{Prompt: prompt(200, 1), MaxTokens: 5})
	require.NoError(t, err)
	read(t, s, -1)
	require.Equal(t, 4, e.Stats().UsedPages)
	var streams []*Stream
	var wants []answer
	for i := range 6 {
		r := Request{Prompt: prompt(20, uint64(i)), MaxTokens: 300, Sample: sample.Options{Temperature: 1, Seed: uint64(i)}}
		streams = append(streams, generate(t, e, r))
		wants = append(wants, plain(t, f, 400, r))
	}
	done := make([]chan answer, len(streams))
	for i := range done {
		done[i] = make(chan answer, 1)
	}
	for i, s := range streams {
		go func() { done[i] <- read(t, s, -1) }()
	}
	for i := range streams {
		require.Equal(t, wants[i], <-done[i])
	}
	require.Positive(t, e.Stats().Preempted)
	s, err = sess.Generate(t.Context(), Request{Prompt: sess.IDs(), MaxTokens: 5})
	require.NoError(t, err)
	read(t, s, -1)
	require.Zero(t, s.Result().CachedTokens, "its pages were needed")
	sess.Close()
}

// TestSlowReaderDelaysNobody: a stream that nobody reads stops after its ring is
// full, gives its place up, and goes on when it is read.
func TestSlowReaderDelaysNobody(t *testing.T) {
	f := newFake(97, 400, 20)
	e := engine(t, f, Options{MaxBatch: 1})
	r := Request{Prompt: prompt(20, 1), MaxTokens: 300}
	slow := generate(t, e, r)
	for i := range 5 {
		q := Request{Prompt: prompt(20, uint64(2+i)), MaxTokens: 200}
		require.Equal(t, plain(t, f, 400, q), read(t, generate(t, e, q), -1))
	}
	require.Equal(t, ringLen, slow.Result().Generated)
	require.Equal(t, plain(t, f, 400, r), read(t, slow, -1))
	require.Positive(t, e.Stats().Preempted)
}

func TestNoAllocationPerToken(t *testing.T) {
	for _, o := range []Options{{}, {Speculate: 4}} {
		f := newFake(97, 30000, 500)
		e := engine(t, f, o)
		s := generate(t, e, Request{Prompt: prompt(300, 1), Sample: sample.Options{Temperature: .5, TopK: 20, RepeatPenalty: 1.1, TopLogprobs: 3}})
		ctx := t.Context()
		for range 500 {
			_, err := s.Next(ctx)
			require.NoError(t, err)
		}
		got := testing.AllocsPerRun(2000, func() { // pages become full and are linked meanwhile
			if _, err := s.Next(ctx); err != nil {
				panic(err)
			}
		})
		require.Zero(t, got)
		s.Close()
	}
}

func TestLookup(t *testing.T) {
	l := newLookup(100, 6)
	l.extend([]int32{1, 2, 3, 4, 9, 1, 2, 3})
	require.Equal(t, []int32{4, 9}, l.propose(nil, 5), "starts with 2")
	require.Equal(t, []int32{4}, l.propose(nil, 1))
	l.learn(2, 2)
	require.Equal(t, []int32{4, 9, 1, 2}, l.propose(nil, 6))
	l.learn(4, 4)
	require.Equal(t, []int32{4, 9, 1, 2, 3, 4}, l.propose(nil, 6), "a repetition goes on with itself")
	l.extend([]int32{1, 2, 3, 4, 9, 1, 2, 3, 3})
	require.Empty(t, l.propose(nil, 5), "3 3 was not there before")
	l.learn(1, 0)
	l.extend([]int32{1, 2, 3, 4, 9, 1, 2, 3, 3, 9, 1})
	require.NotEmpty(t, l.propose(nil, 5))
	l.learn(1, 0)
	require.Empty(t, l.propose(nil, 5), "rests after failures")
}

func BenchmarkScheduler(b *testing.B) {
	for _, n := range []int{1, 16} {
		b.Run(fmt.Sprintf("streams%d", n), func(b *testing.B) {
			f := newFake(97, 1<<20, 20000)
			f.steps = nil
			e := engine(b, f, Options{MaxBatch: n})
			var streams []*Stream
			for i := range n {
				streams = append(streams, generate(b, e, Request{Prompt: prompt(10, uint64(i))}))
			}
			ctx := b.Context()
			for b.Loop() {
				for i, s := range streams {
					if _, err := s.Next(ctx); err != nil { // the context is full
						streams[i] = generate(b, e, Request{Prompt: prompt(10, uint64(i))})
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/token")
		})
	}
}
