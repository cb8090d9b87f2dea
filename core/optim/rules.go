package optim

import (
	"fmt"
	"math"
)

// Kind is the kind of a rule.
type Kind uint8

// The kinds of rules. Their state is one float32 per weight for Muon and Lion and
// two for AdamW.
const (
	// AdamW is Adam with bias correction and decoupled weight decay (Loshchilov and
	// Hutter 2019).
	AdamW Kind = iota
	// Lion is the sign of a blend of momentum and gradient (Chen and others 2023).
	Lion
	// Muon is momentum, orthogonalised (Jordan 2024). It is for matrices only.
	Muon
)

// String is the kind's name in reports.
func (k Kind) String() string {
	if k > Muon {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return [...]string{"adamw", "lion", "muon"}[k]
}

// Scaling is how Muon's update depends on the shape of the matrix.
type Scaling uint8

const (
	// MatchAdam multiplies by 0.2·√max(rows, cols): the update of a full-rank matrix
	// has a root mean square of about 0.2, as AdamW's has, and takes its learning
	// rate (Liu and others 2025, Moonlight).
	MatchAdam Scaling = iota
	// Spectral multiplies by √max(1, rows/cols) (Jordan 2024): learning rates are
	// about 0.02.
	Spectral
)

// factor is the scaling of a matrix.
func (s Scaling) factor(rows, cols int) float64 {
	if s == Spectral {
		return math.Sqrt(max(1, float64(rows)/float64(cols)))
	}
	return 0.2 * math.Sqrt(float64(max(rows, cols)))
}

// Rule is how the parameters of a class are updated. A number that is 0 stands
// for its default, LR and WeightDecay excepted.
type Rule struct {
	Kind Kind
	// LR is the learning rate before the schedule's factor.
	LR float64
	// WeightDecay times the learning rate is the part of a weight that a step takes
	// away. With Cautious, a weight decays only where its update also moves it
	// towards zero, or does not move it.
	WeightDecay float64
	Cautious    bool
	// NoClip keeps these gradients out of clipping and of the norm it looks at.
	NoClip bool

	// Beta1 and Beta2 are AdamW's (defaults 0.9 and 0.95) and Lion's (0.9 and 0.99).
	Beta1, Beta2 float64
	// Eps is AdamW's. The default is 1e-10.
	Eps float64

	// Momentum is Muon's. The default is 0.95. It begins at MomentumStart (default:
	// Momentum) and moves there in a line over MomentumWarmup steps.
	Momentum, MomentumStart float64
	MomentumWarmup          int
	// Heavy takes the momentum itself for Muon's direction instead of Nesterov's
	// blend of gradient and momentum.
	Heavy bool
	// NewtonSchulz is the number of Newton–Schulz steps, 1 to 10. The default is 5;
	// 3 cost 40 % less and leave small singular values below 1.
	NewtonSchulz int
	// Scaling is how Muon scales by shape.
	Scaling Scaling
}

func (r Rule) withDefaults() Rule {
	set := func(v *float64, d float64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&r.Beta1, 0.9)
	if r.Kind == Lion {
		set(&r.Beta2, 0.99)
	}
	set(&r.Beta2, 0.95)
	set(&r.Eps, 1e-10)
	set(&r.Momentum, 0.95)
	set(&r.MomentumStart, r.Momentum)
	if r.NewtonSchulz == 0 {
		r.NewtonSchulz = 5
	}
	return r
}

func (r Rule) check(c Class) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("optim: rule of class %v: %s", c, fmt.Sprintf(format, args...))
	}
	switch {
	case c >= classes:
		return fail("there is no such class")
	case r.Kind > Muon:
		return fail("there is no %v", r.Kind)
	case r.Kind == Muon && c != Matrix:
		return fail("muon is for matrices; use adamw or lion")
	case r.Scaling > Spectral:
		return fail("there is no Scaling %d", r.Scaling)
	case !(r.LR >= 0) || math.IsInf(r.LR, 0):
		return fail("LR is %v; it must be finite and not negative", r.LR)
	case !(r.WeightDecay >= 0 && r.LR*r.WeightDecay <= 1):
		return fail("WeightDecay is %v; it must be 0 to 1/LR", r.WeightDecay)
	case r.NewtonSchulz < 1 || r.NewtonSchulz > 10:
		return fail("NewtonSchulz is %d; it must be 1 to 10", r.NewtonSchulz)
	case r.MomentumWarmup < 0:
		return fail("MomentumWarmup is %d; it must not be negative", r.MomentumWarmup)
	case !(r.Eps > 0) || math.IsInf(r.Eps, 0):
		return fail("Eps is %v; it must be above 0", r.Eps)
	}
	for _, v := range []struct {
		name string
		v    float64
	}{{"Beta1", r.Beta1}, {"Beta2", r.Beta2}, {"Momentum", r.Momentum}, {"MomentumStart", r.MomentumStart}} {
		if !(v.v >= 0 && v.v < 1) {
			return fail("%s is %v; it must be 0 or more and below 1", v.name, v.v)
		}
	}
	return nil
}

