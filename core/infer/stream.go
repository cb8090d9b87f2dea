package infer

import (
	"context"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/architehc/nanochat/core/sample"
)

// Token is one generated token, or one of the prompt where Request.Echo was set.
type Token struct {
	ID int32
	// Echo says that it is of the prompt.
	Echo bool
	// Logprob is the natural logarithm of its probability under the model; 0
	// unless sample.Options.Logprobs or TopLogprobs was set.
	Logprob float32
	// Top is the sample.Options.TopLogprobs most likely tokens at this place. It
	// stands until the next Next; copy it to keep it.
	Top []sample.Candidate
	// Logits is the row that Request.Logits asks for, [vocab], as the model gave it,
	// before penalties and biases. The first token of the prompt has none. It stands
	// until the next Next.
	Logits []float32
}

// Reason is why a stream ended.
type Reason string

// The reasons, spelled as in results and responses.
const (
	// ReasonNone: it has not ended.
	ReasonNone Reason = ""
	// ReasonStop: the model chose a stop id.
	ReasonStop Reason = "stop"
	// ReasonLength: MaxTokens were generated, none if there were to be none, or the
	// context is full.
	ReasonLength Reason = "length"
	// ReasonCancelled: the context was done, or something was closed.
	ReasonCancelled Reason = "cancelled"
	// ReasonError: the step failed or the logits were not numbers.
	ReasonError Reason = "error"
)

// Result says how a stream went. It is complete once the stream has ended.
type Result struct {
	Reason Reason
	// StopID is the stop id that ended it (ReasonStop), otherwise -1. It is
	// not among the tokens.
	StopID int32
	// PromptTokens is the length of the prompt, CachedTokens how many of them
	// were not computed again, Generated how many tokens followed.
	PromptTokens, CachedTokens, Generated int
	// Drafted tokens were guessed ahead, Accepted of them were right.
	Drafted, Accepted int
	// Embedding is what Request.Embed asks for, [dim], once the prompt is computed: the
	// mean over the prompt's tokens of the hidden state in front of the head (after the
	// last norm), summed in float32 from the first token to the last.
	Embedding []float32
	// Queued is the time until the first step, Prefill from there to the first
	// generated token, or to the end if there is none, Decode from there to the end.
	Queued, Prefill, Decode time.Duration
}

// ringLen is how far generation runs ahead of the reader. A stream whose
// reader is further behind waits without delaying others.
const ringLen = 64

// Stream gives the tokens of one request. One goroutine reads it; Close and
// Result may be called from any.
type Stream struct {
	e      *Engine
	done   chan struct{} // closed when the scheduler has let go
	unbind func() bool   // stops watching the context

	stop  atomic.Pointer[CancelError]
	ready chan struct{}

	mu     sync.Mutex
	ring   []Token
	ids    []int32 // the prompt and what was read; the run's memory
	echo   int     // the first so many of the prompt's tokens are given out without the ring
	echoed int     // of these
	head   int
	n      int  // tokens in the ring, with the one held
	held   bool // the reader looks at ring[head]
	paused bool // the scheduler waits for room
	result Result
	err    error // with Reason: what Next returns after the last token
}

// longRing is how many rows of logits may wait for the reader of one stream.
func (e *Engine) longRing() int { return min(max(rowBytes/4/e.vocab, 4), ringLen) }

// newStream makes the stream of a request whose sequence grows to end tokens.
func (e *Engine) newStream(r *Request, end int) *Stream {
	s := &Stream{e: e, done: make(chan struct{}), ready: make(chan struct{}, 1)}
	s.result.StopID = -1
	s.result.PromptTokens = len(r.Prompt)
	size := ringLen
	if r.Logits {
		size = min(e.longRing(), end)
	}
	s.ring = make([]Token, size)
	if top := min(r.Sample.TopLogprobs, e.vocab); top > 0 {
		all := make([]sample.Candidate, size*top)
		for i := range s.ring {
			s.ring[i].Top = all[i*top : (i+1)*top : (i+1)*top]
		}
	}
	if r.Logits {
		all := make([]float32, size*e.vocab)
		for i := range s.ring {
			s.ring[i].Logits = all[i*e.vocab : (i+1)*e.vocab : (i+1)*e.vocab]
		}
	}
	switch {
	case r.scores():
		s.echo = 1 // nothing predicts the first; the others come with their rows
	case r.Echo:
		s.echo = len(r.Prompt)
	}
	return s
}

