/* Matrix products over vec_avx2.h. */
#include "nc.h"

#if defined(__x86_64__)
#include "vec_avx2.h"

#define MM_NAME nc_matmul_avx2
#define MM_TARGET NC_AVX2
#define MM_FN NC_INLINE MM_TARGET
#define MM_ROWS 6
#define MM_VECS 1

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

#include "matmul_f32.h"
#include "matmul.h"
#endif
