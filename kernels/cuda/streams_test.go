//go:build cgo

package cuda_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// mixings is random mixings of n tokens, for the host and for the device.
func mixings(t *testing.T, set *kernels.Set, r *rand.Rand, streams, dim, n int) ([]mhc.Coef, []float32) {
	t.Helper()
	site, err := mhc.New(mhc.Config{Streams: streams, Dim: dim})
	require.NoError(t, err)
	site.Init(0)
	site.Prepare(set)
	host, device := make([]mhc.Coef, n), []float32{}
	for i := range host {
		c := *site.Coef(set, nil, nil, nil)
		for s := range 4 {
			c.Pre[s], c.Post[s] = float32(r.NormFloat64()), float32(r.NormFloat64())
			for j := range 4 {
				c.Res[s][j] = float32(r.NormFloat64())
			}
		}
		host[i] = c
		device = append(append(device, c.Pre[:]...), c.Post[:]...)
		for s := range 4 {
			device = append(device, c.Res[s][:]...)
		}
	}
	return host, device
}

// streamsCase is a shape of streams; dynamic: each token has a mixing of its own.
type streamsCase struct {
	tokens, streams, dim int
	dynamic              bool
}

var streamsCases = []streamsCase{
	{40, 1, 48, false}, {3, 1, 2064, false}, {40, 2, 48, true}, {5, 2, 768, false}, {3, 2, 2064, true}, {40, 4, 48, true}, {5, 4, 400, false}, {2, 4, 2064, true}, {1, 1, 4112, false}, {1, 2, 4112, true}, {1, 4, 4112, false},
}

// mixing is the coefficients of a case's tokens, as the kernels take them.
func (c streamsCase) mixing(t *testing.T, set *kernels.Set, r *rand.Rand, th *cuda.Thread) (of func(i int) *mhc.Coef, at cuda.Ptr, stride int) {
	n := 1
	if c.dynamic {
		n, stride = c.tokens, cuda.CoefFloats
	}
	host, device := mixings(t, set, r, c.streams, c.dim, n)
	return func(i int) *mhc.Coef { return &host[i%n] }, put(t, th, device), stride
}

func TestLeave(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 31, 32)
	for _, c := range streamsCases {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			n := c.streams * c.dim
			dx, v, y := vector(r, c.tokens*n), vector(r, c.tokens*n), vector(r, c.tokens*c.dim)
			training(t, 1, func(th *cuda.Thread, x *cuda.Train) {
				of, coef, stride := c.mixing(t, set, r, th)
				in := inputsOf(t, th, r, c.tokens, 48)
				from, old := filled(t, th, dx), areaOf[float32](t, th, len(dx))
				grad, dyb := areaOf[float32](t, th, 24*c.tokens), areaOf[uint16](t, th, c.tokens*c.dim)
				l := &cuda.Leave{
					DX: from.at, Old: old.at, X: put(t, th, v), Y: put(t, th, y), Coef: coef, CoefStride: stride, CoefGrad: grad.at,
					DYB: dyb.at, Input: in.factor(), Streams: c.streams, Dim: c.dim,
				}
				require.NoError(t, x.Leave(l, c.tokens))
				in.check(t, set)
				require.Equal(t, bits(dx), bits(from.read(t)))
				gotOld, gotGrad, gotY := old.read(t), grad.read(t), dyb.read(t)
				for i := range c.tokens {
					wantOld, dy, d := make([]float32, n), make([]float32, c.dim), mhc.CoefGrad{}
					of(i).WriteBackward(set, wantOld, dy, &d, dx[i*n:][:n], v[i*n:][:n], y[i*c.dim:][:c.dim])
					require.Equal(t, halves(set, in.gain(i), dy), gotY[i*c.dim:][:c.dim], "token %d", i)
					if c.streams == 1 {
						continue
					}
					require.Equal(t, bits(wantOld), bits(gotOld[i*n:][:n]), "token %d", i)
					near(t, coefGrad(&d)[4:], gotGrad[24*i+4:][:20], 1e-5, "mixing of token %d", i)
				}
				if c.streams > 1 { // in place
					l.Old = l.DX
					require.NoError(t, x.Leave(l, c.tokens))
					require.Equal(t, bits(gotOld), bits(from.read(t)))
				}
			})
		})
	}
}

func coefGrad(d *mhc.CoefGrad) []float32 {
	out := append(append([]float32{}, d.Pre[:]...), d.Post[:]...)
	for i := range d.Res {
		out = append(out, d.Res[i][:]...)
	}
	return out
}

func TestEnter(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 33, 34)
	for _, c := range streamsCases {
		for kind := range 4 {
			residual, next := kind&1 != 0, kind&2 != 0
			t.Run(fmt.Sprint(c, residual, next), func(t *testing.T) {
				training(t, 1, func(th *cuda.Thread, x *cuda.Train) { c.enter(t, set, r, th, x, residual, next) })
			})
		}
	}
}

