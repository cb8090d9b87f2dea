package kernels

import "math"

// FMA32 is a·b+c rounded once, on every platform.
//
// The product of two float32 is exact in float64. Rounding the float64 sum again
// to float32 is wrong only if the sum lies on a midpoint between two float32 (or
// in the subnormal range, where midpoints lie elsewhere); those cases go through
// round-to-odd.
func FMA32(a, b, c float32) float32 {
	p := float64(a) * float64(b)
	s := p + float64(c)
	if u := math.Float64bits(s); u<<35 != 1<<63 && u<<1 >= 897<<53 {
		return float32(s)
	}
	return fmaOdd(p, float64(c), s)
}

// fmaOdd rounds p+c to float32, given s, their rounded float64 sum: if s is
// inexact and even it moves one step towards the exact value, after which
// rounding to float32 cannot see a false midpoint.
func fmaOdd(p, c, s float64) float32 {
	t := s - p
	e := (p - (s - t)) + (c - t) // exact error of s (Knuth's two-sum)
	u := math.Float64bits(s)
	if u&1 == 0 && e == e && e != 0 {
		if (e > 0) == (s > 0) {
			u++
		} else {
			u--
		}
	}
	return float32(math.Float64frombits(u))
}

// F16ToF32 widens an IEEE half. It is exact; a NaN becomes quiet.
func F16ToF32(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	e, m := uint32(h>>10)&31, uint32(h&0x3ff)
	switch {
	case e == 31 && m != 0:
		return math.Float32frombits(sign | 0x7fc00000 | m<<13)
	case e == 31:
		return math.Float32frombits(sign | 0x7f800000)
	case e == 0: // m·2^-24, exact
		return math.Float32frombits(sign | math.Float32bits(float32(m)*0x1p-24))
	}
	return math.Float32frombits(sign | (e+112)<<23 | m<<13)
}

// F32ToF16 rounds to IEEE half, halves to even. Values from 65520 on become
// infinite; a NaN stays a quiet NaN with the upper bits of its payload.
func F32ToF16(f float32) uint16 {
	u := math.Float32bits(f)
	sign := uint16(u >> 16 & 0x8000)
	u &= 0x7fffffff
	switch {
	case u > 0x7f800000:
		return sign | 0x7e00 | uint16(u>>13&0x3ff)
	case u >= 0x477ff000: // 65520
		return sign | 0x7c00
	case u < 0x38800000: // below 2^-14: adding 0.5 leaves multiples of 2^-24 in the low bits
		return sign | uint16(math.Float32bits(math.Float32frombits(u)+0.5)-0x3f000000)
	}
	u += 0xfff + u>>13&1
	return sign | uint16(u>>13-112<<10)
}

