package optim

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// Five steps of AdamW and Lion against float64.
func TestElementwiseRulesAgainstFloat64(t *testing.T) {
	for _, kind := range []Kind{AdamW, Lion} {
		for _, cautious := range []bool{false, true} {
			r := Rule{Kind: kind, LR: 0.01, WeightDecay: 3, Cautious: cautious, Beta1: 0.8, Beta2: 0.97, Eps: 1e-3}
			rnd := rand.New(rand.NewPCG(2, 1))
			w := normalMat(rnd, 3, 7)
			p := Param{Name: "w", Class: Scalar, Rows: 3, Cols: 7, W: w.f32(), G: make([]float32, 21)}
			o, err := New([]Param{p}, Options{Rules: map[Class]Rule{Scalar: r}})
			require.NoError(t, err)
			m, v := make([]float64, 21), make([]float64, 21)
			for s := 1.0; s <= 5; s++ {
				g := normalMat(rnd, 3, 7)
				copy(p.G, g.f32())
				step(t, o)
				for i, g := range g.v {
					var u float64
					if kind == Lion {
						if c := 0.8*m[i] + 0.2*g; c != 0 {
							u = math.Copysign(1, c)
						}
						m[i] = 0.97*m[i] + 0.03*g
					} else {
						m[i] = 0.8*m[i] + 0.2*g
						v[i] = 0.97*v[i] + 0.03*g*g
						u = m[i] / (1 - math.Pow(0.8, s)) / (math.Sqrt(v[i]/(1-math.Pow(0.97, s))) + 1e-3)
					}
					keep := 1.0
					if !cautious || u*w.v[i] >= 0 {
						keep = 1 - 0.01*3
					}
					w.v[i] = w.v[i]*keep - 0.01*u
				}
			}
			for i := range w.v {
				require.InDelta(t, w.v[i], p.W[i], 2e-6, "%v %d", kind, i)
			}
		}
	}
}

// Lion moves by the learning rate or not at all; rows that were never touched stay.
func TestLionMovesByTheLearningRate(t *testing.T) {
	p := Param{Name: "w", Class: Embedding, Rows: 3, Cols: 1, W: []float32{0, 0, 1}, G: []float32{1e-20, -5, 0}}
	o, err := New([]Param{p}, Options{Rules: map[Class]Rule{Embedding: {Kind: Lion, LR: 0.125}}})
	require.NoError(t, err)
	step(t, o)
	require.Equal(t, []float32{-0.125, 0.125, 1}, p.W)
}

// The first step takes the rate of the warm-up, for every kind of rule.
func TestFirstStepTakesTheWarmUpRate(t *testing.T) {
	for _, kind := range []Kind{AdamW, Lion, Muon} {
		for _, warm := range []int{1, 8, 64} {
			p := Param{Name: "w", Class: Matrix, Rows: 1, Cols: 1, W: []float32{0}, G: []float32{3}}
			o, err := New([]Param{p}, Options{
				Rules:    map[Class]Rule{Matrix: {Kind: kind, LR: 0.5, Scaling: Spectral}},
				Schedule: Schedule{Shape: Linear, Warmup: warm, Total: 100},
			})
			require.NoError(t, err)
			r := step(t, o)
			require.Equal(t, 1/float64(warm), r.Factor)
			size := 1.0
			if kind == Muon { // one singular value: the quintic of 1, five times
				for range 5 {
					size = float64(nsA)*size + float64(nsB)*math.Pow(size, 3) + float64(nsC)*math.Pow(size, 5)
				}
			}
			require.InEpsilon(t, -0.5*size/float64(warm), p.W[0], 1e-4, "%v", kind)
		}
	}
}

func TestSchedule(t *testing.T) {
	for name, c := range map[string]struct {
		s    Schedule
		want map[int]float64
	}{
		"zero value": {Schedule{}, map[int]float64{1: 1, 1 << 40: 1}},
		"constant":   {Schedule{Warmup: 4}, map[int]float64{0: 0, 1: 0.25, 4: 1, 5: 1, 1000: 1}},
		"stable": {Schedule{Shape: Stable, Warmup: 2, Total: 20, Decay: 5, Final: 0.5},
			map[int]float64{1: 0.5, 2: 1, 3: 1, 15: 1, 16: 1, 17: 0.9, 20: 0.6, 21: 0.5, 99: 0.5}},
		"stable to the end": {Schedule{Shape: Stable, Total: 20}, map[int]float64{1: 1, 20: 1, 21: 0}},
		"linear":            {Schedule{Shape: Linear, Warmup: 2, Total: 12}, map[int]float64{1: 0.5, 2: 1, 3: 1, 4: 0.9, 12: 0.1, 13: 0}},
		"only warm-up":      {Schedule{Shape: Linear, Warmup: 4, Total: 4}, map[int]float64{4: 1, 5: 0}},
		"cosine":            {Schedule{Shape: Cosine, Warmup: 1, Total: 11, Final: 0.2}, map[int]float64{1: 1, 2: 1, 7: 0.6, 12: 0.2, 13: 0.2}},
	} {
		require.NoError(t, c.s.Check(), name)
		for step, want := range c.want {
			require.InDelta(t, want, c.s.Factor(step), 1e-12, "%s step %d", name, step)
		}
	}
}

// Every rule solves a linear regression: Y = W*·X with an ill-conditioned X.
func TestConvergence(t *testing.T) {
	for name, c := range map[string]struct {
		r    Rule
		loss float64
	}{
		"muon":          {Rule{Kind: Muon, LR: 0.1}, 1e-3},
		"muon spectral": {Rule{Kind: Muon, LR: 0.2, Scaling: Spectral, NewtonSchulz: 3}, 1e-3},
		"muon decay":    {Rule{Kind: Muon, LR: 0.1, WeightDecay: 1e-3, Cautious: true}, 1e-2},
		"adamw":         {Rule{Kind: AdamW, LR: 0.05}, 1e-3},
		"lion":          {Rule{Kind: Lion, LR: 0.02}, 1e-3},
	} {
		const rows, cols, n = 24, 16, 64
		rnd := rand.New(rand.NewPCG(3, 1))
		x, target := normalMat(rnd, cols, n), normalMat(rnd, rows, cols)
		for i := range cols {
			for j := range n {
				x.v[i*n+j] *= math.Pow(4, -float64(i)/cols)
			}
		}
		p := Param{Name: "w", Class: Matrix, Rows: rows, Cols: cols, W: make([]float32, rows*cols), G: make([]float32, rows*cols)}
		o, err := New([]Param{p}, Options{Rules: map[Class]Rule{Matrix: c.r}, Schedule: Schedule{Shape: Linear, Total: 400}})
		require.NoError(t, err)
		loss := func() (float64, mat) {
			d := matOf(p.W, rows, cols).lin(1, target, -1).mul(x)
			return d.norm() * d.norm() / (rows * n), d.mul(x.t()).lin(1.0/n, newMat(rows, cols), 0)
		}
		start, _ := loss()
		for range 400 {
			_, g := loss()
			copy(p.G, g.f32())
			step(t, o)
		}
		end, _ := loss()
		t.Logf("%s: %.3g to %.3g", name, start, end)
		require.Less(t, end/start, c.loss, name)
	}
}
