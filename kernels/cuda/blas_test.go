//go:build cgo

package cuda_test

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
	"github.com/architehc/nanochat/kernels/dl"
)

// withBlas runs f with cuBLASLt on the device of the tests, and checks that nothing of it is left.
func withBlas(t *testing.T, f func(*cuda.Thread, *cuda.Blas), scene ...string) {
	t.Helper()
	var v *cuda.Device
	var dirs []string
	if cudatest.OnGPU(os.Getenv) {
		s := cuda.FromEnvironment(os.Getenv, "")
		v, _ = cudatest.Open(t, os.Getenv)
		dirs = s.LibDirs
		t.Cleanup(v.Close)
	} else {
		v, dirs = device(t, scene...), []string{libraries(t)}
		t.Cleanup(func() { v.Close(); require.Zero(t, blasLeft(t)) })
	}
	lib, err := cuda.OpenBlas(dirs...)
	require.NoError(t, err)
	require.NoError(t, v.Do(func(th *cuda.Thread) error {
		b, err := th.Blas(lib)
		require.NoError(t, err)
		again, err := th.Blas(lib)
		require.NoError(t, err)
		require.Same(t, b, again)
		f(th, b)
		return nil
	}))
}

func blasLeft(t *testing.T) int32 {
	t.Helper()
	lib, err := dl.Open(dl.Search{Files: []string{filepath.Join(libraries(t), "libcublasLt.so.13")}})
	require.NoError(t, err)
	var f struct {
		Left func() int32 `c:"fake_cublas_left"`
	}
	require.NoError(t, lib.Bind(&f))
	return f.Left()
}

// matrix is small whole numbers, so that sums are exact in any order, as values of a type.
func matrix(r *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(r.IntN(9) - 4)
	}
	return v
}

// typed is the device's memory with values of a type.
func typed(t *testing.T, th *cuda.Thread, v []float32, kind cuda.BlasType) cuda.Ptr {
	t.Helper()
	half, bytes, whole := make([]uint16, len(v)), make([]int8, len(v)), make([]int32, len(v))
	for i, x := range v {
		bytes[i], whole[i] = int8(x), int32(x)
		if kind == cuda.BlasBF16 {
			half[i] = uint16(math.Float32bits(x) >> 16)
		} else if x != 0 { // small whole numbers only
			b := math.Float32bits(x)
			half[i] = uint16(b>>16&0x8000 | (b>>23&255-112)<<10 | b>>13&1023)
		}
	}
	switch kind {
	case cuda.BlasF32:
		return put(t, th, v)
	case cuda.BlasI8:
		return put(t, th, bytes)
	case cuda.BlasI32:
		return put(t, th, whole)
	}
	return put(t, th, half)
}

// values is typed backwards.
func values(t *testing.T, th *cuda.Thread, p cuda.Ptr, n int, kind cuda.BlasType) []float32 {
	t.Helper()
	v := make([]float32, n)
	switch kind {
	case cuda.BlasF32:
		return get[float32](t, th, p, n)
	case cuda.BlasI32:
		for i, x := range get[int32](t, th, p, n) {
			v[i] = float32(x)
		}
	case cuda.BlasBF16:
		for i, x := range get[uint16](t, th, p, n) {
			v[i] = math.Float32frombits(uint32(x) << 16)
		}
	default:
		for i, x := range get[uint16](t, th, p, n) {
			if x&0x7fff != 0 {
				v[i] = math.Float32frombits(uint32(x)&0x8000<<16 | (uint32(x)>>10&31+112)<<23 | uint32(x)&1023<<13)
			}
		}
	}
	return v
}

// multiply is the product on the host; sums of small whole numbers are exact.
func multiply(p cuda.Product, d, c, a, b []float32) []float32 {
	want := append([]float32{}, d...)
	at := func(v []float32, trans bool, row, col, ld int, from int64) float32 {
		if trans {
			row, col = col, row
		}
		return v[int(from)+row*ld+col]
	}
	for n := range int64(p.Batch) {
		for i := range p.M {
			for j := range p.N {
				sum := float32(0)
				for k := range p.K {
					sum += at(a, p.TransA, i, k, p.LDA, n*p.StrideA) * at(b, p.TransB, k, j, p.LDB, n*p.StrideB)
				}
				want[int(n*p.StrideD)+i*p.LDD+j] = p.Alpha*sum + p.Beta*at(c, false, i, j, p.LDC, n*p.StrideC)
			}
		}
	}
	return want
}

