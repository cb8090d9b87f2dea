package train

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"time"

	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/team"
)

// The values of Options.Resume besides the path of a checkpoint.
const (
	// ResumeAuto goes on from the newest good checkpoint in the directory of the run,
	// or starts where there is none.
	ResumeAuto = "auto"
	// ResumeNone starts, and refuses a directory that has checkpoints.
	ResumeNone = "none"
)

// Options says how a training runs, apart from its configuration.
type Options struct {
	// Resume is ResumeAuto (the default), ResumeNone or the path of a checkpoint.
	Resume string
	// Log gets lines for people; nil: none.
	Log io.Writer
	// Progress is called after every step, evaluations and checkpoints not included.
	Progress func(*Progress)
	// Observer, if not nil, is told how the run goes.
	Observer Observer
	// Version goes into the model file.
	Version string
	// Peak is the arithmetic that this machine can do with the threads of the run, in
	// operations a second: what Metrics.MFU is a share of. 0: measure it.
	Peak float64
	// Set is the kernels to use. The default is kernels.Best().
	Set *kernels.Set
	// CUDA is where the libraries for GPUs and their compiled kernels are.
	CUDA cuda.Setup
	// FS is the disk that is written and that checkpoints are read from; the default is
	// the real one. Data and tokenizer always come from the real one.
	FS fsx.FS
	// Clock measures time. The default is the system's.
	Clock clock.Clock

	hooks hooks
	// memory stands in for that of the machine, in tests.
	memory int64
}

// hooks are for tests.
type hooks struct {
	network func(r *run) (network, error)
	// devices makes the learner in the place of one on GPUs.
	devices func(r *run) (*devices, error)
	// open opens n GPUs in the place of those of the machine.
	open func(n int) (*gpus, error)
	// gradients sees the gradients of a step before the update.
	gradients func(step int, params []optim.Param)
}

// Progress is how far a run is.
type Progress struct {
	Metrics *Metrics
	// Step of Steps are done, and Left is about how long the others take.
	Step, Steps int
	Left        time.Duration
}

// Result is what a run came to.
type Result struct {
	// Steps and Tokens count from the first start, resumes included; Seconds is the
	// time of all its parts.
	Steps   int     `json:"steps"`
	Tokens  int64   `json:"tokens"`
	Seconds float64 `json:"seconds"`
	// Resumed is the step that this part began after, 0 at a start.
	Resumed int `json:"resumed_from,omitempty"`
	// Skipped counts steps without an update.
	Skipped int `json:"skipped"`
	// Val is the last evaluation, Best the best one's bits per byte and BestStep its
	// step; nil and 0 without validation data.
	Val      *Eval  `json:"val,omitempty"`
	Best     Number `json:"best_bpb,omitempty"`
	BestStep int    `json:"best_step,omitempty"`
	// Model and Checkpoint are the files written last, "" if none.
	Model      string `json:"model,omitempty"`
	Checkpoint string `json:"checkpoint,omitempty"`
	// Failed counts checkpoints and lines of metrics that could not be written.
	Failed int `json:"write_failures,omitempty"`
	// Dropped counts observations, such as events for TensorBoard, that were lost.
	Dropped int64 `json:"dropped_observations,omitempty"`
	// Events counts anomalies by kind.
	Events map[Kind]int `json:"anomalies,omitempty"`
}

// run is a training under way.
type run struct {
	cfg   *config.Config
	o     Options
	fs    fsx.FS
	clock clock.Clock
	total int // steps

	data, val *data.Dataset
	manifest  *data.Manifest
	tok       *tokenizer.Tokenizer
	team      *team.Team
	set       *kernels.Set
	learn     learner
	params    []optim.Param // of learn
	gpus      *gpus         // nil: the processor computes
	note      error         // why it does where a GPU was wished
	loader    *data.Loader
	ahead     *batch // of the next step, where it was taken already
	detect    *detector
	metrics   *metricsFile
	lock      fsx.File
	memory    int64 // of the machine, in bytes; 0: unknown

	// The state of the run after the last whole step; meta is what a checkpoint keeps.
	meta     meta
	resumed  int
	saved    int // step of the newest checkpoint, -1: none
	writing  *writing
	result   Result
	events   []Event // since the last line of metrics
	failed   int     // checkpoints that could not be saved
	interval interval
	peak     float64 // operations a second
	began    time.Time
	before   float64 // seconds of earlier parts
	last     []*kernels.Ternary

	observers   []Observer
	phases      []Phase // of the step at hand
	streams     []model.StreamStats
	toldDropped bool
}

