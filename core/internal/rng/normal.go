package rng

import "math"

// Normal returns a standard normal number and advances by 2.
//
// It is the inverse of the normal distribution function at (k+½)/2^52 for a
// uniform 52-bit k, by Wichura's rational approximations (Algorithm AS 241,
// PPND16, relative error about 1e-16). Results lie within ±8.3.
func (s *Source) Normal() float64 { return quantile(s.Uint64() >> 12) }

// FillNormal writes mean 0 normal numbers of standard deviation std to dst,
// each float32(Normal()·std), and advances by 2·len(dst).
func (s *Source) FillNormal(dst []float32, std float64) {
	i := 0
	if s.pos&3 == 0 {
		for ; i+2 <= len(dst); i += 2 {
			b := Block(s.seed, s.stream, s.pos>>2)
			dst[i] = float32(quantile((uint64(b[0])|uint64(b[1])<<32)>>12) * std)
			dst[i+1] = float32(quantile((uint64(b[2])|uint64(b[3])<<32)>>12) * std)
			s.pos += 4
		}
	}
	for ; i < len(dst); i++ {
		dst[i] = float32(s.Normal() * std)
	}
}

// quantile is Φ⁻¹((k+½)/2^52) for k < 2^52.
func quantile(k uint64) float64 {
	// q = (k+½)/2^52 - ½, exact: 2k+1-2^52 has at most 53 bits.
	q := float64(int64(2*k+1)-1<<52) * (1.0 / (1 << 53))
	if math.Abs(q) <= 0.425 {
		r := 0.180625 - float64(q*q)
		return q * ratio(&central, r)
	}
	p := 0.5 - math.Abs(q) // the tail probability, exact
	r := math.Sqrt(-logTail(p))
	var x float64
	if r <= 5 {
		x = ratio(&middle, r-1.6)
	} else {
		x = ratio(&far, r-5)
	}
	if q < 0 {
		return -x
	}
	return x
}

// A rational is two polynomials, coefficients of ascending powers.
type rational struct{ num, den [8]float64 }

// ratio evaluates by Horner's rule. The conversions keep the compiler from
// fusing a product with the sum that follows it.
func ratio(c *rational, r float64) float64 {
	n, d := c.num[7], c.den[7]
	for i := 6; i >= 0; i-- {
		n = float64(n*r) + c.num[i]
		d = float64(d*r) + c.den[i]
	}
	return n / d
}

// The coefficients of AS 241 (Applied Statistics 37, 1988), for |q| ≤ 0.425,
// for a tail with √(-log p) ≤ 5, and beyond.
var (
	central = rational{
		[8]float64{3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
			4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3},
		[8]float64{1, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
			2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3},
	}
	middle = rational{
		[8]float64{1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
			1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4},
		[8]float64{1, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
			1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9},
	}
	far = rational{
		[8]float64{6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
			2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7},
		[8]float64{1, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
			7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15},
	}
)

// logTail is the natural logarithm of a normal p in (0, 1), within 3 ulp and
// the same on every platform, which math.Log is not: p = m·2^e with m in
// [√½, √2), log m = 2·atanh(f) for f = (m-1)/(m+1), |f| < 0.172, by its series.
func logTail(p float64) float64 {
	m, e := math.Frexp(p)
	if m < math.Sqrt2/2 {
		m *= 2
		e--
	}
	f := (m - 1) / (m + 1)
	w := float64(f * f)
	s := 1.0 / 21
	for d := 19.0; d >= 1; d -= 2 {
		s = float64(s*w) + 1/d
	}
	return float64(float64(e)*math.Ln2) + float64(2*float64(f*s))
}
