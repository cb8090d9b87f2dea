package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
	"github.com/architehc/nanochat/kernels/tune"
)

// TrainOptions says what training to measure.
type TrainOptions struct {
	// Name is for the report.
	Name string
	// Config gives the network, the size of a step and the optimizer.
	Config *config.Config
	// ForwardBackward leaves out the update: one batch of Config.Train.MicroRows rows,
	// forward and backward.
	ForwardBackward bool
	// Set is the kernels. The default is kernels.Best().
	Set *kernels.Set
	// Threads is the size of the team; 0 means all cores this process may use.
	Threads int
	// Pin binds threads to processors.
	Pin bool
	// Repeats is the number of steps whose median counts, at least 5.
	Repeats int
	// Progress is told what is being measured. It may be nil.
	Progress func(name string)
}

// Train is the speed of training. The documents are as long as a row, so attention
// is at its most expensive.
type Train struct {
	Name    string `json:"name"`
	Kernel  string `json:"kernel"`
	Threads int    `json:"threads"`
	// A step learns Rows rows of SeqLen tokens, MicroRows at a time; Update says that
	// the optimizer and the quantisation of the new weights are part of it.
	Rows      int  `json:"rows"`
	SeqLen    int  `json:"seq_len"`
	MicroRows int  `json:"micro_rows"`
	Update    bool `json:"update"`
	// FLOPs is the arithmetic of a token by the usual count; see config.Model.TrainFLOPs.
	FLOPs float64 `json:"flops_per_token"`
	TokS  Spread  `json:"tok_s"`
	// Peak is the rate of PeakInstruction on the same threads, measured between the
	// steps, and MFU the part of it that a step's FLOPs reach; both are absent in
	// builds that cannot measure it.
	Peak            *Spread `json:"peak_gflops,omitempty"`
	PeakInstruction string  `json:"peak_instruction,omitempty"`
	MFU             *Spread `json:"mfu,omitempty"`
	// Parts is where the time goes, in the order of a step.
	Parts  []TrainPart       `json:"parts"`
	Memory model.TrainMemory `json:"memory"`
	// Optimizer is the bytes of its state and scratch.
	Optimizer optim.Memory `json:"optimizer"`
}

// TrainPart is one part of a step.
type TrainPart struct {
	Name string `json:"name"`
	// Milliseconds is per step, on one worker, its waiting for the others included.
	Milliseconds float64 `json:"ms"`
	Share        float64 `json:"share"`
}

