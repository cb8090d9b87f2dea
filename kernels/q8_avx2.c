/* Q8_0 products for CPUs without VNNI. A pair is at most 2*128*127 = 32512 < 2^15. */
#if defined(__x86_64__)
#define NC_TARGET NC_AVX2
#define NC_NAME(op) nc_##op##_avx2
#define Q8_MAX 4
#define DOT4(u, s) _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1))
#include "q8_256.h"
#endif
