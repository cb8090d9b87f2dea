/* nc.h: the C side of kernels.Set, one struct of function pointers per variant.
 *
 * Conventions, for whoever adds a kernel or an instruction set:
 *
 * - An op is a member of struct nc_set; set.go defines what it computes. Its
 *   implementation for an ISA is nc_<op>_<isa> (nc_ternary_gemv_avx2), declared by
 *   one of the X-lists below, so sets.c is a table. A member that is NULL keeps
 *   the Go reference: a variant may be incomplete and still be right.
 * - ISAs of ternary ops: scalar avx2 avxvnni avx512vnni256 avx512vnni neon.
 *   ISAs of Q8 ops:      scalar avx2 avxvnni avx512vnni neon.
 *   ISAs of float ops:   scalar avx2 avx512 neon.
 *   A set is a pair of those (sets.c): "avxvnni" takes the float ops of avx2.
 * - One source file per ISA and family: ternary_avx2.c, dense_avx2.c. The whole
 *   file stands under #if defined(__x86_64__) or __aarch64__, and every function
 *   carries its target attribute (NC_AVX2 ...), so one object serves every CPU
 *   and no file needs compiler flags of its own. File names never end in
 *   _amd64 or _arm64.
 * - Every .c file includes nc.h first. It switches contraction off: a product
 *   and a sum are rounded twice unless the source says fma. (gcc takes that from
 *   -std=c11, clang from the pragma.)
 * - Go passes flat arguments; static inline callers in the preambles of
 *   cgo_*.go build the structs below and call through the member. Go has checked
 *   all lengths: C code does not check them again.
 * - Nothing here allocates, locks, or keeps state. Reads and writes stay inside
 *   the slices, even where a vector would reach past them.
 */
#ifndef NANOCHAT_KERNELS_NC_H
#define NANOCHAT_KERNELS_NC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#define NC_UNROLL _Pragma("clang loop unroll(full)")
#define NC_NOUNROLL _Pragma("clang loop unroll(disable)")
#else
#define NC_UNROLL _Pragma("GCC unroll 64")
#define NC_NOUNROLL _Pragma("GCC unroll 1")
#endif

#define NC_INLINE static inline __attribute__((always_inline))

/* Target attributes. */
#define NC_AVX2 __attribute__((target("avx2,fma,f16c")))
#define NC_AVXVNNI __attribute__((target("avx2,fma,f16c,avxvnni")))
#define NC_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define NC_AVX512VNNI \
	__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#if defined(__clang__)
#define NC_NEON __attribute__((target("dotprod")))
#else
#define NC_NEON __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

enum { NC_TILE = 16, NC_PAGE = 64 };

/* How far a matrix-vector product prefetches ahead in its stream of weights, in
 * bytes: what DRAM needs at the rate of one core. */
enum { NC_PREFETCH = 4096 };
enum { NC_F32 = 0, NC_F16 = 1, NC_Q8_0 = 8, NC_BF16 = 30 };
enum { NC_F32_ROUNDED = -1 }; /* of an nc_operand: float32, rounded to bfloat16 when read */
enum { NC_KVF16 = 0, NC_KVI8 = 1 };

/* The structs mirror kernels.Ternary, Act, Dense, KV and Query. */
typedef struct {
	const uint8_t *tiles;
	const uint16_t *scales;
	int64_t rows, cols, group;
	float gain;
} nc_ternary;

typedef struct {
	const int8_t *q;
	const float *scale;
	const int32_t *sums; /* [n][groups] */
	int64_t n, stride, groups;
} nc_act;

typedef struct {
	const uint8_t *data;
	int64_t rows, cols;
	int32_t type;
} nc_dense;

typedef struct {
	uint8_t *slab;
	const int32_t *pages;
	int64_t page_bytes, layer_offset, heads, head_dim;
	int32_t type;
} nc_kv;

typedef struct {
	int64_t pos, n, heads;
	float scale;
} nc_query;

/* One factor of a product. across: the elements of one k stand side by side. */
typedef struct {
	const void *data;
	int64_t stride;
	int32_t type, across;
} nc_operand;

