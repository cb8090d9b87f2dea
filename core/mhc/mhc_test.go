package mhc

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/architehc/nanochat/kernels"
)

func configs(dim int) (all []Config) {
	for _, n := range []int{1, 2, 4} {
		for _, kind := range []Kind{BvN, Sinkhorn} {
			for _, dynamic := range []bool{false, true} {
				all = append(all, Config{Streams: n, Dim: dim, Kind: kind, Dynamic: dynamic, SinkhornIters: 20})
			}
		}
	}
	return all
}

func randomised(t require.TestingT, c Config, seed uint64, std float64) *Site {
	s, err := New(c)
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(seed, 1))
	for _, p := range s.Params() {
		for i := range p.Data {
			p.Data[i] = float32(r.NormFloat64() * std)
		}
	}
	return s
}

func normal(seed uint64, n int) []float32 {
	r := rand.New(rand.NewPCG(seed, 2))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

func requireStochastic(t require.TestingT, h *Matrix, n int, tol float64) {
	for i := range n {
		row, col := 0.0, 0.0
		for j := range n {
			require.GreaterOrEqual(t, h[i][j], float32(0))
			row += float64(h[i][j])
			col += float64(h[j][i])
		}
		require.InDelta(t, 1, row, tol, "row %d of %v", i, h)
		require.InDelta(t, 1, col, tol, "column %d of %v", i, h)
	}
}

func TestPermutations(t *testing.T) {
	for n, want := range []int{0, 1, 2, 6, 24} {
		if n > 0 {
			require.Len(t, permutations[n], want)
		}
	}
	require.Equal(t, [MaxStreams]uint8{0, 1, 2, 3}, permutations[4][0])
	require.Equal(t, [MaxStreams]uint8{0, 1, 3, 2}, permutations[4][1])
	require.Equal(t, [MaxStreams]uint8{3, 2, 1, 0}, permutations[4][23])
}

// Margins hold for any logits, converged or not.
func TestDoublyStochastic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Config{
			Streams: rapid.SampledFrom([]int{2, 4}).Draw(t, "n"), Dim: 3,
			Kind:          rapid.SampledFrom([]Kind{BvN, Sinkhorn}).Draw(t, "kind"),
			SinkhornIters: rapid.SampledFrom([]int{1, 5, 20}).Draw(t, "iters"),
		}
		s := randomised(t, c, rapid.Uint64().Draw(t, "seed"), rapid.SampledFrom([]float64{0, 1, 10, 80}).Draw(t, "std"))
		s.Prepare(kernels.All()[0])
		requireStochastic(t, &s.fixed.Res, c.Streams, 1e-6)
	})
}

// The product of many stays doubly stochastic, so nothing grows with depth.
func TestProductStaysStochastic(t *testing.T) {
	k := kernels.All()[0]
	for _, c := range configs(3) {
		if c.Streams == 1 || c.Dynamic {
			continue
		}
		var p Matrix
		for i := range c.Streams {
			p[i][i] = 1
		}
		for d := range 64 {
			s := randomised(t, c, uint64(d), 3)
			s.Prepare(k)
			var q Matrix
			for i := range c.Streams {
				for j := range c.Streams {
					for m := range c.Streams {
						q[i][j] += s.fixed.Res[i][m] * p[m][j]
					}
				}
			}
			p = q
		}
		requireStochastic(t, &p, c.Streams, 1e-5)
	}
}

// More iterations come closer before the rounding step: the margin error of
// alternating normalisation alone falls.
func TestSinkhornConverges(t *testing.T) {
	k := kernels.All()[0]
	l := normal(5, 16)
	distance := func(iters int) float64 {
		var h, far Matrix
		sinkhorn(k, &h, append([]float32(nil), l...), 4, iters, nil)
		sinkhorn(k, &far, append([]float32(nil), l...), 4, 200, nil)
		d := 0.0
		for i := range 4 {
			for j := range 4 {
				d = max(d, math.Abs(float64(h[i][j]-far[i][j])))
			}
		}
		return d
	}
	require.Greater(t, distance(1), distance(5))
	require.Less(t, distance(20), 1e-5)
}

func TestTwoStreamsIsTheSwapForm(t *testing.T) {
	s := randomised(t, Config{Streams: 2, Dim: 3}, 1, 1)
	s.Prepare(kernels.All()[0])
	h := s.fixed.Res
	require.Equal(t, h[0][0], h[1][1])
	require.Equal(t, h[0][1], h[1][0])
	alpha := 1 / (1 + math.Exp(-float64(s.Res[0]-s.Res[1])))
	require.InDelta(t, alpha, h[0][0], 1e-6)
}

