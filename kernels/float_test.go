package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// guarded is a slice inside a larger array whose other bytes must stay as they are.
type guarded[T any] struct {
	v   []T
	all []byte
	at  int
}

const guardByte = 0xa5

// newGuarded places n values, off bytes past an alignment of 64, between guards.
func newGuarded[T any](n, off int) guarded[T] {
	var t T
	size := n * int(unsafe.Sizeof(t))
	all := make([]byte, size+off+256)
	for i := range all {
		all[i] = guardByte
	}
	at := 64 - int(uintptr(unsafe.Pointer(unsafe.SliceData(all)))%64) + 64 + off
	return guarded[T]{unsafe.Slice((*T)(unsafe.Pointer(&all[at])), n), all, at}
}

func (g guarded[T]) check(t *testing.T, what string) {
	t.Helper()
	var e T
	end := g.at + len(g.v)*int(unsafe.Sizeof(e))
	for i, b := range g.all {
		if (i < g.at || i >= end) && b != guardByte {
			t.Fatalf("%s: byte %d outside of the slice was written", what, i-g.at)
		}
	}
}

func requireSame(t *testing.T, want, got []float32, what string) {
	t.Helper()
	require.Len(t, got, len(want), what)
	for i := range want {
		if !same(want[i], got[i]) {
			t.Fatalf("%s: element %d is %x, want %x", what, i, got[i], want[i])
		}
	}
}

// cSets are the sets to compare with the reference.
func cSets() []*Set { return All()[:len(All())-1] }

func normals(r *rand.Rand, x []float32) {
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
}

func anyFloats(r *rand.Rand, x []float32) {
	for i := range x {
		x[i] = anyFloat(r)
	}
}

// lengths are odd and even lengths up to 257 around the vector width.
func lengths() []int {
	var n []int
	for i := 1; i <= 257; i += 1 + i/40 {
		n = append(n, i)
	}
	return append(n, 255, 256, 257)
}

func TestVectorOpsMatchReference(t *testing.T) {
	ops := []struct {
		name string
		run  func(s *Set, dst, x, y []float32)
	}{
		{"RMSNorm", func(s *Set, dst, x, y []float32) { s.RMSNorm(dst, x, y, 1e-6) }},
		{"RMSNorm/nil", func(s *Set, dst, x, y []float32) { s.RMSNorm(dst, x, nil, 1e-6) }},
		{"Add", func(s *Set, dst, x, y []float32) { s.Add(dst, x, y) }},
		{"Axpy", func(s *Set, dst, x, y []float32) { copy(dst, y); s.Axpy(dst, 1.7, x) }},
		{"Scale", func(s *Set, dst, x, y []float32) { s.Scale(dst, 0.3, x) }},
		{"SwiGLU", func(s *Set, dst, x, y []float32) { s.SwiGLU(dst, x, y) }},
		{"ReLU2GLU", func(s *Set, dst, x, y []float32) { s.ReLU2GLU(dst, x, y) }},
		{"ReLU2", func(s *Set, dst, x, y []float32) { s.ReLU2(dst, x) }},
		{"Sigmoid", func(s *Set, dst, x, y []float32) { s.Sigmoid(dst, x) }},
		{"Softcap", func(s *Set, dst, x, y []float32) { s.Softcap(dst, 30, x) }},
		{"Softmax", func(s *Set, dst, x, y []float32) { s.Softmax(dst, x) }},
		{"LogSumExp", func(s *Set, dst, x, y []float32) { clear(dst); dst[0] = s.LogSumExp(x) }},
		{"ArgMax", func(s *Set, dst, x, y []float32) { clear(dst); dst[0] = float32(s.ArgMax(x)) }},
	}
	fills := []func(r *rand.Rand, x []float32){normals, anyFloats, func(r *rand.Rand, x []float32) {
		for i := range x { // wide: exp, tanh and sigmoid reach their ends
			x[i] = float32(r.NormFloat64() * 60)
		}
	}, func(r *rand.Rand, x []float32) {
		for i := range x { // few distinct values: ties, zeros of both signs, -Inf
			x[i] = []float32{float32(math.Copysign(0, -1)), 0, 1, -1, negInf()}[r.IntN(5)]
		}
	}}
	r := rand.New(rand.NewPCG(3, 3))
	ref := newGoSet()
	for _, n := range lengths() {
		for f, fill := range fills {
			off := 4 * r.IntN(16)
			x, y := newGuarded[float32](n, off), newGuarded[float32](n, 4*r.IntN(16))
			fill(r, x.v)
			fill(r, y.v)
			want := make([]float32, n)
			for _, op := range ops {
				op.run(ref, want, x.v, y.v)
				for _, s := range cSets() {
					what := fmt.Sprintf("%s %s n=%d fill=%d", s.Name, op.name, n, f)
					dst := newGuarded[float32](n, 4*r.IntN(16))
					op.run(s, dst.v, x.v, y.v)
					requireSame(t, want, dst.v, what)
					dst.check(t, what)
					if op.name == "Axpy" || op.name == "LogSumExp" || op.name == "ArgMax" {
						continue
					}
					copy(dst.v, x.v)
					op.run(s, dst.v, dst.v, y.v)
					requireSame(t, want, dst.v, what+" in place")
				}
			}
			x.check(t, "x")
		}
	}
}

func TestTopKIsAStableOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for range 400 {
		n := 1 + r.IntN(300)
		k := r.IntN(n + 1)
		x := newGuarded[float32](n, 4*r.IntN(16))
		anyFloats(r, x.v)
		if r.IntN(2) == 0 {
			for i := range x.v {
				x.v[i] = float32(r.IntN(7) - 3)
			}
		}
		var want []int32
		for _, s := range append([]*Set{newGoSet()}, cSets()...) {
			dst := newGuarded[int32](k, 0)
			s.TopK(dst.v, x.v)
			dst.check(t, s.Name)
			if want == nil {
				want = dst.v
				for i := 1; i < k; i++ {
					a, b := x.v[dst.v[i-1]], x.v[dst.v[i]]
					require.True(t, a > b || a == b && dst.v[i-1] < dst.v[i] || b != b, "%v before %v", a, b)
				}
				if k > 0 && x.v[want[0]] == x.v[want[0]] && x.v[want[0]] > negInf() {
					require.Equal(t, s.ArgMax(x.v), int(want[0]))
				}
			}
			require.Equal(t, want, dst.v, s.Name)
		}
	}
}

func TestRoPEMatchesReference(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	ref := newGoSet()
	for _, half := range []int{1, 3, 8, 16, 17, 32, 40, 64} {
		for _, extra := range []int{0, 6} {
			heads, d := 3, 2*half+extra
			c, s := newGuarded[float32](half, 4), newGuarded[float32](half, 8)
			normals(r, c.v)
			normals(r, s.v)
			x := make([]float32, heads*d)
			anyFloats(r, x)
			for _, pairs := range []bool{false, true} {
				want := append([]float32(nil), x...)
				ref.RoPE(want, heads, d, c.v, s.v, pairs)
				for _, set := range cSets() {
					got := newGuarded[float32](len(x), 12)
					copy(got.v, x)
					set.RoPE(got.v, heads, d, c.v, s.v, pairs)
					requireSame(t, want, got.v, fmt.Sprintf("%s half=%d interleaved=%t", set.Name, half, pairs))
					got.check(t, set.Name)
				}
			}
		}
	}
}

func TestRoPETable(t *testing.T) {
	const positions, rotary = 3000, 64
	n := rotary / 2
	cos, sin := make([]float32, positions*n), make([]float32, positions*n)
	factors := make([]float64, n)
	for i := range factors {
		factors[i] = 1 + float64(i)/4
	}
	RoPETable(cos, sin, positions, rotary, 500000, 0.25, factors)
	for p := range positions {
		for i := range n {
			a := float64(p) * 0.25 * math.Pow(500000, -2*float64(i)/rotary) / factors[i]
			require.InDelta(t, math.Cos(a), float64(cos[p*n+i]), 6e-8)
			require.InDelta(t, math.Sin(a), float64(sin[p*n+i]), 6e-8)
		}
	}
	// The bits are the same on every platform: the checksum is part of the contract.
	var h uint64 = 14695981039346656037
	for _, v := range append(cos, sin...) {
		h = (h ^ uint64(math.Float32bits(v))) * 1099511628211
	}
	require.Equal(t, uint64(0x205a2a2fa781b6f6), h)
}

func TestWrongLengthsPanic(t *testing.T) {
	for _, s := range All() {
		x := make([]float32, 8)
		for name, f := range map[string]func(){
			"Add":     func() { s.Add(x, x, x[:7]) },
			"RMSNorm": func() { s.RMSNorm(x, x, x[:7], 0) },
			"SwiGLU":  func() { s.SwiGLU(x[:7], x, x) },
			"Scale":   func() { s.Scale(x, 1, x[:7]) },
			"Softmax": func() { s.Softmax(x, x[:7]) },
			"TopK":    func() { s.TopK(make([]int32, 9), x) },
			"GEMV":    func() { s.DenseGEMV(x, &Dense{Rows: 2, Cols: 8, Data: make([]byte, 63)}, x, 0, 2) },
			"Q8":      func() { s.DenseRow(x, &Dense{Rows: 1, Cols: 8, Type: Q8_0, Data: make([]byte, 34)}, 0) },
			"rows":    func() { s.DenseGEMV(x, &Dense{Rows: 1, Cols: 8, Data: make([]byte, 64)}, x, 0, 2) },
			"RoPE":    func() { s.RoPE(x, 1, 4, x[:3], x[:3], false) },
			"KVStore": func() { s.KVStore(&KV{Heads: 1, HeadDim: 8, PageBytes: 1 << 20, Pages: []int32{0}}, 0, x, x) },
		} {
			func() {
				defer func() {
					msg, _ := recover().(string)
					require.Regexp(t, "^kernels: ", msg, "%s %s", s.Name, name)
				}()
				f()
			}()
		}
		require.Equal(t, -1, s.ArgMax(nil))
		require.Equal(t, negInf(), s.LogSumExp(nil))
	}
}

func BenchmarkVector(b *testing.B) {
	x, y := make([]float32, 2048), make([]float32, 2048)
	normals(rand.New(rand.NewPCG(6, 6)), x)
	for _, s := range All() {
		for name, f := range map[string]func(){
			"RMSNorm/768":     func() { s.RMSNorm(y[:768], x[:768], x[:768], 1e-6) },
			"SwiGLU/2048":     func() { s.SwiGLU(y, x, x) },
			"Softmax/2048":    func() { s.Softmax(y, x) },
			"ArgMax/2048":     func() { s.ArgMax(x) },
			"Add/768":         func() { s.Add(y[:768], x[:768], y[:768]) },
			"RoPE/12x64":      func() { s.RoPE(y[:768], 12, 64, x[:32], x[:32], false) },
			"RoPE/12x64pairs": func() { s.RoPE(y[:768], 12, 64, x[:32], x[:32], true) },
		} {
			b.Run(name+"/"+s.Name, func(b *testing.B) {
				for b.Loop() {
					f()
				}
			})
		}
	}
}
