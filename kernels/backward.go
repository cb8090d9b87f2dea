package kernels

// SetBackward is the part of a Set that training needs beyond the forward ops. All
// sets give the same bits, AttentionBackward with BF16 excepted.
//
// d names the gradient of a loss: dy is that of an op's result y, dx that of its
// argument x. A gradient is written, or, where "+=" is said, added. Arguments may
// share memory only where it is said, and then whole.
type SetBackward struct {
	// RMSNormBackward is the backward of y = RMSNorm(x, weight, eps): dx = its gradient,
	// and dweight += dy·x/rms(x) unless dweight is nil. dx may be dy. A nil weight
	// means all ones.
	RMSNormBackward func(dx, dweight, dy, x, weight []float32, eps float32)
	// SwiGLUBackward is the backward of y = SwiGLU(gate, up). dgate and dup may be any
	// of dy, gate and up.
	SwiGLUBackward func(dgate, dup, dy, gate, up []float32)
	// ReLU2GLUBackward is the backward of y = ReLU2GLU(gate, up). dgate and dup may be
	// any of dy, gate and up.
	ReLU2GLUBackward func(dgate, dup, dy, gate, up []float32)
	// ReLU2Backward computes dx = dy·2·max(x, 0), NaN where x is. dx may be dy or x.
	ReLU2Backward func(dx, dy, x []float32)
	// RoPEBackward turns the gradient of RoPE's result into that of its argument, in
	// place: RoPE by the opposite angles.
	RoPEBackward func(x []float32, heads, headDim int, cos, sin []float32, interleaved bool)
	// Dot is Σ x·y by FMA in the canonical order.
	Dot func(x, y []float32) float32

	// CrossEntropy is the loss of one row of logits z, and, unless dst is nil, its
	// gradient: dst = o.Scale·∂objective/∂z, as Loss defines it. dst may be z. It
	// returns the row's negative log-likelihood and log-sum-exp in nats, both of the
	// capped logits, and the entropy of its distribution. Without a target (below 0)
	// dst is zeroed and the results are 0.
	CrossEntropy func(dst, z []float32, target int32, o *Loss) (nll, lse, entropy float32)

	// AttentionBackward is the backward of causal attention over one document. It
	// recomputes the scores, 64 queries at a time. dk and dv of KV heads h0 ≤ g < h1 are
	// written, and dq of the query heads that read them; what stands between rows and
	// heads is kept. Numbers must be finite: a NaN may spread over its document.
	// scratch has at least AttentionBackwardScratch(N, HeadDim) bytes and belongs to
	// one caller.
	AttentionBackward func(dq, dk, dv, dout, q, k, v, out []float32, a *AttentionGrad, h0, h1 int, scratch []byte)

	// BF16 computes dst = a·x, rounded to float32 and then to bfloat16, halves to even.
	BF16 func(dst []uint16, a float32, x []float32)
	// BF16FromI8 converts, exactly.
	BF16FromI8 func(dst []uint16, q []int8)
	// TernaryBF16 writes rows r0 ≤ r < r1 of w in bfloat16: dst[(r-r0)*ldd+c] = (t·s)·Gain,
	// rounded to float32 and then to bfloat16.
	TernaryBF16 func(dst []uint16, ldd int, w *Ternary, r0, r1 int)
	// QuantizeTernary quantises rows r0 ≤ r < r1 of x [Rows][Cols] into the tiles and
	// scales of w: s = f16(mean|x|) of each group, at least 2^-14, the mean in the
	// canonical order, and t = clamp(roundHalfToEven(x/s), -1, 1). r0 is a multiple of
	// 16, r1 too or Rows. It returns -1, or r·Groups+g for the first group g of a row r
	// whose mean half precision cannot hold; what w then holds in the 16 rows around it
	// and in those after it is of no use.
	QuantizeTernary func(w *Ternary, x []float32, r0, r1 int) int
}

