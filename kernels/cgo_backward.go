//go:build cgo && (amd64 || arm64)

package kernels

/*
#cgo noescape nc_call_rmsnorm_backward
#cgo nocallback nc_call_rmsnorm_backward
#cgo noescape nc_call_glu_backward
#cgo nocallback nc_call_glu_backward
#cgo noescape nc_call_relu2_backward
#cgo nocallback nc_call_relu2_backward
#cgo noescape nc_call_rope_backward
#cgo nocallback nc_call_rope_backward
#cgo noescape nc_call_dot
#cgo nocallback nc_call_dot
#cgo noescape nc_call_cross_entropy
#cgo nocallback nc_call_cross_entropy
#cgo noescape nc_call_attention_backward
#cgo nocallback nc_call_attention_backward
#cgo noescape nc_call_bf16
#cgo nocallback nc_call_bf16
#cgo noescape nc_call_bf16_from_i8
#cgo nocallback nc_call_bf16_from_i8
#cgo noescape nc_call_ternary_bf16
#cgo nocallback nc_call_ternary_bf16
#cgo noescape nc_call_quantize_ternary
#cgo nocallback nc_call_quantize_ternary
#include "nc.h"

static inline void nc_call_rmsnorm_backward(const struct nc_set *s, float *dx, float *dweight, const float *dy,
                                            const float *x, const float *weight, float eps, int64_t n)
{
	s->rmsnorm_backward(dx, dweight, dy, x, weight, eps, n);
}

static inline void nc_call_glu_backward(const struct nc_set *s, int swiglu, float *dgate, float *dup, const float *dy,
                                        const float *gate, const float *up, int64_t n)
{
	(swiglu ? s->swiglu_backward : s->relu2glu_backward)(dgate, dup, dy, gate, up, n);
}

static inline void nc_call_relu2_backward(const struct nc_set *s, float *dx, const float *dy, const float *x, int64_t n)
{
	s->relu2_backward(dx, dy, x, n);
}

static inline void nc_call_rope_backward(const struct nc_set *s, float *x, int64_t heads, int64_t head_dim,
                                         const float *c, const float *sn, int64_t half, int32_t interleaved)
{
	s->rope_backward(x, heads, head_dim, c, sn, half, interleaved);
}

static inline float nc_call_dot(const struct nc_set *s, const float *x, const float *y, int64_t n)
{
	return s->dot(x, y, n);
}

typedef struct { float nll, lse, entropy; } nc_row_loss;

static inline nc_row_loss nc_call_cross_entropy(const struct nc_set *s, float *dst, const float *z, int64_t n,
                                                int64_t target, float scale, float cap, float zw, float entropy,
                                                float smoothing)
{
	nc_loss o = {scale, cap, zw, entropy, smoothing};
	float out[3];
	s->cross_entropy(out, dst, z, n, target, &o);
	nc_row_loss r = {out[0], out[1], out[2]};
	return r;
}

static inline void nc_call_attention_backward(nc_attention_backward_fn f, float *dq, float *dk, float *dv,
                                              const float *dout, const float *q, const float *k, const float *v,
                                              const float *out, int64_t n, int64_t heads, int64_t kv_heads,
                                              int64_t head_dim, int64_t ldq, int64_t ldk, int64_t ldv, int64_t ldo,
                                              float scale, int64_t h0, int64_t h1, uint8_t *scratch)
{
	nc_attention_grad a = {n, heads, kv_heads, head_dim, ldq, ldk, ldv, ldo, scale};
	f(dq, dk, dv, dout, q, k, v, out, &a, h0, h1, scratch);
}

static inline void nc_call_bf16(const struct nc_set *s, uint16_t *dst, float a, const float *x, int64_t n)
{
	s->bf16(dst, a, x, n);
}

static inline void nc_call_bf16_from_i8(const struct nc_set *s, uint16_t *dst, const int8_t *q, int64_t n)
{
	s->bf16_from_i8(dst, q, n);
}

static inline void nc_call_ternary_bf16(const struct nc_set *s, uint16_t *dst, int64_t ldd, const uint8_t *tiles,
                                        const uint16_t *scales, int64_t rows, int64_t cols, int64_t group, float gain,
                                        int64_t r0, int64_t r1)
{
	nc_ternary w = {tiles, scales, rows, cols, group, gain};
	s->ternary_bf16(dst, ldd, &w, r0, r1);
}

static inline int64_t nc_call_quantize_ternary(const struct nc_set *s, uint8_t *tiles, uint16_t *scales,
                                               const float *x, int64_t cols, int64_t group, int64_t r0, int64_t r1)
{
	return s->quantize_ternary(tiles, scales, x, cols, group, r0, r1);
}
*/
import "C"

// bindBackward replaces the backward ops, which every C table has in full.
func bindBackward(s *Set, c *cset) {
	bindVectorBackward(s, c)
	bindLatent(s, c)
	s.CrossEntropy = func(dst, z []float32, target int32, o *Loss) (nll, lse, entropy float32) {
		checkCrossEntropy(dst, z, target)
		if target < 0 {
			clear(dst)
			return 0, 0, 0
		}
		r := C.nc_call_cross_entropy(c, f32p(dst), f32p(z), i64(len(z)), C.int64_t(target),
			C.float(o.Scale), C.float(o.Cap), C.float(o.Z), C.float(o.Entropy), C.float(o.Smoothing))
		return float32(r.nll), float32(r.lse), float32(r.entropy)
	}
	s.AttentionBackward = func(dq, dk, dv, dout, q, k, v, out []float32, a *AttentionGrad, h0, h1 int, scratch []byte) {
		cAttentionBackward(c.attention_backward, dq, dk, dv, dout, q, k, v, out, a, h0, h1, scratch)
	}
}

