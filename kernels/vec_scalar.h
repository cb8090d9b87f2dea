/* vec_scalar.h: vf, a vector of 16 floats, as an array. See vec_avx512.h. */
#ifndef NANOCHAT_KERNELS_VEC_H
#define NANOCHAT_KERNELS_VEC_H

#include "nc.h"

/* Arrays of arrays are not worth unrolling. */
#undef NC_UNROLL
#define NC_UNROLL

#define VF_ENTRY
/* The compiler chooses what to inline: all of it would be large and no faster. */
#define VF_FN __attribute__((unused)) static
/* A large function that stays one copy. */
#define VF_WORKER static __attribute__((noinline))
#define VF_NAME(op) nc_##op##_scalar
enum { VF_ROWS = 1, VF_TOKENS = 1, VF_Q8_ROWS = 1, VF_Q8_TOKENS = 1 };
enum { VF_SCORE_ROWS = 1, VF_SCORE_VECS = 1, VF_VALUE_ROWS = 1, VF_VALUE_VECS = 1 };

typedef struct {
	float v[16];
} vf;

#define VF_EACH NC_NOUNROLL for (int i = 0; i < 16; i++)

#if defined(__aarch64__)
VF_FN float vf_fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
/* a*b is exact in double. The double sum is only rounded wrongly to float on a
 * midpoint of two floats (elsewhere for subnormals): there its last bit is made
 * sticky first, by the exact error of the sum. */
VF_FN float vf_fma1(float a, float b, float c)
{
	double p = (double)a * b, s = p + c;
	uint64_t u;
	memcpy(&u, &s, 8);
	if (u << 35 == (uint64_t)1 << 63 || u << 1 < (uint64_t)897 << 53) {
		double t = s - p, e = (p - (s - t)) + (c - t);
		if (!(u & 1) && (e > 0 || e < 0))
			u = (e > 0) == (s > 0) ? u + 1 : u - 1;
		memcpy(&s, &u, 8);
	}
	return (float)s;
}
#endif

VF_FN vf vf_set1(float x)
{
	vf r;
	VF_EACH r.v[i] = x;
	return r;
}
VF_FN vf vf_zero(void) { return vf_set1(0); }
VF_FN float vf_first(vf a) { return a.v[0]; }
VF_FN vf vf_load(const float *p)
{
	vf r;
	memcpy(r.v, p, sizeof r.v);
	return r;
}
VF_FN vf vf_loadn(const float *p, int64_t n)
{
	vf r = vf_zero();
	memcpy(r.v, p, (size_t)n * 4);
	return r;
}
VF_FN void vf_store(float *p, vf a) { memcpy(p, a.v, sizeof a.v); }
VF_FN void vf_storen(float *p, vf a, int64_t n) { memcpy(p, a.v, (size_t)n * 4); }

#define VF_BINARY(name, expr)             \
	VF_FN vf name(vf x, vf y)             \
	{                                     \
		vf r;                             \
		VF_EACH                           \
		{                                 \
			float a = x.v[i], b = y.v[i]; \
			r.v[i] = (expr);              \
		}                                 \
		return r;                         \
	}
VF_BINARY(vf_add, a + b)
VF_BINARY(vf_sub, a - b)
VF_BINARY(vf_mul, a *b)
VF_BINARY(vf_div, a / b)
VF_BINARY(vf_max, b > a ? b : a)
#undef VF_BINARY

VF_FN vf vf_fma(vf a, vf b, vf c)
{
	VF_EACH c.v[i] = vf_fma1(a.v[i], b.v[i], c.v[i]);
	return c;
}
VF_FN vf vf_nfma(vf a, vf b, vf c)
{
	VF_EACH c.v[i] = vf_fma1(-a.v[i], b.v[i], c.v[i]);
	return c;
}
VF_FN vf vf_select_gt(vf a, vf b, vf x, vf y)
{
	VF_EACH y.v[i] = a.v[i] > b.v[i] ? x.v[i] : y.v[i];
	return y;
}
VF_FN vf vf_abs(vf a)
{
	VF_EACH a.v[i] = __builtin_fabsf(a.v[i]);
	return a;
}
VF_FN vf vf_or_sign(vf a, vf s)
{
	VF_EACH
	{
		uint32_t u, w;
		memcpy(&u, &a.v[i], 4);
		memcpy(&w, &s.v[i], 4);
		u |= w & 0x80000000u;
		memcpy(&a.v[i], &u, 4);
	}
	return a;
}
/* Two powers of two, the first of which is exact. */
VF_FN vf vf_ldexp(vf p, vf n)
{
	VF_EACH
	{
		/* The low bits of n + 1.5*2^23 are the integer n; for a NaN they do not matter. */
		float t = n.v[i] + 0x1.8p23f, f;
		uint32_t u;
		memcpy(&u, &t, 4);
		int32_t k = (int32_t)(u - 0x4b400000u), h = k >> 1;
		u = (uint32_t)(h + 127) << 23;
		memcpy(&f, &u, 4);
		p.v[i] *= f;
		u = (uint32_t)(k - h + 127) << 23;
		memcpy(&f, &u, 4);
		p.v[i] *= f;
	}
	return p;
}
VF_FN uint32_t vf_gt_bits(vf a, vf b)
{
	uint32_t m = 0;
	VF_EACH m |= (uint32_t)(a.v[i] > b.v[i]) << i;
	return m;
}
VF_FN uint32_t vf_eq_bits(vf a, vf b)
{
	uint32_t m = 0;
	VF_EACH m |= (uint32_t)(a.v[i] == b.v[i]) << i;
	return m;
}
VF_FN vf vf_keep(vf a, int64_t n, vf fill)
{
	VF_EACH fill.v[i] = i < n ? a.v[i] : fill.v[i];
	return fill;
}