// errStopped ends a step that was interrupted.
var errStopped = errors.New("train: stopped")

// Run trains until the configured length is reached, ctx ends or the run diverges.
// When ctx ends the step at hand is given up, the state after the last whole one is
// saved, and the error is that of ctx. Result is not nil once training began.
func Run(ctx context.Context, cfg *config.Config, o Options) (*Result, error) {
	r, err := open(cfg, o)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if err := r.openDevices(); err != nil {
		return nil, err
	}
	if err := r.fits(); err != nil {
		return nil, err
	}
	if err := r.build(); err != nil {
		return nil, err
	}
	if err := r.start(); err != nil {
		return nil, err
	}
	r.startObservers()
	err = r.loop(ctx)
	switch {
	case errors.Is(err, errStopped):
		err = r.stop(ctx)
	case err == nil:
		err = r.finish(ctx)
	}
	r.settle()
	err = r.deviceFailed(err)
	r.summarise()
	r.ended(err)
	r.result.Dropped = r.dropped()
	return &r.result, err
}

// loop takes steps until the end.
func (r *run) loop(ctx context.Context) error {
	if m := r.meta.Pending; m != nil {
		if err := r.complete(ctx, m); err != nil {
			return err
		}
	}
	for r.meta.Step < r.total {
		m, err := r.step(ctx)
		if err != nil {
			return err
		}
		found := r.detect.look(m)
		for _, e := range found {
			r.logf("warning: step %d: %s", e.Step, e.Text)
		}
		m.Events = append(r.events, found...)
		r.events = nil
		m.Failed = r.failed + r.metrics.lost
		r.meta.Pending = m
		if err := r.complete(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// findPeak measures the peak, unless it was given.
func (r *run) findPeak() {
	r.peak = max(r.peak, r.o.Peak)
	if r.o.Peak == 0 {
		r.peak = max(r.peak, r.learn.Peak())
	}
}

// complete does what follows a step: evaluation, metrics, saving.
func (r *run) complete(ctx context.Context, m *Metrics) (err error) {
	t := &r.cfg.Train
	every := func(n int) bool { return n > 0 && m.Step%n == 0 }
	if r.val != nil && (every(t.EvalEvery) || m.Step == r.total) {
		from := r.clock.Now()
		if m.Val, err = r.evaluate(ctx); err != nil {
			return err
		}
		r.meta.evaluated(m.Step, m.Val)
		r.lookAtStreams(m)
		r.phase(PhaseEvaluate, from)
		r.findPeak()
	}
	r.metrics.write(m)
	r.meta.Pending = nil
	r.observe(func(o Observer) { o.Stepped(m, r.phases) })
	r.tell(m, every(t.LogEvery) || m.Step == r.total || m.Val != nil)
	r.tellDropped()
	if r.detect.diverged() {
		return r.diverge()
	}
	if m.Val != nil && r.meta.BestStep == m.Step {
		r.export(bestName)
	}
	r.settled()
	switch {
	case m.Step == r.total:
		_ = r.save() // reported and counted; finish tries again
	case every(t.CheckpointEvery):
		r.saveBeside()
	}
	if m.Val != nil || every(t.CheckpointEvery) {
		// Steps allocate next to nothing, so that the garbage of evaluations and of
		// saving would stay, and grow to the size of all the rest.
		runtime.GC()
	}
	return nil
}

// step takes one step. Until it returns without an error r.meta is that of the step
// before.
func (r *run) step(ctx context.Context) (*Metrics, error) {
	if ctx.Err() != nil {
		return nil, errStopped
	}
	began := r.clock.Now()
	r.phases = append(r.phases[:0], Phase{Name: PhaseStep, From: began})
	s, err := r.upcoming(ctx, r.meta.Step+1)
	if err != nil {
		return nil, err
	}
	r.phase(PhaseData, began)
	if s.sample {
		if err := r.keepTrits(); err != nil {
			return nil, err
		}
	}
	sum, report, err := r.learn.Step(ctx, s, func() *batch { return r.fetch(ctx, s.step) })
	if err != nil {
		return nil, err
	}
	r.meta.Step = s.step
	r.meta.Tokens += s.tokens
	r.meta.Cursor = s.cursor
	r.phases[0].To = r.clock.Now()
	seconds := r.phases[0].To.Sub(began).Seconds()
	r.meta.Seconds = r.before + r.clock.Now().Sub(r.began).Seconds()
	m := r.measure(s, sum, &report, seconds)
	if s.sample {
		m.MHCNorms = r.mhcNorms(&report)
		err = r.trits(m)
	}
	return m, err
}

// measure is the line of a step.
func (r *run) measure(s *batch, sum model.LossSum, report *optim.Report, seconds float64) *Metrics {
	n := float64(max(sum.Count, 1))
	m := &Metrics{
		Step: r.meta.Step, Tokens: r.meta.Tokens, Epoch: Number(float64(r.meta.Cursor.Row) / float64(r.loader.RowsPerEpoch())),
		Loss: Number(sum.Objective / n), CE: Number(sum.NLL / n), Z: Number(r.cfg.Train.ZLoss * sum.LSE2 / n),
		BPB: Number(bpb(sum.NLL, s.textBytes)), Entropy: Number(sum.Entropy / n),
		LR: Number(r.cfg.Optim.Matrix.LR * report.Factor), GradNorm: Number(report.GradNorm), Norms: map[string]Number{}, Clip: Number(report.Clip),
		TokensPerSecond: Number(float64(s.tokens) / max(seconds, 1e-9)),
		WaitMS:          Number(s.wait.Seconds() * 1e3), StepMS: Number(seconds * 1e3),
		Skipped: report.Skipped, SkippedTotal: r.learn.Counters().Skipped,
	}
	if r.peak > 0 {
		// What was reached is possible, whatever was measured.
		rate := s.flops / max(seconds, 1e-9)
		r.peak = max(r.peak, rate)
		m.MFU = Number(rate / r.peak)
	}
	switch {
	case report.Skipped && !finite(sum.Objective):
		m.NonFinite = "the loss"
	case report.Skipped:
		m.NonFinite = "the gradient of " + report.NonFinite
	}
	for c, norm := range report.ClassNorm {
		if norm != 0 {
			m.Norms[optim.Class(c).String()] = Number(norm)
		}
	}
	if v, ok := r.learn.StreamCosine(); ok {
		cosine := Number(v)
		m.Cosine = &cosine
	}
	return m
}

// bpb is bits per byte of a sum of nats over targets that stand for bytes of text.
func bpb(nats float64, bytes int64) float64 {
	return nats / math.Ln2 / float64(max(bytes, 1))
}

// diverge ends a run that went wrong: its state is saved apart, where no resume takes
// it by itself, and the newest checkpoint from before stays for good.
func (r *run) diverge() error {
	r.settle()
	err := fmt.Errorf("train: step %d: %w: %d bad steps in a row", r.meta.Step, ErrDiverged, r.detect.s.Streak)
	if path, _, e := checkpoint.Latest(r.fs, r.checkpoints()); e == nil {
		if e := checkpoint.Keep(r.fs, path); e != nil {
			r.logf("warning: %v", e)
		}
	}
	state, e := r.state()
	if e == nil {
		r.result.Checkpoint, e = checkpoint.Save(r.fs, r.path("diverged"), r.meta.Step, state, checkpoint.Options{KeepLast: 1})
	}
	if e != nil {
		r.logf("warning: %v", e)
	}
	return &Error{What: "stopped", Err: err, Hint: "resume from the newest checkpoint in " + r.checkpoints() + " with lower learning rates, as in --set optim.matrix.lr=…"}
}

// stop saves what an interrupted run has.
func (r *run) stop(ctx context.Context) error {
	r.metrics.sync()
	r.settle()
	if r.saved != r.meta.Step && r.meta.Step > 0 {
		if err := r.save(); err != nil {
			return &Error{What: "interrupted, and the state could not be saved", Err: err}
		}
	}
	r.logf("interrupted after step %d; the same command goes on from here", r.meta.Step)
	return context.Cause(ctx)
}

// finish writes the model.
func (r *run) finish(ctx context.Context) error {
	var saved error
	if r.saved != r.meta.Step {
		saved = r.save()
	}
	if r.val != nil && r.meta.Val == nil || r.meta.ValStep != r.meta.Step {
		if v, err := r.evaluate(ctx); err == nil && v != nil {
			r.meta.evaluated(r.meta.Step, v)
		}
	}
	if err := r.export(finalName); err != nil {
		return err
	}
	return saved
}

func (r *run) summarise() {
	m := &r.meta
	r.result.Steps, r.result.Tokens, r.result.Seconds = m.Step, m.Tokens, m.Seconds
	r.result.Resumed, r.result.Skipped = r.resumed, r.learn.Counters().Skipped
	r.result.Val, r.result.BestStep = m.Val, m.BestStep
	if m.BestStep > 0 {
		r.result.Best = Number(m.Best)
	}
	r.result.Failed = r.failed + r.metrics.lost
	r.result.Events = r.detect.s.Counts
}
