// Quantisation of activations and products with ternary matrices: the results of
// kernels.Set's RMSNormQuantize, Quantize, TernaryGEMV and TernaryGEMM, to the bit.
#include "method.cuh"
#include "order.cuh"
#include "quantize.cuh"

// A block of 256 threads a token; 4·n bytes of dynamic shared memory.
NC_KERNEL(quantize, QuantizeArgs)
{
	nc_let_next();
	const NormWeights w = norm_weights(a);
	nc_after_previous();
	NC_DYNAMIC(float, v);
	const int64_t token = blockIdx.x;
	const float *x = a.x + token * a.n;
	for (int i = (int)threadIdx.x; i < a.n; i += (int)blockDim.x)
		v[i] = x[i];
	quantize_vector(v, a, w, token);
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
	// Numbers that are needed late are asked for early and put where all find them late, so that
	// nothing waits for them in front of other loads.
	const uint16_t *halves = a.scales + block * a.groups * 16;
	const int factors = 16 * a.groups;
	uint16_t half[2];
	for (int i = 0; i < 2; i++)
		half[i] = tid + i * threads < factors ? halves[tid + i * threads] : 0;
	nc_after_previous(); // weights are there before; the rest comes from it

	for (int64_t token = blockIdx.y; token < a.tokens; token += gridDim.y) {
		const uint4 *q = (const uint4 *)(a.q + token * a.stride);
		const bool begins = token == blockIdx.y;
		const int32_t sum0 = tid < a.groups ? a.sums[token * a.groups + tid] : 0;
		const float unit = tid < 16 ? a.scale[token] : 0;
		if (!whole) {
			for (int i = tid; i < 16 * runs; i += threads)
				dots[i] = 0;
			__syncthreads();
		}
		for (int first = 0; first < chunks; first += Ahead * threads) {
			uint4 v[Ahead];
			for (int i = 0; i < Ahead; i++) {
				const int c = first + tid + i * threads;
				v[i] = c < chunks ? q[c / 4] : none;
				// The first weights of a row that fits stay in their registers.
				if ((first > 0 || !begins) && chunks > Ahead * threads)
					w[i] = c < chunks ? tiles[c] : none;
			}
			if (first == 0) {
				if (tid < a.groups)
					sums[tid] = sum0;
				for (int i = tid + threads; i < a.groups; i += threads)
					sums[i] = a.sums[token * a.groups + i];
				for (int i = 0; begins && i < 2; i++)
					if (tid + i * threads < factors)
						scales[tid + i * threads] = nc_half(half[i]);
				for (int i = tid + 2 * threads; begins && i < factors; i += threads)
					scales[i] = nc_half(halves[i]);
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
			a.dst[token * a.ldd + row] = unit * a.gain * y;
		}
		__syncthreads();
	}
}

// Many tokens, on tensor cores; the group is a multiple of 32 columns or the row. A warp has 32
// rows and 64 tokens, a block R by C warps. Activations and tiles come to shared memory four
// stages of 128 columns ahead; the 16-byte parts of a token's columns are exchanged by XOR with
// token%8, so that no two rows of an nc_ldmatrix lie in the same banks.
//
// Of 32 columns a warp has 16 products (128 cycles of an A100's tensor core) for four loads of
// activations, four of weights and 16 instructions that unpack them; of a group three for
// each of a thread's 64 results. Row g of a product is row 2g of 16, row g+8 row 2g+1: a
// thread's words of a tile, and its results of a token, lie side by side.
enum {
	Stages = 4,
	Step = 128,        // columns of a stage
	Parts = 4,         // groups that a stage is within, at most
	Begin = 0x4b400000 // 1.5·2^23: with a small integer added, the bits of a float that much larger
};

template <int R, int C> struct Gemm {
	enum {
		Threads = 32 * R * C,
		Rows = 32 * R,
		Tokens = 64 * C,
		QBytes = Tokens * Step,
		WBytes = Rows / 16 * (Step / 16) * 64,
		SumBytes = Parts * Tokens * 4,
		ScaleBytes = Parts * Rows * 2,
		Bytes = QBytes + WBytes + SumBytes + ScaleBytes // of a stage
	};
	const ProductArgs &a;
	char *memory;
	int64_t block0, token0;
	int tid;

	// fetch begins to copy a stage.
	NC_METHOD void fetch(int stage) const
	{
		const int base = stage * Step;
		if (base < 16 * a.col_tiles) {
			const nc_place q = nc_place_of(memory) + stage % Stages * Bytes, w = q + QBytes,
						   s = w + WBytes, c = s + SumBytes;
			for (int i = tid; i < QBytes / 16; i += Threads) {
				const int n = i / 8, part = i % 8, column = base + 16 * part;
				const int64_t token = token0 + n;
				const bool inside = token < a.tokens && column < a.stride;
				nc_copy16(q + 128 * n + 16 * (part ^ n % 8),
				          inside ? a.q + token * a.stride + column : a.q, inside);
			}
			for (int i = tid; i < WBytes / 16; i += Threads) {
				const int64_t block = block0 + i / 32;
				const int tile = base / 16 + i % 32 / 4;
				const bool inside = block * 16 < a.rows && tile < a.col_tiles;
				nc_copy16(w + 16 * i,
				          inside ? a.tiles + (block * a.col_tiles + tile) * 4 + i % 4 : a.tiles,
				          inside);
			}
			const int group = base / a.group;
			for (int i = tid; i < Parts * Tokens; i += Threads) {
				const int64_t token = token0 + i % Tokens;
				const int g = group + i / Tokens;
				const bool inside = token < a.tokens && g < a.groups;
				nc_copy4(s + 4 * i, inside ? a.sums + token * a.groups + g : a.sums, inside);
			}
			for (int i = tid; i < ScaleBytes / 16; i += Threads) {
				const int64_t block = block0 + i / 2 % (Rows / 16);
				const int g = group + i / 2 / (Rows / 16);
				const bool inside = block * 16 < a.rows && g < a.groups;
				nc_copy16(c + 16 * i,
				          inside ? a.scales + (block * a.groups + g) * 16 + i % 2 * 8 : a.scales,
				          inside);
			}
		}
		nc_commit();
	}

	NC_METHOD void run() const
	{
		const int lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
		const int rows = warp % R * 32, tokens = warp / R * 64; // of the warp in the block
		// Longer groups have sums that are no small integers.
		const bool small = a.group <= 1 << 15;
		int dot[2][8][4];
		float y[2][8][4];
		NC_UNROLL for (int m = 0; m < 2; m++)
			NC_UNROLL for (int n = 0; n < 8; n++)
				NC_UNROLL for (int i = 0; i < 4; i++)
					y[m][n][i] = 0;
		for (int stage = 0; stage < Stages - 1; stage++)
			fetch(stage);
		bool fresh = true; // a group begins
		for (int stage = 0; stage * Step < 16 * a.col_tiles; stage++) {
			nc_await<Stages - 2>();
			__syncthreads(); // the stage is there, and nobody reads the one before
			fetch(stage + Stages - 1);
			const char *at = memory + stage % Stages * Bytes;
			const nc_place q = nc_place_of(at);
			const uint32_t *w = (const uint32_t *)(at + QBytes) + rows / 16 * (Step / 16) * 16;
			const int32_t *sums = (const int32_t *)(at + QBytes + WBytes) + tokens;
			const uint16_t *scales = (const uint16_t *)(at + QBytes + WBytes + SumBytes) + rows;
			NC_UNROLL_BY(1)
			for (int k = 0; k < Step / 32; k++) {
				const int column = stage * Step + 32 * k;
				if (column >= 16 * a.col_tiles)
					break;
				const int part = column / a.group - stage * Step / a.group;
				if (fresh) {
					NC_UNROLL for (int n = 0; n < 8; n++)
					{
						const uint64_t two =
							*(const uint64_t *)(sums + part * Tokens + 8 * n + 2 * t);
						const int first = (small ? Begin : 0) - (int)(uint32_t)two,
								  second = (small ? Begin : 0) - (int)(uint32_t)(two >> 32);
						NC_UNROLL for (int m = 0; m < 2; m++) dot[m][n][0] = dot[m][n][2] = first,
															  dot[m][n][1] = dot[m][n][3] = second;
					}
				}
				uint32_t left[2][4];
				NC_UNROLL for (int m = 0; m < 2; m++)
					NC_UNROLL for (int h = 0; h < 2; h++)
				{
					const uint64_t two =
						*(const uint64_t *)(w + (m * (Step / 16) + 2 * k + h) * 16 + 2 * g);
					left[m][2 * h] = (uint32_t)two >> 2 * t & 0x03030303u;
					left[m][2 * h + 1] = (uint32_t)(two >> 32) >> 2 * t & 0x03030303u;
				}
				NC_UNROLL for (int n = 0; n < 8; n += 2)
				{
					const int token = tokens + 8 * n + lane % 8 + (lane >= 16 ? 8 : 0);
					const int part16 = 2 * k + lane / 8 % 2;
					uint32_t right[4];
					nc_ldmatrix(right, q + 128 * token + 16 * (part16 ^ token % 8));
					NC_UNROLL for (int m = 0; m < 2; m++)
					{
						nc_mma(dot[m][n], left[m], right);
						nc_mma(dot[m][n + 1], left[m], right + 2);
					}
				}
				const int end = column + 32;
				fresh = end % a.group == 0 || end >= 16 * a.col_tiles;
				if (!fresh)
					continue;
				NC_UNROLL for (int m = 0; m < 2; m++)
				{
					const uint32_t both =
						*(const uint32_t *)(scales + part * Rows + 16 * m + 2 * g);
					const float even = nc_half((uint16_t)both),
								odd = nc_half((uint16_t)(both >> 16));
					NC_UNROLL for (int n = 0; n < 8; n++)
						NC_UNROLL for (int i = 0; i < 4; i++)
					{
						const int d = dot[m][n][i];
						const float x =
							small ? __uint_as_float((uint32_t)d) - __uint_as_float(Begin) : (float)d;
						y[m][n][i] = fmaf(x, i < 2 ? even : odd, y[m][n][i]);
					}
				}
			}
		}
		nc_await<0>();
		const bool pairs = a.ldd % 2 == 0 && (uint64_t)a.dst % 8 == 0;
		NC_UNROLL for (int n = 0; n < 8; n++)
			NC_UNROLL for (int i = 0; i < 2; i++)
		{
			const int64_t token = token0 + tokens + 8 * n + 2 * t + i;
			if (token >= a.tokens)
				continue;
			const float scale = a.scale[token] * a.gain;
			NC_UNROLL for (int m = 0; m < 2; m++)
			{
				const int64_t row = block0 * 16 + rows + 16 * m + 2 * g;
				float *to = a.dst + token * a.ldd + row;
				const float first = scale * y[m][n][i], second = scale * y[m][n][2 + i];
				if (pairs && row + 1 < a.rows) {
					nc_store2(to, first, second);
					continue;
				}
				if (row < a.rows)
					to[0] = first;
				if (row + 1 < a.rows)
					to[1] = second;
			}
		}
	}
};

template <int R, int C> NC_DEVICE void gemm(const ProductArgs &a, char *memory)
{
	Gemm<R, C>{a, memory, (int64_t)blockIdx.x * (2 * R), (int64_t)blockIdx.y * (64 * C),
	           (int)threadIdx.x}
		.run();
}

// 128 rows by 128 tokens. Registers bound a multiprocessor to one block.
NC_BOUNDED(ternary_gemm, ProductArgs, 256, 1)
{
	NC_DYNAMIC(char, memory);
	gemm<4, 2>(a, memory);
}

// 64 rows by 64 tokens, where there are few.
NC_BOUNDED(ternary_gemm_small, ProductArgs, 64, 4)
{
	NC_DYNAMIC(char, memory);
	gemm<2, 1>(a, memory);
}
