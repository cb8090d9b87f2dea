// Hyper-connections: the mixing of residual streams from its logits, with the bits of package
// core/mhc.
#include "mhc.cuh"

enum {
	TokenTile = 16,
	Chunk = 128,
	ChunkPad = Chunk + 16, // so that rows of a tile begin in different banks
};

// --------------------------------------------------------------- static mixing

struct PrepareArgs {
	const Site *sites;
	Kind kind;
	int32_t count, reserved;
};

template <int S> NC_DEVICE void prepare(const Site &site, const Kind &kind)
{
	float l[MaxLogits];
	for (int i = 0; i < S; i++) {
		l[i] = site.pre[i];
		l[S + i] = site.post[i];
	}
	for (int i = 2 * S; i < kind.logits; i++)
		l[i] = site.res[i - 2 * S];
	mixing<S>(site.coef, l, kind.sinkhorn, kind.iterations);
}

// A thread a site.
NC_KERNEL(mhc_prepare, PrepareArgs)
{
	const int i = (int)(blockIdx.x * 32 + threadIdx.x);
	if (i >= a.count)
		return;
	if (a.kind.streams == 2)
		prepare<2>(a.sites[i], a.kind);
	else
		prepare<4>(a.sites[i], a.kind);
}

// -------------------------------------------------------------- dynamic mixing

struct CoefsArgs {
	const float *x; // [tokens][S][dim]
	Coef *coef;     // [tokens]
	float *u;       // [tokens][dim]: what the layer function reads, or null
	float *z;       // [tokens][MaxLogits]: the projection, for the backward, or null
	float *inverse; // [tokens]: of the root mean square of x, or null
	Site site;
	Kind kind;
	int32_t tokens, reserved;
};

// Shared memory of mhc_coefs.
struct CoefsShared {
	Pack<4> x[TokenTile * ChunkPad / 4], w[MaxLogits * ChunkPad / 4];
	float z[TokenTile][MaxLogits + 1], inverse[TokenTile], pre[TokenTile][MaxStreams];
};

// four is elements i .. i+3 of a row of n, 0 behind its end.
NC_DEVICE Pack<4> four(const float *row, int i, int n)
{
	Pack<4> p = {{0, 0, 0, 0}};
	if (n % 4 == 0) {
		if (i < n)
			p = *(const Pack<4> *)(row + i);
		return p;
	}
	for (int k = 0; k < 4; k++)
		if (i + k < n)
			p.v[k] = row[i + k];
	return p;
}

// tile_product computes z of a tile of tokens: rows of W, up to 8·R, times normed states, by
// 256 threads.
//
// A canonical sum has 16 lanes, of which a thread has the four of one access of 16 bytes, for
// R rows and two tokens: 8·R sums in registers, of which 16 columns need R + 2 accesses. A
// warp's threads take 2 of the 8 places of rows and 4 of the 8 of tokens, so that these meet few
// banks: arithmetic and accesses take about the same time. What the next chunk
// needs is on its way while one is computed.
template <int R>
NC_DEVICE void tile_product(const CoefsArgs &a, CoefsShared *sh, int64_t first, int count)
{
	const int tid = (int)threadIdx.x, quad = tid % 4, n = a.kind.streams * a.kind.dim;
	const int token = (tid >> 2 & 3) | (tid >> 3 & 4), row = (tid >> 4 & 1) | (tid >> 5 & 6);
	enum { Rows = 8 * R, Xs = TokenTile * Chunk / 4 / 256, Ws = Rows * Chunk / 4 / 256 };
	float sum[R][2][4];
	for (int r = 0; r < R; r++)
		for (int t = 0; t < 2; t++)
			for (int j = 0; j < 4; j++)
				sum[r][t][j] = 0;
	Pack<4> x[Xs], w[Ws];
	// The same 32 threads, one warp, take a whole chunk of one token, and of one row.
	const int column = tid % 32 * 4, line = tid / 32;
	auto load = [&](int base) {
		for (int i = 0; i < Xs; i++) {
			const int t = line + 8 * i;
			x[i] = four(a.x + (first + (t < count ? t : 0)) * n, base + column, t < count ? n : 0);
		}
		for (int i = 0; i < Ws; i++) {
			const int l = line + 8 * i;
			w[i] = four(a.site.proj + (int64_t)(l < a.kind.logits ? l : 0) * n, base + column,
			            l < a.kind.logits ? n : 0);
		}
	};
	load(0);
	for (int base = 0; base < n; base += Chunk) {
		__syncthreads();
		for (int i = 0; i < Xs; i++) {
			const float inverse = sh->inverse[line + 8 * i];
			for (int k = 0; k < 4; k++)
				x[i].v[k] = x[i].v[k] * inverse;
			sh->x[((line + 8 * i) * ChunkPad + column) / 4] = x[i];
		}
		for (int i = 0; i < Ws; i++)
			sh->w[((line + 8 * i) * ChunkPad + column) / 4] = w[i];
		__syncthreads();
		if (base + Chunk < n)
			load(base + Chunk);
		for (int c = 0; c < Chunk && base + c < n; c += 16) {
			Pack<4> left[R], right[2];
			for (int r = 0; r < R; r++)
				left[r] = sh->w[((row + 8 * r) * ChunkPad + c) / 4 + quad];
			for (int t = 0; t < 2; t++)
				right[t] = sh->x[((token + 8 * t) * ChunkPad + c) / 4 + quad];
			for (int r = 0; r < R; r++)
				for (int t = 0; t < 2; t++)
					for (int j = 0; j < 4; j++)
						sum[r][t][j] = fmaf(left[r].v[j], right[t].v[j], sum[r][t][j]);
		}
	}
	for (int r = 0; r < R; r++)
		for (int t = 0; t < 2; t++) {
			float *s = sum[r][t];
			for (int j = 0; j < 4; j++)
				s[j] = s[j] + nc_shuffle_xor(s[j], 2);
			for (int j = 0; j < 4; j++)
				s[j] = s[j] + nc_shuffle_xor(s[j], 1);
			if (quad == 0)
				sh->z[token + 8 * t][row + 8 * r] = (s[0] + s[2]) + (s[1] + s[3]);
		}
}

