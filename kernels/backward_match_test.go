package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every set gives the bits of the reference, for odd lengths, zeros of both signs and
// numbers that are not finite, and writes nothing but its results.
func TestVectorBackwardMatchesReference(t *testing.T) {
	type args struct{ a, b, dy, x, y []float32 } // a and b are written
	ops := []struct {
		name string
		run  func(s *Set, v args)
	}{
		{"RMSNorm", func(s *Set, v args) { s.RMSNormBackward(v.a, v.b, v.dy, v.x, v.y, 1e-6) }},
		{"RMSNorm plain", func(s *Set, v args) { s.RMSNormBackward(v.a, nil, v.dy, v.x, nil, 1e-6) }},
		{"RMSNorm onto dy", func(s *Set, v args) { copy(v.a, v.dy); s.RMSNormBackward(v.a, v.b, v.a, v.x, v.y, 0.1) }},
		{"SwiGLU", func(s *Set, v args) { s.SwiGLUBackward(v.a, v.b, v.dy, v.x, v.y) }},
		{"SwiGLU in place", func(s *Set, v args) {
			copy(v.a, v.x)
			copy(v.b, v.y)
			s.SwiGLUBackward(v.a, v.b, v.dy, v.a, v.b)
		}},
		{"ReLU2GLU", func(s *Set, v args) { s.ReLU2GLUBackward(v.a, v.b, v.dy, v.x, v.y) }},
		{"ReLU2GLU in place", func(s *Set, v args) {
			copy(v.a, v.dy)
			copy(v.b, v.y)
			s.ReLU2GLUBackward(v.a, v.b, v.a, v.x, v.b)
		}},
		{"ReLU2", func(s *Set, v args) { s.ReLU2Backward(v.a, v.dy, v.x) }},
		{"ReLU2 in place", func(s *Set, v args) { copy(v.a, v.x); s.ReLU2Backward(v.a, v.dy, v.a) }},
		{"Dot", func(s *Set, v args) { v.a[0] = s.Dot(v.x, v.dy) }},
	}
	fills := []func(r *rand.Rand, x []float32){normals, anyFloats, func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = []float32{float32(math.Copysign(0, -1)), 0, 1, -1, negInf(), float32(r.NormFloat64() * 60)}[r.IntN(6)]
		}
	}, func(_ *rand.Rand, x []float32) { clear(x) }}
	r := rand.New(rand.NewPCG(61, 1))
	ref := newGoSet()
	for _, n := range lengths() {
		for f, fill := range fills {
			dy, x, y, b := make([]float32, n), make([]float32, n), make([]float32, n), make([]float32, n)
			fill(r, dy)
			fill(r, x)
			fill(r, y)
			normals(r, b)
			for _, op := range ops {
				want := args{make([]float32, n), append([]float32(nil), b...), dy, x, y}
				op.run(ref, want)
				for _, s := range cSets() {
					ga, gb := newGuarded[float32](n, 4), newGuarded[float32](n, 8)
					clear(ga.v)
					copy(gb.v, b)
					op.run(s, args{ga.v, gb.v, dy, x, y})
					what := fmt.Sprintf("%s %s n=%d fill %d", s.Name, op.name, n, f)
					requireSame(t, want.a, ga.v, what)
					requireSame(t, want.b, gb.v, what)
					ga.check(t, what)
					gb.check(t, what)
				}
			}
		}
	}
}

func TestRoPEBackwardMatchesReference(t *testing.T) {
	r := rand.New(rand.NewPCG(61, 2))
	ref := newGoSet()
	for _, half := range []int{1, 3, 16, 17, 40} {
		heads, d := 3, 2*half+5
		c, s, x := random(r, half), random(r, half), make([]float32, heads*d)
		anyFloats(r, x)
		for _, pairs := range []bool{false, true} {
			want := append([]float32(nil), x...)
			ref.RoPEBackward(want, heads, d, c, s, pairs)
			for _, set := range cSets() {
				got := newGuarded[float32](len(x), 12)
				copy(got.v, x)
				set.RoPEBackward(got.v, heads, d, c, s, pairs)
				requireSame(t, want, got.v, fmt.Sprintf("%s half=%d interleaved=%t", set.Name, half, pairs))
				got.check(t, set.Name)
			}
		}
	}
}

