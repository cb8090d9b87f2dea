/* q8_256.h: products of Q8_0 weights and int8 activations on 256-bit vectors: one block is
 * one vector. Included once by each ISA's file, which defines NC_TARGET, NC_NAME and
 * Q8_MAX (q8_tiles.h), and
 *
 *   DOT4(u, s)     the eight sums of four products of u (u8, to 128) and s (s8, to ±127)
 *
 * The instructions multiply unsigned by signed: |w| times q with the sign of w, which
 * is exact for every w, -128 too, as |q| is at most 127. */
#include <immintrin.h>

#include "nc.h"

enum { Q8_ROWS = 2, Q8_GEMV_ROWS = 4 };

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

NC_TARGET NC_INLINE void q8_tile(const int R, const int T, float *dst, int64_t ldd,
                                 const uint8_t *row, int64_t pitch, int64_t cols, const int8_t *q,
                                 int64_t stride, const float *scale)
{
	__m256 acc[16];
	const uint8_t *ahead = row + (R * pitch > NC_PREFETCH ? R * pitch : NC_PREFETCH);
	NC_UNROLL for (int i = 0; i < R * T; i++) acc[i] = _mm256_setzero_ps();
	NC_NOUNROLL for (int64_t k = 0; k < cols; k += 32)
	{
		__m256i v[4], u[4];
		__m256 d[4];
		NC_UNROLL for (int r = 0; r < R; r++)
		{
			const uint8_t *b = row + r * pitch;
			v[r] = _mm256_loadu_si256((const void *)(b + 2));
			u[r] = _mm256_abs_epi8(v[r]);
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
			NC_UNROLL for (int r = 0; r < R; r++)
			{
				__m256 p = _mm256_cvtepi32_ps(DOT4(u[r], _mm256_sign_epi8(a, v[r])));
				acc[t * R + r] = _mm256_fmadd_ps(p, d[r], acc[t * R + r]);
			}
		}
	}
	NC_UNROLL for (int i = 0; i < R * T; i++) dst[i / R * ldd + i % R] = scale[i / R] * q8_sum(acc[i]);
}

#include "q8_tiles.h"
