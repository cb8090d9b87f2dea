package train

import (
	"context"
	"math"
	"time"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/tune"
)

// processor is a learner on the processor.
type processor struct {
	r   *run
	net network
	opt *optim.Optimizer

	peak float64
}

func newProcessor(r *run) (learner, error) {
	make := newNetwork
	if r.o.hooks.network != nil {
		make = r.o.hooks.network
	}
	net, err := make(r)
	if err != nil {
		return nil, err
	}
	o := optimOptions(r)
	o.Set, o.Team = r.set, r.team
	opt, err := optim.New(net.Params(), o)
	if err != nil {
		return nil, err
	}
	return &processor{r: r, net: net, opt: opt}, nil
}

func (p *processor) Kernel() string           { return p.r.set.Name }
func (p *processor) Params() []optim.Param    { return p.net.Params() }
func (p *processor) Init(seed uint64)         { p.net.Init(seed) }
func (p *processor) Push() error              { return p.net.Refresh() }
func (p *processor) Pull() error              { return nil }
func (p *processor) Counters() optim.Counters { return p.opt.Counters() }
func (p *processor) Detached() bool           { return false }
func (p *processor) Close()                   {}

// Warm warms caches and threads up, with a few rows.
func (p *processor) Warm(s *batch) error {
	_, err := p.net.Backward(s.micro[0], model.LossOptions{Scale: 1})
	return err
}

func (p *processor) Step(ctx context.Context, s *batch, _ func() *batch) (sum model.LossSum, report optim.Report, err error) {
	r, params := p.r, p.net.Params()
	at := r.clock.Now()
	p.net.ClearGrads()
	for _, micro := range s.micro {
		part, err := p.net.Backward(micro, s.loss)
		if err != nil {
			return sum, report, err
		}
		sum.Add(part)
		at = p.passed(at)
		if ctx.Err() != nil {
			return sum, report, errStopped
		}
	}
	if r.o.hooks.gradients != nil {
		r.o.hooks.gradients(s.step, params)
	}
	if !finite(sum.Objective) {
		// A loss that is no number has no gradient, whatever stands there: the optimizer
		// then skips the step and counts it.
		params[0].G[0] = float32(math.NaN())
	}
	at = r.clock.Now()
	if report, err = p.opt.Step(); err != nil {
		return sum, report, err
	}
	if !report.Skipped {
		if err := p.net.Refresh(); err != nil {
			return sum, report, err
		}
	}
	r.phase(PhaseOptimizer, at)
	return sum, report, nil
}

// passed notes the forward and the backward of a micro-batch that began at from.
func (p *processor) passed(from time.Time) time.Time {
	r, now := p.r, p.r.clock.Now()
	if n, ok := p.net.(interface{ ForwardEnd() time.Time }); ok {
		if turn := n.ForwardEnd(); turn.After(from) && turn.Before(now) {
			r.phases = append(r.phases, Phase{PhaseForward, from, turn}, Phase{PhaseBackward, turn, now})
			return now
		}
	}
	r.phases = append(r.phases, Phase{PhaseBackward, from, now})
	return now
}

func (p *processor) Evaluate(b *model.TrainBatch) (model.LossSum, error) { return p.net.Evaluate(b) }

func (p *processor) Model() (*model.Model, error) {
	if n, ok := p.net.(interface{ Model() *model.Model }); ok {
		return n.Model(), nil
	}
	return nil, nil
}

func (p *processor) Save(fsys fsx.FS, path string, meta []gguf.KV) error {
	return p.net.Save(fsys, path, meta)
}

func (p *processor) Projections() ([]*kernels.Ternary, error) { return p.net.Projections(), nil }
func (p *processor) StreamCosine() (float64, bool)            { return p.net.StreamCosine() }
func (p *processor) State() ([]optim.Tensor, error)           { return p.opt.Tensors(), nil }

func (p *processor) Restore(c optim.Counters, tensors []optim.Tensor) error {
	return p.opt.Restore(c, tensors)
}

func (p *processor) Memory() (host, device Parts) {
	m := p.opt.Memory()
	return append(p.net.Memory(), optimizerParts(int64(m.State), int64(m.Scratch))...), nil
}

// Peak measures again and keeps the highest: other programs can only have made it look
// lower.
func (p *processor) Peak() float64 {
	if peak, ok := tune.TrainPeak(p.r.cfg.Train.F32); ok {
		if rate, err := tune.Rate(p.r.team, peak, 10, 10*time.Millisecond); err == nil {
			p.peak = max(p.peak, rate)
		}
	}
	return p.peak
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
