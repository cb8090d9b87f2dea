/* float_vector.h: elementwise ops, norm, softmax, argmax, top-k and RoPE over vf.
 * vector.go, softmax.go and rope.go define them. Include after vec_<isa>.h,
 * float_math.h and float_norm.h. */

/* Each op is a function of vectors, applied by a loop with a zero-padded tail. */
#define VF_OP1(name, f)                                                \
	VF_ENTRY void VF_NAME(name)(float *dst, const float *x, int64_t n) \
	{                                                                  \
		int64_t i = 0;                                                 \
		for (; i + 16 <= n; i += 16)                                   \
			vf_store(dst + i, f(vf_load(x + i)));                      \
		if (n -= i)                                                    \
			vf_storen(dst + i, f(vf_loadn(x + i, n)), n);              \
	}

#define VF_OP2(name, f)                                                                \
	VF_ENTRY void VF_NAME(name)(float *dst, const float *x, const float *y, int64_t n) \
	{                                                                                  \
		int64_t i = 0;                                                                 \
		for (; i + 16 <= n; i += 16)                                                   \
			vf_store(dst + i, f(vf_load(x + i), vf_load(y + i)));                      \
		if (n -= i)                                                                    \
			vf_storen(dst + i, f(vf_loadn(x + i, n), vf_loadn(y + i, n)), n);          \
	}

/* x > 0 or NaN: x squared; else 0. */
VF_FN vf vf_relu2(vf x)
{
	x = vf_select_gt(vf_zero(), x, vf_zero(), x);
	return vf_mul(x, x);
}
VF_FN vf vf_relu2glu(vf gate, vf up) { return vf_mul(vf_relu2(gate), up); }
VF_FN vf vf_swiglu(vf gate, vf up) { return vf_mul(vf_div(gate, vf_exp_neg1(gate)), up); }
VF_FN vf vf_sigmoid(vf x) { return vf_div(vf_set1(1), vf_exp_neg1(x)); }

VF_OP1(relu2, vf_relu2)
VF_OP1(sigmoid, vf_sigmoid)
VF_OP2(add, vf_add)
VF_OP2(swiglu, vf_swiglu)
VF_OP2(relu2glu, vf_relu2glu)
#undef VF_OP1
#undef VF_OP2

VF_ENTRY void VF_NAME(rmsnorm)(float *dst, const float *x, const float *weight, float eps,
                               int64_t n)
{
	vf_rmsnorm(dst, x, weight, eps, n);
}

VF_ENTRY void VF_NAME(axpy)(float *dst, float a, const float *x, int64_t n)
{
	vf s = vf_set1(a);
	int64_t i = 0;
	for (; i + 16 <= n; i += 16)
		vf_store(dst + i, vf_fma(s, vf_load(x + i), vf_load(dst + i)));
	if (n -= i)
		vf_storen(dst + i, vf_fma(s, vf_loadn(x + i, n), vf_loadn(dst + i, n)), n);
}

VF_ENTRY void VF_NAME(scale)(float *dst, float a, const float *x, int64_t n)
{
	vf s = vf_set1(a);
	int64_t i = 0;
	for (; i + 16 <= n; i += 16)
		vf_store(dst + i, vf_mul(s, vf_load(x + i)));
	if (n -= i)
		vf_storen(dst + i, vf_mul(s, vf_loadn(x + i, n)), n);
}

VF_ENTRY void VF_NAME(softcap)(float *dst, float c, const float *x, int64_t n)
{
	vf s = vf_set1(c);
	int64_t i = 0;
	for (; i + 16 <= n; i += 16)
		vf_store(dst + i, vf_mul(s, vf_tanh(vf_div(vf_load(x + i), s))));
	if (n -= i)
		vf_storen(dst + i, vf_mul(s, vf_tanh(vf_div(vf_loadn(x + i, n), s))), n);
}

/* The largest value that is not NaN, or -Inf. */
VF_FN float vf_max_of(const float *x, int64_t n)
{
	const vf low = vf_set1(-__builtin_inff());
	vf m = low;
	int64_t i = 0;
	for (; i + 16 <= n; i += 16)
		m = vf_max(m, vf_load(x + i));
	if (n -= i)
		m = vf_max(m, vf_keep(vf_loadn(x + i, n), n, low));
	return vf_top(m);
}

/* The sum of exp(x-m); the terms go to dst unless it is NULL. */
VF_FN float vf_exp_sum(float *dst, const float *x, float m, int64_t n)
{
	vf s = vf_zero(), mm = vf_set1(m);
	int64_t i = 0;
	for (; i + 16 <= n; i += 16) {
		vf e = vf_exp_low(vf_sub(vf_load(x + i), mm));
		s = vf_add(s, e);
		if (dst)
			vf_store(dst + i, e);
	}
	if (n -= i) {
		vf e = vf_keep(vf_exp_low(vf_sub(vf_loadn(x + i, n), mm)), n, vf_zero());
		s = vf_add(s, e);
		if (dst)
			vf_storen(dst + i, e, n);
	}
	return vf_sum(s);
}

