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
	int32_t kept; // columns that stay in shared memory, a multiple of 4
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

// Terms are what turns logits into their probabilities' exponents: the token's factor and the cap.
struct Terms {
	float scale, cap, inverse_cap;

	NC_METHOD float of(float z) const
	{
		z = z * scale;
		return cap != 0 ? soft(z, cap, inverse_cap) : z;
	}
};

// load_edge is logits i .. i+3 of a row of n, and zeros beyond.
NC_DEVICE void load_edge(float v[4], const float *row, int i, int n)
{
	NC_UNROLL
	for (int e = 0; e < 4; e++)
		v[e] = i + e < n ? row[i + e] : 0.0f;
}

NC_DEVICE void store_edge(uint16_t *row, int i, int n, const float v[4])
{
	NC_UNROLL
	for (int e = 0; e < 4; e++)
		if (i + e < n)
			row[i + e] = nc_to_bf16(v[e]);
}

// Online is a thread's sums over its logits y so far: of exp(y-top), of exp(y-top)·y, and of y.
struct Online {
	float top, sum, weighted, plain;

	// add takes the first count of four.
	NC_METHOD void add(const float y[4], int count)
	{
		float now = top;
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			now = e < count && y[e] > now ? y[e] : now;
		if (now > top) {
			const float c = fast_exp(top - now);
			sum = sum * c, weighted = weighted * c, top = now;
		}
		NC_UNROLL
		for (int e = 0; e < 4; e++) {
			if (e >= count)
				continue;
			const float p = fast_exp(y[e] - top);
			sum = sum + p;
			weighted = fmaf(p, y[e], weighted);
			plain = plain + y[e];
		}
	}
};

// Slope is the terms of kernels.lossTerms: what a logit's gradient is made of.
struct Slope {
	float top, p, a, b, mean, entropy, share, cap, inverse_cap;
	int target;

	NC_METHOD float of(float y, int i) const
	{
		const float k = entropy != 0 ? fmaf(entropy, y - mean, a) : a;
		const float g = fmaf(fast_exp(y - top) * p, k, b) - (i == target ? share : 0.0f);
		const float t = y * inverse_cap;
		return cap != 0 ? g * fmaf(-t, t, 1.0f) : g;
	}
};

// A block for a token. What is kept of its logits, capped, is dynamic shared memory: each thread
// reads what it has written.
NC_BOUNDED(cross_entropy, CrossEntropyArgs, 1024, 1)
{
	NC_DYNAMIC(float, kept);
	NC_SHARED float tops[MaxWarps], slots[3][MaxWarps];
	const int tid = (int)threadIdx.x, lane = tid % 32, warps = (int)blockDim.x / 32;
	const int step = 4 * (int)blockDim.x;
	const int64_t token = blockIdx.x;
	const float *row = a.logits + token * a.stride;
	uint16_t *dz = a.dz ? a.dz + token * a.stride : 0;
	const int target = a.targets[token];
	// Columns in front of whole go by 16 bytes, those behind it one by one.
	const int whole = a.stride % 4 == 0 ? a.vocab & ~3 : 0;
	if (target < 0) {
		const float none[4] = {0, 0, 0, 0};
		for (int i = 4 * tid; dz && i < whole; i += step)
			store4_bf16(dz + i, none);
		for (int i = whole + 4 * tid; dz && i < a.stride; i += step)
			store_edge(dz, i, a.stride, none);
		if (tid == 0)
			store4(a.results + 4 * token, none);
		return;
	}
	const float cap = a.options[Cap], inverse_cap = cap != 0 ? 1.0f / cap : 0.0f;
	const Terms terms = {a.scale ? a.scale[token] : 1.0f, cap, inverse_cap};
	// Not -INFINITY: the difference to a logit of -INFINITY has to be one.
	Online o = {-0x1.fffffep+127f, 0, 0, 0};
	enum { Flight = 4 }; // accesses of 16 bytes that a thread has under way
	for (int base = 4 * tid; base < whole; base += Flight * step) {
		float y[Flight][4];
		NC_UNROLL
		for (int k = 0; k < Flight; k++) // without a branch, so that all are under way at once
			load4(y[k], row + (base + k * step < whole ? base + k * step : base));
		NC_UNROLL
		for (int k = 0; k < Flight; k++) {
			const int i = base + k * step;
			if (i >= whole)
				break;
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				y[k][e] = terms.of(y[k][e]);
			if (i < a.kept)
				store4(kept + i, y[k]);
			o.add(y[k], 4);
		}
	}
	for (int i = whole + 4 * tid; i < a.vocab; i += step) {
		float y[4];
		load_edge(y, row, i, a.vocab);
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			y[e] = terms.of(y[e]);
		o.add(y, a.vocab - i);
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
	const float right = terms.of(row[target]);
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
	const float factor = a.options[Scale] * gain_of(terms.scale);
	const Slope slope = {
		top, inverse * factor, fmaf(2.0f * z2, top + logf(sums[0]), 1.0f),
		-(smoothing / (float)a.vocab) * factor,
		mean, entropy, (1.0f - smoothing) * factor, cap, inverse_cap, target,
	};
	NC_UNROLL_BY(2)
	for (int i = 4 * tid; i < whole; i += step) {
		float y[4];
		if (i < a.kept) {
			load4(y, kept + i);
		} else {
			load4(y, row + i);
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				y[e] = terms.of(y[e]);
		}
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			y[e] = slope.of(y[e], i + e);
		store4_bf16(dz + i, y);
	}
	for (int i = whole + 4 * tid; i < a.stride; i += step) {
		float y[4];
		load_edge(y, row, i, a.vocab);
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			y[e] = i + e < a.vocab ? slope.of(terms.of(y[e]), i + e) : 0.0f;
		store_edge(dz, i, a.stride, y);
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
