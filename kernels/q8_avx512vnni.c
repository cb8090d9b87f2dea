/* Q8_0 products with 256-bit VPDPBUSD and the 32 registers of AVX-512: a block is 256 bits. */
#if defined(__x86_64__)
#define NC_TARGET NC_AVX512VNNI
#define NC_NAME(op) nc_##op##_avx512vnni
#define Q8_MAX 8
#define DOT4(u, s) _mm256_dpbusd_epi32(_mm256_setzero_si256(), u, s)
#include "q8_256.h"
#endif