// MeasureTrain measures steps of training on random weights and tokens.
func MeasureTrain(ctx context.Context, o TrainOptions) (*Train, error) {
	if o.Set == nil {
		o.Set = kernels.Best()
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	o.Repeats = max(o.Repeats, 5)
	tm := team.New(o.Threads, team.Options{Pin: o.Pin})
	defer tm.Close()
	c, t := o.Config.Model, o.Config.Train
	s := &trainStep{o: o, team: tm, clip: t.Clip}
	r := &Train{
		Name: o.Name, Kernel: o.Set.Name, Threads: tm.Size(),
		Rows: t.Rows, SeqLen: t.SeqLen, MicroRows: t.MicroRows, Update: !o.ForwardBackward, FLOPs: flopsPerToken(c, t.SeqLen),
	}
	if o.ForwardBackward {
		r.Rows = r.MicroRows
	}
	o.Progress("training " + o.Name)
	if err := s.make(r); err != nil {
		return nil, err
	}
	if err := s.run(ctx); err != nil { // warms up
		return nil, err
	}
	s.net.ClearParts()
	s.update = 0
	peak := trainPeak(tm, t.F32, r)
	tokens := float64(r.Rows * r.SeqLen)
	var rates, peaks, mfu []float64
	total := 0.0
	before := 0.0
	if peak != nil {
		var err error
		if before, err = peak(); err != nil {
			return nil, err
		}
	}
	for range o.Repeats {
		start := time.Now()
		if err := s.run(ctx); err != nil {
			return nil, err
		}
		seconds := time.Since(start).Seconds()
		total += seconds
		rates = append(rates, tokens/seconds)
		if peak == nil {
			continue
		}
		after, err := peak()
		if err != nil {
			return nil, err
		}
		// A step is compared with the peak before and behind it: other programs slow
		// down both.
		around := (before + after) / 2
		peaks = append(peaks, after)
		mfu = append(mfu, tokens*r.FLOPs/seconds/1e9/around)
		before = after
	}
	r.TokS = spreadOf(rates)
	if peak != nil {
		p, m := spreadOf(peaks), spreadOf(mfu)
		r.Peak, r.MFU = &p, &m
	}
	s.parts(r, total)
	r.Memory = s.net.Memory()
	if s.opt != nil {
		r.Optimizer = s.opt.Memory()
	}
	return r, nil
}

// flopsPerToken is that of documents of n tokens.
func flopsPerToken(c config.Model, n int) float64 {
	return c.TrainFLOPs(int64(n), int64(n)*int64(n+1)/2) / float64(n)
}

// trainPeak measures the rate of the backward's dot product, in GFLOP/s; nil in
// builds that cannot.
func trainPeak(tm *team.Team, f32 bool, r *Train) func() (float64, error) {
	p, ok := tune.TrainPeak(f32)
	if !ok {
		return nil
	}
	r.PeakInstruction = p.Name
	return func() (float64, error) {
		rate, err := tune.Rate(tm, p, 5, 20*time.Millisecond)
		if err != nil {
			return 0, fmt.Errorf("bench: %w", err)
		}
		return rate / 1e9, nil
	}
}

// trainStep is a step of training, ready to run.
type trainStep struct {
	o       TrainOptions
	team    *team.Team
	net     *model.Trainer
	opt     *optim.Optimizer // nil without an update
	clip    float64
	batches []*model.TrainBatch
	scale   float64
	update  time.Duration // what the optimizer took
}

func (s *trainStep) make(r *Train) (err error) {
	c, t := s.o.Config.Model, s.o.Config.Train
	if s.net, err = model.NewTrainer(c, model.TrainOptions{
		Set: s.o.Set, Team: s.team, Tokens: r.MicroRows * r.SeqLen, Recompute: t.Recompute, Float: t.Float, F32: t.F32,
	}); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	s.net.Init(1)
	if err := s.net.Refresh(); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	if r.Update {
		if s.opt, err = optim.New(s.net.Params(), optim.Options{Rules: speedRules(s.o.Config), Clip: s.clip, BF16: !t.F32, Set: s.o.Set, Team: s.team}); err != nil {
			return fmt.Errorf("bench: %w", err)
		}
	}
	s.scale = 1 / float64(r.Rows*r.SeqLen)
	n := r.MicroRows * r.SeqLen
	for first := 0; first < r.Rows; first += r.MicroRows {
		b := &model.TrainBatch{Rows: r.MicroRows, SeqLen: r.SeqLen, Tokens: make([]int32, n), Targets: make([]int32, n), Starts: make([]int32, n)}
		for i := range n {
			b.Tokens[i] = int32((first*n + i*7919 + 13) % c.Vocab)
			b.Targets[i] = int32((first*n + (i+1)*7919 + 13) % c.Vocab)
		}
		s.batches = append(s.batches, b)
	}
	return nil
}

// speedRules are rules that take as long as those of c and learn next to nothing:
// the weights that are measured are those of a start.
func speedRules(c *config.Config) map[optim.Class]optim.Rule {
	rules := map[optim.Class]optim.Rule{}
	for class, r := range map[optim.Class]config.Rule{
		optim.Matrix: c.Optim.Matrix, optim.Embedding: c.Optim.Embedding, optim.Head: c.Optim.Head, optim.Scalar: c.Optim.Scalar, optim.MHC: c.Optim.MHC,
	} {
		rule := optim.Rule{LR: 1e-6, NewtonSchulz: r.NewtonSchulz, Cautious: r.Cautious}
		switch r.Rule {
		case config.RuleMuon:
			rule.Kind = optim.Muon
		case config.RuleLion:
			rule.Kind = optim.Lion
		}
		rules[class] = rule
	}
	return rules
}

func (s *trainStep) run(ctx context.Context) error {
	s.net.ClearGrads()
	for _, b := range s.batches {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("bench: %w", context.Cause(ctx))
		}
		if _, err := s.net.Backward(b, model.LossOptions{Scale: s.scale, Z: s.o.Config.Train.ZLoss}); err != nil {
			return fmt.Errorf("bench: %w", err)
		}
	}
	if s.opt == nil {
		return nil
	}
	start := time.Now()
	if _, err := s.opt.Step(); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	s.update += time.Since(start)
	if err := s.net.Refresh(); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	return nil
}

// parts fills in the parts of steps that took the given time.
func (s *trainStep) parts(r *Train, seconds float64) {
	rest := seconds
	add := func(name string, took float64) {
		if took > 0 {
			rest -= took
			r.Parts = append(r.Parts, TrainPart{name, round(1e3 * took / float64(s.o.Repeats)), round(took / seconds)})
		}
	}
	for _, p := range s.net.Parts() {
		add(p.Name, p.Seconds)
	}
	add("optimizer", s.update.Seconds())
	add("the rest", max(rest, 0))
}

func trainTable(all []*Train) *table {
	t := &table{title: "Training", header: []string{"<model", "<what", "<kernel", "threads", "tokens", "tok/s", "min–max", "peak GFLOP/s", "of peak", "memory"}}
	for _, r := range all {
		what, peak, share := "forward and backward", "", ""
		if r.Update {
			what = "a step"
		}
		if r.MFU != nil {
			peak, share = num(r.Peak.Median), fmt.Sprintf("%.2f", r.MFU.Median)
		}
		t.add(r.Name, what, r.Kernel, fmt.Sprint(r.Threads), fmt.Sprintf("%d×%d", r.Rows, r.SeqLen), num(r.TokS.Median), reach(r.TokS),
			peak, share, size(r.Memory.Total()+int64(r.Optimizer.State+r.Optimizer.Scratch)))
	}
	return t
}

func trainPartTable(r *Train) *table {
	t := &table{title: "Where a step of training " + r.Name + " goes", header: []string{"<part", "ms", "share"}}
	for _, p := range r.Parts {
		t.add(p.Name, num(p.Milliseconds), fmt.Sprintf("%.1f %%", 100*p.Share))
	}
	return t
}
