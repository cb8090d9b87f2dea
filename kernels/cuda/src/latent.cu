// The quantisers of latent weights: the bits of kernels.Set's QuantizeTernary and TernaryBF16, and
// of gguf.Quantize for the tables of embedding and head. Quantisation is bound by memory: latents
// are read once (4 bytes), codes and bfloat16 factors are written (2.25 bytes).
//
// A launch does a list of jobs: one entry of work for every thread block says which job and which
// of its parts.
#include "four.cuh"

// ---------------------------------------------------------- ternary matrices

struct PackJob {
	const float *w;   // [rows][cols]
	uint32_t *tiles;  // [blocks][col_tiles][16], the word of a row of a tile
	uint16_t *scales; // [blocks][groups][16], half precision
	uint16_t *used;   // [rows][cols], bfloat16, or null
	int32_t rows, cols, group, groups, col_tiles;
	float gain;
	int32_t vector; // addresses and columns allow four elements at once
	int32_t pad;
};

struct PackArgs {
	const PackJob *jobs;
	const Work *work; // [gridDim.x], in items of 8 rows and one group
	int32_t *bad;     // [jobs], or null: 1 where a scale is not finite
};

struct PackOneArgs {
	PackJob job;
	int32_t *bad; // or null
};

// A warp has 8 rows of a block and one group: lane 4·row + c has columns 4c .. 4c+3 of every
// tile, which are four of the sixteen strided sums of the mean.
struct PackPlace {
	const float *x;   // the row's group
	uint16_t *used;   // the same, or null
	uint32_t *word;   // of the row in the group's first tile
	uint16_t *scale;  // of the row
	int32_t n, tiles; // elements and tiles of the group; n is 0 below the last row
	bool vector, inside;
	float gain;
};

// pack_scale turns this lane's sums into the row's scale and writes it.
NC_DEVICE uint16_t pack_scale(float s[4], const PackPlace &p, int n, int32_t *bad, int c)
{
	for (int m = 0; m < 4; m++)
		s[m] += nc_shuffle_xor(s[m], 2);
	for (int m = 0; m < 4; m++)
		s[m] += nc_shuffle_xor(s[m], 1);
	const float sum = (s[0] + s[2]) + (s[1] + s[3]);
	uint16_t h = nc_to_half(sum / (float)n);
	if (h >= 0x7c00 && bad)
		*bad = 1;
	h = h < 0x0400 ? 0x0400 : h; // 2^-14
	if (c == 0)
		*p.scale = p.inside ? h : 0;
	return h;
}

// pack_tiles writes four tiles of v from tile k on.
template <bool Whole>
NC_DEVICE void pack_tiles(const float v[4][4], const PackPlace &p, uint16_t scale, int k, int c)
{
	const float s = nc_half(scale), half = s * 0.5f;
	const uint16_t zero = nc_to_bf16(0.0f * s * p.gain), plus = nc_to_bf16(s * p.gain),
				   minus = nc_to_bf16(-s * p.gain);
	uint32_t mine = 0;
	NC_UNROLL
	for (int t = 0; t < 4; t++) {
		uint32_t word = 0;
		uint16_t used[4];
		NC_UNROLL
		for (int m = 0; m < 4; m++) {
			const float x = v[t][m];
			const uint32_t code = x > half ? 2 : x < -half ? 0 : 1;
			word |= code << (8 * m + 2 * c);
			used[m] = code == 2 ? plus : code == 0 ? minus : zero;
		}
		if (p.used && (Whole || p.inside))
			store4<Whole>(p.used, used, 16 * (k + t) + 4 * c, p.n, p.vector);
		word |= nc_shuffle_xor(word, 1);
		word |= nc_shuffle_xor(word, 2);
		mine = t == c ? word : mine;
	}
	if (Whole || k + c < p.tiles)
		p.word[16 * (k + c)] = mine;
}

// pack_group is for groups of T tiles, all of them there: it keeps them in registers.
template <int T> NC_DEVICE void pack_group(const PackPlace &p, int32_t *bad, int c)
{
	float v[T][4], s[4] = {0, 0, 0, 0};
	NC_UNROLL
	for (int k = 0; k < T; k++)
		read4<true>(v[k], p.x, 16 * k + 4 * c, p.n, true);
	NC_UNROLL
	for (int k = 0; k < T; k++)
		for (int m = 0; m < 4; m++)
			s[m] += fabsf(v[k][m]);
	const uint16_t h = pack_scale(s, p, 16 * T, bad, c);
	NC_UNROLL
	for (int k = 0; k < T; k += 4)
		pack_tiles<true>(v + k, p, h, k, c);
}

