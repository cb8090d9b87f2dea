// Backward of what stands between the residual streams and the layer functions: writing (Leave),
// reading through a norm (Enter), and the norm in front of the head. core/model's leave, enter,
// residual and lastNorm say what is computed.
#include "train.cuh"

// Mixing is the coefficients of one token, as Coef of network.cu.
template <int S> struct Mixing {
	float pre[S], post[S], res[S][S];
};

template <int S> NC_DEVICE void load_mixing(Mixing<S> &m, const float *p)
{
	float v[4];
	load4(v, p);
	NC_UNROLL
	for (int s = 0; s < S; s++)
		m.pre[s] = v[s];
	load4(v, p + 4);
	NC_UNROLL
	for (int s = 0; s < S; s++)
		m.post[s] = v[s];
	NC_UNROLL
	for (int i = 0; i < S; i++) {
		load4(v, p + 8 + 4 * i);
		NC_UNROLL
		for (int j = 0; j < S; j++)
			m.res[i][j] = v[j];
	}
}

// ------------------------------------------------------------------------- leave

struct LeaveArgs {
	// [tokens][streams][dim], the gradient of the streams after the layer function
	const float *dx;
	float *old;         // [tokens][streams][dim], that of those before it, by way of res; may be dx
	const float *x, *y; // [tokens][streams][dim], [tokens][dim]: what the writing had
	const float *coef;  // [tokens][CoefSize], or one of all tokens
	float *coef_grad;   // [tokens][CoefSize]: post and res are set
	uint16_t *dyb;      // [tokens][dim], that of y times the gain
	const float *scale; // [tokens], of the input of the layer function's last product, or null
	Int8 input;         // that input
	int32_t tokens, dim, coef_stride, reserved;
};

// One stream: the gradient of y is that of the stream.
NC_BOUNDED(leave_1, LeaveArgs, 512, 4)
{
	for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x) {
		const float scale = scale_of(a.scale, token);
		for (int i = 4 * (int)threadIdx.x; i < a.dim; i += 4 * (int)blockDim.x) {
			float d[4];
			load4(d, a.dx + token * a.dim + i);
			const float gain = gain_of(scale);
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				d[e] = gain * d[e];
			store4_bf16(a.dyb + token * a.dim + i, d);
		}
		widen(a.input, token);
	}
}

// Dots is the places for the sums of a block in leave: two sets by turns, see Slots.
template <int S> struct Dots {
	float v[2][MaxWarps][S + S * S];
};

template <int S> NC_DEVICE void leave(const LeaveArgs &a, Dots<S> &dots)
{
	enum { N = S + S * S };
	const int tid = (int)threadIdx.x, warps = (int)blockDim.x / 32;
	const int slot = Spread<N, 16>::index(tid % 32);
	int turn = 0;
	for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x, turn ^= 1) {
		Mixing<S> m;
		load_mixing(m, a.coef + token * a.coef_stride);
		const float scale = scale_of(a.scale, token);
		float sums[N]; // post, then res
		NC_UNROLL
		for (int i = 0; i < N; i++)
			sums[i] = 0;
		for (int at = 4 * tid; at < a.dim; at += 4 * (int)blockDim.x) {
			const int64_t place = token * S * a.dim + at;
			float d[S][4], x[S][4], y[4], dy[4];
			NC_UNROLL
			for (int s = 0; s < S; s++) {
				load4(d[s], a.dx + place + (int64_t)s * a.dim);
				load4(x[s], a.x + place + (int64_t)s * a.dim);
			}
			load4(y, a.y + token * a.dim + at);
			const float gain = gain_of(scale);
			NC_UNROLL
			for (int e = 0; e < 4; e++) {
				float v = m.post[0] * d[0][e];
				NC_UNROLL
				for (int i = 1; i < S; i++)
					v = fmaf(m.post[i], d[i][e], v);
				dy[e] = gain * v;
				NC_UNROLL
				for (int i = 0; i < S; i++) {
					sums[i] = fmaf(d[i][e], y[e], sums[i]);
					NC_UNROLL
					for (int j = 0; j < S; j++)
						sums[S + S * i + j] = fmaf(d[i][e], x[j][e], sums[S + S * i + j]);
				}
			}
			NC_UNROLL
			for (int j = 0; j < S; j++) {
				float v[4];
				NC_UNROLL
				for (int e = 0; e < 4; e++) {
					v[e] = m.res[0][j] * d[0][e];
					NC_UNROLL
					for (int i = 1; i < S; i++)
						v[e] = fmaf(m.res[i][j], d[i][e], v[e]);
				}
				store4(a.old + place + (int64_t)j * a.dim, v);
			}
			store4_bf16(a.dyb + token * a.dim + at, dy);
		}
		const float sum = Spread<N, 16>::sum(sums, tid % 32);
		if (slot >= 0)
			dots.v[turn][tid / 32][slot] = sum;
		widen(a.input, token);
		__syncthreads();
		if (tid >= 4 && tid < CoefSize) { // post [4], res [4][4]; those of other streams are 0
			const int i = tid < 8 ? tid - 4 : (tid - 8) / 4, j = tid % 4;
			float v = 0;
			if (i < S && (tid < 8 || j < S))
				for (int w = 0; w < warps; w++)
					v = v + dots.v[turn][w][tid < 8 ? i : S + S * i + j];
			a.coef_grad[token * CoefSize + tid] = v;
		}
	}
}

