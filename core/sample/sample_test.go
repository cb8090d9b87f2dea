package sample

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/architehc/nanochat/core/internal/rng"
	"github.com/architehc/nanochat/kernels"
)

// set is the kernel set of tests that need only one.
func set() *kernels.Set { return kernels.Best() }

func newSampler(t require.TestingT, o Options, vocab int) *Sampler {
	s, err := New(o, vocab)
	require.NoError(t, err)
	return s
}

func sampleID(t require.TestingT, s *Sampler, ws *Workspace, logits []float32, pos int) int32 {
	id, _, err := s.Sample(ws, logits, pos)
	require.NoError(t, err)
	return id
}

// normals returns n logits of the given spread.
func normals(n int, seed uint64, spread float64) []float32 {
	x := make([]float32, n)
	rng.New(seed, 1).FillNormal(x, spread)
	return x
}

var inf = float32(math.Inf(1))

func TestOptionErrorsNameOptionValueAndRange(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Temperature: -1}, "sample: temperature is -1, must be 0 (greedy) or 0.000001 to 100"},
		{Options{Temperature: 1e-9}, "sample: temperature is 1e-09, must be 0 (greedy) or 0.000001 to 100"},
		{Options{Temperature: nan}, "sample: temperature is NaN, must be 0 (greedy) or 0.000001 to 100"},
		{Options{Temperature: math.Inf(1)}, "sample: temperature is +Inf, must be 0 (greedy) or 0.000001 to 100"},
		{Options{TopK: -1}, "sample: top_k is -1, must be 0 (off) or more"},
		{Options{TopP: 1.5}, "sample: top_p is 1.5, must be 0 (off) to 1"},
		{Options{TopP: nan}, "sample: top_p is NaN, must be 0 (off) to 1"},
		{Options{MinP: -0.1}, "sample: min_p is -0.1, must be 0 (off) to 1"},
		{Options{RepeatPenalty: -2}, "sample: repeat_penalty is -2, must be 0 (off) or 0.01 to 100"},
		{Options{PresencePenalty: 101}, "sample: presence_penalty is 101, must be -100 to 100"},
		{Options{FrequencyPenalty: nan}, "sample: frequency_penalty is NaN, must be -100 to 100"},
		{Options{PenaltyWindow: -1}, "sample: penalty_window is -1, must be 0 (all) or more"},
		{Options{TopLogprobs: 65}, "sample: top_logprobs is 65, must be 0 to 64"},
		{Options{LogitBias: map[int32]float32{10: 1, 12: 1}}, "sample: logit_bias is for id 10, must be for ids 0 to 9"},
		{Options{LogitBias: map[int32]float32{-1: 1}}, "sample: logit_bias is for id -1, must be for ids 0 to 9"},
		{Options{LogitBias: map[int32]float32{3: inf}}, "sample: logit_bias is +Inf for id 3, must be -1e6 to 1e6, or negative infinity"},
	} {
		_, err := New(c.o, 10)
		var oe *OptionError
		require.ErrorAs(t, err, &oe)
		require.EqualError(t, err, c.want)
	}
	require.NoError(t, Options{}.Validate(1))
	require.ErrorContains(t, Options{}.Validate(0), "vocab is 0")
	ban := Options{LogitBias: map[int32]float32{3: -inf}}
	require.NoError(t, ban.Validate(10))
}

func TestGreedy(t *testing.T) {
	nan := float32(math.NaN())
	for _, c := range []struct {
		name   string
		logits []float32
		o      Options
		want   int32
	}{
		{"largest", []float32{1, 3, 2}, Options{}, 1},
		{"lowest id of equals", []float32{1, 3, 3}, Options{}, 1},
		{"all equal", []float32{0, 0, 0}, Options{}, 0},
		{"negative", []float32{-5, -4, -6}, Options{}, 1},
		{"excluded by the model", []float32{-inf, -9, -inf}, Options{}, 1},
		{"bias", []float32{1, 3, 2}, Options{LogitBias: map[int32]float32{2: 1.5}}, 2},
		{"ban", []float32{1, 3, 2}, Options{LogitBias: map[int32]float32{1: -inf}}, 2},
		{"top-k and top-p change nothing", []float32{1, 3, 2}, Options{TopK: 1, TopP: .1, MinP: 1}, 1},
		{"overflowing sum is no error", []float32{3e38, 3.1e38, 3e38}, Options{}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, sampleID(t, newSampler(t, c.o, 3), NewWorkspace(3, set()), c.logits, 0))
		})
	}
	for _, o := range []Options{{}, {Temperature: 1}, {Temperature: 1, TopK: 2}, {Temperature: 1, TopP: .5}} {
		s, ws := newSampler(t, o, 20), NewWorkspace(20, set())
		for _, bad := range []float32{nan, inf} {
			for i := range 20 {
				x := normals(20, 1, 1)
				x[i] = bad
				_, _, err := s.Sample(ws, x, 77)
				var le *LogitError
				require.ErrorAs(t, err, &le)
				require.Equal(t, int32(i), le.ID)
				require.Equal(t, 77, le.Pos)
			}
		}
		none := slices.Repeat([]float32{-inf}, 20)
		_, _, err := s.Sample(ws, none, 0)
		require.ErrorIs(t, err, ErrNoToken)
		_, _, err = s.Sample(ws, none[:19], 0)
		require.ErrorContains(t, err, "19 logits")
	}
}

