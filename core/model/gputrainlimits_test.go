//go:build cgo

package model

import (
	"errors"
	"math"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// What a training takes on a device is foretold within 10 %, the workspace of the library
// aside, which would hide everything else in networks as small as these.
func TestGPUTrainMemory(t *testing.T) {
	for _, x := range []struct {
		name string
		o    GPUTrainOptions
	}{
		{"nano", GPUTrainOptions{Tokens: 256, SeqLen: 32, Micros: 3}},
		{"nano", GPUTrainOptions{Tokens: 64, SeqLen: 32, Recompute: true}},
		{"relu2_glu sub_norm", GPUTrainOptions{Tokens: 64, SeqLen: 64}},
		{"tied f16", GPUTrainOptions{Tokens: 32, SeqLen: 16}},
		{"4 streams sinkhorn true", GPUTrainOptions{Tokens: 64, SeqLen: 32}},
		{"2 streams bvn false", GPUTrainOptions{Tokens: 128, SeqLen: 32, Recompute: true}},
	} {
		t.Run(x.name, func(t *testing.T) {
			device, image := gpu(t) // its allocator has no peak yet
			c := gpuAxes()[x.name]
			g := newGPUTrainer(t, c, device, image, x.o)
			g.Init(1)
			require.NoError(t, g.Push())
			b := batchOf(c, x.o.Tokens/x.o.SeqLen, x.o.SeqLen)
			_, _, err := g.Step([]*TrainBatch{b}, 0.01)
			require.NoError(t, err)
			x.o.Optim = optimOptions()
			foretold, err := GPUTrainMemoryOf(c, x.o)
			require.NoError(t, err)
			measured := g.Memory()
			require.InEpsilon(t, foretold.Total()-foretold.Library, measured.Peak-foretold.Library, 0.1)
			require.InEpsilon(t, foretold.Total(), measured.Total(), 0.1)
			require.NoError(t, g.Close())
			require.NoError(t, g.Close())
			require.ErrorContains(t, g.Push(), "closed")
			require.NoError(t, device.Do(func(th *cuda.Thread) error {
				used, _, _ := th.Memory()
				require.LessOrEqual(t, used, uint64(cuda.BlasWorkspace), "only what the thread keeps is left")
				return nil
			}))
		})
	}
}

// A device without room names the largest parts and what to set.
func TestGPUTrainWithoutRoom(t *testing.T) {
	if cudatest.OnGPU(os.Getenv) {
		t.Skip("the machine's GPU has room")
	}
	t.Setenv("FAKE_CUDA_MEMORY", "2000000")
	device, image := gpu(t)
	_, err := NewGPUTrainer(tiny(), device, image, GPUTrainOptions{Tokens: 1024, SeqLen: 32, Blas: blas(t), Optim: optimOptions()})
	var e *GPUMemoryError
	require.ErrorAs(t, err, &e)
	var full *cuda.MemoryError
	require.ErrorAs(t, err, &full)
	require.ErrorContains(t, err, "activations")
	require.ErrorContains(t, err, "train.micro_rows")
	require.ErrorContains(t, err, "train.recompute")
	require.NoError(t, device.Do(func(th *cuda.Thread) error {
		used, _, _ := th.Memory()
		require.Zero(t, used, "what was allocated before is freed")
		return nil
	}))
}

func TestGPUTrainRefuses(t *testing.T) {
	ok := GPUTrainOptions{Tokens: 64, SeqLen: 32, Optim: optimOptions()}
	for _, x := range []struct {
		what, hint string
		change     func(c *config.Model, o *GPUTrainOptions)
	}{
		{"float network", "train.float", func(_ *config.Model, o *GPUTrainOptions) { o.Float = true }},
		{"float32", "train.f32", func(_ *config.Model, o *GPUTrainOptions) { o.F32 = true }},
		{"heads of 24", "multiple of 16", func(c *config.Model, _ *GPUTrainOptions) { c.HeadDim = 24 }},
		{"heads of 144", "multiple of 16", func(c *config.Model, _ *GPUTrainOptions) { c.HeadDim = 144 }},
		{"model.dim of 80", "multiple of 32", func(c *config.Model, _ *GPUTrainOptions) {
			c.Dim, c.Head, c.Embedding = 80, config.TypeF16, config.TypeF16
		}},
		{"model.ffn of 100", "multiple of 32", func(c *config.Model, _ *GPUTrainOptions) { c.FFN = 100 }},
		{"model.dim of 8224", "at most 8192", func(c *config.Model, _ *GPUTrainOptions) { c.Dim = 8224 }},
		{"514 heads of 16", "at most 8192", func(c *config.Model, _ *GPUTrainOptions) { c.Heads, c.HeadDim = 514, 16 }},
		{"model.ffn of 16416", "at most 16384", func(c *config.Model, _ *GPUTrainOptions) { c.FFN = 16416 }},
	} {
		c, o := tiny(), ok
		x.change(&c, &o)
		_, err := GPUTrainMemoryOf(c, o)
		var u *UnsupportedError
		require.ErrorAs(t, err, &u)
		require.ErrorContains(t, err, x.what)
		require.ErrorContains(t, err, x.hint)
		require.ErrorContains(t, err, "train.device")
		_, err = NewGPUTrainer(c, nil, nil, o)
		require.ErrorAs(t, err, &u)
	}
	for _, o := range []GPUTrainOptions{{}, {Tokens: 64, SeqLen: 30}, {Tokens: 1 << 20, SeqLen: 32}} {
		o.Optim = ok.Optim
		_, err := GPUTrainMemoryOf(tiny(), o)
		require.ErrorContains(t, err, "tokens")
	}
	_, err := NewGPUTrainer(tiny(), nil, nil, ok)
	require.ErrorContains(t, err, "cuBLASLt")
}

// A device that is lost in mid-run: every call says so, and all can be closed.
func TestGPUTrainLostDevice(t *testing.T) {
	if cudatest.OnGPU(os.Getenv) {
		t.Skip("the machine's GPU stays")
	}
	for _, call := range []string{"cuLaunchKernel:700:120", "cuStreamSynchronize:700:20", "cuMemcpyHtoDAsync_v2:719:70"} {
		t.Run(call, func(t *testing.T) {
			t.Setenv("FAKE_CUDA_FAIL", call)
			device, image := gpu(t)
			c := tiny()
			g := newGPUTrainer(t, c, device, image, GPUTrainOptions{Tokens: 64, SeqLen: 32, Graph: true})
			g.Init(1)
			require.NoError(t, g.Push())
			b := batchOf(c, 2, 32)
			var err error
			for i := 0; i < 10 && err == nil; i++ {
				_, _, err = g.Step([]*TrainBatch{b}, 0.01)
			}
			var lost *cuda.Error
			require.ErrorAs(t, err, &lost)
			require.Contains(t, []int{700, 719}, lost.Code)
			for _, f := range []func() error{
				g.Pull, g.Push,
				func() error { _, err := g.Tensors(); return err },
				func() error { _, err := g.Projections(); return err },
			} {
				require.ErrorAs(t, f(), &lost)
			}
			require.Error(t, g.Begin([]*TrainBatch{b}, 1))
			_ = g.Close() // it may say again what happened
			device.Close()
		})
	}
}

// A gradient that is not finite, and one too large for a weight.
func TestGPUTrainNotFinite(t *testing.T) {
	device, image := gpu(t)
	c := tiny()
	g := newGPUTrainer(t, c, device, image, GPUTrainOptions{Tokens: 64, SeqLen: 32})
	g.Init(1)
	require.NoError(t, g.Push())
	b := batchOf(c, 2, 32)
	w := append([]float32(nil), g.Params()[3].W...)
	_, report, err := g.Step([]*TrainBatch{b}, 1e38)
	require.NoError(t, err)
	require.True(t, report.Skipped)
	require.NotEmpty(t, report.NonFinite)
	require.NoError(t, g.Pull())
	require.Equal(t, w, g.Params()[3].W)
	_, report, err = g.Step([]*TrainBatch{b}, 0.01)
	require.NoError(t, err)
	require.False(t, report.Skipped)
	require.Equal(t, optim.Counters{Step: 2, Skipped: 1}, g.Counters())

	w = g.Params()[0].W
	w[7] = float32(math.Inf(1))
	require.ErrorContains(t, g.Push(), "token_embd")
	_, err = g.Evaluate(b)
	require.Error(t, err)
	require.False(t, errors.Is(err, cuda.ErrClosed))
}

// The state of the optimizer goes out and in again: the run goes on with the same bits.
func TestGPUTrainResumes(t *testing.T) {
	device, image := gpu(t)
	c := gpuAxes()["nano"]
	b := batchOf(c, 2, 32)
	a := newGPUTrainer(t, c, device, image, GPUTrainOptions{Tokens: 64, SeqLen: 32})
	a.Init(1)
	require.NoError(t, a.Push())
	a.steps(t, 2, b)
	state, err := a.Tensors()
	require.NoError(t, err)
	z := newGPUTrainer(t, c, device, image, GPUTrainOptions{Tokens: 64, SeqLen: 32})
	for i, p := range a.Params() {
		copy(z.Params()[i].W, p.W)
	}
	require.NoError(t, z.Push())
	require.NoError(t, z.Restore(a.Counters(), state))
	require.Equal(t, a.steps(t, 2, b), z.steps(t, 2, b))
	require.Equal(t, a.Counters(), z.Counters())
}