// rates is the numbers of one update: w becomes keep·w - lr·u, for a gradient
// multiplied by grad.
type rates struct{ lr, keep, grad float32 }

// rates is the numbers of a step with that factor of the schedule.
func (r *Rule) rates(factor float64) rates {
	lr := r.LR * factor
	return rates{lr: float32(lr), keep: float32(1 - lr*r.WeightDecay), grad: 1}
}

// corrections is what AdamW's moments are multiplied by at the t-th applied step.
func (r *Rule) corrections(t int) (n1, n2 float32) {
	return float32(1 / (1 - math.Pow(r.Beta1, float64(t)))), float32(1 / (1 - math.Pow(r.Beta2, float64(t))))
}

// momentum is Muon's at the t-th applied step.
func (r *Rule) momentum(t int) float32 {
	beta := r.Momentum
	if n := r.MomentumWarmup; t <= n {
		beta = r.MomentumStart + (beta-r.MomentumStart)*float64(t)/float64(n)
	}
	return float32(beta)
}

// apply moves *w against u. Conversions keep products from being fused.
func (s *slot) apply(w *float32, u float32, r rates) {
	v := *w
	if !s.rule.Cautious || u*v >= 0 {
		v = float32(r.keep * v)
	}
	*w = v - float32(r.lr*u)
}

// lion updates elements lo to hi: u = sign(β1·m + (1-β1)·g), m = β2·m + (1-β2)·g.
// The sign of 0 is 0.
func (s *slot) lion(lo, hi int, r rates) {
	b1, b2 := float32(s.rule.Beta1), float32(s.rule.Beta2)
	c1, c2 := float32(1-s.rule.Beta1), float32(1-s.rule.Beta2)
	for i := lo; i < hi; i++ {
		g, m := float32(r.grad*s.G[i]), s.m[i]
		c := float32(b1*m) + float32(c1*g)
		var u float32
		if c > 0 {
			u = 1
		} else if c < 0 {
			u = -1
		}
		s.m[i] = float32(b2*m) + float32(c2*g)
		s.apply(&s.W[i], u, r)
	}
}

// adamW updates elements lo to hi at the t-th applied step:
// u = (m/(1-β1^t)) / (√(v/(1-β2^t)) + ε).
func (s *slot) adamW(lo, hi int, r rates, t int) {
	b1, b2 := float32(s.rule.Beta1), float32(s.rule.Beta2)
	c1, c2 := float32(1-s.rule.Beta1), float32(1-s.rule.Beta2)
	n1, n2 := s.rule.corrections(t)
	eps := float32(s.rule.Eps)
	for i := lo; i < hi; i++ {
		g := float32(r.grad * s.G[i])
		m := float32(b1*s.m[i]) + float32(c1*g)
		v := float32(b2*s.v[i]) + float32(c2*float32(g*g))
		s.m[i], s.v[i] = m, v
		root := float32(math.Sqrt(float64(float32(v * n2))))
		s.apply(&s.W[i], float32(m*n1)/(root+eps), r)
	}
}
