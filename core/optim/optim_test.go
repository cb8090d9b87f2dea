package optim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels/team"
)

// everyRule is a rule per class, of every kind.
func everyRule() map[Class]Rule {
	return map[Class]Rule{
		Matrix:    {Kind: Muon, LR: 0.02, WeightDecay: 0.1, Cautious: true, MomentumStart: 0.85, MomentumWarmup: 5},
		Embedding: {Kind: AdamW, LR: 0.01, WeightDecay: 0.1},
		Head:      {Kind: Lion, LR: 0.001, WeightDecay: 1},
		Scalar:    {Kind: AdamW, LR: 0.01, NoClip: true},
		MHC:       {Kind: AdamW, LR: 0.003, Beta2: 0.99},
	}
}

// network is a list of parameters of every class, of awkward shapes.
func network(seed uint64) []Param {
	rnd := rand.New(rand.NewPCG(seed, 7))
	var out []Param
	for _, p := range []Param{
		{Name: "embedding", Class: Embedding, Rows: 131, Cols: 67},
		{Name: "qkv", Class: Matrix, Rows: 97, Cols: 65, Split: []int{65, 16, 16}},
		{Name: "norm", Class: Scalar, Rows: 1, Cols: 67},
		{Name: "up", Class: Matrix, Rows: 130, Cols: 67},
		{Name: "down", Class: Matrix, Rows: 67, Cols: 130},
		{Name: "mix", Class: MHC, Rows: 2, Cols: 2},
		{Name: "head", Class: Head, Rows: 131, Cols: 67},
	} {
		p.W, p.G = normalMat(rnd, p.Rows, p.Cols).f32(), make([]float32, p.Rows*p.Cols)
		out = append(out, p)
	}
	return out
}

// gradients fills in the gradients of step s.
func gradients(params []Param, s int) {
	rnd := rand.New(rand.NewPCG(uint64(s), 8))
	for _, p := range params {
		for i := range p.G {
			p.G[i] = float32(rnd.NormFloat64()) + p.W[i]/4
		}
	}
}

var wsd = Schedule{Shape: Stable, Warmup: 4, Total: 20, Decay: 8, Final: 0.1}

func weights(params []Param) [][]float32 {
	var w [][]float32
	for _, p := range params {
		w = append(w, slices.Clone(p.W))
	}
	return w
}

func train(t *testing.T, o *Optimizer, params []Param, from, to int) {
	t.Helper()
	for s := from; s <= to; s++ {
		gradients(params, s)
		r := step(t, o)
		require.Equal(t, s, r.Step)
		require.False(t, r.Skipped)
	}
}

func TestBitsDoNotDependOnTheTeam(t *testing.T) {
	for _, bf16 := range []bool{false, true} {
		var want [][]float32
		for _, n := range []int{1, 2, 3, 5, 16} {
			tm := team.New(n, team.Options{})
			params := network(1)
			o, err := New(params, Options{Rules: everyRule(), Schedule: wsd, Clip: 1, BF16: bf16, Team: tm})
			require.NoError(t, err)
			train(t, o, params, 1, 3)
			tm.Close()
			if want == nil {
				want = weights(params)
			}
			require.True(t, reflect.DeepEqual(want, weights(params)), "%d workers, bf16=%t", n, bf16)
		}
	}
}

// Twenty steps are ten steps, a save, a load into a new optimizer and ten more.
func TestResumeIsBitExact(t *testing.T) {
	make := func(params []Param) *Optimizer {
		o, err := New(params, Options{Rules: everyRule(), Schedule: wsd, Clip: 1})
		require.NoError(t, err)
		return o
	}
	params := network(2)
	o := make(params)
	train(t, o, params, 1, 20)

	half := network(2)
	first := make(half)
	train(t, first, half, 1, 10)
	var saved []Tensor
	for _, x := range first.Tensors() {
		x.Data = slices.Clone(x.Data)
		saved = append(saved, x)
	}
	slices.Reverse(saved) // the order does not matter
	loaded := network(3)
	for i, w := range weights(half) {
		copy(loaded[i].W, w)
	}
	second := make(loaded)
	require.NoError(t, second.Restore(first.Counters(), saved))
	train(t, second, loaded, 11, 20)
	require.True(t, reflect.DeepEqual(weights(params), weights(loaded)))
	require.True(t, reflect.DeepEqual(o.Tensors(), second.Tensors()))
	require.Equal(t, o.Counters(), second.Counters())
}

