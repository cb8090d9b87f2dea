package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// operand is a random factor [rows, cols], guarded, of odd stride.
func operand(r *rand.Rand, rows, cols int, trans, bf16 bool, fill func(*rand.Rand, []float32)) (Operand, func(*testing.T, string)) {
	if trans {
		rows, cols = cols, rows
	}
	stride := cols + r.IntN(5)
	n := max(0, (rows-1)*stride+cols)
	f := newGuarded[float32](n, 4*r.IntN(16))
	fill(r, f.v)
	if !bf16 {
		return Operand{F32: f.v, Stride: stride, Trans: trans}, f.check
	}
	h := newGuarded[uint16](n, 2*r.IntN(32))
	for i, v := range f.v {
		h.v[i] = F32ToBF16(v)
	}
	return Operand{BF16: h.v, Stride: stride, Trans: trans}, h.check
}

// matMulShapes are shapes around the sizes of tiles, and past the blocks.
func matMulShapes(r *rand.Rand) [][3]int {
	s := [][3]int{{1, 1, 1}, {3, 5, 0}, {8, 48, 16}, {9, 49, 17}, {6, 16, 1}, {17, 33, 31}, {5, 483, 259}, {13, 20, 523}, {2, 962, 5}}
	for range 24 {
		s = append(s, [3]int{1 + r.IntN(40), 1 + r.IntN(130), 1 + r.IntN(90)})
	}
	return s
}

func hasDotBF16(s *Set) bool {
	l, ok := Roofline()
	return ok && s.Name == "avx512vnni" && l.DotBF16.Run != nil
}

// Every set gives the bits of the reference, for both stored forms and types of
// both factors, for any split of the rows, and touches nothing but the rows asked
// for.
func TestMatMulMatchesReference(t *testing.T) {
	r := rand.New(rand.NewPCG(41, 1))
	ref := newGoSet()
	scratch := newGuarded[byte](MatMulScratch(), 3)
	for _, shape := range matMulShapes(r) {
		m, n, k := shape[0], shape[1], shape[2]
		for form := range 16 {
			fill := normals
			if form >= 12 {
				fill = tinyFloats
			}
			a, checkA := operand(r, m, k, form&1 != 0, form&4 != 0, fill)
			b, checkB := operand(r, k, n, form&2 != 0, form&8 != 0, fill)
			p := Product{M: m, N: n, K: k, Add: r.IntN(2) == 0}
			ldd := n + r.IntN(4)
			before := make([]float32, (m-1)*ldd+n)
			normals(r, before)
			want, wantBF16 := append([]float32(nil), before...), append([]float32(nil), before...)
			ref.MatMul(want, ldd, a, b, p, 0, m, scratch.v)
			ref.MatMulBF16(wantBF16, ldd, a, b, p, 0, m, scratch.v)
			cut := r.IntN(m + 1)
			for _, s := range cSets() {
				what := fmt.Sprintf("%s %v form %d", s.Name, shape, form)
				dst := newGuarded[float32](len(before), 4*r.IntN(16))
				copy(dst.v, before)
				s.MatMul(dst.v, ldd, a, b, p, cut, m, scratch.v)
				kept := min(cut*ldd, len(before))
				requireSame(t, before[:kept], dst.v[:kept], what+": rows not asked for")
				s.MatMul(dst.v, ldd, a, b, p, 0, cut, scratch.v)
				requireSame(t, want, dst.v, what)
				dst.check(t, what)

				if hasDotBF16(s) {
					continue
				}
				copy(dst.v, before)
				s.MatMulBF16(dst.v, ldd, a, b, p, 0, cut, scratch.v)
				s.MatMulBF16(dst.v, ldd, a, b, p, cut, m, scratch.v)
				requireSame(t, wantBF16, dst.v, what+" bf16")
				dst.check(t, what)
			}
			checkA(t, "a")
			checkB(t, "b")
			scratch.check(t, "scratch")
		}
	}
}

