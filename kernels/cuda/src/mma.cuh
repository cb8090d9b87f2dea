// Products of 16-bit matrices on tensor cores, and what feeds them: loads of fragments from
// shared memory and copies into it that run beside the computation. These are the
// instructions of sm_80, which all later GPUs have; the names are PTX's.
//
// A warp holds matrices as PTX says for mma.m16n8k16. With g = lane/4 and t = lane%4, a
// register holds two neighbours of a row, the left one in its low half:
//
//     A [16][16]: a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] =
//     A[g+8][2t+8..] B [16][8]:  b0 = B[2t..2t+1][g], b1 = B[2t+8..2t+9][g] D [16][8]:  d[0], d[1]
//     = D[g][2t..], d[2], d[3] = D[g+8][2t..]
//
// So two results that are side by side are, packed, the left factor of the next product.
#pragma once
#include "math.cuh"

#ifdef __CUDACC_RTC__

// NC_BOUNDED is NC_KERNEL with the threads of a block and the blocks that are to fit on a
// multiprocessor, which bound the registers.
#define NC_BOUNDED(name, Args, threads, blocks) \
	extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Args a)
// NC_UNROLL_BY in front of a loop unrolls it n times.
#define NC_UNROLL_BY(n) _Pragma(NC_TEXT(unroll n))
#define NC_TEXT(x) #x
// NC_METHOD is NC_DEVICE of a member function.
#define NC_METHOD __device__ __forceinline__

// nc_place is an address in shared memory; bytes may be added.
typedef uint32_t nc_place;
NC_DEVICE nc_place nc_place_of(const void *p)
{
	uint32_t at;
	asm("{ .reg .u64 full; cvta.to.shared.u64 full, %1; cvt.u32.u64 %0, full; }"
	    : "=r"(at)
	    : "l"(p));
	return at;
}

// nc_ldmatrix loads four matrices [8][8]: lanes 8i to 8i+7 give the rows of the i-th, 16
// bytes each, and r[i] is its row g, columns 2t and 2t+1.
NC_DEVICE void nc_ldmatrix(uint32_t r[4], nc_place row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
	             : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
	             : "r"(row));
}
// nc_ldmatrix_trans transposes them: r[i] is rows 2t and 2t+1 of column g.
NC_DEVICE void nc_ldmatrix_trans(uint32_t r[4], nc_place row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
	             : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
	             : "r"(row));
}

// nc_mma_f16 adds A·B to D, factors in half precision.
NC_DEVICE void nc_mma_f16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
	             "{%8,%9}, {%0,%1,%2,%3};"
	             : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
	             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// nc_mma_bf16 is nc_mma_f16 of bfloat16.
