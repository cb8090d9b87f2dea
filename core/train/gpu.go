package train

import (
	"errors"
	"fmt"
	"time"

	"github.com/architehc/nanochat/core/collective"
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels/cuda"
)

// gpus is devices that were opened for a run, with what they need.
type gpus struct {
	devices []*cuda.Device
	image   cuda.Image
	blas    *cuda.BlasLibrary
	group   *collective.Group // nil for one device
}

func (g *gpus) close() {
	if g.group != nil {
		_ = g.group.Close() // nothing is queued that anyone waits for
	}
	for _, d := range g.devices {
		d.Close()
	}
}

// openDevices opens what the run is to compute with. On a processor, and where
// train.device = "auto" finds no GPU that can be used, r.gpus stays nil.
func (r *run) openDevices() error {
	t := &r.cfg.Train
	if t.Device == config.DeviceCPU {
		return nil
	}
	open := r.o.hooks.open
	if open == nil {
		open = func(n int) (*gpus, error) { return openGPUs(r.o.CUDA, n) }
	}
	g, err := open(t.Devices)
	if err == nil {
		r.gpus = g
		return nil
	}
	return r.fallBack(err)
}

// fallBack goes on with the processor where that is allowed, and says why.
func (r *run) fallBack(err error) error {
	if r.cfg.Train.Device != config.DeviceAuto {
		return err
	}
	if r.gpus != nil {
		r.gpus.close()
		r.gpus = nil
	}
	r.note = err
	r.logf("computing on the processor: %v", err)
	return nil
}

func openGPUs(setup cuda.Setup, n int) (g *gpus, err error) {
	g = &gpus{}
	defer func() {
		if err != nil {
			g.close()
			g = nil
		}
	}()
	for i := range n {
		device, image, err := setup.Open(i)
		if err != nil {
			return g, err
		}
		g.devices, g.image = append(g.devices, device), image
	}
	if g.blas, err = cuda.OpenBlas(setup.LibDirs...); err != nil {
		return g, err
	}
	if n > 1 {
		var lib *cuda.NCCL
		if lib, err = cuda.OpenNCCL(setup.LibDirs...); err == nil {
			g.group, err = collective.New(g.devices, lib)
		}
	}
	return g, err
}

// gpuOptions are those of a trainer on one of n devices.
func (r *run) gpuOptions(rank int) model.GPUTrainOptions {
	t := &r.cfg.Train
	o := model.GPUTrainOptions{
		Tokens: t.MicroRows * t.SeqLen, SeqLen: t.SeqLen, Micros: t.Rows / t.MicroRows / t.Devices, Recompute: t.Recompute, Float: t.Float, F32: t.F32,
		Optim: optimOptions(r), Loss: model.LossOptions{Z: t.ZLoss, Entropy: t.Entropy, Smoothing: t.Smoothing}, Graph: true, Rank: rank,
	}
	o.Optim.HalfState, o.Optim.Seed = t.HalfState, uint64(t.Seed)
	o.Optim.Set, o.Optim.Team = r.set, r.team
	if r.gpus != nil {
		o.Blas = r.gpus.blas
		if r.gpus.group != nil {
			o.Group = r.gpus.group
		}
	}
	return o
}

// foreseeDevice is the memory that the run will take on each device.
func (r *run) foreseeDevice() (Parts, error) {
	m, err := model.GPUTrainMemoryOf(r.cfg.Model, r.gpuOptions(0))
	return gpuParts(m), hinted(err)
}

// hinted is an error of a network on a device with what to do about it.
func hinted(err error) error {
	var unsupported *model.UnsupportedError
	var full *model.GPUMemoryError
	switch {
	case errors.As(err, &unsupported):
		return &Error{What: unsupported.What + " cannot be computed on a GPU", Hint: unsupported.Hint}
	case errors.As(err, &full):
		return &Error{What: "on the GPU", Err: err, Hint: "close what else uses the GPU; " + lessMemory}
	}
	return err
}

func gpuParts(m model.GPUTrainMemory) (p Parts) {
	for _, x := range m.Parts() {
		p = append(p, Part(x))
	}
	return p
}

// onDevices says whether GPUs compute, or are asked for.
func (r *run) onDevices() bool {
	return r.gpus != nil || r.cfg.Train.Device == config.DeviceCUDA
}

// fits refuses a run that does not fit in memory, of the host or of its devices; with
// train.device = "auto" the processor takes what does not fit on a GPU.
func (r *run) fits() error {
	if r.gpus != nil {
		need, err := r.foreseeDevice()
		if has := int64(r.gpus.devices[0].Memory); err == nil && need.Total() > has {
			err = &Error{What: fmt.Sprintf("the run needs %s of memory on the GPU, which has %s", size(need.Total()), size(has)), Hint: lessMemory}
		}
		if err != nil {
			if err := r.fallBack(err); err != nil {
				return err
			}
		}
	}
	need, err := r.foresee()
	if err != nil {
		return err
	}
	if total := need.Total(); r.memory > 0 && total > r.memory {
		return &Error{What: fmt.Sprintf("the run needs %s of memory and this machine has %s", size(total), size(r.memory)), Hint: lessMemory}
	}
	return nil
}