// pack_any is for every other group: it reads it twice, the second time from the cache. Whole:
// eight tiles at a time are there.
template <bool Whole> NC_DEVICE void pack_any(const PackPlace &p, int n, int32_t *bad, int c)
{
	float v[8][4], s[4] = {0, 0, 0, 0};
	for (int k = 0; k < p.tiles; k += 8) {
		NC_UNROLL
		for (int t = 0; t < 8; t++)
			read4<Whole>(v[t], p.x, 16 * (k + t) + 4 * c, p.n, p.vector);
		NC_UNROLL
		for (int t = 0; t < 8; t++)
			for (int m = 0; m < 4; m++)
				s[m] += fabsf(v[t][m]);
	}
	const uint16_t h = pack_scale(s, p, n, bad, c);
	for (int k = 0; k < p.tiles; k += 4) {
		NC_UNROLL
		for (int t = 0; t < 4; t++)
			read4<Whole>(v[t], p.x, 16 * (k + t) + 4 * c, p.n, p.vector);
		pack_tiles<Whole>(v, p, h, k, c);
	}
}

// pack_item is what a warp does.
NC_DEVICE void pack_item(const PackJob &j, int item, int32_t *bad)
{
	const int lane = (int)threadIdx.x % 32, c = lane % 4;
	const int block = item / 2 / j.groups, g = item / 2 % j.groups;
	if (block * 16 >= j.rows)
		return;
	const int in_block = item % 2 * 8 + lane / 4, begin = g * j.group;
	const int64_t row = (int64_t)block * 16 + in_block;
	const int n = j.cols - begin < j.group ? j.cols - begin : j.group;
	PackPlace p;
	p.inside = row < j.rows;
	p.n = p.inside ? n : 0;
	p.tiles = (n + 15) / 16;
	p.x = j.w + (p.inside ? row : 0) * j.cols + begin;
	p.used = j.used ? j.used + (p.inside ? row : 0) * j.cols + begin : nullptr;
	p.word = j.tiles + ((int64_t)block * j.col_tiles + begin / 16) * 16 + in_block;
	p.scale = j.scales + ((int64_t)block * j.groups + g) * 16 + in_block;
	p.vector = j.vector != 0;
	p.gain = j.gain;
	const bool whole = p.vector && block * 16 + item % 2 * 8 + 8 <= j.rows; // of all lanes
	if (whole && n == 128)
		pack_group<8>(p, bad, c);
	else if (whole && n == 64)
		pack_group<4>(p, bad, c);
	else if (whole && n % 128 == 0)
		pack_any<true>(p, n, bad, c);
	else
		pack_any<false>(p, n, bad, c);
}

// Blocks of 256 threads; eight items each, 16 rows of four groups as a rule.
NC_KERNEL(pack, PackArgs)
{
	const Work work = a.work[blockIdx.x];
	const PackJob j = a.jobs[work.job];
	pack_item(j, work.first + (int)threadIdx.x / 32, a.bad ? a.bad + work.job : nullptr);
}

NC_KERNEL(pack_one, PackOneArgs)
{
	pack_item(a.job, (int)(blockIdx.x * 8 + threadIdx.x / 32), a.bad);
}

// --------------------------------------------------------------------- tables

struct DenseJob {
	const float *w; // [n]
	uint8_t *table; // as a file has them, or null
	uint16_t *half; // half precision of what is stored, or null
	uint16_t *used; // bfloat16 of it, or null
	int64_t n;      // a multiple of 32 if kind is Q8_0
	int32_t kind;   // F32, F16 or Q8_0
	int32_t vector; // addresses allow four elements at once
};

struct DenseArgs {
	const DenseJob *jobs;
	const Work *work;     // [gridDim.x], in runs of 4096 elements
	int32_t *bad;         // [jobs], or null: 1 where an element cannot be stored
};

struct DenseOneArgs {
	DenseJob job;
	int32_t *bad; // or null
};

enum { Run = 4096 };

