/* Q8_0 products in plain C. */
#include "nc.h"
#include "vec_scalar.h"

static void q8_row(float *dst, const uint8_t *row, const int8_t *q, int64_t cols, float scale)
{
	float acc[8] = {0};
	for (int64_t k = 0; k < cols; k += 32, row += 34) {
		uint16_t h;
		memcpy(&h, row, 2);
		float d = nc_f16_to_f32(h);
		for (int l = 0; l < 8; l++) {
			int32_t dot = 0;
			for (int j = 4 * l; j < 4 * l + 4; j++)
				dot += (int8_t)row[2 + j] * q[k + j];
			acc[l] = vf_fma1(d, (float)dot, acc[l]);
		}
	}
	for (int h = 4; h > 0; h /= 2)
		for (int l = 0; l < h; l++)
			acc[l] += acc[l + h];
	*dst = scale * acc[0];
}

void nc_q8_gemm_scalar(float *dst, int64_t ldd, const nc_dense *w, const nc_act *x, int64_t r0,
                       int64_t r1)
{
	int64_t pitch = w->cols / 32 * 34;
	for (int64_t r = r0; r < r1; r++)
		for (int64_t t = 0; t < x->n; t++)
			q8_row(dst + t * ldd + r, w->data + r * pitch, x->q + t * x->stride, w->cols,
			       x->scale[t]);
}

void nc_q8_gemv_scalar(float *dst, const nc_dense *w, const nc_act *x, int64_t r0, int64_t r1)
{
	nc_act one = *x;
	one.n = 1;
	nc_q8_gemm_scalar(dst, 0, w, &one, r0, r1);
}
