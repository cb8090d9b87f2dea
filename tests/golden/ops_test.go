package golden

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
)

// exact is the tolerance of float32 arithmetic with a few sums: relative to the
// largest value.
const exact = 2e-6

const eps = 1e-5

// rows calls f for every row of width n of the given vectors.
func rows(n int, f func(row [][]float32), v ...[]float32) {
	for i := 0; i < len(v[0]); i += n {
		part := make([][]float32, len(v))
		for j := range v {
			part[j] = v[j][i : i+n]
		}
		f(part)
	}
}

func scaled(a float32, x []float32) []float32 {
	y := make([]float32, len(x))
	for i, v := range x {
		y[i] = a * v
	}
	return y
}

func TestRMSNorm(t *testing.T) {
	g := open(t, "ops.safetensors")
	const n = 40
	eachSet(t, func(t *testing.T, k *kernels.Set) {
		for _, name := range []string{"rmsnorm", "rmsnorm_weight"} {
			x, dout := draw(name+"/x", 3*n, 1, 0), draw(name+"/dout", 3*n, 1, 0)
			var weight, dweight []float32
			if name == "rmsnorm_weight" {
				weight, dweight = draw(name+"/weight", n, 1, 0), make([]float32, n)
			}
			out, dx := make([]float32, 3*n), make([]float32, 3*n)
			rows(n, func(r [][]float32) {
				k.RMSNorm(r[0], r[2], weight, eps)
				k.RMSNormBackward(r[1], dweight, r[3], r[2], weight, eps)
			}, out, dx, x, dout)
			g.check(t, name+"/out", out, exact)
			g.check(t, name+"/dx", dx, exact)
			if weight != nil {
				g.check(t, name+"/dweight", dweight, exact)
			}
		}
	})
}

func TestActivations(t *testing.T) {
	g := open(t, "ops.safetensors")
	const n = 100
	eachSet(t, func(t *testing.T, k *kernels.Set) {
		out, dgate, dup := make([]float32, n), make([]float32, n), make([]float32, n)

		gate, up := scaled(4, draw("swiglu/gate", n, 1, 0)), draw("swiglu/up", n, 1, 0)
		k.SwiGLU(out, gate, up)
		g.check(t, "swiglu/out", out, exact)
		k.SwiGLUBackward(dgate, dup, draw("swiglu/dout", n, 1, 0), gate, up)
		g.check(t, "swiglu/dgate", scaled(4, dgate), exact)
		g.check(t, "swiglu/dup", dup, exact)

		gate, up = draw("relu2glu/gate", n, 1, 0), draw("relu2glu/up", n, 1, 0)
		k.ReLU2GLU(out, gate, up)
		g.check(t, "relu2glu/out", out, exact)
		k.ReLU2GLUBackward(dgate, dup, draw("relu2glu/dout", n, 1, 0), gate, up)
		g.check(t, "relu2glu/dgate", dgate, exact)
		g.check(t, "relu2glu/dup", dup, exact)

		x := draw("relu2/x", n, 1, 0)
		k.ReLU2(out, x)
		g.check(t, "relu2/out", out, exact)
		k.ReLU2Backward(dgate, draw("relu2/dout", n, 1, 0), x)
		g.check(t, "relu2/dx", dgate, exact)
	})
}

func TestCrossEntropy(t *testing.T) {
	g := open(t, "ops.safetensors")
	for name, o := range map[string]kernels.Loss{
		"plain":     {},
		"cap":       {Cap: 4},
		"z":         {Z: 0.25},
		"smoothing": {Smoothing: 0.125},
		"entropy":   {Entropy: 0.5},
		"all":       {Cap: 2, Z: 0.125, Entropy: 0.25, Smoothing: 0.0625},
	} {
		o.Scale = 1
		prefix := "cross_entropy_" + name
		eachSet(t, func(t *testing.T, k *kernels.Set) {
			z := draw(prefix+"/z", 77, 8, 0)
			dz := make([]float32, 77)
			nll, lse, entropy := k.CrossEntropy(dz, z, 5, &o)
			g.check(t, prefix+"/parts", []float32{nll, lse, entropy}, exact)
			g.check(t, prefix+"/dz", dz, 2*exact)
		})
	}
}