// dense_run stores the n elements from place `at` on, and says whether one of them cannot be stored. A
// thread has four at a time, eight lanes a block of Q8_0.
template <bool Whole> NC_DEVICE bool dense_run(const DenseJob &j, int64_t at, int n)
{
	const float *w = j.w + at;
	const bool vector = j.vector != 0;
	const float limit = j.kind == F16 ? 65520.0f : j.kind == Q8_0 ? 127 * 65520.0f : INFINITY;
	bool wrong = false;
	for (int base = 0; base < n; base += 1024) {
		const int i = base + 4 * (int)threadIdx.x;
		float v[4], top = 0;
		read4<Whole>(v, w, i, n, vector);
		for (int m = 0; m < 4; m++) {
			const float x = fabsf(v[m]);
			wrong |= !(x < limit);
			top = x > top ? x : top;
		}
		uint16_t code[4] = {0, 0, 0, 0};
		if (j.kind == Q8_0) {
			for (int m = 1; m < 8; m *= 2) {
				const float other = nc_shuffle_xor(top, m);
				top = other > top ? other : top;
			}
			const float d = top / 127.0f;
			float inverse = 1.0f / d;
			if (d == 0.0f || !(inverse < INFINITY))
				inverse = 0.0f;
			const uint16_t scale = nc_to_half(d);
			int q[4];
			for (int m = 0; m < 4; m++) { // to the nearest, halves away from zero
				const float x = v[m] * inverse;
				q[m] = x <= 127.5f && x >= -127.5f ? (int)x : 0;
				const float rest = x - (float)q[m];
				q[m] += rest >= 0.5f ? 1 : rest <= -0.5f ? -1 : 0;
				v[m] = nc_half(scale) * (float)q[m];
			}
			if (j.table && i < n) {
				uint16_t *to = (uint16_t *)(j.table + (at + i) / 32 * 34);
				const int lane = i % 32 / 4;
				if (lane == 0)
					to[0] = scale;
				to[1 + 2 * lane] = (uint16_t)((q[0] & 255) | (q[1] & 255) << 8);
				to[2 + 2 * lane] = (uint16_t)((q[2] & 255) | (q[3] & 255) << 8);
			}
		} else if (j.kind == F16) {
			for (int m = 0; m < 4; m++) {
				code[m] = nc_to_half(v[m]);
				v[m] = nc_half(code[m]);
			}
			if (j.table)
				store4<Whole>((uint16_t *)j.table + at, code, i, n, vector);
		} else if (j.table) {
			for (int m = 0; m < 4 && i + m < n; m++)
				((float *)j.table)[at + i + m] = v[m];
		}
		if (j.half) {
			for (int m = 0; m < 4; m++)
				code[m] = nc_to_half(v[m]);
			store4<Whole>(j.half + at, code, i, n, vector);
		}
		if (j.used) {
			for (int m = 0; m < 4; m++)
				code[m] = nc_to_bf16(v[m]);
			store4<Whole>(j.used + at, code, i, n, vector);
		}
	}
	return wrong;
}

NC_DEVICE void dense_block(const DenseJob &j, int run, int32_t *bad)
{
	const int64_t at = (int64_t)run * Run, left = j.n - at;
	const int n = left < Run ? (int)left : Run;
	const bool wrong =
		j.vector && n == Run ? dense_run<true>(j, at, n) : dense_run<false>(j, at, n);
	if (wrong && bad)
		*bad = 1;
}

// Blocks of 256 threads for a run.
NC_KERNEL(pack_dense, DenseArgs)
{
	const Work work = a.work[blockIdx.x];
	const DenseJob j = a.jobs[work.job];
	dense_block(j, work.first, a.bad ? a.bad + work.job : nullptr);
}

NC_KERNEL(pack_dense_one, DenseOneArgs) { dense_block(a.job, (int)blockIdx.x, a.bad); }

// ---------------------------------------------------------------------- flips

struct FlipArgs {
	int32_t *count;     // added to
	const uint4 *x, *y; // tiles
	int64_t n;          // of 16 bytes
};

#ifdef __CUDACC_RTC__
NC_DEVICE int ones(uint32_t u) { return __popc(u); }
#else
NC_DEVICE int ones(uint32_t u) { return __builtin_popcount(u); }
#endif

NC_DEVICE int differ(uint32_t x, uint32_t y)
{
	const uint32_t d = x ^ y;
	return ones((d | d >> 1) & 0x55555555u);
}

// Blocks of 256 threads, any number of them.
NC_KERNEL(flips, FlipArgs)
{
	int sum = 0;
	for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < a.n;
	     i += (int64_t)gridDim.x * 256) {
		const uint4 x = a.x[i], y = a.y[i];
		sum += differ(x.x, y.x) + differ(x.y, y.y) + differ(x.z, y.z) + differ(x.w, y.w);
	}
	for (int m = 16; m > 0; m /= 2)
		sum += nc_shuffle_xor(sum, m);
	if (threadIdx.x % 32 == 0 && sum)
		atomicAdd(a.count, sum);
}
