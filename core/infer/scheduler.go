package infer

import (
	"runtime"
	"slices"
	"time"

	"github.com/architehc/nanochat/core/sample"
)

// run is a request on its way: waiting, or running with pages.
type run struct {
	s       *Stream
	sess    *Session
	order   int64
	options sample.Options
	stop    []int32

	// ids is the prompt and what was generated; end is its largest length.
	ids    []int32
	prompt int
	end    int
	only   bool // nothing is generated
	// echoed of the prompt's tokens need no rows of logits any more; summed of its
	// positions are in sum, which is nil if no embedding was asked for. Both stay when
	// the pages are lost.
	echoed, summed int
	sum            []float32
	// computed of the ids have keys and values in pages. linked of the pages are
	// full and in the tree.
	computed int
	pages    []int32
	linked   int

	active  bool            // is in Engine.running
	sampler *sample.Sampler // nil before it first runs
	look    *lookup         // nil without speculation
	draft   []int32

	// take of the ids are computed in this step, followed by the draft; row is
	// the first of their logits. last says that the step computes the last of ids, after
	// which the next can be chosen.
	take, row int
	last      bool
	// reason is set when the step ended the request.
	reason Reason
	stopID int32
	err    error

	begun, admitted, first time.Time
}

// pending is how many ids have to be computed before the next is known.
func (r *run) pending() int { return len(r.ids) - r.computed }

// asked is the first position that has to be computed even if it is cached: the last
// one, whose logits choose the next token, or the first whose logits or hidden state
// were asked for and are not given yet.
func (r *run) asked() int {
	at := len(r.ids) - 1
	if r.echoed < r.prompt {
		at = min(at, r.echoed-1)
	}
	if r.summed < r.prompt {
		at = min(at, r.summed)
	}
	return at
}

// wants is how many tokens the stream must have room for so that a step is worth it: one,
// or many where rows of the prompt are wanted.
func (r *run) wants() int {
	if r.echoed < r.prompt {
		return min(r.prompt-r.echoed, (len(r.s.ring)+1)/2)
	}
	return 1
}

// behind says that the reader of r has not made room.
func (r *run) behind() bool {
	want := r.wants()
	return r.s.room(want) < want
}

// loop is the scheduler. The lock is held except while a step is computed.
func (e *Engine) loop() {
	defer close(e.exited)
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		e.sweep()
		if e.closed {
			for len(e.idle) > 0 {
				e.drop(e.idle[0])
			}
			e.b.close()
			return
		}
		e.admit()
		if !e.plan() {
			e.mu.Unlock()
			<-e.wake
			e.mu.Lock()
			continue
		}
		e.mu.Unlock()
		began := e.now()
		err := e.compute()
		took := e.now().Sub(began)
		runtime.Gosched() // readers first: a team may keep every other thread busy
		e.mu.Lock()
		e.settle(err, took)
	}
}

// sweep ends what was cancelled, and everything once the engine is closed.
func (e *Engine) sweep() {
	n := e.cancels.Load()
	if n == e.swept && !e.closed {
		return
	}
	e.swept = n
	e.scratch = append(append(e.scratch[:0], e.running...), e.waiting...)
	for _, r := range e.scratch {
		cause := r.s.stop.Load()
		if cause == nil && e.closed {
			cause = &CancelError{ErrClosed}
		}
		if cause != nil {
			r.err = cause
			e.finish(r, ReasonCancelled)
		}
	}
}

// admit starts waiting requests, the oldest first, while there is room.
func (e *Engine) admit() {
	for i := 0; i < len(e.waiting); {
		r := e.waiting[i]
		if r.behind() { // lost its place because its reader is behind
			i++
			continue
		}
		if len(e.running) >= e.o.MaxBatch {
			if !e.yield() {
				return
			}
			i = slices.Index(e.waiting, r)
		}
		if len(e.running) > 0 && !e.fits(r) {
			if e.yield() {
				i = slices.Index(e.waiting, r)
				continue
			}
			return
		}
		e.waiting = slices.Delete(e.waiting, i, i+1)
		e.begin(r)
	}
}

// yield preempts a request whose reader is behind, if there is one.
func (e *Engine) yield() bool {
	for _, r := range slices.Backward(e.running) {
		if r.behind() {
			e.preempt(r)
			return true
		}
	}
	return false
}

// fits says whether r's ids can be computed beside those of the others.
func (e *Engine) fits(r *run) bool {
	free := e.cache.available()
	for _, s := range e.idle {
		if s != r.sess {
			free += len(s.pages)
		}
	}
	for _, q := range e.running {
		free -= pagesFor(len(q.ids)+1) - len(q.pages)
	}
	need := pagesFor(len(r.ids) + 1)
	if r.sess != nil && len(r.sess.pages) > 0 {
		need -= min(len(r.sess.pages), common(r.sess.ids, r.ids[:r.asked()])/pageLen)
	} else {
		n, unused := e.cache.matched(r.ids[:r.asked()])
		need -= n - unused
	}
	return need <= free
}

