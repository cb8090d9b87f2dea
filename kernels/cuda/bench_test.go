//go:build cgo

package cuda_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// TestSpeed prints what the kernels reach on the machine's GPU, medians of 9 by events: a copy
// on the device, which is the bandwidth to compare with, products with one vector in bytes
// of weights a second, and products with many in operations a second.
//
//	NANOCHAT_TEST_GPU=1 go test ./kernels/cuda -run TestSpeed -v
func TestSpeed(t *testing.T) {
	if !cudatest.OnGPU(os.Getenv) {
		t.Skip("the emulated GPU has no speed; " + cudatest.GPUVariable + "=1 uses the machine's")
	}
	r := rand.New(rand.NewPCG(1, 1))
	compute(t, func(th *cuda.Thread, o *cuda.Ops) {
		const copied = 1 << 30
		from, err := th.Alloc(copied)
		require.NoError(t, err)
		to, err := th.Alloc(copied)
		require.NoError(t, err)
		seconds := median(t, th, 10, func() error { return th.Copy(to, from, copied) })
		bandwidth := 2 * copied / seconds
		fmt.Printf("%s: copy on the device %.0f GB/s (read and written)\n", th.Device().Name, bandwidth/1e9)
		for _, c := range []struct{ tokens, rows, cols int }{
			{1, 768, 768}, {1, 4096, 4096}, {1, 6912, 2560}, {1, 16384, 4096}, {64, 4096, 4096}, {4096, 4096, 4096}, {4096, 2048, 768},
		} {
			w, err := th.UploadTernary(random(r, c.rows, c.cols, 128))
			require.NoError(t, err)
			a, err := th.NewAct(c.tokens, c.cols, 128)
			require.NoError(t, err)
			x := put(t, th, vector(r, c.tokens*c.cols))
			require.NoError(t, o.Quantize(&a, x, c.tokens))
			dst, err := th.Alloc(uint64(4 * c.tokens * c.rows))
			require.NoError(t, err)
			seconds := median(t, th, 20, func() error { return o.Ternary(dst, c.rows, &w, &a, c.tokens) })
			bytes := float64(c.rows*c.cols)/4 + float64(2*c.rows*(c.cols+127)/128)
			fmt.Printf("ternary %5d x %5d, %4d tokens: %9.2f us, weights %.0f GB/s (%.2f of the copy), %.1f TOPS\n", c.rows, c.cols, c.tokens,
				1e6*seconds, bytes/seconds/1e9, bytes/seconds/bandwidth, 2*float64(c.rows)*float64(c.cols)*float64(c.tokens)/seconds/1e12)
		}
	})
}

// median is that of the seconds of one of n calls in a row, of nine rounds.
func median(t *testing.T, th *cuda.Thread, n int, f func() error) float64 {
	var rounds []float64
	for range 10 {
		from, err := th.Record()
		require.NoError(t, err)
		for range n {
			require.NoError(t, f())
		}
		to, err := th.Record()
		require.NoError(t, err)
		s, err := th.Between(from, to)
		require.NoError(t, err)
		rounds = append(rounds, s/float64(n))
	}
	rounds = rounds[1:] // the first warms up
	slices.Sort(rounds)
	return rounds[len(rounds)/2]
}
