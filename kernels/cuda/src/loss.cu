// Cross entropy of a block of tokens, as kernels.Loss defines it, and sums of losses.
#include "train.cuh"

enum { Scale = 0, Z = 1, Entropy = 2, Smoothing = 3, Cap = 4 };

struct CrossEntropyArgs {
	const float *logits;    // [tokens][stride]
	const float *scale;     // [tokens], which multiplies a token's logits, or null
	const int32_t *targets; // [tokens], -1: none
	const float *options;   // [5]
	uint16_t *dz;   // [tokens][stride]: gradient by the scaled logits times the gain, or null
	float *results; // [tokens][4]: nll, lse, entropy, objective
	int32_t vocab, stride;
	int32_t kept; // columns that stay in shared memory, a multiple of 4 or vocab
	int32_t reserved;
};

// fast_exp is e^x with a relative error of 2^-22 and of 2^-24·|x|: of no weight where |x| is large,
// for its results are then small beside that of 0.
NC_DEVICE float fast_exp(float x) { return nc_exp2(x * 0x1.715476p+0f); }

// reciprocal is 1/x within a unit or two in the last place, 0 of infinity.
NC_DEVICE float reciprocal(float x)
{
#ifdef __CUDACC_RTC__
	float y;
	asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
#else
	return 1.0f / x;
#endif
}

// soft is cap·tanh(z/cap), with an error of a few units in the last place or of 2^-22·cap.
NC_DEVICE float soft(float z, float cap, float inverse_cap)
{
	const float x = z * inverse_cap, t = x * x;
	const float size = __uint_as_float(__float_as_uint(x) & 0x7fffffffu);
	float p = fmaf(-0x1.75d426p-8f, t, 0x1.5223acp-6f);
	p = fmaf(p, t, -0x1.b83becp-5f);
	p = fmaf(p, t, 0x1.110724p-3f);
	p = fmaf(p, t, -0x1.555532p-2f);
	const float small = fmaf(p, t * x, x);
	const float large = 1.0f - 2.0f * reciprocal(fast_exp(size + size) + 1.0f);
	const float signed_large =
		__uint_as_float(__float_as_uint(large) | (__float_as_uint(x) & 0x80000000u));
	return cap * (size > 0.625f ? signed_large : small);
}

// logits4 is four logits of a row from column i on, scaled and capped; those from vocab on are any
// numbers.
NC_DEVICE void logits4(float v[4], const CrossEntropyArgs &a, const float *row, int i, float scale,
                       float cap, float inverse_cap)
{
	if (i + 4 <= a.vocab && a.stride % 4 == 0) {
		load4(v, row + i);
	} else {
	NC_UNROLL
		for (int e = 0; e < 4; e++)
			v[e] = i + e < a.vocab ? row[i + e] : 0.0f;
	}
	NC_UNROLL
	for (int e = 0; e < 4; e++) {
		v[e] = a.scale ? v[e] * scale : v[e];
		if (cap != 0)
			v[e] = soft(v[e], cap, inverse_cap);
	}
}

NC_DEVICE void store_row4(uint16_t *row, int i, int stride, const float v[4])
{
	if (stride % 4 == 0) {
		store4_bf16(row + i, v);
		return;
	}
	NC_UNROLL
	for (int e = 0; e < 4; e++)
		if (i + e < stride)
			row[i + e] = nc_to_bf16(v[e]);
}

// Online is a thread's sums over its logits y so far: of exp(y-top), of exp(y-top)·y, and of y.
struct Online {
	float top, sum, weighted, plain;
};

NC_DEVICE void online(Online &o, const float y[4], int count)
{
	float top = o.top;
	NC_UNROLL
	for (int e = 0; e < 4; e++)
		top = e < count && y[e] > top ? y[e] : top;
	if (top > o.top) {
		const float c = fast_exp(o.top - top);
		o.sum = o.sum * c, o.weighted = o.weighted * c, o.top = top;
	}
	NC_UNROLL
	for (int e = 0; e < 4; e++) {
		if (e >= count)
			continue;
		const float p = fast_exp(y[e] - top);
		o.sum = o.sum + p;
		o.weighted = fmaf(p, y[e], o.weighted);
		o.plain = o.plain + y[e];
	}
}

