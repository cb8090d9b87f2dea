// Hyper-connections: the mixing of residual streams from its logits, and the backward of
// that. Definitions and the order of operations are those of package core/mhc. What is
// forward has its bits; sums of gradients over tokens are taken in another order.
#include "mhc.cuh"

enum {
	TokenTile = 16,
	Chunk = 128,
	ChunkPad = Chunk + 16, // so that rows of a tile begin in different banks
};

// --------------------------------------------------------------- static mixing

// Site is the parameters of one place where streams are mixed, and what is made of them.
struct Site {
	const float *pre, *post, *res, *gate,
		*proj; // [S], [S], [logits - 2·S]; dynamic: [3], [logits][S·dim]
	float *g_pre, *g_post, *g_res, *g_gate, *g_proj;
	Coef *coef; // of a static site
};

// What all sites of a network have in common.
struct Kind {
	int32_t streams, dim, logits, sinkhorn, iterations, reserved;
};

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

// gate_of is the number of the gate of logit i.
NC_DEVICE int gate_of(int i, int streams) { return i / streams < 2 ? i / streams : 2; }

// gated is the logits b + gate·z of one token.
NC_DEVICE void gated(float *l, const float *z, const Site &site, const Kind &kind)
{
	const int n = kind.streams;
	for (int i = 0; i < kind.logits; i++) {
		const float b = i < n ? site.pre[i] : i < 2 * n ? site.post[i - n] : site.res[i - 2 * n];
		l[i] = b + site.gate[gate_of(i, n)] * z[i];
	}
}

