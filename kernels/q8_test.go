package kernels

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// q8Case is random weights and activations, guarded.
type q8Case struct {
	w     *Dense
	x     *Act
	data  guarded[byte]
	q     guarded[int8]
	scale guarded[float32]
}

// newQ8 fills them: kind 0 has plain values, 1 every bit pattern in weights and
// scales, 2 the largest products, of one sign in even blocks.
func newQ8(r *rand.Rand, rows, cols, n, stride, kind int) *q8Case {
	c := &q8Case{
		data:  newGuarded[byte](rows*Q8_0.RowBytes(cols), 2*r.IntN(32)),
		q:     newGuarded[int8]((n-1)*stride+cols, r.IntN(64)),
		scale: newGuarded[float32](n, 4*r.IntN(16)),
	}
	c.w = randomDense(r, c.data.v, Q8_0, rows, cols)
	for i := range c.q.v {
		c.q.v[i] = int8(r.IntN(255) - 127)
	}
	for i := range c.scale.v {
		c.scale.v[i] = r.Float32()
	}
	switch kind {
	case 1:
		for i := range c.data.v {
			c.data.v[i] = byte(r.Uint32())
		}
		anyFloats(r, c.scale.v)
	case 2:
		for i := range c.q.v {
			c.q.v[i] = [2]int8{127, -127}[i/32%2]
		}
		for i := range rows * cols {
			b := c.data.v[i/32*34:]
			b[2+i%32] = 0x80
			if i%32 == 0 { // zero, the least subnormal, and those next to infinity too
				binary.LittleEndian.PutUint16(b, [...]uint16{0, 1, 0x3ff, 0x400, 0x7bff, 0x8001}[r.IntN(6)])
			}
		}
	}
	c.x = &Act{N: n, Cols: cols, Stride: stride, Q: c.q.v, Scale: c.scale.v}
	return c
}

func (c *q8Case) check(t *testing.T, what string) {
	t.Helper()
	c.data.check(t, what)
	c.q.check(t, what)
	c.scale.check(t, what)
}

func TestQ8MatchesReference(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 21))
	ref := newGoSet()
	colLengths := []int{32, 64, 96, 160, 256, 768, 800, 2560, 8192, 70016}
	for i := range 90 {
		cols := colLengths[i%len(colLengths)]
		rows, n := 1+(i*7)%23, 1+i%19
		if cols > 4096 {
			rows, n = 1+i%7, 1+i%9
		}
		c := newQ8(r, rows, cols, n, cols+r.IntN(3), i%3)
		ldd := rows + r.IntN(3)
		want := make([]float32, (n-1)*ldd+rows)
		for j := range want {
			want[j] = -12345 // between the rows nobody writes
		}
		initial := slices.Clone(want)
		ref.Q8GEMM(want, ldd, c.w, c.x, 0, rows)
		for _, s := range All() {
			what := fmt.Sprintf("%s %dx%d n=%d kind %d", s.Name, rows, cols, n, i%3)
			got := newGuarded[float32](len(want), 4*r.IntN(16))
			copy(got.v, initial)
			cut := r.IntN(rows + 1)
			s.Q8GEMM(got.v, ldd, c.w, c.x, 0, cut)
			s.Q8GEMM(got.v, ldd, c.w, c.x, cut, rows)
			requireSame(t, want, got.v, what)
			got.check(t, what)
			for j := range n {
				x := *c.x
				x.Q, x.Scale, x.N = c.x.Q[j*x.Stride:j*x.Stride+cols], c.x.Scale[j:j+1], 1
				one := newGuarded[float32](rows, 4*r.IntN(16))
				s.Q8GEMV(one.v, c.w, &x, 0, cut)
				s.Q8GEMV(one.v, c.w, &x, cut, rows)
				requireSame(t, want[j*ldd:j*ldd+rows], one.v, what+" GEMV")
				one.check(t, what)
			}
			c.check(t, what)
		}
	}
}

// A block of rows larger than what a product keeps in cache.
func TestQ8ManyRows(t *testing.T) {
	const rows, cols, n = 1003, 800, 11
	c := newQ8(rand.New(rand.NewPCG(22, 22)), rows, cols, n, ActStride(cols), 0)
	want, got := make([]float32, rows*n), make([]float32, rows*n)
	newGoSet().Q8GEMM(want, rows, c.w, c.x, 0, rows)
	for _, s := range cSets() {
		s.Q8GEMM(got, rows, c.w, c.x, 0, 501)
		s.Q8GEMM(got, rows, c.w, c.x, 501, rows)
		requireSame(t, want, got, s.Name)
	}
}

func TestQ8IsAMatrixProduct(t *testing.T) {
	r := rand.New(rand.NewPCG(23, 23))
	const rows, cols = 7, 512
	s := Best()
	w := randomDense(r, make([]byte, rows*Q8_0.RowBytes(cols)), Q8_0, rows, cols)
	v, y, row := make([]float32, cols), make([]float32, rows), make([]float32, cols)
	normals(r, v)
	x := NewAct(1, cols, cols)
	x.Set(s, 0, v)
	s.Q8GEMV(y, w, x, 0, rows)
	for i := range rows {
		s.DenseRow(row, w, i)
		var sum, abs float64
		for k := range row {
			p := float64(row[k]) * float64(x.Scale[0]) * float64(x.Q[k])
			sum += p
			abs += math.Abs(p)
		}
		require.InDelta(t, sum, float64(y[i]), abs*4e-6)
	}
}

