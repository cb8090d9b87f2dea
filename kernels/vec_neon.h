/* vec_neon.h: vf, a vector of 16 floats, in four NEON registers. See vec_avx512.h. */
#ifndef NANOCHAT_KERNELS_VEC_H
#define NANOCHAT_KERNELS_VEC_H

#include <arm_neon.h>

#include "nc.h"

#define VF_ENTRY NC_NEON
#define VF_FN NC_INLINE NC_NEON
/* A large function that stays one copy. */
#define VF_WORKER static __attribute__((noinline)) NC_NEON
#define VF_NAME(op) nc_##op##_neon
enum { VF_ROWS = 2, VF_TOKENS = 2, VF_Q8_ROWS = 1, VF_Q8_TOKENS = 4 };
enum { VF_SCORE_ROWS = 2, VF_SCORE_VECS = 1, VF_VALUE_ROWS = 2, VF_VALUE_VECS = 2 };

typedef struct {
	float32x4_t v[4];
} vf;

#define VF_EACH NC_UNROLL for (int i = 0; i < 4; i++)

VF_FN vf vf_set1(float x)
{
	vf r;
	VF_EACH r.v[i] = vdupq_n_f32(x);
	return r;
}
VF_FN vf vf_zero(void) { return vf_set1(0); }
VF_FN float vf_first(vf a) { return vgetq_lane_f32(a.v[0], 0); }
VF_FN vf vf_load(const float *p)
{
	vf r;
	VF_EACH r.v[i] = vld1q_f32(p + 4 * i);
	return r;
}
VF_FN void vf_store(float *p, vf a) { VF_EACH vst1q_f32(p + 4 * i, a.v[i]); }
VF_FN vf vf_loadn(const float *p, int64_t n)
{
	float t[16] = {0};
	memcpy(t, p, (size_t)n * 4);
	return vf_load(t);
}
VF_FN void vf_storen(float *p, vf a, int64_t n)
{
	float t[16];
	vf_store(t, a);
	memcpy(p, t, (size_t)n * 4);
}

#define VF_BINARY(name, expr)                   \
	VF_FN vf name(vf x, vf y)                   \
	{                                           \
		vf r;                                   \
		VF_EACH                                 \
		{                                       \
			float32x4_t a = x.v[i], b = y.v[i]; \
			r.v[i] = (expr);                    \
		}                                       \
		return r;                               \
	}
VF_BINARY(vf_add, vaddq_f32(a, b))
VF_BINARY(vf_sub, vsubq_f32(a, b))
VF_BINARY(vf_mul, vmulq_f32(a, b))
VF_BINARY(vf_div, vdivq_f32(a, b))
VF_BINARY(vf_max, vbslq_f32(vcgtq_f32(b, a), b, a)) /* b > a ? b : a; FMAX differs for NaN */
#undef VF_BINARY

VF_FN vf vf_fma(vf a, vf b, vf c)
{
	VF_EACH c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
	return c;
}
VF_FN vf vf_nfma(vf a, vf b, vf c)
{
	VF_EACH c.v[i] = vfmsq_f32(c.v[i], a.v[i], b.v[i]);
	return c;
}
VF_FN vf vf_select_gt(vf a, vf b, vf x, vf y)
{
	VF_EACH y.v[i] = vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), x.v[i], y.v[i]);
	return y;
}
VF_FN vf vf_abs(vf a)
{
	VF_EACH a.v[i] = vabsq_f32(a.v[i]);
	return a;
}
VF_FN vf vf_or_sign(vf a, vf s)
{
	const uint32x4_t bit = vdupq_n_u32(0x80000000u);
	VF_EACH
	{
		uint32x4_t u = vandq_u32(vreinterpretq_u32_f32(s.v[i]), bit);
		a.v[i] = vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(a.v[i]), u));
	}
	return a;
}
/* Two powers of two, the first of which is exact. */
VF_FN vf vf_ldexp(vf p, vf n)
{
	const int32x4_t bias = vdupq_n_s32(127);
	VF_EACH
	{
		int32x4_t k = vcvtq_s32_f32(n.v[i]), h = vshrq_n_s32(k, 1), g = vsubq_s32(k, h);
		float32x4_t f = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(h, bias), 23));
		float32x4_t e = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(g, bias), 23));
		p.v[i] = vmulq_f32(vmulq_f32(p.v[i], f), e);
	}
	return p;
}
VF_FN uint32_t vf_bits(const uint32x4_t *m)
{
	const uint32x4_t bit = {1, 2, 4, 8};
	uint32_t r = 0;
	VF_EACH r |= vaddvq_u32(vandq_u32(m[i], bit)) << (4 * i);
	return r;
}
VF_FN uint32_t vf_gt_bits(vf a, vf b)
{
	uint32x4_t m[4];
	VF_EACH m[i] = vcgtq_f32(a.v[i], b.v[i]);
	return vf_bits(m);
}
VF_FN uint32_t vf_eq_bits(vf a, vf b)
{
	uint32x4_t m[4];
	VF_EACH m[i] = vceqq_f32(a.v[i], b.v[i]);
	return vf_bits(m);
}
VF_FN vf vf_keep(vf a, int64_t n, vf fill)
{
	const int32x4_t lane = {0, 1, 2, 3};
	VF_EACH fill.v[i] =
		vbslq_f32(vcgtq_s32(vdupq_n_s32((int32_t)n - 4 * i), lane), a.v[i], fill.v[i]);
	return fill;
}

