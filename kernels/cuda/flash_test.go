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
func flash(t *testing.T, f func(*cuda.Thread, *cuda.Flash) error) {
	t.Helper()
	v, image := cudatest.Open(t, os.Getenv)
	err := v.Do(func(th *cuda.Thread) error {
		k, err := th.Flash(image)
		if err != nil {
			return err
		}
		return f(th, k)
	})
	v.Close()
	require.NoError(t, err)
}

// behind is how many numbers after a result that must stay as they are.
const behind = 64

// poisoned is device memory of n numbers, and some behind them, that are NaN.
func poisoned(t *testing.T, th *cuda.Thread, n int) cuda.Ptr {
	t.Helper()
	p, err := th.Alloc(uint64(4 * (n + behind)))
	require.NoError(t, err)
	require.NoError(t, th.Fill(p, 0xFF, uint64(4*(n+behind))))
	return p
}

// flashMemory is a case on the device.
type flashMemory struct {
	c                           *flashCase
	s                           cuda.FlashShape
	qkv, dout                   cuda.Ptr
	lse, delta, out, dq, dk, dv cuda.Ptr
}

func (c *flashCase) put(t *testing.T, th *cuda.Thread) *flashMemory {
	t.Helper()
	n, q, kv := c.rows*c.seq, c.heads*c.dim, c.kv*c.dim
	return &flashMemory{
		c: c, s: cuda.FlashShape{Docs: cuda.Docs{Starts: put(t, th, c.starts), Rows: c.rows, SeqLen: c.seq}, Heads: c.heads, KVHeads: c.kv, HeadDim: c.dim, Scale: c.scale},
		qkv: put(t, th, c.qkv), dout: put(t, th, c.dout), lse: poisoned(t, th, n*c.heads), delta: poisoned(t, th, n*c.heads),
		out: poisoned(t, th, n*q), dq: poisoned(t, th, n*q), dk: poisoned(t, th, n*kv), dv: poisoned(t, th, n*kv),
	}
}

// run queues forward and backward.
func (m *flashMemory) run(k *cuda.Flash) error {
	if err := k.Forward(m.out, m.lse, m.qkv, m.s); err != nil {
		return err
	}
	return k.Backward(m.dq, m.dk, m.dv, m.delta, m.dout, m.out, m.lse, m.qkv, m.s)
}

// get is the results, and whether what is behind them is as it was.
func (m *flashMemory) get(t *testing.T, th *cuda.Thread) (g grads, intact bool) {
	t.Helper()
	g, intact = newGrads(m.c), true
	for p, to := range map[cuda.Ptr][]float64{m.out: g.out, m.dq: g.dq, m.dk: g.dk, m.dv: g.dv} {
		x := get[float32](t, th, p, len(to)+behind)
		for i := range to {
			to[i] = float64(x[i])
		}
		for _, v := range x[len(to):] {
			intact = intact && math.Float32bits(v) == math.MaxUint32
		}
	}
	return g, intact
}

// device computes forward and backward.
func (c *flashCase) device(t *testing.T) (g grads) {
	t.Helper()
	intact, ok := false, false
	flash(t, func(th *cuda.Thread, k *cuda.Flash) error {
		m := c.put(t, th)
		if err := m.run(k); err != nil {
			return err
		}
		g, intact = m.get(t, th)
		ok = true
		return nil
	})
	require.True(t, ok)
	require.True(t, intact, "something was written behind the results")
	return g
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
		if !(diff <= tolerance*size[i]+1e-30) { // a NaN is not
			require.FailNow(t, what, "[%d] is %v, not %v: off by %.2e of the magnitudes", i, got[i], w, diff/size[i])
		}
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
	t.Logf("%s: relative errors of out %.1e, dq %.1e, dk %.1e, dv %.1e", what, out, dq, dk, dv) // infinite where 0 is right
}

func TestFlashIsAttentionAndItsDerivative(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 71, 1)
	type shape struct{ rows, seq, heads, kv, dim, length int }
	shapes := []shape{
		{1, 1, 1, 1, 16, 0}, {1, 64, 1, 1, 64, 0}, {2, 97, 4, 2, 64, 30}, {1, 192, 1, 1, 64, 0}, {1, 193, 2, 1, 64, 150},
		{2, 96, 2, 2, 128, 25}, {1, 135, 3, 1, 128, 70}, {1, 129, 3, 1, 32, 60}, {1, 70, 1, 1, 48, 1}, {3, 33, 2, 1, 112, 0}, {1, 260, 1, 1, 16, 200},
	}
	if cudatest.OnGPU(os.Getenv) { // that fill it, and are slow otherwise
		shapes = append(shapes, shape{4, 1024, 12, 4, 64, 300}, shape{2, 2048, 4, 1, 128, 0}, shape{7, 777, 6, 6, 96, 100}, shape{9, 1000, 6, 2, 32, 500})
	}
	for _, s := range shapes {
		c := newFlashCase(r, s.rows, s.seq, s.heads, s.kv, s.dim, s.length)
		want, size := c.exact()
		got := c.device(t)
		requireGrads(t, fmt.Sprintf("%+v", s), want, size, got)
		if cudatest.OnGPU(os.Getenv) {
			require.Equal(t, got, c.device(t), "the second time")
		}
	}
}