NC_BOUNDED(leave_2, LeaveArgs, 512, 2)
{
	NC_SHARED Dots<2> dots;
	leave<2>(a, dots);
}

NC_BOUNDED(leave_4, LeaveArgs, 512, 1)
{
	NC_SHARED Dots<4> dots;
	leave<4>(a, dots);
}

// ------------------------------------------------------------------------- enter

struct EnterArgs {
	// [tokens][dim], the gradient of the normed input, times the gain; null: nothing was read
	const void *d;
	float *dx;           // [tokens][streams][dim], added to
	const float *x;      // [tokens][streams][dim], the streams that were read; not with scalars
	const float *weight; // [dim], of the norm
	const float *scale;  // [tokens], of the normed input's int8 values, or null
	const float *coef;   // [tokens][CoefSize], or one of all tokens
	float *coef_grad;    // [tokens][CoefSize]: pre is set
	float *partial;      // [gridDim.x][dim + 4]: the weight's gradient, that of both scalars
	// Residual scalars: null, or what was read is scalars[0]·before + scalars[1]·initial in every
	// stream.
	const float *before;            // [tokens][streams][dim]
	const float *initial, *scalars; // [tokens][dim], [2]
	float *dembed;                  // [tokens][dim], added to
	LeaveArgs next;                 // of the writing in front of all that, without dx and old
	int32_t tokens, dim, coef_stride, half; // half: d is bfloat16
	float eps;
	int32_t reserved;
};

// The sums over a token's elements that the second pass of enter makes: the gradient of pre, and,
// with more than one stream, those of the next writing's post and res.
template <int S, bool Next> struct Passed {
	enum { N = S == 1 ? 1 : S + (Next ? S + S * S : 0) };
};

template <int S, bool Next> struct EnterSlots {
	Slots<2> norm;
	float v[2][MaxWarps][Passed<S, Next>::N];
};

// coef_sum is gradient i of 24, of those in a row of slots that all warps have left: Next's post
// and res stand behind pre.
template <int S, bool Next>
NC_DEVICE float coef_sum(const EnterSlots<S, Next> &slots, int turn, int i, int warps)
{
	const int kind = i / 4, s = i % 4;
	int at = s;
	if (kind == 1)
		at = S + s;
	else if (kind > 1)
		at = 2 * S + S * (kind - 2) + s;
	if (s >= S || kind - 2 >= S)
		return 0;
	float v = 0;
	for (int w = 0; w < warps; w++)
		v = v + slots.v[turn][w][at];
	return v;
}

