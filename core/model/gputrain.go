package model

import (
	"errors"
	"fmt"
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
)

// GPUTrainOptions are the choices of a GPUTrainer.
type GPUTrainOptions struct {
	// Tokens is the most tokens of a micro batch, in rows of SeqLen.
	Tokens, SeqLen int
	// Micros is the micro batches of a step. More than that take memory when they come.
	// The default is 1.
	Micros int
	// Recompute keeps only the streams between layers from the forward and computes the
	// rest of a layer again in the backward: less memory, about a third more time.
	Recompute bool
	// Float and F32 are those of TrainOptions. A device has neither.
	Float, F32 bool
	// Blas multiplies what is not ternary.
	Blas *cuda.BlasLibrary
	// Optim is the optimizer. Its Set and Team also serve what the host computes.
	Optim optim.Options
	// Loss is the objective; its Scale is an argument of each step.
	Loss LossOptions
	// Graph launches a micro batch and an update as a whole, from the second time on.
	Graph bool
	// Group are the devices that train the same weights on other batches, of which this
	// one is number Rank. nil: it is alone.
	Group Reducer
	Rank  int
}

// Reducer adds up numbers of several devices, each of which queues its call: collective.Group
// is one.
type Reducer interface {
	// AllReduce replaces count float32 at p by their sums over all ranks, the same bits on
	// each; AllReduceF64 does it for float64.
	AllReduce(t *cuda.Thread, rank int, p cuda.Ptr, count int) error
	AllReduceF64(t *cuda.Thread, rank int, p cuda.Ptr, count int) error
	// Abort ends what the other ranks wait for, with an error.
	Abort(cause error)
}

func (o GPUTrainOptions) withDefaults() GPUTrainOptions {
	o.Micros = max(o.Micros, 1)
	if o.SeqLen == 0 {
		o.SeqLen = o.Tokens
	}
	return o
}

// GPUTrainer is a network in training on a device: what Trainer and optim.Optimizer are
// on the processor. Weights, gradients and the state of the optimizer stay on the device;
// the host has a mirror of the weights, which Push and Pull copy.
//
// The forward gives inference's bits up to attention and the head, which sum in other
// orders; gradients are in bfloat16 with float32 sums. Every sum has a fixed order: the
// same batches give the same bits. It is for one goroutine; Stage may run beside Step.
type GPUTrainer struct {
	gpuNet
	host   *Trainer // weights alone
	o      GPUTrainOptions
	device *cuda.Device
	memory *gpuMemory
	gpuTools
	gpuSteps
	closed bool
}

// gpuTools is the kernels and what they know of the network.
type gpuTools struct {
	ops    *cuda.Ops
	fused  *cuda.Forward
	train  *cuda.Train
	flash  *cuda.Flash
	loss   *cuda.Loss
	mhc    *cuda.MHC
	sites  *cuda.MHCSites
	blas   *cuda.Blas
	latent *cuda.Latent
	pack   *cuda.PackPlan
	optim  *optim.GPU
}

// GPUMemoryError is a device without room for a training. It wraps a *cuda.MemoryError.
type GPUMemoryError struct {
	Memory GPUTrainMemory
	Err    error
}

func (e *GPUMemoryError) Error() string {
	var parts []string
	for _, p := range e.Memory.largest(3) {
		parts = append(parts, fmt.Sprintf("%s %d MiB", p.Name, p.Bytes>>20))
	}
	return fmt.Sprintf("model: no room on the GPU for this training, which takes %d MiB: %s; lower train.micro_rows, or set train.recompute = true: %v",
		e.Memory.Total()>>20, strings.Join(parts, ", "), e.Err)
}

func (e *GPUMemoryError) Unwrap() error { return e.Err }

// The longest vectors that the kernels of package cuda differentiate norms of: a block holds one in its
// registers.
const maxGPUDim, maxGPUFFN = 8192, 16384

