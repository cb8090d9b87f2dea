/* float_attention.h: the KV cache and attention over vf; attention.go defines them.
 * Include after vec_<isa>.h and float_math.h.
 *
 * The unit of work is a row: one query of one head. Rows that read the same KV
 * head go through its pages together, VF_ROWS_MAX at a time; their running sums
 * stay in dst. A few rows read a page as it is stored ("direct"); more rows share
 * a copy in f32 with the keys transposed ("copied"), so that scores of 16
 * positions stand in one vector and need no reduction across lanes. */

enum { VF_ROWS_MAX = 64, VF_DIRECT_MAX = 3 };

/* One head of a page. ks and vs are NULL for f16. nk and nv are the keys and values
 * that are read after it; its own at the end. */
typedef struct {
	const uint8_t *k, *v;
	const float *ks, *vs;
	const uint8_t *nk, *nv;
} vf_page;

VF_FN int64_t vf_head_bytes(const nc_kv *kv)
{
	int64_t n = 2 * NC_PAGE * kv->head_dim;
	return kv->type == NC_KVI8 ? n + 2 * 4 * NC_PAGE : 2 * n;
}

VF_FN vf_page vf_page_of(const nc_kv *kv, int64_t pos, int64_t head)
{
	int64_t n = NC_PAGE * kv->head_dim;
	const uint8_t *b = kv->slab + kv->pages[pos / NC_PAGE] * kv->page_bytes + kv->layer_offset +
	                   head * vf_head_bytes(kv);
	vf_page p = {.k = b, .v = b + 2 * n};
	if (kv->type == NC_KVI8) {
		p.v = b + n;
		p.ks = (const float *)(b + 2 * n);
		p.vs = p.ks + NC_PAGE;
	}
	p.nk = p.k;
	p.nv = p.v;
	return p;
}

/* Elements i.. of stored keys or values; n is 16, or fewer at the end of a head. */
VF_FN vf vf_stored(int32_t type, const uint8_t *p, int64_t i, int64_t n)
{
	if (type == NC_KVI8) {
		const int8_t *q = (const int8_t *)p + i;
		return n == 16 ? vf_i8(q) : vf_i8n(q, n);
	}
	const uint16_t *h = (const uint16_t *)p + i;
	return n == 16 ? vf_f16(h) : vf_f16n(h, n);
}

VF_FN float vf_quantize_kv(int8_t *q, const float *x, int64_t n)
{
	uint32_t m = 0;
	for (int64_t i = 0; i < n; i++) {
		uint32_t u;
		memcpy(&u, x + i, 4);
		u &= 0x7fffffff;
		m = u > m ? u : m;
	}
	float a;
	memcpy(&a, &m, 4);
	a /= 127;
	if (m >= 0x7f800000)
		a = 0;
	if (!(a > 0)) {
		for (int64_t i = 0; i < n; i++)
			q[i] = 0;
	} else {
		const vf s = vf_set1(a), top = vf_set1(127), low = vf_set1(-127),
				 magic = vf_set1(0x1.8p23f);
		for (int64_t i = 0; i < n; i += 16) {
			int64_t c = n - i < 16 ? n - i : 16;
			vf v = vf_div(c == 16 ? vf_load(x + i) : vf_loadn(x + i, c), s);
			v = vf_select_gt(v, top, top, vf_select_gt(low, v, low, v));
			float t[16];
			vf_store(t, vf_add(v, magic)); /* the low byte is the rounded value */
			for (int64_t j = 0; j < c; j++)
				memcpy(q + i + j, t + j, 1);
		}
	}
	if (m >= 0x7f800000) {
		m = 0x7fc00000;
		memcpy(&a, &m, 4);
	}
	return a;
}