// backwardGo fills in the backward ops of the reference set.
func backwardGo(s *Set) {
	s.RMSNormBackward = goRMSNormBackward
	s.SwiGLUBackward = goSwiGLUBackward
	s.ReLU2GLUBackward = goReLU2GLUBackward
	s.ReLU2Backward = goReLU2Backward
	s.RoPEBackward = goRoPEBackward
	s.Dot = goDot
	s.CrossEntropy = goCrossEntropy
	s.AttentionBackward = goAttentionBackward
	s.BF16 = goBF16
	s.BF16FromI8 = goBF16FromI8
	s.TernaryBF16 = goTernaryBF16
	s.QuantizeTernary = goQuantizeTernary
}

func checkRMSNormBackward(dx, dweight, dy, x, weight []float32) {
	checkSame("RMSNormBackward", len(dx), len(x))
	checkSame("RMSNormBackward", len(dy), len(x))
	if dweight != nil {
		checkSame("RMSNormBackward", len(dweight), len(x))
	}
	if weight != nil {
		checkSame("RMSNormBackward", len(weight), len(x))
	}
}

// goRMSNormBackward: with r = 1/sqrt(Σx²/n + eps) and g = dy·weight,
//
//	dx = r·(g - x·r²·Σ(g·x)/n)      dweight += dy·(x·r)
//
// the sums in the canonical order by FMA.
func goRMSNormBackward(dx, dweight, dy, x, weight []float32, eps float32) {
	checkRMSNormBackward(dx, dweight, dy, x, weight)
	grad := func(i int) float32 {
		if weight == nil {
			return dy[i]
		}
		return dy[i] * weight[i]
	}
	var squares, dot lanes
	for i, v := range x {
		squares[i&15] = FMA32(v, v, squares[i&15])
		dot[i&15] = FMA32(grad(i), v, dot[i&15])
	}
	squares.pad(len(x))
	dot.pad(len(x))
	n := float32(len(x))
	inv := 1 / sqrt32(squares.sum()/n+eps)
	c := -float32(float32(dot.sum()/n*inv) * inv)
	for i, v := range x {
		g := grad(i)
		if dweight != nil {
			dweight[i] = FMA32(dy[i], float32(v*inv), dweight[i])
		}
		dx[i] = FMA32(c, v, g) * inv
	}
}

func checkGLUBackward(op string, dgate, dup, dy, gate, up []float32) {
	for _, v := range [][]float32{dgate, dup, dy, up} {
		checkSame(op, len(v), len(gate))
	}
}

// goSwiGLUBackward: with σ = 1/(1+exp(-gate)),
//
//	dup = dy·(gate·σ)      dgate = (dy·up)·(σ·(1 + gate·(1-σ)))
func goSwiGLUBackward(dgate, dup, dy, gate, up []float32) {
	checkGLUBackward("SwiGLUBackward", dgate, dup, dy, gate, up)
	for i := range gate {
		d, g, u := dy[i], gate[i], up[i]
		e := sigmoid32(g)
		dup[i] = d * float32(g*e)
		dgate[i] = float32(d*u) * float32(e*FMA32(g, 1-e, 1))
	}
}

// goReLU2GLUBackward: with r = max(gate, 0), dup = dy·r² and dgate = (dy·up)·2r.
func goReLU2GLUBackward(dgate, dup, dy, gate, up []float32) {
	checkGLUBackward("ReLU2GLUBackward", dgate, dup, dy, gate, up)
	for i := range gate {
		d, r, u := dy[i], relu32(gate[i]), up[i]
		dup[i] = d * float32(r*r)
		dgate[i] = float32(d*u) * (r + r)
	}
}

func goReLU2Backward(dx, dy, x []float32) {
	checkSame("ReLU2Backward", len(dx), len(x))
	checkSame("ReLU2Backward", len(dy), len(x))
	for i, v := range x {
		v = relu32(v)
		dx[i] = dy[i] * (v + v)
	}
}

func goDot(x, y []float32) float32 {
	checkSame("Dot", len(x), len(y))
	var s lanes
	for i, v := range x {
		s[i&15] = FMA32(v, y[i], s[i&15])
	}
	s.pad(len(x))
	return s.sum()
}