// begin gives r the pages that hold the beginning of its ids and makes it run.
func (e *Engine) begin(r *run) {
	reuse := r.ids[:r.asked()]
	r.pages = make([]int32, 0, pagesFor(r.end+1))
	if r.sess != nil {
		e.adopt(r, reuse)
	}
	if r.computed < len(reuse)/pageLen*pageLen {
		if n, _ := e.cache.matched(reuse); n*pageLen > r.computed {
			e.cache.release(r.pages)
			r.pages = e.cache.match(r.pages[:0], reuse)
			r.linked = len(r.pages)
			r.computed = r.linked * pageLen
		}
	}
	e.copyPart(r, reuse)
	r.active = true
	at, _ := slices.BinarySearchFunc(e.running, r.order, func(q *run, order int64) int { return int(q.order - order) })
	e.running = slices.Insert(e.running, at, r)
	if r.sampler == nil {
		r.admitted = e.now()
		r.sampler, r.err = sample.New(r.options, e.vocab)
		if r.err != nil {
			e.finish(r, ReasonError) // Generate has checked the options: it cannot come to this
			return
		}
		r.sampler.Reset(r.ids)
		if e.o.Speculate > 0 {
			r.look = newLookup(r.end, e.o.Speculate)
			r.draft = make([]int32, 0, e.o.Speculate)
		}
		e.stats.PromptTokens += int64(r.prompt)
		e.stats.CachedTokens += int64(r.computed)
		r.s.mu.Lock()
		r.s.result.CachedTokens = r.computed
		r.s.result.Queued = r.admitted.Sub(r.begun)
		r.s.mu.Unlock()
	}
}

// adopt moves the session's pages to r, as far as the tokens agree.
func (e *Engine) adopt(r *run, reuse []int32) {
	c := r.sess
	n := common(c.ids, reuse)
	keep := pagesFor(n)
	if keep <= c.linked && n%pageLen != 0 {
		keep-- // the page is shared and would be written to
		n = keep * pageLen
	}
	r.pages = append(r.pages, c.pages[:keep]...)
	e.cache.release(c.pages[keep:])
	r.computed = n
	r.linked = min(c.linked, n/pageLen)
	c.ids, c.pages, c.linked = nil, nil, 0
	e.forget(c)
}

// copyPart gives r, whose pages are whole and shared, a copy of a page that agrees
// with its next ids for a part.
func (e *Engine) copyPart(r *run, reuse []int32) {
	if r.computed != r.linked*pageLen || len(r.pages) != r.linked {
		return
	}
	parent := nothing
	if r.linked > 0 {
		parent = r.pages[r.linked-1]
	}
	if page, n, ok := e.cache.split(parent, reuse[r.computed:]); ok {
		r.pages = append(r.pages, page)
		r.computed += n
	}
}

// preempt takes r's pages away and lets it wait for its turn again. Its tokens
// are kept; only keys and values are computed again, to the same bits.
func (e *Engine) preempt(r *run) {
	e.leave(r)
	e.cache.release(r.pages)
	r.pages, r.computed, r.linked, r.take = nil, 0, 0, 0
	at, _ := slices.BinarySearchFunc(e.waiting, r.order, func(q *run, order int64) int { return int(q.order - order) })
	e.waiting = slices.Insert(e.waiting, at, r)
	e.stats.Preempted++
}

// leave takes r out of the running.
func (e *Engine) leave(r *run) {
	r.active = false
	i := slices.Index(e.running, r)
	e.running = slices.Delete(e.running, i, i+1)
}

// plan chooses the work of the next step: a token of every running answer,
// then guesses, then prompts. It reports whether there is any.
func (e *Engine) plan() bool {
	budget := e.o.MaxTokensPerStep
	e.scratch = append(e.scratch[:0], e.running...)
	for _, r := range e.scratch {
		r.take, r.draft = 0, r.draft[:0]
	}
	decoding := 0
	for _, r := range e.scratch {
		if r.active && r.pending() == 1 && r.s.room(1) > 0 && e.grow(r, 1) {
			r.take = 1
			decoding++
			budget--
		}
	}
	if e.o.Speculate > 0 {
		budget -= e.guess(min(budget, e.o.Speculate))
	}
	reading := 0
	for _, r := range e.scratch {
		if r.active && r.pending() > 1 {
			reading++
		}
	}
	if decoding > 0 {
		budget = min(budget, e.pace.quota())
	} else {
		budget = min(budget, e.pace.most())
	}
	e.prefill = 0
	rows := e.rows
	oldest := true
	for _, r := range e.scratch {
		if !r.active || r.pending() == 1 || budget == 0 {
			continue
		}
		parts := reading
		if oldest {
			parts = min(reading, 2) // half for the oldest prompt, the others share the rest
		}
		oldest = false
		reading--
		n := min(r.pending(), (budget+parts-1)/parts)
		if r.echoed < r.prompt {
			n = e.scored(r, n, &rows)
		}
		if n > 0 && e.grow(r, n) {
			r.take = n
			budget -= n
			e.prefill += n
		}
	}
	e.assemble()
	return len(e.planned) > 0
}