VF_ENTRY void VF_NAME(kv_store)(const nc_kv *kv, int64_t pos, const float *k, const float *v)
{
	int64_t d = kv->head_dim, t = pos % NC_PAGE;
	for (int64_t h = 0; h < kv->heads; h++) {
		vf_page p = vf_page_of(kv, pos, h);
		for (int side = 0; side < 2; side++) {
			const float *x = (side ? v : k) + h * d;
			uint8_t *to = (uint8_t *)(side ? p.v : p.k);
			if (kv->type == NC_KVI8) {
				float a = vf_quantize_kv((int8_t *)to + t * d, x, d);
				memcpy((float *)(side ? p.vs : p.ks) + t, &a, 4);
				continue;
			}
			uint16_t *q = (uint16_t *)to + t * d;
			int64_t i = 0;
			for (; i + 16 <= d; i += 16)
				vf_store_f16(q + i, vf_load(x + i));
			if (i < d)
				vf_storen_f16(q + i, vf_loadn(x + i, d - i), d - i);
		}
	}
}

/* One block of rows on its way through the pages. d16 is head_dim rounded up. */
typedef struct {
	int64_t rows, d, d16;
	float scale;
	const float *q[VF_ROWS_MAX]; /* [d16] */
	float *o[VF_ROWS_MAX];       /* [d] */
	int64_t seen[VF_ROWS_MAX];   /* positions the row sees */
	float m[VF_ROWS_MAX], l[VF_ROWS_MAX];
} vf_block;

/* A decoded token meets each page once, and pages lie too far apart for the
 * hardware to foresee: reading a part of a page asks for the same part of the next
 * one. That is early enough for memory, and too much for the first cache: it goes to
 * the second. */
VF_FN void vf_prefetch(const uint8_t *p, int64_t bytes)
{
	for (int64_t i = 0; i < bytes; i += 64)
		__builtin_prefetch(p + i, 0, 2);
}

VF_FN int64_t vf_stored_bytes(int32_t type, int64_t n) { return type == NC_KVI8 ? n : 2 * n; }

/* Raw scores p[t] of q against the n keys of a page, sixteen at a time. next is
 * what to prefetch meanwhile. */
VF_FN void vf_scores_direct(int32_t type, float *p, const float *q, const uint8_t *k,
                            const uint8_t *next, int64_t n, int64_t d)
{
	for (int64_t t = 0; t < n; t += 16) {
		vf_prefetch(next + vf_stored_bytes(type, t * d), vf_stored_bytes(type, 16 * d));
		vf acc[16];
	NC_UNROLL
		for (int j = 0; j < 16; j++)
			acc[j] = vf_zero();
		if (t + 16 <= n) {
			for (int64_t i = 0; i < d; i += 16) {
				int64_t c = d - i < 16 ? d - i : 16;
				vf x = vf_load(q + i);
				if (c == 16) {
					NC_UNROLL
					for (int j = 0; j < 16; j++)
						acc[j] = vf_fma(x, vf_stored(type, k, (t + j) * d + i, 16), acc[j]);
				} else {
					for (int j = 0; j < 16; j++)
						acc[j] = vf_fma(x, vf_stored(type, k, (t + j) * d + i, c), acc[j]);
				}
			}
		} else {
			for (int j = 0; j < n - t; j++)
				for (int64_t i = 0; i < d; i += 16)
					acc[j] = vf_fma(vf_load(q + i),
					                vf_stored(type, k, (t + j) * d + i, d - i < 16 ? d - i : 16), acc[j]);
		}
		vf_store(p + t, vf_sums(acc));
	}
}

/* o += sum of w[t] times value t, for nv vectors from element i on; nv is a constant. */
VF_FN void vf_values_direct(int32_t type, int nv, float *o, const float *w, const uint8_t *v,
                            const uint8_t *next, int64_t n, int64_t d, int64_t i)
{
	vf acc[8];
	NC_UNROLL
	for (int j = 0; j < nv; j++)
		acc[j] = vf_load(o + i + 16 * j);
	for (int64_t t = 0; t < n; t++) {
		vf x = vf_set1(w[t]);
		vf_prefetch(next + vf_stored_bytes(type, t * d + i), vf_stored_bytes(type, 16 * nv));
		NC_UNROLL
		for (int j = 0; j < nv; j++)
			acc[j] = vf_fma(x, vf_stored(type, v, t * d + i + 16 * j, 16), acc[j]);
	}
	NC_UNROLL
	for (int j = 0; j < nv; j++)
		vf_store(o + i + 16 * j, acc[j]);
}

