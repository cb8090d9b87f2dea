/* ternary_256.h: ternary ops on 256-bit vectors. A tile is two halves of 8 rows. Included
 * once by each ISA's file, which defines:
 *
 *   NC_TARGET           its target attribute
 *   NC_NAME(op)         nc_<op>_<isa>
 *   DOT(acc, w, x)      acc plus products of codes w (u8) and activations x (s8)
 *   GEMV_BLOCKS         1 or 2: blocks at a time in GEMV, by latency of DOT and registers
 *   GEMV_CHUNK          tiles after which DOT's lanes may overflow on codes 0x0c unshifted
 *   GEMM_CHUNK          the same for codes shifted down
 *   FOLD(a, b)          int32 lanes of 4a+b, for sums a and b by DOT
 *   WIDEN(a)            int32 lanes of a, for a sum a by DOT
 */
#include <immintrin.h>

#include "nc.h"
#include "ternary_gemm.h"

typedef __m256i vi;
typedef __m256 vf;

/* HOLD fixes the value and the order of an accumulator's steps. Left alone, gcc regroups
 * the sums of an unrolled loop and spills what no longer fits 16 registers. */
#if defined(__clang__)
#define HOLD(v) (void)0
#else
#define HOLD(v) __asm__ volatile("" : "+v"(v))
#endif

NC_TARGET NC_INLINE vi broadcast4(const void *p)
{
	int32_t v;
	memcpy(&v, p, 4);
	return _mm256_set1_epi32(v);
}

NC_TARGET NC_INLINE vf scales8(const uint16_t *p)
{
	return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
}

NC_TARGET NC_INLINE vi load(const void *p) { return _mm256_loadu_si256(p); }

/* store8 writes the first rows values of v. */
NC_TARGET NC_INLINE void store8(float *dst, vf v, int64_t rows)
{
	const vi lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
	if (rows >= 8)
		_mm256_storeu_ps(dst, v);
	else if (rows > 0)
		_mm256_maskstore_ps(dst, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)rows), lane), v);
}

/* quantize8 writes up to 8 values and returns them. */
NC_TARGET NC_INLINE vi quantize8(int8_t *q, const float *x, int64_t n, vf scale)
{
	float buffer[8] = {0};
	if (n < 8) {
		memcpy(buffer, x, (size_t)n * 4);
		x = buffer;
	}
	vi v = _mm256_cvtps_epi32(_mm256_div_ps(_mm256_loadu_ps(x), scale));
	v = _mm256_min_epi32(v, _mm256_set1_epi32(127));
	v = _mm256_max_epi32(v, _mm256_set1_epi32(-127));
	__m128i h = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
	int64_t bytes = _mm_cvtsi128_si64(_mm_packs_epi16(h, h));
	if (n < 8)
		memcpy(q, &bytes, (size_t)n);
	else
		memcpy(q, &bytes, 8);
	return v;
}

NC_TARGET float NC_NAME(quantize)(int8_t *q, int64_t qlen, int32_t *sums, const float *x, int64_t n,
                                  int64_t group)
{
	const vi abs = _mm256_set1_epi32(0x7fffffff);
	vi top = _mm256_setzero_si256();
	uint32_t lanes[8], bits = 0; /* of max|x|: non-negative floats order like integers */
	int64_t i = 0;
	for (; i + 8 <= n; i += 8)
		top = _mm256_max_epu32(top, _mm256_and_si256(load(x + i), abs));
	_mm256_storeu_si256((void *)lanes, top);
	for (int l = 0; l < 8; l++)
		bits = lanes[l] > bits ? lanes[l] : bits;
	for (; i < n; i++) {
		uint32_t b;
		memcpy(&b, x + i, 4);
		b &= 0x7fffffff;
		bits = b > bits ? b : bits;
	}
	float a;
	if (!nc_quantize_scale(&a, bits, q, qlen, sums, n, group))
		return a;
	const vf scale = _mm256_set1_ps(a);
	for (int64_t g = 0, at = 0; at < n; g++) {
		int64_t end = at + group < n ? at + group : n;
		vi sum = _mm256_setzero_si256();
		for (; at + 8 <= end; at += 8)
			sum = _mm256_add_epi32(sum, quantize8(q + at, x + at, 8, scale));
		if (at < end)
			sum = _mm256_add_epi32(sum, quantize8(q + at, x + at, end - at, scale));
		at = end;
		_mm256_storeu_si256((void *)lanes, sum);
		uint32_t total = 0;
		for (int l = 0; l < 8; l++)
			total += lanes[l];
		sums[g] = (int32_t)total;
	}
	memset(q + n, 0, (size_t)(qlen - n));
	return a;
}

