/* Q8_0 products with VPDPBUSD: on 256 bits for one token. For more, the lower half of a
 * 512-bit vector is a row's block and the upper half that of the next row, and
 * activations become unsigned by adding 128, which makes a sum of four products too
 * large by 128 times the sum of its weights: sums start at minus that. */
#include "nc.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define NC_TARGET NC_AVX512VNNI
#define NC_NAME(op) nc_##op##_avx512vnni
#define Q8_MAX 8
#define OFFSET _mm256_set1_epi8((char)0x80)
#define DOT4_START(a) \
	_mm256_sub_epi32(_mm256_setzero_si256(), _mm256_dpbusd_epi32(_mm256_setzero_si256(), OFFSET, a))
#define DOT4(start, v, a) _mm256_dpbusd_epi32(start, _mm256_xor_si256(v, OFFSET), a)
#include "q8_256.h"
enum { Q8_ROWS = 4, Q8_GEMV_ROWS = 8 };

/* q8_pair: 32 bytes at a below 32 bytes at b. */
NC_TARGET NC_INLINE __m512i q8_pair(const uint8_t *a, const uint8_t *b)
{
	return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const void *)a)),
	                          _mm256_loadu_si256((const void *)b), 1);
}

/* q8_scales: the half-precision numbers at a and b, eight lanes each. */
NC_TARGET NC_INLINE __m512 q8_scales(const uint8_t *a, const uint8_t *b)
{
	uint16_t x, y;
	memcpy(&x, a, 2);
	memcpy(&y, b, 2);
	__m256i h = _mm256_set1_epi16((short)x);
	return _mm512_cvtph_ps(_mm256_mask_set1_epi16(h, 0xff00, (short)y));
}

/* One row is a pair with itself. */
NC_TARGET NC_INLINE void q8_tile(const int R, const int T, float *dst, int64_t ldd,
                                 const uint8_t *row, int64_t pitch, int64_t cols, const int8_t *q,
                                 int64_t stride, const float *scale)
{
	if (T == 1) {
		q8_tile_256(R, T, dst, ldd, row, pitch, cols, q, stride, scale);
		return;
	}
	const int P = (R + 1) / 2;
	const int64_t second = R > 1 ? pitch : 0;
	const __m512i offset = _mm512_set1_epi8((char)0x80);
	__m512 acc[16];
	NC_UNROLL for (int i = 0; i < P * T; i++) acc[i] = _mm512_setzero_ps();
	NC_NOUNROLL for (int64_t k = 0; k < cols; k += 32)
	{
		__m512i v[2], start[2];
		__m512 d[2];
		NC_UNROLL for (int p = 0; p < P; p++)
		{
			const uint8_t *a = row + 2 * p * pitch, *b = a + second;
			v[p] = q8_pair(a + 2, b + 2);
			d[p] = q8_scales(a, b);
			start[p] = _mm512_sub_epi32(_mm512_setzero_si512(),
			                            _mm512_dpbusd_epi32(_mm512_setzero_si512(), offset, v[p]));
		}
		row += 34;
		NC_UNROLL for (int t = 0; t < T; t++)
		{
			__m512i x = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)(q + t * stride + k)));
			x = _mm512_xor_si512(x, offset);
			NC_UNROLL for (int p = 0; p < P; p++)
			{
				__m512 s = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(start[p], x, v[p]));
				acc[t * P + p] = _mm512_fmadd_ps(s, d[p], acc[t * P + p]);
			}
		}
	}
	NC_UNROLL for (int i = 0; i < P * T; i++)
	{
		float *to = dst + i / P * ldd + 2 * (i % P);
		to[0] = scale[i / P] * q8_sum(_mm512_castps512_ps256(acc[i]));
		if (R > 1)
			to[1] = scale[i / P] * q8_sum(_mm512_extractf32x8_ps(acc[i], 1));
	}
}

#include "q8_tiles.h"
#endif