// support is what Options keep, by a full sort in float64.
func support(l []float64, o Options) map[int32]float64 {
	ids := make([]int32, len(l))
	p := make([]float64, len(l))
	top, total := slices.Max(l), 0.0
	for i := range l {
		ids[i] = int32(i)
		p[i] = math.Exp((l[i] - top) / o.Temperature)
		total += p[i]
	}
	sort.SliceStable(ids, func(a, b int) bool { return p[ids[a]] > p[ids[b]] })
	if o.TopK > 0 && o.TopK < len(ids) {
		ids = ids[:o.TopK]
		total = 0
		for _, id := range ids {
			total += p[id]
		}
	}
	if o.TopP > 0 && o.TopP < 1 {
		acc := 0.0
		for i, id := range ids {
			if acc += p[id]; acc >= o.TopP*total*(1-1e-7) { // the margin of float32
				ids = ids[:i+1]
				break
			}
		}
	}
	kept, mass := map[int32]float64{}, 0.0
	for _, id := range ids {
		if p[id] >= o.MinP*p[ids[0]]*(1-1e-6) {
			kept[id] = p[id]
			mass += p[id]
		}
	}
	for id := range kept {
		kept[id] /= mass
	}
	return kept
}

func TestSupportMatchesFullSort(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		// Few distinct logits make ties; powers of two make their sums exact.
		n := rapid.IntRange(1, 60).Draw(rt, "vocab")
		l, x := make([]float64, n), make([]float32, n)
		for i := range l {
			l[i] = -math.Ln2 * float64(rapid.IntRange(0, 5).Draw(rt, "logit"))
			x[i] = float32(l[i])
		}
		o := Options{
			Temperature: 1,
			TopK:        rapid.IntRange(0, n+1).Draw(rt, "k"),
			TopP:        float64(rapid.IntRange(0, 16).Draw(rt, "p")) / 16.37, // never hits a sum of powers of two
			MinP:        rapid.SampledFrom([]float64{0, .1, .2, .4, .8, 1}).Draw(rt, "minp"),
		}
		want := support(l, o)
		wide := rapid.Bool().Draw(rt, "wide")
		s, ws := newSampler(rt, o, n), NewWorkspace(n, set())
		got := map[int32]float64{}
		const grid = 1 << 10
		for i := range grid {
			unit := (float64(i) + .5) / grid
			set().Scale(ws.p, s.inv, x)
			var id int32
			if wide || o.TopK == 0 || o.TopK >= n {
				best := set().ArgMax(ws.p)
				set().Softmax(ws.p, ws.p)
				id = ws.drawWide(o, best, unit)
			} else {
				var err error
				id, err = s.drawSmall(ws, o.TopK, unit)
				require.NoError(rt, err)
			}
			got[id] += 1. / grid
		}
		for id, p := range want {
			require.InDelta(rt, p, got[id], 2./grid, "id %d of %v", id, want)
		}
		require.Len(rt, got, len(want))
	})
}