// The backward of reading, and with Next that of the writing in front of it in the same pass: then
// the streams are read and written once. E times four elements of a token for each thread.
template <int S, int E, bool Next>
NC_DEVICE void enter(const EnterArgs &a, EnterSlots<S, Next> &slots)
{
	enum { N = Passed<S, Next>::N, Mixed = S > 1 && Next };
	const int tid = (int)threadIdx.x, step = 4 * (int)blockDim.x, warps = (int)blockDim.x / 32;
	const int slot = Spread<N, 16>::index(tid % 32);
	const bool residual = a.scalars != 0;
	const float first = residual ? a.scalars[0] : 1.0f, second = residual ? a.scalars[1] : 0.0f;
	float w[E][4], part[E][4], scalars[2] = {0, 0}; // scalars: sums of their gradients
	begin_weight<E>(w, part, a.weight, a.dim);
	int turn = 0, turn_passed = 0;
	for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x) {
		Mixing<S> m; // of the next writing
		float pre[4];
		if (S > 1)
			load4(pre, a.coef + token * a.coef_stride);
		if (Mixed)
			load_mixing(m, a.next.coef + token * a.next.coef_stride);
		const float scale = scale_of(a.scale, token);
		const float next_scale = Next ? scale_of(a.next.scale, token) : 1.0f;
		// base: the streams in front of the scalars, which are what was read where there are none.
		// from and y: what the next writing had.
		Four raw[E];
		float d[E][4], base[S][E][4], dx[S][E][4], initial[E][4], de[E][4], from[S][E][4], y[E][4];
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			const int i = 4 * tid + k * step;
			NC_UNROLL
			for (int e = 0; e < 4; e++) {
				initial[k][e] = de[k][e] = y[k][e] = 0;
				NC_UNROLL
				for (int s = 0; s < S; s++)
					base[s][k][e] = dx[s][k][e] = from[s][k][e] = 0;
			}
			raw[k].clear();
			if (i >= a.dim)
				continue;
			if (residual) {
				load4(initial[k], a.initial + token * a.dim + i);
				load4(de[k], a.dembed + token * a.dim + i);
			}
			const float *streams = Mixed ? a.next.x : residual ? a.before : a.x;
			NC_UNROLL
			for (int s = 0; s < S; s++) {
				const int64_t place = (token * S + s) * a.dim + i;
				load4(Mixed ? from[s][k] : base[s][k], streams + place);
				load4(dx[s][k], a.dx + place);
				if (token + gridDim.x < a.tokens) {
					ahead(streams + place + (int64_t)gridDim.x * S * a.dim);
					ahead(a.dx + place + (int64_t)gridDim.x * S * a.dim);
				}
			}
			if (Mixed)
				load4(y[k], a.next.y + token * a.dim + i);
			if (a.d) {
				raw[k].load(a.d, a.half, token * a.dim + i);
				if (token + gridDim.x < a.tokens)
					ahead(a.d, a.half, (token + gridDim.x) * a.dim + i);
			}
		}
		if (Mixed) // as the forward has written them, to the bit
			NC_UNROLL
			for (int k = 0; k < E; k++)
				NC_UNROLL
				for (int e = 0; e < 4; e++)
					NC_UNROLL
					for (int s = 0; s < S; s++) {
						float v = m.res[s][0] * from[0][k][e];
						NC_UNROLL
						for (int j = 1; j < S; j++)
							v = fmaf(m.res[s][j], from[j][k][e], v);
						base[s][k][e] = fmaf(m.post[s], y[k][e], v);
					}
		if (Next)
			ask(a.next.input, token);
		const float inverse_gain = 1.0f / gain_of(scale);
		float u[E][4], sums[2] = {0, 0};
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			raw[k].values(d[k], a.half);
			NC_UNROLL
			for (int e = 0; e < 4; e++) {
				float v = 0;
				NC_UNROLL
				for (int s = 0; s < S; s++) {
					const float b = base[s][k][e];
					const float x = residual ? fmaf(second, initial[k][e], first * b) : b;
					v = S == 1 ? x : s == 0 ? pre[0] * x : fmaf(pre[s], x, v);
				}
				u[k][e] = v;
				d[k][e] = d[k][e] * inverse_gain;
				sums[0] = fmaf(v, v, sums[0]);
				sums[1] = fmaf(d[k][e] * w[k][e], v, sums[1]);
			}
		}
		block_sum(sums, slots.norm, turn);
		const NormBack n = norm_back(sums, a.dim, a.eps);
		float passed[N];
		NC_UNROLL
		for (int i = 0; i < N; i++)
			passed[i] = 0;
		const float next_gain = gain_of(next_scale);
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			const int i = 4 * tid + k * step;
			float dy[4];
			NC_UNROLL
			for (int e = 0; e < 4; e++) {
				part[k][e] = fmaf(d[k][e], u[k][e] * n.inverse, part[k][e]);
				const float v = fmaf(n.factor, u[k][e], d[k][e] * w[k][e]) * n.inverse;
				float now[S];
				NC_UNROLL
				for (int s = 0; s < S; s++) {
					const float b = base[s][k][e];
					const float x = residual ? fmaf(second, initial[k][e], first * b) : b;
					now[s] = S == 1 ? dx[s][k][e] + v : fmaf(pre[s], v, dx[s][k][e]);
					if (S > 1)
						passed[s] = fmaf(v, x, passed[s]);
					if (residual) {
						scalars[0] = fmaf(now[s], b, scalars[0]);
						scalars[1] = fmaf(now[s], initial[k][e], scalars[1]);
						de[k][e] = fmaf(second, now[s], de[k][e]);
						now[s] = first * now[s];
					}
					dx[s][k][e] = now[s];
				}
				dy[e] = now[0];
				if (!Mixed)
					continue;
				dy[e] = m.post[0] * now[0];
				NC_UNROLL
				for (int i = 1; i < S; i++)
					dy[e] = fmaf(m.post[i], now[i], dy[e]);
				NC_UNROLL
				for (int j = 0; j < S; j++) {
					float v = m.res[0][j] * now[0];
					NC_UNROLL
					for (int i = 1; i < S; i++)
						v = fmaf(m.res[i][j], now[i], v);
					dx[j][k][e] = v;
				}
				NC_UNROLL
				for (int i = 0; i < S; i++) {
					passed[Mixed ? S + i : 0] = fmaf(now[i], y[k][e], passed[Mixed ? S + i : 0]);
					NC_UNROLL
					for (int j = 0; j < S; j++) {
						float &r = passed[Mixed ? 2 * S + S * i + j : 0];
						r = fmaf(now[i], from[j][k][e], r);
					}
				}
			}
			if (i >= a.dim)
				continue;
			if (residual)
				store4(a.dembed + token * a.dim + i, de[k]);
			NC_UNROLL
			for (int s = 0; s < S; s++)
				store4(a.dx + (token * S + s) * a.dim + i, dx[s][k]);
			if (Next) {
				NC_UNROLL
				for (int e = 0; e < 4; e++)
					dy[e] = next_gain * dy[e];
				store4_bf16(a.next.dyb + token * a.dim + i, dy);
			}
		}
		if (S > 1) {
			const float sum = Spread<N, 16>::sum(passed, tid % 32);
			if (slot >= 0)
				slots.v[turn_passed][tid / 32][slot] = sum;
		}
		if (Next)
			widen(a.next.input, token);
		if (S > 1) {
			__syncthreads();
			if (tid < 4)
				a.coef_grad[token * CoefSize + tid] = coef_sum(slots, turn_passed, tid, warps);
			else if (Next && tid < CoefSize)
				a.next.coef_grad[token * CoefSize + tid] = coef_sum(slots, turn_passed, tid, warps);
			turn_passed ^= 1;
		}
	}
	float *partial = a.partial + (int64_t)blockIdx.x * (a.dim + 4);
	NC_UNROLL
	for (int k = 0; k < E; k++) {
		const int i = 4 * tid + k * step;
		if (i < a.dim)
			store4(partial + i, part[k]);
	}
	block_sum(scalars, slots.norm, turn);
	if (tid == 0) {
		const float v[4] = {scalars[0], scalars[1], 0, 0};
		store4(partial + a.dim, v);
	}
}

