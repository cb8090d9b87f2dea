/* q8_256.h: a tile of Q8_0 weights by int8 activations on 256-bit vectors: one block is one
 * vector. Included once by each ISA's file, which defines NC_TARGET and
 *
 *   DOT4(start, v, a)   the eight sums of four products of weights v and activations a
 *   DOT4_START(a)       what DOT4 wants to know about a
 *
 * The instructions multiply unsigned by signed. Without VNNI that is |v| times a with the
 * sign of v: exact for every v, -128 too, as |a| is at most 127, and a pair is at
 * most 2*128*127 < 2^15. With VNNI it is v+128 times a, from minus 128 times the sum of
 * a on, which is shared by all rows. */
#include <immintrin.h>

#include "nc.h"

/* q8_sum: the lanes of a, 4 apart, then 2, then 1. */
NC_TARGET NC_INLINE float q8_sum(__m256 a)
{
	__m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
	s = _mm_add_ps(s, _mm_movehl_ps(s, s));
	return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

NC_TARGET NC_INLINE __m256 q8_scale(const uint8_t *block)
{
	uint16_t h;
	memcpy(&h, block, 2);
	return _mm256_cvtph_ps(_mm_set1_epi16((short)h));
}

NC_TARGET NC_INLINE void q8_tile_256(const int R, const int T, float *dst, int64_t ldd,
                                     const uint8_t *row, int64_t pitch, int64_t cols,
                                     const int8_t *q, int64_t stride, const float *scale)
{
	enum { MAX = 8 };
	__m256 acc[MAX];
	const uint8_t *ahead = row + (R * pitch > NC_PREFETCH ? R * pitch : NC_PREFETCH);
	NC_UNROLL for (int i = 0; i < R * T; i++) acc[i] = _mm256_setzero_ps();
	NC_NOUNROLL for (int64_t k = 0; k < cols; k += 32)
	{
		__m256i v[MAX];
		__m256 d[MAX];
		NC_UNROLL for (int r = 0; r < R; r++)
		{
			const uint8_t *b = row + r * pitch;
			v[r] = _mm256_loadu_si256((const void *)(b + 2));
			d[r] = q8_scale(b);
			if (T == 1) { /* in the order of memory, whatever the rows at hand */
				_mm_prefetch((const char *)ahead, _MM_HINT_T0);
				ahead += 34;
			}
		}
		row += 34;
		NC_UNROLL for (int t = 0; t < T; t++)
		{
			__m256i a = _mm256_loadu_si256((const void *)(q + t * stride + k));
			__m256i start = DOT4_START(a);
			NC_UNROLL for (int r = 0; r < R; r++)
			{
				__m256 p = _mm256_cvtepi32_ps(DOT4(start, v[r], a));
				acc[t * R + r] = _mm256_fmadd_ps(p, d[r], acc[t * R + r]);
			}
		}
	}
	NC_UNROLL for (int i = 0; i < R * T; i++) dst[i / R * ldd + i % R] = scale[i / R] * q8_sum(acc[i]);
}
