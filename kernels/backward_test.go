package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// requireGradient compares grad with central differences of loss, a float64 function
// of the numbers that x points to, at every one of them. The error is taken of the
// largest difference: 1e-5 of it, and 1e-6 where all cancels, leave room for rounding to
// float32, not for a wrong term.
func requireGradient(t *testing.T, what string, loss func() float64, x []float64, grad []float32) {
	t.Helper()
	const h = 1e-5
	want := make([]float64, len(x))
	top := 0.0
	for i, v := range x {
		x[i] = v + h
		up := loss()
		x[i] = v - h
		want[i] = (up - loss()) / (2 * h)
		x[i] = v
		top = max(top, math.Abs(want[i]))
	}
	for i, w := range want {
		require.InDelta(t, w, float64(grad[i]), 1e-5*top+1e-6, "%s: element %d", what, i)
	}
}

func float64s(x []float32) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = float64(v)
	}
	return y
}

// weighted is Σ dy·y: the loss whose gradient by y is dy.
func weighted(dy []float32, y func(i int) float64) float64 {
	var s float64
	for i, d := range dy {
		s += float64(d) * y(i)
	}
	return s
}

func random(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	normals(r, x)
	return x
}

func TestRMSNormBackwardIsTheDerivative(t *testing.T) {
	r := rand.New(rand.NewPCG(60, 1))
	for _, s := range All() {
		for _, n := range []int{1, 7, 64} {
			for _, eps := range []float64{1e-6, 0.5} {
				x, w, dy := random(r, n), random(r, n), random(r, n)
				fx, fw := float64s(x), float64s(w)
				loss := func() float64 {
					mean := eps
					for _, v := range fx {
						mean += v * v / float64(n)
					}
					return weighted(dy, func(i int) float64 { return fx[i] / math.Sqrt(mean) * fw[i] })
				}
				dx, before := make([]float32, n), random(r, n)
				dw := append([]float32(nil), before...)
				s.RMSNormBackward(dx, dw, dy, x, w, float32(eps))
				for i := range dw {
					dw[i] -= before[i]
				}
				requireGradient(t, s.Name+" dx", loss, fx, dx)
				requireGradient(t, s.Name+" dweight", loss, fw, dw)

				plain, ones := make([]float32, n), make([]float32, n)
				for i := range ones {
					ones[i] = 1
				}
				s.RMSNormBackward(plain, nil, dy, x, nil, float32(eps))
				s.RMSNormBackward(dx, nil, dy, x, ones, float32(eps))
				requireSame(t, dx, plain, s.Name+" without weight")
			}
		}
	}
}

func TestGatesBackwardAreTheDerivatives(t *testing.T) {
	r := rand.New(rand.NewPCG(60, 2))
	const n = 37
	relu2 := func(x float64) float64 { return max(x, 0) * max(x, 0) }
	for _, s := range All() {
		for _, c := range []struct {
			name string
			f    func(gate, up float64) float64
			back func(dgate, dup, dy, gate, up []float32)
		}{
			{"SwiGLU", func(g, u float64) float64 { return g / (1 + math.Exp(-g)) * u }, s.SwiGLUBackward},
			{"ReLU2GLU", func(g, u float64) float64 { return relu2(g) * u }, s.ReLU2GLUBackward},
			{"ReLU2", func(g, _ float64) float64 { return relu2(g) }, func(dgate, dup, dy, gate, _ []float32) {
				s.ReLU2Backward(dgate, dy, gate)
				clear(dup)
			}},
		} {
			gate, up, dy := random(r, n), random(r, n), random(r, n)
			for i := range gate {
				gate[i] *= 3
			}
			fg, fu := float64s(gate), float64s(up)
			loss := func() float64 { return weighted(dy, func(i int) float64 { return c.f(fg[i], fu[i]) }) }
			dgate, dup := make([]float32, n), make([]float32, n)
			c.back(dgate, dup, dy, gate, up)
			requireGradient(t, s.Name+" "+c.name+" dgate", loss, fg, dgate)
			requireGradient(t, s.Name+" "+c.name+" dup", loss, fu, dup)
		}
	}
}

// RoPE is a rotation: its backward is its inverse.
func TestRoPEBackwardInverts(t *testing.T) {
	r := rand.New(rand.NewPCG(60, 3))
	for _, s := range All() {
		for _, half := range []int{1, 16, 21} {
			heads, d := 2, 2*half+3
			cos, sin := make([]float32, 40*half), make([]float32, 40*half)
			RoPETable(cos, sin, 40, 2*half, 1e4, 1, nil)
			cos, sin = cos[39*half:], sin[39*half:]
			for _, pairs := range []bool{false, true} {
				x := random(r, heads*d)
				y := append([]float32(nil), x...)
				s.RoPE(y, heads, d, cos, sin, pairs)
				s.RoPEBackward(y, heads, d, cos, sin, pairs)
				for i := range x {
					require.InDelta(t, x[i], y[i], 1e-6, s.Name)
				}
			}
		}
	}
}

