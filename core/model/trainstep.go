package model

import (
	"fmt"
	"time"

	"github.com/architehc/nanochat/kernels"
)

// TrainBatch is tokens to learn from, in rows of packed documents; the slices are
// [Rows][SeqLen].
type TrainBatch struct {
	Tokens []int32
	// Targets are the ids that follow; -1 is no target.
	Targets []int32
	// Starts says where in its row the document of a token begins: attention from
	// place i looks at Starts[i] to i, and positions count from there.
	Starts       []int32
	Rows, SeqLen int
}

// check reports sizes that do not go together, or are more than a trainer of that many tokens takes.
func (b *TrainBatch) check(tokens int) error {
	n := b.Rows * b.SeqLen
	switch {
	case b.Rows < 1 || b.SeqLen < 1 || b.Rows > tokens || b.SeqLen > tokens || n > tokens:
		return fmt.Errorf("model: a batch of %d rows of %d tokens: this Trainer takes 1 to %d tokens", b.Rows, b.SeqLen, tokens)
	case len(b.Tokens) != n || len(b.Targets) != n || len(b.Starts) != n:
		return fmt.Errorf("model: a batch of %d rows of %d has %d tokens, %d targets and %d starts",
			b.Rows, b.SeqLen, len(b.Tokens), len(b.Targets), len(b.Starts))
	}
	return nil
}

// LossOptions defines the objective: with p = softmax of the capped logits, summed
// over all targets,
//
//	(1-Smoothing)·(-log p[target]) + Smoothing·(mean of -log p) + Z·lse² - Entropy·H(p)
type LossOptions struct {
	// Scale multiplies the gradient of every target's objective; usually it is 1 over
	// the number of targets of the whole step.
	Scale                 float64
	Z, Entropy, Smoothing float64
}

// LossSum is sums over targets, in nats.
type LossSum struct {
	Count int
	// NLL is the negative log-likelihood, LSE2 the squared log-sum-exp of the logits,
	// Entropy that of the predictions, and Objective what LossOptions defines.
	NLL, LSE2, Entropy, Objective float64
}

// Add adds o to s.
func (s *LossSum) Add(o LossSum) {
	s.Count += o.Count
	s.NLL += o.NLL
	s.LSE2 += o.LSE2
	s.Entropy += o.Entropy
	s.Objective += o.Objective
}

// Backward computes the loss of b and adds the gradient of Scale times the
// objective to the gradients of Params. Their bits depend on the weights, b, l, the
// kernel set and the machine, not on the number of workers.
func (t *Trainer) Backward(b *TrainBatch, l LossOptions) (LossSum, error) {
	return t.pass(b, l, true)
}

// Evaluate computes the loss of b: the sums of Backward with only the
// log-likelihood for an objective.
func (t *Trainer) Evaluate(b *TrainBatch) (LossSum, error) {
	return t.pass(b, LossOptions{}, false)
}

func (t *Trainer) pass(b *TrainBatch, l LossOptions, learn bool) (LossSum, error) {
	if !t.ready {
		return LossSum{}, fmt.Errorf("model: the weights were changed, or the last Refresh failed; call Refresh")
	}
	if err := t.plan(b); err != nil {
		return LossSum{}, err
	}
	t.loss, t.targets, t.learn = l, b.Targets, learn
	t.work.tape.clock.start()
	err := t.o.Team.Run(t.body)
	t.work.pool, t.targets = nil, nil
	for i := range t.step.Seqs {
		t.pool.Truncate(t.step.Seqs[i].Seq, 0)
	}
	if err != nil {
		return LossSum{}, fmt.Errorf("model: training: %w", err)
	}
	var s LossSum
	for i, id := range b.Targets[:t.tokens] {
		if id >= 0 {
			r := &t.results[i]
			s.Count++
			s.NLL += float64(r.nll)
			s.LSE2 += float64(r.lse) * float64(r.lse)
			s.Entropy += float64(r.entropy)
			s.Objective += r.objective
		}
	}
	return s, nil
}

// plan checks b and lays out the step: every document is a sequence.
func (t *Trainer) plan(b *TrainBatch) error {
	n, vocab := b.Rows*b.SeqLen, t.m.cfg.Vocab
	if err := b.check(t.o.Tokens); err != nil {
		return err
	}
	for i, id := range b.Targets {
		if id < -1 || int(id) >= vocab {
			return fmt.Errorf("model: target %d is %d, expected -1 (none) or 0 to %d", i, id, vocab-1)
		}
	}
	t.step.Tokens, t.step.Seqs = b.Tokens, t.step.Seqs[:0]
	pages := 0
	for first := 0; first < n; {
		start, in := b.Starts[first], int32(first%b.SeqLen)
		last := first + 1
		for last%b.SeqLen != 0 && b.Starts[last] == start {
			last++
		}
		if start != in {
			return fmt.Errorf("model: place %d of row %d says that its document begins at %d", in, first/b.SeqLen, start)
		}
		t.step.Seqs = append(t.step.Seqs, SeqStep{N: last - first, Logits: LogitsAll})
		pages += (last - first + kernels.PageLen - 1) / kernels.PageLen
		first = last
	}
	if pages > t.pool.Pages() {
		if err := t.newPages(2 * pages); err != nil {
			return err
		}
	}
	if missing := len(t.step.Seqs) - len(t.seqs); missing > 0 {
		t.seqs = append(t.seqs, make([]Seq, missing)...)
	}
	for i := range t.step.Seqs {
		s := &t.step.Seqs[i]
		s.Seq = &t.seqs[i]
		t.pool.Truncate(s.Seq, 0)
		if err := t.pool.Grow(s.Seq, s.N); err != nil {
			return err
		}
	}
	if err := t.work.plan(t.pool, &t.step); err != nil {
		return err
	}
	t.tokens = n
	t.work.tape.setTokens(n)
	return nil
}

// firstPages is the pages that a Trainer begins with: enough for documents of 64
// tokens on average. It makes more when it must.
func firstPages(tokens int) int { return 2*tokens/kernels.PageLen + 1 }

// newPages makes the pool. A layer's keys and values are of no use after it, so all
// layers take the same pages.
func (t *Trainer) newPages(n int) (err error) {
	for i := range t.seqs {
		t.seqs[i] = Seq{}
	}
	c := &t.m.cfg
	t.pool, err = newPool(n, c.KVHeads*kernels.KVF16.HeadBytes(c.HeadDim), 0, kernels.KVF16)
	return err
}

// PartTime is what a part of training has taken.
type PartTime struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// Parts is the time that Backward, Evaluate and Refresh have taken since the last
// ClearParts, by part: that of one worker, its waiting for the others included.
func (t *Trainer) Parts() []PartTime {
	out := make([]PartTime, parts)
	for i, d := range t.work.tape.clock.sum {
		out[i] = PartTime{partNames[i], d.Seconds()}
	}
	return out
}

// ForwardEnd is when the last Backward or Evaluate had passed the last layer; the head
// and the loss came after it.
func (t *Trainer) ForwardEnd() time.Time { return t.work.tape.clock.turn }

// ClearParts begins to count time anew.
func (t *Trainer) ClearParts() { t.work.tape.clock.sum = [parts]time.Duration{} }
