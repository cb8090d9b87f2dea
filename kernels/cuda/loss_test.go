//go:build cgo

package cuda_test

import (
	"fmt"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// losses runs f with the kernels on a device whose blocks have at most that much shared memory.
func losses(t *testing.T, shared int, f func(*cuda.Thread, *cuda.Loss)) {
	t.Helper()
	onDevice(t, func(v *cuda.Device) { v.SharedBytes = min(shared, v.SharedBytes) }, (*cuda.Thread).Loss, f)
}

// objective is what core/model makes of a row's results.
func objective(set *kernels.Set, o *kernels.Loss, z []float32, nll, lse, entropy float32) float64 {
	y := slices.Clone(z)
	if o.Cap > 0 {
		set.Softcap(y, o.Cap, z)
	}
	mean := 0.0
	for _, v := range y {
		mean += float64(v)
	}
	mean /= float64(len(y))
	s := float64(o.Smoothing)
	return (1-s)*float64(nll) + s*(float64(lse)-mean) + float64(o.Z)*float64(lse)*float64(lse) - float64(o.Entropy)*float64(entropy)
}

func TestCrossEntropy(t *testing.T) {
	set := reference(t)
	all := kernels.Loss{Scale: 0.25, Cap: 15, Z: 1e-2, Entropy: 0.1, Smoothing: 0.1}
	for k, c := range []struct {
		tokens, vocab, stride int
		o                     kernels.Loss
		scaled                bool
	}{
		{5, 37, 0, kernels.Loss{Scale: 1}, false}, {5, 37, 40, all, true}, {4, 258, 258, all, false}, {3, 3000, 3008, kernels.Loss{Scale: 0.5, Z: 1e-3}, true},
		{2, 9001, 9008, all, true}, {2, 24600, 24608, kernels.Loss{Scale: 1, Cap: 50, Smoothing: 0.2}, false}, {2, 1, 0, kernels.Loss{Scale: 1}, false},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			r := cudatest.Rand(os.Getenv, 61, uint64(k))
			stride := max(c.stride, c.vocab)
			z, scale, targets := vector(r, c.tokens*stride), vector(r, c.tokens), make([]int32, c.tokens)
			for i := range targets {
				targets[i] = int32(r.IntN(c.vocab))
				scale[i] = float32(math.Exp2(float64(i - 2)))
				for j := range stride {
					z[i*stride+j] *= 4
					if j >= c.vocab {
						z[i*stride+j] = float32(math.NaN())
					}
				}
			}
			targets[0] = int32(c.vocab - 1)
			targets[1] = -1
			// 15 KiB, 8 of them kept free, hold 1,792 logits: those behind them are read again.
			losses(t, 15<<10, func(th *cuda.Thread, l *cuda.Loss) {
				dz, results := areaOf[uint16](t, th, c.tokens*stride), areaOf[float32](t, th, 4*c.tokens)
				a := &cuda.CrossEntropy{
					Logits: put(t, th, z), Targets: put(t, th, targets), Options: put(t, th, []float32{c.o.Scale, c.o.Z, c.o.Entropy, c.o.Smoothing, c.o.Cap}),
					DZ: dz.at, Results: results.at, Vocab: c.vocab, Stride: c.stride,
				}
				if c.scaled {
					a.Scale = put(t, th, scale)
				}
				require.NoError(t, l.CrossEntropy(a, c.tokens))
				got, res := dz.read(t), results.read(t)
				sums := [5]float64{}
				for i, target := range targets {
					row, o := slices.Clone(z[i*stride:][:c.vocab]), c.o
					if c.scaled {
						set.Scale(row, scale[i], row)
						o.Scale *= gainOf(scale[i])
					}
					want := make([]float32, stride)
					nll, lse, _ := set.CrossEntropy(want[:c.vocab], row, target, &o)
					entropy := exactEntropy(row, o.Cap)
					if target < 0 {
						require.Equal(t, make([]float32, 4), res[4*i:][:4])
						require.Equal(t, make([]uint16, stride), got[i*stride:][:stride])
						continue
					}
					obj := objective(set, &o, row, nll, lse, entropy)
					for j, w := range []float64{float64(nll), float64(lse), float64(entropy), obj} {
						require.InDelta(t, w, res[4*i+j], 2e-6*(math.Abs(float64(lse))+math.Abs(w)+1), "result %d of token %d", j, i)
					}
					nearBF16(t, want, got[i*stride:][:stride], 1e-5, "token %d", i)
					for j, w := range []float64{1, float64(res[4*i]), float64(res[4*i+1]) * float64(res[4*i+1]), float64(res[4*i+2]), float64(res[4*i+3])} {
						sums[j] += w
					}
				}

				a.DZ = 0
				require.NoError(t, th.Fill(results.at, 0xFF, uint64(16*c.tokens)))
				require.NoError(t, l.CrossEntropy(a, c.tokens))
				require.Equal(t, bits(res), bits(results.read(t)))

				dst := filled(t, th, []float64{1, 2, 3, 4, 5, 6})
				require.NoError(t, l.Sum(dst.at, results.at, a.Targets, c.tokens))
				for j, v := range dst.read(t) {
					want := float64(j + 1)
					if j < 5 {
						want += sums[j]
					}
					require.InEpsilon(t, want, v, 1e-14, "sum %d", j)
				}
			})
		})
	}
}

