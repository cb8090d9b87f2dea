// The update of weights: the arithmetic of core/optim, element by element in the same order, so
// that norms, AdamW and Lion have the same bits. One launch does all tensors; what a step decides
// (the factor of clipping, whether to skip) stays on the device.
#include "four.cuh"

enum { Chunk = 4096 }; // elements whose squares are summed in single precision

enum { Cautious = 1, NoClip = 2, Heavy = 4, Half = 8, Vector = 16, Lion = 32 };

// A parameter, or one matrix of a stack that Muon updates.
struct Tensor {
	float *w;
	const float *g;
	void *m;          // float, or bfloat16 with Half
	float *v;         // AdamW's
	int64_t n;        // elements
	uint64_t element; // the number of the first among those of all tensors
	int64_t at;       // its place in the directions of Muon
	double scaling;   // of Muon's learning rate by the shape
	float b1, b2, c1, c2, eps;
	int32_t rate, flags; // rate is the class
	int32_t first;       // chunk
};

struct Rates {
	float lr, keep, n1, n2, beta, pad;
};

// What the host says before each step.
struct Numbers {
	double clip; // the largest norm; 0: none
	Rates rate[5];
	uint32_t step, seed[2], pad;
};

// What a step decided and measured.
struct Decision {
	double norm, class_norm[5], clip;
	int32_t skip, wrong; // wrong: the first tensor that is not finite, -1 none, -2 the loss
	float scale;         // of gradients
	int32_t pad;
};

NC_DEVICE bool is_finite(double v) { return v - v == 0.0; }

// ------------------------------------------------------------ sums of squares

// Four lanes have a chunk; lane c has columns 4c .. 4c+3 of every sixteen, which are four of the
// sixteen sums of the canonical order. chunk_sum is their tree. A sum that single precision
// cannot hold well is `other` instead, this lane's part of it in double precision.
NC_DEVICE bool doubtful(const float s[4], uint32_t any, float *sum)
{
	float t[4];
	for (int m = 0; m < 4; m++)
		t[m] = s[m] + nc_shuffle_xor(s[m], 2);
	for (int m = 0; m < 4; m++)
		t[m] = t[m] + nc_shuffle_xor(t[m], 1);
	*sum = (t[0] + t[2]) + (t[1] + t[3]);
	any |= nc_shuffle_xor(any, 1);
	any |= nc_shuffle_xor(any, 2);
	return (any << 1) != 0 && !(*sum > 1e-24f && *sum < 1e36f);
}

NC_DEVICE double chunk_sum(bool doubt, float sum, double other)
{
	other += nc_shuffle_xor(other, 1);
	other += nc_shuffle_xor(other, 2);
	return doubt ? other : (double)sum;
}

struct SquaresArgs {
	const Tensor *tensors;
	const Work *work; // [count] chunks
	double *sums;     // [count]
	int32_t count, pad;
};

// add_squares adds the squares of this lane's elements of a chunk of n to s. The bits of all of
// them together are 0 if every one is.
template <bool Whole>
NC_DEVICE uint32_t add_squares(float s[4], const float *g, int n, int c, bool vector)
{
	uint32_t any = 0;
	for (int base = 0; base < (Whole ? Chunk : n); base += 128) {
		float v[8][4];
	NC_UNROLL
		for (int k = 0; k < 8; k++)
			load4<Whole>(v[k], g, base + 16 * k + 4 * c, n, vector);
		NC_UNROLL
		for (int k = 0; k < 8; k++)
			for (int m = 0; m < 4; m++) {
				s[m] = fmaf(v[k][m], v[k][m], s[m]);
				any |= __float_as_uint(v[k][m]);
			}
	}
	return any;
}

