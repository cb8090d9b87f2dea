/* vec_tails.h: partial loads and stores of narrow elements by way of a copy, for
 * instruction sets without masks. Included by vec_<isa>.h. */

VF_FN vf vf_f16n(const uint16_t *p, int64_t n)
{
	uint16_t t[16] = {0};
	for (int64_t i = 0; i < n; i++)
		t[i] = p[i];
	return vf_f16(t);
}

VF_FN vf vf_bf16n(const uint16_t *p, int64_t n)
{
	uint16_t t[16] = {0};
	for (int64_t i = 0; i < n; i++)
		t[i] = p[i];
	return vf_bf16(t);
}

VF_FN vf vf_i8n(const int8_t *p, int64_t n)
{
	int8_t t[16] = {0};
	for (int64_t i = 0; i < n; i++)
		t[i] = p[i];
	return vf_i8(t);
}

VF_FN void vf_storen_f16(uint16_t *p, vf a, int64_t n)
{
	uint16_t t[16];
	vf_store_f16(t, a);
	for (int64_t i = 0; i < n; i++)
		p[i] = t[i];
}

VF_FN void vf_storen_bf16(uint16_t *p, vf a, int64_t n)
{
	uint16_t t[16];
	vf_store_bf16(t, a);
	for (int64_t i = 0; i < n; i++)
		p[i] = t[i];
}
