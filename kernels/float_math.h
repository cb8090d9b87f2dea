/* float_math.h: exp, tanh and log over vf; math32.go defines them. Include after
 * one vec_<isa>.h. */
#ifndef NANOCHAT_KERNELS_FLOAT_MATH_H
#define NANOCHAT_KERNELS_FLOAT_MATH_H

/* exp(x) for x <= 89 or NaN. */
VF_FN vf vf_exp_low(vf x)
{
	const vf magic = vf_set1(0x1.8p23f);
	x = vf_max(x, vf_set1(-104)); /* a NaN stays */
	vf n = vf_sub(vf_fma(x, vf_set1(0x1.715476p+0f), magic), magic);
	vf r = vf_nfma(n, vf_set1(0x1.62e43p-1f), x);
	r = vf_fma(n, vf_set1(0x1.05c61p-29f), r);
	vf p = vf_fma(vf_set1(0x1.6a2352p-10f), r, vf_set1(0x1.123a6cp-7f));
	p = vf_fma(p, r, vf_set1(0x1.5558f4p-5f));
	p = vf_fma(p, r, vf_set1(0x1.55549p-3f));
	p = vf_fma(p, r, vf_set1(0x1.fffffcp-2f));
	p = vf_fma(p, r, vf_set1(1));
	p = vf_fma(p, r, vf_set1(1));
	return vf_ldexp(p, n);
}

VF_FN vf vf_exp(vf x)
{
	const vf top = vf_set1(89);
	return vf_exp_low(vf_select_gt(x, top, top, x));
}

/* 1 + exp(-x) */
VF_FN vf vf_exp_neg1(vf x) { return vf_add(vf_set1(1), vf_exp(vf_sub(vf_set1(-0.0f), x))); }

VF_FN vf vf_tanh(vf x)
{
	const vf one = vf_set1(1), cut = vf_set1(0.625f);
	vf a = vf_abs(x), z = vf_mul(x, x);
	vf p = vf_fma(vf_set1(-0x1.75d426p-8f), z, vf_set1(0x1.5223acp-6f));
	p = vf_fma(p, z, vf_set1(-0x1.b83becp-5f));
	p = vf_fma(p, z, vf_set1(0x1.110724p-3f));
	p = vf_fma(p, z, vf_set1(-0x1.555532p-2f));
	p = vf_fma(p, vf_mul(z, x), x);
	if (!vf_gt_bits(a, cut)) /* as most logits under a softcap */
		return p;
	vf e = vf_add(vf_exp(vf_add(a, a)), one);
	vf big = vf_or_sign(vf_sub(one, vf_div(vf_set1(2), e)), x);
	return vf_select_gt(a, cut, big, p);
}

/* m + log(sum) for a sum >= 1 or NaN: log64 of math32.go, which see. */
VF_FN float vf_log_sum(float m, float sum)
{
	if (sum != sum)
		return sum;
	double x = sum, y;
	uint64_t u;
	memcpy(&u, &x, 8);
	int64_t k = (int64_t)(u - 0x3fe6a09e667f3bcd) >> 52;
	u -= (uint64_t)k << 52;
	memcpy(&y, &u, 8);
	double s = (y - 1) / (y + 1), z = s * s, p = 1.0 / 21;
	for (int i = 19; i >= 3; i -= 2)
		p = p * z + 1.0 / i;
	double l = 2 * s + 2 * s * z * p;
	return (float)((double)m + ((double)k * 0x1.62e42fefa39efp-1 + l));
}

#endif
