//go:build cgo

package cuda_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// TestMHCSpeed prints what hyper-connections of 4 streams of 768 take on the machine's GPU, a site, medians
// by events: of 32,768 tokens in training, and of one token.
//
//	NANOCHAT_TEST_GPU=1 go test ./kernels/cuda -run TestMHCSpeed -v
func TestMHCSpeed(t *testing.T) {
	if !cudatest.OnGPU(os.Getenv) {
		t.Skip("the emulated GPU has no speed; " + cudatest.GPUVariable + "=1 uses the machine's")
	}
	const n, streams, dim = 32 << 10, 4, 768
	v, image := cudatest.Open(t, os.Getenv)
	defer v.Close()
	require.NoError(t, v.Do(func(th *cuda.Thread) error {
		m, err := th.MHC(image)
		require.NoError(t, err)
		floats := func(count int) cuda.Ptr {
			p, err := th.Alloc(uint64(4 * count))
			require.NoError(t, err)
			require.NoError(t, th.Fill(p, 0x3C, uint64(4*count))) // numbers near 0.01
			return p
		}
		x, dx, coef, grad := floats(n*streams*dim), floats(n*streams*dim), floats(n*cuda.CoefFloats), floats(n*cuda.CoefFloats)
		u, z, inverse := floats(n*dim), floats(n*cuda.MHCLogits), floats(n)
		for _, sinkhorn := range []bool{false, true} {
			s := cuda.MHCShape{Streams: streams, Dim: dim, Sinkhorn: sinkhorn, Iters: 20, Dynamic: true}
			proj := s.Logits() * streams * dim
			site := cuda.MHCSite{
				Pre: floats(4), Post: floats(4), Res: floats(24), Gate: floats(3), Proj: floats(proj),
				GPre: floats(4), GPost: floats(4), GRes: floats(24), GGate: floats(3), GProj: floats(proj), Coef: floats(cuda.CoefFloats),
			}
			dynamic, err := m.Sites(s, []cuda.MHCSite{site}, n)
			require.NoError(t, err)
			s.Dynamic = false
			static, err := m.Sites(s, []cuda.MHCSite{site}, n)
			require.NoError(t, err)
			c := &cuda.MHCCoefs{X: x, Coef: coef, U: u, Z: z, Inverse: inverse}
			b := &cuda.MHCBackward{X: x, DX: dx, Grad: grad, Z: z, Inverse: inverse}
			for _, step := range []struct {
				name string
				f    func() error
			}{
				{"mixing of 32,768 tokens", func() error { return m.Coefs(dynamic, 0, c, n) }},
				{"its backward", func() error { return m.Backward(dynamic, 0, b, n) }},
				{"mixing of one token", func() error { return m.Coefs(dynamic, 0, c, 1) }},
				{"static: preparation", func() error { return m.Prepare(static) }},
				{"static: backward", func() error { return m.Finish(static, 0, grad, n) }},
			} {
				fmt.Printf("  Sinkhorn %-5t %-24s %8.1f us\n", sinkhorn, step.name, 1e6*median(t, th, 5, step.f))
			}
		}
		return nil
	}))
}
