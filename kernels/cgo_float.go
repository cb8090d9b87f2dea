//go:build cgo && (amd64 || arm64)

package kernels

/*
#cgo noescape nc_call_dense_gemv
#cgo nocallback nc_call_dense_gemv
#cgo noescape nc_call_dense_gemm
#cgo nocallback nc_call_dense_gemm
#cgo noescape nc_call_dense_row
#cgo nocallback nc_call_dense_row
#cgo noescape nc_call_rmsnorm
#cgo nocallback nc_call_rmsnorm
#cgo noescape nc_call_1
#cgo nocallback nc_call_1
#cgo noescape nc_call_2
#cgo nocallback nc_call_2
#cgo noescape nc_call_a
#cgo nocallback nc_call_a
#cgo noescape nc_call_logsumexp
#cgo nocallback nc_call_logsumexp
#cgo noescape nc_call_argmax
#cgo nocallback nc_call_argmax
#cgo noescape nc_call_topk
#cgo nocallback nc_call_topk
#cgo noescape nc_call_rope
#cgo nocallback nc_call_rope
#cgo noescape nc_call_kv_store
#cgo nocallback nc_call_kv_store
#cgo noescape nc_call_attention
#cgo nocallback nc_call_attention
#include "nc.h"

static inline void nc_call_dense_gemv(const struct nc_set *s, float *dst, const uint8_t *data, int64_t rows,
                                      int64_t cols, int32_t type, const float *x, int64_t r0, int64_t r1)
{
	nc_dense w = {data, rows, cols, type};
	s->dense_gemv(dst, &w, x, r0, r1);
}

static inline void nc_call_dense_gemm(const struct nc_set *s, float *dst, int64_t ldd, const uint8_t *data,
                                      int64_t rows, int64_t cols, int32_t type, const float *x, int64_t ldx,
                                      int64_t n, int64_t r0, int64_t r1)
{
	nc_dense w = {data, rows, cols, type};
	s->dense_gemm(dst, ldd, &w, x, ldx, n, r0, r1);
}

static inline void nc_call_dense_row(const struct nc_set *s, float *dst, const uint8_t *data, int64_t rows,
                                     int64_t cols, int32_t type, int64_t r)
{
	nc_dense w = {data, rows, cols, type};
	s->dense_row(dst, &w, r);
}

static inline void nc_call_rmsnorm(const struct nc_set *s, float *dst, const float *x, const float *weight,
                                   float eps, int64_t n)
{
	s->rmsnorm(dst, x, weight, eps, n);
}

// The ops of the shapes (dst, x), (dst, x, y) and (dst, a, x), by number.
enum { NC_RELU2, NC_SIGMOID, NC_SOFTMAX, NC_ADD, NC_SWIGLU, NC_RELU2GLU, NC_AXPY, NC_SCALE, NC_SOFTCAP };

static inline void nc_call_1(const struct nc_set *s, int op, float *dst, const float *x, int64_t n)
{
	(op == NC_RELU2 ? s->relu2 : op == NC_SIGMOID ? s->sigmoid : s->softmax)(dst, x, n);
}

static inline void nc_call_2(const struct nc_set *s, int op, float *dst, const float *x, const float *y, int64_t n)
{
	(op == NC_ADD ? s->add : op == NC_SWIGLU ? s->swiglu : s->relu2glu)(dst, x, y, n);
}

static inline void nc_call_a(const struct nc_set *s, int op, float *dst, float a, const float *x, int64_t n)
{
	(op == NC_AXPY ? s->axpy : op == NC_SCALE ? s->scale : s->softcap)(dst, a, x, n);
}

static inline float nc_call_logsumexp(const struct nc_set *s, const float *x, int64_t n) { return s->logsumexp(x, n); }
static inline int64_t nc_call_argmax(const struct nc_set *s, const float *x, int64_t n) { return s->argmax(x, n); }

static inline void nc_call_topk(const struct nc_set *s, int32_t *dst, int64_t k, const float *x, int64_t n)
{
	s->topk(dst, k, x, n);
}

static inline void nc_call_rope(const struct nc_set *s, float *x, int64_t heads, int64_t head_dim, const float *c,
                                const float *sn, int64_t half, int32_t interleaved)
{
	s->rope(x, heads, head_dim, c, sn, half, interleaved);
}

static inline void nc_call_kv_store(const struct nc_set *s, uint8_t *slab, const int32_t *pages, int64_t page_bytes,
                                    int64_t layer_offset, int64_t kv_heads, int64_t head_dim, int32_t type,
                                    int64_t pos, const float *k, const float *v)
{
	nc_kv kv = {slab, pages, page_bytes, layer_offset, kv_heads, head_dim, type};
	s->kv_store(&kv, pos, k, v);
}

static inline void nc_call_attention(const struct nc_set *s, float *dst, int64_t ldd, const float *q, int64_t ldq,
                                     uint8_t *slab, const int32_t *pages, int64_t page_bytes, int64_t layer_offset,
                                     int64_t kv_heads, int64_t head_dim, int32_t type, int64_t pos, int64_t n,
                                     int64_t heads, float scale, int64_t h0, int64_t h1, uint8_t *scratch)
{
	nc_kv kv = {slab, pages, page_bytes, layer_offset, kv_heads, head_dim, type};
	nc_query a = {pos, n, heads, scale};
	s->attention(dst, ldd, q, ldq, &kv, &a, h0, h1, scratch);
}
*/
import "C"

