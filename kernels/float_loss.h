/* float_loss.h: cross-entropy of a row of logits over vf; loss.go defines it. Include
 * after vec_<isa>.h, float_math.h and float_vector.h. */

/* The terms of lossTerms in loss.go. */
typedef struct {
	vf m, p, a, b, mean, entropy, inv_cap;
} vf_loss;

VF_FN vf vf_loss_grad(const vf_loss *t, vf y, vf target, const int capped, const int entropy)
{
	vf k = entropy ? vf_fma(t->entropy, vf_sub(y, t->mean), t->a) : t->a;
	vf e = vf_mul(vf_exp_low(vf_sub(y, t->m)), t->p);
	vf g = vf_sub(vf_fma(e, k, t->b), target);
	if (capped) {
		vf c = vf_mul(y, t->inv_cap);
		g = vf_mul(g, vf_nfma(c, c, vf_set1(1)));
	}
	return g;
}

VF_FN void vf_loss_grads_as(const vf_loss *t, float *dst, const float *y, int64_t n,
                            const int capped, const int entropy)
{
	int64_t i = 0;
	const vf zero = vf_zero();
	for (; i + 16 <= n; i += 16)
		vf_store(dst + i, vf_loss_grad(t, vf_load(y + i), zero, capped, entropy));
	if (n -= i)
		vf_storen(dst + i, vf_loss_grad(t, vf_loadn(y + i, n), zero, capped, entropy), n);
}

VF_WORKER void VF_NAME(loss_grads)(const vf_loss *t, float *dst, const float *y, int64_t n,
                                   int capped, int entropy)
{
	if (capped && entropy)
		vf_loss_grads_as(t, dst, y, n, 1, 1);
	else if (capped)
		vf_loss_grads_as(t, dst, y, n, 1, 0);
	else if (entropy)
		vf_loss_grads_as(t, dst, y, n, 0, 1);
	else
		vf_loss_grads_as(t, dst, y, n, 0, 0);
}

VF_FN vf vf_cap(vf x, vf cap) { return vf_mul(cap, vf_tanh(vf_div(x, cap))); }

/* Adds the terms of 16 logits to the sums of exp(y-m) and of exp(y-m)*y. */
VF_FN void vf_loss_sum(vf *sum, vf *weighted, vf y, vf e)
{
	*sum = vf_add(*sum, e);
	*weighted = vf_fma(e, y, *weighted);
}

/* The sums over capped logits; these go to dst unless it is NULL. */
VF_WORKER void VF_NAME(loss_sums_capped)(float *sums, float *dst, const float *z, float cap,
                                         float m, int64_t n)
{
	vf sum = vf_zero(), weighted = sum, c = vf_set1(cap), mm = vf_set1(m);
	int64_t i = 0;
	for (; i + 16 <= n; i += 16) {
		vf y = vf_cap(vf_load(z + i), c);
		if (dst)
			vf_store(dst + i, y);
		vf_loss_sum(&sum, &weighted, y, vf_exp_low(vf_sub(y, mm)));
	}
	if (n -= i) {
		vf y = vf_cap(vf_loadn(z + i, n), c);
		if (dst)
			vf_storen(dst + i, y, n);
		vf_loss_sum(&sum, &weighted, y, vf_keep(vf_exp_low(vf_sub(y, mm)), n, vf_zero()));
	}
	sums[0] = vf_sum(sum);
	sums[1] = vf_sum(weighted);
}

VF_WORKER void VF_NAME(loss_sums)(float *sums, const float *y, float m, int64_t n)
{
	vf sum = vf_zero(), weighted = sum, mm = vf_set1(m);
	int64_t i = 0;
	for (; i + 16 <= n; i += 16) {
		vf x = vf_load(y + i);
		vf_loss_sum(&sum, &weighted, x, vf_exp_low(vf_sub(x, mm)));
	}
	if (n -= i) {
		vf x = vf_loadn(y + i, n);
		vf_loss_sum(&sum, &weighted, x, vf_keep(vf_exp_low(vf_sub(x, mm)), n, vf_zero()));
	}
	sums[0] = vf_sum(sum);
	sums[1] = vf_sum(weighted);
}

/* The largest capped logit; they go to dst unless it is NULL. */
VF_WORKER float VF_NAME(loss_top)(float *dst, const float *z, float cap, int64_t n)
{
	const vf low = vf_set1(-__builtin_inff());
	vf m = low, c = vf_set1(cap);
	for (int64_t i = 0; i < n; i += 16) {
		int64_t w = n - i < 16 ? n - i : 16;
		vf y = vf_cap(w == 16 ? vf_load(z + i) : vf_loadn(z + i, w), c);
		if (dst && w == 16)
			vf_store(dst + i, y);
		else if (dst)
			vf_storen(dst + i, y, w);
		m = vf_max(m, w == 16 ? y : vf_keep(y, w, low));
	}
	return vf_top(m);
}

VF_ENTRY void VF_NAME(cross_entropy)(float *out, float *dst, const float *z, int64_t n,
                                     int64_t target, const nc_loss *o)
{
	const int capped = o->cap != 0, bounded = o->cap > 0 && o->cap <= 32;
	float yt = capped ? vf_first(vf_cap(vf_set1(z[target]), vf_set1(o->cap))) : z[target];
	float m = o->cap, sums[2];
	if (!capped) {
		m = vf_max_of(z, n);
		VF_NAME(loss_sums)(sums, z, m, n);
	} else if (bounded || !dst) {
		if (!bounded)
			m = VF_NAME(loss_top)(NULL, z, o->cap, n);
		VF_NAME(loss_sums_capped)(sums, dst, z, o->cap, m, n);
	} else {
		m = VF_NAME(loss_top)(dst, z, o->cap, n);
		VF_NAME(loss_sums)(sums, dst, m, n);
	}
	float lse = vf_log_sum(m, sums[0]), inv = 1 / sums[0], mean = sums[1] * inv;
	out[0] = lse - yt;
	out[1] = lse;
	out[2] = lse - mean;
	if (!dst)
		return;
	const vf_loss t = {
		.m = vf_set1(m),
		.p = vf_set1(inv * o->scale),
		.a = vf_set1(vf_fma1(2 * o->z, lse, 1)),
		.b = vf_set1(-(o->smoothing / (float)n) * o->scale),
		.mean = vf_set1(mean),
		.entropy = vf_set1(o->entropy),
		.inv_cap = vf_set1(capped ? 1 / o->cap : 0),
	};
	VF_NAME(loss_grads)(&t, dst, capped ? dst : z, n, capped, o->entropy != 0);
	vf share = vf_set1((1 - o->smoothing) * o->scale);
	dst[target] = vf_first(vf_loss_grad(&t, vf_set1(yt), share, capped, o->entropy != 0));
}
