package eval

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// Options say how an Evaluator computes. Of all of them only KVType changes a
// result.
type Options struct {
	// Team computes. It must not be used meanwhile, and stays the caller's.
	Team *team.Team
	// GPU computes the network in place of the team, if it is not nil. It is of the
	// evaluator's model.
	GPU *model.GPU
	// KVType is the storage of keys and values. Training has the default value, f16.
	KVType kernels.KVType
	// StepTokens is the number of tokens computed at once. The default value is 1024, on a
	// GPU 4096, or less where their logits would fill more than 256 MiB.
	StepTokens int
}

// Sums is what was measured.
type Sums struct {
	Documents int
	// Tokens is the number of targets, ends of documents included.
	Tokens int
	// Bytes is the length of the text that the targets stand for.
	Bytes int64
	// Nats is the sum of -ln p over the targets.
	Nats float64
}

// BPB is bits per byte, NaN where there is no text.
func (s Sums) BPB() float64 {
	if s.Bytes == 0 {
		return math.NaN()
	}
	return s.Nats / (math.Ln2 * float64(s.Bytes))
}

// PerToken is nats per target, NaN where there is none.
func (s Sums) PerToken() float64 {
	if s.Tokens == 0 {
		return math.NaN()
	}
	return s.Nats / float64(s.Tokens)
}

// Error reports an evaluation that cannot be done as asked.
type Error struct {
	// What says what was found and what was expected; Hint what to do.
	What, Hint string
}

// Error returns "eval: WHAT; HINT" without the hint if there is none.
func (e *Error) Error() string {
	if e.Hint == "" {
		return "eval: " + e.What
	}
	return "eval: " + e.What + "; " + e.Hint
}

const (
	normalStep = 1024
	gpuStep    = 4096
	mostLogits = 256 << 20 // bytes
	// mostSeqs bounds the sequences of a step, each of which has a page at least.
	mostSeqs = 64
)

// Evaluator runs one model over text. It is not safe for concurrent use.
type Evaluator struct {
	m    *model.Model
	tok  *tokenizer.Tokenizer
	team *team.Team
	work *model.Work
	pool *model.Pool
	size int // tokens of a step

	// What waits to be computed: tokens, and for each its target (-1: none).
	tokens, targets []int32
	parts           []part
	// open is the sequence whose first tokens have been computed, if there is one: the
	// first part goes on with it.
	open model.Seq
	seqs []model.Seq
	step model.Step
	nats []float64 // by row of a step
	add  func(document int, nats float64)
}

// A part is the next n of the waiting tokens, which are of one sequence.
type part struct {
	n, document int
}

// New makes an evaluator of a model with its vocabulary.
func New(m *model.Model, tok *tokenizer.Tokenizer, o Options) (*Evaluator, error) {
	c := m.Config()
	if o.Team == nil {
		return nil, &Error{What: "no team to compute with"}
	}
	if tok.Vocab() > c.Vocab {
		return nil, &Error{What: fmt.Sprintf("the vocabulary has %d tokens, the model %d", tok.Vocab(), c.Vocab), Hint: "use the vocabulary of the model"}
	}
	if o.StepTokens < 0 {
		return nil, &Error{What: fmt.Sprintf("steps of %d tokens", o.StepTokens)}
	}
	size := o.StepTokens
	if size == 0 {
		size = normalStep
		if o.GPU != nil {
			size = gpuStep
		}
		size = max(1, min(size, mostLogits/(4*c.Vocab)))
	}
	e := &Evaluator{m: m, tok: tok, team: o.Team, size: size, nats: make([]float64, size)}
	// The open sequence may fill the context; the others share the tokens of a step.
	pages := (c.Context+kernels.PageLen-1)/kernels.PageLen + size/kernels.PageLen + mostSeqs + 1
	if err := e.allocate(o.GPU, pages, o.KVType); err != nil {
		return nil, err
	}
	return e, nil
}

// allocate makes room for steps and that many pages, where they are computed.
func (e *Evaluator) allocate(gpu *model.GPU, pages int, kv kernels.KVType) (err error) {
	if gpu == nil {
		if e.work, err = model.NewWork(e.m, e.team, e.size); err == nil {
			e.pool, err = model.NewPool(e.m, pages, kv)
		}
		return err
	}
	if e.work, err = model.NewGPUWork(gpu, e.size); err == nil {
		e.pool, err = model.NewGPUPool(gpu, pages, kv)
	}
	return err
}

