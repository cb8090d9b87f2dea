/* nc_float.h: the float ops (dense, norm, act, softmax, rope, attention) of each ISA,
 * as initialisers of struct nc_set for the table in sets.c.
 *
 * Each op exists once in C, in float_*.h, over vf, a vector of 16 floats that
 * vec_<isa>.h implements; float_<isa>.c puts the two together. */
#ifndef NANOCHAT_KERNELS_NC_FLOAT_H
#define NANOCHAT_KERNELS_NC_FLOAT_H

#include "nc.h"

#define NC_DECLARE_FLOAT(isa)                                                                      \
	void nc_dense_gemv_##isa(float *dst, const nc_dense *w, const float *x, int64_t r0,            \
	                         int64_t r1);                                                          \
	void nc_dense_gemm_##isa(float *dst, int64_t ldd, const nc_dense *w, const float *x,           \
	                         int64_t ldx, int64_t n, int64_t r0, int64_t r1);                      \
	void nc_dense_row_##isa(float *dst, const nc_dense *w, int64_t r);                             \
	void nc_rmsnorm_##isa(float *dst, const float *x, const float *weight, float eps, int64_t n);  \
	void nc_add_##isa(float *dst, const float *x, const float *y, int64_t n);                      \
	void nc_axpy_##isa(float *dst, float a, const float *x, int64_t n);                            \
	void nc_scale_##isa(float *dst, float a, const float *x, int64_t n);                           \
	void nc_swiglu_##isa(float *dst, const float *gate, const float *up, int64_t n);               \
	void nc_relu2glu_##isa(float *dst, const float *gate, const float *up, int64_t n);             \
	void nc_relu2_##isa(float *dst, const float *x, int64_t n);                                    \
	void nc_sigmoid_##isa(float *dst, const float *x, int64_t n);                                  \
	void nc_softcap_##isa(float *dst, float c, const float *x, int64_t n);                         \
	void nc_softmax_##isa(float *dst, const float *x, int64_t n);                                  \
	float nc_logsumexp_##isa(const float *x, int64_t n);                                           \
	int64_t nc_argmax_##isa(const float *x, int64_t n);                                            \
	void nc_topk_##isa(int32_t *dst, int64_t k, const float *x, int64_t n);                        \
	void nc_rope_##isa(float *x, int64_t heads, int64_t head_dim, const float *cos,                \
	                   const float *sin, int64_t half, int32_t interleaved);                       \
	void nc_kv_store_##isa(const nc_kv *kv, int64_t pos, const float *k, const float *v);          \
	void nc_attention_##isa(float *dst, int64_t ldd, const float *q, int64_t ldq, const nc_kv *kv, \
	                        const nc_query *a, int64_t h0, int64_t h1, uint8_t *scratch);          \
	void nc_matmul_##isa(float *dst, int64_t ldd, const nc_operand *a, const nc_operand *b,        \
	                     const nc_product *p, uint8_t *scratch);

NC_DECLARE_FLOAT(scalar)
NC_DECLARE_FLOAT(avx2)
NC_DECLARE_FLOAT(avx512)
NC_DECLARE_FLOAT(neon)

/* matmul in bfloat16, for the sets of CPUs that have VDPBF16PS. */
void nc_matmul_avx512bf16(float *dst, int64_t ldd, const nc_operand *a, const nc_operand *b,
                          const nc_product *p, uint8_t *scratch);

#define NC_FLOAT_OPS(isa)                                                                      \
	.dense_gemv = nc_dense_gemv_##isa, .dense_gemm = nc_dense_gemm_##isa,                      \
	.dense_row = nc_dense_row_##isa, .rmsnorm = nc_rmsnorm_##isa, .add = nc_add_##isa,         \
	.axpy = nc_axpy_##isa, .scale = nc_scale_##isa, .swiglu = nc_swiglu_##isa,                 \
	.relu2glu = nc_relu2glu_##isa, .relu2 = nc_relu2_##isa, .sigmoid = nc_sigmoid_##isa,       \
	.softcap = nc_softcap_##isa, .softmax = nc_softmax_##isa, .logsumexp = nc_logsumexp_##isa, \
	.argmax = nc_argmax_##isa, .topk = nc_topk_##isa, .rope = nc_rope_##isa,                   \
	.kv_store = nc_kv_store_##isa, .attention = nc_attention_##isa, .matmul = nc_matmul_##isa

#define NC_FLOAT_OPS_SCALAR NC_FLOAT_OPS(scalar)
#define NC_FLOAT_OPS_AVX2 NC_FLOAT_OPS(avx2)
#define NC_FLOAT_OPS_AVX512 NC_FLOAT_OPS(avx512)
#define NC_FLOAT_OPS_NEON NC_FLOAT_OPS(neon)

#endif