// Keys and values go through half precision in the forward, which the reference
// does not: an error of 2^-12 in each, and in the scores, of keys up to 4. The
// backward is float32.
func TestAttention(t *testing.T) {
	g := open(t, "ops.safetensors")
	const n, heads, kv, d, half = 23, 4, 2, 16, 2e-3
	cos, sin := make([]float32, n*d/2), make([]float32, n*d/2)
	kernels.RoPETable(cos, sin, n, d, 100, 1, nil)
	for _, name := range []string{"attention_plain", "attention_qknorm"} {
		eachSet(t, func(t *testing.T, k *kernels.Set) {
			raw := map[string][]float32{}
			for x, size := range map[string]int{"q": n * heads * d, "k": n * kv * d, "v": n * kv * d, "dout": n * heads * d} {
				raw[x] = draw(name+"/"+x, size, 1, 0)
			}
			weights := map[string][]float32{}
			if name == "attention_qknorm" {
				weights["q"], weights["k"] = draw(name+"/qnorm", d, 1, 0), draw(name+"/knorm", d, 1, 0)
			}
			q, key := make([]float32, n*heads*d), make([]float32, n*kv*d)
			ready := map[string][]float32{"q": q, "k": key}
			for x, dst := range ready {
				k.Scale(dst, 4, raw[x])
				if w := weights[x]; w != nil {
					rows(d, func(r [][]float32) { k.RMSNorm(r[0], r[1], w, eps) }, dst, raw[x])
				}
			}
			out, dq, dk, dv := make([]float32, n*heads*d), make([]float32, n*heads*d), make([]float32, n*kv*d), make([]float32, n*kv*d)
			first := 0
			for _, length := range []int{9, 1, 13} {
				span := func(x []float32, heads int) []float32 { return x[first*heads*d : (first+length)*heads*d] }
				pages := &kernels.KV{Type: kernels.KVF16, Heads: kv, HeadDim: d, Pages: []int32{0}, PageBytes: kv * kernels.KVF16.HeadBytes(d)}
				pages.Slab = make([]byte, pages.PageBytes)
				for p := range length {
					at := cos[p*d/2 : (p+1)*d/2]
					st := sin[p*d/2 : (p+1)*d/2]
					k.RoPE(span(q, heads)[p*heads*d:(p+1)*heads*d], heads, d, at, st, false)
					k.RoPE(span(key, kv)[p*kv*d:(p+1)*kv*d], kv, d, at, st, false)
					k.KVStore(pages, p, span(key, kv)[p*kv*d:(p+1)*kv*d], span(raw["v"], kv)[p*kv*d:(p+1)*kv*d])
				}
				k.Attention(span(out, heads), heads*d, span(q, heads), heads*d, pages, kernels.Query{N: length, Heads: heads, Scale: 0.25},
					0, heads, make([]byte, kernels.AttentionScratch(d)))
				a := &kernels.AttentionGrad{N: length, Heads: heads, KVHeads: kv, HeadDim: d, Scale: 0.25, LDQ: heads * d, LDK: kv * d, LDV: kv * d, LDO: heads * d}
				scratch := make([]byte, kernels.AttentionBackwardScratch(length, d))
				k.AttentionBackward(span(dq, heads), span(dk, kv), span(dv, kv), span(raw["dout"], heads),
					span(q, heads), span(key, kv), span(raw["v"], kv), span(g.get(t, name+"/out"), heads), a, 0, kv, scratch)
				for p := range length {
					at, st := cos[p*d/2:(p+1)*d/2], sin[p*d/2:(p+1)*d/2]
					k.RoPEBackward(span(dq, heads)[p*heads*d:(p+1)*heads*d], heads, d, at, st, false)
					k.RoPEBackward(span(dk, kv)[p*kv*d:(p+1)*kv*d], kv, d, at, st, false)
				}
				first += length
			}
			for x, dx := range map[string][]float32{"q": dq, "k": dk} {
				if w := weights[x]; w != nil {
					dw := make([]float32, d)
					rows(d, func(r [][]float32) { k.RMSNormBackward(r[0], dw, r[0], r[1], w, eps) }, dx, raw[x])
					g.check(t, name+"/d"+x+"norm", dw, 5*exact)
				} else {
					k.Scale(dx, 4, dx)
				}
				g.check(t, name+"/d"+x, dx, 5*exact)
			}
			g.check(t, name+"/dv", dv, 5*exact)
			g.check(t, name+"/out", out, half)
		})
	}
}