// checkGPUTrain reports what a device cannot train.
func checkGPUTrain(c config.Model, o GPUTrainOptions) error {
	if err := checkTrain(c, TrainOptions{Tokens: o.Tokens}); err != nil {
		return err
	}
	if o.SeqLen < 1 || o.SeqLen > o.Tokens || o.Tokens%o.SeqLen != 0 {
		return fmt.Errorf("model: micro batches of %d tokens in rows of %d", o.Tokens, o.SeqLen)
	}
	no := func(hint, format string, args ...any) error {
		return &UnsupportedError{What: "training " + fmt.Sprintf(format, args...), Hint: hint + ", or use the processor: train.device = \"cpu\""}
	}
	switch err := cuda.FlashSupports(c.HeadDim); {
	case o.Float:
		return no("set train.float = false", "of the float network that a ternary one is compared with")
	case o.F32:
		return no("set train.f32 = false", "with products in float32")
	case err != nil:
		return no("choose a model.head_dim of 16 to 128 that is a multiple of 16", "with heads of %d", c.HeadDim)
	case c.Dim%32 != 0:
		return no("choose a multiple of 32", "with a model.dim of %d", c.Dim)
	case c.FFN%32 != 0:
		return no("choose a multiple of 32", "with a model.ffn of %d", c.FFN)
	case c.Dim > maxGPUDim:
		return no(fmt.Sprintf("choose at most %d", maxGPUDim), "with a model.dim of %d", c.Dim)
	case c.Heads*c.HeadDim > maxGPUDim:
		return no(fmt.Sprintf("choose at most %d elements", maxGPUDim), "with %d heads of %d", c.Heads, c.HeadDim)
	case c.FFN > maxGPUFFN:
		return no(fmt.Sprintf("choose at most %d", maxGPUFFN), "with a model.ffn of %d", c.FFN)
	}
	return nil
}

// NewGPUTrainer makes a network of shape c on a device, with weights that are all zero:
// call Init, or set the weights of Params, and then Push.
//
// What a device cannot train is an *UnsupportedError; one without room a *GPUMemoryError.
func NewGPUTrainer(c config.Model, device *cuda.Device, image cuda.Image, o GPUTrainOptions) (*GPUTrainer, error) {
	o = o.withDefaults()
	if err := checkGPUTrain(c, o); err != nil {
		return nil, err
	}
	if o.Blas == nil {
		return nil, fmt.Errorf("model: training on a GPU needs cuBLASLt")
	}
	host, err := newWeights(c, TrainOptions{Set: o.Optim.Set, Team: o.Optim.Team, Tokens: o.Tokens}, true)
	if err != nil {
		return nil, err
	}
	o.Optim.Set, o.Optim.Team = host.o.Set, host.o.Team
	g := &GPUTrainer{host: host, o: o, device: device, memory: &gpuMemory{device: device}}
	g.gpuNet = newGPUNet(host.m, &o, device.Multiprocessors)
	err = device.Do(func(t *cuda.Thread) error { return g.open(t, image) })
	if err != nil {
		_ = g.Close() // err says more
		var full *cuda.MemoryError
		if errors.As(err, &full) {
			m, _ := GPUTrainMemoryOf(c, o) // it is for the message
			return nil, &GPUMemoryError{Memory: m, Err: err}
		}
		return nil, fmt.Errorf("model: training on the GPU: %w", err)
	}
	return g, nil
}

// open makes everything on the device.
func (g *GPUTrainer) open(t *cuda.Thread, image cuda.Image) (err error) {
	if err = g.allocate(t); err != nil {
		return err
	}
	for _, load := range []func() error{
		func() error { g.ops, err = t.Ops(image); return err },
		func() error { g.fused, err = t.Forward(image); return err },
		func() error { g.train, err = t.Train(image); return err },
		func() error { g.flash, err = t.Flash(image); return err },
		func() error { g.loss, err = t.Loss(image); return err },
		func() error { g.latent, err = t.Latent(image); return err },
		func() error { g.blas, err = t.Blas(g.o.Blas); return err },
		func() error { return g.openMHC(t, image) },
		func() error { g.optim, err = optim.NewGPU(t, image, g.blas, g.params, g.o.Optim); return err },
		func() error { return g.planPack() },
		func() error { return g.openSteps(t) },
	} {
		if err := load(); err != nil {
			return err
		}
	}
	rope := g.host.m.rope.upTo(g.host.m.rope.limit)
	for i, x := range [][]float32{rope.cos, rope.sin} {
		if err := cuda.Upload(t, g.rope[i], x); err != nil {
			return err
		}
	}
	// What no parameter covers is never read as a number, but gradients are summed over
	// devices in one piece.
	for _, part := range []gpuPart{gpuWeights, gpuGrads} {
		if err := t.Fill(g.regions[part].base, 0, g.regions[part].end); err != nil {
			return err
		}
	}
	return t.Wait()
}

