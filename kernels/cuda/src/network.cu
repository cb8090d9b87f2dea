// The token-wise parts of the network: embedding, residual streams, positions, caches,
// activation functions, head. The results are those of core/model's forward on a
// processor, to the bit.
#include "cache.cuh"
#include "mix.cuh"
#include "mma.cuh"
#include "order.cuh"

// ------------------------------------------------------------ embedding, streams

struct EmbedArgs {
	float *x;       // [tokens][streams][dim]
	float *initial; // [tokens][dim], or null
	const uint8_t *table;
	const int32_t *ids; // [tokens]
	int32_t dim, streams, type;
};

// A block of 256 threads a token.
NC_KERNEL(embed, EmbedArgs)
{
	nc_let_next();
	nc_after_previous();
	const int64_t token = blockIdx.x;
	const uint8_t *row = a.table + a.ids[token] * nc_row_bytes(a.type, a.dim);
	for (int i = (int)threadIdx.x; i < a.dim; i += 256) {
		float v;
		if (a.type == Q8_0) {
			const uint8_t *block = row + i / 32 * 34;
			v = nc_half(*(const uint16_t *)block) * (float)(int8_t)block[2 + i % 32];
		} else {
			v = nc_element(a.type, row, i);
		}
		for (int s = 0; s < a.streams; s++)
			a.x[(token * a.streams + s) * a.dim + i] = v;
		if (a.initial)
			a.initial[token * a.dim + i] = v;
	}
}

// Ends one layer function and begins the next: a block of up to 256 threads a token.
NC_KERNEL(mix, MixArgs)
{
	const bool wide = a.dim % 4 == 0;
	if (a.streams == 1)
		wide ? mix_columns<1, 4>(a) : mix_columns<1, 1>(a);
	else if (a.streams == 2)
		wide ? mix_columns<2, 4>(a) : mix_columns<2, 1>(a);
	else
		wide ? mix_columns<4, 4>(a) : mix_columns<4, 1>(a);
}

struct GatherArgs {
	float *dst;          // [rows][n]
	const float *src;    // [...][n]
	const int32_t *rows; // [rows]
	int32_t n;
};

NC_KERNEL(gather, GatherArgs)
{
	const int64_t to = blockIdx.x, from = a.rows[to];
	for (int i = (int)threadIdx.x; i < a.n; i += 256)
		a.dst[to * a.n + i] = a.src[from * a.n + i];
}

// -------------------------------------------------------------------- positions

struct RotateArgs {
	float *q;                         // [tokens][heads][head_dim], in place
	float *k;                         // [tokens][kv_heads][head_dim], in place
	const float *v;                   // [tokens][kv_heads][head_dim]
	const float *q_norm, *k_norm;     // [head_dim], or null
	const float *cosine, *sine;       // [positions][half]
	const int32_t *positions, *pages; // [tokens]: where each is, and the page of that position
	Cache cache;
	int32_t heads, half, interleaved;
	float eps;
	int32_t ld, reserved; // from a token's vectors to the next's, in each of q, k and v; 0: close
};

// Norms and rotates queries and keys and stores keys and values: a warp for one head of one
// token, first the heads of queries, then those of keys with their values. head_dim is at
// most 256.
NC_KERNEL(rotate, RotateArgs)
{
	NC_SHARED float x[256], value[256], lanes[16];
	const int lane = (int)threadIdx.x, d = a.cache.head_dim, kv_heads = a.cache.kv_heads;
	const int64_t token = blockIdx.y;
	const int head = (int)blockIdx.x;
	const bool key = head >= a.heads;
	const int64_t far = a.ld ? a.ld : (key ? kv_heads : a.heads) * d; // to the next token's
	float *at = key ? a.k + token * far + (head - a.heads) * d : a.q + token * far + head * d;
	const float *weight = key ? a.k_norm : a.q_norm;
	for (int i = lane; i < d; i += 32)
		x[i] = at[i];
	__syncwarp();
	if (weight) {
		if (lane < 16) {
			float s = 0;
			for (int i = lane; i < d; i += 16)
				s = fmaf(x[i], x[i], s);
			lanes[lane] = s;
		}
		__syncwarp();
		const float inverse = 1.0f / sqrtf(nc_tree(lanes) / (float)d + a.eps);
		for (int i = lane; i < d; i += 32)
			x[i] = x[i] * inverse * weight[i];
		__syncwarp();
	}
	const int position = a.positions[token];
	const float *cosine = a.cosine + (int64_t)position * a.half,
				*sine = a.sine + (int64_t)position * a.half;
	for (int i = lane; i < a.half; i += 32) {
		const int j = a.interleaved ? 2 * i : i, k = a.interleaved ? 2 * i + 1 : i + a.half;
		const float u = x[j], v = x[k], s = sine[i], bs = v * s, bc = v * cosine[i];
		x[j] = fmaf(u, cosine[i], -bs);
		x[k] = fmaf(u, s, bc);
	}
	__syncwarp();
	for (int i = lane; i < d; i += 32)
		at[i] = x[i];
	if (!key)
		return;
	const Head h = head_of(a.cache, a.pages[token], head - a.heads);
	for (int i = lane; i < d; i += 32)
		value[i] = a.v[token * far + (head - a.heads) * d + i];
	__syncwarp();
	store(a.cache, h.k, h.k_scale, position % PageLen, x, lane);
	store(a.cache, h.v, h.v_scale, position % PageLen, value, lane);
}

