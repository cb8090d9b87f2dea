package ternary

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/architehc/nanochat/kernels"
)

// All statistics against the trits one by one.
func TestStatistics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows, cols := rapid.IntRange(1, 40).Draw(t, "rows"), rapid.IntRange(1, 70).Draw(t, "cols")
		draw := func(label string) ([]int8, *kernels.Ternary) {
			trits := make([]int8, rows*cols)
			sparse := rapid.Bool().Draw(t, label+" sparse")
			for i := range trits {
				if v := rapid.IntRange(-1, 1).Draw(t, label); !sparse || i%17 == 0 {
					trits[i] = int8(v)
				}
			}
			scales := make([]uint16, rows)
			for i := range scales {
				scales[i] = kernels.F32ToF16(float32(1 + (i*7)%rows))
			}
			w, err := FromTrits(trits, scales, rows, cols, 0)
			require.NoError(t, err)
			return trits, w
		}
		ta, a := draw("a")
		tb, b := draw("b")
		var want Counts
		flips, dead := 0, 0
		for r := range rows {
			alive := false
			for c := range cols {
				v := ta[r*cols+c]
				alive = alive || v != 0
				switch v {
				case -1:
					want.Minus++
				case 0:
					want.Zero++
				default:
					want.Plus++
				}
				if v != tb[r*cols+c] {
					flips++
				}
			}
			if !alive {
				dead++
			}
		}
		require.Equal(t, want, CountTrits(a))
		require.Equal(t, rows*cols, want.Total())
		require.InDelta(t, float64(want.Zero)/float64(rows*cols), want.ZeroFraction(), 1e-15)
		require.Equal(t, dead, DeadRows(a))
		changed, total, err := Flips(a, b)
		require.NoError(t, err)
		require.Equal(t, flips, changed)
		require.Equal(t, rows*cols, total)
		changed, _, err = Flips(a, a)
		require.NoError(t, err)
		require.Zero(t, changed)
		low, _, high := ScaleRange(a)
		require.Equal(t, float32(1), low)
		require.LessOrEqual(t, high, float32(rows))
	})
	require.Zero(t, Counts{}.ZeroFraction())
	require.Equal(t, Counts{2, 4, 6}, Counts{1, 2, 3}.Add(Counts{1, 2, 3}))
}

func TestFlipsOfDifferentShapes(t *testing.T) {
	a, err := New(3, 40, 0)
	require.NoError(t, err)
	b, err := New(4, 40, 0) // the same number of tiles
	require.NoError(t, err)
	_, _, err = Flips(a, b)
	require.ErrorContains(t, err, "[3, 40] cannot be compared with [4, 40]")
}

func TestScaleRange(t *testing.T) {
	one := kernels.F32ToF16(1)
	w, err := FromTrits(make([]int8, 4*32), []uint16{0, one, one, kernels.F32ToF16(8), one, one, one, kernels.F32ToF16(3)}, 4, 32, 16)
	require.NoError(t, err)
	w.Gain = 2
	low, median, high := ScaleRange(w)
	require.Equal(t, [3]float32{0, 2, 16}, [3]float32{low, median, high})
}

func TestNearThreshold(t *testing.T) {
	// The mean magnitude is 1 in both groups.
	latents := make([]float32, 32)
	for i := range latents {
		latents[i] = 1
	}
	latents[0], latents[1] = 0.52, 1.48
	latents[20], latents[21] = -0.45, 1.55
	w, err := Quantize(latents, 1, 32, 16)
	require.NoError(t, err)
	for width, want := range map[float32]float64{0.001: 0, 0.03: 1. / 32, 0.1: 2. / 32, 0.51: 30. / 32} {
		got, err := NearThreshold(w, latents, width)
		require.NoError(t, err)
		require.InDelta(t, want, got, 1e-9, width)
	}
	_, err = NearThreshold(w, latents[1:], 0.1)
	require.Error(t, err)
}
