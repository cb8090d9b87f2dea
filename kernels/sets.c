/* The table of variants: which ISA each set takes its families of ops from. */
#include "nc.h"
#include "nc_float.h"

const struct nc_set nc_set_scalar = {NC_TERNARY_OPS(scalar), NC_Q8_OPS(scalar),
                                     NC_FLOAT_OPS_SCALAR};

#if defined(__x86_64__)
const struct nc_set nc_set_avx2 = {NC_TERNARY_OPS(avx2), NC_Q8_OPS(avx2), NC_FLOAT_OPS_AVX2};
const struct nc_set nc_set_avxvnni = {NC_TERNARY_OPS(avxvnni), NC_Q8_OPS(avxvnni),
                                      NC_FLOAT_OPS_AVX2};
const struct nc_set nc_set_avx512vnni256 = {NC_TERNARY_OPS(avx512vnni256), NC_Q8_OPS(avx512vnni),
                                            NC_FLOAT_OPS_AVX2};
const struct nc_set nc_set_avx512vnni = {NC_TERNARY_OPS(avx512vnni), NC_Q8_OPS(avx512vnni),
                                         NC_FLOAT_OPS_AVX512};
#elif defined(__aarch64__)
const struct nc_set nc_set_neon = {NC_TERNARY_OPS(neon), NC_Q8_OPS(neon), NC_FLOAT_OPS_NEON};
#endif
