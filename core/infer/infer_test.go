package infer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/architehc/nanochat/core/sample"
)

// drawRequest makes a request whose prompt shares its beginning with others.
func drawRequest(rt *rapid.T, context int) Request {
	r := Request{
		Prompt:    prompt(rapid.IntRange(1, context-1).Draw(rt, "prompt"), uint64(rapid.IntRange(0, 1).Draw(rt, "text"))),
		MaxTokens: rapid.IntRange(-1, 150).Draw(rt, "max"),
		Echo:      rapid.IntRange(0, 2).Draw(rt, "echo") == 0,
		Logits:    rapid.IntRange(0, 4).Draw(rt, "logits") == 0,
		Embed:     rapid.IntRange(0, 3).Draw(rt, "embed") == 0,
		Sample: sample.Options{
			Temperature:   rapid.SampledFrom([]float64{0, 0, .3, 1}).Draw(rt, "temperature"),
			TopK:          rapid.SampledFrom([]int{0, 5}).Draw(rt, "top_k"),
			RepeatPenalty: rapid.SampledFrom([]float64{0, 1.2}).Draw(rt, "repeat"),
			Seed:          uint64(rapid.IntRange(0, 3).Draw(rt, "seed")),
			Logprobs:      rapid.Bool().Draw(rt, "logprobs"),
			TopLogprobs:   rapid.IntRange(0, 3).Draw(rt, "top"),
		},
	}
	if rapid.Bool().Draw(rt, "stops") {
		r.Stop = []int32{int32(rapid.IntRange(0, 96).Draw(rt, "stop"))}
	}
	if rapid.Bool().Draw(rt, "tail") { // leave the common text at some point
		r.Prompt[len(r.Prompt)-1] = int32(rapid.IntRange(0, 96).Draw(rt, "last"))
	}
	return r
}

// TestResultsNeverDependOnCompany runs random requests, alone and in sessions,
// through engines of every shape, and compares ids, logprobs and reasons with
// plain generation.
func TestResultsNeverDependOnCompany(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const context = 300
		f := newFake(97, context, rapid.IntRange(5, 20).Draw(rt, "pages"))
		o, err := Options{
			MaxBatch:         rapid.IntRange(1, 6).Draw(rt, "batch"),
			MaxTokensPerStep: rapid.SampledFrom([]int{1, 3, 17, 64, 500}).Draw(rt, "step"),
			Speculate:        rapid.SampledFrom([]int{0, 1, 4, 20}).Draw(rt, "speculate"),
			NoPrefixCache:    rapid.Bool().Draw(rt, "nocache"),
			Context:          rapid.SampledFrom([]int{0, 120}).Draw(rt, "context"),
		}.withDefaults()
		require.NoError(rt, err)
		e, err := start(o, f, set())
		require.NoError(rt, err)
		var readers sync.WaitGroup
		errs := make(chan error, 100)
		for range rapid.IntRange(1, 8).Draw(rt, "clients") {
			type turn struct {
				r     Request
				limit int // read so many and close
				want  answer
			}
			var turns []turn
			for range rapid.IntRange(1, 3).Draw(rt, "turns") {
				tn := turn{r: drawRequest(rt, e.Context()), limit: -1}
				tn.want = plain(rt, f, e.Context(), tn.r)
				if rapid.IntRange(0, 3).Draw(rt, "leaves") == 0 {
					tn.limit = rapid.IntRange(0, 40).Draw(rt, "limit")
				}
				turns = append(turns, tn)
			}
			inSession := rapid.Bool().Draw(rt, "session")
			slow := rapid.IntRange(0, 5).Draw(rt, "slow") == 0
			readers.Add(1)
			go func() {
				defer readers.Done()
				sess := e.NewSession()
				defer sess.Close()
				for _, tn := range turns {
					var s *Stream
					var err error
					if inSession {
						s, err = sess.Generate(t.Context(), tn.r)
					} else {
						s, err = e.Generate(t.Context(), tn.r)
					}
					if err != nil {
						errs <- err
						return
					}
					if slow {
						time.Sleep(time.Millisecond) // falls behind by more than the ring holds
					}
					got := read(t, s, tn.limit)
					if tn.limit >= 0 {
						s.Close()
						if n := s.Result().Generated; n != len(ids(got.tokens)) {
							errs <- fmt.Errorf("%d tokens generated, %d read", n, len(ids(got.tokens)))
						}
						if inSession && !slices.Equal(sess.IDs(), slices.Concat(tn.r.Prompt, ids(got.tokens))) {
							errs <- fmt.Errorf("session has %v", sess.IDs())
						}
						tn.want.tokens = tn.want.tokens[:min(len(tn.want.tokens), tn.limit)]
						tn.want.reason, tn.want.stopID = got.reason, got.stopID
						if got.embedding == nil { // not reached
							tn.want.embedding = nil
						}
					}
					if fmt.Sprint(got) != fmt.Sprint(tn.want) {
						errs <- fmt.Errorf("%+v:\ngot  %v\nwant %v", tn.r, got, tn.want)
					}
				}
			}()
		}
		readers.Wait()
		close(errs)
		for err := range errs {
			require.NoError(rt, err)
		}
		shut(rt, e, f)
	})
}