// The kernels for S streams and E times four elements of a thread.
#define ENTER(S, E, threads, blocks)                                  \
	NC_BOUNDED(enter_##S##_##E, EnterArgs, threads, blocks)           \
	{                                                                 \
		NC_SHARED EnterSlots<S, false> slots;                         \
		enter<S, E, false>(a, slots);                                 \
	}                                                                 \
	NC_BOUNDED(enter_next_##S##_##E, EnterArgs, threads, blocks)      \
	{                                                                 \
		NC_SHARED EnterSlots<S, true> slots;                          \
		enter<S, E, true>(a, slots);                                  \
	}
ENTER(1, 1, 512, 2)
ENTER(1, 2, 512, 1)
ENTER(1, 4, 512, 1)
ENTER(2, 1, 640, 1)
ENTER(2, 2, 512, 1)
ENTER(2, 4, 512, 1)
ENTER(4, 1, 512, 1)
ENTER(4, 2, 512, 1)
ENTER(4, 4, 512, 1)

// --------------------------------------------------------------------- last norm

struct LastNormArgs {
	const void *d;       // [tokens][dim], the gradient of the head's input, times the gain
	const float *x;      // [tokens][streams][dim], the streams that the last layer leaves
	const float *weight; // [dim]
	const float *scale;  // [tokens], of the head's int8 input, or null
	float *dx;           // [tokens][streams][dim], written
	float *dembed;       // [tokens][dim], cleared, or null
	float *partial;      // [gridDim.x][dim]
	int32_t tokens, dim, streams, half; // half: d is bfloat16
	float eps;
	int32_t reserved;
};

template <int E> NC_DEVICE void last_norm(const LastNormArgs &a, Slots<2> &slots)
{
	const int tid = (int)threadIdx.x, step = 4 * (int)blockDim.x;
	const float share = 1.0f / (float)a.streams;
	float w[E][4], part[E][4];
	begin_weight<E>(w, part, a.weight, a.dim);
	int turn = 0;
	for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x) {
		const float scale = scale_of(a.scale, token);
		float d[E][4], u[E][4], sums[2] = {0, 0};
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			const int i = 4 * tid + k * step;
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				d[k][e] = u[k][e] = 0;
			if (i >= a.dim)
				continue;
			Four raw;
			raw.load(a.d, a.half, token * a.dim + i);
			load4(u[k], a.x + token * a.streams * a.dim + i);
			for (int s = 1; s < a.streams; s++) {
				float v[4];
				load4(v, a.x + (token * a.streams + s) * a.dim + i);
				NC_UNROLL
				for (int e = 0; e < 4; e++)
					u[k][e] = u[k][e] + v[e];
			}
			raw.values(d[k], a.half);
			const float inverse_gain = 1.0f / gain_of(scale);
			NC_UNROLL
			for (int e = 0; e < 4; e++) {
				u[k][e] = share * u[k][e];
				d[k][e] = d[k][e] * inverse_gain;
				sums[0] = fmaf(u[k][e], u[k][e], sums[0]);
				sums[1] = fmaf(d[k][e] * w[k][e], u[k][e], sums[1]);
			}
		}
		block_sum(sums, slots, turn);
		const NormBack n = norm_back(sums, a.dim, a.eps);
		NC_UNROLL
		for (int k = 0; k < E; k++) {
			const int i = 4 * tid + k * step;
			if (i >= a.dim)
				continue;
			float v[4];
			const float zero[4] = {0, 0, 0, 0};
			NC_UNROLL
			for (int e = 0; e < 4; e++) {
				part[k][e] = fmaf(d[k][e], u[k][e] * n.inverse, part[k][e]);
				v[e] = share * (fmaf(n.factor, u[k][e], d[k][e] * w[k][e]) * n.inverse);
			}
			for (int s = 0; s < a.streams; s++)
				store4(a.dx + (token * a.streams + s) * a.dim + i, v);
			if (a.dembed)
				store4(a.dembed + token * a.dim + i, zero);
		}
	}
	end_weight<E>(a.partial, part, a.dim);
}

NC_BOUNDED(last_norm_1, LastNormArgs, 512, 2)
{
	NC_SHARED Slots<2> slots;
	last_norm<1>(a, slots);
}

NC_BOUNDED(last_norm_2, LastNormArgs, 512, 1)
{
	NC_SHARED Slots<2> slots;
	last_norm<2>(a, slots);
}

NC_BOUNDED(last_norm_4, LastNormArgs, 512, 1)
{
	NC_SHARED Slots<2> slots;
	last_norm<4>(a, slots);
}