// Blocks of 128 threads for 32 chunks.
NC_KERNEL(squares, SquaresArgs)
{
	const int i = (int)blockIdx.x * 32 + (int)threadIdx.x / 4, c = (int)threadIdx.x % 4;
	const Work work = a.work[i < a.count ? i : a.count - 1];
	const Tensor *t = a.tensors + work.job;
	const int64_t at = (int64_t)work.first * Chunk, left = t->n - at;
	const int n = i >= a.count ? 0 : left < Chunk ? (int)left : Chunk;
	const float *g = t->g + at;
	const bool vector = (t->flags & Vector) != 0;
	float s[4] = {0, 0, 0, 0}, sum;
	const uint32_t any = vector && n == Chunk ? add_squares<true>(s, g, n, c, true)
	                                          : add_squares<false>(s, g, n, c, vector);
	const bool doubt = doubtful(s, any, &sum);
	double other = 0;
	for (int base = 4 * c; doubt && base < n; base += 16) {
		float v[4];
		load4<false>(v, g, base, n, vector);
		for (int m = 0; m < 4; m++)
			other += (double)v[m] * (double)v[m];
	}
	other = chunk_sum(doubt, sum, other);
	if (c == 0 && i < a.count)
		a.sums[i] = other;
}

struct TotalsArgs {
	const Tensor *tensors;
	const double *sums; // of chunks
	double *totals;     // [gridDim.x]
	float *inverse;     // [gridDim.x], or null: one over the roots
	int32_t chunks;     // of all tensors
	int32_t pad;
};

// A block of 32 threads adds the chunks of a tensor in their order.
NC_KERNEL(totals, TotalsArgs)
{
	NC_SHARED double stage[512];
	const int i = (int)blockIdx.x, lane = (int)threadIdx.x;
	const Tensor *t = a.tensors + i;
	const int first = t->first, last = first + (int)((t->n + Chunk - 1) / Chunk);
	double sum = 0;
	for (int base = first; base < last; base += 512) {
		const int n = last - base < 512 ? last - base : 512;
		for (int k = lane; k < n; k += 32)
			stage[k] = a.sums[base + k];
		__syncwarp();
		if (lane == 0)
			for (int k = 0; k < n; k++)
				sum += stage[k];
		__syncwarp();
	}
	if (lane != 0)
		return;
	a.totals[i] = sum;
	if (a.inverse) {
		const double root = sqrt(sum);
		a.inverse[i] = (float)(1.0 / (root > 1e-30 ? root : 1e-30));
	}
}

// ------------------------------------------------------------------- decision

struct DecideArgs {
	const Tensor *tensors;
	const double *totals; // [count]
	const Numbers *numbers;
	const double *loss; // its fifth number has to be finite; or null
	Decision *decision;
	double *norms; // [count]
	int32_t count, pad;
};

// One block of 256 threads.
NC_KERNEL(decide, DecideArgs)
{
	NC_SHARED double total[256];
	NC_SHARED int32_t rate[256], flags[256];
	const int tid = (int)threadIdx.x;
	double all = 0, clipped = 0, square[5] = {0, 0, 0, 0, 0};
	int wrong = -1;
	for (int base = 0; base < a.count; base += 256) {
		const int i = base + tid;
		if (i < a.count) {
			total[tid] = a.totals[i];
			rate[tid] = a.tensors[i].rate, flags[tid] = a.tensors[i].flags;
			a.norms[i] = sqrt(total[tid]);
		}
		__syncthreads();
		for (int k = 0; tid == 0 && k < 256 && base + k < a.count; k++) {
			const double sum = total[k];
			if (!is_finite(sum) && wrong < 0)
				wrong = base + k;
			for (int c = 0; c < 5; c++)
				square[c] = c == rate[k] ? square[c] + sum : square[c];
			all += sum;
			clipped = flags[k] & NoClip ? clipped : clipped + sum;
		}
		__syncthreads();
	}
	if (tid != 0)
		return;
	if (a.loss && !is_finite(a.loss[4]))
		wrong = -2;
	Decision d;
	d.norm = sqrt(all);
	for (int c = 0; c < 5; c++)
		d.class_norm[c] = sqrt(square[c]);
	const double n = sqrt(clipped), limit = a.numbers->clip;
	d.skip = wrong != -1, d.wrong = wrong;
	d.clip = limit > 0 && n > limit && !d.skip ? limit / n : 1.0;
	d.scale = (float)d.clip, d.pad = 0;
	*a.decision = d;
}