// Next waits for the next token.
//
// It returns io.EOF after the last token of a stream that ended with
// ReasonStop or ReasonLength, a *CancelError after a cancelled one, and the
// error of a failed one. If ctx is done first it returns ctx.Err(); the stream
// goes on and Next may be called again.
func (s *Stream) Next(ctx context.Context) (Token, error) {
	for {
		t, ok, err := s.take()
		if ok || err != nil {
			return t, err
		}
		select {
		case <-s.ready:
		default:
			select {
			case <-s.ready:
			case <-ctx.Done():
				return Token{}, ctx.Err()
			}
		}
	}
}

// take returns the next token if there is one, or the error after the last.
func (s *Stream) take() (t Token, ok bool, err error) {
	s.mu.Lock()
	if s.held {
		s.held = false
		s.head = (s.head + 1) % len(s.ring)
		s.n--
	}
	wake := s.paused
	s.paused = false
	switch {
	case s.echoed < s.echo:
		t, ok = Token{ID: s.ids[s.echoed], Echo: true}, true
		s.echoed++
	case s.n > 0:
		s.held, ok = true, true
		t = s.ring[s.head]
		if !t.Echo {
			s.ids = s.ids[:len(s.ids)+1]
		}
	case s.result.Reason != ReasonNone:
		err = s.err
	}
	s.mu.Unlock()
	if wake {
		s.e.poke()
	}
	return t, ok, err
}

// Close ends the stream if it has not ended and waits until its place is free,
// at most one step. Tokens not yet read are dropped.
func (s *Stream) Close() {
	s.cancel(context.Canceled)
	<-s.done
	s.mu.Lock()
	s.result.Generated = len(s.ids) - s.result.PromptTokens
	s.n, s.held, s.echoed = 0, false, s.echo
	s.mu.Unlock()
}

// Result says how the stream went so far.
func (s *Stream) Result() Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result
}

// Done is closed when nothing is computed for this stream any more. Tokens may
// still wait to be read.
func (s *Stream) Done() <-chan struct{} { return s.done }

func (s *Stream) cancel(cause error) {
	if s.stop.CompareAndSwap(nil, &CancelError{cause}) {
		s.e.cancels.Add(1)
		s.e.poke()
	}
}

// room is how many tokens the ring can take. If there are fewer than want, the
// reader wakes the scheduler when it has read one.
func (s *Stream) room(want int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := len(s.ring) - s.n
	s.paused = s.paused || free < want // take makes it false
	return free
}

// push hands a token, predicted by a row of logits, to the reader. The caller knows
// that there is room.
func (s *Stream) push(t Token, row []float32) {
	s.mu.Lock()
	at := &s.ring[(s.head+s.n)%len(s.ring)]
	at.ID, at.Echo, at.Logprob = t.ID, t.Echo, t.Logprob
	copy(at.Top, t.Top)
	copy(at.Logits, row)
	s.n++
	if !t.Echo {
		s.result.Generated++
	}
	s.mu.Unlock()
	s.signal()
}

func (s *Stream) signal() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// end is called once, by the scheduler.
func (s *Stream) end(reason Reason, stopID int32, err error) {
	s.mu.Lock()
	s.result.Reason, s.result.StopID = reason, stopID
	s.err = err
	if err == nil {
		s.err = io.EOF
	}
	s.mu.Unlock()
	close(s.done)
	s.signal()
}

// Session is one conversation: it keeps what was computed for the next request.
// One stream at a time; methods may be called from any goroutine.
type Session struct {
	e *Engine

	// Guarded by e.mu.
	active bool
	closed bool
	// ids are the tokens whose keys and values are in pages; linked of the pages are shared.
	ids    []int32
	pages  []int32
	linked int
	last   *Stream
}

// IDs is the prompt of the last request followed by the tokens read from its
// stream: what the next prompt usually starts with.
func (c *Session) IDs() []int32 {
	c.e.mu.Lock()
	last := c.last
	c.e.mu.Unlock()
	if last == nil {
		return nil
	}
	last.mu.Lock()
	defer last.mu.Unlock()
	return slices.Clone(last.ids)
}

// Busy says that the session has a stream that has not ended.
func (c *Session) Busy() bool {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	return c.active
}

// Generate is Engine.Generate, reusing what the session has computed: the
// longest common beginning of its tokens and the prompt. It returns ErrBusy
// if the session's last stream has not ended.
func (c *Session) Generate(ctx context.Context, r Request) (*Stream, error) {
	return c.e.generate(ctx, c, r)
}

// Close ends the session's stream and frees its cache.
func (c *Session) Close() {
	c.e.mu.Lock()
	c.closed = true
	last := c.last
	if !c.active {
		c.e.drop(c)
	}
	c.e.mu.Unlock()
	if last != nil {
		last.cancel(ErrClosed)
		<-last.done
	}
}