// ids is the generated ones of some tokens.
func ids(ts []Token) []int32 {
	out := []int32{}
	for _, t := range ts {
		if !t.Echo {
			out = append(out, t.ID)
		}
	}
	return out
}

func TestSpeculationIsExactAndSavesSteps(t *testing.T) {
	for _, temperature := range []float64{0, .4} {
		r := Request{Prompt: prompt(40, 1), MaxTokens: 400, Sample: sample.Options{Temperature: temperature, Seed: 5, Logprobs: true}}
		var answers []answer
		var steps []int
		for _, k := range []int{0, 8} {
			f := newFake(97, 1000, 16)
			e := engine(t, f, Options{Speculate: k})
			s := generate(t, e, r)
			answers = append(answers, read(t, s, -1))
			st := e.Stats()
			steps = append(steps, len(f.shapes()))
			require.Equal(t, int64(400), st.Generated)
			if k > 0 {
				require.Positive(t, st.Accepted)
				require.LessOrEqual(t, st.Accepted, st.Drafted)
				require.Equal(t, int(st.Drafted), s.Result().Drafted)
				require.Equal(t, int(st.Accepted), s.Result().Accepted)
			}
		}
		require.Equal(t, answers[0], answers[1])
		require.Less(t, steps[1], steps[0]*3/4)
	}
}

func TestErrorsBeforeAnyWork(t *testing.T) {
	f := newFake(97, 500, 8)
	e := engine(t, f, Options{KVPages: 8, Context: 400})
	ok := []int32{1}
	for _, c := range []struct {
		r    Request
		want string
	}{
		{Request{}, "infer: prompt is empty, must have at least one token"},
		{Request{Prompt: []int32{5, 97}}, "infer: prompt has id 97 at index 1, ids are 0 to 96: is it from another tokenizer?"},
		{Request{Prompt: []int32{-1}}, "infer: prompt has id -1 at index 0, ids are 0 to 96: is it from another tokenizer?"},
		{Request{Prompt: ok, MaxTokens: -4}, "infer: max_tokens is -4, must be -1 (none), 0 (as many as fit) or more"},
		{Request{Prompt: ok, Stop: []int32{1000}}, "infer: stop has id 1000, ids are 0 to 96"},
		{Request{Prompt: ok, Sample: sample.Options{TopP: 2}}, "sample: top_p is 2, must be 0 (off) to 1"},
		{Request{Prompt: prompt(400, 0)}, "infer: prompt has 400 tokens, the context holds 400 and one must be left for the answer: shorten the prompt by at least 1, or give the cache more memory (the model allows 500)"},
	} {
		_, err := e.Generate(t.Context(), c.r)
		require.EqualError(t, err, c.want)
	}
	_, err := e.Generate(t.Context(), Request{Prompt: prompt(450, 0)})
	var ce *ContextError
	require.ErrorAs(t, err, &ce)
	require.Equal(t, ContextError{Prompt: 450, Context: 400, Model: 500}, *ce)
	require.Empty(t, f.shapes())

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = e.Generate(gone, Request{Prompt: ok})
	require.ErrorIs(t, err, context.Canceled)

	for _, o := range []Options{{MaxBatch: -1}, {Speculate: 63}, {Stall: .5}, {Stall: math.NaN()}, {KVBytes: -1}, {MaxTokensPerStep: 1 << 20}} {
		_, err := o.withDefaults()
		var re *RequestError
		require.ErrorAs(t, err, &re, "%+v", o)
	}
	_, err = start(Options{Context: 1}, f, set())
	require.ErrorContains(t, err, "at least 2")
}

