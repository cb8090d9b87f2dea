/* Ternary ops for CPUs without VNNI: VPMADDUBSW sums pairs of products into 16 bits,
 * which a few tiles fill. A pair is at most 2*3*127 = 762 (code 3 included), or 3048 with
 * codes in bits 2-3; two of each per tile in GEMV, four in GEMM. */
#if defined(__x86_64__)
#define NC_TARGET NC_AVX2
#define NC_NAME(op) nc_##op##_avx2
#define DOT(acc, w, x) _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x))
#define GEMV_BLOCKS 1
#define GEMV_CHUNK 5  /* 5 * 2 * 3048 < 2^15 */
#define GEMM_CHUNK 10 /* 10 * 4 * 762 < 2^15 */
#define WIDEN(a) _mm256_madd_epi16(a, _mm256_set1_epi16(1))
#define FOLD(a, b) _mm256_add_epi32(_mm256_madd_epi16(a, _mm256_set1_epi16(4)), WIDEN(b))
#include "ternary_256.h"
#endif
