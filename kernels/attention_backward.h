/* attention_backward.h: the backward of causal attention over one document, from
 * products of blocks of 64 queries and 64 keys, over vf; attention_backward.go
 * defines it. Include after vec_<isa>.h, float_math.h and after the definitions of
 *
 *   AB_NAME           the entry
 *   AB_TARGET, AB_FN  its target attribute; that of an inlined function
 *   AB_K              elements along the sum in one 32-bit unit: 1 float, or 2 bfloat16
 *   AB_ROWS, AB_VECS  rows, and vectors of 16 columns, of the tile in registers
 *   ab_dot(a, b, c)   c plus the products of a unit, in ascending order
 *   ab_pair(x, y)     with AB_K 2: the units of 16 elements of x, and of y, the next along the sum
 *   ab_join(p, x, y)  with AB_K 2: 16 units from 32 elements, x and the next 16 in y, to p
 *
 * A product is dst[i][j] += sum over units u of a[i,u]*b[u,j], with b in rows of units
 * and a in rows ("along") or in columns ("across"), so that nothing but keys and
 * values is transposed. Blocks are padded with zeros to whole vectors of head
 * elements. Scores are always products of float32. */

enum { AB_BLOCK = 64, AB_HALF = 32 };

/* rows x 16*vecs of dst; both are constants here. sr and su are the steps of a from
 * row to row and from unit to unit. */
#define AB_TILE(name, k_dot)                                                             \
	AB_FN void name(float *dst, int64_t ldd, const float *a, int64_t sr, int64_t su,     \
	                const float *b, int64_t ldb, int64_t units, int add, const int rows, \
	                const int vecs)                                                      \
	{                                                                                    \
		vf c[AB_ROWS][AB_VECS];                                                          \
		NC_UNROLL                                                                        \
		for (int i = 0; i < rows; i++)                                                   \
			NC_UNROLL                                                                    \
		for (int v = 0; v < vecs; v++)                                                   \
			c[i][v] = add ? vf_load(dst + i * ldd + 16 * v) : vf_zero();                 \
		for (int64_t u = 0; u < units; u++, b += ldb, a += su) {                         \
			vf x[AB_VECS];                                                               \
			NC_UNROLL                                                                    \
			for (int v = 0; v < vecs; v++)                                               \
				x[v] = vf_load(b + 16 * v);                                              \
			NC_UNROLL                                                                    \
			for (int i = 0; i < rows; i++) {                                             \
				vf s = vf_set1(a[i * sr]);                                               \
				NC_UNROLL                                                                \
				for (int v = 0; v < vecs; v++)                                           \
					c[i][v] = k_dot(s, x[v], c[i][v]);                                   \
			}                                                                            \
		}                                                                                \
		NC_UNROLL                                                                        \
		for (int i = 0; i < rows; i++)                                                   \
			NC_UNROLL                                                                    \
		for (int v = 0; v < vecs; v++)                                                   \
			vf_store(dst + i * ldd + 16 * v, c[i][v]);                                   \
	}

AB_TILE(ab_tile_f32, vf_fma)
#if AB_K == 2
AB_TILE(ab_tile_dot, ab_dot)
#else
#define ab_tile_dot ab_tile_f32
#endif

/* A product of rows (a multiple of AB_ROWS) by cols (of 16). */
#define AB_PRODUCT(name, tile, along)                                                             \
	static __attribute__((noinline)) AB_TARGET void name(                                         \
		float *dst, int64_t ldd, const float *a, int64_t lda, const float *b, int64_t ldb,        \
		int64_t rows, int64_t cols, int64_t units, int add)                                       \
	{                                                                                             \
		const int64_t sr = along ? lda : 1, su = along ? 1 : lda;                                 \
		int64_t j = 0;                                                                            \
		for (; j + 16 * AB_VECS <= cols; j += 16 * AB_VECS)                                       \
			for (int64_t i = 0; i < rows; i += AB_ROWS)                                           \
				tile(dst + i * ldd + j, ldd, a + i * sr, sr, su, b + j, ldb, units, add, AB_ROWS, \
				     AB_VECS);                                                                    \
		for (; j < cols; j += 16)                                                                 \
			for (int64_t i = 0; i < rows; i += AB_ROWS)                                           \
				tile(dst + i * ldd + j, ldd, a + i * sr, sr, su, b + j, ldb, units, add, AB_ROWS, \
				     1);                                                                          \
	}

AB_PRODUCT(ab_scores, ab_tile_f32, 1)
#if AB_K == 2
AB_PRODUCT(ab_along, ab_tile_dot, 1)
#else
#define ab_along ab_scores
#endif
AB_PRODUCT(ab_across, ab_tile_dot, 0)