// bindFloat replaces the float ops, which every C table has in full.
func bindFloat(s *Set, c *cset) {
	bindDense(s, c)
	bindVector(s, c)
	s.RoPE = func(x []float32, heads, headDim int, cos, sin []float32, interleaved bool) {
		checkRoPE(x, heads, headDim, cos, sin)
		var pairs C.int32_t
		if interleaved {
			pairs = 1
		}
		C.nc_call_rope(c, f32p(x), i64(heads), i64(headDim), f32p(cos), f32p(sin), i64(len(cos)), pairs)
	}
	s.KVStore = func(kv *KV, pos int, k, v []float32) {
		checkKVStore(kv, pos, k, v)
		C.nc_call_kv_store(c, u8p(kv.Slab), i32p(kv.Pages), i64(kv.PageBytes), i64(kv.LayerOffset), i64(kv.Heads), i64(kv.HeadDim), C.int32_t(kv.Type),
			i64(pos), f32p(k), f32p(v))
	}
	s.Attention = func(dst []float32, ldd int, q []float32, ldq int, kv *KV, a Query, h0, h1 int, scratch []byte) {
		checkAttention(dst, ldd, q, ldq, kv, &a, h0, h1, scratch)
		C.nc_call_attention(c, f32p(dst), i64(ldd), f32p(q), i64(ldq),
			u8p(kv.Slab), i32p(kv.Pages), i64(kv.PageBytes), i64(kv.LayerOffset), i64(kv.Heads), i64(kv.HeadDim), C.int32_t(kv.Type),
			i64(a.Pos), i64(a.N), i64(a.Heads), C.float(a.Scale), i64(h0), i64(h1), u8p(scratch))
	}
}

func bindDense(s *Set, c *cset) {
	s.DenseGEMV = func(dst []float32, w *Dense, x []float32, r0, r1 int) {
		checkDenseGEMV(dst, w, x, r0, r1)
		C.nc_call_dense_gemv(c, f32p(dst), u8p(w.Data), i64(w.Rows), i64(w.Cols), C.int32_t(w.Type), f32p(x), i64(r0), i64(r1))
	}
	s.DenseGEMM = func(dst []float32, ldd int, w *Dense, x []float32, ldx, n, r0, r1 int) {
		checkDenseGEMM(dst, ldd, w, x, ldx, n, r0, r1)
		C.nc_call_dense_gemm(c, f32p(dst), i64(ldd), u8p(w.Data), i64(w.Rows), i64(w.Cols), C.int32_t(w.Type), f32p(x), i64(ldx), i64(n), i64(r0), i64(r1))
	}
	s.DenseRow = func(dst []float32, w *Dense, r int) {
		checkDenseRow(dst, w, r)
		C.nc_call_dense_row(c, f32p(dst), u8p(w.Data), i64(w.Rows), i64(w.Cols), C.int32_t(w.Type), i64(r))
	}
}

func bindVector(s *Set, c *cset) {
	s.RMSNorm = func(dst, x, weight []float32, eps float32) {
		checkRMSNorm(dst, x, weight)
		C.nc_call_rmsnorm(c, f32p(dst), f32p(x), f32p(weight), C.float(eps), i64(len(x)))
	}
	op1 := func(name string, op C.int) func(dst, x []float32) {
		return func(dst, x []float32) {
			checkSame(name, len(dst), len(x))
			C.nc_call_1(c, op, f32p(dst), f32p(x), i64(len(x)))
		}
	}
	op2 := func(name string, op C.int) func(dst, x, y []float32) {
		return func(dst, x, y []float32) {
			checkSame(name, len(dst), len(x))
			checkSame(name, len(dst), len(y))
			C.nc_call_2(c, op, f32p(dst), f32p(x), f32p(y), i64(len(x)))
		}
	}
	opA := func(name string, op C.int) func(dst []float32, a float32, x []float32) {
		return func(dst []float32, a float32, x []float32) {
			checkSame(name, len(dst), len(x))
			C.nc_call_a(c, op, f32p(dst), C.float(a), f32p(x), i64(len(x)))
		}
	}
	s.ReLU2 = op1("ReLU2", C.NC_RELU2)
	s.Sigmoid = op1("Sigmoid", C.NC_SIGMOID)
	s.Softmax = op1("Softmax", C.NC_SOFTMAX)
	s.Add = op2("Add", C.NC_ADD)
	s.SwiGLU = op2("SwiGLU", C.NC_SWIGLU)
	s.ReLU2GLU = op2("ReLU2GLU", C.NC_RELU2GLU)
	s.Axpy = opA("Axpy", C.NC_AXPY)
	s.Scale = opA("Scale", C.NC_SCALE)
	s.Softcap = opA("Softcap", C.NC_SOFTCAP)
	s.LogSumExp = func(x []float32) float32 { return float32(C.nc_call_logsumexp(c, f32p(x), i64(len(x)))) }
	s.ArgMax = func(x []float32) int { return int(C.nc_call_argmax(c, f32p(x), i64(len(x)))) }
	s.TopK = func(dst []int32, x []float32) {
		checkTopK(dst, x)
		C.nc_call_topk(c, i32p(dst), i64(len(dst)), f32p(x), i64(len(x)))
	}
}
