package kernels_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	. "github.com/architehc/nanochat/kernels"
)

const guard = 0xA5

// failer is *testing.T or *rapid.T.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// guarded is a slice of n values of T with 64 guard bytes' worth of values on
// both sides, and a check that nobody wrote there.
func guarded[T int8 | uint8 | int32 | uint16 | float32](n int, fill T) ([]T, func(failer)) {
	const pad = 64
	b := make([]T, n+2*pad)
	for i := range b {
		b[i] = fill
	}
	return b[pad : pad+n : pad+n], func(t failer) {
		t.Helper()
		for i := range pad {
			if b[i] != fill || b[pad+n+i] != fill {
				t.Fatalf("guard: written at %d before or after a buffer of %d", i, n)
			}
		}
	}
}

// problem is a random matrix and random activations.
type problem struct {
	w     *Ternary
	x     *Act
	trits [][]int8 // [rows][cols], -1..2
	check []func(failer)
}

type shape struct {
	rows, cols, group, n int
	invalid, saturate    bool
}

func (s shape) String() string {
	return fmt.Sprintf("%dx%d/g%d/n%d/invalid=%t/saturate=%t", s.rows, s.cols, s.group, s.n, s.invalid, s.saturate)
}

func newProblem(s shape, seed uint64) *problem {
	r := rand.New(rand.NewPCG(seed, 1))
	w := &Ternary{Rows: s.rows, Cols: s.cols, Group: s.group, Gain: 1 + r.Float32()}
	if w.Group == 0 {
		w.Group = s.cols
	}
	p := &problem{w: w, trits: make([][]int8, s.rows)}
	tiles, c1 := guarded[uint8](w.Blocks()*w.ColTiles()*64, EmptyTile)
	scales, c2 := guarded[uint16](w.Blocks()*w.Groups()*TileSide, 0)
	w.Tiles, w.Scales = tiles, scales
	for i := range scales {
		scales[i] = uint16(r.IntN(0x7c00)) // every finite non-negative half, subnormals too
	}
	codes := 3
	if s.invalid {
		codes = 4
	}
	for row := range s.rows {
		p.trits[row] = make([]int8, s.cols)
		for col := range s.cols {
			code := r.IntN(codes)
			if s.saturate {
				code = codes - 1
			}
			b, shift := TileIndex(row%TileSide, col%TileSide)
			at := &tiles[(row/TileSide*w.ColTiles()+col/TileSide)*64+b]
			*at = *at&^(3<<shift) | byte(code)<<shift
			p.trits[row][col] = int8(code) - 1
		}
	}
	stride := ActStride(s.cols)
	q, c3 := guarded[int8](s.n*stride, 0x5a)
	sums, c4 := guarded[int32](s.n*w.Groups(), -1)
	scale, c5 := guarded[float32](s.n, 3)
	clear(q)
	clear(sums)
	p.x = &Act{N: s.n, Cols: s.cols, Stride: stride, Group: w.Group, Q: q, Scale: scale, Sums: sums}
	for t := range s.n {
		scale[t] = r.Float32() * 0.1
		for k := range s.cols {
			v := int8(r.IntN(255) - 127)
			if s.saturate {
				v = 127
				if t%2 == 1 {
					v = -127
				}
			}
			q[t*stride+k] = v
			sums[t*w.Groups()+k/w.Group] += int32(v)
		}
	}
	p.check = []func(failer){c1, c2, c3, c4, c5}
	return p
}

// want is the definition, computed from trits in float64-free Go.
func (p *problem) want(t, row int) float32 {
	var sum float32
	for g := range p.w.Groups() {
		var dot int32
		for k := g * p.w.Group; k < min((g+1)*p.w.Group, p.w.Cols); k++ {
			dot += int32(p.trits[row][k]) * int32(p.x.Q[t*p.x.Stride+k])
		}
		s := F16ToF32(p.w.Scales[(row/TileSide*p.w.Groups()+g)*TileSide+row%TileSide])
		sum = FMA32(float32(dot), s, sum)
	}
	return p.x.Scale[t] * p.w.Gain * sum
}

