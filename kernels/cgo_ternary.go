//go:build cgo && (amd64 || arm64)

package kernels

/*
#include "nc.h"

static inline float nc_call_quantize(const struct nc_set *s, int8_t *q, int64_t qlen, int32_t *sums,
                                     const float *x, int64_t n, int64_t group)
{
	return s->quantize(q, qlen, sums, x, n, group);
}

static inline void nc_call_ternary_gemv(const struct nc_set *s, float *dst, const uint8_t *tiles,
                                        const uint16_t *scales, int64_t rows, int64_t cols,
                                        int64_t group, float gain, const int8_t *q,
                                        const float *scale, const int32_t *sums, int64_t stride,
                                        int64_t groups, int64_t r0, int64_t r1)
{
	nc_ternary w = {tiles, scales, rows, cols, group, gain};
	nc_act x = {q, scale, sums, 1, stride, groups};
	s->ternary_gemv(dst, &w, &x, r0, r1);
}

static inline void nc_call_ternary_gemm(const struct nc_set *s, float *dst, int64_t ldd,
                                        const uint8_t *tiles, const uint16_t *scales, int64_t rows,
                                        int64_t cols, int64_t group, float gain, const int8_t *q,
                                        const float *scale, const int32_t *sums, int64_t n,
                                        int64_t stride, int64_t groups, int64_t r0, int64_t r1,
                                        uint8_t *scratch)
{
	nc_ternary w = {tiles, scales, rows, cols, group, gain};
	nc_act x = {q, scale, sums, n, stride, groups};
	s->ternary_gemm(dst, ldd, &w, &x, r0, r1, scratch);
}
*/
import "C"

func bindTernary(s *Set, c *cset) {
	if c.quantize != nil {
		s.Quantize = func(q []int8, sums []int32, x []float32, group int) float32 {
			checkQuantize(q, sums, x, group)
			return float32(C.nc_call_quantize(c, i8p(q), i64(len(q)), i32p(sums), f32p(x), i64(len(x)), i64(group)))
		}
	}
	if c.ternary_gemv != nil {
		s.TernaryGEMV = func(dst []float32, w *Ternary, x *Act, r0, r1 int) {
			checkTernary(w, x, r0, r1)
			checkLen("dst", len(dst), w.Rows)
			C.nc_call_ternary_gemv(c, f32p(dst), u8p(w.Tiles), u16p(w.Scales), i64(w.Rows), i64(w.Cols), i64(w.Group), C.float(w.Gain),
				i8p(x.Q), f32p(x.Scale), i32p(x.Sums), i64(x.Stride), i64(w.Groups()), i64(r0), i64(r1))
		}
	}
	if c.ternary_gemm != nil {
		s.TernaryGEMM = func(dst []float32, ldd int, w *Ternary, x *Act, r0, r1 int, scratch []byte) {
			checkTernary(w, x, r0, r1)
			checkGEMM(dst, ldd, w, x, scratch)
			C.nc_call_ternary_gemm(c, f32p(dst), i64(ldd), u8p(w.Tiles), u16p(w.Scales), i64(w.Rows), i64(w.Cols), i64(w.Group), C.float(w.Gain),
				i8p(x.Q), f32p(x.Scale), i32p(x.Sums), i64(x.N), i64(x.Stride), i64(w.Groups()), i64(r0), i64(r1), u8p(scratch))
		}
	}
}
