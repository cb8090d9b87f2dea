/* float_backward.h: the backward of norm, gates and RoPE, and the dot product, over
 * vf; backward.go defines them. Include after vec_<isa>.h and float_math.h. */

VF_ENTRY float VF_NAME(dot)(const float *x, const float *y, int64_t n)
{
	vf s = vf_zero();
	int64_t i = 0;
	for (; i + 16 <= n; i += 16)
		s = vf_fma(vf_load(x + i), vf_load(y + i), s);
	if (n -= i)
		s = vf_fma(vf_loadn(x + i, n), vf_loadn(y + i, n), s);
	return vf_sum(s);
}

VF_FN vf vf_load_some(const float *p, int64_t n) { return n == 16 ? vf_load(p) : vf_loadn(p, n); }
VF_FN void vf_store_some(float *p, vf a, int64_t n)
{
	if (n == 16)
		vf_store(p, a);
	else
		vf_storen(p, a, n);
}

/* n elements, 16 or the fewer at the end, of the two passes of RMSNorm's backward. */
VF_FN void vf_norm_sums(vf *squares, vf *dot, const float *dy, const float *x, const float *weight,
                        int64_t n)
{
	vf v = vf_load_some(x, n), g = vf_load_some(dy, n);
	if (weight)
		g = vf_mul(g, vf_load_some(weight, n));
	*squares = vf_fma(v, v, *squares);
	*dot = vf_fma(g, v, *dot);
}

VF_FN void vf_norm_grads(float *dx, float *dweight, const float *dy, const float *x,
                         const float *weight, vf inv, vf c, int64_t n)
{
	vf v = vf_load_some(x, n), d = vf_load_some(dy, n), g = d;
	if (weight)
		g = vf_mul(g, vf_load_some(weight, n));
	if (dweight)
		vf_store_some(dweight, vf_fma(d, vf_mul(v, inv), vf_load_some(dweight, n)), n);
	vf_store_some(dx, vf_mul(vf_fma(c, v, g), inv), n);
}

VF_ENTRY void VF_NAME(rmsnorm_backward)(float *dx, float *dweight, const float *dy, const float *x,
                                        const float *weight, float eps, int64_t n)
{
	int64_t n16 = n & ~(int64_t)15, rest = n & 15, i;
	vf squares = vf_zero(), dot = vf_zero();
	for (i = 0; i < n16; i += 16)
		vf_norm_sums(&squares, &dot, dy + i, x + i, weight ? weight + i : NULL, 16);
	if (rest)
		vf_norm_sums(&squares, &dot, dy + i, x + i, weight ? weight + i : NULL, rest);
	float inv = 1 / __builtin_sqrtf(vf_sum(squares) / (float)n + eps);
	float c = -(vf_sum(dot) / (float)n * inv * inv);
	vf vi = vf_set1(inv), vc = vf_set1(c);
	for (i = 0; i < n16; i += 16)
		vf_norm_grads(dx + i, dweight ? dweight + i : NULL, dy + i, x + i,
		              weight ? weight + i : NULL, vi, vc, 16);
	if (rest)
		vf_norm_grads(dx + i, dweight ? dweight + i : NULL, dy + i, x + i,
		              weight ? weight + i : NULL, vi, vc, rest);
}

/* max(x, 0) without -0; NaN stays. */
VF_FN vf vf_relu(vf x) { return vf_add(vf_select_gt(vf_zero(), x, vf_zero(), x), vf_zero()); }

VF_FN void vf_swiglu_grads(vf *dgate, vf *dup, vf dy, vf gate, vf up)
{
	const vf one = vf_set1(1);
	vf e = vf_div(one, vf_exp_neg1(gate));
	*dup = vf_mul(dy, vf_mul(gate, e));
	*dgate = vf_mul(vf_mul(dy, up), vf_mul(e, vf_fma(gate, vf_sub(one, e), one)));
}

VF_FN void vf_relu2glu_grads(vf *dgate, vf *dup, vf dy, vf gate, vf up)
{
	vf r = vf_relu(gate);
	*dup = vf_mul(dy, vf_mul(r, r));
	*dgate = vf_mul(vf_mul(dy, up), vf_add(r, r));
}

#define VF_GLU_BACKWARD(name, f)                                                              \
	VF_ENTRY void VF_NAME(name)(float *dgate, float *dup, const float *dy, const float *gate, \
	                            const float *up, int64_t n)                                   \
	{                                                                                         \
		vf g, u;                                                                              \
		int64_t i = 0;                                                                        \
		for (; i + 16 <= n; i += 16) {                                                        \
			f(&g, &u, vf_load(dy + i), vf_load(gate + i), vf_load(up + i));                   \
			vf_store(dgate + i, g);                                                           \
			vf_store(dup + i, u);                                                             \
		}                                                                                     \
		if (n -= i) {                                                                         \
			f(&g, &u, vf_loadn(dy + i, n), vf_loadn(gate + i, n), vf_loadn(up + i, n));       \
			vf_storen(dgate + i, g, n);                                                       \
			vf_storen(dup + i, u, n);                                                         \
		}                                                                                     \
	}

VF_GLU_BACKWARD(swiglu_backward, vf_swiglu_grads)
VF_GLU_BACKWARD(relu2glu_backward, vf_relu2glu_grads)
#undef VF_GLU_BACKWARD

VF_ENTRY void VF_NAME(relu2_backward)(float *dx, const float *dy, const float *x, int64_t n)
{
	int64_t i = 0;
	for (; i + 16 <= n; i += 16) {
		vf r = vf_relu(vf_load(x + i));
		vf_store(dx + i, vf_mul(vf_load(dy + i), vf_add(r, r)));
	}
	if (n -= i) {
		vf r = vf_relu(vf_loadn(x + i, n));
		vf_storen(dx + i, vf_mul(vf_loadn(dy + i, n), vf_add(r, r)), n);
	}
}
