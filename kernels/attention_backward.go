package kernels

import "fmt"

// AttentionGrad describes the backward of causal attention over one document of N
// tokens: query i sees keys 0 to i, out[i] = Σ_t p[i,t]·v[t], p = softmax(Scale·q·k).
//
// Row i of q and dq begins at i*LDQ, of k and dk at i*LDK, of v and dv at i*LDV, of
// out and dout at i*LDO. In it, head h of Heads is at h*HeadDim, and KV head g of
// KVHeads (a divisor of Heads) at g*HeadDim; query head h reads KV head
// h/(Heads/KVHeads). out is what the forward gave for q, k and v.
type AttentionGrad struct {
	N, Heads, KVHeads, HeadDim int
	Scale                      float32
	LDQ, LDK, LDV, LDO         int
	// BF16 allows every product but the scores to round its factors to bfloat16, where
	// the CPU has a dot product of them. The bits then differ from those of other sets.
	BF16 bool
}

// backwardRows is the number of queries, and of keys, that AttentionBackward takes
// at a time.
const backwardRows = 64

// AttentionBackwardScratch is the size in bytes of AttentionBackward's scratch for a
// document of n tokens: keys and values of one head transposed, its keys, and the
// sums of dk and dv, all in blocks of 64 positions; the scores of 64 queries with every
// key; seven blocks of 64 queries or keys and their scores; and room to align.
func AttentionBackwardScratch(n, headDim int) int {
	d := (headDim + 15) &^ 15
	n = (n + backwardRows - 1) / backwardRows * backwardRows
	return 4*(n*(5*d+backwardRows)+7*backwardRows*max(d, backwardRows)) + 64
}

func checkAttentionBackward(dq, dk, dv, dout, q, k, v, out []float32, a *AttentionGrad, h0, h1 int, scratch []byte) {
	const op = "AttentionBackward"
	if a.N < 0 || a.KVHeads <= 0 || a.Heads <= 0 || a.Heads%a.KVHeads != 0 || a.HeadDim <= 0 || h0 < 0 || h0 > h1 || h1 > a.KVHeads {
		panic(fmt.Sprintf("kernels: %s of %d tokens, KV heads %d to %d of %d under %d heads of %d", op, a.N, h0, h1, a.KVHeads, a.Heads, a.HeadDim))
	}
	share, d := a.Heads/a.KVHeads, a.HeadDim
	checkRows(op, "dq", len(dq), a.LDQ, a.N, h1*share*d)
	checkRows(op, "q", len(q), a.LDQ, a.N, h1*share*d)
	checkRows(op, "dk", len(dk), a.LDK, a.N, h1*d)
	checkRows(op, "k", len(k), a.LDK, a.N, h1*d)
	checkRows(op, "dv", len(dv), a.LDV, a.N, h1*d)
	checkRows(op, "v", len(v), a.LDV, a.N, h1*d)
	checkRows(op, "dout", len(dout), a.LDO, a.N, h1*share*d)
	checkRows(op, "out", len(out), a.LDO, a.N, h1*share*d)
	checkLen("scratch", len(scratch), AttentionBackwardScratch(a.N, d))
}

// goAttentionBackward, for each KV head, goes over its query heads and over the
// queries, ascending. For query q with gradient do, output o and keys t = 0..i:
//
//	s[t]  = Scale·Σ q·k[t], the sum by FMA over ascending elements
//	e[t]  = exp(s[t]-maxOf(s)); p[t] = e[t]·(1/canonical sum of e)
//	D     = Dot(do, o)
//	ds[t] = (p[t]·(Σ do·v[t] - D))·Scale, the sum by FMA over ascending elements
//	dq    = Σ ds[t]·k[t] by FMA over ascending t
//	dk[t] = fma(ds[t], q, dk[t]); dv[t] = fma(p[t], do, dv[t])
//
// from dk = dv = 0.
func goAttentionBackward(dq, dk, dv, dout, q, k, v, out []float32, a *AttentionGrad, h0, h1 int, scratch []byte) {
	checkAttentionBackward(dq, dk, dv, dout, q, k, v, out, a, h0, h1, scratch)
	d, share := a.HeadDim, a.Heads/a.KVHeads
	p := f32View(scratch)[:a.N]
	for g := h0; g < h1; g++ {
		for t := range a.N {
			clear(dk[t*a.LDK+g*d:][:d])
			clear(dv[t*a.LDV+g*d:][:d])
		}
		for h := g * share; h < (g+1)*share; h++ {
			for i := range a.N {
				at, o := i*a.LDQ+h*d, i*a.LDO+h*d
				goAttendBackward(dq[at:at+d], dk[g*d:], dv[g*d:], dout[o:o+d], q[at:at+d], k[g*d:], v[g*d:], out[o:o+d], a, p[:i+1])
			}
		}
	}
}

// goAttendBackward is one query of one head over len(p) keys; k, v, dk and dv begin
// at its KV head.
func goAttendBackward(dq, dk, dv, dout, q, k, v, out []float32, a *AttentionGrad, p []float32) {
	for t := range p {
		p[t] = float32(ascendingDot(q, k[t*a.LDK:]) * a.Scale)
	}
	m := maxOf(p)
	var s lanes
	for t := range p {
		p[t] = exp32(p[t] - m)
		s[t&15] += p[t]
	}
	inv, dot := 1/s.sum(), goDot(dout, out)
	clear(dq)
	for t := range p {
		w := float32(p[t] * inv)
		ds := float32(w*(ascendingDot(dout, v[t*a.LDV:])-dot)) * a.Scale
		kt, dkt, dvt := k[t*a.LDK:], dk[t*a.LDK:], dv[t*a.LDV:]
		for i := range dq {
			dq[i] = FMA32(ds, kt[i], dq[i])
			dkt[i] = FMA32(ds, q[i], dkt[i])
			dvt[i] = FMA32(w, dout[i], dvt[i])
		}
	}
}

// ascendingDot is Σ x[i]·y[i] over the elements of x, by FMA from 0.
func ascendingDot(x, y []float32) float32 {
	var s float32
	for i, v := range x {
		s = FMA32(v, y[i], s)
	}
	return s
}
