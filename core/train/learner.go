package train

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
)

// learner is what a run trains: a network with its optimizer, on the processor or on
// devices. It is for one goroutine. The weights of Params are the host's copy: Push hands
// them over, Pull brings those that were learned.
type learner interface {
	// Kernel names what computes, for the record of a run.
	Kernel() string
	// Params is the weights in the memory of the host. Gradients may be missing.
	Params() []optim.Param
	// Init makes first weights in Params.
	Init(seed uint64)
	Push() error
	Pull() error
	// Warm takes a step that does not count, so that the time of the next one says
	// something.
	Warm(s *batch) error
	// Step takes a step, or ends early with errStopped when ctx does. While a device
	// computes it calls next, at most once, for the step after, and takes that one's data
	// in; next may return nil. Afterwards it may be given that batch or another.
	Step(ctx context.Context, s *batch, next func() *batch) (model.LossSum, optim.Report, error)
	Evaluate(b *model.TrainBatch) (model.LossSum, error)
	// Model is the network that the forward pass uses, nil if it has none; it is of use
	// until the next Step.
	Model() (*model.Model, error)
	// Save writes that network.
	Save(fsys fsx.FS, path string, meta []gguf.KV) error
	// Projections are its quantised weights, as the forward pass reads them.
	Projections() ([]*kernels.Ternary, error)
	// StreamCosine is the mean cosine between the residual streams in the last Step; ok is
	// false where there is one stream only, or where it was not measured.
	StreamCosine() (v float64, ok bool)
	// Detached says that Params, after Pull, and State are copies, which steps do not change.
	Detached() bool
	// Counters, State and Restore are the optimizer's.
	Counters() optim.Counters
	State() ([]optim.Tensor, error)
	Restore(c optim.Counters, tensors []optim.Tensor) error
	// Memory is what was allocated: in the memory of the host, and on each device.
	Memory() (host, device Parts)
	// Peak is the arithmetic that what computes can do, in operations a second; 0: unknown.
	Peak() float64
	Close()
}

// batch is the data of one step, with all that is asked about it later: the memory that
// the loader made it in is valid until the loader's next batch only.
type batch struct {
	// Micro are the rows that are learned at a time; their slices are the loader's.
	micro []*model.TrainBatch
	loss  model.LossOptions
	// step is the number of the step, and sample whether more than the sums is measured.
	step   int
	sample bool

	tokens, textBytes int64
	flops             float64
	wait              time.Duration
	cursor            data.Cursor // after it
	err               error       // in the place of all the rest
}

// take gets the data of a step from the loader.
func (r *run) take(ctx context.Context, step int) *batch {
	t := &r.cfg.Train
	b, err := r.loader.Next(ctx)
	if err != nil {
		return &batch{step: step, err: err}
	}
	s := &batch{
		loss:   model.LossOptions{Scale: 1 / float64(max(b.Count, 1)), Z: t.ZLoss, Entropy: t.Entropy, Smoothing: t.Smoothing},
		step:   step,
		sample: t.LogEvery > 0 && step%t.LogEvery == 0,
		tokens: int64(b.Rows) * int64(b.SeqLen), textBytes: b.TextBytes, flops: flops(&r.cfg.Model, b), wait: b.Wait, cursor: r.loader.Cursor(),
	}
	for lo := 0; lo < b.Rows; lo += t.MicroRows {
		s.micro = append(s.micro, batchOf(b, lo, min(lo+t.MicroRows, b.Rows)))
	}
	return s
}

// upcoming is the data of a step: what was taken ahead, or what the loader has next.
func (r *run) upcoming(ctx context.Context, step int) (*batch, error) {
	s := r.ahead
	r.ahead = nil
	if s == nil || s.step != step {
		s = r.take(ctx, step)
	}
	switch {
	case ctx.Err() != nil:
		return nil, errStopped
	case errors.Is(s.err, io.EOF):
		return nil, &Error{What: "the training data ended", Err: s.err}
	}
	return s, s.err
}

// fetch takes the data of the step after, for a learner that has time for it.
func (r *run) fetch(ctx context.Context, after int) *batch {
	if after >= r.total || ctx.Err() != nil {
		return nil
	}
	r.ahead = r.take(ctx, after+1)
	if r.ahead.err != nil {
		return nil
	}
	return r.ahead
}
