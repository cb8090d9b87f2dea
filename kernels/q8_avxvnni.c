/* Q8_0 products with the VEX-coded 256-bit VPDPBUSD of CPUs that have no AVX-512. */
#if defined(__x86_64__)
#define NC_TARGET NC_AVXVNNI
#define NC_NAME(op) nc_##op##_avxvnni
#define Q8_MAX 4
#define OFFSET _mm256_set1_epi8((char)0x80)
#define DOT4_START(a)                        \
	_mm256_sub_epi32(_mm256_setzero_si256(), \
	                 _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), OFFSET, a))
#define DOT4(start, v, a) _mm256_dpbusd_avx_epi32(start, _mm256_xor_si256(v, OFFSET), a)
#include "q8_256.h"
enum { Q8_ROWS = 2, Q8_GEMV_ROWS = 4 };
#define q8_tile q8_tile_256
#include "q8_tiles.h"
#endif
