//go:build cgo && (amd64 || arm64)

package kernels

/*
#cgo noescape nc_call_matmul
#cgo nocallback nc_call_matmul
#include "nc.h"

static inline void nc_call_matmul(nc_matmul_fn f, float *dst, int64_t ldd, const uint8_t *a, int64_t lda,
                                  int32_t atype, int32_t aacross, const uint8_t *b, int64_t ldb,
                                  int32_t btype, int32_t bacross, int64_t n, int64_t k, int64_t r0,
                                  int64_t r1, int32_t add, uint8_t *scratch)
{
	nc_operand x = {a, lda, atype, aacross}, y = {b, ldb, btype, bacross};
	nc_product p = {n, k, r0, r1, add};
	f(dst, ldd, &x, &y, &p, scratch);
}
*/
import "C"

import "unsafe"

func bindMatMul(s *Set, c *cset) {
	s.MatMul = cMatMul("MatMul", c.matmul, false)
	s.MatMulBF16 = cMatMul("MatMulBF16", c.matmul, true)
}

// cMatMul calls f; with round, float32 operands are rounded to bfloat16.
func cMatMul(op string, f C.nc_matmul_fn, round bool) func([]float32, int, Operand, Operand, Product, int, int, []byte) {
	return func(dst []float32, ldd int, a, b Operand, p Product, r0, r1 int, scratch []byte) {
		checkMatMul(op, dst, ldd, &a, &b, &p, r0, r1, scratch)
		if r0 == r1 || p.N == 0 {
			return
		}
		var add C.int32_t
		if p.Add {
			add = 1
		}
		pa, ta := a.data(round)
		pb, tb := b.data(round)
		C.nc_call_matmul(f, f32p(dst), i64(ldd), pa, i64(a.Stride), ta, across(a.Trans), pb, i64(b.Stride), tb, across(!b.Trans),
			i64(p.N), i64(p.K), i64(r0), i64(r1), add, u8p(scratch))
	}
}

// data is the operand's memory and type.
func (o *Operand) data(round bool) (*C.uint8_t, C.int32_t) {
	switch {
	case o.BF16 != nil:
		return (*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(o.BF16))), C.NC_BF16
	case round:
		return (*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(o.F32))), C.NC_F32_ROUNDED
	}
	return (*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(o.F32))), C.NC_F32
}

// across is whether the elements of one k stand side by side.
func across(yes bool) C.int32_t {
	if yes {
		return 1
	}
	return 0
}