VF_ENTRY void VF_NAME(softmax)(float *dst, const float *x, int64_t n)
{
	float m = vf_max_of(x, n);
	VF_NAME(scale)(dst, 1 / vf_exp_sum(dst, x, m, n), dst, n);
}

VF_ENTRY float VF_NAME(logsumexp)(const float *x, int64_t n)
{
	float m = vf_max_of(x, n);
	if (__builtin_isinf(m))
		return m;
	return vf_log_sum(m, vf_exp_sum(NULL, x, m, n));
}

VF_ENTRY int64_t VF_NAME(argmax)(const float *x, int64_t n)
{
	if (n == 0)
		return -1;
	float m = vf_max_of(x, n);
	vf mm = vf_set1(m);
	int64_t i = 0;
	if (m == -__builtin_inff())
		return 0;
	for (; i + 16 <= n; i += 16) {
		uint32_t b = vf_eq_bits(vf_load(x + i), mm);
		if (b)
			return i + __builtin_ctz(b);
	}
	while (x[i] != m)
		i++;
	return i;
}

/* Grows with x; -0 and +0 are equal, every NaN is 0. */
VF_FN uint32_t vf_order_key(float x)
{
	uint32_t u;
	x += 0.0f;
	memcpy(&u, &x, 4);
	if (x != x)
		return 0;
	return u >> 31 ? ~u : u | 0x80000000u;
}

/* Index a comes after index b in the order of TopK. */
VF_FN int vf_after(const float *x, int32_t a, int32_t b)
{
	uint32_t p = vf_order_key(x[a]), q = vf_order_key(x[b]);
	return p < q || (p == q && a > b);
}

VF_FN void vf_sift(int32_t *heap, const float *x, int64_t i, int64_t n)
{
	int32_t v = heap[i];
	for (int64_t c; (c = 2 * i + 1) < n; i = c) {
		c += c + 1 < n && vf_after(x, heap[c + 1], heap[c]);
		if (!vf_after(x, heap[c], v))
			break;
		heap[i] = heap[c];
	}
	heap[i] = v;
}

VF_ENTRY void VF_NAME(topk)(int32_t *dst, int64_t k, const float *x, int64_t n)
{
	if (k == 0)
		return;
	for (int64_t i = 0; i < k; i++)
		dst[i] = (int32_t)i;
	for (int64_t i = k / 2 - 1; i >= 0; i--)
		vf_sift(dst, x, i, k);
	for (int64_t i = k; i < n;) {
		/* Sixteen values that do not exceed the root are passed over at once; a later
		 * equal one never replaces it. A NaN root is replaced by any number. */
		float root = x[dst[0]];
		int64_t end = i + 16 <= n ? i + 16 : n;
		if (end == i + 16 && root == root && !vf_gt_bits(vf_load(x + i), vf_set1(root))) {
			i = end;
			continue;
		}
		for (; i < end; i++)
			if (vf_after(x, dst[0], (int32_t)i)) {
				dst[0] = (int32_t)i;
				vf_sift(dst, x, 0, k);
			}
	}
	for (int64_t m = k - 1; m > 0; m--) {
		int32_t t = dst[0];
		dst[0] = dst[m];
		dst[m] = t;
		vf_sift(dst, x, 0, m);
	}
}

/* Turns pairs by the angles, times sign, which is 1 or -1. */
VF_FN void VF_NAME(rotate)(float *x, int64_t heads, int64_t head_dim, const float *cos,
                           const float *sin, int64_t half, int32_t interleaved, float sign)
{
	for (; heads > 0; heads--, x += head_dim) {
		int64_t i = 0;
		if (interleaved) {
			for (; i < half; i++) {
				float a = x[2 * i], b = x[2 * i + 1], s = sign * sin[i];
				x[2 * i] = vf_fma1(a, cos[i], -(b * s));
				x[2 * i + 1] = vf_fma1(a, s, b * cos[i]);
			}
			continue;
		}
		for (; i + 16 <= half; i += 16) {
			vf a = vf_load(x + i), b = vf_load(x + half + i), c = vf_load(cos + i),
			   s = vf_mul(vf_set1(sign), vf_load(sin + i));
			vf_store(x + i, vf_fma(a, c, vf_sub(vf_set1(-0.0f), vf_mul(b, s))));
			vf_store(x + half + i, vf_fma(a, s, vf_mul(b, c)));
		}
		for (; i < half; i++) {
			float a = x[i], b = x[half + i], s = sign * sin[i];
			x[i] = vf_fma1(a, cos[i], -(b * s));
			x[half + i] = vf_fma1(a, s, b * cos[i]);
		}
	}
}

VF_ENTRY void VF_NAME(rope)(float *x, int64_t heads, int64_t head_dim, const float *cos,
                            const float *sin, int64_t half, int32_t interleaved)
{
	VF_NAME(rotate)(x, heads, head_dim, cos, sin, half, interleaved, 1);
}

VF_ENTRY void VF_NAME(rope_backward)(float *x, int64_t heads, int64_t head_dim, const float *cos,
                                     const float *sin, int64_t half, int32_t interleaved)
{
	VF_NAME(rotate)(x, heads, head_dim, cos, sin, half, interleaved, -1);
}
