/* Ternary ops with NEON SDOT: a quarter of a tile is 4 rows by 16 columns, and one
 * 16-byte load of activations holds the four lanes that its four groups of columns need. */
#include "nc.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include "ternary_gemm.h"

/* sdot adds to acc the products of w and the four activations in lane of x. clang
 * before 16 hides the intrinsic from functions with a target attribute. */
#if defined(__clang__) && __clang_major__ < 16 && !defined(__ARM_FEATURE_DOTPROD)
#define sdot(acc, w, x, lane) \
	__asm__("sdot %0.4s, %1.16b, %2.4b[" #lane "]" : "+w"(acc) : "w"(w), "w"(x))
#else
#define sdot(acc, w, x, lane) (acc = vdotq_laneq_s32(acc, w, x, lane))
#endif

typedef int32x4_t vi;
typedef float32x4_t vf;

NC_NEON NC_INLINE vf scales4(const uint16_t *p)
{
	return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

/* store4 writes the first rows values of v. */
NC_NEON NC_INLINE void store4(float *dst, vf v, int64_t rows)
{
	float buffer[4];
	if (rows >= 4) {
		vst1q_f32(dst, v);
	} else if (rows > 0) {
		vst1q_f32(buffer, v);
		memcpy(dst, buffer, (size_t)rows * 4);
	}
}

/* quantize4 writes up to 4 values and returns them. */
NC_NEON NC_INLINE vi quantize4(int8_t *q, const float *x, int64_t n, vf scale)
{
	float buffer[4] = {0};
	if (n < 4) {
		memcpy(buffer, x, (size_t)n * 4);
		x = buffer;
	}
	vi v = vcvtnq_s32_f32(vdivq_f32(vld1q_f32(x), scale)); /* n: nearest, ties to even */
	v = vmaxq_s32(vminq_s32(v, vdupq_n_s32(127)), vdupq_n_s32(-127));
	int16x4_t h = vmovn_s32(v);
	int32_t bytes = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(h, h))), 0);
	memcpy(q, &bytes, (size_t)(n < 4 ? n : 4));
	return v;
}

NC_NEON float nc_quantize_neon(int8_t *q, int64_t qlen, int32_t *sums, const float *x, int64_t n,
                               int64_t group)
{
	const uint32x4_t abs = vdupq_n_u32(0x7fffffff);
	uint32x4_t top = vdupq_n_u32(0); /* non-negative floats order like integers */
	int64_t i = 0;
	for (; i + 4 <= n; i += 4)
		top = vmaxq_u32(top, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), abs));
	uint32_t bits = vmaxvq_u32(top);
	for (; i < n; i++) {
		uint32_t b;
		memcpy(&b, x + i, 4);
		b &= 0x7fffffff;
		bits = b > bits ? b : bits;
	}
	float a;
	if (!nc_quantize_scale(&a, bits, q, qlen, sums, n, group))
		return a;
	const vf scale = vdupq_n_f32(a);
	for (int64_t g = 0, at = 0; at < n; g++) {
		int64_t end = at + group < n ? at + group : n;
		vi sum = vdupq_n_s32(0);
		for (; at + 4 <= end; at += 4)
			sum = vaddq_s32(sum, quantize4(q + at, x + at, 4, scale));
		if (at < end)
			sum = vaddq_s32(sum, quantize4(q + at, x + at, end - at, scale));
		at = end;
		sums[g] = vaddvq_s32(sum);
	}
	memset(q + n, 0, (size_t)(qlen - n));
	return a;
}

/* gemv_rows: one block against one token. Columns 4-7 and 8-11 are not shifted down; they
 * have accumulators of their own, 4 and 16 times too large until the end of the group. */
NC_NEON static void gemv_rows(float *dst, const nc_ternary *w, const nc_act *x, int64_t b,
                              int64_t r1)
{
	const int64_t tiles = (w->cols + 15) / 16, groups = x->groups;
	const int64_t per_group = (w->group + 15) / 16;
	const uint8_t *tile = w->tiles + b * tiles * 64;
	const uint16_t *scale = w->scales + b * groups * 16;
	const int8_t *q = x->q;
	const uint8x16_t m0 = vdupq_n_u8(0x03), m1 = vdupq_n_u8(0x0c), m2 = vdupq_n_u8(0x30);
	vf sum[4];
	NC_UNROLL for (int h = 0; h < 4; h++) sum[h] = vdupq_n_f32(0);
	for (int64_t g = 0; g < groups; g++) {
		int64_t n = tiles - g * per_group < per_group ? tiles - g * per_group : per_group;
		vi a0[4], a1[4], a2[4];
		NC_UNROLL for (int h = 0; h < 4; h++)
		{
			a0[h] = vdupq_n_s32(-x->sums[g]);
			a1[h] = a2[h] = vdupq_n_s32(0);
		}
		NC_NOUNROLL for (; n > 0; n--)
		{
			int8x16_t v = vld1q_s8(q);
			NC_UNROLL for (int h = 0; h < 4; h++)
			{
				uint8x16_t t = vld1q_u8(tile + 16 * h);
				sdot(a0[h], vreinterpretq_s8_u8(vandq_u8(t, m0)), v, 0);
				sdot(a1[h], vreinterpretq_s8_u8(vandq_u8(t, m1)), v, 1);
				sdot(a2[h], vreinterpretq_s8_u8(vandq_u8(t, m2)), v, 2);
				sdot(a0[h], vreinterpretq_s8_u8(vshrq_n_u8(t, 6)), v, 3);
			}
			q += 16;
			tile += 64;
		}
		NC_UNROLL for (int h = 0; h < 4; h++)
		{
			vi s = vsraq_n_s32(a1[h], a2[h], 2);
			s = vsraq_n_s32(a0[h], s, 2);
			sum[h] = vfmaq_f32(sum[h], vcvtq_f32_s32(s), scales4(scale + 4 * h));
		}
		scale += 16;
	}
	const vf gain = vdupq_n_f32(x->scale[0] * w->gain);
	NC_UNROLL for (int h = 0; h < 4; h++)
		store4(dst + 16 * b + 4 * h, vmulq_f32(gain, sum[h]), r1 - 16 * b - 4 * h);
}

