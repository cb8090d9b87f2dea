// Four elements of an array at once, and lists of work.
#pragma once
#include "math.cuh"

// What a thread block does of a list of jobs: one of them, from a place in it on.
struct Work {
	int32_t job, first;
};

// The functions below access elements i .. i+3 of a row of n, where elements beyond are zeros and
// are not written. Whole says that there are none beyond, and that addresses allow four at once;
// vector says the latter.
template <bool Whole> NC_DEVICE void load4(float v[4], const float *x, int i, int n, bool vector)
{
	if (!Whole && !(vector && i + 4 <= n)) {
		for (int m = 0; m < 4; m++)
			v[m] = i + m < n ? x[i + m] : 0.0f;
		return;
	}
	const uint4 u = *(const uint4 *)(x + i);
	v[0] = __uint_as_float(u.x), v[1] = __uint_as_float(u.y);
	v[2] = __uint_as_float(u.z), v[3] = __uint_as_float(u.w);
}

template <bool Whole> NC_DEVICE void store4(float *dst, const float v[4], int i, int n, bool vector)
{
	if (!Whole && !(vector && i + 4 <= n)) {
		for (int m = 0; m < 4 && i + m < n; m++)
			dst[i + m] = v[m];
		return;
	}
	*(uint4 *)(dst + i) = {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
	                       __float_as_uint(v[3])};
}

// The same of 16-bit numbers, as bits.
template <bool Whole>
NC_DEVICE void store4(uint16_t *dst, const uint16_t v[4], int i, int n, bool vector)
{
	if (!Whole && !(vector && i + 4 <= n)) {
		for (int m = 0; m < 4 && i + m < n; m++)
			dst[i + m] = v[m];
		return;
	}
	*(uint64_t *)(dst + i) =
		(uint64_t)v[0] | (uint64_t)v[1] << 16 | (uint64_t)v[2] << 32 | (uint64_t)v[3] << 48;
}

// read4 is load4 of what the kernel does not write.
template <bool Whole> NC_DEVICE void read4(float v[4], const float *x, int i, int n, bool vector)
{
#ifdef __CUDACC_RTC__
	if (Whole) {
		const uint4 u = __ldg((const uint4 *)(x + i));
		v[0] = __uint_as_float(u.x), v[1] = __uint_as_float(u.y);
		v[2] = __uint_as_float(u.z), v[3] = __uint_as_float(u.w);
		return;
	}
#endif
	load4<Whole>(v, x, i, n, vector);
}

// load_bf16 is load4 of bfloat16.
template <bool Whole>
NC_DEVICE void load_bf16(float v[4], const uint16_t *x, int i, int n, bool vector)
{
	if (!Whole && !(vector && i + 4 <= n)) {
		for (int m = 0; m < 4; m++)
			v[m] = i + m < n ? nc_bf16(x[i + m]) : 0.0f;
		return;
	}
	const uint64_t u = *(const uint64_t *)(x + i);
	for (int m = 0; m < 4; m++)
		v[m] = nc_bf16((uint16_t)(u >> 16 * m));
}