func TestRestoreRefusesOtherState(t *testing.T) {
	params := network(4)
	o, err := New(params, Options{Rules: everyRule()})
	require.NoError(t, err)
	train(t, o, params, 1, 1)
	all := o.Tensors()
	short := slices.Clone(all)
	short[0].Data = short[0].Data[1:]
	for what, c := range map[string]struct {
		c Counters
		t []Tensor
	}{
		`"embedding.v" is missing`: {Counters{}, slices.Delete(slices.Clone(all), 1, 2)},
		`"x" belongs to no`:        {Counters{}, append(slices.Clone(all), Tensor{Name: "x"})},
		`is there twice`:           {Counters{}, append(slices.Clone(all), all[0])},
		`want 131 of 67`:           {Counters{}, short},
		`2 were skipped`:           {Counters{Step: 1, Skipped: 2}, all},
	} {
		require.ErrorContains(t, o.Restore(c.c, c.t), what)
		require.Equal(t, Counters{Step: 1}, o.Counters())
	}
}

// A gradient that is not finite, in any parameter, changes nothing at all but the
// counters; the next step then is what it would have been.
func TestNonFiniteGradientSkipsTheStep(t *testing.T) {
	bad := []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))}
	for k := range network(5) {
		params, clean := network(5), network(5)
		o, err := New(params, Options{Rules: everyRule(), Clip: 1})
		require.NoError(t, err)
		c, err := New(clean, Options{Rules: everyRule(), Clip: 1})
		require.NoError(t, err)
		train(t, o, params, 1, 1)
		train(t, c, clean, 1, 1)

		gradients(params, 2)
		g := params[k].G
		g[(len(g)-1)*k/6] = bad[k%3]
		r := step(t, o)
		require.True(t, r.Skipped)
		require.Equal(t, params[k].Name, r.NonFinite)
		require.False(t, finite(r.GradNorm))
		require.True(t, reflect.DeepEqual(weights(clean), weights(params)))
		require.True(t, reflect.DeepEqual(c.Tensors(), o.Tensors()))
		require.Equal(t, Counters{Step: 2, Skipped: 1}, o.Counters())

		gradients(params, 3)
		gradients(clean, 3)
		require.False(t, step(t, o).Skipped)
		step(t, c)
		require.True(t, reflect.DeepEqual(weights(clean), weights(params)))
	}
}

func TestNormAndClipping(t *testing.T) {
	params := network(6)
	gradients(params, 1)
	var all, clipped float64
	square := map[Class]float64{}
	for _, p := range params {
		n := matOf(p.G, p.Rows, p.Cols).norm()
		all += n * n
		square[p.Class] += n * n
		if p.Class != Scalar {
			clipped += n * n
		}
	}
	o, err := New(params, Options{Rules: everyRule(), Clip: 2})
	require.NoError(t, err)
	r := step(t, o)
	require.InEpsilon(t, math.Sqrt(all), r.GradNorm, 1e-6)
	for c, v := range square {
		require.InEpsilon(t, math.Sqrt(v), r.ClassNorm[c], 1e-6, c)
	}
	require.InEpsilon(t, 2/math.Sqrt(clipped), r.Clip, 1e-6)
	for _, x := range o.Tensors() {
		if x.Name == "embedding.m" {
			require.InEpsilon(t, 0.1*r.Clip*float64(params[0].G[5]), x.Data[5], 1e-5)
		}
		if x.Name == "norm.m" {
			require.InEpsilon(t, 0.1*float64(params[2].G[5]), x.Data[5], 1e-5, "NoClip")
		}
	}

	// Squares that float32 cannot hold are not mistaken for infinities or zeros.
	for _, v := range []float32{1e30, 1e-30, 0x1p-149} {
		for _, p := range params {
			for i := range p.G {
				p.G[i] = 0
			}
		}
		params[1].G[7], params[1].G[8] = 3*v, -4*v
		r := step(t, o)
		require.False(t, r.Skipped)
		require.InEpsilon(t, 5*float64(v), r.GradNorm, 1e-6)
	}
}

// What is reported is what the runtime allocated: all of it but the bookkeeping.
func TestMemoryIsWhatWasAllocated(t *testing.T) {
	params := []Param{
		{Name: "w", Class: Matrix, Rows: 1000, Cols: 700},
		{Name: "e", Class: Embedding, Rows: 1000, Cols: 300},
	}
	for i := range params {
		n := params[i].Rows * params[i].Cols
		params[i].W, params[i].G = make([]float32, n), make([]float32, n)
	}
	rules := everyRule()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	o, err := New(params, Options{Rules: rules})
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.NoError(t, err)
	m := o.Memory()
	real := int(after.HeapAlloc - before.HeapAlloc)
	require.InDelta(t, real, m.State+m.Scratch, 64<<10, "bookkeeping")
	ideal := 4 * (1000*700 + 2*1000*300)
	require.GreaterOrEqual(t, m.State, ideal)
	require.Less(t, m.State, ideal+16<<10, "rounding to whole pages")
	runtime.KeepAlive(o)

	o, err = New(network(7), Options{Rules: rules})
	require.NoError(t, err)
	require.LessOrEqual(t, testing.AllocsPerRun(3, func() { step(t, o) }), 2.0, "a step allocates its closure")
}

