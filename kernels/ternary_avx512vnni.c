/* Ternary ops with 512-bit VPDPBUSD: 64 products of a code (u8) and an activation (s8) a step.
 *
 * One load is one tile: 16 rows in the 16 lanes, four groups of four columns in
 * the bit pairs. A dot product of codes is too large by the sum of the activations;
 * accumulators start at minus that sum.
 */
#include "nc.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "ternary_gemm.h"

#define NC_TARGET NC_AVX512VNNI

typedef __m512i vi;
typedef __m512 vf;

NC_TARGET NC_INLINE vi broadcast4(const void *p)
{
	int32_t v;
	memcpy(&v, p, 4);
	return _mm512_set1_epi32(v);
}

NC_TARGET NC_INLINE vf scales16(const uint16_t *p)
{
	return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}

NC_TARGET NC_INLINE __mmask16 row_mask(int64_t rows)
{
	return rows >= 16 ? 0xffff : (__mmask16)((1u << rows) - 1);
}

NC_TARGET float nc_quantize_avx512vnni(int8_t *q, int64_t qlen, int32_t *sums, const float *x,
                                       int64_t n, int64_t group)
{
	const vi abs = _mm512_set1_epi32(0x7fffffff);
	vi top0 = _mm512_setzero_si512(), top1 = top0;
	int64_t i = 0;
	for (; i + 32 <= n; i += 32) {
		top0 = _mm512_max_epu32(top0, _mm512_and_si512(_mm512_loadu_si512(x + i), abs));
		top1 = _mm512_max_epu32(top1, _mm512_and_si512(_mm512_loadu_si512(x + i + 16), abs));
	}
	for (; i < n; i += 16)
		top0 = _mm512_max_epu32(
			top0, _mm512_and_si512(_mm512_maskz_loadu_epi32(row_mask(n - i), x + i), abs));
	uint32_t bits = _mm512_reduce_max_epu32(_mm512_max_epu32(top0, top1));
	float a;
	if (!nc_quantize_scale(&a, bits, q, qlen, sums, n, group))
		return a;
	const vf scale = _mm512_set1_ps(a);
	const vi lo = _mm512_set1_epi32(-127), hi = _mm512_set1_epi32(127);
	for (int64_t g = 0, at = 0; at < n; g++) {
		int64_t end = at + group < n ? at + group : n;
		vi sum = _mm512_setzero_si512();
		for (; at < end; at += 16) {
			__mmask16 m = row_mask(end - at);
			vi v = _mm512_cvtps_epi32(_mm512_div_ps(_mm512_maskz_loadu_ps(m, x + at), scale));
			v = _mm512_max_epi32(_mm512_min_epi32(v, hi), lo);
			sum = _mm512_add_epi32(sum, v);
			_mm512_mask_cvtepi32_storeu_epi8(q + at, m, v);
		}
		at = end;
		sums[g] = _mm512_reduce_add_epi32(sum);
	}
	memset(q + n, 0, (size_t)(qlen - n));
	return a;
}

/* gemv_block: one block against one token. Codes are masked, not shifted down: the
 * sums of columns 4-7, 8-11 and 12-15 are 4, 16 and 64 times too large until the end
 * of the group. Tiles are read as one stream, over the end of the block into the
 * next and of the matrix into whatever follows it in memory: two streams or a
 * shorter reach cost a third of the bandwidth beyond the caches. */
NC_TARGET NC_INLINE void gemv_block(float *dst, const nc_ternary *w, const nc_act *x, int64_t b,
                                    int64_t r1)
{
	const int64_t tiles = (w->cols + 15) / 16, groups = x->groups;
	const int64_t per_group = (w->group + 15) / 16;
	const uint8_t *tile = w->tiles + b * tiles * 64;
	const uint16_t *scale = w->scales + b * groups * 16;
	const int8_t *q = x->q;
	const vi m0 = _mm512_set1_epi8(0x03), m1 = _mm512_set1_epi8(0x0c), m2 = _mm512_set1_epi8(0x30),
			 m3 = _mm512_set1_epi8((char)0xc0);
	vf sum = _mm512_setzero_ps();
	for (int64_t g = 0; g < groups; g++) {
		int64_t n = tiles - g * per_group < per_group ? tiles - g * per_group : per_group;
		vi s0 = _mm512_set1_epi32(-x->sums[g]), s1 = _mm512_setzero_si512(), s2 = s1, s3 = s1;
	NC_NOUNROLL for (int64_t t = 0; t < n; t++)
		{
			vi v = _mm512_loadu_si512(tile);
			_mm_prefetch((const char *)tile + NC_PREFETCH, _MM_HINT_T0);
			s0 = _mm512_dpbusd_epi32(s0, _mm512_and_si512(v, m0), broadcast4(q));
			s1 = _mm512_dpbusd_epi32(s1, _mm512_and_si512(v, m1), broadcast4(q + 4));
			s2 = _mm512_dpbusd_epi32(s2, _mm512_and_si512(v, m2), broadcast4(q + 8));
			s3 = _mm512_dpbusd_epi32(s3, _mm512_and_si512(v, m3), broadcast4(q + 12));
			q += 16;
			tile += 64;
		}
		s2 = _mm512_add_epi32(s2, _mm512_srai_epi32(s3, 2));
		s1 = _mm512_add_epi32(s1, _mm512_srai_epi32(s2, 2));
		s0 = _mm512_add_epi32(s0, _mm512_srai_epi32(s1, 2));
		sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s0), scales16(scale), sum);
		scale += 16;
	}
	_mm512_mask_storeu_ps(dst + 16 * b, row_mask(r1 - 16 * b),
	                      _mm512_mul_ps(_mm512_set1_ps(x->scale[0] * w->gain), sum));
}