/* Rows r0..r1 of a product with n columns; add: to what dst holds. */
typedef struct {
	int64_t n, k, r0, r1;
	int32_t add;
} nc_product;

/* kernels.Loss and AttentionGrad */
typedef struct {
	float scale, cap, z, entropy, smoothing;
} nc_loss;

typedef struct {
	int64_t n, heads, kv_heads, head_dim, ldq, ldk, ldv, ldo;
	float scale;
} nc_attention_grad;

typedef void (*nc_attention_backward_fn)(float *dq, float *dk, float *dv, const float *dout,
                                         const float *q, const float *k, const float *v,
                                         const float *out, const nc_attention_grad *a, int64_t h0,
                                         int64_t h1, uint8_t *scratch);

typedef void (*nc_matmul_fn)(float *dst, int64_t ldd, const nc_operand *a, const nc_operand *b,
                             const nc_product *p, uint8_t *scratch);

struct nc_set {
	float (*quantize)(int8_t *q, int64_t qlen, int32_t *sums, const float *x, int64_t n,
	                  int64_t group);
	void (*ternary_gemv)(float *dst, const nc_ternary *w, const nc_act *x, int64_t r0, int64_t r1);
	void (*ternary_gemm)(float *dst, int64_t ldd, const nc_ternary *w, const nc_act *x, int64_t r0,
	                     int64_t r1, uint8_t *scratch);

	void (*dense_gemv)(float *dst, const nc_dense *w, const float *x, int64_t r0, int64_t r1);
	void (*dense_gemm)(float *dst, int64_t ldd, const nc_dense *w, const float *x, int64_t ldx,
	                   int64_t n, int64_t r0, int64_t r1);
	void (*dense_row)(float *dst, const nc_dense *w, int64_t r);

	void (*q8_gemv)(float *dst, const nc_dense *w, const nc_act *x, int64_t r0, int64_t r1);
	void (*q8_gemm)(float *dst, int64_t ldd, const nc_dense *w, const nc_act *x, int64_t r0,
	                int64_t r1);

	void (*rmsnorm)(float *dst, const float *x, const float *weight, float eps, int64_t n);
	void (*add)(float *dst, const float *x, const float *y, int64_t n);
	void (*axpy)(float *dst, float a, const float *x, int64_t n);
	void (*scale)(float *dst, float a, const float *x, int64_t n);
	void (*swiglu)(float *dst, const float *gate, const float *up, int64_t n);
	void (*relu2glu)(float *dst, const float *gate, const float *up, int64_t n);
	void (*relu2)(float *dst, const float *x, int64_t n);
	void (*sigmoid)(float *dst, const float *x, int64_t n);
	void (*softcap)(float *dst, float c, const float *x, int64_t n);
	void (*softmax)(float *dst, const float *x, int64_t n);
	float (*logsumexp)(const float *x, int64_t n);
	int64_t (*argmax)(const float *x, int64_t n);
	void (*topk)(int32_t *dst, int64_t k, const float *x, int64_t n);

	void (*rope)(float *x, int64_t heads, int64_t head_dim, const float *cos, const float *sin,
	             int64_t half, int32_t interleaved);
	void (*kv_store)(const nc_kv *kv, int64_t pos, const float *k, const float *v);
	void (*attention)(float *dst, int64_t ldd, const float *q, int64_t ldq, const nc_kv *kv,
	                  const nc_query *a, int64_t h0, int64_t h1, uint8_t *scratch);

	nc_matmul_fn matmul;