// tinyFloats mixes normal numbers with ties of bfloat16, subnormals and zeros.
func tinyFloats(r *rand.Rand, x []float32) {
	for i := range x {
		switch u := r.Uint32(); u % 4 {
		case 0:
			x[i] = math.Float32frombits(u&0x807f0000 | 0x3f808000) // halfway
		case 1:
			x[i] = math.Float32frombits(u & 0x80ffffff) // subnormal or nearly
		case 2:
			x[i] = 0
		default:
			x[i] = float32(r.NormFloat64())
		}
	}
}

// The bfloat16 dot product differs from the reference by the order of the sum
// only: by at most 2^-23 of Σ|a·b| for each addition; a split of the rows changes
// no bit.
func TestMatMulBF16OfTheDotInstruction(t *testing.T) {
	s := Best()
	if !hasDotBF16(s) {
		t.Skip("no bfloat16 dot product on this CPU")
	}
	r := rand.New(rand.NewPCG(41, 2))
	ref := newGoSet()
	scratch := newGuarded[byte](MatMulScratch(), 5)
	for _, shape := range matMulShapes(r) {
		m, n, k := shape[0], shape[1], shape[2]
		for form := range 16 {
			a, checkA := operand(r, m, k, form&1 != 0, form&4 != 0, normals)
			b, checkB := operand(r, k, n, form&2 != 0, form&8 != 0, normals)
			p := Product{M: m, N: n, K: k, Add: r.IntN(2) == 0}
			ldd := n + r.IntN(4)
			before := make([]float32, (m-1)*ldd+n)
			normals(r, before)
			want := append([]float32(nil), before...)
			ref.MatMulBF16(want, ldd, a, b, p, 0, m, scratch.v)
			what := fmt.Sprintf("%v form %d", shape, form)
			whole, parts := newGuarded[float32](len(before), 8), newGuarded[float32](len(before), 36)
			copy(whole.v, before)
			copy(parts.v, before)
			s.MatMulBF16(whole.v, ldd, a, b, p, 0, m, scratch.v)
			cut := r.IntN(m + 1)
			s.MatMulBF16(parts.v, ldd, a, b, p, cut, m, scratch.v)
			s.MatMulBF16(parts.v, ldd, a, b, p, 0, cut, scratch.v)
			requireSame(t, whole.v, parts.v, what+" split")
			for i := range m {
				for j := range n {
					sum := math.Abs(float64(before[i*ldd+j]))
					for l := range k {
						sum += math.Abs(float64(a.at(i, l, true)) * float64(b.at(l, j, true)))
					}
					require.InDelta(t, want[i*ldd+j], whole.v[i*ldd+j], 0x1p-23*sum*float64(k+1), what)
				}
			}
			whole.check(t, what)
			parts.check(t, what)
			checkA(t, "a")
			checkB(t, "b")
			scratch.check(t, "scratch")
		}
	}
}

func TestMatMulPropagatesNonFinite(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	scratch := make([]byte, MatMulScratch())
	for _, s := range All() {
		a := Operand{F32: []float32{1, nan, inf, 0}, Stride: 2}
		b := Operand{F32: []float32{2, 3}, Stride: 1}
		for _, f := range []func([]float32, int, Operand, Operand, Product, int, int, []byte){s.MatMul, s.MatMulBF16} {
			dst := make([]float32, 2)
			f(dst, 1, a, b, Product{M: 2, N: 1, K: 2}, 0, 2, scratch)
			require.True(t, dst[0] != dst[0], s.Name)
			require.Equal(t, inf, dst[1], s.Name)
		}
	}
}

