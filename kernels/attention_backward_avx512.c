/* The backward of attention over vec_avx512.h. */
#include "nc_float.h"

#if defined(__x86_64__)
#include "vec_avx512.h"
#include "float_math.h"

#define AB_NAME nc_attention_backward_avx512
#define AB_TARGET VF_ENTRY
#define AB_FN VF_FN
#define AB_K 1
enum { AB_ROWS = 4, AB_VECS = 4 };

#include "attention_backward.h"
#endif