// exactEntropy is the entropy of the softmax of capped logits. The processor's, whose sums are float32, is low by
// 4e-5 for 24,600 logits.
func exactEntropy(z []float32, limit float32) float32 {
	y, top := make([]float64, len(z)), math.Inf(-1)
	for i, v := range z {
		y[i] = float64(v)
		if limit != 0 {
			y[i] = float64(limit) * math.Tanh(y[i]/float64(limit))
		}
		top = max(top, y[i])
	}
	sum, mean := 0.0, 0.0
	for _, v := range y {
		e := math.Exp(v - top)
		sum += e
		mean += e * v
	}
	return float32(top + math.Log(sum) - mean/sum)
}

// What is not finite makes results NaN as kernels.Loss says.
func TestCrossEntropyOfWhatIsNotFinite(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 63, 64)
	inf := float32(math.Inf(1))
	for _, special := range []float32{float32(math.NaN()), inf, -inf} {
		for _, cap := range []float32{0, 20} {
			z := vector(r, 300)
			z[77] = special
			o := &kernels.Loss{Scale: 1, Cap: cap}
			want := make([]float32, len(z))
			nll, lse, entropy := set.CrossEntropy(want, z, 5, o)
			losses(t, 1<<20, func(th *cuda.Thread, l *cuda.Loss) {
				dz, results := areaOf[uint16](t, th, len(z)), areaOf[float32](t, th, 4)
				require.NoError(t, l.CrossEntropy(&cuda.CrossEntropy{
					Logits: put(t, th, z), Targets: put(t, th, []int32{5}), Options: put(t, th, []float32{1, 0, 0, 0, cap}), DZ: dz.at, Results: results.at, Vocab: len(z),
				}, 1))
				res, got := results.read(t), dz.read(t)
				for j, w := range []float32{nll, lse, entropy, nll} {
					require.Equal(t, math.IsNaN(float64(w)), math.IsNaN(float64(res[j])), "result %d with %v, cap %v", j, special, cap)
				}
				for j, w := range want {
					require.Equal(t, math.IsNaN(float64(w)), math.IsNaN(float64(kernels.BF16ToF32(got[j]))), "gradient %d with %v, cap %v", j, special, cap)
				}
			})
		}
	}
}

func TestSumOfLosses(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 65, 66)
	const n = 5000
	results, targets := vector(r, 4*n), make([]int32, n)
	want := [6]float64{}
	for i := range targets {
		targets[i] = int32(r.IntN(4) - 1)
		if v := results[4*i:]; targets[i] >= 0 {
			for j, w := range []float64{1, float64(v[0]), float64(v[1]) * float64(v[1]), float64(v[2]), float64(v[3])} {
				want[j] += w
			}
		}
	}
	losses(t, 1<<20, func(th *cuda.Thread, l *cuda.Loss) {
		dst := filled(t, th, make([]float64, 6))
		require.NoError(t, l.Sum(dst.at, put(t, th, results), put(t, th, targets), n))
		for j, v := range dst.read(t) {
			require.InDelta(t, want[j], v, 1e-9)
		}
		require.ErrorContains(t, l.CrossEntropy(&cuda.CrossEntropy{Vocab: 10, Stride: 9}, 1), "rows of 9")
	})
}