func TestLengthIsClippedToTheContext(t *testing.T) {
	f := newFake(97, 100, 8)
	e := engine(t, f, Options{})
	for _, most := range []int{0, 50, 1 << 40, math.MaxInt} {
		got := read(t, generate(t, e, Request{Prompt: prompt(90, 2), MaxTokens: most}), -1)
		require.Len(t, got.tokens, 10)
		require.Equal(t, ReasonLength, got.reason)
	}
	require.Len(t, read(t, generate(t, e, Request{Prompt: prompt(99, 2)}), -1).tokens, 1)
}

// TestContextLimitedByMemory: fewer pages than the model's context needs.
func TestContextLimitedByMemory(t *testing.T) {
	f := newFake(97, 1000, 2)
	e := engine(t, f, Options{})
	require.Equal(t, 128, e.Context())
	r := Request{Prompt: prompt(100, 2)}
	require.Equal(t, plain(t, f, 128, r), read(t, generate(t, e, r), -1))
}

func TestCancelFreesThePlaceWithinOneStep(t *testing.T) {
	f := newFake(97, 1000, 16)
	f.gate = make(chan struct{})
	e := engine(t, f, Options{MaxBatch: 1})
	ctx, cancel := context.WithCancelCause(t.Context())
	s, err := e.Generate(ctx, Request{Prompt: prompt(5, 1)})
	require.NoError(t, err)
	waiting := generate(t, e, Request{Prompt: prompt(5, 2), MaxTokens: 1})
	f.gate <- struct{}{} // prefill
	tok, err := s.Next(t.Context())
	require.NoError(t, err)
	require.NotNil(t, tok)
	for f.entered.Load() < 2 {
		time.Sleep(time.Microsecond)
	}
	why := errors.New("client gone")
	cancel(why)
	for s.stop.Load() == nil { // the context tells a goroutine of its own
		time.Sleep(time.Microsecond)
	}
	f.gate <- struct{}{} // the step that was under way
	<-s.Done()
	require.Equal(t, ReasonCancelled, s.Result().Reason)
	_, err = s.Next(t.Context()) // its token
	require.NoError(t, err)
	_, err = s.Next(t.Context())
	var ce *CancelError
	require.ErrorAs(t, err, &ce)
	require.ErrorIs(t, err, why)
	_, err = s.Next(t.Context())
	require.ErrorIs(t, err, why, "and again")
	f.gate <- struct{}{}
	require.Len(t, read(t, waiting, -1).tokens, 1)
	require.Equal(t, 2, s.Result().Generated)

	// A waiting request can be cancelled too, and Next can be given up without
	// ending the stream.
	a := generate(t, e, Request{Prompt: prompt(5, 1), MaxTokens: 2})
	b := generate(t, e, Request{Prompt: prompt(5, 1)})
	short, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	_, err = a.Next(short)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	go func() { f.gate <- struct{}{}; f.gate <- struct{}{} }()
	require.Len(t, read(t, a, -1).tokens, 2)
	go func() { f.gate <- struct{}{} }()
	b.Close()
	b.Close()
	_, err = b.Next(t.Context())
	require.ErrorIs(t, err, context.Canceled)
	close(f.gate)
	st := e.Stats()
	require.Equal(t, int64(2), st.Cancelled)
	require.Equal(t, int64(2), st.Finished)
}