// Scores of a hundred and more: nearly all probability is at one key, and the largest score so
// far grows from step to step.
func TestFlashOfLargeScores(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 72, 1)
	for _, dim := range []int{64, 128} {
		c := newFlashCase(r, 1, 150, 1, 1, dim, 100)
		c.scale = 3
		for i := range c.qkv { // keys that grow along the row
			if i/dim%3 == 1 {
				c.x[i] *= float32(1 + i/(3*dim)/10)
				c.qkv[i] = kernels.F32ToF16(c.x[i])
				c.x[i] = kernels.F16ToF32(c.qkv[i])
			}
		}
		want, _ := c.exact()
		got := c.device(t)
		for i, w := range want.out { // the exponent is off by up to 2^-24 of some thousand
			require.InDelta(t, w, got.out[i], 5e-3)
		}
		for _, x := range [][]float64{got.dq, got.dk, got.dv} {
			for _, v := range x {
				require.False(t, math.IsNaN(v) || math.IsInf(v, 0))
			}
		}
	}
}

// The reference kernels take one document at a time.
func TestFlashGivesWhatTheReferenceKernelsGive(t *testing.T) {
	set, r := reference(t), cudatest.Rand(os.Getenv, 73, 1)
	c := newFlashCase(r, 2, 90, 4, 2, 64, 30)
	got := c.device(t)
	d, q, kv, ld := c.dim, c.heads*c.dim, c.kv*c.dim, (c.heads+2*c.kv)*c.dim
	want := newGrads(c)
	for first := 0; first < c.rows*c.seq; {
		n := 1
		for (first+n)%c.seq != 0 && c.starts[first+n] == c.starts[first] {
			n++
		}
		cache := kernels.KV{
			Type: kernels.KVF16, Heads: c.kv, HeadDim: d, Pages: []int32{0, 1}, PageBytes: c.kv * kernels.KVF16.HeadBytes(d),
			Slab: kernels.AlignedBytes(2 * c.kv * kernels.KVF16.HeadBytes(d)),
		}
		part := func(column, width int) []float32 {
			x := make([]float32, 0, n*width)
			for i := range n {
				x = append(x, c.x[(first+i)*ld+column:][:width]...)
			}
			return x
		}
		qs, ks, vs := part(0, q), part(q, kv), part(q+kv, kv)
		for i := range n {
			set.KVStore(&cache, i, ks[i*kv:][:kv], vs[i*kv:][:kv])
		}
		out, dq, dk, dv := make([]float32, n*q), make([]float32, n*q), make([]float32, n*kv), make([]float32, n*kv)
		set.Attention(out, q, qs, q, &cache, kernels.Query{N: n, Heads: c.heads, Scale: c.scale}, 0, c.heads, make([]byte, kernels.AttentionScratch(d)))
		a := &kernels.AttentionGrad{N: n, Heads: c.heads, KVHeads: c.kv, HeadDim: d, Scale: c.scale, LDQ: q, LDK: kv, LDV: kv, LDO: q}
		set.AttentionBackward(dq, dk, dv, c.d[first*q:][:n*q], qs, ks, vs, out, a, 0, c.kv, make([]byte, kernels.AttentionBackwardScratch(n, d)))
		for _, x := range []struct {
			to   []float64
			from []float32
		}{{want.out[first*q:], out}, {want.dq[first*q:], dq}, {want.dk[first*kv:], dk}, {want.dv[first*kv:], dv}} {
			for i, v := range x.from {
				x.to[i] = float64(v)
			}
		}
		first += n
	}
	_, size := c.exact()
	requireGrads(t, "reference kernels", want, size, got)
}