// enter tests Enter, with residual scalars in front of the reading and with the writing in front of them.
func (c streamsCase) enter(t *testing.T, set *kernels.Set, r *rand.Rand, th *cuda.Thread, x *cuda.Train, residual, next bool) {
	n := c.streams * c.dim
	of, coef, stride := c.mixing(t, set, r, th)
	nextOf, nextCoef, _ := c.mixing(t, set, r, th)
	// What the forward had: from and y were written, scaled, and read.
	from, y, base, initial := vector(r, c.tokens*n), vector(r, c.tokens*c.dim), vector(r, c.tokens*n), vector(r, c.tokens*c.dim)
	scalars := []float32{0.75, -0.3}
	if next {
		for i := range c.tokens {
			nextOf(i).Write(set, base[i*n:][:n], from[i*n:][:n], y[i*c.dim:][:c.dim])
		}
	}
	read := slices.Clone(base)
	if residual {
		set.Scale(read, scalars[0], read)
		for i := range c.tokens * c.streams {
			set.Axpy(read[i*c.dim:][:c.dim], scalars[1], initial[i/c.streams*c.dim:][:c.dim])
		}
	}

	d, dx, dembed, weight := vector(r, c.tokens*c.dim), vector(r, c.tokens*n), vector(r, c.tokens*c.dim), vector(r, c.dim)
	in, after := inputsOf(t, th, r, c.tokens, c.dim), inputsOf(t, th, r, c.tokens, 64)
	half := halves(set, 1, in.scaled(set, d)) // as a product may leave them
	for i, h := range half {
		d[i] = kernels.BF16ToF32(h)
	}
	grad, nextGrad := areaOf[float32](t, th, 24*c.tokens), areaOf[float32](t, th, 24*c.tokens)
	sum, de, dyb := filled(t, th, dx), filled(t, th, dembed), areaOf[uint16](t, th, c.tokens*c.dim)
	part, dscalars := partialOf(t, th, x, r, c.tokens, c.dim, c.dim), partialOf(t, th, x, r, 1, 16, 2)
	e := &cuda.Enter{
		D: put(t, th, half), HalfD: true, DX: sum.at, X: put(t, th, read), Weight: put(t, th, weight), Partial: part.scratch, Act: in.act,
		Coef: coef, CoefStride: stride, CoefGrad: grad.at, Streams: c.streams, Dim: c.dim, Eps: 1e-5,
	}
	if residual != next {
		e.D, e.HalfD = put(t, th, d), false
	}
	if residual {
		e.X = 0
		e.Residual = &cuda.Residual{Before: put(t, th, base), Initial: put(t, th, initial), Scalars: put(t, th, scalars), DEmbed: de.at}
	}
	if next {
		e.Next = &cuda.Leave{
			X: put(t, th, from), Y: put(t, th, y), Coef: nextCoef, CoefStride: stride, CoefGrad: nextGrad.at, DYB: dyb.at, Input: after.factor(),
		}
		if c.streams > 1 {
			e.X = 0
			if residual {
				e.Residual.Before = 0
			}
		}
	}
	wsum, ssum, err := x.Enter(e, c.tokens)
	require.NoError(t, err)

	want, wantE, g := slices.Clone(dx), slices.Clone(dembed), in.divided(set, d)
	dweight, ds, u, dy := make([]float32, c.dim), make([]float32, 2), make([]float32, c.dim), make([]float32, c.dim)
	gotGrad, gotNext, gotY := grad.read(t), nextGrad.read(t), dyb.read(t)
	size := func(x, y []float32) float64 { return math.Sqrt(float64(set.Dot(x, x)) * float64(set.Dot(y, y))) }
	for i := range c.tokens {
		du, xi, dxi := g[i*c.dim:][:c.dim], read[i*n:][:n], want[i*n:][:n]
		of(i).Read(set, u, xi)
		set.RMSNormBackward(du, dweight, du, u, weight, 1e-5)
		var cg mhc.CoefGrad
		of(i).ReadBackward(set, dxi, &cg, du, xi)
		for s, w := range cg.Pre[:] { // what cancels in a sum is not lost from it
			if c.streams > 1 {
				require.InDelta(t, w, gotGrad[24*i+s], 2e-7*size(du, xi), "mixing of token %d, stream %d", i, s)
			}
		}
		if residual {
			ds[0] += set.Dot(dxi, base[i*n:][:n])
			for s := range c.streams {
				ds[1] += set.Dot(dxi[s*c.dim:][:c.dim], initial[i*c.dim:][:c.dim])
				set.Axpy(wantE[i*c.dim:][:c.dim], scalars[1], dxi[s*c.dim:][:c.dim])
			}
			set.Scale(dxi, scalars[0], dxi)
		}
		if !next {
			continue
		}
		old, cg := make([]float32, n), mhc.CoefGrad{}
		nextOf(i).WriteBackward(set, old, dy, &cg, dxi, from[i*n:][:n], y[i*c.dim:][:c.dim])
		if c.streams > 1 {
			scale := 2e-7 * (size(dxi, from[i*n:][:n]) + size(dxi, y[i*c.dim:][:c.dim]))
			for k, w := range coefGrad(&cg)[4:] {
				require.InDelta(t, w, gotNext[24*i+4+k], scale, "mixing of the next of token %d: %d", i, k)
			}
		}
		copy(dxi, old)
		set.Scale(dy, after.gain(i), dy)
		nearBF16(t, dy, gotY[i*c.dim:][:c.dim], 1e-5, "dy of token %d", i)
	}
	near(t, want, sum.read(t), 1e-6, "gradient of the streams")
	if residual {
		near(t, wantE, de.read(t), 1e-6, "gradient of the embedding")
	} else {
		require.Equal(t, bits(dembed), bits(de.read(t)))
	}
	part.check(t, x, wsum, dweight, "the norm")
	if residual {
		dscalars.check(t, x, ssum, ds, "the scalars")
	} else {
		require.Equal(t, cuda.PartialSum{}, ssum)
	}
	if next {
		after.check(t, set)
	}
}