// --------------------------------------------------------------- random numbers

// philox is Philox 4x32-10 (Salmon and others 2011).
NC_DEVICE void philox(uint32_t x[4], uint32_t k0, uint32_t k1)
{
	for (int round = 0; round < 10; round++) {
		const uint64_t p = (uint64_t)0xD2511F53u * x[0], q = (uint64_t)0xCD9E8D57u * x[2];
		x[0] = (uint32_t)(q >> 32) ^ x[1] ^ k0, x[1] = (uint32_t)q;
		x[2] = (uint32_t)(p >> 32) ^ x[3] ^ k1, x[3] = (uint32_t)p;
		k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
	}
}

// round_randomly is v rounded up or down so that the mean is v: with 16 random bits added to it
// all below bfloat16 is cut off.
NC_DEVICE uint16_t round_randomly(float v, uint32_t random)
{
	const uint32_t u = __float_as_uint(v);
	if ((u & 0x7f800000u) == 0x7f800000u)
		return nc_to_bf16(v);
	const uint32_t up = u + (random & 0xffffu);
	return (uint16_t)((up & 0x7f800000u) == 0x7f800000u ? u >> 16 : up >> 16);
}

// ---------------------------------------------------------------------- state

// State is the momentum of a chunk, in registers what does not change. Short, below, says that it is
// bfloat16.
struct State {
	void *m;          // of the chunk's first element
	uint64_t element; // its number
	uint32_t step, seed[2];
	bool vector;
};

NC_DEVICE State state_of(const Tensor &t, int64_t at, const Numbers *numbers)
{
	State s;
	s.vector = (t.flags & Vector) != 0;
	s.m = t.flags & Half ? (void *)((uint16_t *)t.m + at) : (void *)((float *)t.m + at);
	s.element = t.element + (uint64_t)at;
	s.step = numbers->step, s.seed[0] = numbers->seed[0], s.seed[1] = numbers->seed[1];
	return s;
}

// noise is the random numbers of elements e .. e+3: four have one count of the generator. Where
// addresses allow four elements at once, e is a multiple of four.
template <bool Whole> NC_DEVICE void noise(uint32_t r[4], const State &s, uint64_t e)
{
	const uint64_t quad = e / 4;
	uint32_t x[4] = {(uint32_t)quad, (uint32_t)(quad >> 32), s.step, 0};
	philox(x, s.seed[0], s.seed[1]);
	const int skip = (int)(e % 4);
	if (Whole || skip == 0) {
		for (int m = 0; m < 4; m++)
			r[m] = x[m];
		return;
	}
	uint32_t y[4] = {(uint32_t)(quad + 1), (uint32_t)((quad + 1) >> 32), s.step, 0};
	philox(y, s.seed[0], s.seed[1]);
	r[0] = skip == 1 ? x[1] : skip == 2 ? x[2] : x[3];
	r[1] = skip == 1 ? x[2] : skip == 2 ? x[3] : y[0];
	r[2] = skip == 1 ? x[3] : skip == 2 ? y[0] : y[1];
	r[3] = skip == 1 ? y[0] : skip == 2 ? y[1] : y[2];
}

template <bool Whole, bool Short> NC_DEVICE void load_state(float v[4], const State &s, int i, int n)
{
	if (Short)
		load_bf16<Whole>(v, (const uint16_t *)s.m, i, n, s.vector);
	else
		load4<Whole>(v, (const float *)s.m, i, n, s.vector);
}