// read_streams reads count tokens, by 256 threads.
template <int S>
NC_DEVICE void read_streams(const CoefsArgs &a, const float (*pres)[MaxStreams], int64_t first,
                            int count)
{
	const int dim = a.kind.dim;
	if (dim % 4 == 0) {
		for (int i = (int)threadIdx.x; i < count * (dim / 4); i += 256) {
			const int t = i / (dim / 4), column = i % (dim / 4) * 4;
			const float *x = a.x + (first + t) * S * dim + column, *pre = pres[t];
			Pack<4> in[S], u;
			for (int s = 0; s < S; s++)
				in[s] = *(const Pack<4> *)(x + s * dim);
			for (int k = 0; k < 4; k++) {
				u.v[k] = pre[0] * in[0].v[k];
				for (int s = 1; s < S; s++)
					u.v[k] = fmaf(pre[s], in[s].v[k], u.v[k]);
			}
			*(Pack<4> *)(a.u + (first + t) * dim + column) = u;
		}
		return;
	}
	for (int i = (int)threadIdx.x; i < count * dim; i += 256) {
		const int t = i / dim, column = i % dim;
		const float *x = a.x + (first + t) * S * dim + column, *pre = pres[t];
		float u = pre[0] * x[0];
		for (int s = 1; s < S; s++)
			u = fmaf(pre[s], x[s * dim], u);
		a.u[(first + t) * dim + column] = u;
	}
}

// token_mixing computes the mixing of a token from its z, and leaves that for reading in pre too.
NC_DEVICE void token_mixing(const CoefsArgs &a, int64_t token, const float *z, float *pre)
{
	float l[MaxLogits];
	gated(l, z, a.site, a.kind);
	Coef c;
	if (a.kind.streams == 2)
		mixing<2>(&c, l, a.kind.sinkhorn, a.kind.iterations);
	else
		mixing<4>(&c, l, a.kind.sinkhorn, a.kind.iterations);
	a.coef[token] = c;
	for (int s = 0; s < MaxStreams; s++)
		pre[s] = c.pre[s];
}

// squares is the canonical sum of squares of x [n]: 16 threads, the lanes of it, come, and all get
// it.
NC_DEVICE float squares(const float *x, int n, int lane)
{
	enum { Ahead = 16 }; // reads ahead of the sums, which wait for each other
	float s = 0;
	int i = lane;
	for (; i + (Ahead - 1) * 16 < n; i += Ahead * 16) {
		float v[Ahead];
		for (int j = 0; j < Ahead; j++)
			v[j] = x[i + 16 * j];
		for (int j = 0; j < Ahead; j++)
			s = fmaf(v[j], v[j], s);
	}
	for (; i < n; i += 16)
		s = fmaf(x[i], x[i], s);
	if (n % 16 != 0 && lane >= n % 16)
		s = s + 0.0f;
	for (int m = 8; m > 0; m /= 2)
		s = s + nc_shuffle_xor(s, m);
	return s;
}