func TestCrossEntropyMatchesReference(t *testing.T) {
	r := rand.New(rand.NewPCG(61, 3))
	ref := newGoSet()
	for _, n := range lengths() {
		for i, o := range []Loss{
			{Scale: 1},
			{Scale: 0.37, Cap: 15},
			{Scale: 1, Cap: 15, Z: 1e-3, Entropy: 0.05, Smoothing: 0.1},
			{Scale: 1, Cap: 33, Smoothing: 0.1},
			{Scale: 1, Cap: -3, Entropy: -1},
			{Scale: 1, Z: 1e-3, Entropy: 0.05},
		} {
			z := make([]float32, n)
			fill := []func(*rand.Rand, []float32){normals, anyFloats, func(_ *rand.Rand, x []float32) { clear(x) }, func(r *rand.Rand, x []float32) {
				for i := range x {
					x[i] = float32(r.NormFloat64() * 60)
				}
			}}[r.IntN(4)]
			fill(r, z)
			target := int32(r.IntN(n))
			want := make([]float32, n)
			a, b, c := ref.CrossEntropy(want, z, target, &o)
			for _, s := range cSets() {
				what := fmt.Sprintf("%s n=%d loss %d", s.Name, n, i)
				dst := newGuarded[float32](n, 4)
				for pass := range 3 {
					var d, e, f float32
					switch pass {
					case 0:
						d, e, f = s.CrossEntropy(dst.v, z, target, &o)
					case 1:
						d, e, f = s.CrossEntropy(nil, z, target, &o)
					case 2:
						copy(dst.v, z)
						d, e, f = s.CrossEntropy(dst.v, dst.v, target, &o)
					}
					requireSame(t, []float32{a, b, c}, []float32{d, e, f}, what)
					requireSame(t, want, dst.v, what)
				}
				dst.check(t, what)
			}
		}
	}
}

func TestAttentionBackwardMatchesReference(t *testing.T) {
	r := rand.New(rand.NewPCG(61, 4))
	ref := newGoSet()
	shapes := [][4]int{{1, 1, 1, 1}, {64, 2, 1, 16}, {65, 2, 2, 18}, {96, 1, 1, 80}, {200, 3, 1, 12}, {33, 4, 2, 64}}
	for range 6 {
		kv := 1 + r.IntN(2)
		shapes = append(shapes, [4]int{1 + r.IntN(150), kv * (1 + r.IntN(3)), kv, 1 + r.IntN(70)})
	}
	for _, shape := range shapes {
		n, heads, kvHeads, d := shape[0], shape[1], shape[2], shape[3]
		c := newAttentionCase(r, n, heads, kvHeads, d)
		// Sizes that end with the last element in use, as a caller's may.
		cut := func(x []float32, ld, used int) []float32 { return x[:(n-1)*ld+used] }
		c.q, c.k, c.v = cut(c.q, c.LDQ, heads*d), cut(c.k, c.LDK, kvHeads*d), cut(c.v, c.LDV, kvHeads*d)
		c.out, c.dout = cut(c.out, c.LDO, heads*d), cut(c.dout, c.LDO, heads*d)
		run := func(s *Set, h0, h1 int, bf16 bool) [3][]float32 {
			a := c.AttentionGrad
			a.BF16 = bf16
			dq, dk, dv := newGuarded[float32](len(c.q), 4), newGuarded[float32](len(c.k), 8), newGuarded[float32](len(c.v), 12)
			for _, g := range []guarded[float32]{dq, dk, dv} {
				for i := range g.v {
					g.v[i] = -7
				}
			}
			scratch := newGuarded[byte](AttentionBackwardScratch(n, d), r.IntN(64))
			s.AttentionBackward(dq.v, dk.v, dv.v, c.dout, c.q, c.k, c.v, c.out, &a, h0, h1, scratch.v)
			for _, g := range []guarded[float32]{dq, dk, dv} {
				g.check(t, s.Name)
			}
			scratch.check(t, s.Name)
			return [3][]float32{dq.v, dk.v, dv.v}
		}
		h0 := r.IntN(kvHeads)
		h1 := h0 + 1 + r.IntN(kvHeads-h0)
		want := run(ref, h0, h1, false)
		for _, s := range cSets() {
			for i, got := range run(s, h0, h1, false) {
				requireSame(t, want[i], got, fmt.Sprintf("%s %v heads %d to %d, gradient %d", s.Name, shape, h0, h1, i))
			}
			rounded := run(s, h0, h1, true)
			if !hasDotBF16(s) {
				for i, got := range rounded {
					requireSame(t, want[i], got, s.Name+" without bfloat16")
				}
				continue
			}
			// Factors near 1 are off by 2^-9, in sums whose terms cancel: the error as a
			// vector stays within 1% of the gradient, and 0.01 an element where all cancels.
			for i, got := range rounded {
				var diff, norm, count float64
				for j, w := range want[i] {
					if w == -7 {
						require.Equal(t, w, got[j])
						continue
					}
					diff += float64(w-got[j]) * float64(w-got[j])
					norm += float64(w) * float64(w)
					count++
				}
				require.LessOrEqual(t, math.Sqrt(diff), 0.01*math.Sqrt(norm)+0.01*math.Sqrt(count), "%s %v bfloat16, gradient %d", s.Name, shape, i)
			}
		}
	}
}