/* gemv_rows: R blocks against one token. Two accumulators per half: columns 0-3 and 8-11
 * as they are, columns 4-7 and 12-15 four times too large; the group's sum is four
 * times too large until it is shifted down. One block is one stream to prefetch, two
 * are prefetched a pair ahead. */
NC_TARGET NC_INLINE void gemv_rows(const int R, float *dst, const nc_ternary *w, const nc_act *x,
                                   int64_t b, int64_t r1)
{
	const int64_t tiles = (w->cols + 15) / 16, groups = x->groups;
	const int64_t per_group = (w->group + 15) / 16, pitch = tiles * 64;
	const int64_t ahead = R == 1 ? NC_PREFETCH : R * pitch;
	const uint8_t *tile = w->tiles + b * pitch;
	const uint16_t *scale = w->scales + b * groups * 16;
	const int8_t *q = x->q;
	const vi m0 = _mm256_set1_epi8(0x03), m1 = _mm256_set1_epi8(0x0c);
	vf sum[4];
	NC_UNROLL for (int h = 0; h < 2 * R; h++) sum[h] = _mm256_setzero_ps();
	for (int64_t g = 0; g < groups; g++) {
		int64_t left = tiles - g * per_group < per_group ? tiles - g * per_group : per_group;
		vi total[4];
		NC_UNROLL for (int h = 0; h < 2 * R; h++) total[h] = _mm256_set1_epi32(-4 * x->sums[g]);
		while (left > 0) {
			int64_t n = left < GEMV_CHUNK ? left : GEMV_CHUNK;
			vi lo[4], hi[4];
			left -= n;
			NC_UNROLL for (int h = 0; h < 2 * R; h++) lo[h] = hi[h] = _mm256_setzero_si256();
			NC_NOUNROLL for (; n > 0; n--)
			{
				vi x0 = broadcast4(q), x1 = broadcast4(q + 4), x2 = broadcast4(q + 8),
				   x3 = broadcast4(q + 12);
				NC_UNROLL for (int h = 0; h < 2 * R; h++)
				{
					vi v = load(tile + h / 2 * pitch + h % 2 * 32);
					vi u = _mm256_srli_epi16(v, 4);
					lo[h] = DOT(lo[h], _mm256_and_si256(v, m0), x0);
					hi[h] = DOT(hi[h], _mm256_and_si256(v, m1), x1);
					HOLD(lo[h]);
					HOLD(hi[h]);
					lo[h] = DOT(lo[h], _mm256_and_si256(u, m0), x2);
					hi[h] = DOT(hi[h], _mm256_and_si256(u, m1), x3);
					HOLD(lo[h]);
					HOLD(hi[h]);
				}
				NC_UNROLL for (int r = 0; r < R; r++)
					_mm_prefetch((const char *)tile + r * pitch + ahead, _MM_HINT_T0);
				q += 16;
				tile += 64;
			}
			NC_UNROLL for (int h = 0; h < 2 * R; h++)
				total[h] = _mm256_add_epi32(total[h], FOLD(lo[h], hi[h]));
		}
		NC_UNROLL for (int h = 0; h < 2 * R; h++)
		{
			vf s = scales8(scale + h / 2 * groups * 16 + h % 2 * 8);
			sum[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_srai_epi32(total[h], 2)), s, sum[h]);
		}
		scale += 16;
	}
	const vf gain = _mm256_set1_ps(x->scale[0] * w->gain);
	NC_UNROLL for (int h = 0; h < 2 * R; h++)
		store8(dst + 16 * b + 8 * h, _mm256_mul_ps(gain, sum[h]), r1 - 16 * b - 8 * h);
}

NC_TARGET void NC_NAME(ternary_gemv)(float *dst, const nc_ternary *w, const nc_act *x, int64_t r0,
                                     int64_t r1)
{
	const int64_t end = (r1 + 15) / 16;
	int64_t b = r0 / 16;
	for (; b + GEMV_BLOCKS <= end; b += GEMV_BLOCKS)
		gemv_rows(GEMV_BLOCKS, dst, w, x, b, r1);
	for (; b < end; b++)
		gemv_rows(1, dst, w, x, b, r1);
}

/* GEMM: panels of up to 4 tokens against one block, 8 accumulators. */
enum { PANEL = 4 };

