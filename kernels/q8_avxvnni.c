/* Q8_0 products with the VEX-coded 256-bit VPDPBUSD of CPUs that have no AVX-512. */
#if defined(__x86_64__)
#define NC_TARGET NC_AVXVNNI
#define NC_NAME(op) nc_##op##_avxvnni
#define Q8_MAX 4
#define DOT4(u, s) _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), u, s)
#include "q8_256.h"
#endif