func TestBF16MatchesReference(t *testing.T) {
	r := rand.New(rand.NewPCG(61, 5))
	ref := newGoSet()
	for _, n := range lengths() {
		for _, fill := range []func(*rand.Rand, []float32){normals, anyFloats, tinyFloats} {
			x, q := make([]float32, n), make([]int8, n)
			fill(r, x)
			for i := range q {
				q[i] = int8(r.Uint32())
			}
			a := []float32{1, 0.37, -2e-38}[r.IntN(3)]
			want, wantQ := make([]uint16, n), make([]uint16, n)
			ref.BF16(want, a, x)
			ref.BF16FromI8(wantQ, q)
			for i, v := range wantQ {
				require.Equal(t, float32(q[i]), BF16ToF32(v))
			}
			for _, s := range cSets() {
				got := newGuarded[uint16](n, 2)
				s.BF16(got.v, a, x)
				for i := range want {
					require.True(t, same(BF16ToF32(want[i]), BF16ToF32(got.v[i])), "%s: %g·%g is %#x, want %#x", s.Name, a, x[i], got.v[i], want[i])
				}
				s.BF16FromI8(got.v, q)
				require.Equal(t, wantQ, got.v, s.Name)
				got.check(t, s.Name)
			}
		}
	}
}

// newTernary is a matrix whose memory is guarded; its tiles hold junk.
func newTernary(r *rand.Rand, rows, cols, group int) (*Ternary, func(*testing.T, string)) {
	w := &Ternary{Rows: rows, Cols: cols, Group: group, Gain: 1}
	tiles := newGuarded[byte](w.Blocks()*w.ColTiles()*64, 0)
	scales := newGuarded[uint16](w.Blocks()*w.Groups()*TileSide, 2)
	for i := range tiles.v {
		tiles.v[i] = byte(r.Uint32())
	}
	clear(scales.v)
	w.Tiles, w.Scales = tiles.v, scales.v
	return w, func(t *testing.T, what string) {
		tiles.check(t, what)
		scales.check(t, what)
	}
}

// latents mixes normal weights, ties (pairs x, 2s-x of mean s with x next to s/2), zeros,
// and magnitudes at both ends of half precision.
func latents(r *rand.Rand, x []float32) {
	for i := range x {
		x[i] = float32(r.NormFloat64() * 0.05)
	}
	for i := 0; i+16 <= len(x); i += 16 {
		s := F16ToF32(uint16(1 + r.IntN(0x7000)))
		for j := range 16 {
			switch i / 16 % 5 {
			case 1:
				v := []float32{s / 2, math.Nextafter32(s/2, 0), math.Nextafter32(s/2, 9e9)}[r.IntN(3)]
				if x[i+j] = v; j%2 == 1 {
					x[i+j] = -(2*s - x[i+j-1])
				}
			case 2:
				x[i+j] = float32(math.Copysign(0, float64(x[i+j])))
			case 3:
				x[i+j] *= s * 30
			}
		}
	}
}