// Gradients in bfloat16 are those in float32, rounded.
func TestFlashHalfGrads(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 74, 3)
	for _, d := range []int{48, 64, 128} {
		c := newFlashCase(r, 1, 140, 2, 1, d, 40)
		flash(t, func(th *cuda.Thread, k *cuda.Flash) error {
			m := c.put(t, th)
			require.NoError(t, m.run(k))
			n, q, kv := c.rows*c.seq, c.heads*c.dim, c.kv*c.dim
			list := []struct {
				p cuda.Ptr
				n int
			}{{m.dq, n * q}, {m.dk, n * kv}, {m.dv, n * kv}}
			var want [][]uint16
			for _, x := range list {
				b := make([]uint16, x.n)
				kernels.Best().BF16(b, 1, get[float32](t, th, x.p, x.n))
				want = append(want, b)
			}
			m.s.HalfGrads = true
			require.NoError(t, m.run(k))
			for i, x := range list {
				require.Equal(t, want[i], get[uint16](t, th, x.p, x.n))
			}
			return nil
		})
	}
}

// A graph that was recorded with some documents computes with those that are in memory when it is
// launched; and the order in which threads run is of no consequence to any bit.
func TestFlashInAGraph(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 74, 1)
	c, other := newFlashCase(r, 1, 140, 2, 1, 64, 40), newFlashCase(r, 1, 140, 2, 1, 64, 20)
	other.qkv, other.dout = c.qkv, c.dout
	want := []grads{c.device(t), other.device(t)}
	t.Setenv("NC_SEED", "7")
	var got []grads
	flash(t, func(th *cuda.Thread, k *cuda.Flash) error {
		m := c.put(t, th)
		graph, err := th.Graph(func() error { return m.run(k) })
		if err != nil {
			return err
		}
		defer th.Drop(graph)
		for _, starts := range [][]int32{c.starts, other.starts} {
			if err := cuda.Upload(th, m.s.Starts, starts); err != nil {
				return err
			}
			if err := th.Replay(graph); err != nil {
				return err
			}
			g, _ := m.get(t, th)
			got = append(got, g)
		}
		return nil
	})
	require.Equal(t, want, got)
}

// Starts that no batch has give numbers all the same, from the row's own tokens.
func TestFlashOfWrongStarts(t *testing.T) {
	c := newFlashCase(cudatest.Rand(os.Getenv, 75, 1), 1, 70, 1, 1, 64, 0)
	for i := range c.starts {
		c.starts[i] = []int32{-1 << 31, 1 << 30, 69, -5, 3}[i%5]
	}
	got := c.device(t)
	for _, x := range [][]float64{got.out, got.dq, got.dk, got.dv} {
		for i, v := range x {
			require.False(t, math.IsNaN(v) || math.IsInf(v, 0), "%d", i)
		}
	}
}

func TestFlashErrors(t *testing.T) {
	for _, d := range []int{-16, 0, 8, 40, 144, 256} {
		require.ErrorContains(t, cuda.FlashSupports(d), fmt.Sprintf("not %d", d))
	}
	for d := 16; d <= cuda.MaxFlashHead; d += 16 {
		require.NoError(t, cuda.FlashSupports(d))
	}
	good := cuda.FlashShape{Docs: cuda.Docs{Starts: 256, Rows: 1, SeqLen: 8}, Heads: 4, KVHeads: 2, HeadDim: 64, Scale: 1}
	for want, change := range map[string]func(*cuda.FlashShape){
		"not 40":                  func(s *cuda.FlashShape) { s.HeadDim = 40 },
		"3 heads over 2 KV heads": func(s *cuda.FlashShape) { s.Heads = 3 },
		"0 heads":                 func(s *cuda.FlashShape) { s.Heads = 0 },
		"-1 KV heads":             func(s *cuda.FlashShape) { s.KVHeads = -1 },
		"0 rows":                  func(s *cuda.FlashShape) { s.Rows = 0 },
		"rows of 0 tokens":        func(s *cuda.FlashShape) { s.SeqLen = 0 },
		"times -1":                func(s *cuda.FlashShape) { s.Scale = -1 },
		"times NaN":               func(s *cuda.FlashShape) { s.Scale = float32(math.NaN()) },
		"starts":                  func(s *cuda.FlashShape) { s.Starts = 0 },
		"too large":               func(s *cuda.FlashShape) { s.SeqLen = 1 << 24 },
		"70000 rows":              func(s *cuda.FlashShape) { s.Rows = 70000 },
	} {
		s := good
		change(&s)
		var forward, backward error
		flash(t, func(_ *cuda.Thread, k *cuda.Flash) error {
			forward, backward = k.Forward(0, 0, 0, s), k.Backward(0, 0, 0, 0, 0, 0, 0, 0, s)
			return nil
		})
		require.ErrorContains(t, forward, want)
		require.ErrorContains(t, backward, want)
	}
}
