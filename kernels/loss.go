package kernels

import "fmt"

// Loss says what CrossEntropy differentiates. With y = Cap·tanh(z/Cap), or y = z
// where Cap is 0, over V logits, p = softmax(y), lse = log Σ exp(y) and
// H = -Σ p·log p, the objective of a row with target t is
//
//	(1-Smoothing)·(lse - y[t]) + Smoothing·(lse - mean y) + Z·lse² - Entropy·H
//
// and its gradient ∂/∂y[j] = p[j]·(1 + 2·Z·lse + Entropy·(y[j]-Σp·y)) - Smoothing/V
// - (1-Smoothing)·[j = t], times ∂y/∂z = 1-(y/Cap)².
//
// A NaN, or without a cap +Inf, among the logits makes every result NaN. -Inf without
// a cap makes H NaN, and with it the gradient if Entropy is not 0.
type Loss struct {
	// Scale multiplies the gradient: usually 1 over the number of targets of a step.
	Scale float32
	// Cap is the softcap of the logits, 0 for none.
	Cap                   float32
	Z, Entropy, Smoothing float32
}

// boundedCap is the largest Cap that serves as the maximum in exp(y-max): the
// smallest term is then exp(-64).
const boundedCap = 32

// lossTerms are the coefficients of a row's gradient: with e = exp(y-m),
//
//	dst = fma(e·p, k, b)·(1-(y/cap)²)      k = fma(entropy, y-mean, a)
//
// and k = a where entropy is 0.
type lossTerms struct{ m, p, a, b, mean, entropy, invCap float32 }

func (t *lossTerms) gradient(y, target float32) float32 {
	k := t.a
	if t.entropy != 0 {
		k = FMA32(t.entropy, y-t.mean, t.a)
	}
	g := FMA32(float32(exp32(y-t.m)*t.p), k, t.b) - target
	if t.invCap != 0 {
		c := float32(y * t.invCap)
		g *= FMA32(-c, c, 1)
	}
	return g
}

func checkCrossEntropy(dst, z []float32, target int32) {
	if dst != nil {
		checkSame("CrossEntropy", len(dst), len(z))
	}
	if int(target) >= len(z) {
		panic(fmt.Sprintf("kernels: CrossEntropy with target %d of %d logits", target, len(z)))
	}
}

// goCrossEntropy takes Cap for the maximum m where 0 < Cap ≤ 32, else maxOf(y), and sums
// exp(y-m), exp(y-m)·y and y in the canonical order, the second by FMA.
func goCrossEntropy(dst, z []float32, target int32, o *Loss) (nll, lse, entropy float32) {
	checkCrossEntropy(dst, z, target)
	if target < 0 {
		clear(dst)
		return 0, 0, 0
	}
	y := dst // holds the capped logits until the gradient takes their place
	if y == nil {
		y = make([]float32, len(z))
	}
	copy(y, z)
	t := lossTerms{entropy: o.Entropy}
	if o.Cap != 0 {
		goSoftcap(y, o.Cap, y)
		t.invCap = 1 / o.Cap
	}
	t.m = o.Cap
	if !(o.Cap > 0 && o.Cap <= boundedCap) {
		t.m = maxOf(y)
	}
	var sum, weighted lanes
	for i, v := range y {
		e := exp32(v - t.m)
		sum[i&15] += e
		weighted[i&15] = FMA32(e, v, weighted[i&15])
	}
	sum.pad(len(y))
	weighted.pad(len(y))
	total := sum.sum()
	inv := 1 / total
	lse = logSumExp(t.m, total)
	t.mean = float32(weighted.sum() * inv)
	right := y[target]
	nll, entropy = lse-right, lse-t.mean
	if dst == nil {
		return nll, lse, entropy
	}
	t.p = inv * o.Scale
	t.a = FMA32(2*o.Z, lse, 1)
	t.b = -float32(o.Smoothing/float32(len(y))) * o.Scale
	for i, v := range y {
		dst[i] = t.gradient(v, 0)
	}
	dst[target] = t.gradient(right, float32((1-o.Smoothing)*o.Scale))
	return nll, lse, entropy
}
