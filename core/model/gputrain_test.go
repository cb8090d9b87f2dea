//go:build cgo

package model

import (
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// tiny is the smallest shape that a device trains.
func tiny() config.Model {
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN = 64, 2, 2, 2, 32, 96
	c.Vocab, c.Context, c.Group = 101, 64, 64
	c.FFNKind, c.Embedding, c.Head = config.FFNReLU2, config.TypeQ8_0, config.TypeQ8_0
	return c
}

// gpuAxes is tiny with every choice that a device's training step knows.
func gpuAxes() map[string]config.Model {
	all := map[string]config.Model{"plain": tiny()}
	add := func(name string, f func(c *config.Model)) {
		c := tiny()
		f(&c)
		all[name] = c
	}
	add("swiglu", func(c *config.Model) { c.FFNKind = config.FFNSwiGLU })
	add("relu2_glu sub_norm", func(c *config.Model) { c.FFNKind, c.SubNorm = config.FFNReLU2GLU, true })
	add("norms", func(c *config.Model) { c.QKNorm, c.SubNorm = true, true })
	add("tied q8_0", func(c *config.Model) { c.TieEmbeddings = true })
	add("tied f16", func(c *config.Model) { c.TieEmbeddings, c.Embedding = true, config.TypeF16 })
	add("f16", func(c *config.Model) { c.Embedding, c.Head = config.TypeF16, config.TypeF16 })
	add("scalars softcap", func(c *config.Model) { c.ResidualScalars, c.LogitSoftcap = true, 3 })
	add("gqa", func(c *config.Model) { c.Heads, c.KVHeads, c.HeadDim = 4, 2, 16 })
	add("group row", func(c *config.Model) { c.Group = 0 })
	add("nano", func(c *config.Model) { // all that nano-125m-rust has
		c.QKNorm, c.SubNorm, c.LogitSoftcap, c.ResidualScalars, c.Group = true, true, 15, true, 128
	})
	add("wide", func(c *config.Model) { // the plans of kernels for a layer of nano-125m-rust
		c.QKNorm, c.SubNorm, c.ResidualScalars, c.Group = true, true, true, 128
		c.Dim, c.Heads, c.KVHeads, c.HeadDim, c.FFN, c.Layers = 768, 12, 12, 64, 3072, 1
	})
	for _, n := range []int{2, 4} {
		for _, kind := range []string{config.MHCBvN, config.MHCSinkhorn} {
			for _, dynamic := range []bool{false, true} {
				add(fmt.Sprint(n, " streams ", kind, " ", dynamic), func(c *config.Model) {
					c.Streams, c.MHC, c.MHCDynamic, c.SinkhornIters = n, kind, dynamic, 5
					c.ResidualScalars = dynamic == (n == 2)
				})
			}
		}
	}
	return all
}

// blas is the library of products on the device of gpu.
func blas(t testing.TB) *cuda.BlasLibrary {
	t.Helper()
	dirs, _, missing, err := cudatest.Setup(os.Getenv)
	require.NoError(t, err)
	require.Empty(t, missing)
	lib, err := cuda.OpenBlas(dirs...)
	require.NoError(t, err)
	return lib
}

// newGPUTrainer is a trainer on the device.
func newGPUTrainer(t testing.TB, c config.Model, device *cuda.Device, image cuda.Image, o GPUTrainOptions) *GPUTrainer {
	t.Helper()
	o.Blas = blas(t)
	if o.Optim.Rules == nil {
		o.Optim = optimOptions()
	}
	g, err := NewGPUTrainer(c, device, image, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = g.Close() })
	return g
}

func optimOptions() optim.Options {
	adam := optim.Rule{Kind: optim.AdamW, LR: 3e-3}
	return optim.Options{Clip: 1, BF16: true, Rules: map[optim.Class]optim.Rule{
		optim.Matrix: {Kind: optim.Muon, LR: 2e-2}, optim.Embedding: adam, optim.Head: adam, optim.Scalar: adam, optim.MHC: adam,
	}}
}

// copyWeights gives g the weights of tr.
func copyWeights(t testing.TB, g *GPUTrainer, tr *Trainer) {
	t.Helper()
	for i, p := range tr.Params() {
		q := g.Params()[i]
		require.Equal(t, p.Name, q.Name)
		require.Equal(t, p.Class, q.Class)
		copy(q.W, p.W)
	}
	require.NoError(t, g.Push())
}