func TestProductsOfEveryTypeAndForm(t *testing.T) {
	withBlas(t, func(th *cuda.Thread, b *cuda.Blas) {
		r := cudatest.Rand(os.Getenv, 3, 4)
		for _, c := range []struct {
			a, d        cuda.BlasType
			alpha, beta float32
		}{
			{cuda.BlasF32, cuda.BlasF32, 2, 3}, {cuda.BlasF16, cuda.BlasF32, 2, 3}, {cuda.BlasF16, cuda.BlasF16, 1, 1},
			{cuda.BlasBF16, cuda.BlasF32, 0.5, 0}, {cuda.BlasBF16, cuda.BlasBF16, 1, 1}, {cuda.BlasI8, cuda.BlasI32, 2, 3},
		} {
			for form := range 16 {
				p := cuda.Product{M: 5, N: 12, K: 8, TypeA: c.a, TypeD: c.d, Alpha: c.alpha, Beta: c.beta, TransA: form&1 != 0, TransB: form&2 != 0, Batch: 1 + form>>1&2}
				if c.a == cuda.BlasI8 && form&3 != 2 {
					continue
				}
				rowsA, colsA, rowsB, colsB := p.M, p.K, p.K, p.N
				if p.TransA {
					rowsA, colsA = colsA, rowsA
				}
				if p.TransB {
					rowsB, colsB = colsB, rowsB
				}
				p.LDA, p.LDB, p.LDC, p.LDD = colsA+4-colsA%4, colsB+8, p.N+4, p.N+12
				p.StrideA, p.StrideB, p.StrideC, p.StrideD = int64(rowsA*p.LDA+16), int64(rowsB*p.LDB), int64(p.M*p.LDC), int64(p.M*p.LDD+16)
				x, y := matrix(r, p.Batch*int(p.StrideA)), matrix(r, p.Batch*int(p.StrideB))
				from, d := matrix(r, p.Batch*int(p.StrideC)), matrix(r, p.Batch*int(p.StrideD))
				p.A, p.B, p.D = typed(t, th, x, c.a), typed(t, th, y, c.a), typed(t, th, d, c.d)
				if form&8 != 0 {
					p.C = typed(t, th, from, c.d)
				} else {
					from, p.LDC, p.StrideC = d, p.LDD, p.StrideD
				}
				require.NoError(t, b.MatMul(&p))
				require.Equal(t, multiply(p, d, from, x, y), values(t, th, p.D, len(d), c.d), "%s, form %d", p.String(), form)
			}
		}
	})
}

// P = 2·G·G + 3·G, as the orthogonalisation of gradients has it: C is a factor.
func TestProductThatAddsAFactor(t *testing.T) {
	withBlas(t, func(th *cuda.Thread, b *cuda.Blas) {
		g := matrix(cudatest.Rand(os.Getenv, 1, 1), 8*8)
		at := typed(t, th, g, cuda.BlasBF16)
		p := cuda.Product{M: 8, N: 8, K: 8, A: at, B: at, C: at, D: put(t, th, make([]uint16, 64)), TypeA: cuda.BlasBF16, TypeD: cuda.BlasBF16, Alpha: 0.25, Beta: 3}
		require.NoError(t, b.MatMul(&p))
		p.LDA, p.LDB, p.LDC, p.LDD, p.Batch = 8, 8, 8, 8, 1
		for i, want := range multiply(p, make([]float32, 64), g, g, g) {
			require.InDelta(t, want, values(t, th, p.D, 64, cuda.BlasBF16)[i], math.Abs(float64(want))/256) // one rounding
		}
	})
}

