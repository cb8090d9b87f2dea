package kernels_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	. "github.com/architehc/nanochat/kernels"
)

// wantQuantize is the definition with the clamp written out.
func wantQuantize(x []float32, group int) (q []int8, sums []int32, a float32) {
	q, sums = make([]int8, len(x)), make([]int32, (len(x)+group-1)/group)
	finite := true
	for _, v := range x {
		abs := float32(math.Abs(float64(v)))
		finite = finite && abs <= math.MaxFloat32
		a = max(a, abs)
	}
	a /= 127
	if a == 0 || !finite {
		return q, sums, a
	}
	for i, v := range x {
		r := math.RoundToEven(float64(v / a))
		q[i] = int8(max(-127, min(127, r)))
		sums[i/group] += int32(q[i])
	}
	return q, sums, a
}

func checkQuantize(t failer, set *Set, x []float32, group, pad int) {
	t.Helper()
	wantQ, wantSums, wantA := wantQuantize(x, group)
	q, c1 := guarded[int8](len(x)+pad, 77)
	sums, c2 := guarded[int32](len(wantSums), 77)
	in, c3 := guarded[float32](len(x), 77)
	copy(in, x)
	a := set.Quantize(q, sums, in, group)
	if !same(a, wantA) {
		t.Fatalf("%s: %d values: scale %g, want %g", set.Name, len(x), a, wantA)
	}
	for i := range q {
		want := int8(0)
		if i < len(x) {
			want = wantQ[i]
		}
		if q[i] != want {
			t.Fatalf("%s: %d values, group %d: q[%d] is %d, want %d", set.Name, len(x), group, i, q[i], want)
		}
	}
	for g := range sums {
		if sums[g] != wantSums[g] {
			t.Fatalf("%s: %d values, group %d: sums[%d] is %d, want %d", set.Name, len(x), group, g, sums[g], wantSums[g])
		}
	}
	c1(t)
	c2(t)
	c3(t)
}

func TestQuantize(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	tiny := math.Float32frombits(1)
	cases := map[string][]float32{
		"zeros":            make([]float32, 100),
		"negative zeros":   {float32(math.Copysign(0, -1)), 0},
		"ties":             {127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5},
		"infinite":         {1, inf, 2},
		"minus infinite":   {1, -inf, 2},
		"NaN":              {1, nan, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
		"NaN at the end":   append(make([]float32, 33), nan),
		"subnormal":        {100 * tiny, -50 * tiny, 30 * tiny},
		"subnormal clamps": {190 * tiny, -190 * tiny, 128 * tiny},
		"vanishing":        {60 * tiny, -3 * tiny},
		"huge":             {math.MaxFloat32, -math.MaxFloat32, 1e38},
	}
	for _, set := range All() {
		t.Run(set.Name, func(t *testing.T) {
			for name, x := range cases {
				t.Run(name, func(t *testing.T) { checkQuantize(t, set, x, 16, 5) })
			}
			r := rand.New(rand.NewPCG(1, 2))
			for n := range 300 {
				x := make([]float32, n+1)
				for i := range x {
					x[i] = float32(r.NormFloat64())
				}
				for _, group := range []int{16, 64, 128, 256, len(x)} {
					checkQuantize(t, set, x, group, n%70)
				}
			}
		})
	}
}

func TestQuantizeProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.SliceOfN(rapid.Float32(), 1, 200).Draw(t, "x")
		group := 16 * rapid.IntRange(1, 20).Draw(t, "group/16")
		for _, set := range All() {
			checkQuantize(t, set, x, group, 3)
		}
	})
}
