// Backward of the activation functions and of the norms between the products of a layer function,
// and factors of the products for the weights. core/model's activation and feedForward say what is
// computed.
#include "train.cuh"

// ------------------------------------------------------------------- activations

enum { ReLU2 = 0, ReLU2GLU = 1, SwiGLU = 2 };

struct ActivateBackArgs {
	const float *d;    // [tokens][ffn], the gradient of the down projection's input, times its gain
	const float *rows; // [tokens][wide]: what the up projection gave, then the gate if there is one
	const float *weight;   // [ffn], of the norm in front of the down projection, or null: none
	const float *scale;    // [tokens], of the down projection's int8 input, or null
	const float *in_scale; // [tokens], of the up projection's, or null
	uint16_t *dyb;         // [tokens][wide]: dy of both, times the gain of in_scale
	float *partial;        // [gridDim.x][ffn], with weight
	Int8 input;            // the up projection's
	int32_t tokens, ffn, kind;
	float eps;
};

NC_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + nc_exp(-x)); }

// slope is what the backward needs of a gate's value: its activation's value and its derivative.
struct Slope {
	float value, derivative;
};

NC_DEVICE Slope slope(int kind, float g)
{
	Slope r;
	if (kind == SwiGLU) {
		const float e = sigmoid(g);
		r.value = g * e, r.derivative = e * fmaf(g, 1.0f - e, 1.0f);
	} else {
		const float v = nc_relu(g);
		r.value = v * v, r.derivative = v + v;
	}
	return r;
}

// finish_activation writes dy of four elements, from the gradient d of the activated ones.
NC_DEVICE void finish_activation(const ActivateBackArgs &a, int64_t token, int i, float gain,
                                 const float d[4], const float up[4], const Slope s[4])
{
	uint16_t *dst = a.dyb + token * (a.kind == ReLU2 ? a.ffn : 2 * a.ffn) + i;
	float v[4];
	NC_UNROLL
	for (int e = 0; e < 4; e++)
		v[e] = gain * (d[e] * (a.kind == ReLU2 ? s[e].derivative : s[e].value));
	store4_bf16(dst, v);
	if (a.kind == ReLU2)
		return;
	NC_UNROLL
	for (int e = 0; e < 4; e++)
		v[e] = gain * (d[e] * up[e] * s[e].derivative);
	store4_bf16(dst + a.ffn, v);
}

NC_DEVICE void load_activation(const ActivateBackArgs &a, int64_t token, int i, float up[4], Slope s[4])
{
	const float *row = a.rows + token * (a.kind == ReLU2 ? a.ffn : 2 * a.ffn) + i;
	float gate[4];
	load4(up, row);
	load4(gate, a.kind == ReLU2 ? row : row + a.ffn);
	NC_UNROLL
	for (int e = 0; e < 4; e++)
		s[e] = slope(a.kind, gate[e]);
}

// Without a norm every element is by itself.
NC_KERNEL_FOR(activate_back, ActivateBackArgs, 256, 4)
{
	for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x) {
		const float inverse_gain = 1.0f / gain_of(a.scale, token), gain = gain_of(a.in_scale, token);
		for (int i = 4 * (int)threadIdx.x; i < a.ffn; i += 4 * (int)blockDim.x) {
			float d[4], up[4];
			Slope s[4];
			load4(d, a.d + token * a.ffn + i);
			load_activation(a, token, i, up, s);
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				d[e] = d[e] * inverse_gain;
			finish_activation(a, token, i, gain, d, up, s);
		}
		widen(a.input, token);
	}
}

// E times four elements of a token for each thread.
template <int E> NC_DEVICE void activate_norm_back(const ActivateBackArgs &a, Slots<2> &slots)
{
	const int tid = (int)threadIdx.x, step = 4 * (int)blockDim.x;
	float w[E][4], part[E][4];
	NC_UNROLL
	for (int k = 0; k < E; k++) {
		const int i = 4 * tid + k * step;
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			part[k][e] = w[k][e] = 0;
		if (i < a.ffn)
			load4(w[k], a.weight + i);
	}
	int turn = 0;
	for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x) {
		const float inverse_gain = 1.0f / gain_of(a.scale, token), gain = gain_of(a.in_scale, token);
		float d[E][4], up[E][4], sums[2] = {0, 0};
		Slope slopes[E][4];
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			const int i = 4 * tid + k * step;
			if (i >= a.ffn)
				continue;
			load4(d[k], a.d + token * a.ffn + i);
			load_activation(a, token, i, up[k], slopes[k]);
		}
		NC_UNROLL
		for (int k = 0; k < E; k++)
			NC_UNROLL
			for (int e = 0; e < 4; e++) {
				if (4 * tid + k * step >= a.ffn)
					continue;
				const float u = a.kind == ReLU2 ? slopes[k][e].value : slopes[k][e].value * up[k][e];
				d[k][e] = d[k][e] * inverse_gain;
				sums[0] = fmaf(u, u, sums[0]);
				sums[1] = fmaf(d[k][e] * w[k][e], u, sums[1]);
			}
		block_sum(sums, slots, turn);
		const NormBack n = norm_back(sums, a.ffn, a.eps);
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			const int i = 4 * tid + k * step;
			if (i >= a.ffn)
				continue;
			float v[4];
			NC_UNROLL
			for (int e = 0; e < 4; e++) {
				const float u = a.kind == ReLU2 ? slopes[k][e].value : slopes[k][e].value * up[k][e];
				part[k][e] = fmaf(d[k][e], u * n.inverse, part[k][e]);
				v[e] = fmaf(n.factor, u, d[k][e] * w[k][e]) * n.inverse;
			}
			finish_activation(a, token, i, gain, v, up[k], slopes[k]);
		}
		widen(a.input, token);
	}
	NC_UNROLL
	for (int k = 0; k < E; k++) {
		const int i = 4 * tid + k * step;
		if (i < a.ffn)
			store4(a.partial + (int64_t)blockIdx.x * a.ffn + i, part[k]);
	}
}

