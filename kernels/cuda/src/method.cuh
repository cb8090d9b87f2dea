// What products on tensor cores share.
#pragma once
#include "mma.cuh"

// NC_METHOD is a member function of a structure. nc_store2 writes two numbers at an address
// aligned to 8.
#ifdef __CUDACC_RTC__
#define NC_METHOD __device__ __forceinline__
NC_DEVICE void nc_store2(float *to, float a, float b)
{
	asm volatile(
		"{ .reg .u64 at; cvta.to.global.u64 at, %0; st.global.v2.f32 [at], {%1, %2}; }" ::"l"(to),
		"f"(a), "f"(b)
		: "memory");
}
#else
#define NC_METHOD inline
NC_DEVICE void nc_store2(float *to, float a, float b)
{
	nc_host::aligned(to, 8, "a store of two");
	to[0] = a, to[1] = b;
}
#endif