NC_TARGET void nc_ternary_gemv_avx512vnni(float *dst, const nc_ternary *w, const nc_act *x,
                                          int64_t r0, int64_t r1)
{
	for (int64_t b = r0 / 16; 16 * b < r1; b++)
		gemv_block(dst, w, x, b, r1);
}

/* GEMM: panels of up to 8 tokens against 2 blocks, 16 accumulators. A panel is
 * the tokens' activations as [cols/4][T][4], so that broadcasts read one stream. */
enum { PANEL = 8 };

/* dot2 adds to two accumulators the products of codes w0, w1 and the activations at a. It is
 * assembly so that the order, and with it the number of live registers, is the
 * same from every compiler: both spill accumulators when left to reorder. */
NC_TARGET NC_INLINE void dot2(vi *acc0, vi *acc1, vi w0, vi w1, const int8_t *a)
{
	vi x;
	__asm__ volatile("vpbroadcastd %5, %2\n\t"
	                 "vpdpbusd %2, %3, %0\n\t"
	                 "vpdpbusd %2, %4, %1"
	                 : "+v"(*acc0), "+v"(*acc1), "=&v"(x)
	                 : "v"(w0), "v"(w1), "m"(*(const int32_t(*)[1])a));
}

/* gemm_tile: R blocks from s->b against T tokens. */
NC_TARGET NC_INLINE void gemm_tile(const int R, const int T, const gemm_step *s)
{
	const nc_ternary *w = s->w;
	const int64_t tiles = (w->cols + 15) / 16, per_group = (w->group + 15) / 16;
	const int64_t pitch = tiles * 64, first = s->g0 * per_group;
	const uint8_t *tile = w->tiles + s->b * pitch + first * 64;
	const uint16_t *scale = w->scales + (s->b * s->groups + s->g0) * 16;
	const int8_t *panel = s->panel + first * 16 * T;
	const int32_t *start = s->start + s->g0 * T;
	const vi mask = _mm512_set1_epi8(3);
	vf sum[2 * PANEL];
	NC_UNROLL for (int i = 0; i < R * T; i++)
		sum[i] = s->g0 ? _mm512_loadu_ps(s->sum + 16 * i) : _mm512_setzero_ps();
	for (int64_t g = s->g0; g < s->g1; g++) {
		int64_t n = tiles - g * per_group < per_group ? tiles - g * per_group : per_group;
		vi acc[2][PANEL];
		NC_UNROLL for (int t = 0; t < T; t++)
		{
			acc[0][t] = _mm512_set1_epi32(start[t]);
			if (R == 2)
				acc[1][t] = acc[0][t];
		}
		start += T;
		NC_NOUNROLL for (int64_t i = 0; i < n; i++)
		{
			vi v0 = _mm512_loadu_si512(tile), v1 = v0;
			if (R == 2)
				v1 = _mm512_loadu_si512(tile + pitch);
			NC_UNROLL for (int c = 0; c < 4; c++)
			{
				vi w0 = _mm512_and_si512(v0, mask), w1 = _mm512_and_si512(v1, mask);
				NC_UNROLL for (int t = 0; t < T; t++)
				{
					const int8_t *a = panel + 4 * (c * T + t);
					if (R == 2)
						dot2(&acc[0][t], &acc[1][t], w0, w1, a);
					else
						acc[0][t] = _mm512_dpbusd_epi32(acc[0][t], w0, broadcast4(a));
				}
				v0 = _mm512_srli_epi16(v0, 2);
				v1 = _mm512_srli_epi16(v1, 2);
			}
			panel += 16 * T;
			tile += 64;
		}
		vf s0 = scales16(scale), s1 = s0;
		if (R == 2)
			s1 = scales16(scale + s->groups * 16);
		scale += 16;
		NC_UNROLL for (int t = 0; t < T; t++)
		{
			sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[0][t]), s0, sum[t]);
			if (R == 2)
				sum[T + t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[1][t]), s1, sum[T + t]);
		}
	}
	if (s->g1 < s->groups) {
		NC_UNROLL for (int i = 0; i < R * T; i++) _mm512_storeu_ps(s->sum + 16 * i, sum[i]);
		return;
	}
	NC_UNROLL for (int r = 0; r < R; r++)
		NC_UNROLL for (int t = 0; t < T; t++)
			_mm512_mask_storeu_ps(s->dst + t * s->ldd + 16 * (s->b + r),
			                      row_mask(s->r1 - 16 * (s->b + r)),
			                      _mm512_mul_ps(_mm512_set1_ps(s->gain[t]), sum[r * T + t]));
}

#define GEMM_TILE(T)                                                                           \
	NC_TARGET static __attribute__((noinline)) void gemm_tile_##T(const gemm_step *s)          \
	{                                                                                          \
		if (s->end - s->b == 2)                                                                \
			gemm_tile(2, T, s);                                                                \
		else                                                                                   \
			gemm_tile(1, T, s);                                                                \
	}
GEMM_TILE(1)
GEMM_TILE(2)
GEMM_TILE(3)
GEMM_TILE(4)
GEMM_TILE(5)
GEMM_TILE(6)
GEMM_TILE(7)
GEMM_TILE(8)

NC_TARGET void nc_ternary_gemm_avx512vnni(float *dst, int64_t ldd, const nc_ternary *w,
                                          const nc_act *x, int64_t r0, int64_t r1, uint8_t *scratch)
{
	static gemm_tile_fn *const tile[PANEL + 1] = {
		NULL, gemm_tile_1, gemm_tile_2, gemm_tile_3, gemm_tile_4, gemm_tile_5, gemm_tile_6,
		gemm_tile_7, gemm_tile_8};
	gemm_panels(tile, PANEL, dst, ldd, w, x, r0, r1, scratch);
}
#endif