#define ACTIVATE_NORM(E, threads, blocks)                                        \
	NC_KERNEL_FOR(activate_norm_back_##E, ActivateBackArgs, threads, blocks)     \
	{                                                                            \
		NC_SHARED Slots<2> slots;                                                \
		activate_norm_back<E>(a, slots);                                         \
	}
ACTIVATE_NORM(1, 512, 2)
ACTIVATE_NORM(2, 512, 1)
ACTIVATE_NORM(4, 512, 1)
ACTIVATE_NORM(8, 512, 1)

// ------------------------------------------------------------------------- norms

struct NormBackArgs {
	const float *d;      // [tokens][width], the gradient of the normed vector, times the gain
	const float *x;      // [tokens][width], or null without weight
	const float *weight; // [width], or null: there is no norm
	const float *scale;  // [tokens], of the vector's int8 values, or null
	uint16_t *dst;       // [tokens][width]
	float *partial;      // [gridDim.x][width], with weight
	Int8 input;
	int32_t tokens, width;
	float eps;
	int32_t reserved;
};

template <int E> NC_DEVICE void sub_norm_back(const NormBackArgs &a, Slots<2> &slots)
{
	const int tid = (int)threadIdx.x, step = 4 * (int)blockDim.x;
	float w[E][4], part[E][4];
	NC_UNROLL
	for (int k = 0; k < E; k++) {
		const int i = 4 * tid + k * step;
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			part[k][e] = w[k][e] = 0;
		if (a.weight && i < a.width)
			load4(w[k], a.weight + i);
	}
	int turn = 0;
	for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x) {
		const float inverse_gain = 1.0f / gain_of(a.scale, token);
		float d[E][4], u[E][4], sums[2] = {0, 0};
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			const int i = 4 * tid + k * step;
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				d[k][e] = u[k][e] = 0;
			if (i >= a.width)
				continue;
			load4(d[k], a.d + token * a.width + i);
			if (a.weight)
				load4(u[k], a.x + token * a.width + i);
		}
		NC_UNROLL
		for (int k = 0; k < E; k++)
			NC_UNROLL
			for (int e = 0; e < 4; e++) {
				d[k][e] = d[k][e] * inverse_gain;
				sums[0] = fmaf(u[k][e], u[k][e], sums[0]);
				sums[1] = fmaf(d[k][e] * w[k][e], u[k][e], sums[1]);
			}
		NormBack n = {1, 0};
		if (a.weight) {
			block_sum(sums, slots, turn);
			n = norm_back(sums, a.width, a.eps);
		}
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			const int i = 4 * tid + k * step;
			if (i >= a.width)
				continue;
			if (a.weight)
				NC_UNROLL
				for (int e = 0; e < 4; e++) {
					part[k][e] = fmaf(d[k][e], u[k][e] * n.inverse, part[k][e]);
					d[k][e] = fmaf(n.factor, u[k][e], d[k][e] * w[k][e]) * n.inverse;
				}
			store4_bf16(a.dst + token * a.width + i, d[k]);
		}
		widen(a.input, token);
	}
	NC_UNROLL
	for (int k = 0; k < E; k++) {
		const int i = 4 * tid + k * step;
		if (a.weight && i < a.width)
			store4(a.partial + (int64_t)blockIdx.x * a.width + i, part[k]);
	}
}

#define SUB_NORM(E, threads, blocks)                                   \
	NC_KERNEL_FOR(sub_norm_back_##E, NormBackArgs, threads, blocks)    \
	{                                                                  \
		NC_SHARED Slots<2> slots;                                      \
		sub_norm_back<E>(a, slots);                                    \
	}
SUB_NORM(1, 512, 3)
SUB_NORM(2, 512, 2)
SUB_NORM(4, 512, 1)

// ----------------------------------------------------------------------- factors

struct FactorsArgs {
	Int8 input;
	int32_t tokens, reserved;
};

NC_KERNEL_FOR(factors, FactorsArgs, 256, 8)
{
	for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x)
		widen(a.input, token);
}

struct RoundArgs {
	const float *x;
	uint16_t *bf16, *f16; // or null
	int64_t n;            // a multiple of 4
};

NC_KERNEL_FOR(round_floats, RoundArgs, 256, 8)
{
	const int64_t step = 1024 * (int64_t)gridDim.x;
	for (int64_t i = 4 * ((int64_t)blockIdx.x * 256 + threadIdx.x); i < a.n; i += step) {
		float v[4];
		load4(v, a.x + i);
		if (a.bf16)
			store4_bf16(a.bf16 + i, v);
		if (a.f16)
			store4_half(a.f16 + i, v);
	}
}
