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

// flashCase is attention over packed rows: what goes in, as the device stores it, and the same in
// float32.
type flashCase struct {
	rows, seq, heads, kv, dim int
	scale                     float32
	starts                    []int32
	qkv, dout                 []uint16
	x, d                      []float32
}

// newFlashCase has documents that end at random places of a row, each with a chance of one in
// length; 0: each row is one document, 1: each token is.
func newFlashCase(r *rand.Rand, rows, seq, heads, kv, dim, length int) *flashCase {
	c := &flashCase{rows: rows, seq: seq, heads: heads, kv: kv, dim: dim, scale: float32(1.3 / math.Sqrt(float64(dim)))}
	n := rows * seq
	c.starts = make([]int32, n)
	for i := range n {
		if at := i % seq; at > 0 {
			c.starts[i] = c.starts[i-1]
			if length > 0 && r.IntN(length) == 0 {
				c.starts[i] = int32(at)
			}
		}
	}
	for range n * (heads + 2*kv) * dim {
		h := kernels.F32ToF16(float32(r.NormFloat64()))
		c.qkv, c.x = append(c.qkv, h), append(c.x, kernels.F16ToF32(h))
	}
	for i := range n * heads * dim { // gradients are small, and differ much between tokens
		v := float32(r.NormFloat64() * math.Exp2(float64(-i/(heads*dim)%40)))
		h := uint16(math.Float32bits(v) >> 16)
		c.dout, c.d = append(c.dout, h), append(c.d, math.Float32frombits(uint32(h)<<16))
	}
	return c
}

// grads is what attention gives: out and its gradients.
type grads struct{ out, dq, dk, dv []float64 }

func newGrads(c *flashCase) grads {
	q, kv := c.rows*c.seq*c.heads*c.dim, c.rows*c.seq*c.kv*c.dim
	return grads{make([]float64, q), make([]float64, q), make([]float64, kv), make([]float64, kv)}
}

// exact computes in float64 by the definition. size is the same with the magnitudes of all that is
// added: errors of rounding are in proportion to it.
func (c *flashCase) exact() (g, size grads) {
	g, size = newGrads(c), newGrads(c)
	d, ld := c.dim, (c.heads+2*c.kv)*c.dim
	dot := func(x, y []float32) (s, size float64) {
		for i := range x {
			s += float64(x[i]) * float64(y[i])
			size += math.Abs(float64(x[i]) * float64(y[i]))
		}
		return s, size
	}
	add := func(sum, size []float64, x, large float64, y []float32) {
		for i, v := range y {
			sum[i] += x * float64(v)
			size[i] += large * math.Abs(float64(v))
		}
	}
	for token := range c.rows * c.seq {
		row, i := token/c.seq*c.seq, token%c.seq
		first := row + int(c.starts[token])
		for h := range c.heads {
			group := h / (c.heads / c.kv)
			vec := func(token, head int) []float32 { return c.x[token*ld+head*d:][:d] }
			q, at := vec(token, h), (token*c.heads+h)*d
			do := c.d[at:][:d]
			p := make([]float64, row+i-first+1)
			top, total := math.Inf(-1), 0.0
			for j := range p {
				p[j], _ = dot(q, vec(first+j, c.heads+group))
				p[j] *= float64(c.scale)
				top = max(top, p[j])
			}
			for j := range p {
				p[j] = math.Exp(p[j] - top)
				total += p[j]
			}
			delta, deltaSize := 0.0, 0.0
			for j := range p {
				p[j] /= total
				v := vec(first+j, c.heads+c.kv+group)
				add(g.out[at:], size.out[at:], p[j], p[j], v)
				s, large := dot(do, v)
				delta, deltaSize = delta+p[j]*s, deltaSize+p[j]*large
			}
			for j := range p {
				k, v, to := vec(first+j, c.heads+group), vec(first+j, c.heads+c.kv+group), ((first+j)*c.kv+group)*d
				s, large := dot(do, v)
				ds := p[j] * (s - delta) * float64(c.scale)
				large = p[j] * (large + deltaSize) * float64(c.scale)
				add(g.dq[at:], size.dq[at:], ds, large, k)
				add(g.dk[to:], size.dk[to:], ds, large, q)
				add(g.dv[to:], size.dv[to:], p[j], p[j], do)
			}
		}
	}
	return g, size
}

// flash runs f with the kernels of attention on a device of its own.
func flash(t *testing.T, f func(*cuda.Thread, *cuda.Flash)) {
	t.Helper()
	v, image := cudatest.Open(t, os.Getenv)
	t.Cleanup(v.Close)
	require.NoError(t, v.Do(func(th *cuda.Thread) error {
		k, err := th.Flash(image)
		require.NoError(t, err)
		f(th, k)
		return nil
	}))
}