// store_state writes elements i .. i+3 of n, and leaves in v what is stored.
template <bool Whole, bool Short>
NC_DEVICE void store_state(float v[4], const State &s, int i, int n)
{
	if (!Short) {
		store4<Whole>((float *)s.m, v, i, n, s.vector);
		return;
	}
	uint32_t random[4];
	uint16_t h[4];
	noise<Whole>(random, s, s.element + (uint64_t)i);
	for (int m = 0; m < 4; m++) {
		h[m] = round_randomly(v[m], random[m]);
		v[m] = nc_bf16(h[m]);
	}
	store4<Whole>((uint16_t *)s.m, h, i, n, s.vector);
}

// moved is a weight moved against u.
NC_DEVICE float moved(float w, float u, float lr, float keep, int flags)
{
	float v = w;
	if (!(flags & Cautious) || u * v >= 0.0f)
		v = keep * v;
	return v - lr * u;
}

// ------------------------------------------------------------- AdamW and Lion

struct UpdateArgs {
	const Tensor *tensors;
	const Work *work; // [gridDim.x] chunks
	const Numbers *numbers;
	const Decision *decision;
};

// update_chunk updates the n elements from place `at` on, as a thread of 256.
template <bool Whole, bool Short> NC_DEVICE void update_chunk(const UpdateArgs &a, const Tensor &t, int64_t at, int n)
{
	const State state = state_of(t, at, a.numbers);
	const Rates r = a.numbers->rate[t.rate];
	const float scale = t.flags & NoClip ? 1.0f : a.decision->scale;
	const bool vector = (t.flags & Vector) != 0;
	for (int i = 4 * (int)threadIdx.x; i < (Whole ? Chunk : n); i += 1024) {
		float w[4], g[4], m[4];
		load4<Whole>(w, t.w + at, i, n, vector);
		load4<Whole>(g, t.g + at, i, n, vector);
		load_state<Whole, Short>(m, state, i, n);
		if (t.flags & Lion) {
			for (int k = 0; k < 4; k++) {
				const float s = scale * g[k];
				const float c = t.b1 * m[k] + t.c1 * s;
				m[k] = t.b2 * m[k] + t.c2 * s;
				w[k] =
					moved(w[k], c > 0.0f ? 1.0f : c < 0.0f ? -1.0f : 0.0f, r.lr, r.keep, t.flags);
			}
		} else {
			float v[4];
			load4<Whole>(v, t.v + at, i, n, vector);
			for (int k = 0; k < 4; k++) {
				const float s = scale * g[k];
				m[k] = t.b1 * m[k] + t.c1 * s;
				v[k] = t.b2 * v[k] + t.c2 * (s * s);
				const float root = sqrtf(v[k] * r.n2);
				w[k] = moved(w[k], m[k] * r.n1 / (root + t.eps), r.lr, r.keep, t.flags);
			}
			store4<Whole>(t.v + at, v, i, n, vector);
		}
		store_state<Whole, Short>(m, state, i, n);
		store4<Whole>(t.w + at, w, i, n, vector);
	}
}

// Where a thread block works: a chunk of a tensor, of n elements from place `at` on.
struct Place {
	Tensor t;
	int64_t at;
	int job, n;
	bool whole;
};

NC_DEVICE Place place_of(const Tensor *tensors, const Work *work, int i)
{
	const Work w = work[i];
	Place p;
	p.job = w.job, p.t = tensors[w.job], p.at = (int64_t)w.first * Chunk;
	const int64_t left = p.t.n - p.at;
	p.n = left < Chunk ? (int)left : Chunk;
	p.whole = p.n == Chunk && (p.t.flags & Vector);
	return p;
}

