/* Matrix products over vec_neon.h. */
#include "nc.h"

#if defined(__aarch64__)
#include "vec_neon.h"

#define MM_NAME nc_matmul_neon
#define MM_TARGET NC_NEON
#define MM_FN NC_INLINE MM_TARGET
#define MM_ROWS 6
#define MM_VECS 1

#include "matmul_f32.h"
#include "matmul.h"
#endif