// TestLargeVocabulary compares the kept tokens where every path runs at size:
// flat and peaked rows, top-k on both sides of smallK.
func TestLargeVocabulary(t *testing.T) {
	const n = 10007
	for _, spread := range []float64{.01, 4} {
		x := normals(n, 5, spread)
		l := make([]float64, n)
		for i := range x {
			l[i] = float64(x[i])
		}
		for _, o := range []Options{
			{TopK: 1}, {TopK: 40}, {TopK: smallK}, {TopK: smallK + 1}, {TopK: 3000}, {TopK: n - 1}, {TopP: .1}, {TopP: .95}, {TopP: .999},
			{TopK: 1000, TopP: .8}, {TopK: 40, TopP: .8, MinP: .2}, {MinP: .05}, {TopP: .9, MinP: .001}, {TopK: 2000, MinP: .3},
		} {
			o.Temperature = .8
			want := support(l, o)
			s, ws := newSampler(t, o, n), NewWorkspace(n, set())
			count := 0
			for pos := range 20 {
				id := sampleID(t, s, ws, x, pos)
				if _, ok := want[id]; !ok {
					count++
				}
			}
			// Sums of many float32 may move the boundary by a few tokens.
			require.LessOrEqual(t, count, 1, "%+v spread %v keeps %d", o, spread, len(want))
		}
	}
}

// TestDistribution is a chi-square test of 100,000 draws, with fixed seeds.
func TestDistribution(t *testing.T) {
	const n, draws = 50, 100_000
	x := normals(n, 3, 1.5)
	for i, o := range []Options{
		{Temperature: 1}, {Temperature: .5}, {Temperature: 2}, {Temperature: 1, TopK: 10}, {Temperature: .9, TopP: .9},
		{Temperature: 1, MinP: .05}, {Temperature: 1.3, TopK: 30, TopP: .8, MinP: .02},
		{Temperature: 1, LogitBias: map[int32]float32{0: 2, 1: -inf, 2: -1}},
		{Temperature: 1, TopK: 5, LogitBias: map[int32]float32{7: 100}},
	} {
		o.Seed = uint64(i)
		l := make([]float64, n)
		for j := range x {
			l[j] = float64(x[j]) + float64(o.LogitBias[int32(j)])
		}
		want := support(l, o)
		s, ws := newSampler(t, o, n), NewWorkspace(n, set())
		seen := map[int32]int{}
		for pos := range draws {
			seen[sampleID(t, s, ws, x, pos)]++
		}
		chi, free := 0.0, -1
		rest, restSeen := 0.0, 0 // tokens expected fewer than 5 times, together
		for id, p := range want {
			if e := p * draws; e >= 5 {
				chi += (float64(seen[id]) - e) * (float64(seen[id]) - e) / e
				free++
			} else {
				rest += e
				restSeen += seen[id]
			}
			delete(seen, id)
		}
		if rest >= 5 {
			chi += (float64(restSeen) - rest) * (float64(restSeen) - rest) / rest
			free++
		}
		require.Empty(t, seen, "drawn but excluded")
		// Wilson and Hilferty's approximation of the 99th percentile.
		k := float64(max(free, 1))
		limit := k * math.Pow(1-2/(9*k)+2.3263*math.Sqrt(2/(9*k)), 3)
		require.Less(t, chi, limit, "%+v: chi-square with %d degrees of freedom", o, free)
	}
}

func TestPenaltiesMatchDefinition(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const n = 12
		o := Options{
			RepeatPenalty:    rapid.SampledFrom([]float64{0, 1, 1.3, .7}).Draw(rt, "repeat"),
			PresencePenalty:  rapid.SampledFrom([]float64{0, .5, -1}).Draw(rt, "presence"),
			FrequencyPenalty: rapid.SampledFrom([]float64{0, .25, -2}).Draw(rt, "frequency"),
			PenaltyWindow:    rapid.IntRange(0, 9).Draw(rt, "window"),
			LogitBias:        map[int32]float32{4: 1.25, 5: -3},
		}
		s, ws := newSampler(rt, o, n), NewWorkspace(n, set())
		tokens := rapid.SliceOfN(rapid.Int32Range(0, n-1), 0, 30)
		for round := range 2 { // the second one after Reset
			prompt, gen := tokens.Draw(rt, "prompt"), tokens.Draw(rt, "generated")
			s.Reset(prompt)
			for _, id := range gen {
				s.Accept(id)
			}
			x := normals(n, uint64(round+len(gen)), 2)
			first := 0
			if o.PenaltyWindow > 0 {
				first = max(0, len(prompt)+len(gen)-o.PenaltyWindow)
			}
			total, generated := map[int32]int{}, map[int32]int{}
			for i, id := range slices.Concat(prompt, gen) {
				if i >= first {
					total[id]++
					if i >= len(prompt) {
						generated[id]++
					}
				}
			}
			want := slices.Clone(x)
			for id := range int32(n) {
				if r := float32(o.RepeatPenalty); r != 0 && total[id] > 0 {
					if want[id] > 0 {
						want[id] /= r
					} else {
						want[id] *= r
					}
				}
				if generated[id] > 0 {
					want[id] -= float32(o.PresencePenalty)
					want[id] -= float32(float32(o.FrequencyPenalty) * float32(generated[id]))
				}
				want[id] += o.LogitBias[id]
			}
			got := slices.Clone(x)
			s.adjust(got, x, 1)
			require.Equal(rt, want, got)
			require.Equal(rt, int32(set().ArgMax(want)), sampleID(rt, s, ws, x, 3))
		}
	})
}

