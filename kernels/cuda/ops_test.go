//go:build cgo

package cuda_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// random is a matrix of random trits and scales, with its padding as it has to be.
func random(r *rand.Rand, rows, cols, group int) *kernels.Ternary {
	w := &kernels.Ternary{Rows: rows, Cols: cols, Group: group, Gain: 1 + r.Float32()}
	w.Tiles = kernels.AlignedBytes(w.Blocks() * w.ColTiles() * 64)
	w.Scales = make([]uint16, w.Blocks()*w.Groups()*kernels.TileSide)
	for i := range w.Scales {
		w.Scales[i] = kernels.F32ToF16(r.Float32() + 0.01)
	}
	for b := range w.Blocks() {
		for k := range w.ColTiles() {
			var trits [kernels.TileSide * kernels.TileSide]int8
			for i := range trits {
				if b*kernels.TileSide+i/kernels.TileSide < rows && k*kernels.TileSide+i%kernels.TileSide < cols {
					trits[i] = int8(r.IntN(3) - 1)
				}
			}
			kernels.PackTile((*[64]byte)(w.Tiles[(b*w.ColTiles()+k)*64:]), &trits)
		}
	}
	return w
}

func vector(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// onDevice runs f with the kernels that load gives on a device of its own, to which change, if it is not nil,
// is done first.
func onDevice[K any](t *testing.T, change func(*cuda.Device), load func(*cuda.Thread, cuda.Image) (K, error), f func(*cuda.Thread, K)) {
	t.Helper()
	v, image := cudatest.Open(t, os.Getenv)
	if change != nil {
		change(v)
	}
	err := v.Do(func(th *cuda.Thread) error {
		k, err := load(th, image)
		require.NoError(t, err)
		f(th, k)
		return nil
	})
	v.Close()
	require.NoError(t, err)
	if !cudatest.OnGPU(os.Getenv) {
		require.Zero(t, left(t), "areas and contexts are left")
	}
}

// compute runs f with the kernels on a device of its own.
func compute(t *testing.T, f func(*cuda.Thread, *cuda.Ops)) {
	t.Helper()
	onDevice(t, nil, (*cuda.Thread).Ops, f)
}

// computeWith is compute with further kernels, those that load gives.
func computeWith[K any](t *testing.T, load func(*cuda.Thread, cuda.Image) (K, error), f func(*cuda.Thread, *cuda.Ops, K)) {
	t.Helper()
	var o *cuda.Ops
	onDevice(t, nil, func(th *cuda.Thread, image cuda.Image) (k K, err error) {
		if o, err = th.Ops(image); err != nil {
			return k, err
		}
		return load(th, image)
	}, func(th *cuda.Thread, k K) { f(th, o, k) })
}

// put allocates and uploads.
func put[T cuda.Element](t *testing.T, th *cuda.Thread, x []T) cuda.Ptr {
	t.Helper()
	var zero T
	p, err := th.Alloc(uint64(len(x)) * uint64(sizeOf(zero)))
	require.NoError(t, err)
	require.NoError(t, cuda.Upload(th, p, x))
	return p
}

func get[T cuda.Element](t *testing.T, th *cuda.Thread, p cuda.Ptr, n int) []T {
	t.Helper()
	x := make([]T, n)
	require.NoError(t, cuda.Download(th, x, p))
	return x
}

func sizeOf(x any) int {
	switch x.(type) {
	case uint8, int8:
		return 1
	case uint16:
		return 2
	}
	return 4
}

func bits(x []float32) []uint32 {
	b := make([]uint32, len(x))
	for i, v := range x {
		b[i] = math.Float32bits(v)
	}
	return b
}

func TestQuantizeGivesTheBitsOfTheReference(t *testing.T) {
	set, err := kernels.ByName("go")
	require.NoError(t, err)
	r := cudatest.Rand(os.Getenv, 1, 2)
	compute(t, func(th *cuda.Thread, o *cuda.Ops) {
		for _, c := range []struct{ tokens, cols, group int }{{1, 768, 128}, {3, 80, 80}, {2, 2048, 64}, {1, 16, 16}, {2, 1000, 1000}, {1, 304, 48}} {
			for _, normalize := range []bool{false, true} {
				x, weight := vector(r, c.tokens*c.cols), vector(r, c.cols)
				if c.tokens > 1 { // extremes: a vector of zeros, and one with an infinity
					clear(x[:c.cols])
					if !normalize {
						x[c.cols+3] = float32(math.Inf(-1))
					}
				}
				want := kernels.NewAct(c.tokens, c.cols, c.group)
				norm := make([]float32, len(x))
				groups := want.Groups()
				for i := range c.tokens {
					row, q, sums := x[i*c.cols:(i+1)*c.cols], want.Q[i*want.Stride:(i+1)*want.Stride], want.Sums[i*groups:(i+1)*groups]
					if normalize {
						want.Scale[i] = set.RMSNormQuantize(q, sums, norm[i*c.cols:(i+1)*c.cols], row, weight, 1e-6, c.group)
					} else {
						want.Scale[i] = set.Quantize(q, sums, row, c.group)
					}
				}
				a, err := th.NewAct(c.tokens, c.cols, c.group)
				require.NoError(t, err)
				dx, dw, dn := put(t, th, x), put(t, th, weight), put(t, th, make([]float32, len(x)))
				if normalize {
					require.NoError(t, o.RMSNormQuantize(&a, dn, dx, dw, 1e-6, c.tokens))
					require.Equal(t, bits(norm), bits(get[float32](t, th, dn, len(x))), "%+v", c)
				} else {
					require.NoError(t, o.Quantize(&a, dx, c.tokens))
				}
				require.Equal(t, want.Q, get[int8](t, th, a.Q, len(want.Q)), "%+v", c)
				require.Equal(t, want.Sums, get[int32](t, th, a.Sums, len(want.Sums)), "%+v", c)
				require.Equal(t, bits(want.Scale), bits(get[float32](t, th, a.Scale, c.tokens)), "%+v", c)
			}
		}
	})
}

func TestTernaryGivesTheBitsOfTheReference(t *testing.T) {
	set, err := kernels.ByName("go")
	require.NoError(t, err)
	r := cudatest.Rand(os.Getenv, 3, 4)
	for _, c := range []struct{ tokens, rows, cols, group int }{
		{1, 768, 768, 128}, {2, 50, 304, 16}, {1, 16, 16, 16}, {3, 40, 1000, 1000}, {1, 100, 2560, 2560}, {5, 33, 528, 48},
		{16, 64, 256, 128}, {66, 40, 400, 128}, {17, 20, 80, 80}, {64, 70, 304, 64}, {20, 48, 528, 48}, {20, 40, 208, 32}, {18, 33, 400, 96},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			w := random(r, c.rows, c.cols, c.group)
			x := kernels.NewAct(c.tokens, c.cols, c.group)
			for i := range c.tokens {
				x.Set(set, i, vector(r, c.cols))
			}
			ldd := c.rows + 3
			want := make([]float32, c.tokens*ldd)
			for i := range want {
				want[i] = -7
			}
			set.TernaryGEMM(want, ldd, w, x, 0, c.rows, make([]byte, kernels.GEMMScratch(c.tokens, c.cols)))
			compute(t, func(th *cuda.Thread, o *cuda.Ops) {
				dw, err := th.UploadTernary(w)
				require.NoError(t, err)
				a := cuda.Act{Tokens: c.tokens, Cols: c.cols, Stride: x.Stride, Group: c.group, Q: put(t, th, x.Q), Scale: put(t, th, x.Scale), Sums: put(t, th, x.Sums)}
				start := make([]float32, len(want))
				for i := range start {
					start[i] = -7
				}
				dst := put(t, th, start)
				require.NoError(t, o.Ternary(dst, ldd, &dw, &a, c.tokens))
				require.Equal(t, bits(want), bits(get[float32](t, th, dst, len(want))))
			})
		})
	}
}

