// What the kernels of this directory share. Each source compiles with NVRTC for a GPU, and
// as host C++ through host.h, which emulates blocks and threads, for tests on any machine.
//
// A kernel has one parameter, a structure that Go knows with the same layout:
//
//     struct Args { const float *x; int n; };
//     NC_KERNEL(name, Args) { ... a.x[threadIdx.x] ... }
//
// Products and sums that have to give the bits of the CPU's kernels are written with fmaf
// or with one operation at a time; the compiler is told not to contract others.
#pragma once

#ifdef __CUDACC_RTC__

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define INFINITY __int_as_float(0x7f800000)

#define NC_KERNEL(name, Args) extern "C" __global__ void name(const Args a)
#define NC_SHARED __shared__
// NC_DYNAMIC is the dynamic shared memory of the launch as an array of T.
#define NC_DYNAMIC(T, name)               \
	extern __shared__ uint4 nc_dynamic[]; \
	T *name = (T *)nc_dynamic
#define NC_DEVICE static __device__ __forceinline__
// NC_UNROLL stands before a loop whose number of rounds is known, so that arrays indexed by its
// counter stay in registers.
#define NC_UNROLL _Pragma("unroll")

// nc_half is the value of a half precision number.
NC_DEVICE float nc_half(uint16_t h)
{
	float f;
	asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
	return f;
}

// nc_round is the nearest integer, halves to even.
NC_DEVICE int nc_round(float f) { return __float2int_rn(f); }

// nc_to_half is the nearest half precision number, halves to even.
NC_DEVICE uint16_t nc_to_half(float f)
{
	uint16_t h;
	asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
	return h;
}

// nc_dot is c + sum of a[i]*b[i], i = 0..3: a unsigned bytes, b signed bytes.
NC_DEVICE int nc_dot(uint32_t a, uint32_t b, int c)
{
	int d;
	asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
	return d;
}

// nc_dot_signed is nc_dot of two signed operands.
NC_DEVICE int nc_dot_signed(uint32_t a, uint32_t b, int c)
{
	int d;
	asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
	return d;
}

// nc_mma adds the product of A [16][32], unsigned bytes, and B [32][8], signed bytes, to D
// [16][8]. The warp holds them as PTX says for mma.m16n8k32: with g = lane/4 and t = lane%4,
// a[0] is A[g][4t..4t+3], a[1] the same of row g+8, a[2] and a[3] those of columns 16 on;
// b[0] is B[4t..4t+3][g], b[1] that of rows 16 on; d[0], d[1] are D[g][2t], D[g][2t+1], and
// d[2], d[3] those of row g+8.
NC_DEVICE void nc_mma(int d[4], const uint32_t a[4], const uint32_t b[2])
{
	asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
	             "{%8,%9}, {%0,%1,%2,%3};"
	             : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
	             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <class T> NC_DEVICE T nc_shuffle(T v, int lane)
{
	return __shfl_sync(0xffffffffu, v, lane);
}
template <class T> NC_DEVICE T nc_shuffle_xor(T v, int mask)
{
	return __shfl_xor_sync(0xffffffffu, v, mask);
}

#else
#define NC_UNROLL
#include "host.h"
#endif
