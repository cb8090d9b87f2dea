/* The float ops over vec_neon.h. */
#include "nc_float.h"

#if defined(__aarch64__)
#include "vec_neon.h"
#include "float_math.h"
#include "float_norm.h"
#include "float_vector.h"
#include "float_dense.h"
#include "float_attention.h"
#include "float_backward.h"
#include "float_loss.h"
#include "float_latent.h"
#endif