func TestGraphComputesWhatTheStreamDoes(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 5, 6)
	w, x := random(r, 64, 256, 128), vector(r, 256)
	compute(t, func(th *cuda.Thread, o *cuda.Ops) {
		dw, err := th.UploadTernary(w)
		require.NoError(t, err)
		a, err := th.NewAct(1, 256, 128)
		require.NoError(t, err)
		dx, dst := put(t, th, x), put(t, th, make([]float32, 64))
		step := func() error {
			if err := o.Quantize(&a, dx, 1); err != nil {
				return err
			}
			return o.Ternary(dst, 64, &dw, &a, 1)
		}
		require.NoError(t, step())
		want := get[float32](t, th, dst, 64)
		g, err := th.Graph(step)
		require.NoError(t, err)
		require.NoError(t, th.Fill(dst, 0, 256))
		require.Equal(t, make([]float32, 64), get[float32](t, th, dst, 64), "recording computes nothing")
		require.NoError(t, th.Replay(g))
		require.Equal(t, want, get[float32](t, th, dst, 64))
		th.Drop(g)
		_, err = th.Graph(func() error { return os.ErrInvalid })
		require.ErrorIs(t, err, os.ErrInvalid)
	})
}

func TestShapesThatDoNotFit(t *testing.T) {
	compute(t, func(th *cuda.Thread, o *cuda.Ops) {
		a, err := th.NewAct(2, 256, 128)
		require.NoError(t, err)
		w := cuda.Ternary{Rows: 16, Cols: 256, Group: 128}
		for _, err := range []error{
			o.Quantize(&a, 0, 3), o.Quantize(&a, 0, 0), o.Ternary(0, 15, &w, &a, 1), o.Ternary(0, 16, &w, &a, 3),
			o.Ternary(0, 16, &cuda.Ternary{Rows: 16, Cols: 128, Group: 128}, &a, 1), o.Ternary(0, 16, &cuda.Ternary{Rows: 16, Cols: 256, Group: 64}, &a, 1),
			o.Quantize(&cuda.Act{Tokens: 1, Cols: 1 << 17, Stride: 1 << 17, Group: 128}, 0, 1),
			o.Ternary(0, 16, &cuda.Ternary{Rows: 16, Cols: 1 << 16, Group: 16}, &cuda.Act{Tokens: 1, Cols: 1 << 16, Stride: 1 << 16, Group: 16}, 1),
		} {
			require.ErrorContains(t, err, "cuda: ")
		}
	})
}
