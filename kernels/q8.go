package kernels

import (
	"encoding/binary"
	"fmt"
)

func checkQ8(w *Dense, x *Act, r0, r1 int) {
	checkDense(w, r0, r1)
	if w.Type != Q8_0 || x.Cols != w.Cols || x.Stride < x.Cols || x.N < 1 {
		panic(fmt.Sprintf("kernels: %d int8 vectors of %d columns (stride %d) meet a matrix of %d columns of type %d, want type %d and as many columns",
			x.N, x.Cols, x.Stride, w.Cols, w.Type, Q8_0))
	}
	checkLen("Act.Q", len(x.Q), (x.N-1)*x.Stride+x.Cols)
	checkLen("Act.Scale", len(x.Scale), x.N)
}

func checkQ8GEMV(dst []float32, w *Dense, x *Act, r0, r1 int) {
	checkQ8(w, x, r0, r1)
	checkLen("dst", len(dst), r1)
}

func checkQ8GEMM(dst []float32, ldd int, w *Dense, x *Act, r0, r1 int) {
	checkQ8(w, x, r0, r1)
	if ldd < r1 {
		panic(fmt.Sprintf("kernels: dst has stride %d for rows %d to %d", ldd, r0, r1))
	}
	checkLen("dst", len(dst), (x.N-1)*ldd+r1)
}

func q8Go(s *Set) {
	s.Q8GEMV = func(dst []float32, w *Dense, x *Act, r0, r1 int) {
		checkQ8GEMV(dst, w, x, r0, r1)
		q8Rows(dst, w, x, 0, r0, r1)
	}
	s.Q8GEMM = func(dst []float32, ldd int, w *Dense, x *Act, r0, r1 int) {
		checkQ8GEMM(dst, ldd, w, x, r0, r1)
		for t := range x.N {
			q8Rows(dst[t*ldd:], w, x, t, r0, r1)
		}
	}
}

// q8Rows computes rows r0..r1 of token t of x. A block has eight sums of four
// products, one per lane; lanes add up over the blocks.
func q8Rows(dst []float32, w *Dense, x *Act, t, r0, r1 int) {
	size := w.Type.RowBytes(w.Cols)
	q := x.Q[t*x.Stride : t*x.Stride+x.Cols]
	for r := r0; r < r1; r++ {
		row := w.Data[r*size : (r+1)*size]
		var acc [8]float32
		for k := 0; k < len(q); k += 32 {
			b := row[k/32*34:][:34]
			d := F16ToF32(binary.LittleEndian.Uint16(b))
			for l := range acc {
				var dot int32
				for j := 4 * l; j < 4*l+4; j++ {
					dot += int32(int8(b[2+j])) * int32(q[k+j])
				}
				acc[l] = FMA32(d, float32(dot), acc[l])
			}
		}
		for h := 4; h > 0; h /= 2 {
			for l := range h {
				acc[l] += acc[l+h]
			}
		}
		dst[r] = x.Scale[t] * acc[0]
	}
}
