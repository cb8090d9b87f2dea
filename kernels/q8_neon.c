/* Q8_0 products with NEON SDOT: a block is two vectors, lanes 0-3 and 4-7. */
#include "nc.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define NC_TARGET NC_NEON
#define NC_NAME(op) nc_##op##_neon
#define Q8_MAX 4
enum { Q8_ROWS = 2, Q8_GEMV_ROWS = 4 };

/* dot4 is the four sums of four products. clang before 16 hides the intrinsic from
 * functions with a target attribute. */
NC_NEON NC_INLINE float32x4_t dot4(int8x16_t w, int8x16_t x)
{
	int32x4_t acc = vdupq_n_s32(0);
#if defined(__clang__) && __clang_major__ < 16 && !defined(__ARM_FEATURE_DOTPROD)
	__asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(w), "w"(x));
#else
	acc = vdotq_s32(acc, w, x);
#endif
	return vcvtq_f32_s32(acc);
}

NC_NEON NC_INLINE void q8_tile(const int R, const int T, float *dst, int64_t ldd,
                               const uint8_t *row, int64_t pitch, int64_t cols, const int8_t *q,
                               int64_t stride, const float *scale)
{
	float32x4_t lo[8], hi[8];
	const uint8_t *ahead = row + (R * pitch > NC_PREFETCH ? R * pitch : NC_PREFETCH);
	NC_UNROLL for (int i = 0; i < R * T; i++) lo[i] = hi[i] = vdupq_n_f32(0);
	NC_NOUNROLL for (int64_t k = 0; k < cols; k += 32)
	{
		int8x16_t v[4], u[4];
		float32x4_t d[4];
		NC_UNROLL for (int r = 0; r < R; r++)
		{
			const uint8_t *b = row + r * pitch;
			uint16_t h;
			memcpy(&h, b, 2);
			d[r] = vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h)));
			v[r] = vld1q_s8((const int8_t *)b + 2);
			u[r] = vld1q_s8((const int8_t *)b + 18);
			if (T == 1) { /* in the order of memory, whatever the rows at hand */
				__builtin_prefetch(ahead);
				ahead += 34;
			}
		}
		row += 34;
		NC_UNROLL for (int t = 0; t < T; t++)
		{
			int8x16_t a = vld1q_s8(q + t * stride + k), b = vld1q_s8(q + t * stride + k + 16);
			NC_UNROLL for (int r = 0; r < R; r++)
			{
				lo[t * R + r] = vfmaq_f32(lo[t * R + r], dot4(v[r], a), d[r]);
				hi[t * R + r] = vfmaq_f32(hi[t * R + r], dot4(u[r], b), d[r]);
			}
		}
	}
	NC_UNROLL for (int i = 0; i < R * T; i++)
	{
		float32x4_t s = vaddq_f32(lo[i], hi[i]);
		float32x2_t h = vadd_f32(vget_low_f32(s), vget_high_f32(s));
		dst[i / R * ldd + i % R] = scale[i / R] * (vget_lane_f32(h, 0) + vget_lane_f32(h, 1));
	}
}

#include "q8_tiles.h"
#endif
