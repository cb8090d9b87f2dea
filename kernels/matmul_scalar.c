/* Matrix products over vec_scalar.h. */
#include "nc.h"

#include "vec_scalar.h"

#define MM_NAME nc_matmul_scalar
#define MM_TARGET
#define MM_FN VF_FN
#define MM_ROWS 1
#define MM_VECS 1

#include "matmul_f32.h"
#include "matmul.h"
