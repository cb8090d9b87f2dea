// Four elements of an array at once, and lists of work.
#pragma once
#include "math.cuh"

// What a thread block does of a list of jobs: one of them, from a place in it on.
struct Work {
	int32_t job, first;
};

// load4 is elements i .. i+3 of a row of n, and zeros beyond.
NC_DEVICE void load4(float v[4], const float *x, int i, int n, bool vector)
{
	if (vector && i + 4 <= n) {
		const uint4 u = *(const uint4 *)(x + i);
		v[0] = __uint_as_float(u.x), v[1] = __uint_as_float(u.y);
		v[2] = __uint_as_float(u.z), v[3] = __uint_as_float(u.w);
		return;
	}
	for (int m = 0; m < 4; m++)
		v[m] = i + m < n ? x[i + m] : 0.0f;
}

NC_DEVICE void store4(uint16_t *dst, const uint16_t v[4], int i, int n, bool vector)
{
	if (vector && i + 4 <= n) {
		*(uint64_t *)(dst + i) =
			(uint64_t)v[0] | (uint64_t)v[1] << 16 | (uint64_t)v[2] << 32 | (uint64_t)v[3] << 48;
		return;
	}
	for (int m = 0; m < 4 && i + m < n; m++)
		dst[i + m] = v[m];
}

// put4 writes elements i .. i+3 of a row of n.
NC_DEVICE void put4(float *dst, const float v[4], int i, int n, bool vector)
{
	if (vector && i + 4 <= n) {
		*(uint4 *)(dst + i) = {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
		                       __float_as_uint(v[3])};
		return;
	}
	for (int m = 0; m < 4 && i + m < n; m++)
		dst[i + m] = v[m];
}

// load_bf16 is load4 of bfloat16.
NC_DEVICE void load_bf16(float v[4], const uint16_t *x, int i, int n, bool vector)
{
	if (vector && i + 4 <= n) {
		const uint64_t u = *(const uint64_t *)(x + i);
		for (int m = 0; m < 4; m++)
			v[m] = nc_bf16((uint16_t)(u >> 16 * m));
		return;
	}
	for (int m = 0; m < 4; m++)
		v[m] = i + m < n ? nc_bf16(x[i + m]) : 0.0f;
}