// A block for a token. What is kept of its logits, capped, is dynamic shared memory.
NC_BOUNDED(cross_entropy, CrossEntropyArgs, 1024, 1)
{
	NC_DYNAMIC(float, kept);
	NC_SHARED float tops[MaxWarps], slots[3][MaxWarps];
	const int tid = (int)threadIdx.x, lane = tid % 32, warps = (int)blockDim.x / 32, step = 4 * (int)blockDim.x;
	const int64_t token = blockIdx.x;
	const float *row = a.logits + token * a.stride;
	uint16_t *dz = a.dz ? a.dz + token * a.stride : 0;
	const int target = a.targets[token];
	if (target < 0) {
		const float none[4] = {0, 0, 0, 0};
		for (int i = 4 * tid; dz && i < a.stride; i += step)
			store_row4(dz, i, a.stride, none);
		if (tid == 0)
			store4(a.results + 4 * token, none);
		return;
	}
	const float scale = a.scale ? a.scale[token] : 1.0f, cap = a.options[Cap];
	const float inverse_cap = cap != 0 ? 1.0f / cap : 0.0f;
	// Not -INFINITY: the difference to a logit of -INFINITY has to be one.
	Online o = {-0x1.fffffep+127f, 0, 0, 0};
	enum { Flight = 4 }; // accesses of 16 bytes that a thread has under way
	for (int base = 4 * tid; base < a.vocab; base += Flight * step) {
		float y[Flight][4];
		NC_UNROLL
		for (int k = 0; k < Flight; k++)
			if (base + k * step < a.vocab)
				logits4(y[k], a, row, base + k * step, scale, cap, inverse_cap);
		NC_UNROLL
		for (int k = 0; k < Flight; k++) {
			const int i = base + k * step;
			if (i >= a.vocab)
				continue;
			if (dz && i < a.kept)
				store4(kept + i, y[k]);
			online(o, y[k], a.vocab - i);
		}
	}
	float top = o.top;
	for (int m = 16; m > 0; m /= 2) {
		const float other = nc_shuffle_xor(top, m);
		top = other > top ? other : top;
	}
	if (lane == 0)
		tops[tid / 32] = top;
	__syncthreads();
	for (int w = 0; w < warps; w++)
		top = tops[w] > top ? tops[w] : top;
	const float c = fast_exp(o.top - top);
	float sums[3] = {o.sum * c, o.weighted * c, o.plain};
	NC_UNROLL
	for (int i = 0; i < 3; i++) {
		for (int m = 16; m > 0; m /= 2)
			sums[i] = sums[i] + nc_shuffle_xor(sums[i], m);
		if (lane == 0)
			slots[i][tid / 32] = sums[i];
	}
	__syncthreads();
	NC_UNROLL
	for (int i = 0; i < 3; i++) {
		sums[i] = lane < warps ? slots[i][lane] : 0.0f;
		for (int m = 16; m > 0; m /= 2)
			sums[i] = sums[i] + nc_shuffle_xor(sums[i], m);
	}
	const float inverse = 1.0f / sums[0], mean = sums[1] * inverse;
	const float entropy = a.options[Entropy], smoothing = a.options[Smoothing], z2 = a.options[Z];
	float right = row[target];
	right = a.scale ? right * scale : right;
	right = cap != 0 ? soft(right, cap, inverse_cap) : right;
	if (tid == 0) {
		const double exact = (double)top + log((double)sums[0]), share = smoothing;
		const float lse = (float)exact, nll = lse - right, h = lse - mean;
		const double plain = (double)sums[2] / a.vocab;
		const float objective =
			(float)((1 - share) * nll + (share != 0 ? share * ((double)lse - plain) : 0) +
		            (double)z2 * lse * lse - (entropy != 0 ? (double)entropy * h : 0));
		const float results[4] = {nll, lse, h, objective};
		store4(a.results + 4 * token, results);
	}
	if (!dz)
		return;
	// The terms of kernels.lossTerms.
	const float factor = a.options[Scale] * (a.scale ? gain_of(a.scale, token) : 1.0f);
	const float p = inverse * factor, ka = fmaf(2.0f * z2, top + logf(sums[0]), 1.0f);
	const float kb = -(smoothing / (float)a.vocab) * factor, share = (1.0f - smoothing) * factor;
	for (int i = 4 * tid; i < a.stride; i += step) {
		float y[4];
		if (i >= a.vocab) {
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				y[e] = 0;
		} else if (i < a.kept) {
			load4(y, kept + i); // what this thread has stored
		} else {
			logits4(y, a, row, i, scale, cap, inverse_cap);
		}
		NC_UNROLL
		for (int e = 0; e < 4; e++) {
			const float k = entropy != 0 ? fmaf(entropy, y[e] - mean, ka) : ka;
			float g = fmaf(fast_exp(y[e] - top) * p, k, kb) - (i + e == target ? share : 0.0f);
			const float t = y[e] * inverse_cap;
			g = cap != 0 ? g * fmaf(-t, t, 1.0f) : g;
			y[e] = i + e < a.vocab ? g : 0.0f;
		}
		store_row4(dz, i, a.stride, y);
	}
}

struct LossSumArgs {
	double *dst;            // [6]: count, nll, lse², entropy, objective, nothing; added to
	const float *results;   // [n][4]
	const int32_t *targets; // [n]
	int32_t n, reserved;
};

// One block of 1024 threads.
NC_BOUNDED(loss_sum, LossSumArgs, 1024, 1)
{
	enum { N = 5 };
	NC_SHARED double slots[N][MaxWarps];
	const int tid = (int)threadIdx.x;
	double sums[N] = {0, 0, 0, 0, 0};
	NC_UNROLL_BY(4)
	for (int i = tid; i < a.n; i += 1024) {
		if (a.targets[i] < 0)
			continue;
		float r[4];
		load4(r, a.results + 4 * (int64_t)i);
		sums[0] = sums[0] + 1;
		sums[1] = sums[1] + (double)r[0];
		sums[2] = sums[2] + (double)r[1] * (double)r[1];
		sums[3] = sums[3] + (double)r[2];
		sums[4] = sums[4] + (double)r[3];
	}
	NC_UNROLL
	for (int k = 0; k < N; k++) {
		for (int m = 16; m > 0; m /= 2)
			sums[k] = sums[k] + nc_shuffle_xor(sums[k], m);
		if (tid % 32 == 0)
			slots[k][tid / 32] = sums[k];
	}
	__syncthreads();
	if (tid >= N)
		return;
	double s = a.dst[tid];
	for (int w = 0; w < MaxWarps; w++)
		s = s + slots[tid][w];
	a.dst[tid] = s;
}
