// Mixing of residual streams between two layer functions.
#pragma once
#include "coef.cuh"

struct MixArgs {
	const float *x;       // [tokens][streams][dim]
	float *out;           // [tokens][streams][dim]: what becomes of x; may be x
	float *left;          // [tokens][streams][dim]: that before the scalars, or null
	const float *y;       // [tokens][dim]: what the layer function gave, or null: nothing to write
	const float *initial; // [tokens][dim], with scalars
	const float *scalars; // [2] of the layer that is entered, or null
	float *u;             // [tokens][dim]: what the next layer function reads, or null
	float *mean;          // [tokens][dim]: the mean of the streams, or null
	const Coef *write, *read;
	int32_t dim, streams, per_token, reserved; // per_token: each token has its own Coef
};

// mix_columns does S streams, W columns a thread: with W = 4 it moves 16 bytes at once, and
// S + 2 such loads are in flight.
template <int S, int W> NC_DEVICE void mix_columns(const MixArgs &a)
{
	typedef Pack<W> Wide;
	const int64_t token = blockIdx.x;
	const Coef *write = a.write + (a.per_token ? token : 0);
	const Coef *read = a.read + (a.per_token ? token : 0);
	for (int i = W * (int)threadIdx.x; i < a.dim; i += W * (int)blockDim.x) {
		const int64_t at = token * S * a.dim + i, one = token * a.dim + i;
		Wide old[S], now[S], y, first;
		for (int s = 0; s < S; s++)
			now[s] = old[s] = *(const Wide *)(a.x + at + (int64_t)s * a.dim);
		if (a.y)
			y = *(const Wide *)(a.y + one);
		if (a.scalars)
			first = *(const Wide *)(a.initial + one);
		if (a.y && S == 1) {
			for (int k = 0; k < W; k++)
				now[0].v[k] = old[0].v[k] + y.v[k];
		} else if (a.y) {
			for (int s = 0; s < S; s++) {
				for (int k = 0; k < W; k++)
					now[s].v[k] = write->res[s][0] * old[0].v[k];
				for (int j = 1; j < S; j++)
					for (int k = 0; k < W; k++)
						now[s].v[k] = fmaf(write->res[s][j], old[j].v[k], now[s].v[k]);
				for (int k = 0; k < W; k++)
					now[s].v[k] = fmaf(write->post[s], y.v[k], now[s].v[k]);
			}
		}
		for (int s = 0; a.left && s < S; s++)
			*(Wide *)(a.left + at + (int64_t)s * a.dim) = now[s];
		if (a.scalars)
			for (int s = 0; s < S; s++)
				for (int k = 0; k < W; k++)
					now[s].v[k] = fmaf(a.scalars[1], first.v[k], a.scalars[0] * now[s].v[k]);
		if (a.y || a.scalars || a.out != a.x)
			for (int s = 0; s < S; s++)
				*(Wide *)(a.out + at + (int64_t)s * a.dim) = now[s];
		if (a.u) {
			Wide u = now[0];
			for (int k = 0; S > 1 && k < W; k++) {
				u.v[k] = read->pre[0] * now[0].v[k];
				for (int s = 1; s < S; s++)
					u.v[k] = fmaf(read->pre[s], now[s].v[k], u.v[k]);
			}
			*(Wide *)(a.u + one) = u;
		}
		if (a.mean) {
			Wide mean = now[0];
			for (int k = 0; S > 1 && k < W; k++) {
				for (int s = 1; s < S; s++)
					mean.v[k] = mean.v[k] + now[s].v[k];
				mean.v[k] = 1.0f / (float)S * mean.v[k];
			}
			*(Wide *)(a.mean + one) = mean;
		}
	}
}
