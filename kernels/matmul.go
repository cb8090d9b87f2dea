package kernels

import "fmt"

// Operand is one factor of a MatMul: a row-major matrix in one of F32 and BF16,
// whose rows begin Stride elements apart.
type Operand struct {
	F32  []float32
	BF16 []uint16
	// Stride is at least the length of a stored row.
	Stride int
	// Trans says that the matrix is stored transposed: that the factor is the
	// transpose of what the slice holds row by row.
	Trans bool
}

// Product is the shape of dst [M, N] = A [M, K] · B [K, N]. With Add the product
// is added to dst.
//
// Gradients of y = x·Wᵀ with W [out, in] stored by rows are dx = dy·W, both plain,
// and dW += dyᵀ·x with A = dy transposed and Add; the forward has B = W transposed.
//
// Every call packs all of B: it pays to split the rows of A among few callers.
type Product struct {
	M, N, K int
	Add     bool
}

// MatMulScratch is the bytes of scratch of MatMul and MatMulBF16: a block of B of
// 256 by 480 and a panel of A of 256 by 8 words of 4 bytes, and what aligns them
// and stands behind them.
func MatMulScratch() int { return 256*480*4 + 256*8*4 + 256 }

// matMulGo fills in the reference.
func matMulGo(s *Set) {
	s.MatMul = func(dst []float32, ldd int, a, b Operand, p Product, r0, r1 int, scratch []byte) {
		checkMatMul("MatMul", dst, ldd, &a, &b, &p, r0, r1, scratch)
		goMatMul(dst, ldd, &a, &b, &p, r0, r1, false)
	}
	s.MatMulBF16 = func(dst []float32, ldd int, a, b Operand, p Product, r0, r1 int, scratch []byte) {
		checkMatMul("MatMulBF16", dst, ldd, &a, &b, &p, r0, r1, scratch)
		goMatMul(dst, ldd, &a, &b, &p, r0, r1, true)
	}
}

// goMatMul goes over dst row by row and, for each k, over all columns, so that B
// is read along its rows where it is stored plain.
func goMatMul(dst []float32, ldd int, a, b *Operand, p *Product, r0, r1 int, round bool) {
	for r := r0; r < r1; r++ {
		row := dst[r*ldd:][:p.N]
		if !p.Add {
			clear(row)
		}
		if b.Trans {
			for j := range row {
				s := row[j]
				for k := range p.K {
					s = FMA32(a.at(r, k, round), b.at(k, j, round), s)
				}
				row[j] = s
			}
			continue
		}
		for k := range p.K {
			x := a.at(r, k, round)
			for j := range row {
				row[j] = FMA32(x, b.at(k, j, round), row[j])
			}
		}
	}
}

// at is element (i, j) of the factor.
func (o *Operand) at(i, j int, round bool) float32 {
	if o.Trans {
		i, j = j, i
	}
	if i = i*o.Stride + j; o.BF16 != nil {
		return BF16ToF32(o.BF16[i])
	}
	if round {
		return BF16ToF32(F32ToBF16(o.F32[i]))
	}
	return o.F32[i]
}

// checkMatMul panics unless the slices hold the matrices and the range is valid.
func checkMatMul(op string, dst []float32, ldd int, a, b *Operand, p *Product, r0, r1 int, scratch []byte) {
	if p.M < 0 || p.N < 0 || p.K < 0 || r0 < 0 || r0 > r1 || r1 > p.M {
		panic(fmt.Sprintf("kernels: %s: rows %d to %d of a product of %d by %d over %d", op, r0, r1, p.M, p.N, p.K))
	}
	checkRows(op, "dst", len(dst), ldd, p.M, p.N)
	a.check(op, "a", p.M, p.K)
	b.check(op, "b", p.K, p.N)
	checkLen("scratch", len(scratch), MatMulScratch())
}

func (o *Operand) check(op, what string, rows, cols int) {
	if o.Trans {
		rows, cols = cols, rows
	}
	if o.F32 != nil && o.BF16 != nil {
		panic("kernels: " + op + ": " + what + " has both F32 and BF16")
	}
	checkRows(op, what, len(o.F32)+len(o.BF16), o.Stride, rows, cols)
}

// checkRows panics unless n elements hold rows of cols elements, stride apart.
func checkRows(op, what string, n, stride, rows, cols int) {
	if rows == 0 || cols == 0 {
		return
	}
	if stride < cols || n < cols || (n-cols)/stride < rows-1 {
		panic(fmt.Sprintf("kernels: %s: %s has %d elements in rows %d apart, want %d rows of %d", op, what, n, stride, rows, cols))
	}
}
