// Quantisation of activations and products with ternary matrices: the results of
// kernels.Set's RMSNormQuantize, Quantize, TernaryGEMV and TernaryGEMM, to the bit.
#include "mma.cuh"
#include "order.cuh"
#include "quantize.cuh"

// A block of 256 threads a token; 4·n bytes of dynamic shared memory.
NC_KERNEL(quantize, QuantizeArgs)
{
	nc_let_next();
	nc_after_previous();
	NC_DYNAMIC(float, v);
	const int64_t token = blockIdx.x;
	const float *x = a.x + token * a.n;
	for (int i = (int)threadIdx.x; i < a.n; i += (int)blockDim.x)
		v[i] = x[i];
	quantize_vector(v, a, token);
}

// -------------------------------------------------------------------- products

struct ProductArgs {
	float *dst;             // [tokens][ldd]
	const uint4 *tiles;     // [blocks][col_tiles][4]
	const uint16_t *scales; // [blocks][groups][16], half precision
	const int8_t *q;        // [tokens][stride]
	const int32_t *sums;    // [tokens][groups]
	const float *scale;     // [tokens]
	float gain;
	int32_t rows, group, groups, col_tiles, stride, ldd, tokens;
};

// The four bytes of columns 4j..4j+3 in a tile's word of one row.
NC_DEVICE uint32_t codes(uint32_t word, int j) { return word >> 2 * j & 0x03030303u; }

// Few tokens: a block of up to 512 threads, a multiple of 32, for 16 rows and the tokens
// blockIdx.y,
// + gridDim.y, ... A thread takes four rows of a tile at a time, 16 bytes, a warp eight tiles; all
// of a thread's loads, four of weights at first, are under way before the first is used, so
// that a multiprocessor has tens of kilobytes on their way. The dynamic shared memory is that
// of gemvShared.
enum { Ahead = 4 };

