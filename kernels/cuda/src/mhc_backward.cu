// The backward of hyper-connections, and statistics of residual streams. Sums of gradients over
// tokens are taken in another order than in package core/mhc, always the same for a number of
// tokens.
#include "mhc.cuh"

enum { TokenTile = 16 };

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