VF_FN void vf_all_values_direct(int32_t type, float *o, const float *w, const uint8_t *v,
                                const uint8_t *next, int64_t n, int64_t d)
{
	int64_t i = 0;
	for (; i + 128 <= d; i += 128)
		vf_values_direct(type, 8, o, w, v, next, n, d, i);
	for (; i + 64 <= d; i += 64)
		vf_values_direct(type, 4, o, w, v, next, n, d, i);
	for (; i + 16 <= d; i += 16)
		vf_values_direct(type, 1, o, w, v, next, n, d, i);
	if (i < d) {
		vf acc = vf_loadn(o + i, d - i);
		for (int64_t t = 0; t < n; t++)
			acc = vf_fma(vf_set1(w[t]), vf_stored(type, v, t * d + i, d - i), acc);
		vf_storen(o + i, acc, d - i);
	}
}

/* From raw scores in p to weights: scales them, moves row r's maximum, sum and
 * output on, and leaves in p what the values are multiplied by. n positions are seen. */
VF_WORKER void VF_NAME(weigh)(vf_block *b, int64_t r, float *p, const vf_page *page, int64_t n)
{
	const vf scale = vf_set1(b->scale), low = vf_set1(-__builtin_inff());
	vf s[NC_PAGE / 16], top = low;
	int vecs = (int)((n + 15) / 16);
	for (int j = 0; j < vecs; j++) {
		vf x = vf_load(p + 16 * j);
		if (page->ks)
			x = vf_mul(x, vf_load(page->ks + 16 * j));
		x = vf_mul(x, scale);
		if (n < 16 * j + 16)
			x = vf_keep(x, n - 16 * j, low);
		s[j] = x;
		top = vf_max(top, x);
	}
	float m = b->m[r], m1 = vf_top(top);
	m1 = m1 > m ? m1 : m;
	vf sum = vf_zero(), mm = vf_set1(m1);
	for (int j = 0; j < vecs; j++) {
		vf e = vf_exp_low(vf_sub(s[j], mm));
		sum = vf_add(sum, e);
		if (page->vs)
			e = vf_mul(e, vf_load(page->vs + 16 * j));
		vf_store(p + 16 * j, e);
	}
	float factor = 1; /* exp(0) exactly, unless the maximum moves */
	if (m1 != m) {
		vf c = vf_exp_low(vf_set1(m - m1));
		float *o = b->o[r];
		int64_t i = 0;
		for (; i + 16 <= b->d; i += 16)
			vf_store(o + i, vf_mul(vf_load(o + i), c));
		if (i < b->d)
			vf_storen(o + i, vf_mul(vf_loadn(o + i, b->d - i), c), b->d - i);
		factor = vf_first(c);
		b->m[r] = m1;
	}
	b->l[r] = vf_fma1(b->l[r], factor, vf_sum(sum));
}

/* Keys transposed to kt [d16][NC_PAGE] and values to v [NC_PAGE][d16], in f32 with
 * zeros behind element d, for the first n positions, rounded up to 16. */
VF_FN void vf_copy_page(int32_t type, float *kt, float *v, const vf_page *page, int64_t n, int64_t d,
                        int64_t d16)
{
	for (int64_t t = 0; t < n; t += 16) {
		vf_prefetch(page->nk + vf_stored_bytes(type, t * d), vf_stored_bytes(type, 16 * d));
		vf_prefetch(page->nv + vf_stored_bytes(type, t * d), vf_stored_bytes(type, 16 * d));
		for (int64_t i = 0; i < d; i += 16) {
			int64_t c = d - i < 16 ? d - i : 16;
			vf a[16];
			if (c == 16) {
				NC_UNROLL
				for (int j = 0; j < 16; j++)
					a[j] = vf_stored(type, page->k, (t + j) * d + i, 16);
			} else {
				for (int j = 0; j < 16; j++)
					a[j] = vf_stored(type, page->k, (t + j) * d + i, c);
			}
			vf_transpose(a);
			NC_UNROLL
			for (int j = 0; j < 16; j++)
				vf_store(kt + (i + j) * NC_PAGE + t, a[j]);
			for (int j = 0; j < 16; j++)
				vf_store(v + (t + j) * d16 + i, vf_stored(type, page->v, (t + j) * d + i, c));
		}
	}
}

