package kernels

import "fmt"

func checkRoPE(x []float32, heads, headDim int, cos, sin []float32) {
	if heads < 0 || headDim < 2*len(cos) || len(sin) != len(cos) {
		panic(fmt.Sprintf("kernels: RoPE of %d heads of %d elements by %d cosines and %d sines", heads, headDim, len(cos), len(sin)))
	}
	checkLen("x", len(x), heads*headDim)
}

// goRoPE turns each pair (a, b) into fma(a, c, -(b·s)) and fma(a, s, b·c).
func goRoPE(x []float32, heads, headDim int, cos, sin []float32, interleaved bool) {
	rotate(x, heads, headDim, cos, sin, interleaved, 1)
}

// goRoPEBackward turns each pair (a, b) into fma(a, c, b·s) and fma(a, -s, b·c).
func goRoPEBackward(x []float32, heads, headDim int, cos, sin []float32, interleaved bool) {
	rotate(x, heads, headDim, cos, sin, interleaved, -1)
}

// rotate turns pairs by the angles, times sign.
func rotate(x []float32, heads, headDim int, cos, sin []float32, interleaved bool, sign float32) {
	checkRoPE(x, heads, headDim, cos, sin)
	n := len(cos)
	for h := range heads {
		v := x[h*headDim : (h+1)*headDim]
		for i, c := range cos {
			j, k := i, i+n
			if interleaved {
				j, k = 2*i, 2*i+1
			}
			a, b, s := v[j], v[k], sign*sin[i]
			v[j] = FMA32(a, c, -float32(b*s))
			v[k] = FMA32(a, s, float32(b*c))
		}
	}
}

// RoPETable fills cos and sin, [positions][rotary/2] each, with the angles of
// positions 0, 1, ...: angle(p, i) = p·scale·base^(-2i/rotary)/factors[i].
//
// scale is 1, or 1/f for positions stretched linearly by f. factors are the
// per-frequency divisors of Llama 3 (the tensor rope_freqs), or nil for ones.
// Angles and their functions are computed in float64 by operations that round
// alike everywhere and rounded to float32 once, so a table is the same on every
// platform. The error of an angle is at most 1e-15 of itself.
func RoPETable(cos, sin []float32, positions, rotary int, base, scale float64, factors []float64) {
	n := rotary / 2
	if positions < 0 || rotary < 0 || rotary%2 != 0 || !(base > 0) || factors != nil && len(factors) != n {
		panic(fmt.Sprintf("kernels: RoPETable of %d positions, %d elements, base %g, %d factors", positions, rotary, base, len(factors)))
	}
	checkLen("cos", len(cos), positions*n)
	checkLen("sin", len(sin), positions*n)
	lb := log64(base)
	for i := range n {
		f := exp64(float64(-lb*float64(2*i))/float64(rotary)) * scale
		if factors != nil {
			f /= factors[i]
		}
		for p := range positions {
			s, c := sincos64(float64(p) * f)
			cos[p*n+i], sin[p*n+i] = float32(c), float32(s)
		}
	}
}