func TestTF32RoundsFactorsOnlyWhenAskedTo(t *testing.T) {
	withBlas(t, func(th *cuda.Thread, b *cuda.Blas) {
		x := make([]float32, 16*16)
		for i := range x {
			x[i] = 1 + 0x1p-20
		}
		p := cuda.Product{M: 16, N: 16, K: 16, A: put(t, th, x), B: put(t, th, x), D: put(t, th, x), Alpha: 1}
		require.NoError(t, b.MatMul(&p))
		require.InDelta(t, 16*(1+0x1p-19), get[float32](t, th, p.D, 1)[0], 0x1p-18)
		require.NotEqual(t, float32(16), get[float32](t, th, p.D, 1)[0])
		p.TF32 = true
		require.NoError(t, b.MatMul(&p))
		require.Equal(t, float32(16), get[float32](t, th, p.D, 1)[0])
	})
}

// 127 + 130 and then -1 are 256, if the sum in between is not rounded to bfloat16.
func TestSumsAreFloat32WhereResultsAreNot(t *testing.T) {
	withBlas(t, func(th *cuda.Thread, b *cuda.Blas) {
		const k = 64
		x, y := make([]float32, 16*k), make([]float32, k*16)
		for i := range 16 {
			x[i*k], x[i*k+1], x[i*k+k-1] = 127, 130, -1
		}
		for i := range y {
			y[i] = 1
		}
		p := cuda.Product{M: 16, N: 16, K: k, A: typed(t, th, x, cuda.BlasBF16), B: typed(t, th, y, cuda.BlasBF16), D: put(t, th, make([]uint16, 256)), TypeA: cuda.BlasBF16, TypeD: cuda.BlasBF16, Alpha: 1}
		require.NoError(t, b.MatMul(&p))
		require.Equal(t, float32(256), values(t, th, p.D, 1, cuda.BlasBF16)[0])
	})
}

func TestProductsInAGraph(t *testing.T) {
	withBlas(t, func(th *cuda.Thread, b *cuda.Blas) {
		r := cudatest.Rand(os.Getenv, 5, 5)
		x, y := matrix(r, 64), matrix(r, 64)
		d := put(t, th, make([]float32, 64))
		p := cuda.Product{M: 8, N: 8, K: 8, A: put(t, th, x), B: put(t, th, y), D: d, Alpha: 1, Beta: 1}
		require.NoError(t, b.MatMul(&p)) // the plan
		g, err := th.Graph(func() error { return b.MatMul(&p) })
		require.NoError(t, err)
		require.NoError(t, th.Fill(d, 0, 256))
		for range 3 {
			require.NoError(t, th.Replay(g))
		}
		p.LDA, p.LDB, p.LDC, p.LDD, p.Batch, p.Alpha, p.Beta = 8, 8, 8, 8, 1, 3, 0
		require.Equal(t, multiply(p, make([]float32, 64), make([]float32, 64), x, y), get[float32](t, th, d, 64))
		th.Drop(g)
	})
}

func TestProductsThatCannotBe(t *testing.T) {
	withBlas(t, func(th *cuda.Thread, b *cuda.Blas) {
		p := put(t, th, make([]float32, 4096))
		for _, c := range []struct {
			text string
			p    cuda.Product
		}{
			{"no such shape", cuda.Product{M: 1, N: 1}},
			{"no such shape", cuda.Product{M: -1, N: 1, K: 1}},
			{"with these types", cuda.Product{M: 4, N: 4, K: 4, TypeA: cuda.BlasF32, TypeD: cuda.BlasF16}},
			{"with these types", cuda.Product{M: 4, N: 4, K: 4, TypeA: cuda.BlasI32, TypeD: cuda.BlasI32}},
			{"with these types", cuda.Product{M: 4, N: 4, K: 4, TypeA: cuda.BlasI8, TypeD: cuda.BlasI32, TransB: true, Alpha: 0.5}},
			{"products of int8", cuda.Product{M: 4, N: 4, K: 4, TypeA: cuda.BlasI8, TypeD: cuda.BlasI32, Alpha: 1}},
			{"rows of B have 5 elements but are 4 apart", cuda.Product{M: 4, N: 5, K: 4, LDB: 4}},
			{"A is at 0x0", cuda.Product{M: 4, N: 4, K: 4, B: p, D: p + 1024}},
			{"the batch lie 3 elements apart", cuda.Product{M: 4, N: 4, K: 4, Batch: 2, StrideD: 3}},
		} {
			if c.p.B == 0 {
				c.p.A, c.p.B, c.p.D = p, p+4096, p+8192
			}
			require.ErrorContains(t, b.MatMul(&c.p), c.text)
		}
		require.NoError(t, b.MatMul(&cuda.Product{N: 4, K: 4}), "nothing to do")
		if !cudatest.OnGPU(os.Getenv) {
			over := cuda.Product{M: 8, N: 8, K: 8, A: p, B: p + 1024, D: p + 128, Alpha: 1}
			require.ErrorContains(t, b.MatMul(&over), "CUBLAS_STATUS_INVALID_VALUE", "the result lies over a factor")
			outside := cuda.Product{M: 64, N: 65, K: 8, A: p, B: p + 4096, D: p + 8192, Alpha: 1}
			require.ErrorContains(t, b.MatMul(&outside), "CUBLAS_STATUS_EXECUTION_FAILED")
		}
	})
}