// gradients of the last step of g.
func gradients(t testing.TB, g *GPUTrainer) [][]float32 {
	t.Helper()
	var out [][]float32
	for _, p := range g.Params() {
		out = append(out, make([]float32, len(p.W)))
	}
	require.NoError(t, g.Gradients(out))
	return out
}

// angle is the cosine between two vectors, and the length of the second in terms of the first.
func angle(a, b []float32) (cosine, ratio float64) {
	var ab, aa, bb float64
	for i := range a {
		ab += float64(a[i]) * float64(b[i])
		aa += float64(a[i]) * float64(a[i])
		bb += float64(b[i]) * float64(b[i])
	}
	if aa == 0 && bb == 0 {
		return 1, 1
	}
	return ab / math.Sqrt(aa*bb), math.Sqrt(bb / aa)
}

// distance is the length of a - b, and of a.
func distance(a, b []float32) (d, length float64) {
	for i, v := range a {
		d += math.Pow(float64(v)-float64(b[i]), 2)
		length += math.Pow(float64(v), 2)
	}
	return math.Sqrt(d), math.Sqrt(length)
}

// requireGradients compares sums of losses and all gradients. Both sides round the factors
// of their products to bfloat16, and attention differs by the half precision of its
// probabilities, which now and then moves an int8 input by one.
func requireGradients(t testing.TB, tr *Trainer, want, got LossSum, grads [][]float32) {
	t.Helper()
	require.Equal(t, want.Count, got.Count)
	n := float64(want.Count)
	for _, x := range [][2]float64{{want.NLL, got.NLL}, {want.Entropy, got.Entropy}, {want.Objective, got.Objective}} {
		require.InDelta(t, x[0]/n, x[1]/n, 5e-3)
	}
	require.InDelta(t, want.LSE2/n, got.LSE2/n, 1e-2)
	var all, zero []float32
	for _, p := range tr.Params() {
		all, zero = append(all, p.G...), append(zero, make([]float32, len(p.G))...)
	}
	total, _ := distance(all, zero)
	for i, p := range tr.Params() {
		cosine, ratio := angle(p.G, grads[i])
		// Of gradients that almost cancel, such as those of a mixing that a norm undoes,
		// only the error is the same as that of the others.
		if d, _ := distance(p.G, grads[i]); d < 1e-3*total && (cosine < 0.999 || ratio < 0.99 || ratio > 1.01) {
			continue
		}
		require.Greater(t, cosine, 0.999, p.Name)
		require.InDelta(t, 1, ratio, 0.01, p.Name)
	}
}

// Forward and backward of a device against those of the processor. NANOCHAT_LONG=1 takes the
// wide network too.
func TestGPUTrainGradients(t *testing.T) {
	device, image := gpu(t)
	for name, c := range gpuAxes() {
		if name == "wide" && os.Getenv("NANOCHAT_LONG") == "" && !cudatest.OnGPU(os.Getenv) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			tr := newTrainer(t, c, 1, TrainOptions{Tokens: 64})
			b := batchOf(c, 2, 32)
			l := LossOptions{Scale: 1.0 / 64, Z: 1e-3, Entropy: 0.05, Smoothing: 0.1}
			want, err := tr.Backward(b, l)
			require.NoError(t, err)
			g := newGPUTrainer(t, c, device, image, GPUTrainOptions{Tokens: 64, SeqLen: 32, Loss: l})
			copyWeights(t, g, tr)
			got, report, err := g.Step([]*TrainBatch{b}, l.Scale)
			require.NoError(t, err)
			require.False(t, report.Skipped)
			requireGradients(t, tr, want, got, gradients(t, g))
		})
	}
}

// gpuRun is what some steps give: sums, reports and the weights after them.
type gpuRun struct {
	sums    []LossSum
	reports []optim.Report
	weights [][]float32
}

// steps trains a few steps of a few micro batches each.
func (g *GPUTrainer) steps(t testing.TB, n int, batches ...*TrainBatch) (r gpuRun) {
	t.Helper()
	for range n {
		sum, report, err := g.Step(batches, 1.0/64)
		require.NoError(t, err)
		report.Norms = append([]float64(nil), report.Norms...)
		r.sums, r.reports = append(r.sums, sum), append(r.reports, report)
	}
	require.NoError(t, g.Pull())
	for _, p := range g.Params() {
		r.weights = append(r.weights, append([]float32(nil), p.W...))
	}
	return r
}