/* gemm_tile: block b against T tokens; partial is its part of s->sum. */
NC_TARGET NC_INLINE void gemm_tile(const int T, const gemm_step *s, int64_t b, float *partial)
{
	const nc_ternary *w = s->w;
	const int64_t tiles = (w->cols + 15) / 16, per_group = (w->group + 15) / 16;
	const int64_t first = s->g0 * per_group;
	const uint8_t *tile = w->tiles + (b * tiles + first) * 64;
	const uint16_t *scale = w->scales + (b * s->groups + s->g0) * 16;
	const int8_t *panel = s->panel + first * 16 * T;
	const int32_t *start = s->start + s->g0 * T;
	const vi mask = _mm256_set1_epi8(3);
	vf sum[2][PANEL];
	NC_UNROLL for (int t = 0; t < T; t++)
	{
		sum[0][t] = s->g0 ? _mm256_loadu_ps(partial + 16 * t) : _mm256_setzero_ps();
		sum[1][t] = s->g0 ? _mm256_loadu_ps(partial + 16 * t + 8) : _mm256_setzero_ps();
	}
	for (int64_t g = s->g0; g < s->g1; g++) {
		int64_t left = tiles - g * per_group < per_group ? tiles - g * per_group : per_group;
		vi total[2][PANEL];
		NC_UNROLL for (int t = 0; t < T; t++)
			total[0][t] = total[1][t] = _mm256_set1_epi32(start[t]);
		start += T;
		while (left > 0) {
			int64_t n = left < GEMM_CHUNK ? left : GEMM_CHUNK;
			vi acc[2][PANEL];
			left -= n;
			NC_UNROLL for (int t = 0; t < T; t++) acc[0][t] = acc[1][t] = _mm256_setzero_si256();
			NC_NOUNROLL for (; n > 0; n--)
			{
				vi v0 = load(tile), v1 = load(tile + 32);
				NC_UNROLL for (int c = 0; c < 4; c++)
				{
					vi w0 = _mm256_and_si256(v0, mask), w1 = _mm256_and_si256(v1, mask);
					NC_UNROLL for (int t = 0; t < T; t++)
					{
						vi a = broadcast4(panel + 4 * (c * T + t));
						acc[0][t] = DOT(acc[0][t], w0, a);
						acc[1][t] = DOT(acc[1][t], w1, a);
						HOLD(acc[0][t]);
						HOLD(acc[1][t]);
					}
					v0 = _mm256_srli_epi16(v0, 2);
					v1 = _mm256_srli_epi16(v1, 2);
				}
				panel += 16 * T;
				tile += 64;
			}
			NC_UNROLL for (int t = 0; t < T; t++)
			{
				total[0][t] = _mm256_add_epi32(total[0][t], WIDEN(acc[0][t]));
				total[1][t] = _mm256_add_epi32(total[1][t], WIDEN(acc[1][t]));
			}
		}
		vf s0 = scales8(scale), s1 = scales8(scale + 8);
		scale += 16;
		NC_UNROLL for (int t = 0; t < T; t++)
		{
			sum[0][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[0][t]), s0, sum[0][t]);
			sum[1][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[1][t]), s1, sum[1][t]);
		}
	}
	NC_UNROLL for (int t = 0; t < T; t++)
	{
		if (s->g1 < s->groups) {
			_mm256_storeu_ps(partial + 16 * t, sum[0][t]);
			_mm256_storeu_ps(partial + 16 * t + 8, sum[1][t]);
		} else {
			vf gain = _mm256_set1_ps(s->gain[t]);
			float *dst = s->dst + t * s->ldd + 16 * b;
			store8(dst, _mm256_mul_ps(gain, sum[0][t]), s->r1 - 16 * b);
			store8(dst + 8, _mm256_mul_ps(gain, sum[1][t]), s->r1 - 16 * b - 8);
		}
	}
}

#define GEMM_TILE(T)                                                                           \
	NC_TARGET static __attribute__((noinline)) void gemm_tile_##T(const gemm_step *s)          \
	{                                                                                          \
		for (int64_t b = s->b; b < s->end; b++)                                                \
			gemm_tile(T, s, b, s->sum + (b - s->b) * T * 16);                                  \
	}
GEMM_TILE(1)
GEMM_TILE(2)
GEMM_TILE(3)
GEMM_TILE(4)

NC_TARGET void NC_NAME(ternary_gemm)(float *dst, int64_t ldd, const nc_ternary *w, const nc_act *x,
                                     int64_t r0, int64_t r1, uint8_t *scratch)
{
	static gemm_tile_fn *const tile[PANEL + 1] = {NULL, gemm_tile_1, gemm_tile_2, gemm_tile_3,
	                                              gemm_tile_4};
	gemm_panels(tile, PANEL, dst, ldd, w, x, r0, r1, scratch);
}
