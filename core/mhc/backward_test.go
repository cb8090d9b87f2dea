package mhc

import (
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
)

// mirror is the definition of a site in float64, of tokens with states x, [tokens][n·dim],
// and outputs y, [tokens][dim]. tensors are the parameters as Params lists them.
type mirror struct {
	Config
	tensors [][]float64
	x, y    []float64
}

func (m *mirror) logits(x []float64) []float64 {
	n := m.Streams
	l := append(append(append([]float64(nil), m.tensors[0]...), m.tensors[1]...), m.tensors[2]...)
	if !m.Dynamic {
		return l
	}
	square := 0.0
	for _, v := range x {
		square += v * v
	}
	rms := math.Sqrt(square/float64(len(x)) + 1e-6)
	for i := range l {
		z := 0.0
		for j, v := range x {
			z += m.tensors[4][i*len(x)+j] * v / rms
		}
		l[i] += m.tensors[3][min(i/n, 2)] * z
	}
	return l
}

func softmax64(l []float64) []float64 {
	top, sum := math.Inf(-1), 0.0
	for _, v := range l {
		top = max(top, v)
	}
	p := make([]float64, len(l))
	for i, v := range l {
		p[i] = math.Exp(v - top)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

// divide64 divides every row (or column) of h with a sum above the limit by it.
func divide64(h *matrix64, n int, columns bool, above float64) {
	for i := range n {
		sum := 0.0
		for j := range n {
			if columns {
				sum += h[j][i]
			} else {
				sum += h[i][j]
			}
		}
		for j := range n {
			switch {
			case sum <= above:
			case columns:
				h[j][i] /= sum
			default:
				h[i][j] /= sum
			}
		}
	}
}

func (m *mirror) res(l []float64) (h matrix64) {
	n := m.Streams
	if m.Kind == BvN {
		for p, w := range softmax64(l) {
			for i := range n {
				h[i][permutations[n][p][i]] += w
			}
		}
		return h
	}
	for i := range n {
		copy(h[i][:], softmax64(l[i*n:(i+1)*n]))
	}
	for range m.SinkhornIters {
		divide64(&h, n, true, 0)
		divide64(&h, n, false, 0)
	}
	divide64(&h, n, false, 1)
	divide64(&h, n, true, 1)
	var r, c [MaxStreams]float64
	total := 0.0
	for i := range n {
		r[i], c[i] = 1, 1
		for j := range n {
			r[i] -= h[i][j]
			c[i] -= h[j][i]
		}
		r[i], c[i] = max(r[i], 0), max(c[i], 0)
		total += r[i]
	}
	// Below 1e-14 it is the rounding of float64.
	if total > 1e-14 {
		for i := range n {
			for j := range n {
				h[i][j] += r[i] * c[j] / total
			}
		}
	}
	return h
}

// objective is Σ a·X' + Σ b·u over the tokens.
func (m *mirror) objective(a, b []float32) (sum float64) {
	n, dim := m.Streams, m.Dim
	sigma := func(v float64) float64 { return 1 / (1 + math.Exp(-v)) }
	for t := range len(m.y) / dim {
		x, y := m.x[t*n*dim:(t+1)*n*dim], m.y[t*dim:(t+1)*dim]
		l := m.logits(x)
		h := m.res(l[2*n:])
		for d := range dim {
			u := 0.0
			for i := range n {
				u += sigma(l[i]) * x[i*dim+d]
				out := 2 * sigma(l[n+i]) * y[d]
				for j := range n {
					out += h[i][j] * x[j*dim+d]
				}
				sum += float64(a[t*n*dim+i*dim+d]) * out
			}
			sum += float64(b[t*dim+d]) * u
		}
	}
	return sum
}

func widen(x []float32) []float64 {
	w := make([]float64, len(x))
	for i, v := range x {
		w[i] = float64(v)
	}
	return w
}

// Every parameter and input against central differences of the float64 mirror.
// With few iterations or large logits Sinkhorn is far from done when the rounding
// step ends it.
func TestBackwardAgainstDifferences(t *testing.T) {
	const dim, tokens, step = 10, 3, 1e-5
	for _, n := range []int{2, 4} {
		for _, dynamic := range []bool{false, true} {
			for _, c := range []Config{
				{Kind: BvN}, {Kind: Sinkhorn, SinkhornIters: 1}, {Kind: Sinkhorn, SinkhornIters: 3}, {Kind: Sinkhorn, SinkhornIters: 20},
			} {
				for _, std := range []float64{0.5, 2} {
					c.Streams, c.Dim, c.Dynamic = n, dim, dynamic
					t.Run(fmt.Sprintf("n%d kind%d iters%d dynamic=%v std%g", n, c.Kind, c.SinkhornIters, dynamic, std), func(t *testing.T) {
						s := randomised(t, c, 11, std)
						for i := range s.Proj {
							s.Proj[i] *= 0.2
						}
						x, y := normal(1, tokens*n*dim), normal(2, tokens*dim)
						a, b := normal(3, tokens*n*dim), normal(4, tokens*dim)
						g, dx, dy := backward(kernels.All()[0], s, x, y, a, b)

						m := &mirror{Config: c, x: widen(x), y: widen(y)}
						for _, p := range s.Params() {
							m.tensors = append(m.tensors, widen(p.Data))
						}
						check := func(name string, got []float32, at []float64) {
							want, scale := make([]float64, len(at)), 0.0
							for i, v := range at {
								at[i] = v + step
								up := m.objective(a, b)
								at[i] = v - step
								want[i] = (up - m.objective(a, b)) / (2 * step)
								at[i] = v
								scale = max(scale, math.Abs(want[i]))
							}
							require.Greater(t, scale, 1e-6, name)
							for i := range got {
								require.InDelta(t, want[i], got[i], 2e-5*(scale+1), "%s[%d], scale %g", name, i, scale)
							}
						}
						for i, p := range g.Params() {
							require.Equal(t, s.Params()[i].Name, p.Name)
							require.Equal(t, s.Params()[i].Dims, p.Dims)
							check(p.Name, p.Data, m.tensors[i])
						}
						check("x", dx, m.x)
						check("y", dy, m.y)
					})
				}
			}
		}
	}
}

// backward runs all tokens through a site for the objective of mirror.
func backward(k *kernels.Set, s *Site, x, y, a, b []float32) (g *Grad, dx, dy []float32) {
	width, dim := s.Streams*s.Dim, s.Dim
	g = NewGrad(s.Config)
	dx, dy = make([]float32, len(x)), make([]float32, len(y))
	scratch := make([]float32, s.ScratchLen()+s.BackwardScratchLen())
	s.Prepare(k)
	for t := range len(y) / dim {
		xt, yt, dxt := x[t*width:(t+1)*width], y[t*dim:(t+1)*dim], dx[t*width:(t+1)*width]
		var d CoefGrad
		c := s.Coef(k, new(Coef), xt, scratch)
		c.WriteBackward(k, dxt, dy[t*dim:(t+1)*dim], &d, a[t*width:(t+1)*width], xt, yt)
		c.ReadBackward(k, dxt, &d, b[t*dim:(t+1)*dim], xt)
		s.Backward(k, g, dxt, &d, xt, scratch)
	}
	s.FinishBackward(k, g)
	return g, dx, dy
}

// Every set gives the same bits.
func TestBackwardSets(t *testing.T) {
	const dim, tokens = 37, 5
	for _, c := range configs(dim) {
		s := randomised(t, c, 5, 0.5)
		n := c.Streams
		x, y := normal(1, tokens*n*dim), normal(2, tokens*dim)
		a, b := normal(3, tokens*n*dim), normal(4, tokens*dim)
		want, dx, dy := backward(kernels.All()[0], s, x, y, a, b)
		for _, k := range kernels.All()[1:] {
			g, dx2, dy2 := backward(k, s, x, y, a, b)
			require.Equal(t, want.Params(), g.Params(), k.Name)
			require.Equal(t, dx, dx2, k.Name)
			require.Equal(t, dy, dy2, k.Name)
		}
	}
}

// Parts merged in order are the whole; a static site keeps float64 sums until
// FinishBackward, so there they are the whole to the last bit.
func TestMerge(t *testing.T) {
	const dim, tokens = 16, 8
	k := kernels.All()[0]
	for _, c := range configs(dim) {
		if c.Streams == 1 {
			continue
		}
		s := randomised(t, c, 5, 0.5)
		width := c.Streams * dim
		x, y := normal(1, tokens*width), normal(2, tokens*dim)
		a, b := normal(3, tokens*width), normal(4, tokens*dim)
		whole, _, _ := backward(k, s, x, y, a, b)
		sum := NewGrad(c)
		sum.Pre[0], sum.sum.pre[0] = 7, 7
		sum.Clear()
		for _, r := range [][2]int{{0, 3}, {3, 8}} {
			lo, hi := r[0], r[1]
			part, _, _ := backward(k, s, x[lo*width:hi*width], y[lo*dim:hi*dim], a[lo*width:hi*width], b[lo*dim:hi*dim])
			sum.Merge(k, part)
		}
		for i, p := range whole.Params() {
			for j, v := range p.Data {
				require.InDelta(t, v, sum.Params()[i].Data[j], 1e-4, fmt.Sprint(c, p.Name, j))
			}
		}
	}
	c := Config{Streams: 2, Dim: 1}
	g, part := NewGrad(c), NewGrad(c)
	s := randomised(t, c, 1, 1)
	s.Backward(k, g, nil, &CoefGrad{Pre: [4]float32{1e8}}, nil, nil)
	s.Backward(k, part, nil, &CoefGrad{Pre: [4]float32{1}}, nil, nil)
	g.Merge(k, part)
	g.Merge(k, part)
	s.Backward(k, g, nil, &CoefGrad{Pre: [4]float32{-1e8}}, nil, nil)
	require.Equal(t, 2.0, g.sum.pre[0])
	s.FinishBackward(k, g)
	p := 1 / (1 + math.Exp(-float64(s.Pre[0])))
	require.InDelta(t, 2*p*(1-p), g.Pre[0], 1e-6)
	before := g.Pre[0]
	s.FinishBackward(k, g) // the sums are used up
	require.Equal(t, before, g.Pre[0])
}

// With one stream the gradients are those of x + y and of u = x, bit for bit.
func TestBackwardOfOneStream(t *testing.T) {
	k := kernels.All()[0]
	s, err := New(Config{Streams: 1, Dim: 50, Dynamic: true})
	require.NoError(t, err)
	s.Prepare(k)
	dout, du := normal(1, 50), normal(2, 50)
	want := make([]float32, 50)
	for i := range want {
		want[i] = dout[i] + du[i]
	}
	c := s.Coef(k, nil, nil, nil)
	dx, dy := make([]float32, 50), make([]float32, 50)
	c.WriteBackward(k, dx, dy, nil, dout, nil, nil)
	require.Equal(t, dout, dx)
	require.Equal(t, dout, dy)
	c.ReadBackward(k, dx, nil, du, nil)
	require.Equal(t, want, dx)
	s.Backward(k, nil, nil, nil, nil, nil)
	s.FinishBackward(k, nil)
	require.Empty(t, NewGrad(s.Config).Params())
	c.WriteBackward(k, dout, dout, nil, dout, nil, nil) // in place
	c.ReadBackward(k, dout, nil, du, nil)
	require.Equal(t, want, dout)
}

func TestExpandAndCollapseBackward(t *testing.T) {
	k := kernels.All()[0]
	for _, n := range []int{1, 2, 4} {
		d := normal(1, 20)
		dx := make([]float32, n*20)
		CollapseBackward(k, dx, d)
		for i, v := range dx {
			require.Equal(t, d[i%20]/float32(n), v)
		}
		x := normal(2, n*20)
		ExpandBackward(k, d, x)
		for i := range d {
			want := 0.0
			for s := range n {
				want += float64(x[s*20+i])
			}
			require.InDelta(t, want, d[i], 1e-6)
		}
	}
}

func TestBackwardDoesNotAllocate(t *testing.T) {
	k := kernels.All()[0]
	const dim = 16
	for _, c := range configs(dim) {
		s := randomised(t, c, 3, 1)
		s.Prepare(k)
		x, y, a, b := normal(1, c.Streams*dim), normal(2, dim), normal(3, c.Streams*dim), normal(4, dim)
		dx, dy, scratch := make([]float32, len(x)), make([]float32, dim), make([]float32, s.ScratchLen()+s.BackwardScratchLen())
		co, d, g, part := new(Coef), new(CoefGrad), NewGrad(c), NewGrad(c)
		n := testing.AllocsPerRun(10, func() {
			m := s.Coef(k, co, x, scratch)
			m.WriteBackward(k, dx, dy, d, a, x, y)
			m.ReadBackward(k, dx, d, b, x)
			s.Backward(k, part, dx, d, x, scratch)
			g.Merge(k, part)
			s.FinishBackward(k, g)
			part.Clear()
		})
		require.Zero(t, n, fmt.Sprint(c))
	}
}

// chain is a small network of sites around F(u) = tanh(W·RMSNorm(u)), its objective
// a random function of the mean of the streams.
type chain struct {
	sites []*Site
	f     [][]float64 // W of every site, [dim, dim]
	e, a  []float32   // of all tokens
}

// gradients runs forward and backward. The layer function is plain Go: only what
// flows through the sites matters here.
func (n *chain) gradients(k *kernels.Set, dim int) []*Grad {
	grads := make([]*Grad, len(n.sites))
	for i, s := range n.sites {
		s.Prepare(k)
		grads[i] = NewGrad(s.Config)
	}
	streams := n.sites[0].Streams
	for t := range len(n.e) / dim {
		x := make([]float32, streams*dim)
		Expand(x, n.e[t*dim:(t+1)*dim])
		states, outs, us := [][]float32{}, [][]float32{}, [][]float32{}
		coefs := make([]*Coef, len(n.sites))
		for i, s := range n.sites {
			u, norm := make([]float32, dim), make([]float32, dim)
			coefs[i] = s.Coef(k, new(Coef), x, make([]float32, s.ScratchLen()))
			coefs[i].Read(k, u, x)
			k.RMSNorm(norm, u, nil, 1e-6)
			y := make([]float32, dim)
			for r := range y {
				z := 0.0
				for c, v := range norm {
					z += n.f[i][r*dim+c] * float64(v)
				}
				y[r] = float32(math.Tanh(z))
			}
			states, outs, us = append(states, x), append(outs, y), append(us, u)
			x = make([]float32, streams*dim)
			coefs[i].Write(k, x, states[i], y)
		}
		dout := make([]float32, streams*dim)
		CollapseBackward(k, dout, n.a[t*dim:(t+1)*dim])
		for i := len(n.sites) - 1; i >= 0; i-- {
			var d CoefGrad
			dx, dy := make([]float32, streams*dim), make([]float32, dim)
			coefs[i].WriteBackward(k, dx, dy, &d, dout, states[i], outs[i])
			square := 0.0
			for _, v := range us[i] {
				square += float64(v) * float64(v)
			}
			rms := math.Sqrt(square/float64(dim) + 1e-6)
			dn, mean := make([]float64, dim), 0.0
			for r, v := range dy {
				dz := float64(v) * (1 - float64(outs[i][r])*float64(outs[i][r]))
				for c := range dn {
					dn[c] += dz * n.f[i][r*dim+c]
				}
			}
			for c, v := range us[i] {
				mean += dn[c] * float64(v) / rms / float64(dim)
			}
			du := make([]float32, dim)
			for c, v := range us[i] {
				du[c] = float32((dn[c] - float64(v)/rms*mean) / rms)
			}
			coefs[i].ReadBackward(k, dx, &d, du, states[i])
			n.sites[i].Backward(k, grads[i], dx, &d, states[i], make([]float32, n.sites[i].BackwardScratchLen()))
			dout = dx
		}
	}
	for i, s := range n.sites {
		s.FinishBackward(k, grads[i])
	}
	return grads
}

// From Init every tensor that can matter gets a gradient once the streams have
// parted, which a few updates do; from the symmetric start they never part. (Two
// places cannot matter: in front of the first site the streams are equal by
// definition, so its static pre and res have no effect but for eps; and the mean of
// the streams after the last does not see its res, whose columns sum to 1.)
func TestInitBreaksTheSymmetry(t *testing.T) {
	const dim, tokens, sites = 8, 6, 4
	k := kernels.All()[0]
	norms := func(c Config, symmetric bool) (smallest float64, name string) {
		net := &chain{e: normal(1, tokens*dim), a: normal(2, tokens*dim)}
		for i := range sites {
			s, err := New(c)
			require.NoError(t, err)
			s.Init(i)
			if symmetric {
				clear(s.Pre)
			}
			net.sites = append(net.sites, s)
			net.f = append(net.f, widen(normal(uint64(10+i), dim*dim)))
		}
		for range 10 {
			for i, g := range net.gradients(k, dim) {
				for j, p := range net.sites[i].Params() {
					for at, v := range g.Params()[j].Data {
						p.Data[at] -= 0.3 * v
					}
				}
			}
		}
		smallest = math.Inf(1)
		for i, g := range net.gradients(k, dim) {
			for _, p := range g.Params() {
				first, last := i == 0 && (p.Name == "pre" || p.Name == "res"), i == sites-1 && p.Name == "res"
				if first || last {
					continue
				}
				square := 0.0
				for _, v := range p.Data {
					square += float64(v) * float64(v)
				}
				if square < smallest {
					smallest, name = square, fmt.Sprintf("%s of site %d", p.Name, i)
				}
			}
		}
		return math.Sqrt(smallest), name
	}
	for _, c := range configs(dim) {
		if c.Streams == 1 {
			continue
		}
		got, name := norms(c, false)
		require.Greater(t, got, 1e-5, "%v: %s", c, name)
		if !c.Dynamic {
			got, name = norms(c, true)
			require.Less(t, got, 1e-7, "%v: %s", c, name)
		}
	}
}
