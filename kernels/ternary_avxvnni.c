/* Ternary ops with the VEX-coded 256-bit VPDPBUSD of CPUs that have no AVX-512. */
#if defined(__x86_64__)
#define NC_TARGET NC_AVXVNNI
#define NC_NAME(op) nc_##op##_avxvnni
#define DOT(acc, w, x) _mm256_dpbusd_avx_epi32(acc, w, x)
#define GEMV_BLOCKS 2
#define GEMV_CHUNK INT64_MAX /* 32-bit lanes hold a whole group */
#define GEMM_CHUNK INT64_MAX
#define WIDEN(a) (a)
#define FOLD(a, b) _mm256_add_epi32(_mm256_slli_epi32(a, 2), b)
#include "ternary_256.h"
#endif
