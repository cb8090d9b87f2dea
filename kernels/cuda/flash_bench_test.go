//go:build cgo

package cuda_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// TestFlashSpeed prints the time of attention for training on the machine's GPU, medians of 9
// by events. tests/cuda/sdpa.py prints the same line of PyTorch's.
// Operations are counted as is usual: 4·dim for each pair of a query and a key that it sees in the
// forward, 10·dim in the backward, whatever is computed again. With documents it is the same
// time that counts: pairs of different documents are not computed.
//
//	NANOCHAT_TEST_GPU=1 go test ./kernels/cuda -run TestFlashSpeed -v
func TestFlashSpeed(t *testing.T) {
	if !cudatest.OnGPU(os.Getenv) {
		t.Skip("the emulated GPU has no speed; " + cudatest.GPUVariable + "=1 uses the machine's")
	}
	r := rand.New(rand.NewPCG(76, 1))
	for _, s := range []struct{ rows, seq, heads, kv, dim, length int }{
		{64, 1024, 12, 12, 64, 0}, {64, 1024, 12, 12, 64, 400}, {64, 1024, 12, 4, 64, 0}, {16, 4096, 6, 6, 128, 0}, {32, 2048, 12, 12, 32, 0},
	} {
		c := newFlashCase(r, s.rows, s.seq, s.heads, s.kv, s.dim, s.length)
		pairs := 0.0
		for i, start := range c.starts {
			pairs += float64(i%s.seq-int(start)+1) * float64(s.heads)
		}
		flash(t, func(th *cuda.Thread, k *cuda.Flash) error {
			m := c.put(t, th)
			if err := m.run(k); err != nil {
				return err
			}
			forward := median(t, th, 10, func() error { return k.Forward(m.out, m.lse, m.qkv, m.s) })
			backward := median(t, th, 10, func() error {
				return k.Backward(m.dq, m.dk, m.dv, m.delta, m.dout, m.out, m.lse, m.qkv, m.s)
			})
			what := "causal"
			if s.length > 0 {
				what = fmt.Sprintf("documents of about %d", s.length)
			}
			fmt.Printf("nanochat attention, %d rows of %d, %d heads (%d KV) of %d, %s: forward %.3f ms (%.0f TFLOPS), backward %.3f ms (%.0f TFLOPS)\n",
				s.rows, s.seq, s.heads, s.kv, s.dim, what, 1e3*forward, 4*pairs*float64(s.dim)/forward/1e12, 1e3*backward, 10*pairs*float64(s.dim)/backward/1e12)
			return nil
		})
	}
}
