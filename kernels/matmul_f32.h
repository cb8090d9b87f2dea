/* matmul_f32.h: the loads of matmul.h for panels of float32. */

enum { MM_K = 1 };

MM_FN vf mm_load(const nc_operand *o, int64_t at, int64_t n, const int type)
{
	if (type == NC_BF16) {
		const uint16_t *p = (const uint16_t *)o->data + at;
		return n == 16 ? vf_bf16(p) : vf_bf16n(p, n);
	}
	const float *p = (const float *)o->data + at;
	vf x = n == 16 ? vf_load(p) : vf_loadn(p, n);
	return type == NC_F32_ROUNDED ? vf_round_bf16(x) : x;
}

MM_FN vf mm_along(const nc_operand *o, int64_t i, int64_t k, int64_t n, const int type)
{
	return mm_load(o, i * o->stride + k, n, type);
}

MM_FN vf mm_across(const nc_operand *o, int64_t k, int64_t nk, int64_t i, int64_t n, const int type)
{
	(void)nk;
	return mm_load(o, k * o->stride + i, n, type);
}

MM_FN vf mm_dot(vf a, vf b, vf c) { return vf_fma(a, b, c); }
