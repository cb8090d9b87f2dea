/* float_dense.h: products with f32, f16, bf16 and Q8_0 matrices over vf. dense.go
 * defines them. Include after one vec_<isa>.h. */

/* Element k.. of a row of type t; n is 16, or fewer at the end of a row. */
VF_FN vf vf_element(int32_t t, const uint8_t *row, int64_t k, int64_t n)
{
	switch (t) {
	case NC_F16: {
		const uint16_t *p = (const uint16_t *)row + k;
		return n == 16 ? vf_f16(p) : vf_f16n(p, n);
	}
	case NC_BF16: {
		const uint16_t *p = (const uint16_t *)row + k;
		return n == 16 ? vf_bf16(p) : vf_bf16n(p, n);
	}
	}
	const float *p = (const float *)row + k;
	return n == 16 ? vf_load(p) : vf_loadn(p, n);
}

VF_FN int64_t vf_row_bytes(int32_t t, int64_t cols)
{
	return t == NC_F32 ? 4 * cols : t == NC_Q8_0 ? cols / 32 * 34 : 2 * cols;
}

enum { VF_MAX_TILE = 16 };

/* dst[j*ldd+i] = row i · vector j for a tile of nr rows at w and nt vectors at x;
 * t, nr and nt are constants wherever this is inlined, nr*nt <= VF_MAX_TILE. */
VF_FN void vf_tile(int32_t t, int nr, int nt, float *dst, int64_t ldd, const uint8_t *w,
                   int64_t row_bytes, const float *x, int64_t ldx, int64_t cols)
{
	vf acc[VF_MAX_TILE];
	/* One vector: the next rows are fetched in the order they lie in memory. */
	int64_t k = 0, ahead = (nr == 1 ? 2 : nr) * row_bytes;
	NC_UNROLL
	for (int i = 0; i < nr * nt; i++)
		acc[i] = vf_zero();
	if (t == NC_Q8_0) {
		for (; k < cols; k += 32) {
			NC_UNROLL
			for (int i = 0; i < nr; i++) {
				const uint8_t *b = w + i * row_bytes + k / 32 * 34;
				if (nt == 1)
					__builtin_prefetch(w + ahead + (k / 32 * nr + i) * 34);
				uint16_t h;
				memcpy(&h, b, 2);
				vf d = vf_set1(vf_half(h));
				vf lo = vf_i8((const int8_t *)b + 2), hi = vf_i8((const int8_t *)b + 18);
				NC_UNROLL
				for (int j = 0; j < nt; j++) {
					const float *v = x + j * ldx + k;
					vf p = vf_fma(hi, vf_load(v + 16), vf_mul(lo, vf_load(v)));
					acc[j * nr + i] = vf_fma(d, p, acc[j * nr + i]);
				}
			}
		}
	} else {
		for (; k + 16 <= cols; k += 16) {
			vf a[VF_MAX_TILE];
			NC_UNROLL
			for (int i = 0; i < nr; i++) {
				const uint8_t *row = w + i * row_bytes;
				if (nt == 1)
					__builtin_prefetch(w + ahead + (t == NC_F32 ? 4 : 2) * (k * nr + i * 16));
				a[i] = vf_element(t, row, k, 16);
			}
			NC_UNROLL
			for (int j = 0; j < nt; j++) {
				vf v = vf_load(x + j * ldx + k);
				NC_UNROLL
				for (int i = 0; i < nr; i++)
					acc[j * nr + i] = vf_fma(a[i], v, acc[j * nr + i]);
			}
		}
		if (k < cols) {
			NC_UNROLL
			for (int j = 0; j < nt; j++) {
				vf v = vf_loadn(x + j * ldx + k, cols - k);
				NC_UNROLL
				for (int i = 0; i < nr; i++)
					acc[j * nr + i] =
						vf_fma(vf_element(t, w + i * row_bytes, k, cols - k), v, acc[j * nr + i]);
			}
		}
	}
	if (nr * nt == 16) {
		float s[16];
		vf_store(s, vf_sums(acc));
		NC_UNROLL
		for (int i = 0; i < 16; i++)
			dst[i / nr * ldd + i % nr] = s[i];
		return;
	}
	NC_UNROLL
	for (int i = 0; i < nr * nt; i++)
		dst[i / nr * ldd + i % nr] = vf_sum(acc[i]);
}

/* Rows r0..r1 by nt vectors, nr rows at a time. The last tile moves back over rows
 * already done if there are enough, so that no other tile is needed. */
VF_FN void vf_rows(int32_t t, int nr, int nt, float *dst, int64_t ldd, const nc_dense *w,
                   const float *x, int64_t ldx, int64_t r0, int64_t r1)
{
	int64_t b = vf_row_bytes(t, w->cols);
	for (int64_t r = r0; r < r1; r += nr) {
		if (r + nr > r1)
			r = r1 - nr;
		vf_tile(t, nr, nt, dst + r, ldd, w->data + r * b, b, x, ldx, w->cols);
	}
}

/* Long rows go one by one: memory then streams best. */
enum { VF_GEMV_ROWS = 4, VF_LONG_ROW = 2048 };