// same compares bits; every NaN is equal.
func same(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

// checkProblem runs GEMV for token 0 and GEMM for all, in one or two row ranges.
func checkProblem(t failer, set *Set, s shape, p *problem, split int) {
	ranges := [][2]int{{0, s.rows}}
	if split > 0 && split < s.rows {
		ranges = [][2]int{{0, split}, {split, s.rows}}
	}
	const poison = float32(-12345)
	dst, c1 := guarded(s.rows, poison)
	ldd := s.rows + 3
	out, c2 := guarded((s.n-1)*ldd+s.rows, poison)
	scratch, c3 := guarded[uint8](GEMMScratch(s.n, s.cols), guard)
	for _, r := range ranges {
		set.TernaryGEMV(dst, p.w, p.x, r[0], r[1])
		set.TernaryGEMM(out, ldd, p.w, p.x, r[0], r[1], scratch)
	}
	for row := range s.rows {
		if want := p.want(0, row); !same(dst[row], want) {
			t.Fatalf("gemv: %s %v split %d row %d: got %g, want %g", set.Name, s, split, row, dst[row], want)
		}
	}
	for tok := range s.n {
		for row := range ldd {
			i := tok*ldd + row
			if i >= len(out) {
				break
			}
			want := poison
			if row < s.rows {
				want = p.want(tok, row)
			}
			if !same(out[i], want) {
				t.Fatalf("gemm: %s %v split %d token %d row %d: got %g, want %g", set.Name, s, split, tok, row, out[i], want)
			}
		}
	}
	for _, c := range append(p.check, c1, c2, c3) {
		c(t)
	}
}

func TestTernaryMatchesDefinition(t *testing.T) {
	var shapes []shape
	for rows := 1; rows <= 200; rows++ {
		groups := []int{64, 128, 256, 0}
		shapes = append(shapes, shape{rows: rows, cols: 1 + (rows*37)%300, group: groups[rows%4], n: 1 + rows%5})
	}
	for n := 1; n <= 50; n++ {
		shapes = append(shapes, shape{rows: 16 + n%40, cols: 129 + n, group: 64, n: n}, shape{rows: 50, cols: 96, n: n, invalid: n%2 == 0})
	}
	for _, group := range []int{16, 64, 128, 256, 0} {
		for _, cols := range []int{1, 15, 16, 17, 63, 64, 65, 127, 128, 640, 1000, 2048} {
			for _, invalid := range []bool{false, true} {
				for _, saturate := range []bool{false, true} {
					shapes = append(shapes, shape{rows: 70, cols: cols, group: group, n: 13, invalid: invalid, saturate: saturate})
				}
			}
		}
	}
	for _, set := range All() {
		t.Run(set.Name, func(t *testing.T) {
			for i, s := range shapes {
				p := newProblem(s, uint64(i))
				checkProblem(t, set, s, p, s.rows/32*16)
			}
		})
	}
}

func TestTernaryProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := shape{
			rows:     rapid.IntRange(1, 130).Draw(t, "rows"),
			cols:     rapid.IntRange(1, 700).Draw(t, "cols"),
			group:    rapid.SampledFrom([]int{0, 16, 48, 64, 128, 256, 512}).Draw(t, "group"),
			n:        rapid.IntRange(1, 30).Draw(t, "n"),
			invalid:  rapid.Bool().Draw(t, "invalid"),
			saturate: rapid.Bool().Draw(t, "saturate"),
		}
		p := newProblem(s, rapid.Uint64().Draw(t, "seed"))
		split := 16 * rapid.IntRange(0, 8).Draw(t, "split")
		for _, set := range All() {
			checkProblem(t, set, s, p, split)
		}
	})
}

func TestTernaryPanics(t *testing.T) {
	good := func() (*Ternary, *Act) {
		p := newProblem(shape{rows: 40, cols: 100, group: 64, n: 2}, 1)
		return p.w, p.x
	}
	for name, call := range map[string]func(s *Set, w *Ternary, x *Act){
		"short dst":     func(s *Set, w *Ternary, x *Act) { s.TernaryGEMV(make([]float32, 39), w, x, 0, 40) },
		"odd r0":        func(s *Set, w *Ternary, x *Act) { s.TernaryGEMV(make([]float32, 40), w, x, 8, 40) },
		"odd r1":        func(s *Set, w *Ternary, x *Act) { s.TernaryGEMV(make([]float32, 40), w, x, 0, 39) },
		"rows past end": func(s *Set, w *Ternary, x *Act) { s.TernaryGEMV(make([]float32, 48), w, x, 0, 48) },
		"short tiles": func(s *Set, w *Ternary, x *Act) {
			w.Tiles = w.Tiles[1:]
			s.TernaryGEMV(make([]float32, 40), w, x, 0, 40)
		},
		"short scales": func(s *Set, w *Ternary, x *Act) {
			w.Scales = w.Scales[1:]
			s.TernaryGEMV(make([]float32, 40), w, x, 0, 40)
		},
		"other group": func(s *Set, w *Ternary, x *Act) {
			x.Group = 128
			s.TernaryGEMV(make([]float32, 40), w, x, 0, 40)
		},
		"short sums": func(s *Set, w *Ternary, x *Act) {
			x.Sums = x.Sums[:3]
			s.TernaryGEMV(make([]float32, 40), w, x, 0, 40)
		},
		"group not of tiles": func(s *Set, w *Ternary, x *Act) {
			w.Group, x.Group = 24, 24
			s.TernaryGEMV(make([]float32, 40), w, x, 0, 40)
		},
		"short scratch": func(s *Set, w *Ternary, x *Act) {
			s.TernaryGEMM(make([]float32, 80), 40, w, x, 0, 40, nil)
		},
		"short stride": func(s *Set, w *Ternary, x *Act) {
			s.TernaryGEMM(make([]float32, 80), 39, w, x, 0, 40, make([]byte, GEMMScratch(2, 100)))
		},
	} {
		for _, set := range All() {
			t.Run(name+"/"+set.Name, func(t *testing.T) {
				w, x := good()
				defer func() {
					if msg, ok := recover().(string); !ok || !strings.HasPrefix(msg, "kernels: ") {
						t.Fatalf("got panic %q, want one that starts with kernels:", msg)
					}
				}()
				call(set, w, x)
			})
		}
	}
}

