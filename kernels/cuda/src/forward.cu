// The token-wise parts of a forward of many tokens: what a layer function reads, activated
// values and results of attention on their way into a product, each quantised in the kernel
// that makes it. The bits are those of mix, activate and quantize (network.cu, ternary.cu).
//
// A warp takes a token, whose vector stays in shared memory between the passes over it: memory
// is read and written once, 16 bytes a lane. Warps do not wait for each other.
#include "coef.cuh"

// Where a token's vector goes.
struct Rows {
	int8_t *q;           // [tokens][stride]
	int32_t *sums;       // [tokens][groups]
	float *scale;        // [tokens]
	const float *weight; // [n] of the norm
	int32_t n, stride;   // multiples of 4 and 64
	int32_t group, groups;
	int32_t tokens, normalize;
	float eps;
	int32_t pad;
};

struct Four {
	float v[4];
};

NC_DEVICE Four four(const float *x)
{
	const uint4 u = *(const uint4 *)x;
	return {
		{__uint_as_float(u.x), __uint_as_float(u.y), __uint_as_float(u.z), __uint_as_float(u.w)}};
}

NC_DEVICE void put(float *x, const Four &f)
{
	uint4 u;
	u.x = __float_as_uint(f.v[0]), u.y = __float_as_uint(f.v[1]);
	u.z = __float_as_uint(f.v[2]), u.w = __float_as_uint(f.v[3]);
	*(uint4 *)x = u;
}

#ifdef __CUDACC_RTC__
#define NC_UNROLLED(n) _Pragma(#n)
#else
#define NC_UNROLLED(n)
#endif

// finish norms and quantises the vector v, in shared memory, of a token: a warp.
NC_DEVICE void finish(float *v, const Rows &r, int64_t token, int lane)
{
	__syncwarp();
	float inverse = 1.0f;
	if (r.normalize) {
		float s = 0; // 16 strided sums by FMA, as every processor adds them
		NC_UNROLLED(unroll 8)
		for (int i = lane; lane < 16 && i < r.n; i += 16)
			s = fmaf(v[i], v[i], s);
		for (int m = 8; m > 0; m /= 2) // the order of nc_tree
			s = s + nc_shuffle_xor(s, m);
		inverse = 1.0f / sqrtf(nc_shuffle(s, 0) / (float)r.n + r.eps);
		__syncwarp(); // other lanes' values are written from here on
	}
	// Magnitudes of floats, infinities and NaN order like their bits.
	uint32_t top = 0;
	NC_UNROLLED(unroll 4)
	for (int i = 4 * lane; i < r.n; i += 128) {
		Four x = four(v + i);
		if (r.normalize) {
			const Four w = four(r.weight + i);
			for (int k = 0; k < 4; k++)
				x.v[k] = x.v[k] * inverse * w.v[k];
			put(v + i, x);
		}
		for (int k = 0; k < 4; k++) {
			const uint32_t u = __float_as_uint(x.v[k]) & 0x7fffffffu;
			top = u > top ? u : top;
		}
	}
	for (int m = 16; m > 0; m /= 2) {
		const uint32_t other = nc_shuffle_xor(top, m);
		top = other > top ? other : top;
	}
	const float scale = __uint_as_float(top) / 127.0f;
	const bool none = scale == 0.0f || !(scale - scale == 0.0f);
	if (lane == 0)
		r.scale[token] = scale;
	const float units = 1.0f / scale;
	const bool quick = scale > 1e-30f && scale < 1e30f;

	int8_t *q = r.q + token * r.stride;
	int32_t *sums = r.sums + token * r.groups;
	int sum = 0;
	for (int base = 0; base < r.stride; base += 128) {
		const int i = base + 4 * lane;
		uint32_t word = 0;
		if (i < r.n && !none) {
			const Four x = four(v + i); // what this lane put there
			for (int k = 0; k < 4; k++) {
				const float about = x.v[k] * units;
				int value = nc_round(about);
				// The quotient is within 2.3e-5 of about: only near halves it may round
				// to another integer.
				if (!quick || !(fabsf(about - (float)value) < 0.4999f))
					value = nc_round(x.v[k] / scale);
				value = value > 127 ? 127 : value < -127 ? -127 : value;
				word |= (uint32_t)(value & 255) << 8 * k;
			}
		}
		if (i < r.stride)
			*(uint32_t *)(q + i) = word;
		int s = nc_dot_signed(word, 0x01010101u, 0);
		for (int m = 8; m > 0; m /= 2)
			s += nc_shuffle_xor(s, m);
		if (r.group == 64) {
			if (lane % 16 == 0 && i < r.n)
				sums[i / 64] = s;
			continue;
		}
		sum += s + nc_shuffle_xor(s, 16); // groups are whole 128 columns, or the row
		if ((base + 128) % r.group == 0 || base + 128 >= r.n) {
			if (lane == 0 && base < r.n)
				sums[base / r.group] = sum;
			sum = 0;
		}
	}
}

// place is the token of this warp and its shared memory; false if there is none.
NC_DEVICE bool place(const Rows &r, float *all, float *&v, int64_t &token, int &lane)
{
	const int warp = (int)threadIdx.x / 32;
	lane = (int)threadIdx.x % 32;
	token = (int64_t)blockIdx.x * (blockDim.x / 32) + warp;
	v = all + (int64_t)warp * r.n;
	return token < r.tokens;
}

// ----------------------------------------------------------------------- inputs

struct QuantizeRowsArgs {
	Rows rows;
	const float *x; // [tokens][n]
};

