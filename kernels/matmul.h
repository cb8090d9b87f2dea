/* matmul.h: products of two float matrices in registers and cache, over vf.
 * matmul.go defines them. Include after vec_<isa>.h and after the definitions of
 *
 *   MM_NAME           the entry
 *   MM_TARGET, MM_FN  its target attribute; that of an inlined function
 *   MM_K              elements along k in one 32-bit unit of a packed panel: 1 float,
 *                     or 2 bfloat16, the lower k in the lower half
 *   MM_ROWS, MM_VECS  rows, and vectors of 16 columns (1 or 3), of the tile in registers
 *   mm_along(o, i, k, n, type)      16 units of row i from element k on, n elements valid
 *   mm_across(o, k, nk, i, n, type) the unit at k (nk elements valid) of 16 rows from i on,
 *                                   n valid; these stand side by side in memory
 *   mm_dot(a, b, c)   c plus the products of a unit, in ascending k
 *
 * with zeros where nothing is valid. "Row" is a row of A or a column of B here.
 *
 * A block of B (MM_BLOCK_K units by MM_BLOCK_N columns) is packed once and stays in
 * the L2 cache; A is packed by MM_ROWS rows at a time and stays in L1. A packed panel
 * is [unit][width], so that a tile reads both from front to back. */

enum { MM_BLOCK_K = 256, MM_BLOCK_N = 480 }; /* mirrored by MatMulScratch */

MM_FN vf mm_load_across(const nc_operand *o, int64_t k, int64_t nk, int64_t i, int64_t n,
                        const int type)
{
	return n > 0 ? mm_across(o, k, nk, i, n < 16 ? n : 16, type) : vf_zero();
}

/* Packs rows i..i+w of o, at elements k..k+kc, into a panel of the given width: a
 * multiple of 16, or less than 16, when up to 16 more floats behind the panel are
 * written too. */
MM_FN void mm_pack_as(float *dst, int64_t width, const nc_operand *o, int64_t i, int64_t w,
                      int64_t k, int64_t kc, const int type)
{
	int64_t units = (kc + MM_K - 1) / MM_K;
	if (o->across) {
		for (int64_t u = 0; u < units; u++, dst += width)
			for (int64_t x = 0; x < width; x += 16) {
				int64_t left = kc - u * MM_K;
				vf_store(dst + x, mm_load_across(o, k + u * MM_K, left < MM_K ? left : MM_K, i + x,
				                                 w - x, type));
			}
		return;
	}
	for (int64_t u = 0; u < units; u += 16) {
		int64_t left = kc - u * MM_K, n = left < 16 * MM_K ? left : 16 * MM_K;
		int64_t rows = units - u < 16 ? units - u : 16;
		for (int64_t x = 0; x < width; x += 16) {
			vf t[16];
			for (int64_t r = 0; r < 16; r++)
				t[r] = x + r < w ? mm_along(o, i + x + r, k + u * MM_K, n, type) : vf_zero();
			vf_transpose(t);
			for (int64_t r = 0; r < rows; r++)
				vf_store(dst + (u + r) * width + x, t[r]);
		}
	}
}

static __attribute__((noinline)) MM_TARGET void
mm_pack(float *dst, int64_t width, const nc_operand *o, int64_t i, int64_t w, int64_t k, int64_t kc)
{
	switch (o->type) {
	case NC_F32:
		mm_pack_as(dst, width, o, i, w, k, kc, NC_F32);
		break;
	case NC_BF16:
		mm_pack_as(dst, width, o, i, w, k, kc, NC_BF16);
		break;
	default:
		mm_pack_as(dst, width, o, i, w, k, kc, NC_F32_ROUNDED);
	}
}

/* One tile: up to MM_ROWS rows and vecs vectors of columns of dst, from packed panels.
 * The last vector has tail columns. */
