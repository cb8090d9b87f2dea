package train

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
)

// deviceTrainer is a network with its optimizer on one device: what is needed of a
// model.GPUTrainer. The host has a copy of the weights, which Push and Pull bring to and
// from the device, and a Model of that copy as of the last Refresh.
type deviceTrainer interface {
	Params() []optim.Param
	Init(seed uint64)
	Push() error
	Pull() error
	Refresh() error
	Model() *model.Model
	// Begin queues a step: of these micro-batches, or, if there are none, of those that
	// Stage took in. End waits for it. Sums are those of the rows of this device, the report
	// is that of all.
	Begin(micro []*model.TrainBatch, scale float64) error
	Stage(micro []*model.TrainBatch) error
	End() (model.LossSum, optim.Report, error)
	Evaluate(b *model.TrainBatch) (model.LossSum, error)
	Projections() ([]*kernels.Ternary, error)
	StreamCosine() (v float64, ok bool, err error)
	Counters() optim.Counters
	Tensors() ([]optim.Tensor, error)
	Restore(c optim.Counters, tensors []optim.Tensor) error
	// DeviceParts is what it takes on the device, and InUse the most that was in use there at
	// a time.
	DeviceParts() Parts
	InUse() int64
	// Timed is where the device's time goes while f takes steps.
	Timed(f func() error) ([]model.PartTime, error)
	Close() error
}

// devices is a learner on GPUs, each of which has all of the network and learns an equal
// part of the rows of every step. The first stands for all where they do not differ.
type devices struct {
	r      *run
	kernel string
	all    []deviceTrainer
	abort  func(error) // ends what devices wait for of each other, with errors; nil for one device
	rate   float64     // the arithmetic that all of them can do, operations a second; 0: unknown

	staged *batch // what the devices took in ahead
	pulled bool   // the host's weights are those of the devices
	fresh  bool   // and the model is made of them
	cosine float64
	known  bool // cosine is that of the last step
}

func (d *devices) Kernel() string           { return d.kernel }
func (d *devices) Params() []optim.Param    { return d.all[0].Params() }
func (d *devices) Counters() optim.Counters { return d.all[0].Counters() }
func (d *devices) Detached() bool           { return true }

func (d *devices) Init(seed uint64) {
	d.all[0].Init(seed)
	d.pulled, d.fresh = true, false
}

// Push gives all devices the weights of the first one's copy.
func (d *devices) Push() error {
	d.pulled, d.fresh, d.staged = true, false, nil
	return d.each(func(i int, t deviceTrainer) error {
		if i > 0 {
			from := d.all[0].Params()
			for k, p := range t.Params() {
				copy(p.W, from[k].W)
			}
		}
		return t.Push()
	})
}

func (d *devices) Pull() error {
	if d.pulled {
		return nil
	}
	d.r.settle() // a checkpoint of the copy may still be on its way
	if err := d.all[0].Pull(); err != nil {
		return err
	}
	d.pulled, d.fresh = true, false
	return nil
}