VF_FN vf vf_f16(const uint16_t *p)
{
	vf r;
	VF_EACH r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
	return r;
}
VF_FN vf vf_bf16(const uint16_t *p)
{
	vf r;
	VF_EACH r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
	return r;
}
VF_FN vf vf_i8(const int8_t *p)
{
	int8x16_t q = vld1q_s8(p);
	int16x8_t a = vmovl_s8(vget_low_s8(q)), b = vmovl_s8(vget_high_s8(q));
	vf r = {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(a))),
	         vcvtq_f32_s32(vmovl_s16(vget_low_s16(b))),
	         vcvtq_f32_s32(vmovl_s16(vget_high_s16(b)))}};
	return r;
}
VF_FN void vf_store_f16(uint16_t *p, vf a)
{
	VF_EACH vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
VF_FN vf vf_round_bf16(vf x)
{
	VF_EACH
	{
		uint32x4_t u = vreinterpretq_u32_f32(x.v[i]);
		uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
		uint32x4_t r = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
		uint32x4_t q = vorrq_u32(u, vdupq_n_u32(0x400000));
		r = vbslq_u32(vceqq_f32(x.v[i], x.v[i]), r, q);
		x.v[i] = vreinterpretq_f32_u32(vandq_u32(r, vdupq_n_u32(0xffff0000)));
	}
	return x;
}
VF_FN void vf_store_bf16(uint16_t *p, vf a)
{
	VF_EACH vst1_u16(p + 4 * i, vshrn_n_u32(vreinterpretq_u32_f32(a.v[i]), 16));
}
VF_FN vf vf_trits(uint32_t row)
{
	vf r;
	VF_EACH
	{
		const int32x4_t shift = {-2 * i, -8 - 2 * i, -16 - 2 * i, -24 - 2 * i};
		uint32x4_t t = vandq_u32(vshlq_u32(vdupq_n_u32(row), shift), vdupq_n_u32(3));
		r.v[i] = vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(t), vdupq_n_s32(1)));
	}
	return r;
}

VF_FN float vf_half(uint16_t h)
{
	return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}
VF_FN float vf_fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

VF_FN float32x4_t vf_fold(vf a)
{
	return vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
}
VF_FN float vf_sum(vf a)
{
	float32x4_t q = vf_fold(a);
	float32x2_t h = vadd_f32(vget_low_f32(q), vget_high_f32(q));
	return vget_lane_f32(h, 0) + vget_lane_f32(h, 1);
}
VF_FN float vf_top(vf a)
{
	float t[16];
	vf_store(t, a);
	for (int h = 8; h > 0; h /= 2)
		for (int i = 0; i < h; i++)
			t[i] = t[i + h] > t[i] ? t[i + h] : t[i];
	return t[0];
}
/* Four trees from four vectors whose lanes 8 and 4 apart are added already. */
VF_FN float32x4_t vf_sums4(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d)
{
	float32x4_t p = vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)),
	                          vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
	float32x4_t q = vaddq_f32(vcombine_f32(vget_low_f32(c), vget_low_f32(d)),
	                          vcombine_f32(vget_high_f32(c), vget_high_f32(d)));
	return vaddq_f32(vuzp1q_f32(p, q), vuzp2q_f32(p, q));
}
VF_FN vf vf_sums(const vf *a)
{
	vf r;
	VF_EACH r.v[i] = vf_sums4(vf_fold(a[4 * i]), vf_fold(a[4 * i + 1]), vf_fold(a[4 * i + 2]),
	                          vf_fold(a[4 * i + 3]));
	return r;
}
VF_FN void vf_transpose(vf *a)
{
	vf t[16];
	NC_UNROLL
	for (int i = 0; i < 4; i++)
		NC_UNROLL
		for (int j = 0; j < 4; j++) { /* block (i, j), 4x4, goes to block (j, i) */
			float32x4_t p = vtrn1q_f32(a[4 * i].v[j], a[4 * i + 1].v[j]);
			float32x4_t q = vtrn2q_f32(a[4 * i].v[j], a[4 * i + 1].v[j]);
			float32x4_t r = vtrn1q_f32(a[4 * i + 2].v[j], a[4 * i + 3].v[j]);
			float32x4_t s = vtrn2q_f32(a[4 * i + 2].v[j], a[4 * i + 3].v[j]);
			t[4 * j].v[i] = vcombine_f32(vget_low_f32(p), vget_low_f32(r));
			t[4 * j + 1].v[i] = vcombine_f32(vget_low_f32(q), vget_low_f32(s));
			t[4 * j + 2].v[i] = vcombine_f32(vget_high_f32(p), vget_high_f32(r));
			t[4 * j + 3].v[i] = vcombine_f32(vget_high_f32(q), vget_high_f32(s));
		}
	memcpy(a, t, sizeof t);
}

#include "vec_tails.h"

#endif
