/* float_latent.h: bfloat16, and ternary weights from and to floats, over vf; bf16.go
 * defines them. Include after vec_<isa>.h. */

VF_ENTRY void VF_NAME(bf16)(uint16_t *dst, float a, const float *x, int64_t n)
{
	vf s = vf_set1(a);
	int64_t i = 0;
	for (; i + 16 <= n; i += 16)
		vf_store_bf16(dst + i, vf_round_bf16(vf_mul(s, vf_load(x + i))));
	if (n -= i)
		vf_storen_bf16(dst + i, vf_round_bf16(vf_mul(s, vf_loadn(x + i, n))), n);
}

VF_ENTRY void VF_NAME(bf16_from_i8)(uint16_t *dst, const int8_t *q, int64_t n)
{
	int64_t i = 0;
	for (; i + 16 <= n; i += 16)
		vf_store_bf16(dst + i, vf_i8(q + i));
	if (n -= i)
		vf_storen_bf16(dst + i, vf_i8n(q + i, n), n);
}

VF_ENTRY void VF_NAME(ternary_bf16)(uint16_t *dst, int64_t ldd, const nc_ternary *w, int64_t r0,
                                    int64_t r1)
{
	int64_t tiles = (w->cols + 15) / 16, groups = (w->cols + w->group - 1) / w->group;
	const vf gain = vf_set1(w->gain);
	for (int64_t r = r0; r < r1; r++, dst += ldd) {
		const uint8_t *row = w->tiles + r / 16 * tiles * 64 + r % 16 * 4;
		const uint16_t *scales = w->scales + r / 16 * groups * 16 + r % 16;
		for (int64_t g = 0; g < groups; g++) {
			int64_t end = (g + 1) * w->group < w->cols ? (g + 1) * w->group : w->cols;
			vf s = vf_set1(vf_half(scales[16 * g]));
			for (int64_t k = g * w->group; k < end; k += 16) {
				uint32_t codes;
				memcpy(&codes, row + k / 16 * 64, 4);
				vf x = vf_round_bf16(vf_mul(vf_mul(vf_trits(codes), s), gain));
				if (end - k >= 16)
					vf_store_bf16(dst + k, x);
				else
					vf_storen_bf16(dst + k, x, end - k);
			}
		}
	}
}

/* f16(mean|x|), at least 2^-14. */
VF_FN uint16_t vf_scale_of(const float *x, int64_t n)
{
	vf s = vf_zero();
	int64_t i = 0;
	for (; i + 16 <= n; i += 16)
		s = vf_add(s, vf_abs(vf_load(x + i)));
	if (i < n)
		s = vf_add(s, vf_abs(vf_loadn(x + i, n - i)));
	uint16_t h[16];
	vf_store_f16(h, vf_set1(vf_sum(s) / (float)n));
	return h[0] > 0x400 ? h[0] : 0x400;
}

/* Bit c of 16 to bits 8*(c%4) + 2*(c/4), as the codes of a tile's row lie: four bits
 * times 1 + 2^7 + 2^14 + 2^21 come to lie 8 apart. */
VF_FN uint32_t vf_spread(uint32_t b)
{
	const uint32_t k = 0x00204081, m = 0x01010101;
	return ((b & 15) * k & m) | ((b >> 4 & 15) * k & m) << 2 | ((b >> 8 & 15) * k & m) << 4 |
	       ((b >> 12) * k & m) << 6;
}

/* One row of w; its scales lie 16 apart, its codes 64 bytes. Returns the first group
 * whose scale is not finite, or -1. */
VF_FN int64_t vf_quantize_row(uint8_t *codes, uint16_t *scales, const float *x, int64_t cols,
                              int64_t group)
{
	for (int64_t g = 0; g * group < cols; g++) {
		int64_t end = (g + 1) * group < cols ? (g + 1) * group : cols, k = g * group;
		uint16_t s = vf_scale_of(x + k, end - k);
		if (s >= 0x7c00)
			return g;
		scales[16 * g] = s;
		const float half = vf_half(s) / 2;
		const vf above = vf_set1(half), below = vf_set1(-half);
		for (; k < end; k += 16) {
			vf v = end - k >= 16 ? vf_load(x + k) : vf_loadn(x + k, end - k);
			uint32_t plus = vf_gt_bits(v, above), minus = vf_gt_bits(below, v);
			uint32_t c = vf_spread(plus) << 1 | vf_spread(0xffff & ~(plus | minus));
			memcpy(codes + k / 16 * 64, &c, 4);
		}
	}
	return -1;
}

VF_ENTRY int64_t VF_NAME(quantize_ternary)(uint8_t *tiles, uint16_t *scales, const float *x,
                                           int64_t cols, int64_t group, int64_t r0, int64_t r1)
{
	int64_t n = (cols + 15) / 16, groups = (cols + group - 1) / group;
	for (int64_t r = r0; r < r1; r++) {
		int64_t g =
			vf_quantize_row(tiles + r / 16 * n * 64 + r % 16 * 4,
			                scales + r / 16 * groups * 16 + r % 16, x + r * cols, cols, group);
		if (g >= 0)
			return r * groups + g;
	}
	const uint32_t empty = 0x55555555;
	for (int64_t r = r1; r % 16; r++)
		for (int64_t c = 0; c < n; c++)
			memcpy(tiles + (r / 16 * n + c) * 64 + r % 16 * 4, &empty, 4);
	return -1;
}
