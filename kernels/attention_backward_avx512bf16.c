/* The backward of attention with products of bfloat16 by VDPBF16PS, over vec_avx512.h. */
#include "nc_float.h"

#if defined(__x86_64__)
#include "vec_avx512.h"
#include "float_math.h"

#define AB_NAME nc_attention_backward_avx512bf16
#define AB_TARGET \
	__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")))
#define AB_FN NC_INLINE AB_TARGET
#define AB_K 2
enum { AB_ROWS = 4, AB_VECS = 4 };

AB_FN vf ab_dot(vf a, vf b, vf c)
{
	return _mm512_dpbf16_ps(c, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}

AB_FN vf ab_pair(vf x, vf y)
{
	const __m512i order =
		_mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
		                 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
	return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(y, x)));
}

AB_FN void ab_join(float *p, vf x, vf y) { vf_store(p, (vf)_mm512_cvtne2ps_pbh(y, x)); }

#include "attention_backward.h"
#endif
