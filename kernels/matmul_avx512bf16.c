/* Matrix products of bfloat16 by VDPBF16PS, over vec_avx512.h. */
#include "nc.h"

#if defined(__x86_64__)
#include "vec_avx512.h"

#define MM_NAME nc_matmul_avx512bf16
#define MM_TARGET \
	__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")))
#define MM_FN NC_INLINE MM_TARGET
#define MM_ROWS 8
#define MM_VECS 3

enum { MM_K = 2 };

MM_FN __m256i mm_load_bf16(const nc_operand *o, int64_t at, int64_t n, const int type)
{
	if (type == NC_BF16) {
		const uint16_t *p = (const uint16_t *)o->data + at;
		return _mm256_maskz_loadu_epi16(vf_mask(n), p);
	}
	return (__m256i)_mm512_cvtneps_pbh(vf_loadn((const float *)o->data + at, n));
}

MM_FN vf mm_along(const nc_operand *o, int64_t i, int64_t k, int64_t n, const int type)
{
	int64_t at = i * o->stride + k, lo = n < 16 ? n : 16;
	if (type == NC_BF16) {
		const uint16_t *p = (const uint16_t *)o->data + at;
		return _mm512_castsi512_ps(
			_mm512_maskz_loadu_epi16((__mmask32)(((uint64_t)1 << n) - 1), p));
	}
	const float *p = (const float *)o->data + at;
	if (n == 32)
		return (vf)_mm512_cvtne2ps_pbh(vf_load(p + 16), vf_load(p));
	/* The upper half is not read where it is empty, nor its address formed. */
	return (vf)_mm512_cvtne2ps_pbh(n > 16 ? vf_loadn(p + 16, n - 16) : vf_zero(), vf_loadn(p, lo));
}

MM_FN vf mm_across(const nc_operand *o, int64_t k, int64_t nk, int64_t i, int64_t n, const int type)
{
	int64_t at = k * o->stride + i;
	__m512i lo = _mm512_cvtepu16_epi32(mm_load_bf16(o, at, n, type)), hi = _mm512_setzero_si512();
	if (nk > 1)
		hi = _mm512_cvtepu16_epi32(mm_load_bf16(o, at + o->stride, n, type));
	return _mm512_castsi512_ps(_mm512_or_si512(lo, _mm512_slli_epi32(hi, 16)));
}

MM_FN vf mm_dot(vf a, vf b, vf c)
{
	return _mm512_dpbf16_ps(c, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}

#include "matmul.h"
#endif
