package infer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/kernels"
)

// Request asks for a continuation.
type Request struct {
	// Prompt is the whole context, not only what is new in it. It is copied.
	Prompt []int32
	// MaxTokens is the most tokens to generate. 0, and any number the context
	// has no room for, means as many as the context holds. -1 means none: the prompt is
	// only read, for Echo or Embed or to have it cached, and may fill the context.
	MaxTokens int
	// Stop are ids that end the answer without being part of it.
	Stop []int32
	// Sample chooses the tokens. The zero value is greedy.
	Sample sample.Options
	// Echo begins the stream with the prompt's own tokens. All but the first carry
	// what Sample and Logits ask for: where they do, the prompt is computed anew even
	// if it is cached.
	Echo bool
	// Logits gives every token the row of logits that it was chosen from or, for a
	// token of the prompt, that predicted it.
	Logits bool
	// Embed asks for Result.Embedding. The prompt is computed anew even if it is cached.
	Embed bool
}

// scores says whether the echoed tokens need rows of logits.
func (r *Request) scores() bool {
	return r.Echo && (r.Logits || r.Sample.Logprobs || r.Sample.TopLogprobs > 0)
}

// Stats counts what an engine has done since it was made.
type Stats struct {
	// Steps of the scheduler, and steps that only decoded.
	Steps, DecodeSteps int64
	// PromptTokens of requests admitted; CachedTokens of them were not computed.
	PromptTokens, CachedTokens int64
	// Computed tokens went through the model; Generated tokens came out.
	Computed, Generated int64
	// Drafted tokens were guessed ahead, Accepted of them were right.
	Drafted, Accepted int64
	// Finished, Cancelled and Failed streams.
	Finished, Cancelled, Failed int64
	// Preempted counts streams that lost their cache to an older one for a while.
	Preempted int64
	// EvictedPages were cached and made room.
	EvictedPages int64
	// Running and Waiting requests, now.
	Running, Waiting int
	// Pages in all; UsedPages of them belong to requests and sessions, CachedPages
	// wait for a prompt with the same beginning.
	Pages, UsedPages, CachedPages int
}

// Engine runs a model for many requests at once. All methods may be called
// from any goroutine.
type Engine struct {
	o       Options
	b       backend
	vocab   int
	context int // positions a sequence may have
	ws      *sample.Workspace
	now     func() time.Time

	wake    chan struct{}
	exited  chan struct{}
	cancels atomic.Int64 // moves with every cancellation

	mu      sync.Mutex
	closed  bool
	arrived int64      // number of the next request
	swept   int64      // value of cancels at the last sweep
	waiting []*run     // by arrival
	running []*run     // by arrival
	idle    []*Session // with pages and without a stream, longest unused first
	cache   *pageCache
	stats   Stats

	// The present step; the scheduler's own.
	planned []*run
	scratch []*run
	batch   batch
	pace    pace
	prefill int // prompt tokens in it
	rows    int // the most rows of logits that a step computes for prompts
}

// rowBytes bounds the logits of prompts in a step, and those that wait in a stream.
const rowBytes = 4 << 20

// start runs the scheduler over b.
func start(o Options, b backend, set *kernels.Set) (*Engine, error) {
	context := b.context()
	if o.Context > 0 {
		context = min(context, o.Context)
	}
	context = min(context, b.pages()*pageLen)
	if context < 2 {
		return nil, &RequestError{"context", fmt.Sprintf("holds %d positions, must hold at least 2", context)}
	}
	e := &Engine{
		o: o, b: b, vocab: b.vocab(), context: context, now: clock.System().Now,
		ws:   sample.NewWorkspace(b.vocab(), set),
		wake: make(chan struct{}, 1), exited: make(chan struct{}),
		cache: newPageCache(b, o.NoPrefixCache),
		pace:  pace{stall: o.Stall},
	}
	e.rows = e.longRing()
	e.batch.tokens = make([]int32, 0, o.MaxTokensPerStep)
	e.batch.spans = make([]span, 0, o.MaxBatch)
	go e.loop()
	return e, nil
}