// planDevice says what will compute and what that takes. missing is a GPU that is wished and
// not there: the plan is made without a measurement.
func (r *run) planDevice(p *Plan) (missing bool, err error) {
	p.Device, p.Devices = config.DeviceCPU, 1
	err = r.openDevices()
	if err != nil {
		p.Note, missing = err.Error(), true
	} else if r.note != nil {
		p.Note = r.note.Error()
	}
	if !r.onDevices() {
		return false, nil
	}
	p.Device, p.Devices = config.DeviceCUDA, r.cfg.Train.Devices
	if r.gpus != nil {
		p.Device, p.DeviceTotal = r.gpus.devices[0].Name, int64(r.gpus.devices[0].Memory)
	}
	if p.DeviceMemory, err = r.foreseeDevice(); err != nil {
		if err := r.fallBack(err); err != nil {
			return false, err
		}
		p.Device, p.Devices, p.Note, p.DeviceTotal = config.DeviceCPU, 1, err.Error(), 0
	}
	return missing, nil
}

// newDevices makes the learner on the devices that were opened.
func newDevices(r *run) (learner, error) {
	g := r.gpus
	info := g.devices[0].Info
	d := &devices{r: r, kernel: "cuda " + info.Arch()}
	if n := len(g.devices); n > 1 {
		d.kernel += fmt.Sprintf(" x%d", n)
		d.abort = g.group.Abort
	}
	if r.o.Peak == 0 {
		// Before the network, whose memory is then counted alone.
		peak, err := measurePeak(g.devices[0], g.blas, r.clock)
		if err != nil {
			return nil, err
		}
		d.rate = peak * float64(len(g.devices))
	}
	for i, device := range g.devices {
		t, err := model.NewGPUTrainer(r.cfg.Model, device, g.image, r.gpuOptions(i))
		if err != nil {
			for _, t := range d.all {
				_ = t.Close() // err says more
			}
			return nil, hinted(err)
		}
		d.all = append(d.all, gpuTrainer{t})
	}
	which := info.Name
	if n := len(g.devices); n > 1 {
		which = fmt.Sprintf("%d GPUs, each %s", n, which)
	}
	r.logf("computing on %s: %s of its %s", which, size(d.all[0].DeviceParts().Total()), size(int64(info.Memory)))
	return d, nil
}

// gpuTrainer is a model.GPUTrainer as a deviceTrainer.
type gpuTrainer struct{ *model.GPUTrainer }

func (g gpuTrainer) DeviceParts() Parts { return gpuParts(g.Memory()) }
func (g gpuTrainer) InUse() int64       { return g.Memory().Peak }

func (g gpuTrainer) Timed(f func() error) ([]model.PartTime, error) {
	g.SetTiming(true)
	g.ClearParts()
	err := f()
	g.SetTiming(false)
	return g.Parts(), err
}

// peakSize is the side of the largest product that the peak of a device is measured with, and
// peakTime what a measurement lasts at least, unless it is the largest.
const (
	peakSize = 8192
	peakTime = 4 * time.Millisecond
)

// measurePeak is the operations a second of a product of square matrices in bfloat16, of the
// largest size that takes no longer than it must.
func measurePeak(device *cuda.Device, lib *cuda.BlasLibrary, c clock.Clock) (best float64, err error) {
	err = device.Do(func(t *cuda.Thread) error {
		blas, err := t.Blas(lib)
		if err != nil {
			return err
		}
		for n := 64; n <= peakSize; n *= 2 {
			rate, took, err := productRate(t, blas, n, c)
			var full *cuda.MemoryError
			if errors.As(err, &full) {
				return nil // what smaller ones reached
			}
			if err != nil {
				return err
			}
			if best = max(best, rate); took > peakTime {
				break
			}
		}
		return nil
	})
	return best, err
}

// productRate multiplies matrices of side n, once to warm up and then a few times.
func productRate(t *cuda.Thread, blas *cuda.Blas, n int, c clock.Clock) (rate float64, took time.Duration, err error) {
	bytes := uint64(2 * n * n)
	var at [3]cuda.Ptr
	defer func() {
		for _, p := range at {
			err = errors.Join(err, t.Free(p))
		}
	}()
	for i := range at {
		if at[i], err = t.Alloc(bytes); err != nil {
			return 0, 0, err
		}
		if err = t.Fill(at[i], 0x3c, bytes); err != nil { // 0.0115: products of zeros draw less power
			return 0, 0, err
		}
	}
	p := cuda.Product{M: n, N: n, K: n, A: at[0], B: at[1], D: at[2], TypeA: cuda.BlasBF16, TypeD: cuda.BlasBF16, TransB: true, Alpha: 1}
	const times = 4
	for _, count := range []int{1, times} {
		if err = t.Wait(); err != nil {
			return 0, 0, err
		}
		from := c.Now()
		for range count {
			if err = blas.MatMul(&p); err != nil {
				return 0, 0, err
			}
		}
		if err = t.Wait(); err != nil {
			return 0, 0, err
		}
		took = c.Now().Sub(from)
	}
	side := float64(n)
	return times * 2 * side * side * side / max(took.Seconds(), 1e-9), took, nil
}