VF_FN float vf_half(uint16_t h) { return nc_f16_to_f32(h); }
VF_FN uint16_t vf_to_half(float f)
{
	uint32_t u;
	memcpy(&u, &f, 4);
	uint16_t sign = u >> 16 & 0x8000;
	u &= 0x7fffffff;
	if (u > 0x7f800000) /* NaN */
		return (uint16_t)(sign | 0x7e00 | (u >> 13 & 0x3ff));
	if (u >= 0x477ff000) /* 65520 and more */
		return sign | 0x7c00;
	if (u < 0x38800000) { /* below 2^-14: adding 0.5 leaves multiples of 2^-24 */
		memcpy(&f, &u, 4);
		f += 0.5f;
		memcpy(&u, &f, 4);
		return (uint16_t)(sign | (u - 0x3f000000));
	}
	u += 0xfff + (u >> 13 & 1);
	return (uint16_t)(sign | ((u >> 13) - (112 << 10)));
}
VF_FN vf vf_f16(const uint16_t *p)
{
	vf r;
	VF_EACH r.v[i] = vf_half(p[i]);
	return r;
}
VF_FN vf vf_bf16(const uint16_t *p)
{
	vf r;
	VF_EACH
	{
		uint32_t u = (uint32_t)p[i] << 16;
		memcpy(&r.v[i], &u, 4);
	}
	return r;
}
VF_FN vf vf_i8(const int8_t *p)
{
	vf r;
	VF_EACH r.v[i] = p[i];
	return r;
}
VF_FN void vf_store_f16(uint16_t *p, vf a) { VF_EACH p[i] = vf_to_half(a.v[i]); }

VF_FN vf vf_round_bf16(vf x)
{
	VF_EACH
	{
		uint32_t u;
		memcpy(&u, &x.v[i], 4);
		u = (u & 0x7fffffff) > 0x7f800000 ? u | 0x400000 : u + 0x7fff + (u >> 16 & 1);
		u &= 0xffff0000;
		memcpy(&x.v[i], &u, 4);
	}
	return x;
}
VF_FN void vf_store_bf16(uint16_t *p, vf a)
{
	VF_EACH
	{
		uint32_t u;
		memcpy(&u, &a.v[i], 4);
		p[i] = (uint16_t)(u >> 16);
	}
}
VF_FN vf vf_trits(uint32_t row)
{
	vf r;
	VF_EACH r.v[i] = (float)((int)(row >> (i % 4 * 8 + i / 4 * 2) & 3) - 1);
	return r;
}

VF_FN float vf_sum(vf a)
{
	for (int h = 8; h > 0; h /= 2)
		for (int i = 0; i < h; i++)
			a.v[i] += a.v[i + h];
	return a.v[0];
}
VF_FN float vf_top(vf a)
{
	for (int h = 8; h > 0; h /= 2)
		for (int i = 0; i < h; i++)
			a.v[i] = a.v[i + h] > a.v[i] ? a.v[i + h] : a.v[i];
	return a.v[0];
}
VF_FN vf vf_sums(const vf *a)
{
	vf r;
	VF_EACH r.v[i] = vf_sum(a[i]);
	return r;
}
VF_FN void vf_transpose(vf *a)
{
	for (int i = 0; i < 16; i++)
		for (int j = 0; j < i; j++) {
			float t = a[i].v[j];
			a[i].v[j] = a[j].v[i];
			a[j].v[i] = t;
		}
}

#include "vec_tails.h"

#endif
