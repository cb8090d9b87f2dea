/* Ternary ops in plain C: every platform, and the reading aid for the others. */
#include "nc.h"

/* round half to even of |v| < 2^22, in the default rounding mode */
NC_INLINE float round_even(float v)
{
	const float magic = 0x1.8p23f;
	return (v + magic) - magic;
}

float nc_quantize_scalar(int8_t *q, int64_t qlen, int32_t *sums, const float *x, int64_t n,
                         int64_t group)
{
	uint32_t top = 0; /* bits of max|x|: non-negative floats order like integers */
	for (int64_t i = 0; i < n; i++) {
		uint32_t b;
		memcpy(&b, x + i, 4);
		b &= 0x7fffffff;
		top = b > top ? b : top;
	}
	float a;
	if (!nc_quantize_scale(&a, top, q, qlen, sums, n, group))
		return a;
	for (int64_t g = 0; g * group < n; g++) {
		int64_t end = (g + 1) * group < n ? (g + 1) * group : n;
		int32_t sum = 0;
		for (int64_t i = g * group; i < end; i++) {
			float v = x[i] / a; /* beyond ±127 only if a is subnormal */
			v = v > 127 ? 127 : v < -127 ? -127 : v;
			q[i] = (int8_t)round_even(v);
			sum += q[i];
		}
		sums[g] = sum;
	}
	memset(q + n, 0, (size_t)(qlen - n));
	return a;
}

/* Rows of one block for one token: dot[r] over tiles [t0, t1). */
static void block_dot(int32_t dot[16], const uint8_t *tiles, const int8_t *q, int64_t t0,
                      int64_t t1)
{
	for (int64_t t = t0; t < t1; t++)
		for (int r = 0; r < 16; r++)
			for (int c = 0; c < 4; c++) {
				uint8_t b = tiles[64 * t + 4 * r + c];
				const int8_t *v = q + 16 * t + c;
				dot[r] +=
					(b & 3) * v[0] + (b >> 2 & 3) * v[4] + (b >> 4 & 3) * v[8] + (b >> 6) * v[12];
			}
}

static void rows(float *dst, const nc_ternary *w, const nc_act *x, int64_t token, int64_t r0,
                 int64_t r1)
{
	int64_t tiles = (w->cols + 15) / 16, per_group = (w->group + 15) / 16;
	const int8_t *q = x->q + token * x->stride;
	float gain = x->scale[token] * w->gain;
	for (int64_t b = r0 / 16; b * 16 < r1; b++) {
		float sum[16] = {0};
		for (int64_t g = 0; g < x->groups; g++) {
			int64_t t1 = (g + 1) * per_group < tiles ? (g + 1) * per_group : tiles;
			int32_t dot[16];
			for (int r = 0; r < 16; r++)
				dot[r] = -x->sums[token * x->groups + g];
			block_dot(dot, w->tiles + b * tiles * 64, q, g * per_group, t1);
			for (int r = 0; r < 16; r++)
				sum[r] = __builtin_fmaf(
					(float)dot[r], nc_f16_to_f32(w->scales[(b * x->groups + g) * 16 + r]), sum[r]);
		}
		for (int64_t r = 16 * b; r < r1 && r < 16 * b + 16; r++)
			dst[r] = gain * sum[r % 16];
	}
}

void nc_ternary_gemv_scalar(float *dst, const nc_ternary *w, const nc_act *x, int64_t r0,
                            int64_t r1)
{
	rows(dst, w, x, 0, r0, r1);
}

void nc_ternary_gemm_scalar(float *dst, int64_t ldd, const nc_ternary *w, const nc_act *x,
                            int64_t r0, int64_t r1, uint8_t *scratch)
{
	(void)scratch;
	for (int64_t t = 0; t < x->n; t++)
		rows(dst + t * ldd, w, x, t, r0, r1);
}
