/* vec_avx2.h: vf, a vector of 16 floats, in two AVX registers. See vec_avx512.h. */
#ifndef NANOCHAT_KERNELS_VEC_H
#define NANOCHAT_KERNELS_VEC_H

#include <immintrin.h>

#include "nc.h"

#define VF_ENTRY NC_AVX2
#define VF_FN NC_INLINE NC_AVX2
/* A large function that stays one copy. */
#define VF_WORKER static __attribute__((noinline)) NC_AVX2
#define VF_NAME(op) nc_##op##_avx2
enum { VF_ROWS = 2, VF_TOKENS = 2, VF_Q8_ROWS = 1, VF_Q8_TOKENS = 4 };
enum { VF_SCORE_ROWS = 2, VF_SCORE_VECS = 1, VF_VALUE_ROWS = 2, VF_VALUE_VECS = 2 };

typedef struct {
	__m256 a, b;
} vf;

VF_FN vf vf_pair(__m256 a, __m256 b)
{
	vf r = {a, b};
	return r;
}

/* The mask of lanes i..i+7 that are below n. */
VF_FN __m256i vf_mask(int64_t n, int i)
{
	const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
	return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n - i), lane);
}

VF_FN vf vf_zero(void) { return vf_pair(_mm256_setzero_ps(), _mm256_setzero_ps()); }
VF_FN vf vf_set1(float x) { return vf_pair(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
VF_FN float vf_first(vf x) { return _mm256_cvtss_f32(x.a); }
VF_FN vf vf_load(const float *p) { return vf_pair(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
VF_FN vf vf_loadn(const float *p, int64_t n)
{
	return vf_pair(_mm256_maskload_ps(p, vf_mask(n, 0)), _mm256_maskload_ps(p + 8, vf_mask(n, 8)));
}
VF_FN void vf_store(float *p, vf x)
{
	_mm256_storeu_ps(p, x.a);
	_mm256_storeu_ps(p + 8, x.b);
}
VF_FN void vf_storen(float *p, vf x, int64_t n)
{
	_mm256_maskstore_ps(p, vf_mask(n, 0), x.a);
	_mm256_maskstore_ps(p + 8, vf_mask(n, 8), x.b);
}

VF_FN vf vf_add(vf x, vf y) { return vf_pair(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)); }
VF_FN vf vf_sub(vf x, vf y) { return vf_pair(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)); }
VF_FN vf vf_mul(vf x, vf y) { return vf_pair(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)); }
VF_FN vf vf_div(vf x, vf y) { return vf_pair(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)); }
VF_FN vf vf_fma(vf x, vf y, vf z)
{
	return vf_pair(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
VF_FN vf vf_nfma(vf x, vf y, vf z)
{
	return vf_pair(_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b));
}
VF_FN vf vf_select_gt(vf p, vf q, vf x, vf y)
{
	return vf_pair(_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(p.a, q.a, _CMP_GT_OQ)),
	               _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(p.b, q.b, _CMP_GT_OQ)));
}
VF_FN vf vf_max(vf m, vf x) { return vf_pair(_mm256_max_ps(x.a, m.a), _mm256_max_ps(x.b, m.b)); }
VF_FN vf vf_abs(vf x)
{
	const __m256 s = _mm256_set1_ps(-0.0f);
	return vf_pair(_mm256_andnot_ps(s, x.a), _mm256_andnot_ps(s, x.b));
}
VF_FN vf vf_or_sign(vf x, vf y)
{
	const __m256 s = _mm256_set1_ps(-0.0f);
	return vf_pair(_mm256_or_ps(x.a, _mm256_and_ps(y.a, s)),
	               _mm256_or_ps(x.b, _mm256_and_ps(y.b, s)));
}
/* Two powers of two, the first of which is exact. */
VF_FN __m256 vf_ldexp8(__m256 p, __m256 n)
{
	const __m256i bias = _mm256_set1_epi32(127);
	__m256i k = _mm256_cvtps_epi32(n), h = _mm256_srai_epi32(k, 1);
	__m256i g = _mm256_sub_epi32(k, h);
	p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(h, bias), 23)));
	return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(g, bias), 23)));
}
VF_FN vf vf_ldexp(vf p, vf n) { return vf_pair(vf_ldexp8(p.a, n.a), vf_ldexp8(p.b, n.b)); }
VF_FN uint32_t vf_bits(__m256 a, __m256 b)
{
	return (uint32_t)_mm256_movemask_ps(a) | (uint32_t)_mm256_movemask_ps(b) << 8;
}
VF_FN uint32_t vf_gt_bits(vf x, vf y)
{
	return vf_bits(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ));
}
VF_FN uint32_t vf_eq_bits(vf x, vf y)
{
	return vf_bits(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ));
}
VF_FN vf vf_keep(vf x, int64_t n, vf fill)
{
	return vf_pair(_mm256_blendv_ps(fill.a, x.a, _mm256_castsi256_ps(vf_mask(n, 0))),
	               _mm256_blendv_ps(fill.b, x.b, _mm256_castsi256_ps(vf_mask(n, 8))));
}