// BF16ToF32 widens a bfloat16. It is exact.
func BF16ToF32(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// F32ToBF16 rounds to bfloat16, halves to even; a NaN stays a quiet NaN.
func F32ToBF16(f float32) uint16 {
	u := math.Float32bits(f)
	if u&0x7fffffff > 0x7f800000 {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

// Adding and subtracting magic rounds |x| < 2^22 to an integer, halves to even,
// and leaves that integer in the low bits of the sum.
const magic float32 = 0x1.8p23

const (
	log2e float32 = 0x1.715476p+0
	ln2Hi float32 = 0x1.62e43p-1
	ln2Lo float32 = -0x1.05c61p-29
	// (exp(r)-1-r)/r² on |r| ≤ ln2/2, fitted for least relative error of exp (2^-28).
	expC2 float32 = 0x1.fffffcp-2
	expC3 float32 = 0x1.55549p-3
	expC4 float32 = 0x1.5558f4p-5
	expC5 float32 = 0x1.123a6cp-7
	expC6 float32 = 0x1.6a2352p-10
	// Outside [expMin, expMax] exp is 0 or infinite.
	expMin float32 = -104
	expMax float32 = 89

	// (tanh(x)-x)/x³ in powers of x² on |x| ≤ tanhCut.
	tanhCut float32 = 0.625
	tanhC3  float32 = -0x1.555532p-2
	tanhC5  float32 = 0x1.110724p-3
	tanhC7  float32 = -0x1.b83becp-5
	tanhC9  float32 = 0x1.5223acp-6
	tanhC11 float32 = -0x1.75d426p-8
)

// exp32 is exp(x) within 1 ulp, subnormal results included: 2^k·P(r), with k the integer
// nearest x·log2(e), r = x - k·ln2 in two FMAs and P of degree 6 by Horner's
// rule in FMA. exp32(-Inf) is 0, exp32 of more than 88.73 is +Inf, exp32(0) is
// exactly 1, and NaN gives NaN. 2^k is applied in two exact powers of two so that
// a subnormal result rounds once.
func exp32(x float32) float32 {
	if x < expMin {
		x = expMin
	}
	if x > expMax {
		x = expMax
	}
	t := FMA32(x, log2e, magic)
	n := t - magic
	r := FMA32(n, -ln2Hi, x)
	r = FMA32(n, -ln2Lo, r)
	p := FMA32(expC6, r, expC5)
	p = FMA32(p, r, expC4)
	p = FMA32(p, r, expC3)
	p = FMA32(p, r, expC2)
	p = FMA32(p, r, 1)
	p = FMA32(p, r, 1)
	k := int32(math.Float32bits(t) - math.Float32bits(magic))
	h := k >> 1
	return float32(p*pow2(h)) * pow2(k-h)
}

// pow2 is 2^k for -127 < k < 128.
func pow2(k int32) float32 { return math.Float32frombits(uint32(k+127) << 23) }

// sigmoid32 is 1/(1+exp(-x)).
func sigmoid32(x float32) float32 { return 1 / (1 + exp32(-x)) }

// tanh32 is an odd polynomial for |x| ≤ 0.625 and 1-2/(exp(2|x|)+1) with the sign
// of x beyond: within 2 ulp.
func tanh32(x float32) float32 {
	a := math.Float32frombits(math.Float32bits(x) & 0x7fffffff)
	if a > tanhCut {
		y := 1 - 2/(exp32(a+a)+1)
		return math.Float32frombits(math.Float32bits(y) | math.Float32bits(x)&(1<<31))
	}
	z := float32(x * x)
	p := FMA32(tanhC11, z, tanhC9)
	p = FMA32(p, z, tanhC7)
	p = FMA32(p, z, tanhC5)
	p = FMA32(p, z, tanhC3)
	return FMA32(p, float32(z*x), x)
}

// log64 is the natural logarithm of a positive finite x ≥ 2^-1022 within 4e-16
// relative or 1e-16 absolute, in operations that round alike everywhere:
// x = 2^k·m with m in [√½, √2), log m = 2·atanh((m-1)/(m+1)) as a series.
func log64(x float64) float64 {
	u := math.Float64bits(x)
	// The exponent moves by one where the mantissa passes √2 (0x3ff6a09e...).
	k := int64(u-0x3fe6a09e667f3bcd) >> 52
	m := math.Float64frombits(u - uint64(k)<<52)
	s := (m - 1) / (m + 1)
	z := float64(s * s)
	p := 1.0 / 21
	for i := 19.0; i >= 3; i -= 2 {
		p = float64(p*z) + 1/i
	}
	l := float64(2*s) + float64(float64(float64(2*s)*z)*p)
	return float64(float64(k)*math.Ln2) + l
}

// exp64 is exp(x) for |x| < 700 within 4e-16 relative, rounded alike everywhere.
func exp64(x float64) float64 {
	const hi, lo = 0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56
	k := math.RoundToEven(x / hi)
	r := math.FMA(-k, lo, math.FMA(-k, hi, x))
	p := 1.0
	for i := 14.0; i >= 1; i-- {
		p = float64(float64(p*r)/i) + 1
	}
	return math.Ldexp(p, int(k))
}

// sincos64 is the sine and cosine of |a| < 2^30 within 2e-16 absolute plus half an
// ulp, rounded alike everywhere: a quarter turn is taken off in two FMA steps,
// then Taylor's series of degree 17 and 16 on |r| ≤ π/4.
func sincos64(a float64) (sin, cos float64) {
	const hi, lo = 0x1.921fb54442d18p+0, 0x1.1a62633145c07p-54
	k := math.RoundToEven(a / hi)
	r := math.FMA(-k, lo, math.FMA(-k, hi, a))
	z := float64(r * r)
	s, c := 1.0, 1.0
	for i := 16.0; i >= 2; i -= 2 {
		s = 1 - float64(float64(s*z)/(i*(i+1)))
		c = 1 - float64(float64(c*z)/(i*(i-1)))
	}
	s = float64(s * r)
	switch int64(k) & 3 {
	case 0:
		return s, c
	case 1:
		return c, -s
	case 2:
		return -s, -c
	}
	return -c, s
}