MM_FN void mm_tile(float *dst, int64_t ldd, const float *a, const float *b, int64_t units,
                   int64_t rows, int64_t tail, int from_dst, const int vecs)
{
	vf c[MM_ROWS][MM_VECS];
	NC_UNROLL
	for (int i = 0; i < MM_ROWS; i++)
		NC_UNROLL
		for (int v = 0; v < vecs; v++)
			c[i][v] = vf_zero();
	if (from_dst) {
		NC_UNROLL
		for (int i = 0; i < MM_ROWS; i++)
			if (i < rows) {
				NC_UNROLL
				for (int v = 0; v < vecs; v++) {
					const float *p = dst + i * ldd + 16 * v;
					c[i][v] = v < vecs - 1 || tail == 16 ? vf_load(p) : vf_loadn(p, tail);
				}
			}
	}
	/* The next tile's part of dst, or what stands behind the row. */
	NC_UNROLL
	for (int i = 0; i < MM_ROWS; i++)
		if (i < rows) {
			NC_UNROLL
			for (int v = 0; v < vecs; v++)
				__builtin_prefetch(dst + i * ldd + 16 * (vecs + v), 1);
		}
	for (int64_t u = 0; u < units; u++, a += MM_ROWS, b += 16 * vecs) {
		vf x[MM_VECS];
		NC_UNROLL
		for (int v = 0; v < vecs; v++)
			x[v] = vf_load(b + 16 * v);
		NC_UNROLL
		for (int i = 0; i < MM_ROWS; i++) {
			vf s = vf_set1(a[i]);
			NC_UNROLL
			for (int v = 0; v < vecs; v++)
				c[i][v] = mm_dot(s, x[v], c[i][v]);
		}
	}
	NC_UNROLL
	for (int i = 0; i < MM_ROWS; i++)
		if (i < rows) {
			NC_UNROLL
			for (int v = 0; v < vecs; v++) {
				float *p = dst + i * ldd + 16 * v;
				if (v < vecs - 1 || tail == 16)
					vf_store(p, c[i][v]);
				else
					vf_storen(p, c[i][v], tail);
			}
		}
}

/* All tiles of a packed panel of A and a packed block of B with n columns. */
static __attribute__((noinline)) MM_TARGET void mm_row(float *dst, int64_t ldd, const float *a,
                                                       const float *b, int64_t units, int64_t rows,
                                                       int64_t n, int from_dst)
{
	for (int64_t j = 0; j < n; j += 16 * MM_VECS) {
		int64_t w = n - j;
		const float *p = b + j * units;
		if (w >= 16 * MM_VECS)
			mm_tile(dst + j, ldd, a, p, units, rows, 16, from_dst, MM_VECS);
#if MM_VECS == 3
		else if (w > 32)
			mm_tile(dst + j, ldd, a, p, units, rows, w - 32, from_dst, 3);
		else if (w > 16)
			mm_tile(dst + j, ldd, a, p, units, rows, w - 16, from_dst, 2);
#endif
		else
			mm_tile(dst + j, ldd, a, p, units, rows, w, from_dst, 1);
	}
}

MM_TARGET void MM_NAME(float *dst, int64_t ldd, const nc_operand *a, const nc_operand *b,
                       const nc_product *p, uint8_t *scratch)
{
	float *pb = (float *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
	float *pa = pb + MM_BLOCK_K * MM_BLOCK_N;
	for (int64_t i = p->r0; p->k == 0 && !p->add && i < p->r1; i++)
		memset(dst + i * ldd, 0, (size_t)p->n * 4);
	for (int64_t j = 0; j < p->n; j += MM_BLOCK_N) {
		int64_t n = p->n - j < MM_BLOCK_N ? p->n - j : MM_BLOCK_N;
		for (int64_t k = 0; k < p->k; k += MM_BLOCK_K * MM_K) {
			int64_t kc = p->k - k < MM_BLOCK_K * MM_K ? p->k - k : MM_BLOCK_K * MM_K;
			int64_t units = (kc + MM_K - 1) / MM_K;
			for (int64_t x = 0; x < n; x += 16 * MM_VECS) {
				int64_t w = n - x < 16 * MM_VECS ? n - x : 16 * MM_VECS;
				mm_pack(pb + x * units, (w + 15) / 16 * 16, b, j + x, w, k, kc);
			}
			for (int64_t i = p->r0; i < p->r1; i += MM_ROWS) {
				int64_t rows = p->r1 - i < MM_ROWS ? p->r1 - i : MM_ROWS;
				mm_pack(pa, MM_ROWS, a, i, rows, k, kc);
				mm_row(dst + i * ldd + j, ldd, pa, pb, units, rows, n, p->add || k > 0);
			}
		}
	}
}
