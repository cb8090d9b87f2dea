// Keys and values in pages, in the layout of kernels.KV.
#pragma once
#include "math.cuh"

struct Cache {
	uint8_t *slab;
	int64_t page_bytes, layer_offset;
	int32_t kv_heads, head_dim, int8, reserved;
};

enum { PageLen = 64 };

// head is keys, values and their scales of one head in a page.
struct Head {
	uint8_t *k, *v;
	float *k_scale, *v_scale;
};

NC_DEVICE Head head_of(const Cache &c, int page, int head)
{
	const int64_t n = PageLen * (int64_t)c.head_dim, bytes = c.int8 ? 2 * n + 8 * PageLen : 4 * n;
	uint8_t *at = c.slab + page * c.page_bytes + c.layer_offset + head * bytes;
	Head h = {at, at + (c.int8 ? n : 2 * n), 0, 0};
	h.k_scale = (float *)(at + 2 * n);
	h.v_scale = h.k_scale + PageLen;
	return h;
}

// store writes one vector to a cache: a warp.
NC_DEVICE void store(const Cache &c, uint8_t *dst, float *scale, int place, const volatile float *x,
                     int lane)
{
	const int d = c.head_dim;
	if (!c.int8) {
		for (int i = lane; i < d; i += 32)
			((uint16_t *)dst)[place * d + i] = nc_to_half(x[i]);
		return;
	}
	uint32_t top = 0;
	for (int i = lane; i < d; i += 32) {
		const uint32_t u = __float_as_uint(x[i]) & 0x7fffffffu;
		top = u > top ? u : top;
	}
	for (int m = 16; m > 0; m /= 2) {
		const uint32_t other = nc_shuffle_xor(top, m);
		top = other > top ? other : top;
	}
	const bool finite = top < 0x7f800000u;
	const float unit = __uint_as_float(top) / 127.0f;
	for (int i = lane; i < d; i += 32) {
		int q = 0;
		if (finite && unit > 0) {
			q = nc_round(x[i] / unit);
			q = q > 127 ? 127 : q < -127 ? -127 : q;
		}
		((int8_t *)dst)[place * d + i] = (int8_t)q;
	}
	if (lane == 0)
		scale[place] = finite ? unit : __uint_as_float(0x7fc00000u);
}

// Sixteen is that many elements of a vector in a cache as floats.
struct Sixteen {
	float v[16];
};

// sixteen loads elements 16i on of a vector of d; those beyond are 0. The vectors of a cache are
// aligned to 16 bytes where d is a multiple of 16.
NC_DEVICE Sixteen sixteen(const uint8_t *vector, int i, int d, bool int8)
{
	Sixteen e;
	if (d % 16 != 0) {
		for (int j = 0; j < 16; j++) {
			const int k = 16 * i + j;
			e.v[j] = k >= d ? 0
			         : int8 ? (float)((const int8_t *)vector)[k]
			                : nc_half(((const uint16_t *)vector)[k]);
		}
		return e;
	}
	const uint4 *at = (const uint4 *)vector + (int8 ? i : 2 * i);
	const uint4 a = at[0];
	const uint32_t w[4] = {a.x, a.y, a.z, a.w};
	if (int8) {
		for (int j = 0; j < 16; j++)
			e.v[j] = (float)(int8_t)(w[j / 4] >> j % 4 * 8);
		return e;
	}
	const uint4 b = at[1];
	const uint32_t u[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
	for (int j = 0; j < 16; j++)
		e.v[j] = nc_half((uint16_t)(u[j / 2] >> j % 2 * 16));
	return e;
}