// Steps give the same bits as a graph, with recomputation, timed by events, with the batches
// staged before, and again.
func TestGPUTrainBits(t *testing.T) {
	device, image := gpu(t)
	for _, name := range []string{"nano", "4 streams bvn true"} {
		t.Run(name, func(t *testing.T) {
			c := gpuAxes()[name]
			b := []*TrainBatch{batchOf(c, 2, 20), batchOf(c, 1, 17)}
			run := func(o GPUTrainOptions, f func(g *GPUTrainer)) gpuRun {
				o.Tokens, o.SeqLen, o.Loss = 40, 20, LossOptions{Z: 1e-4}
				g := newGPUTrainer(t, c, device, image, o)
				g.Init(1)
				require.NoError(t, g.Push())
				if f != nil {
					f(g)
				}
				defer g.Close()
				return g.steps(t, 3, b...)
			}
			var timed *GPUTrainer
			want := run(GPUTrainOptions{}, nil)
			require.Less(t, want.sums[2].NLL, want.sums[0].NLL)
			require.Equal(t, want, run(GPUTrainOptions{Graph: true}, nil))
			require.Equal(t, want, run(GPUTrainOptions{Recompute: true, Micros: 2}, nil))
			require.Equal(t, want, run(GPUTrainOptions{}, func(g *GPUTrainer) {
				g.SetTiming(true)
				timed = g
				require.NoError(t, g.Stage(b[:1]))
				require.NoError(t, g.Stage(b)) // takes the place of the first
			}))
			names := map[string]bool{}
			for _, p := range timed.Parts() {
				names[p.Name] = true
				require.GreaterOrEqual(t, p.Seconds, 0.0)
			}
			require.Len(t, names, int(gpuTimes))
			for _, name := range partNames {
				require.Contains(t, names, name)
			}
			timed.ClearParts()
			require.Zero(t, timed.Parts()[partProjections].Seconds)
		})
	}
}

// Stage in the middle of a step is for the next one.
func TestGPUTrainStages(t *testing.T) {
	device, image := gpu(t)
	c := tiny()
	g := newGPUTrainer(t, c, device, image, GPUTrainOptions{Tokens: 64, SeqLen: 32})
	g.Init(1)
	b := batchOf(c, 2, 32)
	require.ErrorContains(t, g.Begin([]*TrainBatch{b}, 1), "call Push")
	_, err := g.Evaluate(b)
	require.ErrorContains(t, err, "call Push")
	require.NoError(t, g.Push())
	require.ErrorContains(t, g.Begin(nil, 1), "none are staged")
	_, _, err = g.End()
	require.ErrorContains(t, err, "call Begin")

	two := batchOf(c, 1, 20)
	other, err := g.Evaluate(two)
	require.NoError(t, err)
	first, err := g.Evaluate(b)
	require.NoError(t, err)
	require.NoError(t, g.Begin([]*TrainBatch{b}, 0))
	require.NoError(t, g.Stage([]*TrainBatch{two}))
	tokens := two.Tokens[0]
	two.Tokens[0] = 5 // it was copied
	for _, f := range []func() error{
		func() error { return g.Begin(nil, 1) }, g.Push, g.Pull,
		func() error { _, err := g.Evaluate(b); return err },
		func() error { _, err := g.Projections(); return err },
		func() error { _, err := g.Tensors(); return err },
		func() error { return g.Restore(optim.Counters{}, nil) },
		func() error { return g.Gradients(nil) },
	} {
		require.ErrorContains(t, f(), "call End")
	}
	sum, _, err := g.End()
	require.NoError(t, err)
	require.Equal(t, first.NLL, sum.NLL)
	require.NoError(t, g.Begin(nil, 0))
	sum, _, err = g.End()
	require.NoError(t, err)
	require.Equal(t, other.Count, sum.Count)
	require.NotEqual(t, first.NLL, sum.NLL)
	two.Tokens[0] = tokens

	require.NoError(t, g.Begin([]*TrainBatch{two}, 1.0/64))
	require.NoError(t, g.Close()) // in the middle of a step
	_, _, err = g.End()
	require.Error(t, err)
}