func TestLogprobs(t *testing.T) {
	const n = 300
	x := normals(n, 9, 2)
	before := slices.Clone(x)
	l := make([]float64, n)
	lse := 0.0
	for i := range x {
		l[i] = float64(x[i])
		lse += math.Exp(l[i])
	}
	lse = math.Log(lse)
	order := make([]int32, n)
	for i := range order {
		order[i] = int32(i)
	}
	sort.SliceStable(order, func(a, b int) bool { return x[order[a]] > x[order[b]] })
	for _, o := range []Options{{Logprobs: true}, {Temperature: .7, TopK: 3, TopLogprobs: 5}, {Temperature: 2, TopLogprobs: 64, RepeatPenalty: 1.5}} {
		s, ws := newSampler(t, o, n), NewWorkspace(n, set())
		s.Reset([]int32{order[0]})
		id, lp, err := s.Sample(ws, x, 1)
		require.NoError(t, err)
		require.InDelta(t, l[id]-lse, lp, 1e-5, "of the model's distribution, whatever the options")
		require.Len(t, s.Top(), o.TopLogprobs)
		for i, c := range s.Top() {
			require.Equal(t, order[i], c.ID)
			require.InDelta(t, l[c.ID]-lse, c.Logprob, 1e-5)
			if c.ID == id {
				require.Equal(t, lp, c.Logprob)
			}
		}
		require.Equal(t, before, x, "logits are not changed")
	}
	s := newSampler(t, Options{TopLogprobs: 20}, 4)
	_, _, err := s.Sample(NewWorkspace(4, set()), x[:4], 0)
	require.NoError(t, err)
	require.Len(t, s.Top(), 4, "never more than there are")
}

// mixes are options that together reach every path.
var mixes = []Options{
	{}, {RepeatPenalty: 1.2}, {Temperature: 1}, {Temperature: .8, TopK: 40}, {Temperature: .8, TopK: 500}, {Temperature: 1, TopP: .9},
	{Temperature: 1, MinP: .05}, {Temperature: .7, TopK: 40, TopP: .9, MinP: .01, RepeatPenalty: 1.1, PresencePenalty: .1, FrequencyPenalty: .2, PenaltyWindow: 64},
	{Temperature: 1, TopK: 200, TopP: .9, MinP: .01, Logprobs: true, TopLogprobs: 5, LogitBias: map[int32]float32{3: 1, 9: -inf}},
}

func TestSameIDsOnEveryKernelSet(t *testing.T) {
	const n = 4099
	for _, o := range mixes {
		o.Seed = 42
		var want []string
		for i, k := range kernels.All() {
			s, ws := newSampler(t, o, n), NewWorkspace(n, k)
			s.Reset([]int32{1, 2, 3})
			var got []string
			for pos := range 20 {
				id, lp, err := s.Sample(ws, normals(n, uint64(pos), 2), pos)
				require.NoError(t, err)
				got = append(got, fmt.Sprint(id, lp, s.Top()))
				s.Accept(id)
			}
			if i == 0 {
				want = got
			}
			require.Equal(t, want, got, "%s against %s", k.Name, kernels.All()[0].Name)
		}
	}
}

func TestDependsOnSeedAndPositionOnly(t *testing.T) {
	const n = 1000
	x := normals(n, 1, 1)
	ws := NewWorkspace(n, set())
	draw := func(seed uint64, pos int) int32 {
		return sampleID(t, newSampler(t, Options{Temperature: 1, Seed: seed}, n), ws, x, pos)
	}
	one := newSampler(t, Options{Temperature: 1, Seed: 1}, n)
	differ := 0
	for pos := 99; pos >= 0; pos-- { // any order
		id := sampleID(t, one, ws, x, pos)
		require.Equal(t, draw(1, pos), id)
		if id != draw(2, pos) {
			differ++
		}
	}
	require.Greater(t, differ, 90)
	require.Equal(t, draw(0, 1<<40), draw(0, 1<<40))
}