typedef struct {
	int64_t d, d16, n64;
	const nc_attention_grad *a;
	/* Of one KV head: keys [block][d16][64], values [block][d16/K][64], keys [n64/K][d16],
	 * and the sums [n64][d16]. */
	float *kt, *vt, *kn, *dk, *dv;
	/* Of 64 queries of one head: scores [64][n64], queries and dout [64][d16], dq [64][d16]. */
	float *p, *q, *o, *dq;
	/* Of 64 queries and 64 keys: weights and score gradients, [64][64]. */
	float *w, *ds;
#if AB_K == 2
	/* The same in bfloat16: dout and ds along, the others in pairs of rows. */
	float *o_along, *ds_along, *q_pairs, *o_pairs, *w_pairs, *ds_pairs;
#endif
	float inv[AB_BLOCK], dot[AB_BLOCK];
} ab_work;

AB_FN vf ab_load(const float *p, int64_t n) { return n >= 16 ? vf_load(p) : vf_loadn(p, n); }

/* Copies `rows` rows of d elements, padded with zeros to d16 columns and to all rows. */
AB_FN void ab_copy(float *dst, const float *src, int64_t ld, int64_t rows, int64_t all, int64_t d,
                   int64_t d16)
{
	for (int64_t r = 0; r < all; r++)
		for (int64_t i = 0; i < d16; i += 16)
			vf_store(dst + r * d16 + i, r < rows ? ab_load(src + r * ld + i, d - i) : vf_zero());
}

/* 16 rows from t on and 16 elements from i on of src, transposed; zeros outside. */
AB_FN void ab_turn(vf *x, const float *src, int64_t ld, int64_t t, int64_t n, int64_t i, int64_t d)
{
	for (int64_t j = 0; j < 16; j++)
		x[j] = t + j < n ? ab_load(src + (t + j) * ld + i, d - i) : vf_zero();
	vf_transpose(x);
}

/* The keys and values of one KV head. */
static __attribute__((noinline)) AB_TARGET void ab_pack(const ab_work *w, const float *k,
                                                        const float *v)
{
	const nc_attention_grad *a = w->a;
	const int64_t d = w->d, d16 = w->d16, n = a->n;
	for (int64_t t = 0; t < w->n64; t += 16) {
		float *kt = w->kt + t / AB_BLOCK * AB_BLOCK * d16 + t % AB_BLOCK;
		float *vt = w->vt + t / AB_BLOCK * AB_BLOCK * (d16 / AB_K) + t % AB_BLOCK;
		for (int64_t i = 0; i < d16; i += 16) {
			vf x[16];
			ab_turn(x, k, a->ldk, t, n, i, d);
			for (int64_t j = 0; j < 16; j++)
				vf_store(kt + (i + j) * AB_BLOCK, x[j]);
			ab_turn(x, v, a->ldv, t, n, i, d);
			for (int64_t j = 0; j < 16; j += AB_K) {
#if AB_K == 2
				x[j] = ab_pair(x[j], x[j + 1]);
#endif
				vf_store(vt + (i + j) / AB_K * AB_BLOCK, x[j]);
			}
		}
	}
	for (int64_t t = 0; t < w->n64; t += AB_K)
		for (int64_t i = 0; i < d16; i += 16) {
			vf x = t < n ? ab_load(k + t * a->ldk + i, d - i) : vf_zero();
#if AB_K == 2
			x = ab_pair(x, t + 1 < n ? ab_load(k + (t + 1) * a->ldk + i, d - i) : vf_zero());
#endif
			vf_store(w->kn + t / AB_K * d16 + i, x);
		}
	memset(w->dk, 0, (size_t)(w->n64 * d16) * 4);
	memset(w->dv, 0, (size_t)(w->n64 * d16) * 4);
}

/* From products to exp(s-max), zeros up to n64 behind the n that the query sees; the
 * reciprocal of their sum is the result. */
AB_FN float ab_softmax(float *p, float scale, int64_t n, int64_t end)
{
	const vf s = vf_set1(scale), low = vf_set1(-__builtin_inff());
	vf m = low, sum = vf_zero();
	int64_t t = 0;
	for (; t + 16 <= n; t += 16) {
		vf x = vf_mul(vf_load(p + t), s);
		vf_store(p + t, x);
		m = vf_max(m, x);
	}
	if (t < n) {
		vf x = vf_keep(vf_mul(vf_load(p + t), s), n - t, low);
		vf_store(p + t, x);
		m = vf_max(m, x);
	}
	m = vf_set1(vf_top(m));
	for (t = 0; t < n; t += 16) { /* exp(-inf) is 0 */
		vf e = vf_exp_low(vf_sub(vf_load(p + t), m));
		vf_store(p + t, e);
		sum = vf_add(sum, e);
	}
	for (; t < end; t += 16)
		vf_store(p + t, vf_zero());
	return 1 / vf_sum(sum);
}

