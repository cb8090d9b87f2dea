//go:build cgo && (amd64 || arm64)

package kernels

/*
#cgo noescape nc_call_q8_gemv
#cgo nocallback nc_call_q8_gemv
#cgo noescape nc_call_q8_gemm
#cgo nocallback nc_call_q8_gemm
#include "nc.h"

static inline void nc_call_q8_gemv(const struct nc_set *s, float *dst, const uint8_t *data, int64_t rows,
                                   int64_t cols, const int8_t *q, const float *scale, int64_t r0, int64_t r1)
{
	nc_dense w = {data, rows, cols, NC_Q8_0};
	nc_act x = {q, scale, NULL, 1, 0, 0};
	s->q8_gemv(dst, &w, &x, r0, r1);
}

static inline void nc_call_q8_gemm(const struct nc_set *s, float *dst, int64_t ldd, const uint8_t *data,
                                   int64_t rows, int64_t cols, const int8_t *q, const float *scale, int64_t n,
                                   int64_t stride, int64_t r0, int64_t r1)
{
	nc_dense w = {data, rows, cols, NC_Q8_0};
	nc_act x = {q, scale, NULL, n, stride, 0};
	s->q8_gemm(dst, ldd, &w, &x, r0, r1);
}
*/
import "C"

func bindQ8(s *Set, c *cset) {
	s.Q8GEMV = func(dst []float32, w *Dense, x *Act, r0, r1 int) {
		checkQ8GEMV(dst, w, x, r0, r1)
		C.nc_call_q8_gemv(c, f32p(dst), u8p(w.Data), i64(w.Rows), i64(w.Cols), i8p(x.Q), f32p(x.Scale), i64(r0), i64(r1))
	}
	s.Q8GEMM = func(dst []float32, ldd int, w *Dense, x *Act, r0, r1 int) {
		checkQ8GEMM(dst, ldd, w, x, r0, r1)
		C.nc_call_q8_gemm(c, f32p(dst), i64(ldd), u8p(w.Data), i64(w.Rows), i64(w.Cols), i8p(x.Q), f32p(x.Scale), i64(x.N), i64(x.Stride), i64(r0), i64(r1))
	}
}
