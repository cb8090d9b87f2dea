/* Matrix products over vec_avx2.h. */
#include "nc.h"

#if defined(__x86_64__)
#include "vec_avx2.h"

#define MM_NAME nc_matmul_avx2
#define MM_TARGET NC_AVX2
#define MM_FN NC_INLINE MM_TARGET
#define MM_ROWS 6
#define MM_VECS 1

#include "matmul_f32.h"
#include "matmul.h"
#endif