// With nothing that was read only the residual scalars have a gradient.
func TestEnterOfNothing(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 37, 38)
	const tokens, dim = 5, 48
	before, initial, dx, dembed, scalars := vector(r, tokens*dim), vector(r, tokens*dim), vector(r, tokens*dim), vector(r, tokens*dim), []float32{0.5, 3}
	training(t, 1, func(th *cuda.Thread, x *cuda.Train) {
		sum, de := filled(t, th, dx), filled(t, th, dembed)
		part, ds := partialOf(t, th, x, r, tokens, dim, dim), partialOf(t, th, x, r, 1, 16, 2)
		wsum, ssum, err := x.Enter(&cuda.Enter{
			DX: sum.at, Weight: put(t, th, initial), Partial: part.scratch, Streams: 1, Dim: dim, Eps: 1e-5,
			Residual: &cuda.Residual{Before: put(t, th, before), Initial: put(t, th, initial), Scalars: put(t, th, scalars), DEmbed: de.at},
		}, tokens)
		require.NoError(t, err)
		part.check(t, x, wsum, make([]float32, dim), "the norm")
		ds.check(t, x, ssum, []float32{set.Dot(dx, before), set.Dot(dx, initial)}, "the scalars")
		set.Axpy(dembed, scalars[1], dx)
		require.Equal(t, bits(dembed), bits(de.read(t)))
		set.Scale(dx, scalars[0], dx)
		require.Equal(t, bits(dx), bits(sum.read(t)))
	})
}

func TestLastNormBack(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 35, 36)
	for _, c := range streamsCases {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			n := c.streams * c.dim
			d, v, weight := vector(r, c.tokens*c.dim), vector(r, c.tokens*n), vector(r, c.dim)
			training(t, 1, func(th *cuda.Thread, x *cuda.Train) {
				in, part := inputsOf(t, th, r, c.tokens, c.dim), partialOf(t, th, x, r, c.tokens, c.dim, c.dim)
				dx, de := areaOf[float32](t, th, len(v)), areaOf[float32](t, th, c.tokens*c.dim)
				half := halves(set, 1, in.scaled(set, d))
				for i, h := range half {
					d[i] = kernels.BF16ToF32(h)
				}
				sums, err := x.LastNormBack(&cuda.LastNormBack{
					D: put(t, th, half), HalfD: true, X: put(t, th, v), Weight: put(t, th, weight), Partial: part.scratch, Act: in.act,
					DX: dx.at, DEmbed: de.at, Streams: c.streams, Dim: c.dim, Eps: 1e-5,
				}, c.tokens)
				require.NoError(t, err)
				want, g := make([]float32, len(v)), in.divided(set, d)
				dweight, u := make([]float32, c.dim), make([]float32, c.dim)
				for i := range c.tokens {
					du := g[i*c.dim:][:c.dim]
					mhc.Collapse(set, u, v[i*n:][:n])
					set.RMSNormBackward(du, dweight, du, u, weight, 1e-5)
					mhc.CollapseBackward(set, want[i*n:][:n], du)
				}
				near(t, want, dx.read(t), 1e-6, "gradient of the streams")
				require.Equal(t, make([]float32, c.tokens*c.dim), de.read(t))
				part.check(t, x, sums, dweight, "the norm")
			})
		})
	}
}

func TestShapesOfStreams(t *testing.T) {
	training(t, 0, func(th *cuda.Thread, x *cuda.Train) {
		require.ErrorContains(t, x.Leave(&cuda.Leave{Streams: 3, Dim: 64}, 1), "3 streams")
		require.ErrorContains(t, x.Leave(&cuda.Leave{Streams: 2, Dim: 72}, 1), "multiple of 16")
		require.ErrorContains(t, x.Leave(&cuda.Leave{Streams: 2, Dim: 64}, 0), "0 tokens")
		_, _, err := x.Enter(&cuda.Enter{Streams: 2, Dim: 8208}, 1)
		require.ErrorContains(t, err, "at most 8192")
	})
}
