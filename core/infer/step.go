package infer

import (
	"runtime/debug"
	"slices"
	"time"
)

// assemble writes the batch of the planned runs.
func (e *Engine) assemble() {
	e.planned = e.planned[:0]
	b := &e.batch
	b.tokens, b.spans = b.tokens[:0], b.spans[:0]
	row := 0
	for _, r := range e.running {
		if r.take == 0 {
			continue
		}
		s := span{pages: r.pages, pos: r.computed, n: r.take + len(r.draft), hidden: r.summed < r.prompt}
		r.last = r.take == r.pending() && !r.only
		switch {
		case r.echoed < r.prompt && r.computed+r.take >= r.echoed:
			s.rows = s.n
		case r.last:
			s.rows = 1 + len(r.draft)
		}
		r.row = row
		row += s.rows
		b.tokens = append(b.tokens, r.ids[r.computed:r.computed+r.take]...)
		b.tokens = append(b.tokens, r.draft...)
		b.spans = append(b.spans, s)
		e.planned = append(e.planned, r)
	}
}

// compute runs the step and samples. It touches only what belongs to the planned runs.
func (e *Engine) compute() (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{v, debug.Stack()}
		}
	}()
	if err := e.b.forward(&e.batch); err != nil {
		return err
	}
	for i, r := range e.planned {
		if r.echoed < r.prompt {
			e.score(r)
		}
		if r.summed < r.prompt {
			e.embed(r, i)
		}
		if r.last && r.reason == ReasonNone {
			e.choose(r, r.row+e.batch.spans[i].rows-1-len(r.draft))
		}
	}
	return nil
}

// score hands out the tokens of the prompt that the step has predicted.
func (e *Engine) score(r *run) {
	for ; r.echoed < r.prompt && r.echoed <= r.computed+r.take; r.echoed++ {
		id := r.ids[r.echoed]
		row := e.b.row(r.row + r.echoed - 1 - r.computed)
		logprob, err := r.sampler.Score(e.ws, row, r.echoed, id)
		if err != nil {
			r.reason, r.err = ReasonError, err
			return
		}
		r.s.push(Token{ID: id, Echo: true, Logprob: logprob, Top: r.sampler.Top()}, row)
	}
}

// embed adds the hidden states of the step, of which span is r's, to the sum: one token
// after the other, so that it does not matter how the prompt was cut.
func (e *Engine) embed(r *run, span int) {
	for ; r.summed < r.prompt && r.summed < r.computed+r.take; r.summed++ {
		for j, x := range e.b.hidden(span, r.summed-r.computed) {
			r.sum[j] += x
		}
	}
	if r.summed < r.prompt {
		return
	}
	for j := range r.sum {
		r.sum[j] /= float32(r.prompt)
	}
	r.s.mu.Lock()
	r.s.result.Embedding = r.sum
	r.s.mu.Unlock()
}

// choose samples the next token of r from row at, and as many more as its draft foresaw.
func (e *Engine) choose(r *run, at int) {
	for i := 0; ; i++ {
		row := e.b.row(at + i)
		id, logprob, err := r.sampler.Sample(e.ws, row, len(r.ids))
		if err != nil {
			r.reason, r.err = ReasonError, err
			return
		}
		if slices.Contains(r.stop, id) {
			r.reason, r.stopID = ReasonStop, id
			return
		}
		r.ids = append(r.ids, id)
		r.sampler.Accept(id)
		r.s.push(Token{ID: id, Logprob: logprob, Top: r.sampler.Top()}, row)
		if len(r.ids) >= r.end {
			r.reason = ReasonLength
			return
		}
		if i == len(r.draft) || r.draft[i] != id {
			return
		}
	}
}

// settle accounts for the step and ends what is finished.
func (e *Engine) settle(err error, took time.Duration) {
	decoding := 0
	now := e.now()
	for i, r := range e.planned {
		if err != nil {
			r.err = err
			e.finish(r, ReasonError)
			continue
		}
		e.stats.Computed += int64(e.batch.spans[i].n)
		before := r.computed + r.take
		if !r.last {
			r.computed = before
			e.link(r)
			if r.only && r.reason == ReasonNone && r.computed == len(r.ids) {
				r.reason, r.first = ReasonLength, now
			}
			if r.reason != ReasonNone {
				e.finish(r, r.reason)
			}
			continue
		}
		if r.first.IsZero() {
			r.first = now
		}
		if r.take == 1 {
			decoding++
		}
		// The draft tokens that were right are in ids, followed by the last one
		// chosen, whose keys and values are not computed yet.
		accepted := 0
		for accepted < len(r.draft) && before+accepted < len(r.ids) && r.ids[before+accepted] == r.draft[accepted] {
			accepted++
		}
		generated := len(r.ids) - before
		r.computed = min(before+accepted, len(r.ids))
		e.stats.Generated += int64(generated)
		if n := len(r.draft); n > 0 {
			r.look.learn(n, accepted)
			e.stats.Drafted += int64(n)
			e.stats.Accepted += int64(accepted)
			r.s.mu.Lock()
			r.s.result.Drafted += n
			r.s.result.Accepted += accepted
			r.s.mu.Unlock()
		}
		e.link(r)
		if r.reason != ReasonNone {
			e.finish(r, r.reason)
		}
	}
	e.stats.Steps++
	if err == nil {
		if e.prefill == 0 {
			e.stats.DecodeSteps++
		}
		e.pace.learn(decoding, e.prefill, took)
	}
}