// Context is the number of positions a request may use, prompt and answer.
func (e *Engine) Context() int { return e.context }

// Generate queues a request and returns its stream. When ctx is done the
// stream ends within a step, with what was generated so far.
//
// It returns, before anything is computed: a *RequestError, a
// *sample.OptionError, a *ContextError, a *QueueError or ErrClosed.
func (e *Engine) Generate(ctx context.Context, r Request) (*Stream, error) {
	return e.generate(ctx, nil, r)
}

// NewSession returns a session without tokens.
func (e *Engine) NewSession() *Session { return &Session{e: e} }

// Stats is a snapshot.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Running, s.Waiting = len(e.running), len(e.waiting)
	s.Pages, s.UsedPages, s.CachedPages = len(e.cache.node), e.cache.used, e.cache.unused
	s.EvictedPages = e.cache.evicted
	return s
}

// Close cancels all streams, waits until the scheduler has ended and frees the cache.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.poke()
	<-e.exited
}

func (e *Engine) check(r Request) error {
	if len(r.Prompt) == 0 {
		return &RequestError{"prompt", "is empty, must have at least one token"}
	}
	if r.MaxTokens < -1 {
		return &RequestError{"max_tokens", fmt.Sprintf("is %d, must be -1 (none), 0 (as many as fit) or more", r.MaxTokens)}
	}
	for i, id := range r.Prompt {
		if id < 0 || int(id) >= e.vocab {
			return &RequestError{"prompt", fmt.Sprintf("has id %d at index %d, ids are 0 to %d: is it from another tokenizer?", id, i, e.vocab-1)}
		}
	}
	for _, id := range r.Stop {
		if id < 0 || int(id) >= e.vocab {
			return &RequestError{"stop", fmt.Sprintf("has id %d, ids are 0 to %d", id, e.vocab-1)}
		}
	}
	if err := r.Sample.Validate(e.vocab); err != nil {
		return err
	}
	if len(r.Prompt) > e.context || len(r.Prompt) == e.context && r.MaxTokens >= 0 {
		return &ContextError{Prompt: len(r.Prompt), Context: e.context, Model: e.b.context(), PromptOnly: r.MaxTokens < 0}
	}
	return nil
}

func (e *Engine) generate(ctx context.Context, sess *Session, r Request) (*Stream, error) {
	if err := e.check(r); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, &CancelError{context.Cause(ctx)}
	}
	end := e.context
	if room := end - len(r.Prompt); r.MaxTokens != 0 && r.MaxTokens < room {
		end = len(r.Prompt) + max(r.MaxTokens, 0)
	}
	s := e.newStream(&r, end)
	q := &run{s: s, sess: sess, prompt: len(r.Prompt), end: end, stop: slices.Clone(r.Stop), options: r.Sample, begun: e.now(),
		echoed: len(r.Prompt), summed: len(r.Prompt), only: r.MaxTokens < 0}
	if r.scores() {
		q.echoed = 1
	}
	if r.Embed {
		q.sum, q.summed = make([]float32, e.b.dim()), 0
	}
	q.ids = append(make([]int32, 0, end), r.Prompt...)
	s.ids = q.ids

	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed, sess != nil && sess.closed:
		return nil, ErrClosed
	case sess != nil && sess.active:
		return nil, ErrBusy
	case len(e.waiting) >= e.o.MaxQueue:
		return nil, &QueueError{Waiting: len(e.waiting)}
	}
	if sess != nil {
		sess.active, sess.last = true, s
	}
	q.order = e.arrived
	e.arrived++
	e.waiting = append(e.waiting, q)
	// The callback may run before this returns; it does not take e.mu.
	s.unbind = context.AfterFunc(ctx, func() { s.cancel(context.Cause(ctx)) })
	e.poke()
	return s, nil
}

// poke makes the scheduler look around.
func (e *Engine) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}