// allocate takes the memory: a piece for each part.
func (g *GPUTrainer) allocate(t *cuda.Thread) error {
	g.layOut(g.host.m)
	for i := range g.regions {
		r := &g.regions[i]
		p, err := g.memory.alloc(t, int(r.end))
		if err != nil {
			return fmt.Errorf("%s, %d bytes: %w", gpuPartNames[i], r.end, err)
		}
		r.base = p
	}
	g.layOut(g.host.m)
	return nil
}

// openMHC prepares the mixing of streams.
func (g *GPUTrainer) openMHC(t *cuda.Thread, image cuda.Image) (err error) {
	if g.cfg.Streams == 1 {
		return nil
	}
	if g.mhc, err = t.MHC(image); err != nil {
		return err
	}
	var sites []cuda.MHCSite
	for i := range g.layers {
		for _, s := range []*gpuSite{&g.layers[i].mhcAttn, &g.layers[i].mhcFFN} {
			sites = append(sites, cuda.MHCSite{
				Pre: s.pre.w, Post: s.post.w, Res: s.res.w, Gate: s.gate.w, Proj: s.proj.w,
				GPre: s.pre.g, GPost: s.post.g, GRes: s.res.g, GGate: s.gate.g, GProj: s.proj.g, Coef: s.coef,
			})
		}
	}
	g.sites, err = g.mhc.Sites(mhcShape(g.cfg), sites, g.tokens)
	return err
}

// planPack lists what an update quantises.
func (g *GPUTrainer) planPack() (err error) {
	var ternary []cuda.PackJob
	for i := range g.layers {
		l := &g.layers[i]
		for _, m := range []*gpuMatrix{&l.qkv, &l.o, &l.up, &l.down} {
			ternary = append(ternary, cuda.PackJob{Dst: &m.packed, Used: m.used, W: m.w})
		}
	}
	tables := []*gpuMatrix{&g.embed}
	if !g.cfg.TieEmbeddings {
		tables = append(tables, &g.head)
	}
	var dense []cuda.DenseJob
	for _, m := range tables {
		dense = append(dense, cuda.DenseJob{
			Table: m.table.Data, Half: m.half, Used: m.used, W: m.w, Kind: kernels.DType(m.table.Type), Rows: m.rows, Cols: m.cols,
		})
	}
	g.pack, err = g.latent.Plan(ternary, dense)
	return err
}

// quantise queues what brings the packed weights up to date with the latents.
func (g *GPUTrainer) quantise() error {
	if err := g.pack.Run(g.flags); err != nil || g.cfg.Streams == 1 || g.cfg.MHCDynamic {
		return err
	}
	return g.mhc.Prepare(g.sites)
}

// Close gives the memory of the device back. It may be called twice, and after the device
// was lost or closed.
func (g *GPUTrainer) Close() error {
	if g.closed {
		return nil
	}
	g.closed = true
	err := g.device.Do(func(t *cuda.Thread) error {
		err := g.closeSteps(t)
		for _, free := range []func() error{
			func() error {
				if g.optim == nil {
					return nil
				}
				return g.optim.Free(t)
			},
			func() error {
				if g.pack == nil {
					return nil
				}
				return g.pack.Free()
			},
			func() error {
				if g.sites == nil {
					return nil
				}
				return g.mhc.Free(g.sites)
			},
		} {
			err = errors.Join(err, free())
		}
		return err
	})
	g.memory.free()
	if errors.Is(err, cuda.ErrClosed) {
		return nil // it has freed everything
	}
	return err
}

// Params lists the tensors to train, by their names in a file, in its order: the host's
// mirrors. Their gradients are nil. After a change of weights call Push.
func (g *GPUTrainer) Params() []optim.Param { return g.host.Params() }

// Init is Trainer.Init of the host's mirrors: the same weights from the same seed. Push
// must follow.
func (g *GPUTrainer) Init(seed uint64) { g.host.Init(seed) }

// Model is the network on the host. After Pull and Refresh it has the very bits that the
// device computes with.
func (g *GPUTrainer) Model() *Model { return g.host.Model() }

// Refresh brings Model up to date with the host's mirrors.
func (g *GPUTrainer) Refresh() error { return g.host.Refresh() }

// Optimizer is the optimizer on the device.
func (g *GPUTrainer) Optimizer() *optim.GPU { return g.optim }