	void (*rmsnorm_backward)(float *dx, float *dweight, const float *dy, const float *x,
	                         const float *weight, float eps, int64_t n);
	void (*swiglu_backward)(float *dgate, float *dup, const float *dy, const float *gate,
	                        const float *up, int64_t n);
	void (*relu2glu_backward)(float *dgate, float *dup, const float *dy, const float *gate,
	                          const float *up, int64_t n);
	void (*relu2_backward)(float *dx, const float *dy, const float *x, int64_t n);
	void (*rope_backward)(float *x, int64_t heads, int64_t head_dim, const float *cos,
	                      const float *sin, int64_t half, int32_t interleaved);
	float (*dot)(const float *x, const float *y, int64_t n);
	/* out: nll, lse, entropy */
	void (*cross_entropy)(float *out, float *dst, const float *z, int64_t n, int64_t target,
	                      const nc_loss *o);
	nc_attention_backward_fn attention_backward;
	void (*bf16)(uint16_t *dst, float a, const float *x, int64_t n);
	void (*bf16_from_i8)(uint16_t *dst, const int8_t *q, int64_t n);
	void (*ternary_bf16)(uint16_t *dst, int64_t ldd, const nc_ternary *w, int64_t r0, int64_t r1);
	/* -1, or row*groups+group of the first scale that is not finite */
	int64_t (*quantize_ternary)(uint8_t *tiles, uint16_t *scales, const float *x, int64_t cols,
	                            int64_t group, int64_t r0, int64_t r1);
};

/* Initialisers of the members of a family; the includer of both is sets.c. */
#define NC_TERNARY_OPS(isa)                                               \
	.quantize = nc_quantize_##isa, .ternary_gemv = nc_ternary_gemv_##isa, \
	.ternary_gemm = nc_ternary_gemm_##isa

#define NC_DECLARE_TERNARY(isa)                                                                \
	float nc_quantize_##isa(int8_t *q, int64_t qlen, int32_t *sums, const float *x, int64_t n, \
	                        int64_t group);                                                    \
	void nc_ternary_gemv_##isa(float *dst, const nc_ternary *w, const nc_act *x, int64_t r0,   \
	                           int64_t r1);                                                    \
	void nc_ternary_gemm_##isa(float *dst, int64_t ldd, const nc_ternary *w, const nc_act *x,  \
	                           int64_t r0, int64_t r1, uint8_t *scratch);

NC_DECLARE_TERNARY(scalar)
NC_DECLARE_TERNARY(avx2)
NC_DECLARE_TERNARY(avxvnni)
NC_DECLARE_TERNARY(avx512vnni256)
NC_DECLARE_TERNARY(avx512vnni)
NC_DECLARE_TERNARY(neon)

#define NC_Q8_OPS(isa) .q8_gemv = nc_q8_gemv_##isa, .q8_gemm = nc_q8_gemm_##isa

#define NC_DECLARE_Q8(isa)                                                                         \
	void nc_q8_gemv_##isa(float *dst, const nc_dense *w, const nc_act *x, int64_t r0, int64_t r1); \
	void nc_q8_gemm_##isa(float *dst, int64_t ldd, const nc_dense *w, const nc_act *x, int64_t r0, \
	                      int64_t r1);

NC_DECLARE_Q8(scalar)
NC_DECLARE_Q8(avx2)
NC_DECLARE_Q8(avxvnni)
NC_DECLARE_Q8(avx512vnni)
NC_DECLARE_Q8(neon)

/* The end of every quantize: the scale a = max|x|/127 from the bits of max|x|. Where it is
 * zero or not finite, q and sums become zero and the result is 0. */
NC_INLINE int nc_quantize_scale(float *a, uint32_t top, int8_t *q, int64_t qlen, int32_t *sums,
                                int64_t n, int64_t group)
{
	memcpy(a, &top, 4);
	*a /= 127;
	if (*a != 0 && *a - *a == 0)
		return 1;
	memset(q, 0, (size_t)qlen);
	memset(sums, 0, (size_t)((n + group - 1) / group) * sizeof *sums);
	return 0;
}

/* nc_f16_to_f32 is exact for every half-precision value. */
NC_INLINE float nc_f16_to_f32(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = (h >> 10) & 31, man = h & 1023, bits;
	if (exp == 31)
		bits = 0x7f800000 | man << 13 | (man ? 0x400000 : 0);
	else if (exp)
		bits = (exp + 112) << 23 | man << 13;
	else { /* subnormal: man * 2^-24, exact in f32 */
		float f = (float)man * 0x1p-24f;
		memcpy(&bits, &f, 4);
	}
	bits |= sign;
	float f;
	memcpy(&f, &bits, 4);
	return f;
}

#endif
