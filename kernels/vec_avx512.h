/* vec_avx512.h: vf, a vector of 16 floats, in one AVX-512 register.
 *
 * Every vec_<isa>.h defines the same names with the same results, bit for bit:
 *   vf_loadn, vf_f16n, ...: the first n < 16 elements, zeros behind; never reads further
 *   vf_select_gt(a, b, x, y): a > b ? x : y, false for NaN
 *   vf_fma(a, b, c): a*b+c rounded once      vf_nfma(a, b, c): c-a*b rounded once
 *   vf_ldexp(p, n): p * 2^n, rounded once, for an integral n of -151..130
 *   vf_sum: lanes 8 apart are added, then 4, 2, 1; vf_top: the same with select_gt
 *   vf_sums(out, a): vf_sum of 16 vectors
 *   vf_gt_bits, vf_eq_bits: a bit per lane
 */
#ifndef NANOCHAT_KERNELS_VEC_H
#define NANOCHAT_KERNELS_VEC_H

#include <immintrin.h>

#include "nc.h"

#define VF_ENTRY NC_AVX512
#define VF_FN NC_INLINE NC_AVX512
/* A large function that stays one copy. */
#define VF_WORKER static __attribute__((noinline)) NC_AVX512
#define VF_NAME(op) nc_##op##_avx512
/* Tiles of the float products: rows x tokens, and the same for Q8_0. */
enum { VF_ROWS = 4, VF_TOKENS = 4, VF_Q8_ROWS = 2, VF_Q8_TOKENS = 8 };
/* Tiles of attention: rows x vectors, for scores and for values. */
enum { VF_SCORE_ROWS = 4, VF_SCORE_VECS = 1, VF_VALUE_ROWS = 4, VF_VALUE_VECS = 4 };

typedef __m512 vf;

VF_FN __mmask16 vf_mask(int64_t n) { return (__mmask16)((1u << n) - 1); }

VF_FN vf vf_zero(void) { return _mm512_setzero_ps(); }
VF_FN vf vf_set1(float x) { return _mm512_set1_ps(x); }
VF_FN float vf_first(vf a) { return _mm512_cvtss_f32(a); }
VF_FN vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
VF_FN vf vf_loadn(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(vf_mask(n), p); }
VF_FN void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
VF_FN void vf_storen(float *p, vf a, int64_t n) { _mm512_mask_storeu_ps(p, vf_mask(n), a); }

VF_FN vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
VF_FN vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
VF_FN vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
VF_FN vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
VF_FN vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
VF_FN vf vf_nfma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
VF_FN vf vf_select_gt(vf a, vf b, vf x, vf y)
{
	return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
VF_FN vf vf_max(vf m, vf x) { return _mm512_max_ps(x, m); } /* x > m ? x : m */
VF_FN vf vf_abs(vf a) { return _mm512_abs_ps(a); }
VF_FN vf vf_or_sign(vf a, vf s) { return _mm512_or_ps(a, _mm512_and_ps(s, _mm512_set1_ps(-0.0f))); }
VF_FN vf vf_ldexp(vf p, vf n) { return _mm512_scalef_ps(p, n); }
VF_FN uint32_t vf_gt_bits(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
VF_FN uint32_t vf_eq_bits(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
/* vf_keep: the first n of 16 lanes of a, fill in the others. */
VF_FN vf vf_keep(vf a, int64_t n, vf fill) { return _mm512_mask_blend_ps(vf_mask(n), fill, a); }

VF_FN vf vf_f16(const uint16_t *p)
{
	return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
VF_FN vf vf_f16n(const uint16_t *p, int64_t n)
{
	return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vf_mask(n), p));
}
VF_FN vf vf_bf16(const uint16_t *p)
{
	__m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
	return _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
}
VF_FN vf vf_bf16n(const uint16_t *p, int64_t n)
{
	__m512i u = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(vf_mask(n), p));
	return _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
}
VF_FN vf vf_i8(const int8_t *p)
{
	return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
VF_FN vf vf_i8n(const int8_t *p, int64_t n)
{
	return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(vf_mask(n), p)));
}
VF_FN void vf_store_f16(uint16_t *p, vf a)
{
	_mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
VF_FN void vf_storen_f16(uint16_t *p, vf a, int64_t n)
{
	_mm256_mask_storeu_epi16(p, vf_mask(n), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
/* vf_round_bf16: to bfloat16, halves to even, as F32ToBF16; vf_store_bf16 of such
 * values, or of any, cut short. */
VF_FN vf vf_round_bf16(vf x)
{
	__m512i u = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
	__m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
	__m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
	__m512i q = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
	r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), q);
	return _mm512_castsi512_ps(_mm512_and_si512(r, _mm512_set1_epi32((int)0xffff0000)));
}
VF_FN __m256i vf_upper(vf x)
{
	return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(x), 16));
}
VF_FN void vf_store_bf16(uint16_t *p, vf a) { _mm256_storeu_si256((__m256i *)p, vf_upper(a)); }
VF_FN void vf_storen_bf16(uint16_t *p, vf a, int64_t n)
{
	_mm256_mask_storeu_epi16(p, vf_mask(n), vf_upper(a));
}
/* vf_trits: code-1 of the 16 columns in one row of a tile, from its four bytes. */
VF_FN vf vf_trits(uint32_t row)
{
	const __m512i shift =
		_mm512_setr_epi32(0, 8, 16, 24, 2, 10, 18, 26, 4, 12, 20, 28, 6, 14, 22, 30);
	__m512i t = _mm512_srlv_epi32(_mm512_set1_epi32((int)row), shift);
	t = _mm512_and_si512(t, _mm512_set1_epi32(3));
	return _mm512_cvtepi32_ps(_mm512_sub_epi32(t, _mm512_set1_epi32(1)));
}