func TestWalkNeverReturnsZeroProbability(t *testing.T) {
	for _, unit := range []float64{0, .25, .5, 1 - 1e-16, 1, math.Inf(1)} {
		i := walk([]float32{0, .5, 0, .5, 0}, unit)
		require.Contains(t, []int{1, 3}, i)
	}
	ws := NewWorkspace(1000, set())
	clear(ws.p)
	ws.p[700], ws.p[10] = .5, .5
	require.Equal(t, 10, ws.drawAll(0))
	require.Equal(t, 700, ws.drawAll(.75))
	require.Equal(t, 700, ws.drawAll(1))
}

func TestNoAllocationPerToken(t *testing.T) {
	const n = 16384
	x := normals(n, 1, 1)
	for _, o := range mixes {
		s, ws := newSampler(t, o, n), NewWorkspace(n, set())
		s.Reset([]int32{1, 2, 3})
		pos := 0
		got := testing.AllocsPerRun(20, func() {
			id, _, err := s.Sample(ws, x, pos)
			if err != nil {
				panic(err)
			}
			s.Accept(id)
			s.Accept(int32(pos))
			pos++
		})
		require.Zero(t, got, "%+v", o)
	}
}

func BenchmarkSample(b *testing.B) {
	for _, n := range []int{16384, 128256} {
		for _, spread := range []float64{.1, 3} {
			x := normals(n, 1, spread)
			for _, o := range []Options{{}, {Temperature: .8}, {Temperature: .8, TopK: 40, TopP: .95}, {Temperature: .8, TopP: .95}, {Temperature: .8, TopK: 1000}, {Temperature: .8, MinP: .05}} {
				b.Run(fmt.Sprintf("vocab%d/spread%g/t%g_k%d_p%g_m%g", n, spread, o.Temperature, o.TopK, o.TopP, o.MinP), func(b *testing.B) {
					s, _ := New(o, n)
					ws := NewWorkspace(n, set())
					for i := 0; b.Loop(); i++ {
						if _, _, err := s.Sample(ws, x, i); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

func ExampleSampler() {
	s, err := New(Options{Temperature: .8, TopP: .95, Seed: 7}, 4)
	if err != nil {
		var oe *OptionError
		fmt.Println(errors.As(err, &oe))
		return
	}
	ws := NewWorkspace(4, kernels.Best())
	s.Reset([]int32{0}) // the prompt
	id, _, _ := s.Sample(ws, []float32{-9, -9, 4, -9}, 1)
	s.Accept(id)
	fmt.Println(id)
	// Output: 2
}

// Score gives the logprob and the candidates that Sample gives where it draws the token.
func TestScore(t *testing.T) {
	const vocab = 50
	ws := NewWorkspace(vocab, set())
	for pos := range 20 {
		row := normals(vocab, uint64(pos), 2)
		s := newSampler(t, Options{Temperature: 1, Logprobs: true, TopLogprobs: 3, RepeatPenalty: 1.5, LogitBias: map[int32]float32{7: 2}}, vocab)
		s.Reset([]int32{1, 2, 3})
		id, want, err := s.Sample(ws, row, pos)
		require.NoError(t, err)
		top := slices.Clone(s.Top())
		again := newSampler(t, Options{TopLogprobs: 3}, vocab)
		got, err := again.Score(ws, row, pos, id)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, top, again.Top())
		sum := 0.0
		for i := range vocab {
			lp, err := again.Score(ws, row, pos, int32(i))
			require.NoError(t, err)
			sum += math.Exp(float64(lp))
		}
		require.InDelta(t, 1, sum, 1e-5)
		none, err := newSampler(t, Options{}, vocab).Score(ws, row, pos, id)
		require.NoError(t, err)
		require.Zero(t, none, "not asked for")
	}
	s := newSampler(t, Options{Logprobs: true}, 3)
	_, err := s.Score(NewWorkspace(3, set()), []float32{1, float32(math.NaN()), 2}, 9, 0)
	var le *LogitError
	require.ErrorAs(t, err, &le)
	require.Equal(t, 9, le.Pos)
	for _, id := range []int32{-1, 3} {
		_, err = s.Score(NewWorkspace(3, set()), []float32{1, 2, 3}, 0, id)
		require.Error(t, err)
	}
}
