//go:build cgo

package model

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
	"github.com/architehc/nanochat/kernels/team"
)

// A driver that cannot record kernels that begin early records them as others.
func TestGPUDecodesWithoutEarlyKernels(t *testing.T) {
	if cudatest.OnGPU(os.Getenv) {
		t.Skip("this test is about the emulated GPU; the tests are on the machine's")
	}
	t.Setenv("FAKE_CUDA_FAIL", "cuLaunchKernelEx:801:1")
	device, image := gpu(t)
	c := axes()["norms"]
	m := initModel(t, c, 5, nil)
	g, err := NewGPU(m, device, image)
	require.NoError(t, err)
	w, err := NewGPUWork(g, 8)
	require.NoError(t, err)
	p, err := NewGPUPool(g, 1, kernels.KVF16)
	require.NoError(t, err)
	require.Equal(t, run(t, m, 1, kernels.KVF16, text(c, 4), 4), steps(t, m, w, p, text(c, 4), 1, 2, 1))
}

// Steps of one token of each sequence are recorded once for a shape and launched again, and give
// the bits of the processor: at the beginning of a sequence, across the end of a page, side by side with
// others, with another pool.
func TestGPUDecodesByGraphs(t *testing.T) {
	device, image := gpu(t)
	tm := team.New(1, team.Options{})
	defer tm.Close()
	for name, c := range axes() {
		// One kind goes over the end of a page, which takes the emulation a while.
		begin := 3
		if name == "norms" {
			begin = 62
		}
		c.Context = 160
		m := initModel(t, c, 5, nil)
		g, err := NewGPU(m, device, image)
		require.NoError(t, err)
		onGPU, err := NewGPUWork(g, 64)
		require.NoError(t, err)
		cpu, err := NewWork(m, tm, 64)
		require.NoError(t, err)
		ids := text(c, 140)
		decode := func(w *Work, p *Pool) (all [][]float32) {
			a, b := &Seq{}, &Seq{}
			step := func(hidden bool, tokens []int32, seqs ...SeqStep) {
				for i := range seqs {
					require.NoError(t, p.Grow(seqs[i].Seq, seqs[i].Seq.Len+seqs[i].N))
					seqs[i].Hidden = hidden
				}
				require.NoError(t, m.Forward(w, p, &Step{Tokens: tokens, Seqs: seqs}))
				for i := range w.Rows() {
					all = append(all, append([]float32(nil), w.Logits(i)...))
				}
				for i := range seqs {
					if hidden {
						all = append(all, append([]float32(nil), w.Hidden(i, 0)...))
					}
				}
			}
			step(false, ids[:1], SeqStep{Seq: b, N: 1, Logits: LogitsLast})
			step(false, ids[:begin], SeqStep{Seq: a, N: begin, Logits: LogitsNone})
			for i := range 4 {
				step(i == 1, []int32{ids[62+i], ids[100+i]}, SeqStep{Seq: a, N: 1, Logits: LogitsLast}, SeqStep{Seq: b, N: 1, Logits: LogitsLast})
			}
			step(false, ids[90:91], SeqStep{Seq: a, N: 1, Logits: LogitsLast})
			p.Truncate(a, 0)
			p.Truncate(b, 0)
			return all
		}
		for _, kv := range []kernels.KVType{kernels.KVF16, kernels.KVI8} {
			if kv == kernels.KVI8 && name != "norms" {
				continue
			}
			p, err := NewPool(m, 6, kv)
			require.NoError(t, err)
			q, err := NewGPUPool(g, 6, kv)
			require.NoError(t, err)
			want := decode(cpu, p)
			require.Equal(t, want, decode(onGPU, q), name)
			graphs := len(onGPU.gpu.graphs)
			require.Equal(t, want, decode(onGPU, q), name)
			require.Equal(t, graphs, len(onGPU.gpu.graphs), "what was recorded is used again")
		}
	}
}