func TestQ8Panics(t *testing.T) {
	for name, call := range map[string]func(s *Set, w *Dense, x *Act, dst []float32){
		"short dst":   func(s *Set, w *Dense, x *Act, dst []float32) { s.Q8GEMV(dst[:4], w, x, 0, 5) },
		"rows":        func(s *Set, w *Dense, x *Act, dst []float32) { s.Q8GEMV(dst, w, x, 0, 6) },
		"stride":      func(s *Set, w *Dense, x *Act, dst []float32) { s.Q8GEMM(dst, 4, w, x, 0, 5) },
		"short Q":     func(s *Set, w *Dense, x *Act, dst []float32) { x.Q = x.Q[65:]; s.Q8GEMM(dst, 5, w, x, 0, 5) },
		"short scale": func(s *Set, w *Dense, x *Act, dst []float32) { x.Scale = x.Scale[1:]; s.Q8GEMM(dst, 5, w, x, 0, 5) },
		"columns":     func(s *Set, w *Dense, x *Act, dst []float32) { x.Cols = 64; s.Q8GEMV(dst, w, x, 0, 5) },
		"short data":  func(s *Set, w *Dense, x *Act, dst []float32) { w.Data = w.Data[1:]; s.Q8GEMV(dst, w, x, 0, 5) },
		"type":        func(s *Set, w *Dense, x *Act, dst []float32) { w.Type = F16; w.Rows = 1; s.Q8GEMV(dst, w, x, 0, 1) },
	} {
		for _, s := range All() {
			t.Run(name+"/"+s.Name, func(t *testing.T) {
				c := newQ8(rand.New(rand.NewPCG(24, 24)), 5, 96, 2, 128, 0)
				defer func() {
					if msg, ok := recover().(string); !ok || !strings.HasPrefix(msg, "kernels: ") {
						t.Fatalf("got panic %q, want one that starts with kernels:", msg)
					}
				}()
				call(s, c.w, c.x, make([]float32, 10))
			})
		}
	}
}

func TestQ8AllocatesNothing(t *testing.T) {
	c := newQ8(rand.New(rand.NewPCG(25, 25)), 9, 96, 3, 128, 0)
	dst := make([]float32, 27)
	for _, s := range All() {
		require.Zero(t, testing.AllocsPerRun(10, func() {
			s.Q8GEMV(dst, c.w, c.x, 0, 9)
			s.Q8GEMM(dst, 9, c.w, c.x, 0, 9)
		}), s.Name)
	}
}

// BenchmarkQ8GEMV reads the same bytes plainly first: what memory gives at best.
func BenchmarkQ8GEMV(b *testing.B) {
	r := rand.New(rand.NewPCG(26, 26))
	limits, _ := Roofline()
	for _, c := range [][2]int{{1024, 768}, {16384, 768}, {8192, 2560}, {128256, 2560}} {
		rows, cols := c[0], c[1]
		w := randomDense(r, make([]byte, rows*Q8_0.RowBytes(cols)), Q8_0, rows, cols)
		v, y := make([]float32, cols), make([]float32, rows)
		normals(r, v)
		x := NewAct(1, cols, cols)
		if limits.Read != nil {
			b.Run(fmt.Sprintf("%dx%d/read", rows, cols), func(b *testing.B) {
				b.SetBytes(int64(len(w.Data)))
				for b.Loop() {
					limits.Read(w.Data)
				}
			})
		}
		for _, s := range cSets() {
			b.Run(fmt.Sprintf("%dx%d/%s", rows, cols, s.Name), func(b *testing.B) {
				b.SetBytes(int64(len(w.Data)))
				for b.Loop() {
					x.Set(s, 0, v)
					s.Q8GEMV(y, w, x, 0, rows)
				}
			})
		}
	}
}

func BenchmarkQ8GEMM(b *testing.B) {
	r := rand.New(rand.NewPCG(27, 27))
	const rows, cols = 16384, 768
	w := randomDense(r, make([]byte, rows*Q8_0.RowBytes(cols)), Q8_0, rows, cols)
	for _, n := range []int{2, 4, 8, 64} {
		x, y, v := NewAct(n, cols, cols), make([]float32, n*rows), make([]float32, cols)
		for t := range n {
			normals(r, v)
			x.Set(Best(), t, v)
		}
		for _, s := range cSets() {
			b.Run(fmt.Sprintf("%dx%dx%d/%s", rows, cols, n, s.Name), func(b *testing.B) {
				for b.Loop() {
					s.Q8GEMM(y, rows, w, x, 0, rows)
				}
				b.ReportMetric(2*rows*cols*float64(n)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GOPS")
			})
		}
	}
}
