/* Matrix products over vec_neon.h. */
#include "nc.h"

#if defined(__aarch64__)
#include "vec_neon.h"

#define MM_NAME nc_matmul_neon
#define MM_TARGET NC_NEON
#define MM_FN NC_INLINE MM_TARGET
#define MM_ROWS 6
#define MM_VECS 1

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

#include "matmul_f32.h"
#include "matmul.h"
#endif
