/* ternary_gemm.h: the blocking of TernaryGEMM, the same for every ISA. Included by the
 * files that supply the inner tiles. */
#ifndef NANOCHAT_KERNELS_TERNARY_GEMM_H
#define NANOCHAT_KERNELS_TERNARY_GEMM_H

#include "nc.h"

/* gemm_tile_fn computes blocks b to end for one panel of T tokens (T is fixed by the
 * function). panel is [stride/4][T][4] activations, start is [groups][T] minus the
 * sums of activations, gain is [T] final factors. */
typedef void gemm_tile_fn(float *dst, int64_t ldd, const nc_ternary *w, int64_t groups,
                          const int8_t *panel, const int32_t *start, const float *gain, int64_t b,
                          int64_t end, int64_t r1);

/* pack_panel interleaves T tokens of x from t0: dwords [stride/4][T]. */
static void pack_panel(int8_t *panel, int32_t *start, float *gain, const nc_ternary *w,
                       const nc_act *x, int64_t t0, int64_t T)
{
	const int64_t used = (w->cols + 15) / 16 * 16;
	for (int64_t t = 0; t < T; t++) {
		const int8_t *q = x->q + (t0 + t) * x->stride;
		int8_t *p = panel + 4 * t;
		for (int64_t k = 0; k < used; k += 4, p += 4 * T)
			memcpy(p, q + k, 4);
		for (int64_t g = 0; g < x->groups; g++)
			start[g * T + t] = -x->sums[(t0 + t) * x->groups + g];
		gain[t] = x->scale[t0 + t] * w->gain;
	}
}

/* gemm_panels splits the tokens evenly into panels of at most max, packs them once, and
 * runs step blocks of rows against every panel while the blocks' tiles are in the
 * nearest cache. Tokens are taken so many at a time that their panels stay in L2. */
NC_INLINE void gemm_panels(gemm_tile_fn *const *tile, int64_t max, int64_t step, float *dst,
                           int64_t ldd, const nc_ternary *w, const nc_act *x, int64_t r0, int64_t r1,
                           uint8_t *scratch)
{
	const int64_t n = x->n, groups = x->groups, end = (r1 + 15) / 16;
	uint8_t *at = scratch + (-(uintptr_t)scratch & 63);
	int8_t *panels = (int8_t *)at;
	int32_t *starts = (int32_t *)(at + n * x->stride);
	float *gains = (float *)(starts + n * groups);
	const int64_t count = (n + max - 1) / max;
	int64_t per_pass = 400000 / (max * x->stride);
	per_pass = per_pass < 1 ? 1 : per_pass;
	for (int64_t p0 = 0; p0 < count; p0 += per_pass) {
		int64_t p1 = p0 + per_pass < count ? p0 + per_pass : count;
		for (int64_t p = p0; p < p1; p++) {
			int64_t t0 = p * n / count, t1 = (p + 1) * n / count;
			pack_panel(panels + t0 * x->stride, starts + t0 * groups, gains + t0, w, x, t0, t1 - t0);
		}
		for (int64_t b = r0 / 16; b < end; b += step)
			for (int64_t p = p0; p < p1; p++) {
				int64_t t0 = p * n / count, t1 = (p + 1) * n / count;
				tile[t1 - t0](dst + t0 * ldd, ldd, w, groups, panels + t0 * x->stride,
				              starts + t0 * groups, gains + t0, b, b + step < end ? b + step : end,
				              r1);
			}
	}
}

#endif