VF_FN vf vf_f16(const uint16_t *p)
{
	return vf_pair(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
	               _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}
VF_FN vf vf_bf16(const uint16_t *p)
{
	__m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
	__m256i b = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 8)));
	return vf_pair(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
	               _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)));
}
VF_FN vf vf_i8(const int8_t *p)
{
	return vf_pair(
		_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))),
		_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8)))));
}
VF_FN void vf_store_f16(uint16_t *p, vf x)
{
	_mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
	_mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
VF_FN __m256 vf_round_bf16_8(__m256 x)
{
	__m256i u = _mm256_castps_si256(x);
	__m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
	__m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
	__m256i q = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
	__m256 s = _mm256_blendv_ps(_mm256_castsi256_ps(r), _mm256_castsi256_ps(q),
	                            _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
	return _mm256_and_ps(s, _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000)));
}
VF_FN vf vf_round_bf16(vf x) { return vf_pair(vf_round_bf16_8(x.a), vf_round_bf16_8(x.b)); }
VF_FN void vf_store_bf16(uint16_t *p, vf x)
{
	__m256i a = _mm256_srli_epi32(_mm256_castps_si256(x.a), 16);
	__m256i b = _mm256_srli_epi32(_mm256_castps_si256(x.b), 16);
	__m256i r = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
	_mm256_storeu_si256((__m256i *)p, r);
}
VF_FN __m256 vf_trits8(uint32_t row, __m256i shift)
{
	__m256i t = _mm256_srlv_epi32(_mm256_set1_epi32((int)row), shift);
	t = _mm256_and_si256(t, _mm256_set1_epi32(3));
	return _mm256_cvtepi32_ps(_mm256_sub_epi32(t, _mm256_set1_epi32(1)));
}
VF_FN vf vf_trits(uint32_t row)
{
	return vf_pair(vf_trits8(row, _mm256_setr_epi32(0, 8, 16, 24, 2, 10, 18, 26)),
	               vf_trits8(row, _mm256_setr_epi32(4, 12, 20, 28, 6, 14, 22, 30)));
}

VF_FN float vf_half(uint16_t h) { return _cvtsh_ss(h); }
VF_FN float vf_fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

VF_FN float vf_sum(vf x)
{
	__m256 s = _mm256_add_ps(x.a, x.b);
	__m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
	q = _mm_add_ps(q, _mm_movehl_ps(q, q));
	return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

VF_FN float vf_top(vf x)
{
	__m256 s = _mm256_max_ps(x.b, x.a);
	__m128 q = _mm_max_ps(_mm256_extractf128_ps(s, 1), _mm256_castps256_ps128(s));
	q = _mm_max_ps(_mm_movehl_ps(q, q), q);
	return _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(q), q));
}

/* Eight trees from eight half-vectors whose lanes 8 apart are added already. */
VF_FN __m256 vf_sums8(const __m256 *t)
{
	__m256 u[4], v[2];
	NC_UNROLL
	for (int i = 0; i < 4; i++)
		u[i] = _mm256_add_ps(_mm256_permute2f128_ps(t[i], t[i + 4], 0x20),
		                     _mm256_permute2f128_ps(t[i], t[i + 4], 0x31));
	NC_UNROLL
	for (int i = 0; i < 2; i++)
		v[i] = _mm256_add_ps(_mm256_shuffle_ps(u[i], u[i + 2], 0x44),
		                     _mm256_shuffle_ps(u[i], u[i + 2], 0xee));
	__m256 s = _mm256_add_ps(_mm256_shuffle_ps(v[0], v[1], 0x88), _mm256_shuffle_ps(v[0], v[1], 0xdd));
	return _mm256_shuffle_ps(s, s, 0xd8); /* 0 2 1 3 | 4 6 5 7 into order */
}

VF_FN vf vf_sums(const vf *a)
{
	__m256 t[16];
	NC_UNROLL
	for (int i = 0; i < 16; i++)
		t[i] = _mm256_add_ps(a[i].a, a[i].b);
	return vf_pair(vf_sums8(t), vf_sums8(t + 8));
}

VF_FN void vf_transpose8(__m256 *a)
{
	__m256 t[8];
	NC_UNROLL
	for (int i = 0; i < 8; i += 4) {
		__m256 p = _mm256_unpacklo_ps(a[i], a[i + 2]), q = _mm256_unpackhi_ps(a[i], a[i + 2]);
		__m256 r = _mm256_unpacklo_ps(a[i + 1], a[i + 3]), s = _mm256_unpackhi_ps(a[i + 1], a[i + 3]);
		t[i] = _mm256_unpacklo_ps(p, r);
		t[i + 1] = _mm256_unpackhi_ps(p, r);
		t[i + 2] = _mm256_unpacklo_ps(q, s);
		t[i + 3] = _mm256_unpackhi_ps(q, s);
	}
	NC_UNROLL
	for (int i = 0; i < 4; i++) {
		a[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
		a[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
	}
}

VF_FN void vf_transpose(vf *a)
{
	__m256 t[4][8];
	NC_UNROLL
	for (int i = 0; i < 8; i++) {
		t[0][i] = a[i].a;
		t[1][i] = a[i].b;
		t[2][i] = a[i + 8].a;
		t[3][i] = a[i + 8].b;
	}
	NC_UNROLL
	for (int i = 0; i < 4; i++)
		vf_transpose8(t[i]);
	NC_UNROLL
	for (int i = 0; i < 8; i++) {
		a[i] = vf_pair(t[0][i], t[2][i]);
		a[i + 8] = vf_pair(t[1][i], t[3][i]);
	}
}

#include "vec_tails.h"

#endif