func TestInit(t *testing.T) {
	k := kernels.All()[0]
	const dim = 32
	for _, c := range configs(dim) {
		for layer := range 5 {
			s, err := New(c)
			require.NoError(t, err)
			s.Init(layer)
			s.Prepare(k)
			e, y := normal(1, dim), normal(2, dim)
			x, out := make([]float32, c.Streams*dim), make([]float32, c.Streams*dim)
			Expand(x, e)
			co := s.Coef(k, new(Coef), x, make([]float32, c.ScratchLen()))
			if c.Streams > 1 {
				for i := range c.Streams {
					require.Equal(t, float32(1), co.Post[i])
					require.Greater(t, co.Res[i][i], float32(0.97))
					if i != layer%c.Streams {
						require.Greater(t, co.Pre[layer%c.Streams], 4*co.Pre[i])
					}
				}
			}
			co.Write(k, out, x, y)
			got := make([]float32, dim)
			Collapse(k, got, out)
			for i := range got { // one block is the plain residual x + F(x)
				require.InDelta(t, e[i]+y[i], got[i], 1e-5)
			}
			u := make([]float32, dim)
			co.Read(k, u, x)
			k.RMSNorm(u, u, nil, 0)
			k.RMSNorm(e, e, nil, 0)
			for i := range u {
				require.InDelta(t, e[i], u[i], 1e-5)
			}
		}
	}
}

func TestOneStreamIsThePlainResidual(t *testing.T) {
	k := kernels.All()[0]
	s, err := New(Config{Streams: 1, Dim: 50, Kind: Sinkhorn, Dynamic: true})
	require.NoError(t, err)
	require.Empty(t, s.Params())
	s.Prepare(k)
	x, y := normal(1, 50), normal(2, 50)
	c := s.Coef(k, nil, x, nil)
	u, out := make([]float32, 50), make([]float32, 50)
	c.Read(k, u, x)
	require.Equal(t, x, u)
	c.Write(k, out, x, y)
	for i := range out {
		require.Equal(t, x[i]+y[i], out[i])
	}
	Collapse(k, u, out)
	require.Equal(t, out, u)
}

// A one-hot reader, h_post = 1 and the identity are the plain residual network on
// every stream, bit for bit.
func TestIdentityMixing(t *testing.T) {
	k := kernels.All()[0]
	c := Coef{n: 4, Post: [4]float32{1, 1, 1, 1}, Pre: [4]float32{0, 1, 0, 0}}
	for i := range 4 {
		c.Res[i][i] = 1
	}
	x, y := normal(1, 80), normal(2, 20)
	u, out := make([]float32, 20), make([]float32, 80)
	c.Read(k, u, x)
	require.Equal(t, x[20:40], u)
	c.Write(k, out, x, y)
	for i := range out {
		require.Equal(t, x[i]+y[i%20], out[i])
	}
}

// The definition of the package comment in float64.
func TestAgainstFloat64(t *testing.T) {
	const dim = 24
	for _, c := range configs(dim) {
		if c.Streams == 1 {
			continue
		}
		c.SinkhornIters = 500
		n := c.Streams
		s := randomised(t, c, 7, 0.5)
		x, y := normal(3, n*dim), normal(4, dim)
		l := make([]float64, c.Logits())
		for i, v := range append(append(append([]float32(nil), s.Pre...), s.Post...), s.Res...) {
			l[i] = float64(v)
		}
		if c.Dynamic {
			ms := 0.0
			for _, v := range x {
				ms += float64(v) * float64(v)
			}
			rms := math.Sqrt(ms/float64(n*dim) + 1e-6)
			for i := range l {
				z := 0.0
				for k, v := range x {
					z += float64(s.Proj[i*n*dim+k]) * float64(v) / rms
				}
				l[i] += float64(s.Gate[min(i/n, 2)]) * z
			}
		}
		sigma := func(v float64) float64 { return 1 / (1 + math.Exp(-v)) }
		h := make([][]float64, n)
		for i := range h {
			h[i] = make([]float64, n)
		}
		res := l[2*n:]
		if c.Kind == BvN {
			sum := 0.0
			for _, v := range res {
				sum += math.Exp(v)
			}
			for p, v := range res {
				for i := range n {
					h[i][permutations[n][p][i]] += math.Exp(v) / sum
				}
			}
		} else {
			for i := range n {
				for j := range n {
					h[i][j] = math.Exp(res[i*n+j])
				}
			}
			for range 500 {
				for i := range n {
					r := 0.0
					for j := range n {
						r += h[i][j]
					}
					for j := range n {
						h[i][j] /= r
					}
				}
				for j := range n {
					r := 0.0
					for i := range n {
						r += h[i][j]
					}
					for i := range n {
						h[i][j] /= r
					}
				}
			}
		}
		var first []float32
		for _, k := range kernels.All() {
			s.Prepare(k)
			co := s.Coef(k, new(Coef), x, make([]float32, c.ScratchLen()))
			u, out := make([]float32, dim), make([]float32, n*dim)
			co.Read(k, u, x)
			co.Write(k, out, x, y)
			if first == nil {
				first = out
			}
			require.Equal(t, first, out, k.Name)
			for d := range dim {
				want := 0.0
				for i := range n {
					want += sigma(l[i]) * float64(x[i*dim+d])
				}
				require.InDelta(t, want, u[d], 1e-5, fmt.Sprint(c))
				for i := range n {
					want := 2 * sigma(l[n+i]) * float64(y[d])
					for j := range n {
						want += h[i][j] * float64(x[j*dim+d])
					}
					require.InDelta(t, want, out[i*dim+d], 1e-5, fmt.Sprint(c))
				}
			}
		}
	}
}

