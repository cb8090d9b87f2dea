/* Matrix products over vec_avx512.h. */
#include "nc.h"

#if defined(__x86_64__)
#include "vec_avx512.h"

#define MM_NAME nc_matmul_avx512
#define MM_TARGET NC_AVX512
#define MM_FN NC_INLINE MM_TARGET
#define MM_ROWS 8
#define MM_VECS 3

#include "matmul_f32.h"
#include "matmul.h"
#endif
