package kernels

import (
	"fmt"
	"math"
)

func negInf() float32 { return float32(math.Inf(-1)) }

// goSoftmax sums exp(x-max) canonically and multiplies by the reciprocal of the
// sum. A NaN or +Inf in x, or nothing but -Inf, makes every result NaN.
func goSoftmax(dst, x []float32) {
	checkSame("Softmax", len(dst), len(x))
	m := maxOf(x)
	var s lanes
	for i, v := range x {
		e := exp32(v - m)
		dst[i] = e
		s[i&15] += e
	}
	inv := 1 / s.sum()
	for i, e := range dst {
		dst[i] = e * inv
	}
}

// goLogSumExp is max + log Σ exp(x-max), the last addition in float64. It is -Inf
// for no values or only -Inf, +Inf if the largest is +Inf, and NaN if any x is
// NaN and the largest is finite.
func goLogSumExp(x []float32) float32 {
	m := maxOf(x)
	if math.IsInf(float64(m), 0) {
		return m
	}
	var s lanes
	for i, v := range x {
		s[i&15] += exp32(v - m)
	}
	return logSumExp(m, s.sum())
}

// logSumExp is m + log(sum) for a sum ≥ 1 or NaN.
func logSumExp(m, sum float32) float32 {
	if sum != sum {
		return sum
	}
	return float32(float64(m) + log64(float64(sum)))
}

// goArgMax gives 0 if nothing in x exceeds -Inf, and -1 if x is empty.
func goArgMax(x []float32) int {
	if len(x) == 0 {
		return -1
	}
	best, m := 0, negInf()
	for i, v := range x {
		if v > m {
			best, m = i, v
		}
	}
	return best
}

// orderKey grows with x; -0 and +0 are equal and every NaN is 0, the lowest.
func orderKey(x float32) uint32 {
	if x != x {
		return 0
	}
	u := math.Float32bits(x + 0)
	if u>>31 != 0 {
		return ^u
	}
	return u | 1<<31
}

func checkTopK(dst []int32, x []float32) {
	if len(dst) > len(x) {
		panic(fmt.Sprintf("kernels: TopK of %d of %d values", len(dst), len(x)))
	}
}

// goTopK keeps in dst a heap of indices whose root comes last in the wanted order,
// and sorts it in place at the end.
func goTopK(dst []int32, x []float32) {
	checkTopK(dst, x)
	k := len(dst)
	if k == 0 {
		return
	}
	after := func(a, b int32) bool { // a comes after b
		p, q := orderKey(x[a]), orderKey(x[b])
		return p < q || p == q && a > b
	}
	down := func(i, n int) {
		v := dst[i]
		for {
			c := 2*i + 1
			if c >= n {
				break
			}
			if c+1 < n && after(dst[c+1], dst[c]) {
				c++
			}
			if !after(dst[c], v) {
				break
			}
			dst[i] = dst[c]
			i = c
		}
		dst[i] = v
	}
	for i := range dst {
		dst[i] = int32(i)
	}
	for i := k/2 - 1; i >= 0; i-- {
		down(i, k)
	}
	for i := k; i < len(x); i++ {
		if after(dst[0], int32(i)) {
			dst[0] = int32(i)
			down(0, k)
		}
	}
	for n := k - 1; n > 0; n-- {
		dst[0], dst[n] = dst[n], dst[0]
		down(0, n)
	}
}