struct AttentionArgs {
	float *dst;     // [queries][heads][head_dim]
	const float *q; // [tokens][heads][head_dim]
	// For each query: its token, its position, and where the pages of its sequence begin in pages.
	const int32_t *tokens, *positions, *first_page, *pages;
	Cache cache;
	int32_t heads;
	float scale;
	int32_t ld, reserved; // from a token's vectors to the next's in q; 0: close
};

// The softmax goes page by page, as kernels.Attention defines it: a block of 64 threads for
// one head of one query. head_dim is at most 256.
NC_KERNEL(attention, AttentionArgs)
{
	NC_SHARED float q[256], scores[PageLen], lanes[16], top;
	const int tid = (int)threadIdx.x, d = a.cache.head_dim;
	const int64_t query = blockIdx.y;
	const int head = (int)blockIdx.x, group = head / (a.heads / a.cache.kv_heads);
	const int n = a.positions[query] + 1;
	const int32_t *pages = a.pages + a.first_page[query];
	for (int i = tid; i < d; i += 64)
		q[i] = a.q[a.tokens[query] * (int64_t)(a.ld ? a.ld : a.heads * d) + head * d + i];
	float m = -INFINITY, l = 0, o[4] = {0, 0, 0, 0};
	__syncthreads();
	for (int start = 0; start < n; start += PageLen) {
		const int count = n - start < PageLen ? n - start : PageLen;
		const Head h = head_of(a.cache, pages[start / PageLen], group);
		float score = 0;
		if (tid < count) {
			float s[16];
			for (int i = 0; i < 16; i++)
				s[i] = 0;
			const uint8_t *key = h.k + (int64_t)tid * d * (a.cache.int8 ? 1 : 2);
			NC_UNROLL_BY(4)
			for (int i = 0; i < (d + 15) / 16; i++) {
				const Sixteen k = sixteen(key, i, d, a.cache.int8);
				for (int j = 0; j < 16; j++)
					s[j] = 16 * i + j < d ? fmaf(q[16 * i + j], k.v[j], s[j]) : s[j] + 0.0f;
			}
			for (int step = 8; step > 0; step /= 2)
				for (int i = 0; i < step; i++)
					s[i] = s[i] + s[i + step];
			score = s[0];
			if (a.cache.int8)
				score = score * h.k_scale[tid];
			score = score * a.scale;
			scores[tid] = score;
		}
		__syncthreads();
		if (tid == 0) {
			float best = m;
			for (int i = 0; i < count; i++)
				best = scores[i] > best ? scores[i] : best;
			top = best;
		}
		__syncthreads();
		const float c = nc_exp(m - top);
		m = top;
		if (tid < count)
			scores[tid] = nc_exp(score - m);
		__syncthreads();
		if (tid < 16) {
			float s = 0;
			for (int i = tid; i < count; i += 16)
				s = s + scores[i];
			lanes[tid] = s;
		}
		__syncthreads();
		l = fmaf(l, c, nc_tree(lanes));
		for (int part = 0; part < 4; part++) {
			const int i = tid + 64 * part;
			if (i >= d)
				continue;
			float v = o[part] * c;
			for (int j = 0; j < count; j++) {
				float w = scores[j];
				if (a.cache.int8) {
					w = w * h.v_scale[j];
					v = fmaf(w, (float)((const int8_t *)h.v)[j * d + i], v);
				} else {
					v = fmaf(w, nc_half(((const uint16_t *)h.v)[j * d + i]), v);
				}
			}
			o[part] = v;
		}
		__syncthreads();
	}
	const float inverse = 1.0f / l;
	for (int part = 0; part < 4; part++) {
		const int i = tid + 64 * part;
		if (i < d)
			a.dst[(query * a.heads + head) * d + i] = o[part] * inverse;
	}
}

// -------------------------------------------------------------- feed-forward, head

enum { ReLU2 = 0, ReLU2GLU = 1, SwiGLU = 2 };

struct ActivateArgs {
	float *dst; // [n]
	const float *gate, *up;
	int64_t n;
	int32_t kind, reserved;
};

