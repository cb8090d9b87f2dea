/* Q8_0 products for CPUs without VNNI. */
#if defined(__x86_64__)
#define NC_TARGET NC_AVX2
#define NC_NAME(op) nc_##op##_avx2
#define Q8_MAX 4
#define DOT4_START(a) _mm256_set1_epi16(1)
#define DOT4(ones, v, a) \
	_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(a, v)), ones)
#include "q8_256.h"
enum { Q8_ROWS = 2, Q8_GEMV_ROWS = 4 };
#define q8_tile q8_tile_256
#include "q8_tiles.h"
#endif
