/* q8_tiles.h: the blocking of Q8GEMV and Q8GEMM, the same for every ISA. Included by the
 * files that supply the tile:
 *
 *   NC_TARGET      its target attribute
 *   NC_NAME(op)    nc_<op>_<isa>
 *   Q8_MAX         4 or 8: tokens of the largest tile of a product
 *   q8_tile(R, T, dst, ldd, row, pitch, cols, q, stride, scale)
 *                  dst[t*ldd+r] for R rows at row and T tokens at q; R is 1 or
 *                  Q8_ROWS, with one token 1, 2, 4 or 8; T is 1, 2, 4 or 8
 *   Q8_ROWS        rows of a tile of a product
 *   Q8_GEMV_ROWS   4 or 8: rows at a time for one token, if they are short
 *
 * The rows of a step of one token are at most some 8 KiB: those and the next ones, which
 * are fetched ahead, stay in the first-level cache. */

/* Rows r0..r1 by T tokens from t0. The last tile moves back over rows already done if
 * there are enough; too few rows go one by one. */
NC_TARGET NC_INLINE void q8_rows(const int R, const int T, float *dst, int64_t ldd,
                                 const nc_dense *w, const nc_act *x, int64_t t0, int64_t r0,
                                 int64_t r1)
{
	const int64_t pitch = w->cols / 32 * 34;
	const int8_t *q = x->q + t0 * x->stride;
	const float *scale = x->scale + t0;
	dst += t0 * ldd;
	if (r1 - r0 < R) {
		for (int64_t r = r0; r < r1; r++)
			q8_tile(1, T, dst + r, ldd, w->data + r * pitch, pitch, w->cols, q, x->stride, scale);
		return;
	}
	for (int64_t r = r0; r < r1; r += R) {
		if (r + R > r1)
			r = r1 - R;
		q8_tile(R, T, dst + r, ldd, w->data + r * pitch, pitch, w->cols, q, x->stride, scale);
	}
}

/* T is fixed by the function. */
#define Q8_TOKENS(T)                                                                         \
	NC_TARGET static __attribute__((noinline)) void q8_rows_##T(                             \
		float *dst, int64_t ldd, const nc_dense *w, const nc_act *x, int64_t t0, int64_t r0, \
		int64_t r1)                                                                          \
	{                                                                                        \
		q8_rows(Q8_ROWS, T, dst, ldd, w, x, t0, r0, r1);                                     \
	}
Q8_TOKENS(2)
Q8_TOKENS(4)
#if Q8_MAX == 8
Q8_TOKENS(8)
#endif

NC_TARGET static
	__attribute__((noinline)) void q8_rows_1(float *dst, int64_t ldd, const nc_dense *w,
	                                         const nc_act *x, int64_t t0, int64_t r0, int64_t r1)
{
	const int64_t pitch = w->cols / 32 * 34;
	if (Q8_GEMV_ROWS == 8 && pitch <= 1024)
		q8_rows(Q8_GEMV_ROWS, 1, dst, ldd, w, x, t0, r0, r1);
	else if (pitch <= 2048)
		q8_rows(4, 1, dst, ldd, w, x, t0, r0, r1);
	else
		q8_rows(2, 1, dst, ldd, w, x, t0, r0, r1);
}

NC_TARGET void NC_NAME(q8_gemv)(float *dst, const nc_dense *w, const nc_act *x, int64_t r0,
                                int64_t r1)
{
	q8_rows_1(dst, 0, w, x, 0, r0, r1);
}

/* A block of rows that stays in the second-level cache meets all tokens. */
NC_TARGET void NC_NAME(q8_gemm)(float *dst, int64_t ldd, const nc_dense *w, const nc_act *x,
                                int64_t r0, int64_t r1)
{
	enum { BLOCK_BYTES = 256 << 10 };
	int64_t block = BLOCK_BYTES / (w->cols / 32 * 34) / Q8_ROWS * Q8_ROWS;
	if (block < Q8_ROWS)
		block = Q8_ROWS;
	for (int64_t r = r0, e; r < r1; r = e) {
		e = r + 2 * block <= r1 ? r + block : r1;
		for (int64_t t = 0, left = x->n; left > 0; left = x->n - t) {
#if Q8_MAX == 8
			if (left >= 8) {
				q8_rows_8(dst, ldd, w, x, t, r, e);
				t += 8;
				continue;
			}
#endif
			if (left >= 4) {
				q8_rows_4(dst, ldd, w, x, t, r, e);
				t += 4;
			} else if (left >= 2) {
				q8_rows_2(dst, ldd, w, x, t, r, e);
				t += 2;
			} else {
				q8_rows_1(dst, ldd, w, x, t, r, e);
				t += 1;
			}
		}
	}
}
