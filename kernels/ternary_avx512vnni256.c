/* The twin of ternary_avxvnni.c with the EVEX-coded 256-bit VPDPBUSD: the same source, so
 * testing one tests the other, and the choice on CPUs that clock down on 512 bits. */
#if defined(__x86_64__)
#define NC_TARGET NC_AVX512VNNI
#define NC_NAME(op) nc_##op##_avx512vnni256
#define DOT(acc, w, x) _mm256_dpbusd_epi32(acc, w, x)
#define GEMV_BLOCKS 2
#define GEMV_CHUNK INT64_MAX /* 32-bit lanes hold a whole group */
#define GEMM_CHUNK INT64_MAX
#define WIDEN(a) (a)
#define FOLD(a, b) _mm256_add_epi32(_mm256_slli_epi32(a, 2), b)
#include "ternary_256.h"
#endif