/* x[r*nv+j] = partial sum `lane` of the scores of nr rows with nv vectors of
 * positions from kt on. nr and nv are constants here and below. */
VF_FN void vf_chain(int nr, int nv, vf *x, const float *const *q, const float *kt, int lane, int64_t d16)
{
	NC_UNROLL
	for (int i = 0; i < nr * nv; i++)
		x[i] = vf_zero();
	for (int64_t c = lane; c < d16; c += 16) {
		vf k[4];
		NC_UNROLL
		for (int j = 0; j < nv; j++)
			k[j] = vf_load(kt + c * NC_PAGE + 16 * j);
		NC_UNROLL
		for (int r = 0; r < nr; r++) {
			vf s = vf_set1(q[r][c]);
			NC_UNROLL
			for (int j = 0; j < nv; j++)
				x[r * nv + j] = vf_fma(s, k[j], x[r * nv + j]);
		}
	}
}

VF_FN void vf_add_all(int n, vf *x, const vf *y)
{
	NC_UNROLL
	for (int i = 0; i < n; i++)
		x[i] = vf_add(x[i], y[i]);
}

enum { VF_SCORE_TILE = 8 };

/* The tree over partial sums lane, lane+8, lane+4, lane+12 */
VF_FN void vf_chain4(int nr, int nv, vf *x, const float *const *q, const float *kt, int lane, int64_t d16)
{
	vf y[VF_SCORE_TILE], z[VF_SCORE_TILE];
	vf_chain(nr, nv, x, q, kt, lane, d16);
	vf_chain(nr, nv, y, q, kt, lane + 8, d16);
	vf_add_all(nr * nv, x, y);
	vf_chain(nr, nv, y, q, kt, lane + 4, d16);
	vf_chain(nr, nv, z, q, kt, lane + 12, d16);
	vf_add_all(nr * nv, y, z);
	vf_add_all(nr * nv, x, y);
}

/* Raw scores of nr rows with 16*nv positions: p[r*NC_PAGE + ...]. */
VF_FN void vf_score_tile(int nr, int nv, float *p, const float *const *q, const float *kt, int64_t d16)
{
	vf x[VF_SCORE_TILE], y[VF_SCORE_TILE], z[VF_SCORE_TILE];
	vf_chain4(nr, nv, x, q, kt, 0, d16);
	vf_chain4(nr, nv, y, q, kt, 2, d16);
	vf_add_all(nr * nv, x, y);
	vf_chain4(nr, nv, y, q, kt, 1, d16);
	vf_chain4(nr, nv, z, q, kt, 3, d16);
	vf_add_all(nr * nv, y, z);
	vf_add_all(nr * nv, x, y);
	NC_UNROLL
	for (int r = 0; r < nr; r++)
		NC_UNROLL
		for (int j = 0; j < nv; j++)
			vf_store(p + r * NC_PAGE + 16 * j, x[r * nv + j]);
}

VF_FN void vf_scores_d16(const vf_block *b, int64_t r0, float *p, const float *kt, int64_t p0, int64_t d16)
{
	for (int64_t r = r0; r < b->rows; r += VF_SCORE_ROWS) {
		/* The last tile moves back; some rows are computed twice. There are enough: a
		 * block of few rows is not copied, and rows before r0 still have their q. */
		if (r + VF_SCORE_ROWS > b->rows)
			r = b->rows - VF_SCORE_ROWS;
		int64_t n = b->seen[r + VF_SCORE_ROWS - 1] - p0;
		for (int64_t t = 0; t < NC_PAGE && t < n; t += 16 * VF_SCORE_VECS)
			vf_score_tile(VF_SCORE_ROWS, VF_SCORE_VECS, p + r * NC_PAGE + t, b->q + r, kt + t, d16);
	}
}