// The host's model after Pull and Refresh is the one that the device computes with.
func TestGPUTrainPull(t *testing.T) {
	device, image := gpu(t)
	for _, name := range []string{"nano", "f16", "2 streams sinkhorn false"} {
		t.Run(name, func(t *testing.T) {
			c := gpuAxes()[name]
			g := newGPUTrainer(t, c, device, image, GPUTrainOptions{Tokens: 64, SeqLen: 32})
			g.Init(1)
			require.NoError(t, g.Push())
			b := batchOf(c, 2, 32)
			g.steps(t, 2, b)
			require.NoError(t, g.Refresh())
			got, err := g.Projections()
			require.NoError(t, err)
			require.Equal(t, g.host.Projections(), got)
			same := func(want []byte, at cuda.Ptr) {
				have := make([]byte, len(want))
				require.NoError(t, device.Do(func(t *cuda.Thread) error { return cuda.Download(t, have, at) }))
				require.Equal(t, want, have)
			}
			same(g.Model().embed.Data, g.embed.table.Data)
			same(g.Model().head.Data, g.gpuNet.head.table.Data)
			// What a trainer on the processor makes of these weights.
			tr, err := NewTrainer(c, TrainOptions{Tokens: 64})
			require.NoError(t, err)
			for i, p := range tr.Params() {
				copy(p.W, g.Params()[i].W)
			}
			require.NoError(t, tr.Refresh())
			want, err := tr.Evaluate(b)
			require.NoError(t, err)
			sum, err := g.Evaluate(b)
			require.NoError(t, err)
			require.InDelta(t, want.NLL, sum.NLL, 3e-3*float64(want.Count))
			wantCosine, wantOK := tr.StreamCosine()
			cosine, ok, err := g.StreamCosine()
			require.NoError(t, err)
			require.Equal(t, wantOK, ok)
			require.InDelta(t, wantCosine, cosine, 1e-3)
		})
	}
}

// Twenty steps with the optimizer against the processor's.
func TestGPUTrainLossCurve(t *testing.T) {
	device, image := gpu(t)
	c := gpuAxes()["nano"]
	tr, err := NewTrainer(c, TrainOptions{Tokens: 96})
	require.NoError(t, err)
	tr.Init(1)
	o := optimOptions() // at such rates that twenty steps learn half of the batch
	o.Rules[optim.Matrix] = optim.Rule{Kind: optim.Muon, LR: 6e-3}
	opt, err := optim.New(tr.Params(), o)
	require.NoError(t, err)
	g := newGPUTrainer(t, c, device, image, GPUTrainOptions{Tokens: 96, SeqLen: 32, Graph: true, Optim: o})
	g.Init(1)
	require.NoError(t, g.Push())
	b := batchOf(c, 3, 32)
	for i := range 20 {
		require.NoError(t, tr.Refresh())
		tr.ClearGrads()
		want, err := tr.Backward(b, LossOptions{Scale: 1.0 / 77})
		require.NoError(t, err)
		wantReport, err := opt.Step()
		require.NoError(t, err)
		got, report, err := g.Step([]*TrainBatch{b}, 1.0/77)
		require.NoError(t, err)
		require.InDelta(t, want.NLL/float64(want.Count), got.NLL/float64(got.Count), 0.01, "step %d", i)
		require.InDelta(t, wantReport.GradNorm, report.GradNorm, 0.1*wantReport.GradNorm, "step %d", i)
		require.Equal(t, wantReport.Step, report.Step)
	}
}

// Gradients are in proportion to the scale of the objective, as small as it may be: no
// kernel leaves the range of its numbers. A step of half a million tokens has 2^-19.
func TestGPUTrainScale(t *testing.T) {
	device, image := gpu(t)
	for _, name := range []string{"nano", "4 streams sinkhorn true"} {
		t.Run(name, func(t *testing.T) {
			c := gpuAxes()[name]
			tr := newTrainer(t, c, 1, TrainOptions{Tokens: 40})
			var want [][]float32
			for _, exponent := range []int{-6, -40} {
				g := newGPUTrainer(t, c, device, image, GPUTrainOptions{Tokens: 40, SeqLen: 20, Loss: LossOptions{Z: 1e-3}})
				copyWeights(t, g, tr)
				_, report, err := g.Step([]*TrainBatch{batchOf(c, 2, 20)}, math.Ldexp(1, exponent))
				require.NoError(t, err)
				require.False(t, report.Skipped)
				got := gradients(t, g)
				if want == nil {
					want = got
					continue
				}
				var all, other []float32
				for i := range got {
					all = append(all, want[i]...)
					for _, v := range got[i] {
						other = append(other, float32(math.Ldexp(float64(v), -6-exponent)))
					}
				}
				d, length := distance(all, other)
				require.Less(t, d, 1e-4*length)
			}
		})
	}
}