// Blocks of up to eight warps; 4·n bytes of dynamic shared memory a warp, as for all kernels here.
NC_KERNEL(quantize_rows, QuantizeRowsArgs)
{
	NC_DYNAMIC(float, all);
	float *v;
	int64_t token;
	int lane;
	if (!place(a.rows, all, v, token, lane))
		return;
	const float *x = a.x + token * a.rows.n;
	NC_UNROLLED(unroll 6)
	for (int i = 4 * lane; i < a.rows.n; i += 128)
		put(v + i, four(x + i));
	finish(v, a.rows, token, lane);
}

enum { ReLU2 = 0, ReLU2GLU = 1, SwiGLU = 2 };

struct ActivateRowsArgs {
	Rows rows;
	const float *x; // [tokens][n], or [tokens][2n]: of up, then of the gate
	int32_t kind, pad;
};

template <int Kind> NC_DEVICE void activate_row(float *v, const float *up, int n, int lane)
{
	NC_UNROLLED(unroll 4)
	for (int i = 4 * lane; i < n; i += 128) {
		const Four u = four(up + i), g = Kind == ReLU2 ? u : four(up + n + i);
		Four y;
		for (int k = 0; k < 4; k++) {
			const float f = Kind == SwiGLU ? g.v[k] : g.v[k] <= 0.0f ? 0.0f : g.v[k];
			y.v[k] = Kind == ReLU2      ? f * f
			         : Kind == ReLU2GLU ? f * f * u.v[k]
			                            : f / (1.0f + nc_exp(-f)) * u.v[k];
		}
		put(v + i, y);
	}
}

NC_KERNEL(activate_rows, ActivateRowsArgs)
{
	NC_DYNAMIC(float, all);
	float *v;
	int64_t token;
	int lane;
	if (!place(a.rows, all, v, token, lane))
		return;
	const int n = a.rows.n;
	if (a.kind == ReLU2)
		activate_row<ReLU2>(v, a.x + token * n, n, lane);
	else if (a.kind == ReLU2GLU)
		activate_row<ReLU2GLU>(v, a.x + token * 2 * n, n, lane);
	else
		activate_row<SwiGLU>(v, a.x + token * 2 * n, n, lane);
	finish(v, a.rows, token, lane);
}

struct MixRowsArgs {
	Rows rows;
	const float *x;       // [tokens][streams][n]
	float *out, *left;    // [tokens][streams][n]: after and before the scalars, or null
	const float *y;       // [tokens][n]: what the layer function gave, or null
	const float *initial; // [tokens][n], with scalars
	const float *scalars; // [2], or null
	const float *prior;   // [2]: such scalars in front of the writing, or null
	const Coef *write, *read;
	int32_t streams, per_token; // per_token: each token has its own write
	int32_t mean, pad;          // the mean of the streams is what is read
};

// mix_row is mix of network.cu for four columns a lane, the result read into v.
template <int S> NC_DEVICE void mix_row(float *v, const MixRowsArgs &a, int64_t token, int lane)
{
	const int n = a.rows.n;
	Coef write = {}, read = {};
	float s0 = 1, s1 = 0, p0 = 1, p1 = 0;
	if (S > 1 && a.y)
		write = a.write[a.per_token ? token : 0];
	if (S > 1 && !a.mean)
		read = *a.read;
	if (a.scalars)
		s0 = a.scalars[0], s1 = a.scalars[1];
	if (a.prior)
		p0 = a.prior[0], p1 = a.prior[1];
	NC_UNROLLED(unroll 2)
	for (int i = 4 * lane; i < n; i += 128) {
		const int64_t at = token * S * n + i, one = token * n + i;
		Four old[S], now[S], y = {}, first = {}, u;
		for (int s = 0; s < S; s++)
			now[s] = old[s] = four(a.x + at + (int64_t)s * n);
		if (a.y)
			y = four(a.y + one);
		if (a.scalars || a.prior)
			first = four(a.initial + one);
		for (int s = 0; a.prior && s < S; s++)
			for (int k = 0; k < 4; k++)
				now[s].v[k] = old[s].v[k] = fmaf(p1, first.v[k], p0 * old[s].v[k]);
		for (int s = 0; a.y && s < S; s++)
			for (int k = 0; k < 4; k++) {
				if (S == 1) {
					now[s].v[k] = old[s].v[k] + y.v[k];
					continue;
				}
				float f = write.res[s][0] * old[0].v[k];
				for (int j = 1; j < S; j++)
					f = fmaf(write.res[s][j], old[j].v[k], f);
				now[s].v[k] = fmaf(write.post[s], y.v[k], f);
			}
		for (int s = 0; a.left && s < S; s++)
			put(a.left + at + (int64_t)s * n, now[s]);
		for (int s = 0; a.scalars && s < S; s++)
			for (int k = 0; k < 4; k++)
				now[s].v[k] = fmaf(s1, first.v[k], s0 * now[s].v[k]);
		for (int s = 0; a.out && s < S; s++)
			put(a.out + at + (int64_t)s * n, now[s]);
		for (int k = 0; k < 4; k++) {
			float f = now[0].v[k];
			if (S > 1 && a.mean) {
				for (int s = 1; s < S; s++)
					f = f + now[s].v[k];
				f = 1.0f / (float)S * f;
			} else if (S > 1) {
				f = read.pre[0] * f;
				for (int s = 1; s < S; s++)
					f = fmaf(read.pre[s], now[s].v[k], f);
			}
			u.v[k] = f;
		}
		put(v + i, u);
	}
}

NC_KERNEL(mix_rows, MixRowsArgs)
{
	NC_DYNAMIC(float, all);
	float *v;
	int64_t token;
	int lane;
	if (!place(a.rows, all, v, token, lane))
		return;
	if (a.streams == 1)
		mix_row<1>(v, a, token, lane);
	else if (a.streams == 2)
		mix_row<2>(v, a, token, lane);
	else
		mix_row<4>(v, a, token, lane);
	finish(v, a.rows, token, lane);
}
