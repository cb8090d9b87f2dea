// The functions of package kernels' math32.go: the same operations in the same order.
#pragma once
#include "common.cuh"

// nc_exp is exp(x) within 1 ulp: 2^k·P(r), k the integer nearest x·log2(e).
NC_DEVICE float nc_exp(float x)
{
	const float magic = 12582912.0f; // 1.5·2^23: the sum's low bits are the rounded integer
	if (x < -104.0f)
		x = -104.0f;
	if (x > 89.0f)
		x = 89.0f;
	float t = fmaf(x, 0x1.715476p+0f, magic);
	float n = t - magic;
	float r = fmaf(n, -0x1.62e43p-1f, x);
	r = fmaf(n, 0x1.05c61p-29f, r);
	float p = fmaf(0x1.6a2352p-10f, r, 0x1.123a6cp-7f);
	p = fmaf(p, r, 0x1.5558f4p-5f);
	p = fmaf(p, r, 0x1.55549p-3f);
	p = fmaf(p, r, 0x1.fffffcp-2f);
	p = fmaf(p, r, 1.0f);
	p = fmaf(p, r, 1.0f);
	int k = (int)(__float_as_uint(t) - __float_as_uint(magic)), h = k >> 1;
	return p * __uint_as_float((uint32_t)(h + 127) << 23) *
	       __uint_as_float((uint32_t)(k - h + 127) << 23);
}

// nc_tanh is an odd polynomial up to 0.625 and 1-2/(exp(2|x|)+1) beyond.
NC_DEVICE float nc_tanh(float x)
{
	float a = __uint_as_float(__float_as_uint(x) & 0x7fffffffu);
	if (a > 0.625f) {
		float y = 1.0f - 2.0f / (nc_exp(a + a) + 1.0f);
		return __uint_as_float(__float_as_uint(y) | (__float_as_uint(x) & 0x80000000u));
	}
	float z = x * x;
	float p = fmaf(-0x1.75d426p-8f, z, 0x1.5223acp-6f);
	p = fmaf(p, z, -0x1.b83becp-5f);
	p = fmaf(p, z, 0x1.110724p-3f);
	p = fmaf(p, z, -0x1.555532p-2f);
	return fmaf(p, z * x, x);
}

// nc_bf16 is the value of a bfloat16 number.
NC_DEVICE float nc_bf16(uint16_t h) { return __uint_as_float((uint32_t)h << 16); }

// nc_to_bf16 is the nearest bfloat16 number, halves to even.
NC_DEVICE uint16_t nc_to_bf16(float f)
{
	const uint32_t u = __float_as_uint(f);
	if ((u & 0x7fffffffu) > 0x7f800000u)
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

NC_DEVICE float nc_relu(float x) { return x <= 0.0f ? 0.0f : x; }

// nc_tree adds the 16 lanes of a canonical sum: those 8 apart, then 4, 2, 1.
NC_DEVICE float nc_tree(const volatile float *lanes)
{
	float s[16];
	for (int i = 0; i < 16; i++)
		s[i] = lanes[i];
	for (int h = 8; h > 0; h /= 2)
		for (int i = 0; i < h; i++)
			s[i] = s[i] + s[i + h];
	return s[0];
}

// The storage types of dense matrices, numbered as in GGUF.
enum { F32 = 0, F16 = 1, Q8_0 = 8, BF16 = 30 };

// nc_element is element i of a row of type F32, F16 or BF16.
NC_DEVICE float nc_element(int type, const uint8_t *row, int i)
{
	if (type == F16)
		return nc_half(((const uint16_t *)row)[i]);
	if (type == BF16)
		return __uint_as_float((uint32_t)((const uint16_t *)row)[i] << 16);
	return ((const float *)row)[i];
}

NC_DEVICE int64_t nc_row_bytes(int type, int cols)
{
	return type == F32    ? 4 * (int64_t)cols
	       : type == Q8_0 ? (int64_t)cols / 32 * 34
	                      : 2 * (int64_t)cols;
}
