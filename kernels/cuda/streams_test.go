//go:build cgo

package cuda_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
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
	{40, 1, 48, false}, {3, 1, 2064, false}, {40, 2, 48, true}, {5, 2, 768, false}, {3, 2, 2064, true}, {40, 4, 48, true}, {5, 4, 400, false}, {2, 4, 2064, true},
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
	set, r := reference(t), rand.New(rand.NewPCG(31, 32))
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
	set, r := reference(t), rand.New(rand.NewPCG(33, 34))
	for k, c := range streamsCases {
		residual := k%2 == 0
		t.Run(fmt.Sprint(c, residual), func(t *testing.T) {
			n := c.streams * c.dim
			d, dx, v := vector(r, c.tokens*c.dim), vector(r, c.tokens*n), vector(r, c.tokens*n)
			before, initial, dembed := vector(r, c.tokens*n), vector(r, c.tokens*c.dim), vector(r, c.tokens*c.dim)
			weight, scalars := vector(r, c.dim), []float32{0.75, -0.3}
			training(t, 1, func(th *cuda.Thread, x *cuda.Train) {
				of, coef, stride := c.mixing(t, set, r, th)
				in := inputsOf(t, th, r, c.tokens, c.dim)
				grad, sum, de := areaOf[float32](t, th, 24*c.tokens), filled(t, th, dx), filled(t, th, dembed)
				part, dscalars := partialOf(t, th, x, r, c.tokens, c.dim, c.dim), partialOf(t, th, x, r, 1, 16, 2)
				e := &cuda.Enter{
					D: put(t, th, in.scaled(set, d)), DX: sum.at, X: put(t, th, v), Weight: put(t, th, weight), Partial: part.scratch, Act: in.act,
					Coef: coef, CoefStride: stride, CoefGrad: grad.at, Streams: c.streams, Dim: c.dim, Eps: 1e-5,
				}
				if residual {
					e.Residual = &cuda.Residual{Before: put(t, th, before), Initial: put(t, th, initial), Scalars: put(t, th, scalars), DEmbed: de.at}
				}
				wsum, ssum, err := x.Enter(e, c.tokens)
				require.NoError(t, err)

				want, wantE, g := slices.Clone(dx), slices.Clone(dembed), in.divided(set, in.scaled(set, d))
				dweight, ds, u := make([]float32, c.dim), make([]float32, 2), make([]float32, c.dim)
				gotGrad := grad.read(t)
				for i := range c.tokens {
					coef, du, xi, dxi := of(i), g[i*c.dim:][:c.dim], v[i*n:][:n], want[i*n:][:n]
					coef.Read(set, u, xi)
					set.RMSNormBackward(du, dweight, du, u, weight, 1e-5)
					var cg mhc.CoefGrad
					coef.ReadBackward(set, dxi, &cg, du, xi)
					if c.streams > 1 {
						// What cancels in the sum is not lost from it.
						size := math.Sqrt(float64(set.Dot(du, du)) * float64(set.Dot(xi, xi)))
						for s, w := range cg.Pre {
							require.InDelta(t, w, gotGrad[24*i+s], 2e-7*size, "mixing of token %d, stream %d", i, s)
						}
					}
					if !residual {
						continue
					}
					ds[0] += set.Dot(dxi, before[i*n:][:n])
					for s := range c.streams {
						ds[1] += set.Dot(dxi[s*c.dim:][:c.dim], initial[i*c.dim:][:c.dim])
						set.Axpy(wantE[i*c.dim:][:c.dim], scalars[1], dxi[s*c.dim:][:c.dim])
					}
					set.Scale(dxi, scalars[0], dxi)
				}
				near(t, want, sum.read(t), 1e-6, "gradient of the streams")
				near(t, wantE, de.read(t), 1e-6, "gradient of the embedding")
				part.check(t, x, wsum, dweight, "the norm")
				if residual {
					dscalars.check(t, x, ssum, ds, "the scalars")
				} else {
					require.Equal(t, cuda.PartialSum{}, ssum)
				}
			})
		})
	}
}

func TestLastNormBack(t *testing.T) {
	set, r := reference(t), rand.New(rand.NewPCG(35, 36))
	for _, c := range streamsCases {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			n := c.streams * c.dim
			d, v, weight := vector(r, c.tokens*c.dim), vector(r, c.tokens*n), vector(r, c.dim)
			training(t, 1, func(th *cuda.Thread, x *cuda.Train) {
				in, part := inputsOf(t, th, r, c.tokens, c.dim), partialOf(t, th, x, r, c.tokens, c.dim, c.dim)
				dx, de := areaOf[float32](t, th, len(v)), areaOf[float32](t, th, c.tokens*c.dim)
				sums, err := x.LastNormBack(&cuda.LastNormBack{
					D: put(t, th, in.scaled(set, d)), X: put(t, th, v), Weight: put(t, th, weight), Partial: part.scratch, Act: in.act,
					DX: dx.at, DEmbed: de.at, Streams: c.streams, Dim: c.dim, Eps: 1e-5,
				}, c.tokens)
				require.NoError(t, err)
				want, g := make([]float32, len(v)), in.divided(set, in.scaled(set, d))
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
