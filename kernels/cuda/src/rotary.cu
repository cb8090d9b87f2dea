// Positions in training: from the results of the stacked projections q, k, v to what attention
// takes, and back. Half a warp has one head of one token: its 16 lanes hold four elements each, and
// once more four of a head of more than 64. head_dim is a multiple of 16, at most 128.
#include "train.cuh"

// Chunks is how many times four elements of a head a lane has: 1 up to 64, 2 up to 128. The 16 more
// of a row in shared memory are other banks for the other half of a warp.
template <int Chunks> struct HeadRows {
	float v[16][64 * Chunks + 16];
};

// Turn is where and by which angles a token is turned.
struct Turn {
	const float *cosine, *sine; // [positions][half]
	const int32_t *starts; // [tokens]: the place in its row at which the token's document begins
	int32_t seq_len, heads, kv_heads, head_dim, half, interleaved;
};

// Pair is element i of a head and its partner in a pair, of the angle j; first: it is the one that
// the cosine stays with in fma(a, cos, -b·sin).
struct Pair {
	int partner, j;
	bool first;
};

NC_DEVICE Pair pair_of(const Turn &t, int i)
{
	Pair p;
	if (t.interleaved) {
		p.partner = i ^ 1, p.j = i / 2, p.first = i % 2 == 0;
	} else {
		p.first = i < t.half;
		p.partner = p.first ? i + t.half : i - t.half, p.j = p.first ? i : i - t.half;
	}
	return p;
}

// angles_of is the place of a token's angles, of a document that begins at start.
NC_DEVICE int64_t angles_of(const Turn &t, int64_t token, int start)
{
	return (int64_t)((int)((uint32_t)token % (uint32_t)t.seq_len) - start) * t.half;
}

struct RotateTrainArgs {
	const float *x;               // [tokens][heads + 2·kv_heads][head_dim]
	uint16_t *y;                  // the same in half precision: queries and keys normed and rotated
	const float *q_norm, *k_norm; // [head_dim], or both null
	Turn turn;
	int32_t tokens;
	float eps;
};

// A block of 8 warps; a warp has two heads of a token. The bits are those of the forward of
// inference.
template <int Chunks> NC_DEVICE void rotate_train(const RotateTrainArgs &a, HeadRows<Chunks> &rows)
{
	const Turn &t = a.turn;
	const int lane = (int)threadIdx.x % 16, d = t.head_dim, count = t.heads + 2 * t.kv_heads;
	const int pairs = (count + 1) / 2;
	const uint32_t unit =
		blockIdx.x * 8 + threadIdx.x / 32; // the launcher sees to it that this is enough
	if (unit >= (uint32_t)a.tokens * (uint32_t)pairs)
		return;
	const int64_t token = unit / (uint32_t)pairs;
	const int head = 2 * (int)(unit % (uint32_t)pairs) + (int)threadIdx.x / 16 % 2;
	const int64_t at = (token * count + head) * d;
	const bool query = head < t.heads, turned = head < t.heads + t.kv_heads;
	float *x = rows.v[threadIdx.x / 16];
	const int start = t.starts[token];
	float v[Chunks][4];
	NC_UNROLL
	for (int k = 0; k < Chunks; k++) {
		const int i = 4 * (lane + 16 * k);
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			v[k][e] = 0;
		if (i < d && head < count)
			load4(v[k], a.x + at + i);
		if (i < d)
			store4(x + i, v[k]);
	}
	__syncwarp();
	if (a.q_norm) {
		float s = 0;
		for (int i = lane; i < d; i += 16)
			s = fmaf(x[i], x[i], s);
		for (int m = 8; m > 0; m /= 2)
			s = s + nc_shuffle_xor(s, m);
		const float inverse = 1.0f / sqrtf(s / (float)d + a.eps);
		const float *weight = query ? a.q_norm : a.k_norm;
		__syncwarp();
		NC_UNROLL
		for (int k = 0; k < Chunks; k++) {
			const int i = 4 * (lane + 16 * k);
			if (i >= d || !turned)
				continue;
			float w[4];
			load4(w, weight + i);
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				v[k][e] = v[k][e] * inverse * w[e];
			store4(x + i, v[k]);
		}
		__syncwarp();
	}
	if (head >= count)
		return;
	const int64_t angles = angles_of(t, token, start);
	NC_UNROLL
	for (int k = 0; k < Chunks; k++) {
		const int i0 = 4 * (lane + 16 * k);
		if (i0 >= d)
			continue;
		NC_UNROLL
		for (int e = 0; e < 4; e++) {
			const int i = i0 + e;
			if (!turned || i >= 2 * t.half)
				continue;
			const Pair p = pair_of(t, i);
			const float c = t.cosine[angles + p.j], s = t.sine[angles + p.j], other = x[p.partner];
			v[k][e] = p.first ? fmaf(v[k][e], c, -(other * s)) : fmaf(other, s, v[k][e] * c);
		}
		store4_half(a.y + at + i0, v[k]);
	}
}

