package ternary

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/architehc/nanochat/kernels"
)

func normal(seed uint64, n int, std float64) []float32 {
	r := rand.New(rand.NewPCG(seed, 0))
	w := make([]float32, n)
	for i := range w {
		w[i] = float32(r.NormFloat64() * std)
	}
	return w
}

// define is the definition of the package comment, word for word.
func define(w []float32, rows, cols, group int) (trits []int8, scales []uint16) {
	for r := range rows {
		for g := 0; g < cols; g += group {
			part := w[r*cols+g : r*cols+min(g+group, cols)]
			var p [16]float32
			for i, v := range part {
				p[i%16] += float32(math.Abs(float64(v)))
			}
			for _, n := range []int{8, 4, 2, 1} {
				for l := range n {
					p[l] += p[l+n]
				}
			}
			s := max(kernels.F32ToF16(p[0]/float32(len(part))), 0x0400)
			scales = append(scales, s)
			for _, v := range part {
				q := math.RoundToEven(float64(v / kernels.F16ToF32(s)))
				trits = append(trits, int8(max(-1, min(1, q))))
			}
		}
	}
	return trits, scales
}

func TestQuantizeIsTheDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows, cols := rapid.IntRange(1, 40).Draw(t, "rows"), rapid.IntRange(1, 300).Draw(t, "cols")
		group := rapid.SampledFrom([]int{0, 16, 64, 128, 256}).Draw(t, "group")
		w := normal(rapid.Uint64().Draw(t, "seed"), rows*cols, math.Exp2(float64(rapid.IntRange(-30, 10).Draw(t, "exp"))))
		if rapid.Bool().Draw(t, "zeros") {
			clear(w[:len(w)/2])
		}
		got, err := Quantize(w, rows, cols, group)
		require.NoError(t, err)
		require.NoError(t, Check(got))
		g := group
		if g == 0 {
			g = cols
		}
		trits, scales := define(w, rows, cols, g)
		gt, gs := make([]int8, rows*cols), make([]uint16, rows*got.Groups())
		require.NoError(t, Trits(gt, got))
		require.NoError(t, RowScales(gs, got))
		require.Equal(t, trits, gt)
		require.Equal(t, scales, gs)
		back, err := FromTrits(gt, gs, rows, cols, group)
		require.NoError(t, err)
		require.Equal(t, got, back)
	})
}

// Ties and their neighbours: every weight next to ±s/2 for many scales s, in groups
// of pairs w, 2s-w with the mean magnitude s.
func TestTritAtTheTie(t *testing.T) {
	for bits := uint16(0x0400); bits < 0x7800; bits += 37 {
		s := kernels.F16ToF32(bits)
		for _, sign := range []float32{1, -1} {
			for _, w := range []float32{s / 2, math.Nextafter32(s/2, 0), math.Nextafter32(s/2, 1e9), 3 * s / 2, s} {
				row := make([]float32, 16)
				for i := range row {
					row[i] = sign * w
					if i%2 == 1 {
						row[i] = 2*s - w
					}
				}
				q, err := Quantize(row, 1, 16, 16)
				require.NoError(t, err)
				require.Equal(t, bits, q.Scales[0])
				trits := make([]int8, 16)
				require.NoError(t, Trits(trits, q))
				for i, v := range row {
					want := int8(max(-1, min(1, math.RoundToEven(float64(v/s)))))
					require.Equal(t, want, trits[i], "w=%v s=%v", v, s)
				}
			}
		}
	}
}

func TestQuantizeStatistics(t *testing.T) {
	w := normal(1, 1<<20, 1)
	q, err := Quantize(w, 1024, 1024, 128)
	require.NoError(t, err)
	trits, back := make([]int8, len(w)), make([]float32, len(w))
	require.NoError(t, Trits(trits, q))
	require.NoError(t, Dequantize(back, q))
	zeros, mse := 0.0, 0.0
	for i := range w {
		if trits[i] == 0 {
			zeros++
		}
		mse += float64(w[i]-back[i]) * float64(w[i]-back[i])
	}
	require.InDelta(t, 0.310, zeros/float64(len(w)), 0.005)
	require.InDelta(t, 0.263, mse/float64(len(w)), 0.005)
}

// A scale computed again from dequantised weights shrinks by the share of zeros:
// why it is stored.
func TestRecomputedScaleShrinks(t *testing.T) {
	w := normal(2, 128, 1)
	q, err := Quantize(w, 1, 128, 128)
	require.NoError(t, err)
	back := make([]float32, 128)
	require.NoError(t, Dequantize(back, q))
	again, err := Quantize(back, 1, 128, 128)
	require.NoError(t, err)
	require.Less(t, kernels.F16ToF32(again.Scales[0]), 0.9*kernels.F16ToF32(q.Scales[0]))
}

