package kernels

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// anyFloat covers the whole range of float32, specials included.
func anyFloat(r *rand.Rand) float32 {
	switch r.IntN(8) {
	case 0:
		return []float32{0, float32(math.Copysign(0, -1)), 1, -1, 0x1p-149, -0x1p-149, 0x1p-126, math.MaxFloat32, -math.MaxFloat32,
			float32(math.Inf(1)), negInf(), float32(math.NaN())}[r.IntN(12)]
	case 1:
		return math.Float32frombits(r.Uint32())
	}
	return float32(r.NormFloat64())
}

// same is equality of bits, except that all NaN are alike.
func same(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

func TestFMA32RoundsOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 300000 {
		// Exponents close together and short mantissas make midpoints frequent.
		f := func(spread int) float32 {
			m := float64(r.IntN(1<<24)) * float64(1-2*r.IntN(2))
			if r.IntN(2) == 0 {
				m = float64(r.IntN(1<<12)-1<<11) * 4096
			}
			return float32(math.Ldexp(m, r.IntN(2*spread+1)-spread-24))
		}
		a, b, c := f(12), f(12), f(36)
		switch i % 4 {
		case 1:
			a *= 0x1p-70
			b *= 0x1p-66
			c *= 0x1p-118
		case 2:
			c = -float32(a * b)
		case 3:
			c = float32(math.Ldexp(float64(float32(a*b)), 24+r.IntN(3)))
		}
		x := new(big.Float).SetPrec(600).SetFloat64(float64(a))
		x.Mul(x, big.NewFloat(float64(b)))
		x.Add(x, new(big.Float).SetPrec(600).SetFloat64(float64(c)))
		want, _ := x.Float32()
		got := FMA32(a, b, c)
		if got != want {
			t.Fatalf("FMA32(%x, %x, %x) = %x, want %x", a, b, c, got, want)
		}
	}
	inf := float32(math.Inf(1))
	require.Equal(t, inf, FMA32(inf, 1, 0))
	require.Equal(t, inf, FMA32(math.MaxFloat32, 2, 0))
	require.True(t, math.IsNaN(float64(FMA32(inf, 0, 1))))
	require.True(t, math.IsNaN(float64(FMA32(inf, 1, -inf))))
	require.True(t, math.Signbit(float64(FMA32(-1, 0, float32(math.Copysign(0, -1))))))
}

func TestHalfConversions(t *testing.T) {
	for h := range 1 << 16 {
		h := uint16(h)
		f := F16ToF32(h)
		if e := h >> 10 & 31; e < 31 {
			want := math.Ldexp(float64(h&0x3ff|min(e, 1)<<10), int(max(e, 1))-25)
			require.Equal(t, want, math.Abs(float64(f)))
		}
		back := F32ToF16(f)
		if f != f {
			require.Equal(t, h|0x200, back)
		} else {
			require.Equal(t, h, back)
		}
		if f == f && !math.IsInf(float64(f), 0) {
			// The midpoint to the next larger half goes to the even one.
			up := F16ToF32(h&0x7fff + 1)
			lo := F16ToF32(h & 0x7fff)
			mid := lo + (up-lo)/2
			if h&0x7fff == 0x7bff {
				mid = 65520
			}
			even := h&0x7fff + h&1
			require.Equal(t, even, F32ToF16(mid), "%x", mid)
			require.Equal(t, h&0x7fff, F32ToF16(math.Nextafter32(mid, 0)))
			require.Equal(t, h&0x7fff+1, F32ToF16(math.Nextafter32(mid, float32(math.Inf(1)))))
		}
		b := F32ToBF16(BF16ToF32(h))
		if g := BF16ToF32(h); g != g {
			require.Equal(t, h|0x40, b)
		} else {
			require.Equal(t, h, b)
		}
	}
	require.Equal(t, uint16(0x3f80), F32ToBF16(math.Float32frombits(0x3f808000)))
	require.Equal(t, uint16(0x3f82), F32ToBF16(math.Float32frombits(0x3f818000)))
	require.Equal(t, uint16(0x7f80), F32ToBF16(math.MaxFloat32))
}

// ulps is the distance of got from want in units of the last place of float32.
func ulps(got float32, want float64) float64 {
	_, e := math.Frexp(want)
	return math.Abs(float64(got)-want) / math.Ldexp(1, max(e-24, -149))
}

func TestExpTanhAccuracy(t *testing.T) {
	var worstExp, worstTanh, worstSigmoid float64
	for x := float32(-104); x < 88.72; x += 0x1p-11 * 0.937 {
		worstExp = max(worstExp, ulps(exp32(x), math.Exp(float64(x))))
		s := x / 8
		worstTanh = max(worstTanh, ulps(tanh32(s), math.Tanh(float64(s))))
		if x > -86 {
			worstSigmoid = max(worstSigmoid, ulps(sigmoid32(x), 1/(1+math.Exp(-float64(x)))))
		}
	}
	t.Logf("ulp: exp %.3f, tanh %.3f, sigmoid %.3f", worstExp, worstTanh, worstSigmoid)
	require.Less(t, worstExp, 1.0)
	require.Less(t, worstTanh, 2.0)
	require.Less(t, worstSigmoid, 3.0)
	inf := float32(math.Inf(1))
	require.Equal(t, float32(0), exp32(-inf))
	require.Equal(t, inf, exp32(inf))
	require.Equal(t, inf, exp32(88.73))
	require.Equal(t, float32(1), exp32(0))
	require.True(t, math.IsNaN(float64(exp32(float32(math.NaN())))))
	require.Equal(t, float32(1), tanh32(inf))
	require.Equal(t, float32(-1), tanh32(-inf))
	require.True(t, math.IsNaN(float64(tanh32(float32(math.NaN())))))
}

func TestFloat64Functions(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for range 100000 {
		x := math.Exp(r.Float64()*60 - 30)
		require.InDelta(t, math.Log(x), log64(x), 4e-16*math.Abs(math.Log(x))+2e-16)
		y := r.Float64()*60 - 30
		require.InEpsilon(t, math.Exp(y), exp64(y), 6e-16)
		a := r.Float64() * 1e6
		s, c := sincos64(a)
		require.InDelta(t, math.Sin(a), s, 5e-16)
		require.InDelta(t, math.Cos(a), c, 5e-16)
	}
}