NC_BOUNDED(rotate_train_1, RotateTrainArgs, 256, 6)
{
	NC_SHARED HeadRows<1> rows;
	rotate_train(a, rows);
}

NC_BOUNDED(rotate_train_2, RotateTrainArgs, 256, 4)
{
	NC_SHARED HeadRows<2> rows;
	rotate_train(a, rows);
}

struct RotateBackArgs {
	const void *dq, *dk, *dv;     // [tokens][heads or kv_heads][head_dim]
	const float *x;               // [tokens][heads + 2·kv_heads][head_dim], with norms
	const float *q_norm, *k_norm; // [head_dim], or both null
	const float *scale;           // [tokens], of the projections' int8 input, or null
	uint16_t *dyb;                // [tokens][heads + 2·kv_heads][head_dim], times the gain
	float *partial;               // [gridDim.x][2][head_dim] of q_norm and k_norm, with norms
	Turn turn;
	Int8 input; // the projections'
	int32_t tokens, half; // half: dq, dk and dv are bfloat16
	float eps;
	int32_t reserved;
};

template <int Chunks> struct RotateBackShared {
	HeadRows<Chunks> rows;
	float sums[16][2][64 * Chunks];
};

template <int Chunks>
NC_DEVICE void rotate_back(const RotateBackArgs &a, RotateBackShared<Chunks> &shared)
{
	const Turn &t = a.turn;
	const int lane = (int)threadIdx.x % 16, half = (int)threadIdx.x / 16, d = t.head_dim;
	const int count = t.heads + 2 * t.kv_heads, pairs = (count + 1) / 2;
	float *x = shared.rows.v[half];
	float part[2][Chunks][4]; // of q_norm and k_norm
	NC_UNROLL
	for (int k = 0; k < Chunks; k++)
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			part[0][k][e] = part[1][k][e] = 0;
	// A warp takes two heads of a token at a time, and, after a token's heads, its factors. Warps
	// do not wait for each other.
	const uint32_t units = (uint32_t)pairs + 1;
	const uint32_t tokens = ((uint32_t)a.tokens - blockIdx.x + gridDim.x - 1) / gridDim.x;
	for (uint32_t unit = threadIdx.x / 32; unit < tokens * units; unit += 8) {
		const int64_t token = blockIdx.x + (int64_t)(unit / units) * gridDim.x;
		const int pair = (int)(unit % units);
		if (pair == pairs) {
			widen(a.input, token, (int)threadIdx.x % 32, 32);
			continue;
		}
		const float scale = scale_of(a.scale, token);
		const int start = t.starts[token];
		const int head = 2 * pair + half % 2;
		const bool query = head < t.heads, turned = head < t.heads + t.kv_heads;
		const int64_t at = (token * count + head) * d;
		const void *from = query ? a.dq : turned ? a.dk : a.dv;
		const int heads = query ? t.heads : t.kv_heads;
		const int of = query ? head : (head - t.heads) % t.kv_heads;
		const int64_t place = (token * heads + of) * d;
		Four raw[Chunks];
		float v[Chunks][4], u[Chunks][4];
		NC_UNROLL
		for (int k = 0; k < Chunks; k++) {
			const int i = 4 * (lane + 16 * k);
			raw[k].clear();
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				u[k][e] = 0;
			if (i >= d || head >= count)
				continue;
			if (a.q_norm && turned) {
				load4(u[k], a.x + at + i);
				if (token + gridDim.x < a.tokens)
					ahead(a.x + at + i + (int64_t)gridDim.x * count * d);
			}
			raw[k].load(from, a.half, place + i);
		}
		const int64_t angles = angles_of(t, token, start);
		const float gain = gain_of(scale);
		NC_UNROLL
		for (int k = 0; k < Chunks; k++) {
			const int i = 4 * (lane + 16 * k);
			raw[k].values(v[k], a.half);
			if (i < d)
				store4(x + i, v[k]);
		}
		__syncwarp();
		NC_UNROLL
		for (int k = 0; k < Chunks; k++)
			NC_UNROLL
			for (int e = 0; e < 4; e++) {
				const int i = 4 * (lane + 16 * k) + e;
				if (!turned || i >= 2 * t.half)
					continue;
				const Pair p = pair_of(t, i);
				const float c = t.cosine[angles + p.j], s = t.sine[angles + p.j];
				const float other = x[p.partner];
				v[k][e] = p.first ? fmaf(v[k][e], c, other * s) : fmaf(other, -s, v[k][e] * c);
			}
		if (a.q_norm) {
			const float *weight = query ? a.q_norm : a.k_norm;
			float w[Chunks][4], dot[2] = {0, 0};
			NC_UNROLL
			for (int k = 0; k < Chunks; k++) {
				const int i = 4 * (lane + 16 * k);
				NC_UNROLL
				for (int e = 0; e < 4; e++)
					w[k][e] = 0;
				if (i < d)
					load4(w[k], weight + i);
				NC_UNROLL
				for (int e = 0; e < 4; e++) {
					dot[0] = fmaf(u[k][e], u[k][e], dot[0]);
					dot[1] = fmaf(v[k][e] * w[k][e], u[k][e], dot[1]);
				}
			}
			NC_UNROLL
			for (int i = 0; i < 2; i++)
				for (int m = 8; m > 0; m /= 2)
					dot[i] = dot[i] + nc_shuffle_xor(dot[i], m);
			const NormBack n = norm_back(dot, d, a.eps);
			NC_UNROLL
			for (int k = 0; k < Chunks; k++)
				NC_UNROLL
				for (int e = 0; e < 4; e++) {
					if (!turned)
						continue;
					const float scaled = u[k][e] * n.inverse;
					part[0][k][e] = query ? fmaf(v[k][e], scaled, part[0][k][e]) : part[0][k][e];
					part[1][k][e] = query ? part[1][k][e] : fmaf(v[k][e], scaled, part[1][k][e]);
					v[k][e] = fmaf(n.factor, u[k][e], v[k][e] * w[k][e]) * n.inverse;
				}
		}
		NC_UNROLL
		for (int k = 0; k < Chunks; k++) {
			const int i = 4 * (lane + 16 * k);
			if (i >= d || head >= count)
				continue;
			NC_UNROLL
			for (int e = 0; e < 4; e++)
				v[k][e] = gain * v[k][e];
			store4_bf16(a.dyb + at + i, v[k]);
		}
		__syncwarp(); // x is written again
	}
	if (!a.q_norm)
		return;
	NC_UNROLL
	for (int k = 0; k < Chunks; k++) {
		const int i = 4 * (lane + 16 * k);
		if (i < d) {
			store4(&shared.sums[half][0][i], part[0][k]);
			store4(&shared.sums[half][1][i], part[1][k]);
		}
	}
	__syncthreads();
	if ((int)threadIdx.x < 2 * d) {
		const int which = (int)threadIdx.x / d, i = (int)threadIdx.x % d;
		float s = 0;
		for (int h = 0; h < 16; h++)
			s = s + shared.sums[h][which][i];
		a.partial[(int64_t)blockIdx.x * 2 * d + threadIdx.x] = s;
	}
}

NC_BOUNDED(rotate_back_1, RotateBackArgs, 256, 5)
{
	NC_SHARED RotateBackShared<1> shared;
	rotate_back(a, shared);
}

NC_BOUNDED(rotate_back_2, RotateBackArgs, 256, 3)
{
	NC_SHARED RotateBackShared<2> shared;
	rotate_back(a, shared);
}