// A block of 256 threads for 16 tokens: their norms, the projection, the mixing, and what the layer
// function reads.
NC_KERNEL(mhc_coefs, CoefsArgs)
{
	NC_SHARED CoefsShared sh;
	const int tid = (int)threadIdx.x, n = a.kind.streams * a.kind.dim;
	const int64_t first = (int64_t)blockIdx.x * TokenTile;
	const int count = a.tokens - first < TokenTile ? (int)(a.tokens - first) : (int)TokenTile;
	{ // 16 threads a token: the lanes of its sum of squares
		const int t = tid / 16, lane = tid % 16;
		const float *x = a.x + (first + (t < count ? t : 0)) * n;
		const float s = squares(x, n, lane);
		if (lane == 0)
			sh.inverse[t] = 1.0f / sqrtf(s / (float)n + 1e-6f);
	}
	__syncthreads();
	if (a.kind.logits <= 8)
		tile_product<1>(a, &sh, first, count);
	else if (a.kind.logits <= 24)
		tile_product<3>(a, &sh, first, count);
	else
		tile_product<4>(a, &sh, first, count);
	__syncthreads();
	if (tid < count) {
		token_mixing(a, first + tid, sh.z[tid], sh.pre[tid]);
		if (a.inverse)
			a.inverse[first + tid] = sh.inverse[tid];
	}
	for (int i = tid; a.z && i < count * MaxLogits; i += 256)
		a.z[first * MaxLogits + i] =
			i % MaxLogits < a.kind.logits ? sh.z[i / MaxLogits][i % MaxLogits] : 0;
	if (!a.u)
		return;
	__syncthreads();
	if (a.kind.streams == 2)
		read_streams<2>(a, sh.pre, first, count);
	else
		read_streams<4>(a, sh.pre, first, count);
}

// For few tokens, where one block would go along all of W alone: a block of 128 threads for one
// logit, blockIdx.x, of one token. 8·S·dim bytes of dynamic shared memory: the state and the row of
// W, all of which are on their way at once.
NC_KERNEL(mhc_few_logits, CoefsArgs)
{
	NC_DYNAMIC(Pack<4>, rows);
	NC_SHARED float inverse;
	const int tid = (int)threadIdx.x, n = a.kind.streams * a.kind.dim, logit = (int)blockIdx.x;
	const int64_t token = blockIdx.y;
	const int quads = (n + 3) / 4;
	for (int i = tid; i < quads; i += 128) {
		rows[i] = four(a.x + token * n, 4 * i, n);
		rows[quads + i] = four(a.site.proj + (int64_t)logit * n, 4 * i, n);
	}
	__syncthreads();
	if (tid >= 32)
		return;
	// The 16 lanes of the canonical sums; the other half of the warp does the same.
	const float *x = (const float *)rows, *w = x + 4 * quads;
	const int lane = tid % 16;
	float s = squares(x, n, lane);
	if (tid == 0)
		inverse = 1.0f / sqrtf(s / (float)n + 1e-6f);
	__syncwarp();
	const float scale = inverse;
	s = 0;
	int i = lane;
	for (; i + 7 * 16 < n; i += 8 * 16) {
		float v[8], y[8];
		for (int j = 0; j < 8; j++) {
			v[j] = w[i + 16 * j];
			y[j] = x[i + 16 * j] * scale;
		}
		for (int j = 0; j < 8; j++)
			s = fmaf(v[j], y[j], s);
	}
	for (; i < n; i += 16)
		s = fmaf(w[i], x[i] * scale, s);
	if (n % 16 != 0 && lane >= n % 16)
		s = s + 0.0f;
	for (int m = 8; m > 0; m /= 2)
		s = s + nc_shuffle_xor(s, m);
	if (tid == 0)
		a.z[token * MaxLogits + logit] = s;
	if (logit > 0)
		return;
	if (tid == 0)
		a.inverse[token] = scale;
	if (tid >= a.kind.logits)
		a.z[token * MaxLogits + tid] = 0;
}

// The rest of it: a block of 256 threads a token.
NC_KERNEL(mhc_few_mixings, CoefsArgs)
{
	NC_SHARED float pre[1][MaxStreams];
	const int64_t token = blockIdx.x;
	if (threadIdx.x == 0)
		token_mixing(a, token, a.z + token * MaxLogits, pre[0]);
	if (!a.u)
		return;
	__syncthreads();
	if (a.kind.streams == 2)
		read_streams<2>(a, pre, token, 1);
	else
		read_streams<4>(a, pre, token, 1);
}