func TestCrossEntropyIsTheDerivative(t *testing.T) {
	r := rand.New(rand.NewPCG(60, 4))
	for _, s := range All() {
		for i, o := range []Loss{
			{Scale: 1},
			{Scale: 0.5, Cap: 15},
			{Scale: 1, Cap: 50, Z: 1e-2},
			{Scale: 2, Cap: 15, Z: 1e-3, Entropy: 0.05, Smoothing: 0.1},
			{Scale: 1, Entropy: -0.2, Smoothing: 0.3},
		} {
			const n = 53
			z := random(r, n)
			for i := range z {
				z[i] *= 6
			}
			target := r.IntN(n)
			fz := float64s(z)
			var nll, lse, entropy float64
			loss := func() float64 {
				y := append([]float64(nil), fz...)
				var sum, mean, dot float64
				for i, v := range y {
					if o.Cap != 0 {
						y[i] = float64(o.Cap) * math.Tanh(v/float64(o.Cap))
					}
					sum += math.Exp(y[i])
					mean += y[i] / n
				}
				for _, v := range y {
					dot += math.Exp(v) / sum * v
				}
				lse = math.Log(sum)
				nll, entropy = lse-y[target], lse-dot
				sm := float64(o.Smoothing)
				return float64(o.Scale) * ((1-sm)*nll + sm*(lse-mean) + float64(o.Z)*lse*lse - float64(o.Entropy)*entropy)
			}
			dst := make([]float32, n)
			a, b, c := s.CrossEntropy(dst, z, int32(target), &o)
			what := fmt.Sprintf("%s %d", s.Name, i)
			requireGradient(t, what, loss, fz, dst)
			loss()
			require.InDelta(t, nll, a, 2e-6*(1+math.Abs(nll)), what)
			require.InDelta(t, lse, b, 2e-6*(1+math.Abs(lse)), what)
			require.InDelta(t, entropy, c, 2e-6*(1+math.Abs(lse)), what)

			d, e, f := s.CrossEntropy(nil, z, int32(target), &o)
			require.Equal(t, [3]float32{a, b, c}, [3]float32{d, e, f}, what)
			s.CrossEntropy(z, z, int32(target), &o)
			requireSame(t, dst, z, what+" in place")
			d, e, f = s.CrossEntropy(z, dst, -1, &o)
			require.Equal(t, [3]float32{}, [3]float32{d, e, f}, what)
			require.Equal(t, make([]float32, n), z, what)
		}
	}
}

// attentionCase is a random document in rows wider than needed.
type attentionCase struct {
	AttentionGrad
	q, k, v, out, dout []float32
}

func newAttentionCase(r *rand.Rand, n, heads, kvHeads, d int) *attentionCase {
	c := &attentionCase{AttentionGrad: AttentionGrad{
		N: n, Heads: heads, KVHeads: kvHeads, HeadDim: d, Scale: float32(1 / math.Sqrt(float64(d))),
		LDQ: heads*d + 3, LDK: kvHeads*d + 1, LDV: kvHeads * d, LDO: heads*d + 2,
	}}
	c.q, c.k, c.v, c.dout = random(r, n*c.LDQ), random(r, n*c.LDK), random(r, n*c.LDV), random(r, n*c.LDO)
	c.out = make([]float32, n*c.LDO)
	fq, fk, fv := float64s(c.q), float64s(c.k), float64s(c.v)
	for i := range n {
		for h := range heads {
			o := c.attend(fq, fk, fv, i, h)
			for j := range d {
				c.out[i*c.LDO+h*d+j] = float32(o[j])
			}
		}
	}
	return c
}

// attend is the forward of query i of head h.
func (c *attentionCase) attend(q, k, v []float64, i, h int) []float64 {
	d := c.HeadDim
	g := h / (c.Heads / c.KVHeads)
	o := make([]float64, d)
	var sum float64
	for t := range i + 1 {
		var s float64
		for j := range d {
			s += q[i*c.LDQ+h*d+j] * k[t*c.LDK+g*d+j]
		}
		e := math.Exp(float64(c.Scale) * s)
		sum += e
		for j := range d {
			o[j] += e * v[t*c.LDV+g*d+j]
		}
	}
	for j := range o {
		o[j] /= sum
	}
	return o
}

func TestAttentionBackwardIsTheDerivative(t *testing.T) {
	r := rand.New(rand.NewPCG(60, 5))
	for _, shape := range [][4]int{{1, 1, 1, 4}, {9, 4, 2, 5}, {6, 2, 2, 16}, {5, 3, 1, 18}} {
		n, heads, kvHeads, d := shape[0], shape[1], shape[2], shape[3]
		c := newAttentionCase(r, n, heads, kvHeads, d)
		fq, fk, fv := float64s(c.q), float64s(c.k), float64s(c.v)
		loss := func() (s float64) {
			for i := range n {
				for h := range heads {
					for j, o := range c.attend(fq, fk, fv, i, h) {
						s += float64(c.dout[i*c.LDO+h*d+j]) * o
					}
				}
			}
			return s
		}
		scratch := make([]byte, AttentionBackwardScratch(n, d))
		for _, s := range All() {
			dq, dk, dv := make([]float32, len(c.q)), make([]float32, len(c.k)), make([]float32, len(c.v))
			s.AttentionBackward(dq, dk, dv, c.dout, c.q, c.k, c.v, c.out, &c.AttentionGrad, 0, kvHeads, scratch)
			what := fmt.Sprintf("%s %v", s.Name, shape)
			requireGradient(t, what+" dq", loss, fq, dq)
			requireGradient(t, what+" dk", loss, fk, dk)
			requireGradient(t, what+" dv", loss, fv, dv)
		}
	}
}
