// Backward of the activation functions and of the norms between the products of a layer function,
// and factors of the products for the weights. core/model's activation and feedForward say what is
// computed.
#include "train.cuh"

// ------------------------------------------------------------------- activations

enum { ReLU2 = 0, ReLU2GLU = 1, SwiGLU = 2 };

struct ActivateBackArgs {
	const void *d;     // [tokens][ffn], the gradient of the down projection's input, times its gain
	const float *rows; // [tokens][wide]: what the up projection gave, then the gate if there is one
	const float *weight;   // [ffn], of the norm in front of the down projection, or null: none
	const float *scale;    // [tokens], of the down projection's int8 input, or null
	const float *in_scale; // [tokens], of the up projection's, or null
	uint16_t *dyb;         // [tokens][wide]: dy of both, times the gain of in_scale
	float *partial;        // [gridDim.x][ffn], with weight
	Int8 input;            // the up projection's
	int32_t tokens, ffn, kind, half; // half: d is bfloat16
	float eps;
	int32_t reserved;
};

NC_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + nc_exp(-x)); }

// Slope is the value of an activation function and its derivative.
struct Slope {
	float value, derivative;
};

NC_DEVICE Slope relu2_slope(float x)
{
	const float v = nc_relu(x);
	Slope r = {v * v, v + v};
	return r;
}

NC_DEVICE Slope slope(int kind, float x)
{
	if (kind != SwiGLU)
		return relu2_slope(x);
	const float e = sigmoid(x);
	Slope r = {x * e, e * fmaf(x, 1.0f - e, 1.0f)};
	return r;
}

// Inner is what the backward needs of four values of a token. Without a gate its slope is that of
// up, which costs less to find again than to keep.
template <bool Gated> struct Inner {
	float up[4], gate[4];
	Slope slopes[4];

	NC_METHOD void load(const ActivateBackArgs &a, int64_t token, int i)
	{
		const float *row = a.rows + token * (Gated ? 2 : 1) * a.ffn + i;
		load4(up, row);
		if (Gated)
			load4(gate, row + a.ffn);
	}
	NC_METHOD void activate(int kind)
	{
		NC_UNROLL
		for (int e = 0; e < 4 && Gated; e++)
			slopes[e] = slope(kind, gate[e]);
	}
	// activated is the value that the norm has got.
	NC_METHOD float activated(int e) const
	{
		return Gated ? slopes[e].value * up[e] : relu2_slope(up[e]).value;
	}
	// finish writes dy, from the gradient d of what was activated.
	NC_METHOD void finish(const ActivateBackArgs &a, int64_t token, int i, float gain,
	                      const float d[4]) const
	{
		uint16_t *dst = a.dyb + token * (Gated ? 2 : 1) * a.ffn + i;
		float v[4];
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			v[e] = gain * (d[e] * (Gated ? slopes[e].value : relu2_slope(up[e]).derivative));
		store4_bf16(dst, v);
		if (!Gated)
			return;
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			v[e] = gain * (d[e] * up[e] * slopes[e].derivative);
		store4_bf16(dst + a.ffn, v);
	}
	// ahead asks for another token's.
	NC_METHOD static void ask(const ActivateBackArgs &a, int64_t token, int i)
	{
		const float *row = a.rows + token * (Gated ? 2 : 1) * a.ffn + i;
		ahead(row);
		if (Gated)
			ahead(row + a.ffn);
	}
};

// Without a norm every element is by itself.
template <bool Gated> NC_DEVICE void activate_back(const ActivateBackArgs &a)
{
	for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x) {
		const float scale = scale_of(a.scale, token), in_scale = scale_of(a.in_scale, token);
		ask(a.input, token);
		NC_UNROLL_BY(2)
		for (int i = 4 * (int)threadIdx.x; i < a.ffn; i += 4 * (int)blockDim.x) {
			float d[4];
			Inner<Gated> inner;
			Four raw;
			inner.load(a, token, i);
			raw.load(a.d, a.half, token * a.ffn + i);
			raw.values(d, a.half);
			inner.activate(a.kind);
		const float inverse_gain = 1.0f / gain_of(scale);
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				d[e] = d[e] * inverse_gain;
			inner.finish(a, token, i, gain_of(in_scale), d);
		}
		widen(a.input, token);
	}
}

NC_BOUNDED(relu2_back, ActivateBackArgs, 256, 6) { activate_back<false>(a); }
NC_BOUNDED(gated_back, ActivateBackArgs, 256, 5) { activate_back<true>(a); }