VF_FN float vf_half(uint16_t h) { return _cvtsh_ss(h); }
VF_FN float vf_fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

VF_FN float vf_sum(vf a)
{
	__m256 s = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
	__m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
	q = _mm_add_ps(q, _mm_movehl_ps(q, q));
	return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

VF_FN float vf_top(vf a)
{
	__m256 s = _mm256_max_ps(_mm512_extractf32x8_ps(a, 1), _mm512_castps512_ps256(a));
	__m128 q = _mm_max_ps(_mm256_extractf128_ps(s, 1), _mm256_castps256_ps128(s));
	q = _mm_max_ps(_mm_movehl_ps(q, q), q);
	return _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(q), q));
}

/* Sixteen trees at once: each step adds the halves of two vectors into one. */
VF_FN vf vf_sums(const vf *a)
{
	vf t[8], u[4], v[2];
	NC_UNROLL
	for (int i = 0; i < 8; i++)
		t[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 8], 0x44),
		                     _mm512_shuffle_f32x4(a[i], a[i + 8], 0xee));
	NC_UNROLL
	for (int i = 0; i < 4; i++)
		u[i] = _mm512_add_ps(_mm512_shuffle_f32x4(t[i], t[i + 4], 0x88),
		                     _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd));
	NC_UNROLL
	for (int i = 0; i < 2; i++)
		v[i] = _mm512_add_ps(_mm512_shuffle_ps(u[i], u[i + 2], 0x44),
		                     _mm512_shuffle_ps(u[i], u[i + 2], 0xee));
	vf s = _mm512_add_ps(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));
	/* The lanes of s are the sums 0 2 1 3, 8 10 9 11, 4 6 5 7, 12 14 13 15. */
	return _mm512_permutexvar_ps(
		_mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15), s);
}

VF_FN void vf_transpose(vf *a)
{
	vf t[16];
	NC_UNROLL
	for (int i = 0; i < 16; i += 4) { /* 4x4 inside each quarter */
		vf p = _mm512_unpacklo_ps(a[i], a[i + 2]), q = _mm512_unpackhi_ps(a[i], a[i + 2]);
		vf r = _mm512_unpacklo_ps(a[i + 1], a[i + 3]), s = _mm512_unpackhi_ps(a[i + 1], a[i + 3]);
		t[i] = _mm512_unpacklo_ps(p, r);
		t[i + 1] = _mm512_unpackhi_ps(p, r);
		t[i + 2] = _mm512_unpacklo_ps(q, s);
		t[i + 3] = _mm512_unpackhi_ps(q, s);
	}
	NC_UNROLL
	for (int i = 0; i < 4; i++) { /* quarters between vectors 4 apart */
		vf p = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), q = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
		vf r = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88),
		   s = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
		a[i] = _mm512_shuffle_f32x4(p, r, 0x88);
		a[i + 4] = _mm512_shuffle_f32x4(q, s, 0x88);
		a[i + 8] = _mm512_shuffle_f32x4(p, r, 0xdd);
		a[i + 12] = _mm512_shuffle_f32x4(q, s, 0xdd);
	}
}

#endif
