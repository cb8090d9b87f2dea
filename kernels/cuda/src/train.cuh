// What the token-wise kernels of training share: accesses of 16 bytes, sums over a block, gains.
//
// A block takes one token after the other: blockIdx.x, blockIdx.x + gridDim.x, ... Its threads lie
// along the token's vector, four elements each at a time, so that partial sums of the gradients of
// weights stay in registers until the block's last token. No sum depends on timing; those over a
// block's tokens depend on the number of blocks.
#pragma once
#include "mma.cuh"

enum { MaxWarps = 32, CoefSize = 24, MaxMixed = 4 };

NC_DEVICE void load4(float v[4], const float *p)
{
	const uint4 q = *(const uint4 *)p;
	v[0] = __uint_as_float(q.x), v[1] = __uint_as_float(q.y);
	v[2] = __uint_as_float(q.z), v[3] = __uint_as_float(q.w);
}

NC_DEVICE void store4(float *p, const float v[4])
{
	uint4 q;
	q.x = __float_as_uint(v[0]), q.y = __float_as_uint(v[1]);
	q.z = __float_as_uint(v[2]), q.w = __float_as_uint(v[3]);
	*(uint4 *)p = q;
}

// store16 writes 16 bytes at once; the compiler would write what comes out of asm word by word.
NC_DEVICE void store16(void *p, uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
#ifdef __CUDACC_RTC__
	asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x), "r"(y), "r"(z), "r"(w)
	             : "memory");
#else
	const uint4 q = {x, y, z, w};
	*(uint4 *)p = q;
#endif
}

NC_DEVICE void store4_bf16(uint16_t *p, const float v[4])
{
	*(uint64_t *)p = nc_pack_bf16(v[0], v[1]) | (uint64_t)nc_pack_bf16(v[2], v[3]) << 32;
}

NC_DEVICE void store4_half(uint16_t *p, const float v[4])
{
	*(uint64_t *)p = nc_pack_half(v[0], v[1]) | (uint64_t)nc_pack_half(v[2], v[3]) << 32;
}

// begin_weight loads a thread's elements of a weight of n elements, and begins the sums of their
// gradients.
template <int E>
NC_DEVICE void begin_weight(float w[E][4], float part[E][4], const float *weight, int n)
{
	const int tid = (int)threadIdx.x, step = 4 * (int)blockDim.x;
	NC_UNROLL
	for (int k = 0; k < E; k++) {
		const int i = 4 * tid + k * step;
		NC_UNROLL
		for (int e = 0; e < 4; e++)
			part[k][e] = w[k][e] = 0;
		if (i < n)
			load4(w[k], weight + i);
	}
}

// end_weight writes the block's sums, its row of partial [gridDim.x][n].
template <int E> NC_DEVICE void end_weight(float *partial, const float part[E][4], int n)
{
	const int tid = (int)threadIdx.x, step = 4 * (int)blockDim.x;
	NC_UNROLL
	for (int k = 0; k < E; k++) {
		const int i = 4 * tid + k * step;
		if (i < n)
			store4(partial + (int64_t)blockIdx.x * n + i, part[k]);
	}
}

// Four is four elements from place i of float32 or, if half is set, bfloat16 numbers, as they were
// loaded: nothing waits for them before they are asked for their values.
struct Four {
	uint32_t r[4];

	NC_METHOD void load(const void *p, int half, int64_t i)
	{
		if (half) {
			const uint64_t q = *(const uint64_t *)((const uint16_t *)p + i);
			r[0] = (uint32_t)q, r[1] = (uint32_t)(q >> 32);
		} else {
			const uint4 q = *(const uint4 *)((const float *)p + i);
			r[0] = q.x, r[1] = q.y, r[2] = q.z, r[3] = q.w;
		}
	}
	NC_METHOD void clear() { r[0] = r[1] = r[2] = r[3] = 0; }
	NC_METHOD void values(float v[4], int half) const
	{
		v[0] = __uint_as_float(half ? r[0] << 16 : r[0]);
		v[1] = __uint_as_float(half ? r[0] & 0xffff0000u : r[1]);
		v[2] = __uint_as_float(half ? r[1] << 16 : r[2]);
		v[3] = __uint_as_float(half ? r[1] & 0xffff0000u : r[3]);
	}
};

// ahead asks for what a block's next token has at a place, so that it comes to the cache while this
// one is worked on: one in eight threads, each 16 bytes away from the last, for a line of 128
// bytes.
NC_DEVICE void ahead(const void *p)
{
#ifdef __CUDACC_RTC__
	if (threadIdx.x % 8 == 0)
		asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
	(void)p;
#endif
}

NC_DEVICE void ahead(const void *p, int half, int64_t i)
{
	ahead((const uint8_t *)p + (half ? 2 : 4) * i);
}

// scale_of is the scale of a token's int8 values; null: the input is not int8. It is loaded in
// front of the token's vectors; what depends on it stands behind their loads, which then do not
// wait for it.
NC_DEVICE float scale_of(const float *scale, int64_t token) { return scale ? scale[token] : 1.0f; }

// gain_of is what a token's dy is multiplied by, as core/model's gainOf: the scale of its int8
// values, which then are exact factors of the product for the weights.
NC_DEVICE float gain_of(float scale) { return scale > 1e-30f && scale < 1e30f ? scale : 1.0f; }