func TestHyperConnections(t *testing.T) {
	g := open(t, "ops.safetensors")
	var sites map[string]mhc.Config
	g.meta(t, "sites", &sites)
	require.Len(t, sites, 12)
	const tokens = 3
	for name, c := range sites {
		eachSet(t, func(t *testing.T, k *kernels.Set) {
			site, err := mhc.New(c)
			require.NoError(t, err)
			for _, p := range site.Params() {
				copy(p.Data, draw(name+"/"+p.Name, len(p.Data), 2, 0))
			}
			site.Prepare(k)
			width, dim := c.Streams*c.Dim, c.Dim
			x, dout := draw(name+"/x", tokens*width, 1, 0), draw(name+"/dout", tokens*width, 1, 0)
			y, du := draw(name+"/y", tokens*dim, 1, 0), draw(name+"/du", tokens*dim, 1, 0)
			out, dx := make([]float32, tokens*width), make([]float32, tokens*width)
			u, dy := make([]float32, tokens*dim), make([]float32, tokens*dim)
			grad, scratch := mhc.NewGrad(c), make([]float32, c.ScratchLen()+c.BackwardScratchLen())
			for i := range tokens {
				wide := func(v []float32) []float32 { return v[i*width : (i+1)*width] }
				one := func(v []float32) []float32 { return v[i*dim : (i+1)*dim] }
				var d mhc.CoefGrad
				m := site.Coef(k, new(mhc.Coef), wide(x), scratch)
				m.Read(k, one(u), wide(x))
				m.Write(k, wide(out), wide(x), one(y))
				m.WriteBackward(k, wide(dx), one(dy), &d, wide(dout), wide(x), one(y))
				m.ReadBackward(k, wide(dx), &d, one(du), wide(x))
				site.Backward(k, grad, wide(dx), &d, wide(x), scratch)
			}
			site.FinishBackward(k, grad)
			g.check(t, name+"/out", out, exact)
			g.check(t, name+"/u", u, exact)
			g.check(t, name+"/dx", dx, 10*exact)
			g.check(t, name+"/dy", dy, exact)
			for _, p := range grad.Params() {
				g.check(t, name+"/d"+p.Name, p.Data, 10*exact)
			}
		})
	}
}

// The quantisers and the integer product are exact, so only the float32 scales
// and sums differ; the products of the backward are as exact in float32, and
// rounded to 2^-9 in bfloat16.
func TestBitLinear(t *testing.T) {
	g := open(t, "ops.safetensors")
	const r, c, group, tokens, bf16 = 20, 96, 32, 5, 1e-2
	latents := scaled(0.5, draw("bitlinear/w", r*c, 1, 0))
	x, dout := draw("bitlinear/x", tokens*c, 1, 0), draw("bitlinear/dout", tokens*r, 1, 0)
	for i, a := range []float32{0.25, 1, 2, 4, 0.5} {
		copy(x[i*c:(i+1)*c], scaled(a, x[i*c:(i+1)*c]))
	}
	w, err := ternary.Quantize(latents, r, c, group)
	require.NoError(t, err)
	eachSet(t, func(t *testing.T, k *kernels.Set) {
		act := kernels.NewAct(tokens, c, group)
		for i := range tokens {
			act.Set(k, i, x[i*c:(i+1)*c])
		}
		out := make([]float32, tokens*r)
		k.TernaryGEMM(out, r, w, act, 0, r, make([]byte, kernels.GEMMScratch(tokens, c)))
		g.check(t, "bitlinear/out", out, exact)

		// dX = dY·W, dW = (a·dY)ᵀ·Q.
		scratch := make([]byte, kernels.MatMulScratch())
		used, seen := make([]float32, r*c), make([]float32, tokens*c)
		require.NoError(t, ternary.Dequantize(used, w))
		weighted := make([]float32, tokens*r)
		usedHalf, seenHalf := make([]uint16, r*c), make([]uint16, tokens*c)
		doutHalf, weightedHalf := make([]uint16, tokens*r), make([]uint16, tokens*r)
		k.TernaryBF16(usedHalf, c, w, 0, r)
		k.BF16(doutHalf, 1, dout)
		for i := range tokens {
			for j, q := range act.Q[i*act.Stride:][:c] {
				seen[i*c+j] = float32(q)
			}
			k.BF16FromI8(seenHalf[i*c:(i+1)*c], act.Q[i*act.Stride:][:c])
			k.Scale(weighted[i*r:(i+1)*r], act.Scale[i], dout[i*r:(i+1)*r])
			k.BF16(weightedHalf[i*r:(i+1)*r], act.Scale[i], dout[i*r:(i+1)*r])
		}
		dx, dw := make([]float32, tokens*c), make([]float32, r*c)
		forX, forW := kernels.Product{M: tokens, N: c, K: r}, kernels.Product{M: r, N: c, K: tokens, Add: true}
		k.MatMul(dx, c, kernels.Operand{F32: dout, Stride: r}, kernels.Operand{F32: used, Stride: c}, forX, 0, tokens, scratch)
		k.MatMul(dw, c, kernels.Operand{F32: weighted, Stride: r, Trans: true}, kernels.Operand{F32: seen, Stride: c}, forW, 0, r, scratch)
		g.check(t, "bitlinear/dx", dx, exact)
		g.check(t, "bitlinear/dw", dw, exact)
		clear(dw)
		k.MatMulBF16(dx, c, kernels.Operand{BF16: doutHalf, Stride: r}, kernels.Operand{BF16: usedHalf, Stride: c}, forX, 0, tokens, scratch)
		k.MatMulBF16(dw, c, kernels.Operand{BF16: weightedHalf, Stride: r, Trans: true}, kernels.Operand{BF16: seenHalf, Stride: c}, forW, 0, r, scratch)
		g.check(t, "bitlinear/dx", dx, bf16)
		g.check(t, "bitlinear/dw", dw, bf16)
	})
}