func TestQuantizeRowsInParts(t *testing.T) {
	const rows, cols = 83, 200
	w := normal(3, rows*cols, 1)
	want, err := Quantize(w, rows, cols, 64)
	require.NoError(t, err)
	got, err := New(rows, cols, 64)
	require.NoError(t, err)
	for _, r := range [][2]int{{48, 83}, {0, 16}, {16, 48}} {
		require.NoError(t, QuantizeRows(got, w, r[0], r[1]))
	}
	require.Equal(t, want, got)
	require.Error(t, QuantizeRows(got, w, 8, 16))
	require.Error(t, QuantizeRows(got, w, 0, 84))
	require.Error(t, QuantizeRows(got, w[1:], 0, 16))
}

func TestQuantizeRejects(t *testing.T) {
	for _, v := range []float32{float32(math.NaN()), float32(math.Inf(1)), math.MaxFloat32} {
		w := normal(4, 64, 1)
		w[5] = v
		_, err := Quantize(w, 1, 64, 64)
		require.ErrorIs(t, err, ErrNotFinite)
	}
	for _, c := range [][4]int{{0, 16, 16, 0}, {1, 0, 16, 0}, {1, 64, 24, 64}, {1, 64, -16, 64}, {1, 64, 64, 63}, {1, maxCols + 1, 16, 0}} {
		_, err := Quantize(make([]float32, c[3]), c[0], c[1], c[2])
		require.Error(t, err, "%v", c)
	}
}

func TestCheck(t *testing.T) {
	fresh := func() *kernels.Ternary {
		w, err := Quantize(normal(5, 20*40, 1), 20, 40, 16)
		require.NoError(t, err)
		return w
	}
	require.NoError(t, Check(fresh()))
	for name, spoil := range map[string]func(*kernels.Ternary){
		"code 3":         func(w *kernels.Ternary) { w.Tiles[7] |= 3 },
		"padding row":    func(w *kernels.Ternary) { w.Tiles[3*64+15*4] ^= 1 },
		"padding column": func(w *kernels.Ternary) { w.Tiles[2*64] ^= 1 << 6 },
		"scale inf":      func(w *kernels.Ternary) { w.Scales[3] = 0x7c00 },
		"scale nan":      func(w *kernels.Ternary) { w.Scales[40] = 0xfe01 },
		"gain":           func(w *kernels.Ternary) { w.Gain = float32(math.Inf(-1)) },
		"short tiles":    func(w *kernels.Ternary) { w.Tiles = w.Tiles[:len(w.Tiles)-64] },
		"short scales":   func(w *kernels.Ternary) { w.Scales = w.Scales[1:] },
		"group":          func(w *kernels.Ternary) { w.Group = 8 },
	} {
		w := fresh()
		spoil(w)
		require.Error(t, Check(w), name)
	}
}

func TestCodes(t *testing.T) {
	for n := range 70 {
		trits := make([]int8, n)
		for i := range trits {
			trits[i] = int8(rand.IntN(3) - 1)
		}
		codes, back := make([]byte, (n+3)/4), make([]int8, n)
		require.NoError(t, PackCodes(codes, trits))
		require.NoError(t, VerifyCodes(codes, n))
		require.NoError(t, UnpackCodes(back, codes))
		require.True(t, slices.Equal(trits, back))
	}
	codes := make([]byte, 1)
	require.NoError(t, PackCodes(codes, []int8{-1, 0, 1, -1}))
	require.Equal(t, byte(0b11_01_00_11), codes[0])
	var ce *CodeError
	require.ErrorAs(t, VerifyCodes([]byte{0b10_00_00}, 4), &ce)
	require.Equal(t, 2, ce.Index)
	back := make([]int8, 4)
	require.NoError(t, UnpackCodes(back, []byte{0b10_01_11_00}))
	require.Equal(t, []int8{0, -1, 1, 0}, back)
	require.Error(t, PackCodes(codes, []int8{2}))
	require.Error(t, PackCodes(nil, []int8{1}))
}

func BenchmarkQuantize(b *testing.B) {
	w := normal(6, 1024*1024, 1)
	dst, err := New(1024, 1024, 128)
	require.NoError(b, err)
	b.SetBytes(int64(4 * len(w)))
	for b.Loop() {
		if err := QuantizeRows(dst, w, 0, 1024); err != nil {
			b.Fatal(err)
		}
	}
}
