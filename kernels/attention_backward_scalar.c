/* The backward of attention over vec_scalar.h. */
#include "nc_float.h"

#include "vec_scalar.h"
#include "float_math.h"

#define AB_NAME nc_attention_backward_scalar
#define AB_TARGET VF_ENTRY
#define AB_FN VF_FN
#define AB_K 1
enum { AB_ROWS = 1, AB_VECS = 1 };

#include "attention_backward.h"
