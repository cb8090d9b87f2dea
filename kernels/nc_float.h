/* nc_float.h: the float ops (dense, norm, act, softmax, rope, attention, and what
 * training adds: set.go and backward.go) of each ISA, as initialisers of struct nc_set
 * for the table in sets.c.
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
	                     const nc_product *p, uint8_t *scratch);                                   \
	void nc_rmsnorm_backward_##isa(float *dx, float *dweight, const float *dy, const float *x,     \
	                               const float *weight, float eps, int64_t n);                     \
	void nc_swiglu_backward_##isa(float *dgate, float *dup, const float *dy, const float *gate,    \
	                              const float *up, int64_t n);                                     \
	void nc_relu2glu_backward_##isa(float *dgate, float *dup, const float *dy, const float *gate,  \
	                                const float *up, int64_t n);                                   \
	void nc_relu2_backward_##isa(float *dx, const float *dy, const float *x, int64_t n);           \
	void nc_rope_backward_##isa(float *x, int64_t heads, int64_t head_dim, const float *cos,       \
	                            const float *sin, int64_t half, int32_t interleaved);              \
	float nc_dot_##isa(const float *x, const float *y, int64_t n);                                 \
	void nc_cross_entropy_##isa(float *out, float *dst, const float *z, int64_t n, int64_t target, \
	                            const nc_loss *o);                                                 \
	void nc_attention_backward_##isa(float *dq, float *dk, float *dv, const float *dout,           \
	                                 const float *q, const float *k, const float *v,               \
	                                 const float *out, const nc_attention_grad *a, int64_t h0,     \
	                                 int64_t h1, uint8_t *scratch);                                \
	void nc_bf16_##isa(uint16_t *dst, float a, const float *x, int64_t n);                         \
	void nc_bf16_from_i8_##isa(uint16_t *dst, const int8_t *q, int64_t n);                         \
	void nc_ternary_bf16_##isa(uint16_t *dst, int64_t ldd, const nc_ternary *w, int64_t r0,        \
	                           int64_t r1);                                                        \
	int64_t nc_quantize_ternary_##isa(uint8_t *tiles, uint16_t *scales, const float *x,            \
	                                  int64_t cols, int64_t group, int64_t r0, int64_t r1);

NC_DECLARE_FLOAT(scalar)
NC_DECLARE_FLOAT(avx2)
NC_DECLARE_FLOAT(avx512)
NC_DECLARE_FLOAT(neon)

/* matmul and attention_backward in bfloat16, for the sets of CPUs that have VDPBF16PS. */
void nc_matmul_avx512bf16(float *dst, int64_t ldd, const nc_operand *a, const nc_operand *b,
                          const nc_product *p, uint8_t *scratch);
void nc_attention_backward_avx512bf16(float *dq, float *dk, float *dv, const float *dout,
                                      const float *q, const float *k, const float *v,
                                      const float *out, const nc_attention_grad *a, int64_t h0,
                                      int64_t h1, uint8_t *scratch);

#define NC_FLOAT_OPS(isa)                                                                       \
	.dense_gemv = nc_dense_gemv_##isa, .dense_gemm = nc_dense_gemm_##isa,                       \
	.dense_row = nc_dense_row_##isa, .rmsnorm = nc_rmsnorm_##isa, .add = nc_add_##isa,          \
	.axpy = nc_axpy_##isa, .scale = nc_scale_##isa, .swiglu = nc_swiglu_##isa,                  \
	.relu2glu = nc_relu2glu_##isa, .relu2 = nc_relu2_##isa, .sigmoid = nc_sigmoid_##isa,        \
	.softcap = nc_softcap_##isa, .softmax = nc_softmax_##isa, .logsumexp = nc_logsumexp_##isa,  \
	.argmax = nc_argmax_##isa, .topk = nc_topk_##isa, .rope = nc_rope_##isa,                    \
	.kv_store = nc_kv_store_##isa, .attention = nc_attention_##isa, .matmul = nc_matmul_##isa,  \
	.rmsnorm_backward = nc_rmsnorm_backward_##isa, .swiglu_backward = nc_swiglu_backward_##isa, \
	.relu2glu_backward = nc_relu2glu_backward_##isa, .relu2_backward = nc_relu2_backward_##isa, \
	.rope_backward = nc_rope_backward_##isa, .dot = nc_dot_##isa,                               \
	.cross_entropy = nc_cross_entropy_##isa, .attention_backward = nc_attention_backward_##isa, \
	.bf16 = nc_bf16_##isa, .bf16_from_i8 = nc_bf16_from_i8_##isa,                               \
	.ternary_bf16 = nc_ternary_bf16_##isa, .quantize_ternary = nc_quantize_ternary_##isa

#define NC_FLOAT_OPS_SCALAR NC_FLOAT_OPS(scalar)
#define NC_FLOAT_OPS_AVX2 NC_FLOAT_OPS(avx2)
#define NC_FLOAT_OPS_AVX512 NC_FLOAT_OPS(avx512)
#define NC_FLOAT_OPS_NEON NC_FLOAT_OPS(neon)

#endif