VF_WORKER void VF_NAME(scores_copied)(const vf_block *b, int64_t r0, float *p, const float *kt, int64_t p0)
{
	if (b->d16 == 64)
		vf_scores_d16(b, r0, p, kt, p0, 64);
	else
		vf_scores_d16(b, r0, p, kt, p0, b->d16);
}

/* o[r] += sum over t0 <= t < t1 of w[r][t] * v[t] for nr rows and nv vectors from
 * element i on; `last` elements of the last vector are in use. */
VF_FN void vf_value_tile(int nr, int nv, int last, float *const *o, const float *w, const float *v,
                         int64_t d16, int64_t i, int64_t t0, int64_t t1)
{
	vf acc[16];
	NC_UNROLL
	for (int r = 0; r < nr; r++)
		NC_UNROLL
		for (int j = 0; j < nv; j++)
			acc[r * nv + j] = last == 16 ? vf_load(o[r] + i + 16 * j) : vf_loadn(o[r] + i, last);
	for (int64_t t = t0; t < t1; t++) {
		vf x[8];
		NC_UNROLL
		for (int j = 0; j < nv; j++)
			x[j] = vf_load(v + t * d16 + i + 16 * j);
		NC_UNROLL
		for (int r = 0; r < nr; r++) {
			vf s = vf_set1(w[r * NC_PAGE + t]);
			NC_UNROLL
			for (int j = 0; j < nv; j++)
				acc[r * nv + j] = vf_fma(s, x[j], acc[r * nv + j]);
		}
	}
	NC_UNROLL
	for (int r = 0; r < nr; r++)
		NC_UNROLL
		for (int j = 0; j < nv; j++) {
			if (last == 16)
				vf_store(o[r] + i + 16 * j, acc[r * nv + j]);
			else
				vf_storen(o[r] + i, acc[r * nv + j], last);
		}
}

/* All elements of nr rows. */
VF_FN void vf_value_rows(int nr, float *const *o, const float *w, const float *v, int64_t d, int64_t d16,
                         int64_t t0, int64_t t1)
{
	int64_t i = 0;
	for (; i + 16 * VF_VALUE_VECS <= d; i += 16 * VF_VALUE_VECS)
		vf_value_tile(nr, VF_VALUE_VECS, 16, o, w, v, d16, i, t0, t1);
	for (; i + 16 <= d; i += 16)
		vf_value_tile(nr, 1, 16, o, w, v, d16, i, t0, t1);
	if (i < d)
		vf_value_tile(nr, 1, (int)(d - i), o, w, v, d16, i, t0, t1);
}

VF_FN int64_t vf_in_page(const vf_block *b, int64_t r, int64_t p0)
{
	int64_t n = b->seen[r] - p0;
	return n < NC_PAGE ? n : NC_PAGE;
}

VF_WORKER void VF_NAME(values_copied)(const vf_block *b, int64_t r0, const float *w, const float *v, int64_t p0)
{
	int64_t r = r0, d16 = b->d16;
	for (; r + VF_VALUE_ROWS <= b->rows; r += VF_VALUE_ROWS) {
		/* Rows see ever more positions; what the first does not see goes row by row. */
		int64_t n = vf_in_page(b, r, p0);
		vf_value_rows(VF_VALUE_ROWS, b->o + r, w + r * NC_PAGE, v, b->d, d16, 0, n);
		for (int64_t e = r + 1; e < r + VF_VALUE_ROWS; e++)
			if (vf_in_page(b, e, p0) > n)
				vf_value_rows(1, b->o + e, w + e * NC_PAGE, v, b->d, d16, n, vf_in_page(b, e, p0));
	}
	for (; r < b->rows; r++)
		vf_value_rows(1, b->o + r, w + r * NC_PAGE, v, b->d, d16, 0, vf_in_page(b, r, p0));
}

