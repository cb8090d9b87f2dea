// The token-wise parts of a step that has one token of each sequence, in few launches: a block of
// 256 threads a token does what several kernels of network.cu and ternary.cu do one after the
// other. The bits are theirs.
#include "cache.cuh"
#include "mix.cuh"
#include "mma.cuh"
#include "order.cuh"
#include "quantize.cuh"

struct MixQuantizeArgs {
	MixArgs mix; // u and mean: which of them goes on, not where
	QuantizeArgs quantize;
};

// Ends one layer function and gives the next its quantised input. 4·dim bytes of dynamic shared
// memory.
NC_KERNEL(mix_quantize, MixQuantizeArgs)
{
	nc_let_next();
	const NormWeights w = norm_weights(a.quantize);
	nc_after_previous();
	NC_DYNAMIC(float, v);
	const int64_t token = blockIdx.x;
	MixArgs m = a.mix;
	float *to = v - token * m.dim; // mix_columns adds it
	m.u = m.u ? to : nullptr, m.mean = m.mean ? to : nullptr;
	const bool wide = m.dim % 4 == 0;
	if (m.streams == 1)
		wide ? mix_columns<1, 4>(m) : mix_columns<1, 1>(m);
	else if (m.streams == 2)
		wide ? mix_columns<2, 4>(m) : mix_columns<2, 1>(m);
	else
		wide ? mix_columns<4, 4>(m) : mix_columns<4, 1>(m);
	quantize_vector(v, a.quantize, w, token);
}

enum { ReLU2 = 0, ReLU2GLU = 1, SwiGLU = 2 };

struct ActivateQuantizeArgs {
	const float *up, *gate; // [tokens][ld]
	QuantizeArgs quantize;
	int32_t ld, kind;
};

// Activates and quantises. 4·n bytes of dynamic shared memory.
NC_KERNEL(activate_quantize, ActivateQuantizeArgs)
{
	nc_let_next();
	const NormWeights w = norm_weights(a.quantize);
	nc_after_previous();
	NC_DYNAMIC(float, v);
	const int64_t token = blockIdx.x;
	const float *up = a.up + token * a.ld, *gate = a.gate + token * a.ld;
	for (int i = (int)threadIdx.x; i < a.quantize.n; i += (int)blockDim.x) {
		if (a.kind == ReLU2) {
			const float x = nc_relu(up[i]);
			v[i] = x * x;
		} else if (a.kind == ReLU2GLU) {
			const float g = nc_relu(gate[i]);
			v[i] = g * g * up[i];
		} else {
			const float g = gate[i];
			v[i] = g / (1.0f + nc_exp(-g)) * up[i];
		}
	}
	quantize_vector(v, a.quantize, w, token);
}

// ------------------------------------------------------------------- attention

// What both kernels of a token's attention know.
struct DecodeArgs {
	float *scores;                // [tokens][heads][room]
	float *dst;                   // [tokens][heads][head_dim]
	const float *qkv;             // [tokens][ld]: heads of queries, of keys, of values
	const float *q_norm, *k_norm; // [head_dim], or null
	const float *cosine, *sine;   // [positions][half]
	// For each token: its position, and where the pages of its sequence begin in pages.
	const int32_t *positions, *first_page, *pages;
	Cache cache;
	int32_t ld, heads, half, interleaved, room;
	float eps, scale;
	int32_t reserved;
};

// turned puts a head's vector, normed and rotated, to x: a warp. All that it reads from memory is
// asked for at once.
NC_DEVICE void turned(float *x, float *lanes, const float *from, const float *weight, int position,
                      const DecodeArgs &a, int lane)
{
	const int d = a.cache.head_dim;
	const float *cosines = a.cosine + (int64_t)position * a.half,
				*sines = a.sine + (int64_t)position * a.half;
	float value[8], factor[8], cosine[4], sine[4]; // of at most 256 elements, 128 pairs
	NC_UNROLL for (int j = 0; j < 8; j++)
	{
		const int i = lane + 32 * j;
		value[j] = i < d ? from[i] : 0;
		factor[j] = weight && i < d ? weight[i] : 1.0f;
	}
	NC_UNROLL for (int j = 0; j < 4; j++)
	{
		const int i = lane + 32 * j;
		cosine[j] = i < a.half ? cosines[i] : 0;
		sine[j] = i < a.half ? sines[i] : 0;
	}
	NC_UNROLL for (int j = 0; j < 8; j++) if (lane + 32 * j < d) x[lane + 32 * j] = value[j];
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
		NC_UNROLL for (int j = 0; j < 8; j++) if (lane + 32 * j < d) x[lane + 32 * j] =
			value[j] * inverse * factor[j];
		__syncwarp();
	}
	NC_UNROLL for (int n = 0; n < 4; n++)
	{
		const int i = lane + 32 * n;
		if (i < a.half) {
			const int j = a.interleaved ? 2 * i : i, k = a.interleaved ? 2 * i + 1 : i + a.half;
			const float u = x[j], v = x[k], bs = v * sine[n], bc = v * cosine[n];
			x[j] = fmaf(u, cosine[n], -bs);
			x[k] = fmaf(u, sine[n], bc);
		}
	}
	__syncwarp();
}