func TestNextAlgorithmWhenTheFirstIsRefused(t *testing.T) {
	if cudatest.OnGPU(os.Getenv) {
		t.Skip("the emulated library refuses on demand")
	}
	withBlas(t, func(th *cuda.Thread, b *cuda.Blas) {
		p := cuda.Product{M: 4, N: 4, K: 4, A: put(t, th, []float32{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}), B: put(t, th, matrix(cudatest.Rand(os.Getenv, 1, 2), 16)), D: put(t, th, make([]float32, 16)), Alpha: 1}
		t.Setenv("FAKE_CUBLAS_REFUSE", "1")
		require.NoError(t, b.MatMul(&p))
		require.Equal(t, get[float32](t, th, p.B, 16), get[float32](t, th, p.D, 16))
		t.Setenv("FAKE_CUBLAS_REFUSE", "2")
		var e *cuda.Error
		p.M = 3 // another plan
		require.ErrorAs(t, b.MatMul(&p), &e)
		require.Equal(t, "CUBLAS_STATUS_NOT_SUPPORTED", e.Name)
		require.Contains(t, e.Hint, "newer cuBLAS")
	})
}

func TestBlasThatFails(t *testing.T) {
	if cudatest.OnGPU(os.Getenv) {
		t.Skip("the emulated library fails on demand")
	}
	lib, err := cuda.OpenBlas(libraries(t))
	require.NoError(t, err)
	require.Equal(t, "13.1.0", lib.Version())
	require.Equal(t, filepath.Join(libraries(t), "libcublasLt.so.13"), lib.Path())
	for _, call := range []string{
		"cublasLtCreate", "cublasLtMatmulDescCreate", "cublasLtMatmulDescSetAttribute", "cublasLtMatrixLayoutCreate", "cublasLtMatrixLayoutSetAttribute",
		"cublasLtMatmulPreferenceCreate", "cublasLtMatmulPreferenceSetAttribute", "cublasLtMatmulAlgoGetHeuristic", "cublasLtMatmul",
	} {
		v := device(t)
		t.Setenv("FAKE_CUBLAS_FAIL", call+":3")
		err := v.Do(func(th *cuda.Thread) error {
			b, err := th.Blas(lib)
			if err != nil {
				used, _, _ := th.Memory()
				require.Zero(t, used)
				return err
			}
			p := put(t, th, make([]float32, 64))
			return b.MatMul(&cuda.Product{M: 2, N: 2, K: 2, A: p, B: p, D: p + 128, Batch: 2, StrideD: 4})
		})
		var e *cuda.Error
		require.ErrorAs(t, err, &e)
		require.Contains(t, e.Call, call)
		require.Equal(t, "CUBLAS_STATUS_ALLOC_FAILED", e.Name)
		require.Contains(t, e.Hint, "no memory")
		v.Close()
		require.Zero(t, blasLeft(t), call)
	}
}

func TestMachineWithoutBlas(t *testing.T) {
	_, err := cuda.OpenBlas(t.TempDir())
	if err == nil {
		t.Skip("this machine has cuBLASLt")
	}
	var e *dl.Error
	require.ErrorAs(t, err, &e)
	require.ErrorContains(t, err, "cuBLASLt was not found")
	require.Contains(t, e.Hint, "nvidia-cublas")
}