// Int8 is quantised vectors that become factors of a product, in bfloat16 or half precision: exact.
struct Int8 {
	const int8_t *q;      // [tokens][stride], or null: none
	uint16_t *bf16, *f16; // [tokens][cols], or null
	int32_t stride, cols; // cols is a multiple of 16
};

// widen converts one token's vector, as thread number me of so many.
NC_DEVICE void widen(const Int8 &a, int64_t token, int me, int threads)
{
	if (!a.q)
		return;
	for (int i = 16 * me; i < a.cols; i += 16 * threads) {
		const uint4 q = *(const uint4 *)(a.q + token * a.stride + i);
		const uint32_t words[4] = {q.x, q.y, q.z, q.w};
		float v[16];
		for (int w = 0; w < 4; w++) {
			// 2^23 + (v + 128) has the byte in its low bits; the difference is exact.
			const uint32_t bytes = words[w] ^ 0x80808080u;
			for (int b = 0; b < 4; b++)
				v[4 * w + b] = __uint_as_float(0x4b000000u | (bytes >> 8 * b & 255u)) - 8388736.0f;
		}
		if (a.bf16) {
			uint16_t *to = a.bf16 + token * a.cols + i;
	NC_UNROLL
			for (int h = 0; h < 16; h += 8)
				store16(to + h, nc_pack_bf16(v[h], v[h + 1]), nc_pack_bf16(v[h + 2], v[h + 3]),
				        nc_pack_bf16(v[h + 4], v[h + 5]), nc_pack_bf16(v[h + 6], v[h + 7]));
		}
		if (a.f16) {
			uint16_t *to = a.f16 + token * a.cols + i;
			NC_UNROLL
			for (int h = 0; h < 16; h += 8)
				store16(to + h, nc_pack_half(v[h], v[h + 1]), nc_pack_half(v[h + 2], v[h + 3]),
				        nc_pack_half(v[h + 4], v[h + 5]), nc_pack_half(v[h + 6], v[h + 7]));
		}
	}
}

// ask is for what widen of a token will load.
NC_DEVICE void ask(const Int8 &a, int64_t token)
{
	if (a.q && 16 * (int)threadIdx.x < a.cols)
		ahead(a.q + token * a.stride + 16 * (int)threadIdx.x);
}

NC_DEVICE void widen(const Int8 &a, int64_t token)
{
	widen(a, token, (int)threadIdx.x, (int)blockDim.x);
}

// Places for block_sum: two sets, which calls use by turns, so that one barrier a call is enough:
// none writes to a set before all have passed the barrier of the call between, after reading it.
template <int N> struct Slots {
	float v[2][N][MaxWarps];
};

// block_sum makes each of v its sum over the threads of the block, in all of them. Every warp is
// whole.
template <int N> NC_DEVICE void block_sum(float (&v)[N], Slots<N> &slots, int &turn)
{
	const int tid = (int)threadIdx.x, lane = tid % 32, warps = (int)blockDim.x / 32;
	for (int i = 0; i < N; i++)
		for (int m = 16; m > 0; m /= 2)
			v[i] = v[i] + nc_shuffle_xor(v[i], m);
	if (warps == 1)
		return;
	if (lane == 0)
		for (int i = 0; i < N; i++)
			slots.v[turn][i][tid / 32] = v[i];
	__syncthreads();
	for (int i = 0; i < N; i++) {
		v[i] = lane < warps ? slots.v[turn][i][lane] : 0.0f;
		for (int m = 16; m > 0; m /= 2)
			v[i] = v[i] + nc_shuffle_xor(v[i], m);
	}
	turn ^= 1;
}

// Spread is how warp_spread leaves N sums in a warp: each lane has one of them, number index, or
// none (-1) of its own. In every step the lanes of a pair exchange halves: N/2 + N/4 + ...
// shuffles.
template <int N, int M> struct Spread {
	enum { Half = (N + 1) / 2 };
	NC_DEVICE float sum(const float *v, int lane)
	{
		float keep[Half];
		const bool upper = (lane & M) != 0;
		for (int i = 0; i < Half; i++) {
			const float low = v[i], high = Half + i < N ? v[Half + i < N ? Half + i : 0] : 0.0f;
			keep[i] = (upper ? high : low) + nc_shuffle_xor(upper ? low : high, M);
		}
		return Spread<Half, M / 2>::sum(keep, lane);
	}
	// index of the sum that a lane has, of those from 0 on, or -1.
	NC_DEVICE int index(int lane)
	{
		const int i = Spread<Half, M / 2>::index(lane);
		if (!(lane & M) || i < 0)
			return i;
		return Half + i < N ? Half + i : -1;
	}
};
template <int N> struct Spread<N, 0> {
	NC_DEVICE float sum(const float *v, int) { return v[0]; }
	NC_DEVICE int index(int) { return 0; }
};

// norm_back is the end of the backward of y = RMSNorm(u, w), of which sums has u·u and g·u with g =
// dy·w, over n elements: dx = inverse·(g + factor·u).
struct NormBack {
	float inverse, factor;
};

NC_DEVICE NormBack norm_back(const float sums[2], int n, float eps)
{
	NormBack r;
	r.inverse = 1.0f / sqrtf(sums[0] / (float)n + eps);
	r.factor = -(sums[1] / (float)n * r.inverse * r.inverse);
	return r;
}