// Blocks of 256 threads for a chunk.
NC_KERNEL(update, UpdateArgs)
{
	if (a.decision->skip)
		return;
	const Place p = place_of(a.tensors, a.work, (int)blockIdx.x);
	const bool half = (p.t.flags & Half) != 0;
	if (p.whole && half)
		update_chunk<true, true>(a, p.t, p.at, p.n);
	else if (p.whole)
		update_chunk<true, false>(a, p.t, p.at, p.n);
	else if (half)
		update_chunk<false, true>(a, p.t, p.at, p.n);
	else
		update_chunk<false, false>(a, p.t, p.at, p.n);
}

// ----------------------------------------------------------------------- Muon

// heading is the direction of an update before it is orthogonalised.
NC_DEVICE float heading(float g, float m, float beta, int flags)
{
	return flags & Heavy ? m : g + beta * (m - g);
}

struct DirectionArgs {
	const Tensor *tensors;
	const Work *work; // [count] chunks
	const Numbers *numbers;
	const Decision *decision;
	double *sums; // [count] squares of the direction
	int32_t count, pad;
};

// move_momentum moves that of this lane's elements of a chunk of n and adds the squares of their
// directions to s, as add_squares.
template <bool Whole, bool Short>
NC_DEVICE uint32_t move_momentum(float s[4], const float *gradient, const State &state, int flags,
                                 int n, int c, float scale, float beta)
{
	const float rest = 1.0f - beta;
	uint32_t any = 0;
	for (int base = 4 * c; base < (Whole ? Chunk : n); base += 64) {
		float g[4][4], m[4][4];
		NC_UNROLL
		for (int k = 0; k < 4; k++) {
			load4<Whole>(g[k], gradient, base + 16 * k, n, state.vector);
			load_state<Whole, Short>(m[k], state, base + 16 * k, n);
		}
		NC_UNROLL
		for (int k = 0; k < 4; k++) {
			for (int j = 0; j < 4; j++) {
				g[k][j] = scale * g[k][j];
				m[k][j] = m[k][j] + rest * (g[k][j] - m[k][j]);
			}
			if (Whole || base + 16 * k < n)
				store_state<Whole, Short>(m[k], state, base + 16 * k, n);
			for (int j = 0; j < 4; j++) {
				const float u = heading(g[k][j], m[k][j], beta, flags);
				s[j] = fmaf(u, u, s[j]);
				any |= __float_as_uint(u);
			}
		}
	}
	return any;
}

// Momentum, and the squares of the direction: blocks of 128 threads for 32 chunks, as squares.
NC_KERNEL(direction, DirectionArgs)
{
	if (a.decision->skip)
		return;
	const int i = (int)blockIdx.x * 32 + (int)threadIdx.x / 4, c = (int)threadIdx.x % 4;
	const Work work = a.work[i < a.count ? i : a.count - 1];
	const Tensor t = a.tensors[work.job];
	const int64_t at = (int64_t)work.first * Chunk, left = t.n - at;
	const int n = i >= a.count ? 0 : left < Chunk ? (int)left : Chunk, flags = t.flags;
	const State state = state_of(t, at, a.numbers);
	const float *gradient = t.g + at;
	const float scale = flags & NoClip ? 1.0f : a.decision->scale;
	const float beta = a.numbers->rate[t.rate].beta;
	float s[4] = {0, 0, 0, 0}, sum;
	const bool whole = state.vector && n == Chunk, half = (flags & Half) != 0;
	uint32_t any;
	if (whole && half)
		any = move_momentum<true, true>(s, gradient, state, flags, n, c, scale, beta);
	else if (whole)
		any = move_momentum<true, false>(s, gradient, state, flags, n, c, scale, beta);
	else if (half)
		any = move_momentum<false, true>(s, gradient, state, flags, n, c, scale, beta);
	else
		any = move_momentum<false, false>(s, gradient, state, flags, n, c, scale, beta);
	const bool doubt = doubtful(s, any, &sum);
	double other = 0;
	for (int base = 4 * c; doubt && base < n; base += 16) {
		float g[4], m[4];
		load4<false>(g, gradient, base, n, state.vector);
		if (flags & Half)
			load_state<false, true>(m, state, base, n);
		else
			load_state<false, false>(m, state, base, n);
		for (int k = 0; k < 4; k++) {
			const float u = heading(scale * g[k], m[k], beta, flags);
			other += (double)u * (double)u;
		}
	}
	other = chunk_sum(doubt, sum, other);
	if (c == 0 && i < a.count)
		a.sums[i] = other;
}