func TestTile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var trits, back [TileSide * TileSide]int8
		for i := range trits {
			trits[i] = int8(rapid.IntRange(-1, 1).Draw(t, "trit"))
		}
		var tile [64]byte
		PackTile(&tile, &trits)
		UnpackTile(&back, &tile)
		if trits != back {
			t.Fatalf("got %v, want %v", back, trits)
		}
		if TileHasInvalid(&tile) {
			t.Fatalf("a packed tile is called invalid")
		}
		b, shift := TileIndex(rapid.IntRange(0, 15).Draw(t, "row"), rapid.IntRange(0, 15).Draw(t, "col"))
		tile[b] |= 3 << shift
		if !TileHasInvalid(&tile) {
			t.Fatalf("code 3 in byte %d at bit %d is not found", b, shift)
		}
	})
}

// The layout by the words of Ternary: byte 4r+c, bits 0-1, 2-3, 4-5, 6-7.
func TestTileLayout(t *testing.T) {
	var trits [TileSide * TileSide]int8
	trits[3*16+2], trits[3*16+6], trits[3*16+10], trits[3*16+14] = -1, 0, 1, -1
	var tile [64]byte
	PackTile(&tile, &trits)
	if want := byte(0 | 1<<2 | 2<<4 | 0<<6); tile[4*3+2] != want {
		t.Fatalf("got %08b, want %08b", tile[4*3+2], want)
	}
}

// BenchmarkTernaryGEMV measures quantisation of the activations and the product.
func BenchmarkTernaryGEMV(b *testing.B) {
	for _, set := range All() {
		if set.Name == "go" || set.Name == "scalar" {
			continue
		}
		for _, s := range []shape{{rows: 768, cols: 768, group: 128, n: 1}, {rows: 2048, cols: 2048, group: 128, n: 1}, {rows: 2048, cols: 2048, n: 1}, {rows: 32768, cols: 8192, group: 128, n: 1}} {
			name := fmt.Sprintf("%s/%dx%d", set.Name, s.rows, s.cols)
			if s.group == 0 {
				name += "/row"
			}
			b.Run(name, func(b *testing.B) {
				w, x, v := benchProblem(s)
				dst := make([]float32, s.rows)
				for b.Loop() {
					x.Set(set, 0, v)
					set.TernaryGEMV(dst, w, x, 0, s.rows)
				}
				reportGOPS(b, s)
			})
		}
	}
}

func BenchmarkTernaryGEMM(b *testing.B) {
	for _, set := range All() {
		if set.Name == "go" || set.Name == "scalar" {
			continue
		}
		for _, s := range []shape{
			{rows: 2048, cols: 2048, group: 128, n: 2}, {rows: 2048, cols: 2048, group: 128, n: 4}, {rows: 2048, cols: 2048, group: 128, n: 8},
			{rows: 4096, cols: 4096, group: 128, n: 48}, {rows: 4096, cols: 4096, group: 128, n: 512},
		} {
			b.Run(fmt.Sprintf("%s/%dx%dx%d", set.Name, s.rows, s.cols, s.n), func(b *testing.B) {
				w, x, v := benchProblem(s)
				dst, scratch := make([]float32, s.n*s.rows), make([]byte, GEMMScratch(s.n, s.cols))
				for t := range s.n {
					x.Set(set, t, v)
				}
				for b.Loop() {
					set.TernaryGEMM(dst, s.rows, w, x, 0, s.rows, scratch)
				}
				reportGOPS(b, s)
			})
		}
	}
}

func reportGOPS(b *testing.B, s shape) {
	ops := 2 * float64(s.rows) * float64(s.cols) * float64(s.n) * float64(b.N)
	b.ReportMetric(ops/b.Elapsed().Seconds()/1e9, "GOPS")
	b.SetBytes(int64(s.rows * s.cols / 4))
}

func benchProblem(s shape) (*Ternary, *Act, []float32) {
	w := &Ternary{Rows: s.rows, Cols: s.cols, Group: s.group, Gain: 1}
	if w.Group == 0 {
		w.Group = s.cols
	}
	w.Tiles = make([]byte, w.Blocks()*w.ColTiles()*64)
	for i := range w.Tiles {
		w.Tiles[i] = []byte{0x55, 0x12, 0x86, 0xa1}[i*7%13%4]
	}
	w.Scales = make([]uint16, w.Blocks()*w.Groups()*TileSide)
	for i := range w.Scales {
		w.Scales[i] = 0x2c00
	}
	v := make([]float32, s.cols)
	for i := range v {
		v[i] = float32(i%17) - 8
	}
	return w, NewAct(s.n, s.cols, w.Group), v
}