NC_BOUNDED(ternary_gemv, ProductArgs, 512, 2)
{
	nc_let_next();
	NC_DYNAMIC(int32_t, dots); // [runs or groups][16]
	const int tid = (int)threadIdx.x, threads = (int)blockDim.x, lane = tid % 32;
	const int64_t block = blockIdx.x;
	// Runs are 128 columns, what a warp takes at a time. Groups of other lengths are
	// summed up one by one.
	const bool whole = a.group % 128 == 0 || a.groups == 1;
	const int chunks = 4 * a.col_tiles, runs = whole ? (a.col_tiles + 7) / 8 : a.groups;
	float *scales = (float *)(dots + 16 * runs); // [groups][16]
	int32_t *sums = (int32_t *)(scales + 16 * a.groups);

	const uint4 *tiles = a.tiles + block * chunks;
	const uint4 none = {0, 0, 0, 0};
	uint4 w[Ahead];
	for (int i = 0; i < Ahead; i++) {
		const int c = tid + i * threads;
		w[i] = c < chunks ? tiles[c] : none;
	}
	for (int i = tid; i < 16 * a.groups; i += threads)
		scales[i] = nc_half(a.scales[block * a.groups * 16 + i]);
	nc_after_previous(); // weights are there before; the rest comes from it

	for (int64_t token = blockIdx.y; token < a.tokens; token += gridDim.y) {
		const uint4 *q = (const uint4 *)(a.q + token * a.stride);
		for (int i = tid; i < a.groups; i += threads)
			sums[i] = a.sums[token * a.groups + i];
		if (!whole)
			for (int i = tid; i < 16 * runs; i += threads)
				dots[i] = 0;
		if (!whole)
			__syncthreads();
		for (int first = 0; first < chunks; first += Ahead * threads) {
			uint4 v[Ahead];
			for (int i = 0; i < Ahead; i++) {
				const int c = first + tid + i * threads;
				if (first > 0 || token != blockIdx.y) {
					// The first ones of a row that fits stay in their registers.
					if (chunks > Ahead * threads)
						w[i] = c < chunks ? tiles[c] : none;
				}
				v[i] = c < chunks ? q[c / 4] : none;
			}
			for (int i = 0; i < Ahead; i++) {
				const int c = first + tid + i * threads;
				if (c - lane >= chunks)
					break;
				const uint32_t row[4] = {w[i].x, w[i].y, w[i].z, w[i].w},
							   column[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
				int sum[4] = {0, 0, 0, 0};
				for (int r = 0; r < 4; r++)
					for (int j = 0; j < 4; j++)
						sum[r] = nc_dot(codes(row[r], j), column[j], sum[r]);
				if (!whole) {
					for (int r = 0; c < chunks && r < 4; r++)
						atomicAdd(&dots[16 * (c / 4 * 16 / a.group) + c % 4 * 4 + r], sum[r]);
					continue;
				}
				// Lanes 4 apart have the same rows. Each sum halves the rows or the lanes:
				// lane 16h + 8l + q is left with row 4q + 2h + l.
				const bool high = lane & 16, low = lane & 8;
				const int u0 = high ? sum[2] : sum[0], u1 = high ? sum[3] : sum[1];
				const int t0 = nc_shuffle_xor(high ? sum[0] : sum[2], 16) + u0;
				const int t1 = nc_shuffle_xor(high ? sum[1] : sum[3], 16) + u1;
				int s = nc_shuffle_xor(low ? t0 : t1, 8) + (low ? t1 : t0);
				s += nc_shuffle_xor(s, 4);
				if (!(lane & 4))
					dots[16 * (c / 32) + lane % 4 * 4 + (high ? 2 : 0) + (low ? 1 : 0)] = s;
			}
		}
		__syncthreads();

		const int64_t row = block * 16 + tid;
		if (tid < 16 && row < a.rows) {
			const int each = whole ? (a.groups == 1 ? runs : a.group / 128) : 1;
			float y = 0;
			for (int g = 0; g < a.groups; g++) { // codes are trits plus one
				int dot = -sums[g];
				for (int i = g * each; i < (g + 1) * each && i < runs; i++)
					dot += dots[16 * i + tid];
				y = fmaf((float)dot, scales[16 * g + tid], y);
			}
			a.dst[token * a.ldd + row] = a.scale[token] * a.gain * y;
		}
		__syncthreads();
	}
}

// Many tokens, on tensor cores: a block of 128 threads for 64 rows and 64 tokens; the group
// is a multiple of 32 columns or the row. A warp has 16 rows, whose tiles are the
// first operand of nc_mma as they stand: its word for row g and columns 4t.. is codes(word
// of row g, t).
enum { Tokens = 64, Step = 128, Pad = Step + 16 };

NC_KERNEL(ternary_gemm, ProductArgs)
{
	NC_SHARED uint4 staged[Tokens * Pad / 16];
	const int tid = (int)threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
	const int64_t block = (int64_t)blockIdx.x * 4 + warp,
				  first_token = (int64_t)blockIdx.y * Tokens;
	const bool rows = block * 16 < a.rows;
	const uint32_t *tiles = (const uint32_t *)(a.tiles + (rows ? block : 0) * a.col_tiles * 4);
	const uint16_t *scales = a.scales + (rows ? block : 0) * a.groups * 16;
	int dot[Tokens / 8][4];
	float y[Tokens / 8][4];
	for (int n = 0; n < Tokens / 8; n++)
		for (int i = 0; i < 4; i++)
			dot[n][i] = 0, y[n][i] = 0;

	for (int base = 0; base < a.stride; base += Step) {
		__syncthreads();
		for (int i = tid; i < Tokens * Step / 16; i += 128) {
			const int token = i / (Step / 16), column = i % (Step / 16) * 16;
			uint4 v = {0, 0, 0, 0};
			if (first_token + token < a.tokens && base + column < a.stride)
				v = *(const uint4 *)(a.q + (first_token + token) * a.stride + base + column);
			staged[(token * Pad + column) / 16] = v;
		}
		__syncthreads();
		for (int column = base; column < base + Step && column < 16 * a.col_tiles; column += 32) {
			const int k = column / 16;
			const bool odd = k + 1 < a.col_tiles; // else the second half meets zeros of q
			const uint32_t *w = tiles + 16 * k;
			const uint32_t left[4] = {codes(w[g], t), codes(w[g + 8], t),
			                          odd ? codes(w[16 + g], t) : 0,
			                          odd ? codes(w[16 + g + 8], t) : 0};
			for (int n = 0; n < Tokens / 8; n++) {
				const uint32_t *v =
					(const uint32_t *)staged + ((8 * n + g) * Pad + column - base) / 4;
				const uint32_t right[2] = {v[t], v[4 + t]};
				nc_mma(dot[n], left, right);
			}
			const int end = column + 32;
			if (end % a.group != 0 && end < 16 * a.col_tiles)
				continue;
			const int group = column / a.group;
			const float s0 = nc_half(scales[16 * group + g]),
						s1 = nc_half(scales[16 * group + g + 8]);
			for (int n = 0; n < Tokens / 8; n++)
				for (int i = 0; i < 4; i++) {
					const int64_t token = first_token + 8 * n + 2 * t + i % 2;
					const int sum = token < a.tokens ? a.sums[token * a.groups + group] : 0;
					y[n][i] = fmaf((float)(dot[n][i] - sum), i < 2 ? s0 : s1, y[n][i]);
					dot[n][i] = 0;
				}
		}
	}
	for (int n = 0; n < Tokens / 8; n++)
		for (int i = 0; i < 4; i++) {
			const int64_t token = first_token + 8 * n + 2 * t + i % 2,
						  row = block * 16 + g + i / 2 * 8;
			if (rows && row < a.rows && token < a.tokens)
				a.dst[token * a.ldd + row] = a.scale[token] * a.gain * y[n][i];
		}
}
