package optim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
)

// one is an optimizer of one matrix parameter with gradient g and zero weights,
// and the parameter.
func one(t testing.TB, g mat, r Rule, o Options) (*Optimizer, Param) {
	t.Helper()
	p := Param{Name: "w", Class: Matrix, Rows: g.r, Cols: g.c, W: make([]float32, len(g.v)), G: g.f32()}
	o.Rules = map[Class]Rule{Matrix: r}
	opt, err := New([]Param{p}, o)
	require.NoError(t, err)
	return opt, p
}

func step(t testing.TB, o *Optimizer) Report {
	t.Helper()
	r, err := o.Step()
	require.NoError(t, err)
	return r
}

// update is the orthogonalised gradient: the first step of Muon from zero with
// the shape's factor taken out, which leaves -X.
func update(t testing.TB, g mat, steps int, o Options) mat {
	t.Helper()
	opt, p := one(t, g, Rule{Kind: Muon, LR: 1, NewtonSchulz: steps}, o)
	step(t, opt)
	f := MatchAdam.factor(g.r, g.c)
	return matOf(p.W, g.r, g.c).lin(-1/f, newMat(g.r, g.c), 0)
}

var shapes = [][2]int{{1, 1}, {1, 17}, {32, 32}, {24, 56}, {56, 24}, {33, 7}, {50, 49}}

// The iteration is a polynomial in the singular values that leaves the singular
// vectors alone: U·diag(s)·Vᵀ becomes U·diag(f(s/‖s‖))·Vᵀ.
func TestNewtonSchulzMapsSingularValues(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, s := range shapes {
		for _, steps := range []int{3, 5} {
			g := normalMat(rnd, s[0], s[1])
			u, sv, v := g.svd()
			require.InDelta(t, 0, u.mul(diag(sv)).mul(v.t()).lin(1, g, -1).norm(), 1e-10*g.norm(), "the test's own SVD")
			for i := range sv {
				x := sv[i] / g.norm()
				for range steps {
					x = float64(nsA)*x + float64(nsB)*x*x*x + float64(nsC)*x*x*x*x*x
				}
				sv[i] = x
			}
			want := u.mul(diag(sv)).mul(v.t())
			got := update(t, g, steps, Options{})
			require.InDelta(t, 0, got.lin(1, want, -1).norm()/want.norm(), 2e-5, "%v %d steps", s, steps)
			rough := update(t, g, steps, Options{BF16: true})
			require.InDelta(t, 0, rough.lin(1, want, -1).norm()/want.norm(), 0.06, "%v %d steps bf16", s, steps)
		}
	}
}

func diag(s []float64) mat {
	d := newMat(len(s), len(s))
	for i, v := range s {
		d.v[i*len(s)+i] = v
	}
	return d
}

// After five steps the singular values of a matrix of condition 100 lie in the band
// of the quintic, and the result points the way of U·Vᵀ.
func TestMuonIsNearlyOrthogonal(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, s := range [][2]int{{32, 32}, {24, 56}, {56, 24}, {16, 128}} {
		u, sv, v := normalMat(rnd, s[0], s[1]).svd()
		for i := range sv {
			sv[i] = math.Pow(100, -float64(i)/float64(len(sv)-1))
		}
		g := u.mul(diag(sv)).mul(v.t())
		for _, c := range []struct{ steps, bf16 int }{{5, 0}, {5, 1}, {3, 0}} {
			got := update(t, g, c.steps, Options{BF16: c.bf16 == 1})
			_, gs, _ := got.svd()
			require.Less(t, gs[0], 1.25, "%v %v", s, c)
			if c.steps == 5 {
				require.Greater(t, gs[len(gs)-1], 0.6, "%v %v", s, c)
				polar, dot := u.mul(v.t()), 0.0
				for i := range polar.v {
					dot += polar.v[i] * got.v[i]
				}
				require.Greater(t, dot/polar.norm()/got.norm(), 0.97, "%v %v", s, c)
			}
		}
	}
}

func TestMuonOfTransposeAndScale(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 3))
	for _, s := range shapes {
		g := normalMat(rnd, s[0], s[1])
		got := update(t, g, 5, Options{})
		turned := update(t, g.t(), 5, Options{}).t()
		require.InDelta(t, 0, got.lin(1, turned, -1).norm(), 1e-5*got.norm(), "%v: transposed", s)
		require.True(t, slices.Equal(got.v, update(t, g.lin(0x1p-30, g, 0), 5, Options{}).v), "%v: scaled down", s)
		require.True(t, slices.Equal(got.v, update(t, g.lin(0x1p30, g, 0), 5, Options{}).v), "%v: scaled up", s)
		zero := update(t, newMat(s[0], s[1]), 5, Options{})
		require.Zero(t, zero.norm(), "a zero gradient moves nothing")
	}
}

