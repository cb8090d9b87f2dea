/* Matrix products over vec_avx512.h. */
#include "nc.h"

#if defined(__x86_64__)
#include "vec_avx512.h"

#define MM_NAME nc_matmul_avx512
#define MM_TARGET NC_AVX512
#define MM_FN NC_INLINE MM_TARGET
#define MM_ROWS 8
#define MM_VECS 3

VF_FN vf vf_round_bf16(vf x)
{
	__m512i u = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
	__m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
	__m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
	__m512i q = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
	r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), q);
	return _mm512_castsi512_ps(_mm512_and_si512(r, _mm512_set1_epi32((int)0xffff0000)));
}

#include "matmul_f32.h"
#include "matmul.h"
#endif
