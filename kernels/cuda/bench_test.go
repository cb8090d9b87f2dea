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

// speed measures products on the machine's GPU.
type speed struct {
	t         *testing.T
	th        *cuda.Thread
	o         *cuda.Ops
	r         *rand.Rand
	blas      *cuda.Blas // nil: cuBLASLt is not here
	bandwidth float64    // of a copy, bytes read and written a second
	peak      float64    // int8 operations a second of cuBLASLt, the best of two shapes
}

// TestSpeed prints what the kernels reach on the machine's GPU, medians of nine rounds by events, beside what
// they are compared with: the bandwidth of a copy, and products of cuBLASLt if it is there. A line
// that has a target names it.
//
//	NANOCHAT_TEST_GPU=1 go test ./kernels/cuda -run TestSpeed -v
func TestSpeed(t *testing.T) {
	if !cudatest.OnGPU(os.Getenv) {
		t.Skip("the emulated GPU has no speed; " + cudatest.GPUVariable + "=1 uses the machine's")
	}
	compute(t, func(th *cuda.Thread, o *cuda.Ops) {
		s := &speed{t: t, th: th, o: o, r: rand.New(rand.NewPCG(1, 1))}
		for _, n := range o.Notices() {
			fmt.Println("notice:", n)
		}
		s.copies()
		lib, err := cuda.OpenBlas(cuda.LibDirs(os.Getenv)...)
		if err == nil {
			s.blas, err = th.Blas(lib)
		}
		if err != nil {
			fmt.Println("no comparison with cuBLASLt:", err)
		}
		s.peaks()
		for _, c := range [][2]int{{4096, 4096}, {2560, 6912}, {6912, 2560}, {768, 768}, {2304, 768}, {16384, 4096}} {
			s.vector(c[0], c[1])
		}
		for _, c := range [][3]int{
			{4096, 4096, 4096}, {32768, 2304, 768}, {65536, 4096, 768}, {65536, 768, 2048}, {32768, 768, 3072}, {64, 4096, 4096}, {256, 4096, 4096}, {512, 2304, 768},
		} {
			s.matrix(c[0], c[1], c[2])
		}
	})
}

func (s *speed) alloc(bytes int) cuda.Ptr {
	p, err := s.th.Alloc(uint64(bytes))
	require.NoError(s.t, err)
	return p
}

func (s *speed) free(list ...cuda.Ptr) {
	for _, p := range list {
		require.NoError(s.t, s.th.Free(p))
	}
}

func (s *speed) copies() {
	const copied = 1 << 30
	from, to := s.alloc(copied), s.alloc(copied)
	defer s.free(from, to)
	s.bandwidth = 2 * copied / median(s.t, s.th, 10, func() error { return s.th.Copy(to, from, copied) })
	v := s.th.Device()
	fmt.Printf("%s: copy on the device %.0f GB/s (read and written), L2 %d MiB\n", v.Name, s.bandwidth/1e9, v.L2Bytes>>20)
}

// peaks measures int8 products of cuBLASLt.
func (s *speed) peaks() {
	for _, n := range []int{4096, 8192} {
		if s.blas == nil {
			return
		}
		a, b, d := s.alloc(n*n), s.alloc(n*n), s.alloc(4*n*n)
		noise := make([]int8, n*n)
		for i := range noise {
			noise[i] = int8(s.r.IntN(255) - 127)
		}
		for _, p := range []cuda.Ptr{a, b} {
			require.NoError(s.t, cuda.Upload(s.th, p, noise))
		}
		p := &cuda.Product{M: n, N: n, K: n, A: a, B: b, D: d, TypeA: cuda.BlasI8, TypeD: cuda.BlasI32, TransB: true, Alpha: 1}
		seconds := median(s.t, s.th, 10, func() error { return s.blas.MatMul(p) })
		rate := 2 * float64(n) * float64(n) * float64(n) / seconds
		s.peak = max(s.peak, rate)
		fmt.Printf("cuBLASLt int8 %d^3: %.1f us, %.0f TOPS\n", n, 1e6*seconds, rate/1e12)
		s.free(a, b, d)
	}
}

