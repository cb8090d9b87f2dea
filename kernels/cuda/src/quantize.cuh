// Quantisation of a vector that is in shared memory: kernels.Set's RMSNormQuantize and Quantize,
// to the bit.
#pragma once
#include "math.cuh"

struct QuantizeArgs {
	float *norm;         // [tokens][n], or null: what was quantised
	int8_t *q;           // [tokens][stride], or null: norm alone
	int32_t *sums;       // [tokens][groups]
	float *scale;        // [tokens]
	const float *x;      // [tokens][n]
	const float *weight; // [n], or null: all ones
	int32_t n, stride, group, groups;
	float eps;
	int32_t normalize; // 0: quantise x itself
};

// NormWeights is what a thread has of the norm's weights before it needs them: they are constant,
// so that they may be asked for while the kernel in front of this one runs.
enum { WeightsAhead = 8 };
struct NormWeights {
	float weight[WeightsAhead];
};
NC_DEVICE NormWeights norm_weights(const QuantizeArgs &a)
{
	NormWeights w;
	for (int j = 0; j < WeightsAhead; j++) {
		const int i = (int)threadIdx.x + j * (int)blockDim.x;
		w.weight[j] = a.weight && i < a.n ? a.weight[i] : 1.0f;
	}
	return w;
}

// quantize_vector norms, if it is to, and quantises v [n]. All threads of a block come, whole
// warps; v may have been written by any of them just before.
NC_DEVICE void quantize_vector(float *v, const QuantizeArgs &a, const NormWeights &w, int64_t token)
{
	NC_SHARED float lanes[16];
	NC_SHARED uint32_t tops[32];
	NC_SHARED float inverse;
	const int tid = (int)threadIdx.x, threads = (int)blockDim.x;
	int32_t *sums = a.sums + token * a.groups;
	for (int g = tid; a.q && g < a.groups; g += threads)
		sums[g] = 0;
	__syncthreads();

	if (a.normalize) {
		if (tid < 16) { // 16 strided sums by FMA, as every processor adds them
			float s = 0;
			int i = tid;
			for (; i + 7 * 16 < a.n; i += 8 * 16) {
				float x[8]; // read ahead of the sums, which wait for each other
				for (int j = 0; j < 8; j++)
					x[j] = v[i + 16 * j];
				for (int j = 0; j < 8; j++)
					s = fmaf(x[j], x[j], s);
			}
			for (; i < a.n; i += 16)
				s = fmaf(v[i], v[i], s);
			lanes[tid] = s;
		}
		__syncthreads();
		if (tid == 0)
			inverse = 1.0f / sqrtf(nc_tree(lanes) / (float)a.n + a.eps);
		__syncthreads();
		for (int j = 0; j < WeightsAhead; j++) {
			const int i = tid + j * threads;
			if (i < a.n)
				v[i] = v[i] * inverse * w.weight[j];
		}
		for (int i = tid + WeightsAhead * threads; i < a.n; i += threads) {
			float y = v[i] * inverse;
			v[i] = a.weight ? y * a.weight[i] : y;
		}
	}
	// Magnitudes of floats, infinities and NaN order like their bits.
	uint32_t top = 0;
	for (int i = tid; i < a.n; i += threads) {
		uint32_t u = __float_as_uint(v[i]) & 0x7fffffffu;
		top = u > top ? u : top;
		if (a.norm)
			a.norm[token * a.n + i] = v[i];
	}
	if (!a.q)
		return;
	for (int m = 16; m > 0; m /= 2) {
		uint32_t other = nc_shuffle_xor(top, m);
		top = other > top ? other : top;
	}
	if (tid % 32 == 0)
		tops[tid / 32] = top;
	__syncthreads();
	for (int w = 0; w < threads / 32; w++)
		top = tops[w] > top ? tops[w] : top;
	const float scale = __uint_as_float(top) / 127.0f;
	const bool none = scale == 0.0f || !(scale - scale == 0.0f);
	if (tid == 0)
		a.scale[token] = scale;

	int8_t *q = a.q + token * a.stride;
	for (int base = 0; base < a.stride; base += threads) {
		const int i = base + tid;
		int value = 0;
		if (i < a.n && !none) {
			value = nc_round(v[i] / scale);
			value = value > 127 ? 127 : value < -127 ? -127 : value;
		}
		if (i < a.stride)
			q[i] = (int8_t)value;
		// Groups are whole sixteens of columns, or the row.
		for (int m = 8; m > 0; m /= 2)
			value += nc_shuffle_xor(value, m);
		if (tid % 16 == 0 && i < a.n)
			atomicAdd(&sums[i / a.group], value);
	}
}