NC_KERNEL(activate, ActivateArgs)
{
	const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
	if (i >= a.n)
		return;
	if (a.kind == ReLU2) {
		const float v = nc_relu(a.up[i]);
		a.dst[i] = v * v;
	} else if (a.kind == ReLU2GLU) {
		const float g = nc_relu(a.gate[i]);
		a.dst[i] = g * g * a.up[i];
	} else {
		const float g = a.gate[i];
		a.dst[i] = g / (1.0f + nc_exp(-g)) * a.up[i];
	}
}

struct HeadArgs {
	float *logits;         // [tokens][rows]
	const uint8_t *table;  // [rows] rows
	const float *x;        // [tokens][cols]: of a table of F32, F16 or BF16
	const int8_t *q;       // [tokens][stride]: of one of Q8_0
	const float *scale;    // [tokens]
	const int32_t *tokens; // [gridDim.y]: which tokens
	int32_t rows, cols, stride, type;
	float softcap;  // 0: none
	int32_t staged; // 1: rows of the table go through shared memory
};

NC_DEVICE float capped(float z, float c) { return c > 0 ? c * nc_tanh(z / c) : z; }

// table_rows gives a block its `count` rows: copied to shared memory, all at once and 16 bytes at a
// time, or where they are. The copies are under way before the kernel in front of this one ends,
// which writes no table. Rows beyond the table are its last ones; the copy's last 15 bytes may lie
// behind it, within the memory that it is given.
NC_DEVICE const uint8_t *table_rows(uint8_t *room, const HeadArgs &a, int count)
{
	const int64_t bytes = nc_row_bytes(a.type, a.cols), first = (int64_t)blockIdx.x * count;
	const uint8_t *from = a.table + first * bytes;
	if (a.staged) {
		const int64_t here = a.rows - first < count ? a.rows - first : count;
		for (int64_t i = 16 * (int)threadIdx.x; i < here * bytes; i += 16 * 128)
			nc_copy16(nc_place_of(room) + i, from + i, true);
		nc_commit();
	}
	nc_let_next();
	nc_after_previous();
	if (!a.staged)
		return from;
	nc_await<0>();
	__syncthreads();
	return room;
}

// Eight rows a block of 128 threads, by gridDim.y tokens; 16 threads go along a row. If staged, 8
// rows of dynamic shared memory.
NC_KERNEL(head_float, HeadArgs)
{
	NC_DYNAMIC(uint8_t, room);
	const int lane = (int)threadIdx.x % 16, place = (int)threadIdx.x / 16;
	const int64_t row = (int64_t)blockIdx.x * 8 + place;
	const uint8_t *w =
		table_rows(room, a, 8) + (row < a.rows ? place : 0) * nc_row_bytes(a.type, a.cols);
	const float *x = a.x + (int64_t)a.tokens[blockIdx.y] * a.cols;
	float s = 0;
	NC_UNROLL_BY(8)
	for (int i = lane; i < a.cols; i += 16)
		s = fmaf(nc_element(a.type, w, i), x[i], s);
	if (a.cols % 16 != 0 && lane >= a.cols % 16)
		s = s + 0.0f;
	for (int m = 8; m > 0; m /= 2)
		s = s + nc_shuffle_xor(s, m);
	if (lane == 0 && row < a.rows)
		a.logits[blockIdx.y * (int64_t)a.rows + row] = capped(s, a.softcap);
}

// Sixteen rows a block of 128 threads; eight threads go along a row, four columns of a block
// of 32 each. If staged, 16 rows of dynamic shared memory.
NC_KERNEL(head_q8, HeadArgs)
{
	NC_DYNAMIC(uint8_t, room);
	const int lane = (int)threadIdx.x % 8, place = (int)threadIdx.x / 8;
	const int64_t row = (int64_t)blockIdx.x * 16 + place;
	const uint16_t *w = (const uint16_t *)(table_rows(room, a, 16) +
	                                       (row < a.rows ? place : 0) * nc_row_bytes(Q8_0, a.cols));
	const int64_t token = a.tokens[blockIdx.y];
	const uint32_t *q = (const uint32_t *)(a.q + token * a.stride);
	float s = 0;
	NC_UNROLL_BY(8)
	for (int b = 0; b < a.cols / 32; b++) {
		const uint16_t *block = w + 17 * b; // blocks of 34 bytes: words of 16 bits are aligned
		const uint32_t bytes = block[1 + 2 * lane] | (uint32_t)block[2 + 2 * lane] << 16;
		s = fmaf(nc_half(block[0]), (float)nc_dot_signed(bytes, q[8 * b + lane], 0), s);
	}
	for (int m = 4; m > 0; m /= 2)
		s = s + nc_shuffle_xor(s, m);
	if (lane == 0 && row < a.rows)
		a.logits[blockIdx.y * (int64_t)a.rows + row] = capped(a.scale[token] * s, a.softcap);
}