/* One function per type, so that its loads are chosen at compile time. */
#define VF_TYPED(t, name, nr, nt)                                                                   \
	VF_WORKER void VF_NAME(gemv_##name)(float *dst, const nc_dense *w, const float *x, int64_t r0,  \
	                                    int64_t r1)                                                 \
	{                                                                                               \
		if (r1 - r0 < VF_GEMV_ROWS || vf_row_bytes(t, w->cols) > VF_LONG_ROW)                       \
			vf_rows(t, 1, 1, dst, 0, w, x, 0, r0, r1);                                              \
		else                                                                                        \
			vf_rows(t, VF_GEMV_ROWS, 1, dst, 0, w, x, 0, r0, r1);                                   \
	}                                                                                               \
	VF_WORKER void VF_NAME(gemm_##name)(float *dst, int64_t ldd, const nc_dense *w, const float *x, \
	                                    int64_t ldx, int64_t r0, int64_t r1)                        \
	{                                                                                               \
		vf_rows(t, nr, nt, dst, ldd, w, x, ldx, r0, r1);                                            \
	}

VF_TYPED(NC_F32, f32, VF_ROWS, VF_TOKENS)
VF_TYPED(NC_F16, f16, VF_ROWS, VF_TOKENS)
VF_TYPED(NC_BF16, bf16, VF_ROWS, VF_TOKENS)
VF_TYPED(NC_Q8_0, q8, VF_Q8_ROWS, VF_Q8_TOKENS)
#undef VF_TYPED

VF_ENTRY void VF_NAME(dense_gemv)(float *dst, const nc_dense *w, const float *x, int64_t r0, int64_t r1)
{
	switch (w->type) {
	case NC_F32:
		VF_NAME(gemv_f32)(dst, w, x, r0, r1);
		break;
	case NC_F16:
		VF_NAME(gemv_f16)(dst, w, x, r0, r1);
		break;
	case NC_BF16:
		VF_NAME(gemv_bf16)(dst, w, x, r0, r1);
		break;
	case NC_Q8_0:
		VF_NAME(gemv_q8)(dst, w, x, r0, r1);
		break;
	}
}

/* A tile of vectors by the rows r0..r1. */
VF_FN void vf_gemm(float *dst, int64_t ldd, const nc_dense *w, const float *x, int64_t ldx, int64_t r0,
                   int64_t r1)
{
	switch (w->type) {
	case NC_F32:
		VF_NAME(gemm_f32)(dst, ldd, w, x, ldx, r0, r1);
		break;
	case NC_F16:
		VF_NAME(gemm_f16)(dst, ldd, w, x, ldx, r0, r1);
		break;
	case NC_BF16:
		VF_NAME(gemm_bf16)(dst, ldd, w, x, ldx, r0, r1);
		break;
	case NC_Q8_0:
		VF_NAME(gemm_q8)(dst, ldd, w, x, ldx, r0, r1);
		break;
	}
}

/* A block of rows that stays in the second-level cache meets all vectors, a tile
 * of vectors at a time; the last tile moves back. Fewer vectors or rows than a tile
 * go one by one. */
VF_ENTRY void VF_NAME(dense_gemm)(float *dst, int64_t ldd, const nc_dense *w, const float *x,
                                  int64_t ldx, int64_t n, int64_t r0, int64_t r1)
{
	enum { BLOCK_BYTES = 256 << 10 };
	int64_t nr = w->type == NC_Q8_0 ? VF_Q8_ROWS : VF_ROWS;
	int64_t nt = w->type == NC_Q8_0 ? VF_Q8_TOKENS : VF_TOKENS;
	int64_t block = BLOCK_BYTES / vf_row_bytes(w->type, w->cols) / nr * nr;
	if (block < nr)
		block = nr;
	for (int64_t r = r0, e; r < r1; r = e) {
		e = r + 2 * block <= r1 ? r + block : r1;
		if (n < nt || e - r < nr) {
			for (int64_t j = 0; j < n; j++)
				VF_NAME(dense_gemv)(dst + j * ldd, w, x + j * ldx, r, e);
			continue;
		}
		for (int64_t j = 0; j < n; j += nt) {
			if (j + nt > n)
				j = n - nt;
			vf_gemm(dst + j * ldd, ldd, w, x + j * ldx, ldx, r, e);
		}
	}
}

VF_ENTRY void VF_NAME(dense_row)(float *dst, const nc_dense *w, int64_t r)
{
	const uint8_t *row = w->data + r * vf_row_bytes(w->type, w->cols);
	int64_t k = 0;
	if (w->type == NC_Q8_0) {
		for (; k < w->cols; k += 32, row += 34) {
			uint16_t h;
			memcpy(&h, row, 2);
			vf d = vf_set1(vf_half(h));
			vf_store(dst + k, vf_mul(d, vf_i8((const int8_t *)row + 2)));
			vf_store(dst + k + 16, vf_mul(d, vf_i8((const int8_t *)row + 18)));
		}
		return;
	}
	for (; k + 16 <= w->cols; k += 16)
		vf_store(dst + k, vf_element(w->type, row, k, 16));
	if (k < w->cols)
		vf_storen(dst + k, vf_element(w->type, row, k, w->cols - k), w->cols - k);
}