// kept makes x what a cache gives back for it, but for the scale, which it returns: a warp.
NC_DEVICE float kept(float *x, const Cache &c, int lane)
{
	if (!c.int8) {
		for (int i = lane; i < c.head_dim; i += 32)
			x[i] = nc_half(nc_to_half(x[i]));
		return 1;
	}
	uint32_t top = 0;
	for (int i = lane; i < c.head_dim; i += 32) {
		const uint32_t u = __float_as_uint(x[i]) & 0x7fffffffu;
		top = u > top ? u : top;
	}
	for (int m = 16; m > 0; m /= 2) {
		const uint32_t other = nc_shuffle_xor(top, m);
		top = other > top ? other : top;
	}
	const bool finite = top < 0x7f800000u;
	const float unit = __uint_as_float(top) / 127.0f;
	for (int i = lane; i < c.head_dim; i += 32) {
		int q = 0;
		if (finite && unit > 0) {
			q = nc_round(x[i] / unit);
			q = q > 127 ? 127 : q < -127 ? -127 : q;
		}
		x[i] = (float)q;
	}
	return finite ? unit : __uint_as_float(0x7fc00000u);
}

// Norms and rotates queries and new keys, stores keys and values, and multiplies queries with all
// keys: a block of 64 threads for one head of one token and one page, blockIdx.y, of its
// sequence. Those behind the token have nothing to do.
NC_KERNEL(decode_scores, DecodeArgs)
{
	nc_let_next();
	nc_after_previous();
	NC_SHARED float x[2][256], lanes[2][16], unit;
	const int tid = (int)threadIdx.x, lane = tid % 32, d = a.cache.head_dim;
	const int64_t token = blockIdx.z;
	const int kv_heads = a.cache.kv_heads, group = a.heads / kv_heads;
	const int head = (int)blockIdx.x, kv = head / group;
	const int position = a.positions[token], start = (int)blockIdx.y * PageLen;
	if (start > position)
		return;
	const int count = position + 1 - start < PageLen ? position + 1 - start : PageLen;
	const bool newest = start + PageLen > position; // the token's own key is in this page
	const Head h = head_of(a.cache, a.pages[a.first_page[token] + blockIdx.y], kv);
	const float *own = a.qkv + token * a.ld;
	if (tid < 32) {
		turned(x[0], lanes[0], own + head * d, a.q_norm, position, a, lane);
	} else if (newest) {
		turned(x[1], lanes[1], own + (a.heads + kv) * d, a.k_norm, position, a, lane);
		if (head % group == 0) {
			store(a.cache, h.k, h.k_scale, position % PageLen, x[1], lane);
			store(a.cache, h.v, h.v_scale, position % PageLen, own + (a.heads + kv_heads + kv) * d,
			      lane);
			__syncwarp();
		}
		const float u = kept(x[1], a.cache, lane);
		if (lane == 0)
			unit = u;
	}
	__syncthreads();
	if (tid >= count)
		return;
	const bool mine = newest && tid == count - 1;
	const uint8_t *key = h.k + (int64_t)tid * d * (a.cache.int8 ? 1 : 2);
	float s[16];
	for (int i = 0; i < 16; i++)
		s[i] = 0;
	NC_UNROLL_BY(4)
	for (int i = 0; i < (d + 15) / 16; i++) {
		Sixteen k;
		if (mine)
			for (int j = 0; j < 16; j++)
				k.v[j] = 16 * i + j < d ? x[1][16 * i + j] : 0;
		else
			k = sixteen(key, i, d, a.cache.int8);
		for (int j = 0; j < 16; j++)
			if (16 * i + j < d)
				s[j] = fmaf(x[0][16 * i + j], k.v[j], s[j]);
			else
				s[j] = s[j] + 0.0f;
	}
	for (int step = 8; step > 0; step /= 2)
		for (int i = 0; i < step; i++)
			s[i] = s[i] + s[i + step];
	float score = s[0];
	if (a.cache.int8)
		score = score * (mine ? unit : h.k_scale[tid]);
	a.scores[(token * a.heads + head) * a.room + start + tid] = score * a.scale;
}

enum {
	Chunk = 16,
	Ring = 4
}; // pages whose scores are exponents at a time; pages of values on their way