func cAttentionBackward(f C.nc_attention_backward_fn, dq, dk, dv, dout, q, k, v, out []float32, a *AttentionGrad, h0, h1 int, scratch []byte) {
	checkAttentionBackward(dq, dk, dv, dout, q, k, v, out, a, h0, h1, scratch)
	if a.N == 0 {
		return
	}
	C.nc_call_attention_backward(f, f32p(dq), f32p(dk), f32p(dv), f32p(dout), f32p(q), f32p(k), f32p(v), f32p(out),
		i64(a.N), i64(a.Heads), i64(a.KVHeads), i64(a.HeadDim), i64(a.LDQ), i64(a.LDK), i64(a.LDV), i64(a.LDO),
		C.float(a.Scale), i64(h0), i64(h1), u8p(scratch))
}

// bindAttentionBF16 makes f the op where products of bfloat16 are allowed.
func bindAttentionBF16(s *Set, f C.nc_attention_backward_fn) {
	exact := s.AttentionBackward
	s.AttentionBackward = func(dq, dk, dv, dout, q, k, v, out []float32, a *AttentionGrad, h0, h1 int, scratch []byte) {
		if !a.BF16 {
			exact(dq, dk, dv, dout, q, k, v, out, a, h0, h1, scratch)
			return
		}
		cAttentionBackward(f, dq, dk, dv, dout, q, k, v, out, a, h0, h1, scratch)
	}
}

func bindVectorBackward(s *Set, c *cset) {
	s.RMSNormBackward = func(dx, dweight, dy, x, weight []float32, eps float32) {
		checkRMSNormBackward(dx, dweight, dy, x, weight)
		C.nc_call_rmsnorm_backward(c, f32p(dx), f32p(dweight), f32p(dy), f32p(x), f32p(weight), C.float(eps), i64(len(x)))
	}
	s.SwiGLUBackward = func(dgate, dup, dy, gate, up []float32) {
		checkGLUBackward("SwiGLUBackward", dgate, dup, dy, gate, up)
		C.nc_call_glu_backward(c, 1, f32p(dgate), f32p(dup), f32p(dy), f32p(gate), f32p(up), i64(len(gate)))
	}
	s.ReLU2GLUBackward = func(dgate, dup, dy, gate, up []float32) {
		checkGLUBackward("ReLU2GLUBackward", dgate, dup, dy, gate, up)
		C.nc_call_glu_backward(c, 0, f32p(dgate), f32p(dup), f32p(dy), f32p(gate), f32p(up), i64(len(gate)))
	}
	s.ReLU2Backward = func(dx, dy, x []float32) {
		checkSame("ReLU2Backward", len(dx), len(x))
		checkSame("ReLU2Backward", len(dy), len(x))
		C.nc_call_relu2_backward(c, f32p(dx), f32p(dy), f32p(x), i64(len(x)))
	}
	s.RoPEBackward = func(x []float32, heads, headDim int, cos, sin []float32, interleaved bool) {
		checkRoPE(x, heads, headDim, cos, sin)
		var pairs C.int32_t
		if interleaved {
			pairs = 1
		}
		C.nc_call_rope_backward(c, f32p(x), i64(heads), i64(headDim), f32p(cos), f32p(sin), i64(len(cos)), pairs)
	}
	s.Dot = func(x, y []float32) float32 {
		checkSame("Dot", len(x), len(y))
		return float32(C.nc_call_dot(c, f32p(x), f32p(y), i64(len(x))))
	}
}

func bindLatent(s *Set, c *cset) {
	s.BF16 = func(dst []uint16, a float32, x []float32) {
		checkSame("BF16", len(dst), len(x))
		C.nc_call_bf16(c, u16p(dst), C.float(a), f32p(x), i64(len(x)))
	}
	s.BF16FromI8 = func(dst []uint16, q []int8) {
		checkSame("BF16FromI8", len(dst), len(q))
		C.nc_call_bf16_from_i8(c, u16p(dst), i8p(q), i64(len(q)))
	}
	s.TernaryBF16 = func(dst []uint16, ldd int, w *Ternary, r0, r1 int) {
		checkTernaryBF16(dst, ldd, w, r0, r1)
		C.nc_call_ternary_bf16(c, u16p(dst), i64(ldd), u8p(w.Tiles), u16p(w.Scales), i64(w.Rows), i64(w.Cols), i64(w.Group), C.float(w.Gain), i64(r0), i64(r1))
	}
	s.QuantizeTernary = func(w *Ternary, x []float32, r0, r1 int) int {
		checkQuantizeTernary(w, x, r0, r1)
		return int(C.nc_call_quantize_ternary(c, u8p(w.Tiles), u16p(w.Scales), f32p(x), i64(w.Cols), i64(w.Group), i64(r0), i64(r1)))
	}
}