NC_NEON void nc_ternary_gemv_neon(float *dst, const nc_ternary *w, const nc_act *x, int64_t r0,
                                  int64_t r1)
{
	for (int64_t b = r0 / 16; b < (r1 + 15) / 16; b++)
		gemv_rows(dst, w, x, b, r1);
}

/* GEMM: panels of up to 4 tokens, whose four activations of a step fill one vector, a lane
 * per token; against one block: 16 accumulators. */
enum { PANEL = 4 };

#define TOKEN(t)                                                              \
	if (T > t) {                                                              \
		NC_UNROLL for (int h = 0; h < 4; h++) sdot(acc[t][h], code[h], v, t); \
	}

/* gemm_tile: block b against T tokens; partial is its part of s->sum. */
NC_NEON NC_INLINE void gemm_tile(const int T, const gemm_step *s, int64_t b, float *partial)
{
	const nc_ternary *w = s->w;
	const int64_t tiles = (w->cols + 15) / 16, per_group = (w->group + 15) / 16;
	const int64_t first = s->g0 * per_group;
	const uint8_t *tile = w->tiles + (b * tiles + first) * 64;
	const uint16_t *scale = w->scales + (b * s->groups + s->g0) * 16;
	const int8_t *panel = s->panel + first * 16 * T;
	const int32_t *start = s->start + s->g0 * T;
	const uint8x16_t mask = vdupq_n_u8(3);
	vf sum[PANEL][4];
	NC_UNROLL for (int t = 0; t < T; t++)
		NC_UNROLL for (int h = 0; h < 4; h++)
			sum[t][h] = s->g0 ? vld1q_f32(partial + 16 * t + 4 * h) : vdupq_n_f32(0);
	for (int64_t g = s->g0; g < s->g1; g++) {
		int64_t n = tiles - g * per_group < per_group ? tiles - g * per_group : per_group;
		vi acc[PANEL][4];
		NC_UNROLL for (int t = 0; t < T; t++)
			NC_UNROLL for (int h = 0; h < 4; h++) acc[t][h] = vdupq_n_s32(start[t]);
		start += T;
		NC_NOUNROLL for (; n > 0; n--)
		{
			uint8x16_t w4[4];
			NC_UNROLL for (int h = 0; h < 4; h++) w4[h] = vld1q_u8(tile + 16 * h);
			NC_UNROLL for (int c = 0; c < 4; c++)
			{
				int8_t step[16]; /* 4*T bytes of it are read below */
				int8x16_t v, code[4];
				if (T == 4) {
					v = vld1q_s8(panel + 16 * c);
				} else { /* a full load would pass the end of the panel */
					memcpy(step, panel + 4 * T * c, 4 * T);
					memset(step + 4 * T, 0, 16 - 4 * T);
					v = vld1q_s8(step);
				}
				NC_UNROLL for (int h = 0; h < 4; h++)
				{
					code[h] = vreinterpretq_s8_u8(vandq_u8(w4[h], mask));
					w4[h] = vshrq_n_u8(w4[h], 2);
				}
				TOKEN(0)
				TOKEN(1)
				TOKEN(2)
				TOKEN(3)
			}
			panel += 16 * T;
			tile += 64;
		}
		NC_UNROLL for (int h = 0; h < 4; h++)
		{
			vf f = scales4(scale + 4 * h);
			NC_UNROLL for (int t = 0; t < T; t++)
				sum[t][h] = vfmaq_f32(sum[t][h], vcvtq_f32_s32(acc[t][h]), f);
		}
		scale += 16;
	}
	NC_UNROLL for (int t = 0; t < T; t++)
		NC_UNROLL for (int h = 0; h < 4; h++)
		{
			if (s->g1 < s->groups)
				vst1q_f32(partial + 16 * t + 4 * h, sum[t][h]);
			else
				store4(s->dst + t * s->ldd + 16 * b + 4 * h,
				       vmulq_f32(vdupq_n_f32(s->gain[t]), sum[t][h]), s->r1 - 16 * b - 4 * h);
		}
}

#define GEMM_TILE(T)                                                                           \
	NC_NEON static __attribute__((noinline)) void gemm_tile_##T(const gemm_step *s)            \
	{                                                                                          \
		for (int64_t b = s->b; b < s->end; b++)                                                \
			gemm_tile(T, s, b, s->sum + (b - s->b) * T * 16);                                  \
	}
GEMM_TILE(1)
GEMM_TILE(2)
GEMM_TILE(3)
GEMM_TILE(4)

NC_NEON void nc_ternary_gemm_neon(float *dst, int64_t ldd, const nc_ternary *w, const nc_act *x,
                                  int64_t r0, int64_t r1, uint8_t *scratch)
{
	static gemm_tile_fn *const tile[PANEL + 1] = {NULL, gemm_tile_1, gemm_tile_2, gemm_tile_3,
	                                              gemm_tile_4};
	gemm_panels(tile, PANEL, dst, ldd, w, x, r0, r1, scratch);
}
#endif