func TestCloseEndsEverything(t *testing.T) {
	f := newFake(97, 100000, 2000)
	e := engine(t, f, Options{MaxBatch: 2})
	sess := e.NewSession()
	a, err := sess.Generate(t.Context(), Request{Prompt: prompt(5, 1)})
	require.NoError(t, err)
	_, err = sess.Generate(t.Context(), Request{Prompt: prompt(5, 1)})
	require.ErrorIs(t, err, ErrBusy)
	streams := []*Stream{a}
	for range 5 {
		streams = append(streams, generate(t, e, Request{Prompt: prompt(5, 1)}))
	}
	_, err = a.Next(t.Context())
	require.NoError(t, err)
	e.Close()
	for _, s := range streams {
		for err = nil; err == nil; {
			_, err = s.Next(t.Context())
		}
		require.ErrorIs(t, err, ErrClosed)
		s.Close()
	}
	_, err = e.Generate(t.Context(), Request{Prompt: prompt(5, 1)})
	require.ErrorIs(t, err, ErrClosed)
	_, err = sess.Generate(t.Context(), Request{Prompt: prompt(5, 1)})
	require.ErrorIs(t, err, ErrClosed)
	sess.Close()
}

func TestSessionClose(t *testing.T) {
	f := newFake(97, 1000, 100)
	e := engine(t, f, Options{})
	sess := e.NewSession()
	require.Empty(t, sess.IDs())
	s, err := sess.Generate(t.Context(), Request{Prompt: prompt(5, 1)})
	require.NoError(t, err)
	_, err = s.Next(t.Context())
	require.NoError(t, err)
	sess.Close()
	for err == nil {
		_, err = s.Next(t.Context())
	}
	require.ErrorIs(t, err, ErrClosed)
	_, err = sess.Generate(t.Context(), Request{Prompt: prompt(5, 1)})
	require.ErrorIs(t, err, ErrClosed)
	require.Zero(t, e.Stats().UsedPages)
	sess.Close()
}

func TestPanicsAndErrorsEndTheRequestsOfTheStep(t *testing.T) {
	f := newFake(97, 1000, 100)
	e := engine(t, f, Options{})
	boom := errors.New("boom")
	for _, c := range []struct {
		fail  func(*batch) error
		check func(error)
	}{
		{func(*batch) error { return boom }, func(err error) { require.ErrorIs(t, err, boom) }},
		{func(*batch) error { panic("broken") }, func(err error) {
			var pe *PanicError
			require.ErrorAs(t, err, &pe)
			require.Equal(t, "broken", pe.Value)
			require.Contains(t, err.Error(), "infer: internal error: broken")
		}},
	} {
		f.setFail(c.fail)
		s := generate(t, e, Request{Prompt: prompt(70, 1), MaxTokens: 3})
		_, err := s.Next(t.Context())
		c.check(err)
		require.Equal(t, ReasonError, s.Result().Reason)
		f.setFail(nil)
		require.Len(t, read(t, generate(t, e, Request{Prompt: prompt(70, 1), MaxTokens: 3}), -1).tokens, 3)
	}
	require.Equal(t, int64(2), e.Stats().Failed)
}

func TestBadLogitsEndTheirRequestOnly(t *testing.T) {
	f := newFake(97, 1000, 100)
	f.nan = 13
	e := engine(t, f, Options{})
	good := generate(t, e, Request{Prompt: prompt(5, 1), MaxTokens: 50})
	bad := generate(t, e, Request{Prompt: []int32{13, 2, 3}, MaxTokens: 50})
	_, err := bad.Next(t.Context())
	var le *sample.LogitError
	require.ErrorAs(t, err, &le)
	require.Equal(t, int32(3), le.ID)
	require.Equal(t, 3, le.Pos)
	require.Len(t, read(t, good, -1).tokens, 50)
}

func TestQueueLimit(t *testing.T) {
	f := newFake(97, 1000, 100)
	f.gate = make(chan struct{})
	e := engine(t, f, Options{MaxBatch: 1, MaxQueue: 2})
	first := generate(t, e, Request{Prompt: prompt(5, 1), MaxTokens: 1})
	for e.Stats().Running == 0 {
		time.Sleep(time.Microsecond)
	}
	generate(t, e, Request{Prompt: prompt(5, 1), MaxTokens: 1})
	generate(t, e, Request{Prompt: prompt(5, 1), MaxTokens: 1})
	_, err := e.Generate(t.Context(), Request{Prompt: prompt(5, 1)})
	var qe *QueueError
	require.ErrorAs(t, err, &qe)
	require.Equal(t, 2, qe.Waiting)
	close(f.gate)
	read(t, first, -1)
}
