//go:build cgo

package model

import (
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
	"github.com/architehc/nanochat/kernels/team"
)

// gpu opens the emulated device or the machine's, and gives the code of its kernels.
func gpu(t *testing.T) (*cuda.Device, cuda.Image) {
	t.Helper()
	device, image := cudatest.Open(t, os.Getenv)
	t.Cleanup(device.Close)
	return device, image
}

func TestMain(m *testing.M) {
	code := m.Run()
	cudatest.Clean()
	os.Exit(code)
}

// A step on a GPU gives the bits of one on the processor: every kind of network, both kinds
// of cache, any cut into steps.
func TestGPUGivesTheBitsOfTheProcessor(t *testing.T) {
	device, image := gpu(t)
	for name, c := range axes() {
		t.Run(name, func(t *testing.T) {
			n, cut := 20, []int{1, 3, 16}
			if c.QKNorm || name == "plain" {
				n, cut = 70, []int{1, 63, 6} // two pages
			}
			m := initModel(t, c, 1, nil)
			g, err := NewGPU(m, device, image)
			require.NoError(t, err)
			w, err := NewGPUWork(g, n)
			require.NoError(t, err)
			for _, kv := range []kernels.KVType{kernels.KVF16, kernels.KVI8} {
				if kv == kernels.KVI8 && !c.QKNorm {
					continue // as many kinds of caches as kinds of heads are enough
				}
				p, err := NewGPUPool(g, 4, kv)
				require.NoError(t, err)
				want := run(t, m, 1, kv, text(c, n), n)
				require.Equal(t, want, steps(t, m, w, p, text(c, n), cut...))
			}
		})
	}
}

// Sequences side by side, with logits of all, of the last and of no token, and hidden
// states.
func TestGPUStepOfSeveralSequences(t *testing.T) {
	device, image := gpu(t)
	for _, dynamic := range []bool{false, true} {
		c := axes()["norms"]
		c.Streams, c.MHCDynamic = 2, dynamic
		severalSequences(t, device, image, c)
	}
}

func severalSequences(t *testing.T, device *cuda.Device, image cuda.Image, c config.Model) {
	m := initModel(t, c, 3, nil)
	g, err := NewGPU(m, device, image)
	require.NoError(t, err)
	ids := text(c, 40)
	kinds := []Logits{LogitsAll, LogitsNone, LogitsLast}
	lens := []int{5, 20, 15}
	compute := func(w *Work, p *Pool, hidden bool) (logits, states [][]float32) {
		s := Step{Tokens: ids}
		for i, n := range lens {
			seq := &Seq{}
			require.NoError(t, p.Grow(seq, n+1))
			s.Seqs = append(s.Seqs, SeqStep{seq, n, kinds[i], hidden && i != 0})
		}
		require.NoError(t, m.Forward(w, p, &s))
		for i := range w.Rows() {
			logits = append(logits, append([]float32(nil), w.Logits(i)...))
		}
		for i, n := range lens {
			for j := range n {
				if s.Seqs[i].Hidden {
					states = append(states, append([]float32(nil), w.Hidden(i, j)...))
				}
			}
		}
		// A page copied in the middle of a sequence: both go on alike.
		from := s.Seqs[2].Seq
		page, err := p.Alloc()
		require.NoError(t, err)
		p.Copy(page, from.Pages[0])
		for _, seq := range []*Seq{from, {Pages: []int32{page}, Len: from.Len}} {
			require.NoError(t, m.Forward(w, p, &Step{Tokens: ids[:1], Seqs: []SeqStep{{seq, 1, LogitsLast, false}}}))
			logits = append(logits, append([]float32(nil), w.Logits(0)...))
		}
		return logits, states
	}
	tm := team.New(1, team.Options{})
	defer tm.Close()
	cpu, err := NewWork(m, tm, 64)
	require.NoError(t, err)
	onGPU, err := NewGPUWork(g, 64)
	require.NoError(t, err)
	for _, hidden := range []bool{false, true} {
		p, err := NewPool(m, 8, kernels.KVF16)
		require.NoError(t, err)
		q, err := NewGPUPool(g, 8, kernels.KVF16)
		require.NoError(t, err)
		require.Equal(t, p.Bytes(), q.Bytes())
		wantLogits, wantStates := compute(cpu, p, hidden)
		gotLogits, gotStates := compute(onGPU, q, hidden)
		require.Equal(t, wantLogits, gotLogits)
		require.Equal(t, wantStates, gotStates)
		require.ErrorContains(t, m.Forward(onGPU, p, &Step{}), "not on the same device")
		require.ErrorContains(t, m.Forward(cpu, q, &Step{}), "not on the same device")
	}
}

func TestGPUWithoutRoom(t *testing.T) {
	if cudatest.OnGPU(os.Getenv) {
		t.Skip("the machine's GPU has room")
	}
	t.Setenv("FAKE_CUDA_MEMORY", "100000")
	device, image := gpu(t)
	m := initModel(t, small(), 1, nil)
	_, err := NewGPU(m, device, image)
	var e *cuda.MemoryError
	require.ErrorAs(t, err, &e)
	require.NoError(t, device.Do(func(t_ *cuda.Thread) error {
		used, _, _ := t_.Memory()
		require.Zero(t, used, "what was uploaded before is freed")
		return nil
	}))
	runtime.KeepAlive(m)
}

func TestGPUMemoryIsFreedWithItsOwner(t *testing.T) {
	device, image := gpu(t)
	m := initModel(t, small(), 1, nil)
	used := func() (n uint64) {
		require.NoError(t, device.Do(func(t *cuda.Thread) error {
			n, _, _ = t.Memory()
			return nil
		}))
		return n
	}
	func() {
		g, err := NewGPU(m, device, image)
		require.NoError(t, err)
		w, err := NewGPUWork(g, 8)
		require.NoError(t, err)
		p, err := NewGPUPool(g, 2, kernels.KVF16)
		require.NoError(t, err)
		steps(t, m, w, p, text(small(), 8), 8)
		require.NotZero(t, used())
	}()
	for range 100 {
		if runtime.GC(); used() == 0 {
			return
		}
		runtime.Gosched()
	}
	t.Fatalf("%d bytes are still in use", used())
}