/* One page for the rows from r0 on. scratch: kt, v, weights of all rows. */
VF_FN void vf_page_step(int32_t type, vf_block *b, const vf_page *page, int64_t r0, int64_t p0,
                        float *scratch)
{
	float *kt = scratch, *v = kt + NC_PAGE * b->d16, *p = v + NC_PAGE * b->d16;
	if (b->rows - r0 <= VF_DIRECT_MAX) {
		for (int64_t r = r0; r < b->rows; r++) {
			int64_t n = vf_in_page(b, r, p0);
			vf_scores_direct(type, p, b->q[r], page->k, page->nk, n, b->d);
			VF_NAME(weigh)(b, r, p, page, n);
			vf_all_values_direct(type, b->o[r], p, page->v, page->nv, n, b->d);
		}
		return;
	}
	vf_copy_page(type, kt, v, page, vf_in_page(b, b->rows - 1, p0), b->d, b->d16);
	VF_NAME(scores_copied)(b, r0, p, kt, p0);
	for (int64_t r = r0; r < b->rows; r++)
		VF_NAME(weigh)(b, r, p + r * NC_PAGE, page, vf_in_page(b, r, p0));
	VF_NAME(values_copied)(b, r0, p, v, p0);
}

VF_ENTRY void VF_NAME(attention)(float *dst, int64_t ldd, const float *q, int64_t ldq, const nc_kv *kv,
                                 const nc_query *a, int64_t h0, int64_t h1, uint8_t *scratch)
{
	int64_t d = kv->head_dim, d16 = (d + 15) & ~(int64_t)15, share = a->heads / kv->heads;
	float *work = (float *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
	float *copies = work + 2 * NC_PAGE * d16 + VF_ROWS_MAX * NC_PAGE;
	vf_block b = {.d = d, .d16 = d16, .scale = a->scale};
	const int64_t end = (h1 + share - 1) / share;
	for (int64_t g = h0 / share; h0 < h1; g++) {
		int64_t he = (g + 1) * share < h1 ? (g + 1) * share : h1, heads = he - h0;
		for (int64_t first = 0; first < a->n * heads; first += b.rows) {
			b.rows = a->n * heads - first < VF_ROWS_MAX ? a->n * heads - first : VF_ROWS_MAX;
			for (int64_t r = 0; r < b.rows; r++) {
				int64_t i = (first + r) / heads, h = h0 + (first + r) % heads;
				b.q[r] = q + i * ldq + h * d;
				b.o[r] = dst + i * ldd + h * d;
				b.seen[r] = a->pos + i + 1;
				b.m[r] = -__builtin_inff();
				b.l[r] = 0;
				if (d != d16) {
					float *c = copies + r * d16;
					memset(c, 0, (size_t)d16 * 4);
					memcpy(c, b.q[r], (size_t)d * 4);
					b.q[r] = c;
				}
				memset(b.o[r], 0, (size_t)d * 4);
			}
			int64_t r0 = 0;
			for (int64_t p0 = 0; p0 < b.seen[b.rows - 1]; p0 += NC_PAGE) {
				while (b.seen[r0] <= p0)
					r0++;
				vf_page page = vf_page_of(kv, p0, g), next = page;
				/* What is read after it: the next page, or the next head's first. */
				if (p0 + NC_PAGE < b.seen[b.rows - 1])
					next = vf_page_of(kv, p0 + NC_PAGE, g);
				else if (g + 1 < end)
					next = vf_page_of(kv, 0, g + 1);
				page.nk = next.k;
				page.nv = next.v;
				if (kv->type == NC_KVI8)
					vf_page_step(NC_KVI8, &b, &page, r0, p0, work);
				else
					vf_page_step(NC_KVF16, &b, &page, r0, p0, work);
			}
			for (int64_t r = 0; r < b.rows; r++)
				VF_NAME(scale)(b.o[r], 1 / b.l[r], b.o[r], d);
		}
		h0 = he;
	}
}