// scored is how many of n tokens of r a step may compute, whose logits are wanted: as
// many as the stream has room for, and no more than rows together.
func (e *Engine) scored(r *run, n int, rows *int) int {
	if again := r.echoed - 1 - r.computed; again > 0 { // its pages were lost
		return min(n, again)
	}
	want := r.wants()
	free := r.s.room(want)
	if free < want {
		return 0
	}
	n = min(n, free, *rows)
	*rows -= n
	return n
}

// guess drafts tokens for the runs that decode, at most limit together.
func (e *Engine) guess(limit int) int {
	used := 0
	for _, r := range e.scratch {
		if !r.active || r.take == 0 || r.look == nil {
			continue
		}
		most := min(limit-used, r.end-len(r.ids)-1, r.s.room(1)-1)
		if most <= 0 {
			continue
		}
		r.look.extend(r.ids)
		r.draft = r.look.propose(r.draft[:0], most)
		for pagesFor(r.computed+1+len(r.draft)) > len(r.pages) {
			page, ok := e.cache.alloc() // nobody loses pages to a guess
			if !ok {
				r.draft = r.draft[:len(r.pages)*pageLen-r.computed-1]
				break
			}
			r.pages = append(r.pages, page)
		}
		used += len(r.draft)
	}
	return used
}

// grow makes room for n more positions of r. It takes pages from idle sessions
// first, then from running requests that are behind or younger. If that is not
// enough r itself has to wait, and grow returns false.
func (e *Engine) grow(r *run, n int) bool {
	for pagesFor(r.computed+n) > len(r.pages) {
		if page, ok := e.cache.alloc(); ok {
			r.pages = append(r.pages, page)
			continue
		}
		if len(e.idle) > 0 {
			e.drop(e.idle[0])
			continue
		}
		if e.yield() {
			continue
		}
		youngest := e.running[len(e.running)-1] // the oldest never waits: it takes from all others
		e.preempt(youngest)
		if youngest == r {
			return false
		}
	}
	return true
}

// link puts the pages of r that became full into the tree.
func (e *Engine) link(r *run) {
	for full := r.computed / pageLen; r.linked < full; r.linked++ {
		parent := nothing
		if r.linked > 0 {
			parent = r.pages[r.linked-1]
		}
		lo := r.linked * pageLen
		r.pages[r.linked] = e.cache.insert(parent, r.pages[r.linked], r.ids[lo:lo+pageLen])
	}
}

// finish ends a request that runs or waits and gives its pages back.
func (e *Engine) finish(r *run, reason Reason) {
	if r.active {
		e.leave(r)
	} else if i := slices.Index(e.waiting, r); i >= 0 {
		e.waiting = slices.Delete(e.waiting, i, i+1)
	}
	switch reason {
	case ReasonCancelled:
		e.stats.Cancelled++
	case ReasonError:
		e.stats.Failed++
	default:
		e.stats.Finished++
	}
	c := r.sess
	if c != nil {
		c.active = false
	}
	if c != nil && !c.closed && len(r.pages) > 0 {
		keep := pagesFor(r.computed)
		e.cache.release(r.pages[keep:])
		c.ids, c.pages, c.linked = r.ids[:r.computed], r.pages[:keep], r.linked
		if keep > 0 {
			e.idle = append(e.idle, c)
		}
	} else {
		e.cache.release(r.pages)
		if c != nil && c.closed {
			e.drop(c)
		}
	}
	r.pages = nil
	now := e.now()
	stopID := nothing
	if reason == ReasonStop {
		stopID = r.stopID
	}
	r.s.mu.Lock()
	if !r.first.IsZero() {
		r.s.result.Prefill = r.first.Sub(r.admitted)
		r.s.result.Decode = now.Sub(r.first)
	}
	r.s.mu.Unlock()
	if r.s.unbind != nil {
		r.s.unbind()
	}
	r.s.end(reason, stopID, r.err)
}

// drop frees the pages of an idle session.
func (e *Engine) drop(c *Session) {
	e.cache.release(c.pages)
	c.ids, c.pages, c.linked = nil, nil, 0
	e.forget(c)
}

func (e *Engine) forget(c *Session) {
	if i := slices.Index(e.idle, c); i >= 0 {
		e.idle = slices.Delete(e.idle, i, i+1)
	}
}

// pagesFor is the number of pages that n positions need.
func pagesFor(n int) int { return (n + pageLen - 1) / pageLen }

// common is the length of the longest common beginning.
func common(a, b []int32) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