func TestQuantizeTernaryMatchesReference(t *testing.T) {
	r := rand.New(rand.NewPCG(61, 6))
	ref := newGoSet()
	for _, shape := range [][3]int{{1, 1, 1}, {16, 64, 16}, {33, 70, 32}, {16, 100, 100}, {5, 256, 128}, {50, 144, 48}, {17, 33, 33}} {
		rows, cols, group := shape[0], shape[1], shape[2]
		for trial := range 8 {
			x := make([]float32, rows*cols)
			latents(r, x)
			if trial > 4 { // something that has no scale
				x[r.IntN(len(x))] = []float32{float32(math.NaN()), negInf(), 3e38, float32(math.Copysign(math.NaN(), -1))}[r.IntN(4)]
			}
			r0 := r.IntN((rows+15)/16) * 16
			r1 := min(rows, r0+16*(1+r.IntN(3)))
			want, _ := newTernary(r, rows, cols, group)
			tiles, scales := append([]byte(nil), want.Tiles...), append([]uint16(nil), want.Scales...)
			bad := ref.QuantizeTernary(want, x, r0, r1)
			for _, s := range cSets() {
				what := fmt.Sprintf("%s %v rows %d to %d", s.Name, shape, r0, r1)
				got, check := newTernary(r, rows, cols, group)
				copy(got.Tiles, tiles)
				copy(got.Scales, scales)
				require.Equal(t, bad, s.QuantizeTernary(got, x, r0, r1), what)
				check(t, what)
				if bad < 0 {
					require.Equal(t, want.Tiles, got.Tiles, what)
					require.Equal(t, want.Scales, got.Scales, what)
				}
			}
			if bad >= 0 {
				continue
			}
			want.Gain = 1.7
			r0 = r.IntN(rows)
			r1 = r0 + 1 + r.IntN(rows-r0)
			ldd := cols + r.IntN(4)
			n := (r1-r0-1)*ldd + cols
			exact := make([]uint16, n)
			ref.TernaryBF16(exact, ldd, want, r0, r1)
			for _, s := range cSets() {
				got := newGuarded[uint16](n, 2)
				clear(got.v)
				s.TernaryBF16(got.v, ldd, want, r0, r1)
				require.Equal(t, exact, got.v, "%s %v", s.Name, shape)
				got.check(t, s.Name)
			}
		}
	}
}

// TernaryBF16 is the weights of the ternary product.
func TestTernaryBF16Dequantizes(t *testing.T) {
	r := rand.New(rand.NewPCG(61, 7))
	w, _ := newTernary(r, 20, 48, 16)
	x := random(r, 20*48)
	require.Equal(t, -1, Best().QuantizeTernary(w, x, 0, 20))
	got := make([]uint16, 20*48)
	Best().TernaryBF16(got, 48, w, 0, 20)
	for i := range 20 {
		for g := range 3 {
			var sum float32
			for _, v := range x[i*48+g*16:][:16] {
				sum += float32(math.Abs(float64(v)))
			}
			for j, v := range x[i*48+g*16:][:16] {
				s := F16ToF32(F32ToF16(sum / 16))
				trit := max(-1, min(1, math.RoundToEven(float64(v/s))))
				require.Equal(t, float32(trit)*BF16ToF32(F32ToBF16(s)), BF16ToF32(got[i*48+g*16+j]))
			}
		}
	}
}

func TestBackwardWrongLengthsPanic(t *testing.T) {
	x, h := make([]float32, 8), make([]uint16, 8)
	for _, s := range All() {
		for name, f := range map[string]func(){
			"norm":     func() { s.RMSNormBackward(x, nil, x[:7], x, nil, 0) },
			"weight":   func() { s.RMSNormBackward(x, nil, x, x, x[:7], 0) },
			"dweight":  func() { s.RMSNormBackward(x, x[:7], x, x, x, 0) },
			"swiglu":   func() { s.SwiGLUBackward(x, x[:7], x, x, x) },
			"relu2":    func() { s.ReLU2Backward(x, x, x[:7]) },
			"rope":     func() { s.RoPEBackward(x, 1, 4, x[:3], x[:3], false) },
			"dot":      func() { s.Dot(x, x[:7]) },
			"target":   func() { s.CrossEntropy(x, x, 8, &Loss{}) },
			"gradient": func() { s.CrossEntropy(x[:7], x, 0, &Loss{}) },
			"bf16":     func() { s.BF16(h, 1, x[:7]) },
			"i8":       func() { s.BF16FromI8(h, make([]int8, 7)) },
			"ternary":  func() { s.TernaryBF16(h, 8, &Ternary{Rows: 1, Cols: 8, Group: 8}, 0, 1) },
			"quantize": func() {
				s.QuantizeTernary(&Ternary{Rows: 1, Cols: 8, Group: 8, Tiles: make([]byte, 64), Scales: h}, x, 0, 1)
			},
			"attention": func() {
				s.AttentionBackward(x, x, x, x, x, x, x, x, &AttentionGrad{N: 2, Heads: 1, KVHeads: 1, HeadDim: 8, LDQ: 8, LDK: 8, LDV: 8, LDO: 8}, 0, 1, nil)
			},
		} {
			func() {
				defer func() {
					msg, _ := recover().(string)
					require.Regexp(t, "^kernels: ", msg, "%s %s", s.Name, name)
				}()
				f()
			}()
		}
	}
}