// sequence adds tokens that the model sees from position 0 on, with their targets
// (-1: none), and computes what fills whole steps. The slices are copied.
func (e *Evaluator) sequence(ctx context.Context, tokens, targets []int32, document int) error {
	last := len(targets)
	for last > 0 && targets[last-1] < 0 {
		last-- // what nothing is predicted from
	}
	if last == 0 {
		return nil
	}
	e.tokens, e.targets = append(e.tokens, tokens[:last]...), append(e.targets, targets[:last]...)
	e.parts = append(e.parts, part{last, document})
	for len(e.tokens) >= e.size || len(e.parts) >= mostSeqs {
		if err := e.compute(ctx); err != nil {
			return err
		}
	}
	return nil
}

// flush computes what is left.
func (e *Evaluator) flush(ctx context.Context) error {
	for len(e.parts) > 0 {
		if err := e.compute(ctx); err != nil {
			return err
		}
	}
	return nil
}

// reset forgets what waits, and calls add for each target from now on.
func (e *Evaluator) reset(add func(document int, nats float64)) {
	e.pool.Truncate(&e.open, 0)
	e.tokens, e.targets, e.parts, e.add = e.tokens[:0], e.targets[:0], e.parts[:0], add
}

// compute does one step with the first of what waits.
func (e *Evaluator) compute(ctx context.Context) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, whole := 0, 0 // tokens of the step, parts of which it has all
	for ; whole < len(e.parts) && n+e.parts[whole].n <= e.size; whole++ {
		n += e.parts[whole].n
	}
	some := 0 // tokens of the part that is cut
	if whole < len(e.parts) {
		some = e.size - n
	}
	count := whole
	if some > 0 {
		count++
	}
	for len(e.seqs) < count {
		e.seqs = append(e.seqs, model.Seq{})
	}
	e.seqs[0], e.open = e.open, model.Seq{}
	defer func() {
		for i := range e.seqs[:count] {
			if err == nil && i == whole {
				e.open, e.seqs[i] = e.seqs[i], model.Seq{}
				continue
			}
			e.pool.Truncate(&e.seqs[i], 0)
		}
	}()
	e.step.Tokens, e.step.Seqs = e.tokens[:n+some], e.step.Seqs[:0]
	for i := range count {
		k := some
		if i < whole {
			k = e.parts[i].n
		}
		if err := e.pool.Grow(&e.seqs[i], k); err != nil {
			return fmt.Errorf("eval: %w", err)
		}
		e.step.Seqs = append(e.step.Seqs, model.SeqStep{Seq: &e.seqs[i], N: k, Logits: model.LogitsAll})
	}
	if err := e.m.Forward(e.work, e.pool, &e.step); err != nil {
		return fmt.Errorf("eval: %w", err)
	}
	if err := e.reduce(n + some); err != nil {
		return err
	}
	row := 0
	for i := range count {
		for range e.step.Seqs[i].N {
			if e.targets[row] >= 0 {
				e.add(e.parts[i].document, e.nats[row])
			}
			row++
		}
	}
	e.tokens, e.targets = remove(e.tokens, n+some), remove(e.targets, n+some)
	e.parts = remove(e.parts, whole)
	if some > 0 {
		e.parts[0].n -= some
	}
	return nil
}

func remove[T any](s []T, n int) []T { return s[:copy(s, s[n:])] }

// reduce makes rows of logits -ln p of their targets.
func (e *Evaluator) reduce(rows int) error {
	set := e.m.Set()
	err := e.team.Run(func(w *team.Worker) {
		lo, hi := team.Split(rows, 1, w.ID, w.N)
		for i := lo; i < hi; i++ {
			if t := e.targets[i]; t >= 0 {
				z := e.work.Logits(i)
				e.nats[i] = float64(set.LogSumExp(z)) - float64(z[t])
			}
		}
	})
	if err != nil {
		return fmt.Errorf("eval: %w", err)
	}
	for i := range rows {
		if e.targets[i] >= 0 && (math.IsNaN(e.nats[i]) || math.IsInf(e.nats[i], 0)) {
			return &Error{What: "the model's logits are not finite", Hint: "the weights are damaged: check the file with nanochat verify"}
		}
	}
	return nil
}

var errNothing = errors.New("eval: there is no text to evaluate")