// Warm takes two steps, because the first records what the next ones replay.
func (d *devices) Warm(s *batch) error {
	for range 2 {
		if _, _, err := d.Step(context.Background(), s, func() *batch { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// idle is how long the wait for a device must at least have taken for what the host did
// meanwhile to count as nothing.
const idle = 200 * time.Microsecond

func (d *devices) Step(ctx context.Context, s *batch, next func() *batch) (sum model.LossSum, report optim.Report, err error) {
	if ctx.Err() != nil {
		return sum, report, errStopped
	}
	at := d.r.clock.Now()
	staged := d.staged == s
	d.staged, d.pulled, d.fresh, d.known = nil, false, false, false
	err = d.each(func(i int, t deviceTrainer) error {
		if staged {
			return t.Begin(nil, s.loss.Scale)
		}
		return t.Begin(d.share(i, s), s.loss.Scale)
	})
	if err != nil {
		return sum, report, err
	}
	// From here on s is what was copied of it: the loader may use its memory again.
	var later error
	n := next()
	if n != nil {
		later = d.each(func(i int, t deviceTrainer) error { return t.Stage(d.share(i, n)) })
	}
	waiting := d.r.clock.Now()
	sums, reports := make([]model.LossSum, len(d.all)), make([]optim.Report, len(d.all))
	err = d.each(func(i int, t deviceTrainer) (err error) {
		sums[i], reports[i], err = t.End()
		return err
	})
	end := d.r.phase(PhaseDevice, at)
	if err = errors.Join(err, later); err != nil {
		return sum, report, err
	}
	if n != nil {
		d.staged = n
		if end.Sub(waiting) > idle {
			n.wait = 0 // the devices computed all the time
		}
	}
	for i := range sums {
		sum.Add(sums[i])
		if reports[i].Skipped != reports[0].Skipped {
			return sum, report, fmt.Errorf("train: step %d: device %d and device 0 disagree on whether to skip it", s.step, i)
		}
	}
	if s.sample {
		if d.cosine, d.known, err = d.all[0].StreamCosine(); err != nil {
			return sum, report, err
		}
	}
	return sum, reports[0], nil
}

// share is the micro-batches of device i.
func (d *devices) share(i int, s *batch) []*model.TrainBatch {
	n := len(s.micro) / len(d.all)
	return s.micro[i*n : (i+1)*n]
}

func (d *devices) Evaluate(b *model.TrainBatch) (model.LossSum, error) { return d.all[0].Evaluate(b) }

func (d *devices) Model() (*model.Model, error) {
	if err := d.Pull(); err != nil {
		return nil, err
	}
	if !d.fresh {
		if err := d.all[0].Refresh(); err != nil {
			return nil, err
		}
		d.fresh = true
	}
	return d.all[0].Model(), nil
}

func (d *devices) Save(fsys fsx.FS, path string, meta []gguf.KV) error {
	m, err := d.Model()
	if err != nil {
		return err
	}
	return m.SaveFS(fsys, path, meta...)
}

func (d *devices) Projections() ([]*kernels.Ternary, error) { return d.all[0].Projections() }
func (d *devices) StreamCosine() (float64, bool)            { return d.cosine, d.known }

func (d *devices) State() ([]optim.Tensor, error) {
	d.r.settle() // as in Pull
	return d.all[0].Tensors()
}

func (d *devices) Restore(c optim.Counters, tensors []optim.Tensor) error {
	return d.each(func(_ int, t deviceTrainer) error { return t.Restore(c, tensors) })
}

func (d *devices) Memory() (host, device Parts) {
	return hostParts(d.r), d.all[0].DeviceParts()
}

// timed is where the time of a step like s goes on the first device. It takes that step.
func (d *devices) timed(s *batch) ([]model.PartTime, error) {
	return d.all[0].Timed(func() error {
		_, _, err := d.Step(context.Background(), s, func() *batch { return nil })
		return err
	})
}

// inUse is the most bytes of a device that were in use at a time.
func (d *devices) inUse() int64 { return d.all[0].InUse() }

// Peak was measured before the network was made.
func (d *devices) Peak() float64 { return d.rate }

func (d *devices) Close() {
	d.r.settle()
	_ = d.each(func(_ int, t deviceTrainer) error { return t.Close() }) // nothing is left to be saved
}

// each calls f for all devices at once, and waits for all. If one of them fails it does not
// take part in what the others wait for: they are told. The error is the one that came first.
func (d *devices) each(f func(i int, t deviceTrainer) error) error {
	if len(d.all) == 1 {
		return f(0, d.all[0])
	}
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for i, t := range d.all {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var err error
			defer func() {
				if p := recover(); p != nil {
					err = fmt.Errorf("train: internal error on device %d: %v\n%s", i, p, debug.Stack())
				}
				if err != nil {
					once.Do(func() {
						first = err
						d.abort(err)
					})
				}
			}()
			err = f(i, t)
		}()
	}
	wg.Wait()
	return first
}

// hostParts is the memory of the host that a learner on devices takes: its copies of the
// weights and of the optimizer's state, the model, and the trits that are downloaded to be
// counted.
func hostParts(r *run) Parts {
	m, err := model.TrainMemoryOf(r.cfg.Model, trainOptions(r.cfg, r.set, r.team))
	if err != nil {
		return nil // what cannot be made was refused before
	}
	state, _ := optimizerMemory(r)
	copies := int64(max(r.cfg.Train.Devices, 1))
	return Parts{{"latent weights", copies * m.Weights}, {"model", copies * m.Model}, {"optimizer state", state}, {"downloaded trits", r.cfg.Model.Params().Ternary / 4}}
}