NC_DEVICE void nc_mma_bf16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
	asm volatile(
		"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
		"{%8,%9}, {%0,%1,%2,%3};"
		: "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
		: "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// nc_copy16 begins to copy 16 bytes from global to shared memory, both aligned to that;
// zeros if not inside: src is not read then. nc_copy4 is the same of 4 bytes. They are done
// after an nc_await.
NC_DEVICE void nc_copy16(nc_place dst, const void *src, bool inside)
{
	asm volatile("{ .reg .u64 at; cvta.to.global.u64 at, %1; cp.async.cg.shared.global [%0], [at], "
	             "16, %2; }" ::"r"(dst),
	             "l"(src), "r"(inside ? 16 : 0)
	             : "memory");
}
NC_DEVICE void nc_copy4(nc_place dst, const void *src, bool inside)
{
	asm volatile("{ .reg .u64 at; cvta.to.global.u64 at, %1; cp.async.ca.shared.global [%0], [at], "
	             "4, %2; }" ::"r"(dst),
	             "l"(src), "r"(inside ? 4 : 0)
	             : "memory");
}
// nc_commit makes a group of the thread's copies begun since the one before.
NC_DEVICE void nc_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// nc_await waits for this thread's groups but the last N. Other threads see the copies after a
// barrier.
template <int N> NC_DEVICE void nc_await()
{
	asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// nc_pack_half rounds two numbers to half precision; the first is the low half.
NC_DEVICE uint32_t nc_pack_half(float low, float high)
{
	uint32_t r;
	asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
	return r;
}
NC_DEVICE uint32_t nc_pack_bf16(float low, float high)
{
	uint32_t r;
	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
	return r;
}

// nc_half_to_bf16 rounds two half precision numbers to bfloat16.
NC_DEVICE uint32_t nc_half_to_bf16(uint32_t h)
{
	float low, high;
	asm("{ .reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
	    : "=f"(low), "=f"(high)
	    : "r"(h));
	return nc_pack_bf16(low, high);
}

// nc_exp2 is 2^x with a relative error below 2^-22; results below 2^-126 are 0.
NC_DEVICE float nc_exp2(float x)
{
	float y;
	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

#else

#include <vector>

#define NC_BOUNDED(name, Args, threads, blocks) NC_KERNEL(name, Args)
#define NC_UNROLL_BY(n)
#define NC_METHOD inline

typedef char *nc_place;
NC_DEVICE nc_place nc_place_of(const void *p) { return (nc_place)p; }

namespace nc_host
{

static void aligned(const void *p, size_t bytes, const char *what)
{
	if ((uintptr_t)p % bytes == 0)
		return;
	fprintf(stderr, "%s: %p is not aligned to %zu bytes\n", what, p, bytes);
	_Exit(3); // a signal on the stack of a fiber would not end the process
}

// matrix is one of the warp's matrices [8][8]: bits of row, column as lanes gave its rows.
static inline uint32_t matrix(const nc_place rows[32], unsigned i, unsigned row, unsigned column)
{
	uint16_t h;
	memcpy(&h, rows[8 * i + row] + 2 * column, sizeof h);
	return h;
}

static inline void ldmatrix(uint32_t r[4], nc_place row, bool trans)
{
	static nc_place rows[32][32]; // [warp][lane]
	const unsigned w = warp(), g = lane() / 4, t = lane() % 4;
	aligned(row, 16, "ldmatrix");
	rows[w][lane()] = row;
	__syncwarp();
	for (unsigned i = 0; i < 4; i++)
		r[i] = trans ? matrix(rows[w], i, 2 * t, g) | matrix(rows[w], i, 2 * t + 1, g) << 16
		             : matrix(rows[w], i, g, 2 * t) | matrix(rows[w], i, g, 2 * t + 1) << 16;
	__syncwarp();
}

// halves is the value of every half precision number.
static const float *halves()
{
	static float *table;
	if (!table) {
		table = new float[1 << 16];
		for (unsigned h = 0; h < 1 << 16; h++)
			table[h] = nc_half((uint16_t)h);
	}
	return table;
}

static inline void spread(float *dst, const uint32_t *src, int n, bool half)
{
	for (int i = 0; i < n; i++)
		for (int j = 0; j < 2; j++) {
			const uint16_t h = (uint16_t)(src[i] >> 16 * j);
			dst[2 * i + j] = half ? halves()[h] : nc_bf16(h);
		}
}

// mma sums the products, which are exact, in double precision and rounds once. A tensor core
// keeps fewer bits on the way, by a rule that is not documented.
static inline void mma(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1, bool half)
{
	static float left[32][32][8], right[32][32][4]; // [warp][lane]
	const unsigned w = warp(), l = lane(), g = l / 4, t = l % 4;
	const uint32_t b[2] = {b0, b1};
	spread(left[w][l], a, 4, half);
	spread(right[w][l], b, 2, half);
	__syncwarp();
	double sum[4] = {d[0], d[1], d[2], d[3]};
	for (unsigned k = 0; k < 4; k++) { // the lane of columns 2k, 2k+1, 2k+8 and 2k+9 of a row
		const float *A = left[w][4 * g + k];
		for (unsigned n = 0; n < 2; n++) {
			const float *B = right[w][4 * (2 * t + n) + k];
			sum[n] += (double)(A[0] * B[0]) + (double)(A[1] * B[1]) + (double)(A[4] * B[2]) +
			          (double)(A[5] * B[3]);
			sum[2 + n] += (double)(A[2] * B[0]) + (double)(A[3] * B[1]) + (double)(A[6] * B[2]) +
			              (double)(A[7] * B[3]);
		}
	}
	for (int i = 0; i < 4; i++)
		d[i] = (float)sum[i];
	__syncwarp();
}

// Copy is one that was begun. It is carried out as late as can be, when the thread waits for
// it; until then its place holds NaN.
struct Copy {
	nc_place dst;
	const void *src;
	size_t bytes;
	bool inside, ends; // ends: it is no copy, but the end of a group
};
static std::vector<Copy> copies[1024]; // of each thread of the block

static inline void copy(nc_place dst, const void *src, size_t bytes, bool inside)
{
	aligned(dst, bytes, "cp.async to");
	aligned(src, bytes, "cp.async from");
	memset(dst, 0xFF, bytes);
	copies[flat()].push_back({dst, src, bytes, inside, false});
}

static inline void await(int groups)
{
	std::vector<Copy> &list = copies[flat()];
	size_t last = list.size();
	int seen = 0;
	while (last > 0 && seen <= groups) // back to the end of the youngest group to wait for
		seen += list[--last].ends;
	if (seen <= groups)
		return;
	for (size_t i = 0; i <= last; i++) {
		if (list[i].inside)
			memcpy(list[i].dst, list[i].src, list[i].bytes);
		else if (!list[i].ends)
			memset(list[i].dst, 0, list[i].bytes);
	}
	list.erase(list.begin(), list.begin() + (long)last + 1);
}

} // namespace nc_host

NC_DEVICE void nc_ldmatrix(uint32_t r[4], nc_place row) { nc_host::ldmatrix(r, row, false); }
NC_DEVICE void nc_ldmatrix_trans(uint32_t r[4], nc_place row) { nc_host::ldmatrix(r, row, true); }
NC_DEVICE void nc_mma_f16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
	nc_host::mma(d, a, b0, b1, true);
}
NC_DEVICE void nc_mma_bf16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
	nc_host::mma(d, a, b0, b1, false);
}
NC_DEVICE void nc_copy16(nc_place dst, const void *src, bool inside)
{
	nc_host::copy(dst, src, 16, inside);
}
NC_DEVICE void nc_copy4(nc_place dst, const void *src, bool inside)
{
	nc_host::copy(dst, src, 4, inside);
}
NC_DEVICE void nc_commit()
{
	nc_host::copies[nc_host::flat()].push_back({nullptr, nullptr, 0, false, true});
}
template <int N> NC_DEVICE void nc_await() { nc_host::await(N); }

NC_DEVICE uint32_t nc_pack_half(float low, float high)
{
	return nc_to_half(low) | (uint32_t)nc_to_half(high) << 16;
}
NC_DEVICE uint32_t nc_pack_bf16(float low, float high)
{
	return nc_to_bf16(low) | (uint32_t)nc_to_bf16(high) << 16;
}
NC_DEVICE uint32_t nc_half_to_bf16(uint32_t h)
{
	return nc_pack_bf16(nc_half((uint16_t)h), nc_half((uint16_t)(h >> 16)));
}
NC_DEVICE float nc_exp2(float x)
{
	const float y = exp2f(x);
	return y < 0x1p-126f ? 0.0f : y;
}

#endif
