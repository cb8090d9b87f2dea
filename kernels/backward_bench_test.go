package kernels

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// BenchmarkAttentionBackward reports GFLOP/s of the five causal products, 10·N·N/2·HeadDim
// for each query head, and the part of the float32 peak measured beside it:
// go test ./kernels -run xxx -bench 'AttentionBackward/avx512vnni/'
func BenchmarkAttentionBackward(b *testing.B) {
	limits, _ := Roofline()
	for _, s := range All() {
		for _, n := range []int{64, 128, 256, 512, 1024} {
			for _, bf16 := range []bool{false, true} {
				const heads, d = 4, 64
				a := AttentionGrad{N: n, Heads: heads, KVHeads: heads, HeadDim: d, Scale: 0.125, LDQ: heads * d, LDK: heads * d, LDV: heads * d, LDO: heads * d, BF16: bf16}
				r := rand.New(rand.NewPCG(62, 1))
				var x [8][]float32
				for i := range x {
					x[i] = random(r, n*heads*d)
				}
				scratch := AlignedBytes(AttentionBackwardScratch(n, d))
				b.Run(fmt.Sprintf("%s/%d/bf16=%t", s.Name, n, bf16), func(b *testing.B) {
					for b.Loop() {
						s.AttentionBackward(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], &a, 0, heads, scratch)
					}
					rate := 10 * float64(n) * float64(n+1) / 2 * d * heads * float64(b.N) / b.Elapsed().Seconds() / 1e9
					b.ReportMetric(rate, "GFLOP/s")
					if limits.FMA.Run != nil {
						b.ReportMetric(rate/peakRate(limits.FMA), "of-f32-peak")
					}
				})
			}
		}
	}
}

// BenchmarkBackward reports elements a second on vectors in the L1 and L2 caches.
func BenchmarkBackward(b *testing.B) {
	const n = 4096
	r := rand.New(rand.NewPCG(62, 2))
	x, y, z, g, u := random(r, n), random(r, n), random(r, n), random(r, n), random(r, n)
	h, q := make([]uint16, n), make([]int8, n)
	logits := random(r, n)
	w := &Ternary{Rows: 1024, Cols: 1024, Group: 128, Gain: 1}
	w.Tiles, w.Scales = AlignedBytes(w.Blocks()*w.ColTiles()*64), make([]uint16, w.Blocks()*w.Groups()*TileSide)
	latent, dense := random(r, 1<<20), make([]uint16, 1<<20)
	for _, s := range All() {
		for _, op := range []struct {
			name string
			n    int
			run  func()
		}{
			{"RMSNormBackward", 256, func() { s.RMSNormBackward(g[:256], u[:256], y[:256], x[:256], z[:256], 1e-6) }},
			{"RMSNormBackward", 1024, func() { s.RMSNormBackward(g[:1024], u[:1024], y[:1024], x[:1024], z[:1024], 1e-6) }},
			{"SwiGLUBackward", 2048, func() { s.SwiGLUBackward(g[:2048], u[:2048], x[:2048], y[:2048], z[:2048]) }},
			{"ReLU2Backward", 1024, func() { s.ReLU2Backward(g[:1024], x[:1024], y[:1024]) }},
			{"RoPEBackward", 256, func() { s.RoPEBackward(g[:256], 4, 64, x[:32], y[:32], false) }},
			{"BF16", 1024, func() { s.BF16(h[:1024], 0.3, x[:1024]) }},
			{"BF16FromI8", 1024, func() { s.BF16FromI8(h[:1024], q[:1024]) }},
			{"TernaryBF16", 1 << 20, func() { s.TernaryBF16(dense, 1024, w, 0, 1024) }},
			{"QuantizeTernary", 1 << 20, func() { s.QuantizeTernary(w, latent, 0, 1024) }},
			{"CrossEntropy", n, func() { s.CrossEntropy(g, logits, 7, &Loss{Scale: 1e-3, Cap: 15, Z: 1e-4}) }},
			{"CrossEntropy/value", n, func() { s.CrossEntropy(nil, logits, 7, &Loss{Scale: 1e-3, Cap: 15, Z: 1e-4}) }},
			{"CrossEntropy/uncapped", n, func() { s.CrossEntropy(g, logits, 7, &Loss{Scale: 1e-3, Z: 1e-4}) }},
		} {
			b.Run(fmt.Sprintf("%s/%s/%d", s.Name, op.name, op.n), func(b *testing.B) {
				for b.Loop() {
					op.run()
				}
				b.ReportMetric(float64(op.n)*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gelement/s")
			})
		}
	}
}

// BenchmarkMatMulTraining reports the products of a training step, dW += dYᵀ·X (tn, over
// tokens) and dX = dY·W (nn), in bfloat16, as part of the peak measured beside it:
// go test ./kernels -run xxx -bench 'MatMulTraining/avx512vnni/'
func BenchmarkMatMulTraining(b *testing.B) {
	scratch := AlignedBytes(MatMulScratch())
	limits, _ := Roofline()
	for _, s := range All() {
		if !hasDotBF16(s) {
			continue
		}
		for _, c := range []struct{ out, in, tokens int }{
			{256, 256, 2048}, {1024, 256, 2048}, {256, 1024, 2048}, {4096, 256, 512}, {4096, 256, 2048},
			{768, 768, 1024}, {3072, 768, 1024}, {768, 3072, 1024},
		} {
			r := rand.New(rand.NewPCG(62, 3))
			half := func(rows, cols int) Operand {
				x := make([]uint16, rows*cols)
				s.BF16(x, 1, random(r, rows*cols))
				return Operand{BF16: x, Stride: cols}
			}
			dy, x, w := half(c.tokens, c.out), half(c.tokens, c.in), half(c.out, c.in)
			dyF := Operand{F32: random(r, c.tokens*c.out), Stride: c.out}
			across := func(o Operand) Operand { o.Trans = true; return o }
			dw, dx := make([]float32, c.out*c.in), make([]float32, c.tokens*c.in)
			grad := Product{M: c.out, N: c.in, K: c.tokens, Add: true}
			back := Product{M: c.tokens, N: c.in, K: c.out}
			for _, v := range []struct {
				name string
				run  func()
			}{
				{"tn", func() { s.MatMulBF16(dw, c.in, across(dy), x, grad, 0, grad.M, scratch) }},
				{"tn-f32", func() { s.MatMulBF16(dw, c.in, across(dyF), x, grad, 0, grad.M, scratch) }},
				{"nn", func() { s.MatMulBF16(dx, c.in, dy, w, back, 0, back.M, scratch) }},
				{"nn-f32", func() { s.MatMulBF16(dx, c.in, dyF, w, back, 0, back.M, scratch) }},
			} {
				b.Run(fmt.Sprintf("%s/%dx%d/%d/%s", s.Name, c.out, c.in, c.tokens, v.name), func(b *testing.B) {
					for b.Loop() {
						v.run()
					}
					rate := 2 * float64(c.out) * float64(c.in) * float64(c.tokens) * float64(b.N) / b.Elapsed().Seconds() / 1e9
					b.ReportMetric(rate, "GFLOP/s")
					b.ReportMetric(rate/peakRate(limits.DotBF16), "of-peak")
				})
			}
		}
	}
}