/* Weights from p and score gradients from ds, the products of dout and values, for
 * `rows` queries and `cols` keys; zeros in the rows up to `all`. */
AB_FN void ab_gradients(ab_work *w, const float *p, int64_t rows, int64_t all, int64_t cols)
{
	const vf scale = vf_set1(w->a->scale);
	for (int64_t r = 0; r < all; r += AB_K) {
		vf inv[AB_K], dot[AB_K];
		for (int64_t x = 0; x < AB_K; x++) {
			/* A row of p behind the last holds zeros. */
			inv[x] = vf_set1(r + x < rows ? w->inv[r + x] : 0);
			dot[x] = vf_set1(r + x < rows ? w->dot[r + x] : 0);
		}
		for (int64_t c = 0; c < cols; c += 16 * AB_K) {
			vf e[AB_K][AB_K], g[AB_K][AB_K]; /* [row][16 columns] */
	NC_UNROLL
			for (int x = 0; x < AB_K; x++)
				NC_UNROLL
				for (int y = 0; y < AB_K; y++) {
					int64_t at = (r + x) * AB_BLOCK + c + 16 * y;
					e[x][y] = vf_mul(vf_load(p + (r + x) * w->n64 + c + 16 * y), inv[x]);
					g[x][y] = vf_mul(vf_mul(e[x][y], vf_sub(vf_load(w->ds + at), dot[x])), scale);
				}
#if AB_K == 2
			NC_UNROLL
			for (int y = 0; y < 2; y++) {
				int64_t at = r / 2 * AB_BLOCK + c + 16 * y;
				vf_store(w->w_pairs + at, ab_pair(e[0][y], e[1][y]));
				vf_store(w->ds_pairs + at, ab_pair(g[0][y], g[1][y]));
				ab_join(w->ds_along + (r + y) * (AB_BLOCK / 2) + c / 2, g[y][0], g[y][1]);
			}
#else
			vf_store(w->w + r * AB_BLOCK + c, e[0][0]);
			vf_store(w->ds + r * AB_BLOCK + c, g[0][0]);
#endif
		}
	}
}

/* 64 queries of one head, or the fewer at the end, from query q0 on. */
static __attribute__((noinline)) AB_TARGET void ab_queries(ab_work *w, float *dq, const float *dout,
                                                           const float *q, const float *out,
                                                           int64_t q0)
{
	const nc_attention_grad *a = w->a;
	const int64_t d = w->d, d16 = w->d16;
	const int64_t rows = a->n - q0 < AB_BLOCK ? a->n - q0 : AB_BLOCK;
	const int64_t all = (rows + 15) & ~(int64_t)15, end = q0 + AB_BLOCK;
	ab_copy(w->q, q + q0 * a->ldq, a->ldq, rows, all, d, d16);
	ab_copy(w->o, dout + q0 * a->ldo, a->ldo, rows, all, d, d16);
#if AB_K == 2
	const float *o_along = w->o_along, *ds_along = w->ds_along, *ds_pairs = w->ds_pairs;
	const float *w_pairs = w->w_pairs, *q_pairs = w->q_pairs, *o_pairs = w->o_pairs;
	for (int64_t r = 0; r < all; r += 2)
		for (int64_t i = 0; i < d16; i += 16) {
			vf x = vf_load(w->o + r * d16 + i), y = vf_load(w->o + (r + 1) * d16 + i);
			vf_store(w->o_pairs + r / 2 * d16 + i, ab_pair(x, y));
			vf_store_bf16((uint16_t *)w->o_along + r * d16 + i, vf_round_bf16(x));
			vf_store_bf16((uint16_t *)w->o_along + (r + 1) * d16 + i, vf_round_bf16(y));
			x = vf_load(w->q + r * d16 + i);
			y = vf_load(w->q + (r + 1) * d16 + i);
			vf_store(w->q_pairs + r / 2 * d16 + i, ab_pair(x, y));
		}
#else
	const float *o_along = w->o, *ds_along = w->ds, *ds_pairs = w->ds, *w_pairs = w->w;
	const float *q_pairs = w->q, *o_pairs = w->o;
#endif
	for (int64_t k0 = 0; k0 < q0; k0 += AB_BLOCK)
		ab_scores(w->p + k0, w->n64, w->q, d16, w->kt + k0 * d16, AB_BLOCK, all, AB_BLOCK, d16, 0);
	/* In the block on the diagonal, the queries of its first half see none of its second. */
	for (int64_t c = 0; c < all; c += AB_HALF)
		ab_scores(w->p + c * w->n64 + q0 + c, w->n64, w->q + c * d16, d16, w->kt + q0 * d16 + c,
		          AB_BLOCK, all - c, all - c < AB_HALF ? all - c : AB_HALF, d16, 0);
	for (int64_t r = 0; r < all; r++) {
		float *p = w->p + r * w->n64;
		if (r >= rows) {
			memset(p, 0, (size_t)end * 4);
			continue;
		}
		w->inv[r] = ab_softmax(p, a->scale, q0 + r + 1, end);
		const float *x = w->o + r * d16, *y = out + (q0 + r) * a->ldo;
		vf s = vf_zero();
		for (int64_t i = 0; i < d16; i += 16)
			s = vf_fma(vf_load(x + i), ab_load(y + i, d - i), s);
		w->dot[r] = vf_sum(s);
	}
	for (int64_t k0 = 0; k0 <= q0; k0 += AB_BLOCK) {
		const float *vt = w->vt + k0 * (d16 / AB_K), *kn = w->kn + k0 / AB_K * d16;
		float *dk = w->dk + k0 * d16, *dv = w->dv + k0 * d16;
		/* Off the diagonal a block is one part, on it two. */
		const int64_t cols = k0 < q0 ? AB_BLOCK : all, part = k0 < q0 ? AB_BLOCK : AB_HALF;
		for (int64_t c = 0; c < cols; c += part) {
			int64_t r0 = k0 < q0 ? 0 : c;
			ab_along(w->ds + r0 * AB_BLOCK + c, AB_BLOCK, o_along + r0 * (d16 / AB_K), d16 / AB_K,
			         vt + c, AB_BLOCK, all - r0, cols - c < part ? cols - c : part, d16 / AB_K, 0);
		}
		ab_gradients(w, w->p + k0, rows, all, cols);
		for (int64_t c = 0; c < cols; c += part) {
			int64_t r0 = k0 < q0 ? 0 : c, n = cols - c < part ? cols - c : part;
			int64_t at = r0 / AB_K * AB_BLOCK + c, units = (all - r0) / AB_K;
			ab_across(dv + c * d16, d16, w_pairs + at, AB_BLOCK, o_pairs + r0 / AB_K * d16, d16, n,
			          d16, units, 1);
			ab_across(dk + c * d16, d16, ds_pairs + at, AB_BLOCK, q_pairs + r0 / AB_K * d16, d16, n,
			          d16, units, 1);
			ab_along(w->dq + r0 * d16, d16, ds_along + (r0 * AB_BLOCK + c) / AB_K,
			         AB_BLOCK / AB_K, kn + c / AB_K * d16, d16, all - r0, d16, n / AB_K,
			         k0 + c > 0);
		}
	}
	for (int64_t r = 0; r < rows; r++)
		memcpy(dq + (q0 + r) * a->ldq, w->dq + r * d16, (size_t)d * 4);
}