template <int S>
NC_DEVICE void read_streams(const CoefsArgs &a, const CoefsShared *sh, int64_t first, int count)
{
	const int dim = a.kind.dim;
	if (dim % 4 == 0) {
		for (int i = (int)threadIdx.x; i < count * (dim / 4); i += 256) {
			const int t = i / (dim / 4), column = i % (dim / 4) * 4;
			const float *x = a.x + (first + t) * S * dim + column, *pre = sh->pre[t];
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
		const float *x = a.x + (first + t) * S * dim + column, *pre = sh->pre[t];
		float u = pre[0] * x[0];
		for (int s = 1; s < S; s++)
			u = fmaf(pre[s], x[s * dim], u);
		a.u[(first + t) * dim + column] = u;
	}
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
		float s = 0;
		for (int i = lane; i < n; i += 16)
			s = fmaf(x[i], x[i], s);
		if (n % 16 != 0 && lane >= n % 16)
			s = s + 0.0f;
		for (int m = 8; m > 0; m /= 2)
			s = s + nc_shuffle_xor(s, m);
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
		float l[MaxLogits];
		gated(l, sh.z[tid], a.site, a.kind);
		Coef c;
		if (a.kind.streams == 2)
			mixing<2>(&c, l, a.kind.sinkhorn, a.kind.iterations);
		else
			mixing<4>(&c, l, a.kind.sinkhorn, a.kind.iterations);
		a.coef[first + tid] = c;
		for (int s = 0; s < MaxStreams; s++)
			sh.pre[tid][s] = c.pre[s];
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
		read_streams<2>(a, &sh, first, count);
	else
		read_streams<4>(a, &sh, first, count);
}

// -------------------------------------------------------------------- backward

struct SumsArgs {
	const float *g;  // [tokens][width]
	const float *z;  // [tokens][MaxLogits], or null
	double *partial; // [gridDim.x][2][MaxLogits]: of the columns of g, and of g·z
	int32_t tokens, width;
};

enum { SumTokens = 256 };

// Sums of columns: a block of 256 threads, a warp a token, for 256 tokens.
NC_KERNEL(mhc_sums, SumsArgs)
{
	NC_SHARED double sums[8][2][MaxLogits];
	const int column = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
	const int64_t first = (int64_t)blockIdx.x * SumTokens;
	const int64_t last = first + SumTokens < a.tokens ? first + SumTokens : a.tokens;
	double sum = 0, product = 0;
	for (int64_t t = first + warp; column < a.width && t < last; t += 8) {
		const double g = (double)a.g[t * a.width + column];
		sum = sum + g;
		if (a.z)
			product = product + g * (double)a.z[t * MaxLogits + column];
	}
	sums[warp][0][column] = sum;
	sums[warp][1][column] = product;
	__syncthreads();
	if (warp >= 2)
		return;
	sum = 0;
	for (int w = 0; w < 8; w++)
		sum = sum + sums[w][warp][column];
	a.partial[((int64_t)blockIdx.x * 2 + warp) * MaxLogits + column] = sum;
}

struct FinishArgs {
	const double *partial; // [blocks][2][MaxLogits]
	float *tape;
	Site site;
	Kind kind;
	int32_t blocks, dynamic;
};

// The gradients of a static site's logits from the sums of its mixing's, and those of a dynamic
// one's biases and gates from the sums of its logits': one block of 256 threads.
NC_KERNEL(mhc_finish, FinishArgs)
{
	NC_SHARED double parts[4][2 * MaxLogits], sums[2 * MaxLogits], dl[MaxLogits];
	const int tid = (int)threadIdx.x, column = tid % (2 * MaxLogits), part = tid / (2 * MaxLogits);
	const int each = (a.blocks + 3) / 4;
	double sum = 0;
	for (int b = part * each; b < (part + 1) * each && b < a.blocks; b++)
		sum = sum + a.partial[(int64_t)b * 2 * MaxLogits + column];
	parts[part][column] = sum;
	__syncthreads();
	if (tid < 2 * MaxLogits)
		sums[tid] = ((parts[0][tid] + parts[1][tid]) + parts[2][tid]) + parts[3][tid];
	__syncthreads();
	const int n = a.kind.streams;
	if (tid == 0 && !a.dynamic) {
		float l[MaxLogits];
		double d[MaxLogits];
		for (int i = 0; i < n; i++) {
			l[i] = a.site.pre[i];
			l[n + i] = a.site.post[i];
		}
		for (int i = 2 * n; i < a.kind.logits; i++)
			l[i] = a.site.res[i - 2 * n];
		const Tape tape = {a.tape, 1};
		if (n == 2)
			logits_back<2>(d, sums, sums + MaxStreams, sums + 2 * MaxStreams, l, a.kind.sinkhorn,
			               a.kind.iterations, tape);
		else
			logits_back<4>(d, sums, sums + MaxStreams, sums + 2 * MaxStreams, l, a.kind.sinkhorn,
			               a.kind.iterations, tape);
		for (int i = 0; i < a.kind.logits; i++)
			dl[i] = d[i];
	} else if (a.dynamic && tid < a.kind.logits) {
		dl[tid] = sums[tid];
	}
	__syncthreads();
	if (tid < a.kind.logits) {
		float *to = tid < n       ? a.site.g_pre + tid
		            : tid < 2 * n ? a.site.g_post + tid - n
		                          : a.site.g_res + tid - 2 * n;
		*to = *to + (float)dl[tid];
	}
	if (a.dynamic && tid < 3) {
		sum = 0;
		for (int i = 0; i < a.kind.logits; i++)
			if (gate_of(i, n) == tid)
				sum = sum + sums[MaxLogits + i];
		a.site.g_gate[tid] = a.site.g_gate[tid] + (float)sum;
	}
}

struct LogitsBackArgs {
	const Coef *grad; // [tokens]
	const float *z;   // [tokens][MaxLogits]
	float *dl;        // [tokens][MaxLogits], 0 behind the logits
	float *along;     // [tokens]: Σ gate·dl·z / (S·dim), see mhc_project_back
	float *tape;      // [steps][S][gridDim.x·128], of Sinkhorn
	Site site;
	Kind kind;
	int32_t tokens, reserved;
};

// The gradient of the logits of dynamic sites: a thread a token; blocks of 128 threads go on
// with later tokens, for the tapes need room.
NC_KERNEL(mhc_logits_back, LogitsBackArgs)
{
	const int64_t thread = (int64_t)blockIdx.x * 128 + threadIdx.x, all = (int64_t)gridDim.x * 128;
	const int n = a.kind.streams;
	for (int64_t t = thread; t < a.tokens; t += all) {
		float l[MaxLogits];
		double dl[MaxLogits], d[2 * MaxStreams + MaxStreams * MaxStreams];
		const float *z = a.z + t * MaxLogits, *grad = (const float *)(a.grad + t);
		gated(l, z, a.site, a.kind);
		for (int i = 0; i < 2 * MaxStreams + MaxStreams * MaxStreams; i++)
			d[i] = (double)grad[i];
		const Tape tape = {a.tape + thread, all};
		if (n == 2)
			logits_back<2>(dl, d, d + MaxStreams, d + 2 * MaxStreams, l, a.kind.sinkhorn,
			               a.kind.iterations, tape);
		else
			logits_back<4>(dl, d, d + MaxStreams, d + 2 * MaxStreams, l, a.kind.sinkhorn,
			               a.kind.iterations, tape);
		double along = 0;
		for (int i = 0; i < MaxLogits; i++) {
			float v = 0;
			if (i < a.kind.logits) {
				v = (float)dl[i];
				along = along + (double)(v * a.site.gate[gate_of(i, n)]) * (double)z[i];
			}
			a.dl[t * MaxLogits + i] = v;
		}
		a.along[t] = (float)(along / (double)(n * a.kind.dim));
	}
}

struct ProjectBackArgs {
	const float *x; // [tokens][S·dim]
	float *dx;      // [tokens][S·dim], added to
	const float *dl, *along, *inverse;
	float *partial; // [gridDim.y][8·R][S·dim]
	Site site;
	Kind kind;
	int32_t tokens, each; // tokens that a block takes
};

// project_back is the backward of z = W·norm(x): a thread has one column of W and of its
// gradient in registers, 16·R floats, and goes along the tokens, whose logits' gradients all
// threads read in shared memory at the same time. With dz = gate·dl and y = norm(x),
//
//	dW += dz·yᵀ    dx += (Wᵀ·dz - y·(Σ dz·z)/n)/rms(x)
//
// for Wᵀ·dz · y is Σ dz·z.
template <int R>
NC_DEVICE void project_back(const ProjectBackArgs &a, Pack<4> *dz, float *inverse, float *along)
{
	enum { Rows = 8 * R, Ahead = 4 };
	const int tid = (int)threadIdx.x, n = a.kind.streams * a.kind.dim;
	const int column = (int)blockIdx.x * 128 + tid, logits = a.kind.logits;
	const bool inside = column < n;
	float w[Rows], sum[Rows];
	for (int l = 0; l < Rows; l++) {
		w[l] = inside && l < logits ? a.site.proj[(int64_t)l * n + column] : 0;
		sum[l] = 0;
	}
	const int64_t first = (int64_t)blockIdx.y * a.each;
	const int64_t last = first + a.each < a.tokens ? first + a.each : a.tokens;
	for (int64_t base = first; base < last; base += TokenTile) {
		const int count = last - base < TokenTile ? (int)(last - base) : (int)TokenTile;
		__syncthreads();
		for (int i = tid; i < TokenTile * Rows; i += 128) {
			const int t = i / Rows, l = i % Rows;
			float v = 0;
			if (t < count && l < logits)
				v = a.dl[(base + t) * MaxLogits + l] * a.site.gate[gate_of(l, a.kind.streams)];
			((float *)dz)[i] = v;
		}
		if (tid < count) {
			inverse[tid] = a.inverse[base + tid];
			along[tid] = a.along[base + tid];
		}
		__syncthreads();
		for (int t = 0; inside && t < count; t += Ahead) {
			float x[Ahead], dx[Ahead];
			for (int k = 0; k < Ahead; k++) {
				const int64_t at = (base + (t + k < count ? t + k : t)) * n + column;
				x[k] = a.x[at];
				dx[k] = a.dx[at];
			}
			for (int k = 0; k < Ahead; k++) {
				if (t + k >= count)
					break;
				const float scale = inverse[t + k], y = x[k] * scale;
				float g = 0;
				for (int l = 0; l < Rows; l += 4) {
					const Pack<4> d = dz[((t + k) * Rows + l) / 4];
					for (int j = 0; j < 4; j++) {
						g = fmaf(d.v[j], w[l + j], g);
						sum[l + j] = fmaf(d.v[j], y, sum[l + j]);
					}
				}
				a.dx[(base + t + k) * n + column] = fmaf(fmaf(-along[t + k], y, g), scale, dx[k]);
			}
		}
	}
	for (int l = 0; inside && l < Rows; l++)
		a.partial[((int64_t)blockIdx.y * Rows + l) * n + column] = sum[l];
}

// Blocks of 128 threads: columns by ranges of tokens.
NC_KERNEL(mhc_project_back, ProjectBackArgs)
{
	NC_SHARED Pack<4> dz[TokenTile * MaxLogits / 4];
	NC_SHARED float inverse[TokenTile], along[TokenTile];
	if (a.kind.logits <= 8)
		project_back<1>(a, dz, inverse, along);
	else if (a.kind.logits <= 24)
		project_back<3>(a, dz, inverse, along);
	else
		project_back<4>(a, dz, inverse, along);
}

struct AddArgs {
	float *dst;           // [n]
	const float *partial; // [count][stride]
	int64_t n, stride;
	int32_t count, reserved;
};

// dst += the partial sums, in order: blocks of 256 threads.
NC_KERNEL(mhc_add, AddArgs)
{
	const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
	if (i >= a.n)
		return;
	float s = 0;
	for (int p = 0; p < a.count; p++)
		s = s + a.partial[p * a.stride + i];
	a.dst[i] = a.dst[i] + s;
}

// -------------------------------------------------------------------- statistics

struct CosineArgs {
	double *dst;    // [gridDim.x]
	const float *x; // [tokens][streams][dim]
	int32_t dim, streams, step, reserved;
};

// The mean cosine between pairs of the streams of every step-th token, as mhc.Similarity: a block
// of 256 threads a token.
NC_KERNEL(mhc_cosine, CosineArgs)
{
	NC_SHARED double parts[8][10];
	const int tid = (int)threadIdx.x, n = a.streams;
	const float *x = a.x + (int64_t)blockIdx.x * a.step * n * a.dim;
	double gram[10]; // of streams i ≥ j at i·(i+1)/2 + j
	for (int k = 0; k < 10; k++)
		gram[k] = 0;
	for (int c = tid; c < a.dim; c += 256) {
		double v[MaxStreams];
		for (int s = 0; s < MaxStreams; s++)
			v[s] = s < n ? (double)x[(int64_t)s * a.dim + c] : 0;
		for (int i = 0; i < MaxStreams; i++)
			for (int j = 0; j <= i; j++)
				gram[i * (i + 1) / 2 + j] = gram[i * (i + 1) / 2 + j] + v[i] * v[j];
	}
	NC_UNROLL
	for (int k = 0; k < 10; k++) {
		for (int m = 16; m > 0; m /= 2)
			gram[k] = gram[k] + nc_shuffle_xor(gram[k], m);
		if (tid % 32 == 0)
			parts[tid / 32][k] = gram[k];
	}
	__syncthreads();
	if (tid > 0)
		return;
	for (int k = 0; k < 10; k++) {
		gram[k] = parts[0][k];
		for (int w = 1; w < 8; w++)
			gram[k] = gram[k] + parts[w][k];
	}
	double sum = 0;
	for (int i = 1; i < n; i++)
		for (int j = 0; j < i; j++) {
			const double d = sqrt(gram[i * (i + 3) / 2] * gram[j * (j + 3) / 2]);
			if (d > 0)
				sum = sum + gram[i * (i + 1) / 2 + j] / d;
		}
	a.dst[blockIdx.x] = sum / (double)(n * (n - 1) / 2);
}