func TestMatMulWrongShapesPanic(t *testing.T) {
	x := make([]float32, 12)
	scratch := make([]byte, MatMulScratch())
	for _, s := range All() {
		plain := Operand{F32: x, Stride: 4}
		for name, f := range map[string]func(){
			"dst":     func() { s.MatMul(x[:11], 4, plain, plain, Product{M: 3, N: 4, K: 3}, 0, 3, scratch) },
			"ldd":     func() { s.MatMul(x, 3, plain, plain, Product{M: 3, N: 4, K: 3}, 0, 3, scratch) },
			"a":       func() { s.MatMul(x, 4, plain, plain, Product{M: 3, N: 2, K: 5}, 0, 3, scratch) },
			"b":       func() { s.MatMul(x, 4, plain, plain, Product{M: 3, N: 3, K: 4}, 0, 3, scratch) },
			"rows":    func() { s.MatMul(x, 4, plain, plain, Product{M: 3, N: 4, K: 3}, 0, 4, scratch) },
			"scratch": func() { s.MatMulBF16(x, 4, plain, plain, Product{M: 3, N: 4, K: 3}, 0, 3, scratch[1:]) },
			"both": func() {
				s.MatMul(x, 4, Operand{F32: x, BF16: make([]uint16, 12), Stride: 4}, plain, Product{M: 3, N: 4, K: 3}, 0, 3, scratch)
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

// BenchmarkMatMul reports GFLOP/s and the part of the peak measured beside it:
// go test ./kernels -run xxx -bench 'MatMul/avx512vnni/' -benchtime 1s
func BenchmarkMatMul(b *testing.B) {
	scratch := AlignedBytes(MatMulScratch())
	limits, _ := Roofline()
	for _, s := range All() {
		for _, c := range []struct {
			form    string
			m, n, k int
		}{
			{"nn", 1024, 1024, 1024}, {"nt", 1024, 1024, 1024}, {"tn", 1024, 1024, 1024},
			{"nt", 4096, 683, 256}, {"nn", 4096, 256, 683}, {"tn", 683, 256, 4096},
			{"nt", 1024, 2048, 768}, {"nn", 1024, 768, 2048}, {"tn", 2048, 768, 1024},
		} {
			x, y := make([]float32, c.m*c.k), make([]float32, c.k*c.n)
			r := rand.New(rand.NewPCG(9, 9))
			normals(r, x)
			normals(r, y)
			dst := make([]float32, c.m*c.n)
			a, w := Operand{F32: x, Stride: c.k}, Operand{F32: y, Stride: c.n}
			if c.form[0] == 't' {
				a.Stride, a.Trans = c.m, true
			}
			if c.form[1] == 't' {
				w.Stride, w.Trans = c.k, true
			}
			half := func(o Operand) Operand {
				h := Operand{BF16: make([]uint16, len(o.F32)), Stride: o.Stride, Trans: o.Trans}
				for i, v := range o.F32 {
					h.BF16[i] = F32ToBF16(v)
				}
				return h
			}
			ha, hw := half(a), half(w)
			for _, v := range []struct {
				name string
				peak Peak
				run  func()
			}{
				{"f32", limits.FMA, func() {
					s.MatMul(dst, c.n, a, w, Product{M: c.m, N: c.n, K: c.k}, 0, c.m, scratch)
				}},
				{"bf16", limits.DotBF16, func() {
					s.MatMulBF16(dst, c.n, ha, hw, Product{M: c.m, N: c.n, K: c.k}, 0, c.m, scratch)
				}},
				{"f32-bf16", limits.DotBF16, func() {
					s.MatMulBF16(dst, c.n, a, w, Product{M: c.m, N: c.n, K: c.k}, 0, c.m, scratch)
				}},
			} {
				b.Run(fmt.Sprintf("%s/%s/%s/%dx%dx%d", s.Name, v.name, c.form, c.m, c.n, c.k), func(b *testing.B) {
					for b.Loop() {
						v.run()
					}
					rate := 2 * float64(c.m) * float64(c.n) * float64(c.k) * float64(b.N) / b.Elapsed().Seconds() / 1e9
					b.ReportMetric(rate, "GFLOP/s")
					if v.peak.Run != nil {
						b.ReportMetric(rate/peakRate(v.peak), "of-peak")
					}
				})
			}
		}
	}
}

// peakRate measures p for some 10 ms, in Gop/s.
func peakRate(p Peak) float64 {
	const n = 1 << 21
	p.Run(n / 8)
	start := time.Now()
	p.Run(n)
	return float64(n) * float64(p.Ops) / time.Since(start).Seconds() / 1e9
}