// The root mean square of the update is the shape factor's promise times the mean
// square of the singular values, which lie in 0.68 to 1.13.
func TestUpdateRMSPerShape(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 4))
	for _, s := range [][2]int{{64, 64}, {32, 128}, {128, 32}, {16, 160}, {160, 16}} {
		rows, cols := float64(s[0]), float64(s[1])
		for scaling, want := range map[Scaling]float64{
			MatchAdam: 0.2,
			Spectral:  math.Sqrt(max(1, rows/cols) / max(rows, cols)),
		} {
			opt, p := one(t, normalMat(rnd, s[0], s[1]), Rule{Kind: Muon, LR: 0.5, Scaling: scaling}, Options{})
			step(t, opt)
			rms := matOf(p.W, s[0], s[1]).norm() / math.Sqrt(rows*cols) / 0.5
			require.Greater(t, rms, 0.68*want, "%v %d", s, scaling)
			require.Less(t, rms, 1.13*want, "%v %d", s, scaling)
		}
	}
}

// Three steps of Muon on stacked matrices against float64, with everything on.
func TestMuonAgainstFloat64(t *testing.T) {
	for _, set := range kernels.All() {
		for _, heavy := range []bool{false, true} {
			for _, cautious := range []bool{false, true} {
				rnd := rand.New(rand.NewPCG(1, 5))
				split, cols := []int{24, 8, 9}, 20
				rows := 41
				r := Rule{Kind: Muon, LR: 0.03, WeightDecay: 0.7, Cautious: cautious, Heavy: heavy,
					Momentum: 0.9, MomentumStart: 0.5, MomentumWarmup: 2, Scaling: Spectral}
				w := normalMat(rnd, rows, cols)
				p := Param{Name: "qkv", Class: Matrix, Rows: rows, Cols: cols, W: w.f32(), G: make([]float32, rows*cols), Split: split}
				opt, err := New([]Param{p}, Options{Rules: map[Class]Rule{Matrix: r}, Set: set})
				require.NoError(t, err)
				m := newMat(rows, cols)
				for s := 1; s <= 3; s++ {
					g := normalMat(rnd, rows, cols)
					copy(p.G, g.f32())
					step(t, opt)
					beta := []float64{0, 0.7, 0.9, 0.9}[s]
					m = m.lin(beta, g, 1-beta)
					u := m
					if !heavy {
						u = g.lin(1-beta, m, beta)
					}
					row := 0
					for _, n := range split {
						part := mat{n, cols, u.v[row*cols:][:n*cols]}
						x := newtonSchulz(part, 5)
						for i, v := range x.v {
							at := &w.v[row*cols+i]
							keep := 1.0
							if !cautious || v**at >= 0 {
								keep = 1 - r.LR*r.WeightDecay
							}
							*at = *at*keep - r.LR*math.Sqrt(max(1, float64(n)/float64(cols)))*v
						}
						row += n
					}
				}
				require.InDelta(t, 0, matOf(p.W, rows, cols).lin(1, w, -1).norm()/w.norm(), 1e-5, "%s heavy=%t cautious=%t", set.Name, heavy, cautious)
			}
		}
	}
}

// BenchmarkMuon is one update of the matrices of a model with 4.7 million of them:
// go test ./core/optim -run xxx -bench Muon
func BenchmarkMuon(b *testing.B) {
	for _, bf16 := range []bool{false, true} {
		for _, steps := range []int{3, 5} {
			rnd := rand.New(rand.NewPCG(1, 6))
			var params []Param
			for l := range 6 {
				for i, s := range [][2]int{{768, 256}, {256, 256}, {1024, 256}, {256, 1024}} {
					p := Param{Name: fmt.Sprint(l, i), Class: Matrix, Rows: s[0], Cols: s[1],
						W: make([]float32, s[0]*s[1]), G: normalMat(rnd, s[0], s[1]).f32()}
					if i == 0 {
						p.Split = []int{256, 256, 256}
					}
					params = append(params, p)
				}
			}
			opt, err := New(params, Options{Rules: map[Class]Rule{Matrix: {Kind: Muon, LR: 1e-3, NewtonSchulz: steps}}, BF16: bf16})
			require.NoError(b, err)
			b.Run(fmt.Sprintf("bf16=%t/steps=%d", bf16, steps), func(b *testing.B) {
				for b.Loop() {
					step(b, opt)
				}
			})
		}
	}
}