func TestRoutesFollowTheDeclaredClass(t *testing.T) {
	params := network(8)
	o, err := New(params, Options{Rules: everyRule()})
	require.NoError(t, err)
	want := []Kind{AdamW, Muon, AdamW, Muon, Muon, AdamW, Lion}
	state := 0
	for i, r := range o.Routes() {
		require.Equal(t, params[i].Name, r.Name)
		require.Equal(t, want[i], r.Kind, r.Name)
		require.Equal(t, everyRule()[r.Class].LR, r.LR)
		state += r.StateBytes
	}
	require.InDelta(t, o.Memory().State, state, 16<<10)
}

func TestBadOptions(t *testing.T) {
	type edit func(p *[]Param, o *Options)
	rule := func(c Class, f func(*Rule)) edit {
		return func(_ *[]Param, o *Options) { r := o.Rules[c]; f(&r); o.Rules[c] = r }
	}
	for want, f := range map[string]edit{
		"no rule for its class, head":  func(_ *[]Param, o *Options) { delete(o.Rules, Head) },
		"muon is for matrices":         rule(Embedding, func(r *Rule) { r.Kind = Muon }),
		"there is no kind 9":           rule(Head, func(r *Rule) { r.Kind = 9 }),
		"LR is -1":                     rule(Head, func(r *Rule) { r.LR = -1 }),
		"LR is NaN":                    rule(Head, func(r *Rule) { r.LR = math.NaN() }),
		"WeightDecay is 3000":          rule(Head, func(r *Rule) { r.WeightDecay = 3000 }),
		"Beta2 is 1":                   rule(Scalar, func(r *Rule) { r.Beta2 = 1 }),
		"NewtonSchulz is 11":           rule(Matrix, func(r *Rule) { r.NewtonSchulz = 11 }),
		"Scaling 5":                    rule(Matrix, func(r *Rule) { r.Scaling = 5 }),
		"MomentumWarmup is -1":         rule(Matrix, func(r *Rule) { r.MomentumWarmup = -1 }),
		"Eps is +Inf":                  rule(Scalar, func(r *Rule) { r.Eps = math.Inf(1) }),
		"Clip is -1":                   func(_ *[]Param, o *Options) { o.Clip = -1 },
		"used twice":                   func(p *[]Param, _ *Options) { (*p)[1].Name = "up" },
		"65 weights and 6305":          func(p *[]Param, _ *Options) { (*p)[1].W = (*p)[1].W[:65] },
		`shares its weights with "up"`: func(p *[]Param, _ *Options) { q := (*p)[3]; q.Name = "again"; *p = append(*p, q) },
		"has 96 rows of 97":            func(p *[]Param, _ *Options) { (*p)[1].Split = []int{96} },
		"a part of 0 rows":             func(p *[]Param, _ *Options) { (*p)[1].Split = []int{0, 97} },
		"needs Total":                  func(_ *[]Param, o *Options) { o.Schedule = Schedule{Shape: Linear} },
		"they do not fit":              func(_ *[]Param, o *Options) { o.Schedule = Schedule{Shape: Stable, Total: 9, Warmup: 5, Decay: 5} },
		"ends at a factor of 2":        func(_ *[]Param, o *Options) { o.Schedule = Schedule{Final: 2} },
		"of shape 7":                   func(_ *[]Param, o *Options) { o.Schedule = Schedule{Shape: 7} },
		"none may be negative":         func(_ *[]Param, o *Options) { o.Schedule = Schedule{Warmup: -1} },
	} {
		p, o := network(9), Options{Rules: everyRule()}
		f(&p, &o)
		_, err := New(p, o)
		require.ErrorContains(t, err, want)
		require.Regexp(t, "^optim: ", err.Error())
	}
}

func Example() {
	p := Param{Name: "gain", Class: Scalar, Rows: 1, Cols: 2, W: []float32{1, 1}, G: []float32{0.5, -3}}
	o, err := New([]Param{p}, Options{
		Rules:    map[Class]Rule{Scalar: {Kind: Lion, LR: 0.25}},
		Schedule: Schedule{Shape: Linear, Warmup: 2, Total: 10},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	r, err := o.Step()
	fmt.Println(p.W, r.Factor, err)
	// Output: [0.875 1.125] 0.5 <nil>
}
