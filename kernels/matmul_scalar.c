/* Matrix products over vec_scalar.h. */
#include "nc.h"

#include "vec_scalar.h"

#define MM_NAME nc_matmul_scalar
#define MM_TARGET
#define MM_FN VF_FN
#define MM_ROWS 1
#define MM_VECS 1

VF_FN vf vf_round_bf16(vf x)
{
	VF_EACH
	{
		uint32_t u;
		memcpy(&u, &x.v[i], 4);
		u = (u & 0x7fffffff) > 0x7f800000 ? u | 0x400000 : u + 0x7fff + (u >> 16 & 1);
		u &= 0xffff0000;
		memcpy(&x.v[i], &u, 4);
	}
	return x;
}

#include "matmul_f32.h"
#include "matmul.h"