AB_TARGET void AB_NAME(float *dq, float *dk, float *dv, const float *dout, const float *q,
                       const float *k, const float *v, const float *out, const nc_attention_grad *a,
                       int64_t h0, int64_t h1, uint8_t *scratch)
{
	ab_work w;
	const int64_t d = a->head_dim, share = a->heads / a->kv_heads;
	const int64_t d16 = (d + 15) & ~(int64_t)15, n64 = (a->n + 63) & ~(int64_t)63;
	const int64_t block = AB_BLOCK * (d16 > AB_BLOCK ? d16 : AB_BLOCK);
	float *at = (float *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
	w.d = d;
	w.d16 = d16;
	w.n64 = n64;
	w.a = a;
	float **parts[] = {&w.kt, &w.vt, &w.kn, &w.dk, &w.dv};
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++, at += n64 * d16)
		*parts[i] = at;
	w.p = at;
	at += AB_BLOCK * n64;
	float **blocks[] = {&w.q, &w.dq, &w.ds, &w.o, &w.w};
	for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++, at += block)
		*blocks[i] = at;
#if AB_K == 2
	/* w is not used: half blocks begin there. */
	at = w.w;
	float **halves[] = {&w.o_along, &w.ds_along, &w.q_pairs, &w.o_pairs, &w.w_pairs, &w.ds_pairs};
	for (size_t i = 0; i < sizeof halves / sizeof *halves; i++, at += block / 2)
		*halves[i] = at;
#endif
	for (int64_t g = h0; g < h1; g++) {
		ab_pack(&w, k + g * d, v + g * d);
		for (int64_t h = g * share; h < (g + 1) * share; h++)
			for (int64_t q0 = 0; q0 < a->n; q0 += AB_BLOCK)
				ab_queries(&w, dq + h * d, dout + h * d, q + h * d, out + h * d, q0);
		for (int64_t t = 0; t < a->n; t++) {
			memcpy(dk + t * a->ldk + g * d, w.dk + t * d16, (size_t)d * 4);
			memcpy(dv + t * a->ldv + g * d, w.dv + t * d16, (size_t)d * 4);
		}
	}
}
