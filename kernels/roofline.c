/* Loops that run at the limits of the machine: arithmetic without memory, reads
 * without arithmetic. Each returns something that depends on all its work. */
#include "nc.h"
#include "roofline.h"

/* Chains enough to hide the latency of every unit: 2 units of 5 cycles and spare. */
enum { CHAINS = 12 };

/* hide keeps the compiler from knowing a register's value, hence from folding the loop. */
#define HIDE(x) __asm__ volatile("" : "+" NC_VREG(x))

#if defined(__x86_64__)
#include <immintrin.h>
#define NC_VREG "v"

#define LOOP(attr, name, type, zero, one, op, reduce)                     \
	attr int64_t name(int64_t n)                                          \
	{                                                                     \
		type acc[CHAINS], a = one, b = one;                               \
		NC_UNROLL for (int j = 0; j < CHAINS; j++)                        \
		{                                                                 \
			acc[j] = zero;                                                \
			HIDE(acc[j]);                                                 \
		}                                                                 \
		HIDE(a);                                                          \
		HIDE(b);                                                          \
		for (int64_t i = 0; i < n; i++) {                                 \
			NC_UNROLL for (int j = 0; j < CHAINS; j++)                    \
			{                                                             \
				acc[j] = op;                                              \
				HIDE(acc[j]);                                             \
			}                                                             \
		}                                                                 \
		int64_t sum = 0;                                                  \
		NC_UNROLL for (int j = 0; j < CHAINS; j++) sum += reduce(acc[j]); \
		return sum;                                                       \
	}

#define AVX512BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

#define LOW512(v) _mm_cvtsi128_si32(_mm512_castsi512_si128(v))
#define LOW512PS(v) LOW512(_mm512_castps_si512(v))
#define LOW256(v) _mm_cvtsi128_si32(_mm256_castsi256_si128(v))
#define LOW256PS(v) LOW256(_mm256_castps_si256(v))

LOOP(NC_AVX512VNNI, nc_peak_vpdpbusd512, __m512i, _mm512_setzero_si512(), _mm512_set1_epi8(1),
     _mm512_dpbusd_epi32(acc[j], a, b), LOW512)
LOOP(NC_AVX512, nc_peak_fma512, __m512, _mm512_setzero_ps(), _mm512_set1_ps(1),
     _mm512_fmadd_ps(a, b, acc[j]), LOW512PS)
LOOP(AVX512BF16, nc_peak_vdpbf16ps512, __m512, _mm512_setzero_ps(), _mm512_set1_ps(1),
     _mm512_dpbf16_ps(acc[j], (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b)),
     LOW512PS)
LOOP(NC_AVXVNNI, nc_peak_vpdpbusd256, __m256i, _mm256_setzero_si256(), _mm256_set1_epi8(1),
     _mm256_dpbusd_avx_epi32(acc[j], a, b), LOW256)
/* What a CPU without VNNI does instead: multiply-add pairs, then add the pairs' sums. */
LOOP(NC_AVX2, nc_peak_vpmaddubsw256, __m256i, _mm256_setzero_si256(), _mm256_set1_epi8(1),
     _mm256_add_epi16(acc[j], _mm256_maddubs_epi16(a, b)), LOW256)
LOOP(NC_AVX2, nc_peak_fma256, __m256, _mm256_setzero_ps(), _mm256_set1_ps(1),
     _mm256_fmadd_ps(a, b, acc[j]), LOW256PS)

#define READ(attr, name, type, load, xor, zero, low, bytes)       \
	attr int64_t name(const uint8_t *p, int64_t n)                \
	{                                                             \
		type a = zero, b = zero, c = zero, d = zero;              \
		for (int64_t i = 0; i + 4 * bytes <= n; i += 4 * bytes) { \
			a = xor(a, load((const void *)(p + i)));              \
			b = xor(b, load((const void *)(p + i + bytes)));      \
			c = xor(c, load((const void *)(p + i + 2 * bytes)));  \
			d = xor(d, load((const void *)(p + i + 3 * bytes)));  \
		}                                                         \
		return low(xor(xor(a, b), xor(c, d)));                    \
	}

READ(NC_AVX512, nc_read512, __m512i, _mm512_loadu_si512, _mm512_xor_si512, _mm512_setzero_si512(),
     LOW512, 64)
READ(NC_AVX2, nc_read256, __m256i, _mm256_loadu_si256, _mm256_xor_si256, _mm256_setzero_si256(),
     LOW256, 32)

#elif defined(__aarch64__)
#include <arm_neon.h>
#define NC_VREG "w"

NC_NEON int64_t nc_peak_sdot(int64_t n)
{
	int32x4_t acc[CHAINS];
	int8x16_t a = vdupq_n_s8(1), b = vdupq_n_s8(1);
	NC_UNROLL for (int j = 0; j < CHAINS; j++) acc[j] = vdupq_n_s32(0);
	HIDE(a);
	HIDE(b);
	for (int64_t i = 0; i < n; i++) {
		NC_UNROLL for (int j = 0; j < CHAINS; j++)
		{
			acc[j] = vdotq_s32(acc[j], a, b);
			HIDE(acc[j]);
		}
	}
	int64_t sum = 0;
	NC_UNROLL for (int j = 0; j < CHAINS; j++) sum += vgetq_lane_s32(acc[j], 0);
	return sum;
}

int64_t nc_peak_fma128(int64_t n)
{
	float32x4_t acc[CHAINS], a = vdupq_n_f32(1), b = vdupq_n_f32(1);
	NC_UNROLL for (int j = 0; j < CHAINS; j++) acc[j] = vdupq_n_f32(0);
	HIDE(a);
	HIDE(b);
	for (int64_t i = 0; i < n; i++) {
		NC_UNROLL for (int j = 0; j < CHAINS; j++)
		{
			acc[j] = vfmaq_f32(acc[j], a, b);
			HIDE(acc[j]);
		}
	}
	float sum = 0;
	NC_UNROLL for (int j = 0; j < CHAINS; j++) sum += vgetq_lane_f32(acc[j], 0);
	return sum > 0;
}

int64_t nc_read128(const uint8_t *p, int64_t n)
{
	uint8x16_t a = vdupq_n_u8(0), b = a, c = a, d = a;
	for (int64_t i = 0; i + 64 <= n; i += 64) {
		a = veorq_u8(a, vld1q_u8(p + i));
		b = veorq_u8(b, vld1q_u8(p + i + 16));
		c = veorq_u8(c, vld1q_u8(p + i + 32));
		d = veorq_u8(d, vld1q_u8(p + i + 48));
	}
	return vgetq_lane_u8(veorq_u8(veorq_u8(a, b), veorq_u8(c, d)), 0);
}
#endif