// vector prints products with one vector: with weights from memory, of which there are more than the L2
// holds, and with those of the product before, which it does. They are launched as decoding does.
func (s *speed) vector(rows, cols int) {
	w := random(s.r, rows, cols, 128)
	bytes := len(w.Tiles) + 2*len(w.Scales)
	copies := max(4*s.th.Device().L2Bytes/bytes, 2)
	list := make([]cuda.Ternary, copies)
	for i := range list {
		var err error
		list[i], err = s.th.UploadTernary(w)
		require.NoError(s.t, err)
	}
	a, err := s.th.NewAct(1, cols, 128)
	require.NoError(s.t, err)
	x, dst := put(s.t, s.th, vector(s.r, cols)), s.alloc(4*rows)
	require.NoError(s.t, s.o.Quantize(&a, x, 1))
	at := func(i int) *cuda.Ternary { return &list[i%len(list)] }
	cold := s.graph(copies, func(i int) error { return s.o.Ternary(dst, rows, at(i), &a, 1) })
	warm := s.graph(copies, func(int) error { return s.o.Ternary(dst, rows, at(0), &a, 1) })
	for i := range list {
		s.free(list[i].Tiles, list[i].Scales)
	}
	s.free(a.Q, a.Scale, a.Sums, x, dst)
	target := ""
	if rows*cols > 1<<24-1 {
		target = ", target 0.70"
	}
	fmt.Printf("ternary %5d x %5d, one vector: from memory %7.2f us, %5.0f GB/s (%.2f of the copy%s); from L2 %7.2f us, %5.0f GB/s (%.2f)",
		rows, cols, 1e6*cold, float64(bytes)/cold/1e9, float64(bytes)/cold/s.bandwidth, target, 1e6*warm, float64(bytes)/warm/1e9, float64(bytes)/warm/s.bandwidth)
	defer fmt.Println()
	if s.blas == nil {
		return
	}
	size := 2 * rows * cols
	copies = max(4*s.th.Device().L2Bytes/size, 2)
	wide, in, out := s.alloc(size*copies), s.alloc(2*cols), s.alloc(2*rows)
	defer s.free(wide, in, out)
	require.NoError(s.t, s.th.Fill(wide, 0x3c, uint64(size*copies)))
	require.NoError(s.t, s.th.Fill(in, 0x3c, uint64(2*cols)))
	dense := s.graph(copies, func(i int) error {
		return s.blas.MatMul(&cuda.Product{M: 1, N: rows, K: cols, A: in, B: wide + cuda.Ptr(i%copies*size), D: out, TypeA: cuda.BlasBF16, TypeD: cuda.BlasBF16, TransB: true, Alpha: 1})
	})
	fmt.Printf("; bf16 by cuBLASLt %7.2f us (%.1f times as long)", 1e6*dense, dense/cold)
}

// graph is the seconds of one of n calls of f that a graph holds.
func (s *speed) graph(n int, f func(int) error) float64 {
	require.NoError(s.t, f(0)) // plans are made outside of the graph
	g, err := s.th.Graph(func() error {
		return s.th.Early(func() error {
			for i := range n {
				if err := f(i); err != nil {
					return err
				}
			}
			return nil
		})
	})
	require.NoError(s.t, err)
	defer s.th.Drop(g)
	return median(s.t, s.th, 5, func() error { return s.th.Replay(g) }) / float64(n)
}

// matrix prints a product with many vectors, by the kernel for the device and by the plain one.
func (s *speed) matrix(tokens, rows, cols int) {
	w, err := s.th.UploadTernary(random(s.r, rows, cols, 128))
	require.NoError(s.t, err)
	a, err := s.th.NewAct(tokens, cols, 128)
	require.NoError(s.t, err)
	x, dst := s.alloc(4*tokens*cols), s.alloc(4*tokens*rows)
	block := vector(s.r, min(tokens, 256)*cols)
	for i := 0; i < tokens; i += 256 {
		require.NoError(s.t, cuda.Upload(s.th, x+cuda.Ptr(4*i*cols), block[:min(256, tokens-i)*cols]))
	}
	require.NoError(s.t, s.o.Quantize(&a, x, tokens))
	ops := 2 * float64(rows) * float64(cols) * float64(tokens)
	seconds := median(s.t, s.th, 10, func() error { return s.o.Ternary(dst, rows, &w, &a, tokens) })
	plain := median(s.t, s.th, 3, func() error { return s.o.PlainGEMM(dst, rows, &w, &a, tokens) })
	fmt.Printf("ternary %5d x %5d, %5d tokens: %9.2f us, %6.0f TOPS", rows, cols, tokens, 1e6*seconds, ops/seconds/1e12)
	if s.peak > 0 {
		fmt.Printf(" (%.2f of int8's peak, target 0.60)", ops/seconds/s.peak)
	}
	fmt.Printf(", results written at %.0f GB/s (%.2f of the copy); with mma.sync %.2f us, %.0f TOPS\n",
		4*float64(rows)*float64(tokens)/seconds/1e9, 4*float64(rows)*float64(tokens)/seconds/s.bandwidth, 1e6*plain, ops/plain/1e12)
	s.free(w.Tiles, w.Scales, a.Q, a.Scale, a.Sums, x, dst)
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