// Permuting the streams and the parameters permutes the result (BvN logits would
// need relabelling: Sinkhorn shows it).
func TestEquivariance(t *testing.T) {
	k := kernels.All()[0]
	const n, dim = 4, 8
	c := Config{Streams: n, Dim: dim, Kind: Sinkhorn, SinkhornIters: 50}
	a, b := randomised(t, c, 9, 1), randomised(t, c, 9, 1)
	x, y := normal(1, n*dim), normal(2, dim)
	perm := []int{2, 0, 3, 1}
	px := make([]float32, n*dim)
	for i, p := range perm {
		b.Pre[i], b.Post[i] = a.Pre[p], a.Post[p]
		copy(px[i*dim:(i+1)*dim], x[p*dim:])
		for j, q := range perm {
			b.Res[i*n+j] = a.Res[p*n+q]
		}
	}
	a.Prepare(k)
	b.Prepare(k)
	oa, ob := make([]float32, n*dim), make([]float32, n*dim)
	a.Coef(k, nil, x, nil).Write(k, oa, x, y)
	b.Coef(k, nil, px, nil).Write(k, ob, px, y)
	for i, p := range perm {
		for d := range dim {
			require.InDelta(t, oa[p*dim+d], ob[i*dim+d], 1e-5)
		}
	}
}

func TestDiagnostics(t *testing.T) {
	same := make([]float32, 40)
	Expand(same, normal(1, 10))
	require.InDelta(t, 1, Similarity(same, 4), 1e-9)
	require.InDelta(t, 1, EffectiveRank(same, 4), 1e-3)
	apart := make([]float32, 16)
	for i := range 4 {
		apart[i*4+i] = 3
	}
	require.InDelta(t, 0, Similarity(apart, 4), 1e-9)
	require.InDelta(t, 4, EffectiveRank(apart, 4), 1e-9)
	// Singular values 3 and 1: the rows are rotated by 30 degrees.
	c, s := math.Cos(math.Pi/6), math.Sin(math.Pi/6)
	two := []float32{float32(3 * c), float32(-s), float32(3 * s), float32(c)}
	require.InDelta(t, math.Exp(-.75*math.Log(.75)-.25*math.Log(.25)), EffectiveRank(two, 2), 1e-6)
	require.Zero(t, EffectiveRank(make([]float32, 8), 2))
}

func TestNewRejects(t *testing.T) {
	for _, c := range []Config{
		{Streams: 3, Dim: 4}, {Streams: 0, Dim: 4}, {Streams: 2, Dim: 0},
		{Streams: 2, Dim: 4, Kind: Sinkhorn}, {Streams: 2, Dim: 4, Kind: 7}, {Streams: 2, Dim: 4, Kind: Sinkhorn, SinkhornIters: 1001},
	} {
		_, err := New(c)
		require.Error(t, err, fmt.Sprint(c))
	}
}

func TestCoefDoesNotAllocate(t *testing.T) {
	k := kernels.All()[0]
	for _, c := range configs(16) {
		s := randomised(t, c, 3, 1)
		s.Prepare(k)
		x, u, out, y := normal(1, c.Streams*16), make([]float32, 16), make([]float32, c.Streams*16), normal(2, 16)
		co, scratch := new(Coef), make([]float32, c.ScratchLen())
		n := testing.AllocsPerRun(10, func() {
			m := s.Coef(k, co, x, scratch)
			m.Read(k, u, x)
			m.Write(k, out, x, y)
		})
		require.Zero(t, n, fmt.Sprint(c))
	}
}