// poisoned is device memory of n numbers that are NaN.
func poisoned(t *testing.T, th *cuda.Thread, n int) cuda.Ptr {
	t.Helper()
	p, err := th.Alloc(uint64(4 * n))
	require.NoError(t, err)
	require.NoError(t, th.Fill(p, 0xFF, uint64(4*n)))
	return p
}

// device computes forward and backward.
func (c *flashCase) device(t *testing.T, th *cuda.Thread, k *cuda.Flash) grads {
	t.Helper()
	n, q, kv := c.rows*c.seq, c.heads*c.dim, c.kv*c.dim
	s := cuda.FlashShape{Docs: cuda.Docs{Starts: put(t, th, c.starts), Rows: c.rows, SeqLen: c.seq}, Heads: c.heads, KVHeads: c.kv, HeadDim: c.dim, Scale: c.scale}
	qkv, dout := put(t, th, c.qkv), put(t, th, c.dout)
	lse, delta := poisoned(t, th, n*c.heads), poisoned(t, th, n*c.heads)
	out, dq, dk, dv := poisoned(t, th, n*q), poisoned(t, th, n*q), poisoned(t, th, n*kv), poisoned(t, th, n*kv)
	require.NoError(t, k.Forward(out, lse, qkv, s))
	require.NoError(t, k.Backward(dq, dk, dv, delta, dout, out, lse, qkv, s))
	wide := func(p cuda.Ptr, n int) []float64 {
		x := make([]float64, n)
		for i, v := range get[float32](t, th, p, n) {
			x[i] = float64(v)
		}
		return x
	}
	return grads{wide(out, n*q), wide(dq, n*q), wide(dk, n*kv), wide(dv, n*kv)}
}

// Tolerances. Factors of the forward have 11 bits, one of the two in each product is rounded; those
// of gradients have 8, and up to three roundings meet in a product. So no element is further off
// than this part of the sum of magnitudes; and, the errors being random, the length of the
// error of a whole result is far below that part of its length.
const (
	flashForward  = 1.0 / (1 << 10)
	flashBackward = 1.0 / (1 << 7)
)

// requireClose returns the length of the error by that of want.
func requireClose(t *testing.T, what string, want, size, got []float64, tolerance float64) float64 {
	t.Helper()
	var errors, lengths, sizes float64
	for i, w := range want {
		diff := math.Abs(w - got[i])
		require.LessOrEqual(t, diff, tolerance*size[i]+1e-30, "%s[%d]: %v, not %v", what, i, got[i], w)
		errors, lengths, sizes = errors+diff*diff, lengths+w*w, sizes+size[i]*size[i]
	}
	require.LessOrEqual(t, math.Sqrt(errors), tolerance/2*math.Sqrt(lengths)+tolerance/6*math.Sqrt(sizes), what)
	return math.Sqrt(errors / max(lengths, math.SmallestNonzeroFloat64))
}

func requireGrads(t *testing.T, what string, want, size, got grads) {
	t.Helper()
	out := requireClose(t, what+" out", want.out, size.out, got.out, flashForward)
	dq := requireClose(t, what+" dq", want.dq, size.dq, got.dq, flashBackward)
	dk := requireClose(t, what+" dk", want.dk, size.dk, got.dk, flashBackward)
	dv := requireClose(t, what+" dv", want.dv, size.dv, got.dv, flashBackward)
	t.Logf("%s: relative errors of out %.1e, dq %.1e, dk %.1e, dv %.1e", what, out, dq, dk, dv)
}

func TestFlashIsAttentionAndItsDerivative(t *testing.T) {
	r := rand.New(rand.NewPCG(71, 1))
	for _, s := range []struct{ rows, seq, heads, kv, dim, length int }{
		{1, 1, 1, 1, 16, 0}, {1, 64, 1, 1, 64, 0}, {2, 97, 2, 1, 64, 30}, {1, 192, 1, 1, 64, 0},
		{2, 96, 2, 2, 128, 25}, {1, 129, 3, 1, 32, 60}, {1, 70, 1, 1, 48, 1}, {1, 100, 2, 1, 112, 0},
	} {
		c := newFlashCase(r, s.rows, s.seq, s.heads, s.kv, s.dim, s.length)
		var got grads
		flash(t, func(th *cuda.Thread, k *cuda.Flash) { got = c.device(t, th, k) })
		want, size := c.exact()
		requireGrads(t, fmt.Sprintf("%+v", s), want, size, got)
	}
}