struct MatrixArgs {
	const Tensor *tensors;
	const Work *work; // [gridDim.x] chunks
	const Numbers *numbers;
	const Decision *decision;
	const float *inverse; // of the norm of each tensor's direction
	void *x;              // the directions of a batch
	int32_t half, pad;    // x is bfloat16, or else float
};

template <bool Whole, bool Short> NC_DEVICE void normalize_chunk(const MatrixArgs &a, const Place &p)
{
	const Tensor &t = p.t;
	const State state = state_of(t, p.at, a.numbers);
	const float scale = t.flags & NoClip ? 1.0f : a.decision->scale;
	const float beta = a.numbers->rate[t.rate].beta, inverse = a.inverse[p.job];
	const bool vector = (t.flags & Vector) != 0;
	for (int i = 4 * (int)threadIdx.x; i < (Whole ? Chunk : p.n); i += 1024) {
		float g[4], m[4];
		uint16_t h[4];
		load4<Whole>(g, t.g + p.at, i, p.n, vector);
		load_state<Whole, Short>(m, state, i, p.n);
		for (int k = 0; k < 4; k++) {
			g[k] = heading(scale * g[k], m[k], beta, t.flags) * inverse;
			h[k] = nc_to_bf16(g[k]);
		}
		if (a.half)
			store4<Whole>((uint16_t *)a.x + t.at + p.at, h, i, p.n, vector);
		else
			store4<Whole>((float *)a.x + t.at + p.at, g, i, p.n, vector);
	}
}

// Directions of norm 1: blocks of 256 threads for a chunk.
NC_KERNEL(normalize, MatrixArgs)
{
	if (a.decision->skip)
		return;
	const Place p = place_of(a.tensors, a.work, (int)blockIdx.x);
	const bool half = (p.t.flags & Half) != 0;
	if (p.whole && half)
		normalize_chunk<true, true>(a, p);
	else if (p.whole)
		normalize_chunk<true, false>(a, p);
	else if (half)
		normalize_chunk<false, true>(a, p);
	else
		normalize_chunk<false, false>(a, p);
}

template <bool Whole> NC_DEVICE void apply_chunk(const MatrixArgs &a, const Place &p)
{
	const Tensor &t = p.t;
	const Rates r = a.numbers->rate[t.rate];
	const float lr = (float)((double)r.lr * t.scaling);
	const bool vector = (t.flags & Vector) != 0;
	for (int i = 4 * (int)threadIdx.x; i < (Whole ? Chunk : p.n); i += 1024) {
		float w[4], x[4];
		load4<Whole>(w, t.w + p.at, i, p.n, vector);
		if (a.half)
			load_bf16<Whole>(x, (const uint16_t *)a.x + t.at + p.at, i, p.n, vector);
		else
			load4<Whole>(x, (const float *)a.x + t.at + p.at, i, p.n, vector);
		for (int k = 0; k < 4; k++)
			w[k] = moved(w[k], x[k], lr, r.keep, t.flags);
		store4<Whole>(t.w + p.at, w, i, p.n, vector);
	}
}

// The update by the orthogonalised directions: blocks of 256 threads for a chunk.
NC_KERNEL(apply, MatrixArgs)
{
	if (a.decision->skip)
		return;
	const Place p = place_of(a.tensors, a.work, (int)blockIdx.x);
	if (p.whole)
		apply_chunk<true>(a, p);
	else
		apply_chunk<false>(a, p);
}