// E times four elements of a token for each thread.
template <int E, bool Gated>
NC_DEVICE void activate_norm_back(const ActivateBackArgs &a, Slots<2> &slots)
{
	const int tid = (int)threadIdx.x, step = 4 * (int)blockDim.x;
	float w[E][4], part[E][4];
	begin_weight<E>(w, part, a.weight, a.ffn);
	int turn = 0;
	for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x) {
		const float scale = scale_of(a.scale, token), in_scale = scale_of(a.in_scale, token);
		float d[E][4], sums[2] = {0, 0};
		Four raw[E];
		Inner<Gated> inner[E];
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			const int i = 4 * tid + k * step;
			if (i >= a.ffn)
				continue;
			inner[k].load(a, token, i);
			raw[k].load(a.d, a.half, token * a.ffn + i);
			if (token + gridDim.x < a.tokens) {
				inner[k].ask(a, token + gridDim.x, i);
				ahead(a.d, a.half, (token + gridDim.x) * a.ffn + i);
			}
		}
		ask(a.input, token);
		const float inverse_gain = 1.0f / gain_of(scale);
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			if (4 * tid + k * step >= a.ffn)
				continue;
			raw[k].values(d[k], a.half);
			inner[k].activate(a.kind);
			NC_UNROLL
			for (int e = 0; e < 4; e++) {
				const float u = inner[k].activated(e);
				d[k][e] = d[k][e] * inverse_gain;
				sums[0] = fmaf(u, u, sums[0]);
				sums[1] = fmaf(d[k][e] * w[k][e], u, sums[1]);
			}
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
				const float u = inner[k].activated(e);
				part[k][e] = fmaf(d[k][e], u * n.inverse, part[k][e]);
				v[e] = fmaf(n.factor, u, d[k][e] * w[k][e]) * n.inverse;
			}
			inner[k].finish(a, token, i, gain_of(in_scale), v);
		}
		widen(a.input, token);
	}
	end_weight<E>(a.partial, part, a.ffn);
}

#define ACTIVATE_NORM(name, E, gated, threads, blocks)               \
	NC_BOUNDED(name##_norm_back_##E, ActivateBackArgs, threads, blocks) \
	{                                                                \
		NC_SHARED Slots<2> slots;                                    \
		activate_norm_back<E, gated>(a, slots);                      \
	}
ACTIVATE_NORM(relu2, 1, false, 768, 2)
ACTIVATE_NORM(relu2, 2, false, 512, 2)
ACTIVATE_NORM(relu2, 4, false, 512, 1)
ACTIVATE_NORM(relu2, 8, false, 512, 1)
ACTIVATE_NORM(gated, 1, true, 1024, 1)
ACTIVATE_NORM(gated, 4, true, 512, 1)
ACTIVATE_NORM(gated, 8, true, 512, 1)

// ------------------------------------------------------------------------- norms

struct NormBackArgs {
	const void *d;       // [tokens][width], the gradient of the normed vector, times the gain
	const float *x;      // [tokens][width], or null without weight
	const float *weight; // [width], or null: there is no norm
	const float *scale;  // [tokens], of the vector's int8 values, or null
	uint16_t *dst;       // [tokens][width]
	float *partial;      // [gridDim.x][width], with weight
	Int8 input;
	int32_t tokens, width, half; // half: d is bfloat16
	float eps;
};

template <int E> NC_DEVICE void sub_norm_back(const NormBackArgs &a, Slots<2> &slots)
{
	const int tid = (int)threadIdx.x, step = 4 * (int)blockDim.x;
	float w[E][4], part[E][4];
	begin_weight<E>(w, part, a.weight, a.weight ? a.width : 0);
	int turn = 0;
	for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x) {
		const float scale = scale_of(a.scale, token);
		float d[E][4], u[E][4], sums[2] = {0, 0};
		Four raw[E];
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			const int i = 4 * tid + k * step;
			raw[k].clear();
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				u[k][e] = 0;
			if (i >= a.width)
				continue;
			if (a.weight) {
				load4(u[k], a.x + token * a.width + i);
				if (token + gridDim.x < a.tokens)
					ahead(a.x + (token + gridDim.x) * a.width + i);
			}
			raw[k].load(a.d, a.half, token * a.width + i);
		}
		ask(a.input, token);
		const float inverse_gain = 1.0f / gain_of(scale);
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			raw[k].values(d[k], a.half);
			NC_UNROLL
			for (int e = 0; e < 4; e++) {
				d[k][e] = d[k][e] * inverse_gain;
				sums[0] = fmaf(u[k][e], u[k][e], sums[0]);
				sums[1] = fmaf(d[k][e] * w[k][e], u[k][e], sums[1]);
			}
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
	end_weight<E>(a.partial, part, a.weight ? a.width : 0);
}

#define SUB_NORM(E, threads, blocks)                                   \
	NC_BOUNDED(sub_norm_back_##E, NormBackArgs, threads, blocks)    \
	{                                                                  \
		NC_SHARED Slots<2> slots;                                      \
		sub_norm_back<E>(a, slots);                                    \
	}
SUB_NORM(1, 512, 2)
SUB_NORM(2, 512, 2)
SUB_NORM(4, 512, 1)

// ----------------------------------------------------------------------- factors

struct FactorsArgs {
	Int8 input;
	int32_t tokens, reserved;
};

NC_BOUNDED(factors, FactorsArgs, 256, 8)
{
	for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x)
		widen(a.input, token);
}

struct RoundArgs {
	const float *x;
	uint16_t *bf16, *f16; // or null
	int64_t n;            // a multiple of 4
};

NC_BOUNDED(round_floats, RoundArgs, 256, 8)
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
