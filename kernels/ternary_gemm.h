/* ternary_gemm.h: the blocking of TernaryGEMM, the same for every ISA. Included by the
 * files that supply the inner tiles. */
#ifndef NANOCHAT_KERNELS_TERNARY_GEMM_H
#define NANOCHAT_KERNELS_TERNARY_GEMM_H

#include "nc.h"

/* One step: blocks b to end (at most STEP) and groups g0 to g1 for one panel of T tokens.
 * Float sums start at zero if g0 is 0 and at sum otherwise; they end in dst, times gain, if
 * g1 is groups and in sum otherwise. */
enum { GEMM_STEP = 2 };

typedef struct {
	float *dst; /* of the panel's first token */
	int64_t ldd;
	const nc_ternary *w;
	int64_t groups, g0, g1;
	const int8_t *panel;  /* [stride/4][T][4] */
	const int32_t *start; /* [groups][T]: minus the sums of the activations */
	const float *gain;    /* [T] */
	float *sum;           /* [STEP][T][16] */
	int64_t b, end, r1;
} gemm_step;

/* T is fixed by the function. */
typedef void gemm_tile_fn(const gemm_step *s);

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
 * runs two blocks of rows against every panel, about 1024 columns at a time: their
 * tiles (8 KiB) stay in L1 while the panels pass by from L2, which a pass over
 * the tokens does not overfill. */
NC_INLINE void gemm_panels(gemm_tile_fn *const *tile, int64_t max, float *dst, int64_t ldd,
                           const nc_ternary *w, const nc_act *x, int64_t r0, int64_t r1,
                           uint8_t *scratch)
{
	const int64_t n = x->n, groups = x->groups, end = (r1 + 15) / 16;
	int8_t *panels = (int8_t *)(scratch + (-(uintptr_t)scratch & 63));
	float *sums = (float *)(panels + n * x->stride);
	int32_t *starts = (int32_t *)(sums + n * 16 * GEMM_STEP);
	float *gains = (float *)(starts + n * groups);
	const int64_t count = (n + max - 1) / max, chunk = w->group < 1024 ? 1024 / w->group : 1;
	int64_t per_pass = 400000 / (max * x->stride);
	per_pass = per_pass < 1 ? 1 : per_pass;
	for (int64_t p0 = 0; p0 < count; p0 += per_pass) {
		int64_t p1 = p0 + per_pass < count ? p0 + per_pass : count;
		for (int64_t p = p0; p < p1; p++) {
			int64_t t0 = p * n / count, t1 = (p + 1) * n / count;
			pack_panel(panels + t0 * x->stride, starts + t0 * groups, gains + t0, w, x, t0,
			           t1 - t0);
		}
		const int64_t g_step = p1 - p0 > 1 ? chunk : groups;
		for (int64_t b = r0 / 16; b < end; b += GEMM_STEP)
			for (int64_t g = 0; g < groups; g += g_step)
				for (int64_t p = p0; p < p1; p++) {
					int64_t t0 = p * n / count, t1 = (p + 1) * n / count;
					gemm_step s = {
						.dst = dst + t0 * ldd,
						.ldd = ldd,
						.w = w,
						.groups = groups,
						.g0 = g,
						.g1 = g + g_step < groups ? g + g_step : groups,
						.panel = panels + t0 * x->stride,
						.start = starts + t0 * groups,
						.gain = gains + t0,
						.sum = sums + t0 * 16 * GEMM_STEP,
						.b = b,
						.end = b + GEMM_STEP < end ? b + GEMM_STEP : end,
						.r1 = r1,
					};
					tile[t1 - t0](&s);
				}
	}
}

#endif
