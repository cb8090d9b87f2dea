/* float_norm.h: RMSNorm over vf, apart so that fused kernels can inline it.
 * Include after one vec_<isa>.h. */
#ifndef NANOCHAT_KERNELS_FLOAT_NORM_H
#define NANOCHAT_KERNELS_FLOAT_NORM_H

/* dst = (x * 1/sqrt(sum(x^2)/n + eps)) * weight; weight may be NULL, dst may be x. */
VF_FN void vf_rmsnorm(float *dst, const float *x, const float *weight, float eps, int64_t n)
{
	int64_t n16 = n & ~(int64_t)15, rest = n & 15, i;
	vf s = vf_zero();
	for (i = 0; i < n16; i += 16) {
		vf v = vf_load(x + i);
		s = vf_fma(v, v, s);
	}
	if (rest) {
		vf v = vf_loadn(x + i, rest);
		s = vf_fma(v, v, s);
	}
	float mean = vf_sum(s) / (float)n;
	vf inv = vf_set1(1 / __builtin_sqrtf(mean + eps));
	for (i = 0; i < n16; i += 16) {
		vf v = vf_mul(vf_load(x + i), inv);
		vf_store(dst + i, weight ? vf_mul(v, vf_load(weight + i)) : v);
	}
	if (rest) {
		vf v = vf_mul(vf_loadn(x + i, rest), inv);
		vf_storen(dst + i, weight ? vf_mul(v, vf_loadn(weight + i, rest)) : v, rest);
	}
}

#endif
