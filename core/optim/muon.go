package optim

import (
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// The quintic of Newton–Schulz (Jordan 2024): x ↦ a·x + b·x³ + c·x⁵ takes singular
// values in (0, 1] towards the band [0.68, 1.13], the small ones fastest.
const nsA, nsB, nsC float32 = 3.4445, -4.7750, 2.0315

// muon updates s: every part of its split in turn, all workers on one.
func (p *Optimizer) muon(w *team.Worker, s *slot) {
	beta := s.rule.momentum(p.now.applied)
	r := p.rates(s)
	lr := float64(r.lr)
	row := 0
	for _, rows := range s.Split {
		lo, hi := row*s.Cols, (row+rows)*s.Cols
		row += rows
		x := p.direction(w, s, lo, hi, beta, r.grad)
		x = p.orthogonalise(w, x, rows, s.Cols, s.rule.NewtonSchulz)
		r.lr = float32(lr * s.rule.Scaling.factor(rows, s.Cols))
		a, b := w.Range(hi-lo, chunkLen)
		for i := a; i < b; i++ {
			s.apply(&s.W[lo+i], x[i], r)
		}
		// The next part overwrites x, and its first product y; both follow barriers,
		// but direction writes x before its first.
		w.Barrier()
	}
}

// direction moves the momentum of elements lo to hi and returns the direction of
// the update, divided by its Frobenius norm: m += (1-β)(g-m), u = g + β(m-g).
func (p *Optimizer) direction(w *team.Worker, s *slot, lo, hi int, beta, scale float32) []float32 {
	n := hi - lo
	x, rest := p.x[:n], 1-beta
	a, b := w.Range(n, chunkLen)
	for i := a; i < b; i++ {
		g := float32(scale * s.G[lo+i])
		m := s.m[lo+i]
		m += float32(rest * (g - m))
		s.m[lo+i] = m
		if !s.rule.Heavy {
			m = g + float32(beta*(m-g))
		}
		x[i] = m
	}
	p.squares(w, x, 0, a, b)
	w.Barrier()
	var sum float64
	for _, v := range p.sums[:chunkCount(n)] {
		sum += v
	}
	inv := float32(1 / max(sqrt(sum), 1e-30))
	for i := a; i < b; i++ {
		x[i] *= inv
	}
	w.Barrier()
	return x
}

// orthogonalise brings the singular values of X [rows, cols], whose Frobenius
// norm is at most 1, near 1, and returns the result, in the memory of x or of
// p.y. All products are over the shorter side: with A = X·Xᵀ,
//
//	X ← a·X + (b·A + c·A²)·X
//
// or its mirror image X ← a·X + X·(b·A + c·A²) with A = Xᵀ·X for tall matrices.
func (p *Optimizer) orthogonalise(w *team.Worker, x []float32, rows, cols, steps int) []float32 {
	y, tall, n := p.y[:len(x)], rows > cols, min(rows, cols)
	gram, poly := p.gram[:n*n], p.poly[:n*n]
	plain := func(v []float32, stride int) kernels.Operand { return kernels.Operand{F32: v, Stride: stride} }
	trans := func(v []float32, stride int) kernels.Operand {
		return kernels.Operand{F32: v, Stride: stride, Trans: true}
	}
	ga, gb := w.Range(n, matMulRows)
	xa, xb := w.Range(rows, matMulRows)
	for range steps {
		if tall {
			p.matMul(w, gram, n, trans(x, cols), plain(x, cols), kernels.Product{M: n, N: n, K: rows}, ga, gb)
		} else {
			p.matMul(w, gram, n, plain(x, cols), trans(x, cols), kernels.Product{M: n, N: n, K: cols}, ga, gb)
		}
		w.Barrier()
		p.matMul(w, poly, n, plain(gram, n), plain(gram, n), kernels.Product{M: n, N: n, K: n}, ga, gb)
		for i := ga * n; i < gb*n; i++ {
			poly[i] = float32(nsB*gram[i]) + float32(nsC*poly[i])
		}
		for i := xa * cols; i < xb*cols; i++ {
			y[i] = nsA * x[i]
		}
		w.Barrier()
		product := kernels.Product{M: rows, N: cols, K: n, Add: true}
		if tall {
			p.matMul(w, y, cols, plain(x, cols), plain(poly, n), product, xa, xb)
		} else {
			p.matMul(w, y, cols, plain(poly, n), plain(x, cols), product, xa, xb)
		}
		w.Barrier()
		x, y = y, x
	}
	return x
}

// matMulRows is the rows that workers share out in whole: a multiple of the rows
// of every kernel's tile but the AVX2 and NEON ones.
const matMulRows = 8

func (p *Optimizer) matMul(w *team.Worker, dst []float32, ldd int, a, b kernels.Operand, s kernels.Product, r0, r1 int) {
	f := p.o.Set.MatMul
	if p.o.BF16 {
		f = p.o.Set.MatMulBF16
	}
	if r0 < r1 {
		f(dst, ldd, a, b, s, r0, r1, p.workers[w.ID].scratch)
	}
}
