/* nc_float.h: the float ops (dense, norm, act, softmax, rope, attention) of each ISA,
 * as initialisers of struct nc_set for the table in sets.c. */
#ifndef NANOCHAT_KERNELS_NC_FLOAT_H
#define NANOCHAT_KERNELS_NC_FLOAT_H

#include "nc.h"

#define NC_FLOAT_OPS_SCALAR .dense_gemv = NULL
#define NC_FLOAT_OPS_AVX2 .dense_gemv = NULL
#define NC_FLOAT_OPS_AVX512 .dense_gemv = NULL
#define NC_FLOAT_OPS_NEON .dense_gemv = NULL

#endif