// The softmax goes page by page, as kernels.Attention defines it: a block of 256 threads for one
// head of one token. Ring pages of a head's values of dynamic shared memory.
NC_KERNEL(decode_attention, DecodeArgs)
{
	nc_let_next();
	nc_after_previous();
	NC_DYNAMIC(uint8_t, values);
	NC_SHARED float p[Chunk * PageLen], tops[Chunk], shrink[Chunk], sums[Chunk];
	const int tid = (int)threadIdx.x, lane = tid % 32, warp = tid / 32, d = a.cache.head_dim;
	const int64_t token = blockIdx.y;
	const int head = (int)blockIdx.x, kv = head / (a.heads / a.cache.kv_heads);
	const int n = a.positions[token] + 1, pages = (n + PageLen - 1) / PageLen;
	const int32_t *list = a.pages + a.first_page[token];
	const float *scores = a.scores + (token * a.heads + head) * a.room;
	const int bytes = PageLen * d * (a.cache.int8 ? 1 : 2);

	// fetch begins to copy the values of a page, all of it, to its place in the ring.
	auto fetch = [&](int page) {
		if (page < pages) {
			const uint8_t *from = head_of(a.cache, list[page], kv).v;
			const nc_place to = nc_place_of(values) + page % Ring * bytes;
			for (int i = 16 * tid; i < bytes; i += 16 * 256)
				nc_copy16(to + i, from + i, true);
		}
		nc_commit();
	};
	float m = -INFINITY, l = 0, o = 0;
	for (int first = 0; first < pages; first += Chunk) {
		const int here = pages - first < Chunk ? pages - first : Chunk;
		float s[2][2]; // of the warp's pages, warp and warp + 8
		for (int i = 0; i < 2; i++)
			for (int j = 0; j < 2; j++) {
				const int k = (first + warp + 8 * i) * PageLen + lane + 32 * j;
				s[i][j] = k < n ? scores[k] : -INFINITY;
			}
		for (int page = 0; first == 0 && page < Ring - 1; page++)
			fetch(page); // behind the scores, which are needed first
		for (int i = 0; i < 2; i++) {
			float top = -INFINITY;
			for (int j = 0; j < 2; j++)
				top = s[i][j] > top ? s[i][j] : top; // NaN is no maximum
			for (int mask = 16; mask > 0; mask /= 2) {
				const float other = nc_shuffle_xor(top, mask);
				top = other > top ? other : top;
			}
			if (lane == 0)
				tops[warp + 8 * i] = top;
		}
		__syncthreads();
		for (int i = 0; i < 2; i++) {
			const int page = warp + 8 * i;
			float before = m;
			for (int j = 0; j < page; j++)
				before = tops[j] > before ? tops[j] : before;
			const float now = tops[page] > before ? tops[page] : before;
			for (int j = 0; j < 2; j++)
				p[page * PageLen + lane + 32 * j] = nc_exp(s[i][j] - now);
			if (lane == 0)
				shrink[page] = nc_exp(before - now);
		}
		__syncthreads();
		{ // 16 threads a page
			const int page = tid / 16, left = n - (first + page) * PageLen;
			float sum = 0;
			for (int i = tid % 16; i < PageLen && i < left; i += 16)
				sum = sum + p[page * PageLen + i];
			for (int mask = 8; mask > 0; mask /= 2)
				sum = sum + nc_shuffle_xor(sum, mask);
			if (tid % 16 == 0)
				sums[page] = sum;
		}
		__syncthreads();
		for (int j = 0; j < here; j++) {
			l = fmaf(l, shrink[j], sums[j]);
			m = tops[j] > m ? tops[j] : m;
		}
		for (int i = tid; a.cache.int8 && i < here * PageLen; i += 256) {
			const int k = first * PageLen + i;
			if (k < n)
				p[i] = p[i] * head_of(a.cache, list[k / PageLen], kv).v_scale[k % PageLen];
		}
		for (int j = 0; j < here; j++) {
			const int page = first + j;
			nc_await<Ring - 2>();
			__syncthreads(); // the page is there, and nobody reads the one before
			fetch(page + Ring - 1);
			if (tid >= d)
				continue;
			const int count = n - page * PageLen < PageLen ? n - page * PageLen : PageLen;
			const uint8_t *v = values + page % Ring * bytes;
			const float *w = p + j * PageLen;
			o = o * shrink[j];
			if (a.cache.int8) {
				NC_UNROLL_BY(16)
				for (int i = 0; i < count; i++)
					o = fmaf(w[i], (float)((const int8_t *)v)[i * d + tid], o);
			} else {
				NC_UNROLL_BY(16)
				for (int i = 0; i < count; i++)
					o = fmaf(w[i], nc_half(((const uint16_t *)v)[i * d + tid]), o);
			}
		}
		__syncthreads(); // p is written again
	}
	nc_await<0>();
	if (tid < d)
		a.dst[(token * a.heads + head) * d + tid] = o * (1.0f / l);
}
