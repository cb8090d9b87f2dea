package kernels

import (
	"encoding/binary"
	"fmt"
	"math"
)

// RowBytes is the size of one row of cols elements. It is 0 for an unknown type.
func (t DType) RowBytes(cols int) int {
	switch t {
	case F32:
		return 4 * cols
	case F16, BF16:
		return 2 * cols
	case Q8_0:
		return cols / 32 * 34
	}
	return 0
}

func checkDense(w *Dense, r0, r1 int) {
	b := w.Type.RowBytes(w.Cols)
	if w.Rows < 0 || w.Cols <= 0 || b == 0 || w.Type == Q8_0 && w.Cols%32 != 0 {
		panic(fmt.Sprintf("kernels: dense matrix of %d rows and %d columns of type %d", w.Rows, w.Cols, w.Type))
	}
	checkLen("Dense.Data", len(w.Data), w.Rows*b)
	if r0 < 0 || r0 > r1 || r1 > w.Rows {
		panic(fmt.Sprintf("kernels: rows %d to %d of %d", r0, r1, w.Rows))
	}
}

func checkDenseGEMV(dst []float32, w *Dense, x []float32, r0, r1 int) {
	checkDense(w, r0, r1)
	checkLen("dst", len(dst), r1)
	checkLen("x", len(x), w.Cols)
}

func checkDenseGEMM(dst []float32, ldd int, w *Dense, x []float32, ldx, n, r0, r1 int) {
	checkDense(w, r0, r1)
	if n < 0 || ldd < r1 || ldx < w.Cols {
		panic(fmt.Sprintf("kernels: DenseGEMM of %d vectors with strides %d and %d for %d rows and %d columns", n, ldd, ldx, r1, w.Cols))
	}
	if n > 0 {
		checkLen("dst", len(dst), (n-1)*ldd+r1)
		checkLen("x", len(x), (n-1)*ldx+w.Cols)
	}
}

func checkDenseRow(dst []float32, w *Dense, r int) {
	checkDense(w, r, r+1)
	checkLen("dst", len(dst), w.Cols)
}

// goDenseGEMV is the canonical sum of w[k]·x[k] in FMA. For Q8_0 it goes block by
// block: lane l takes p = w[l]·x[l] rounded, p = fma(w[l+16], x[l+16], p),
// then fma(d, p, lane), with d the block's scale.
func goDenseGEMV(dst []float32, w *Dense, x []float32, r0, r1 int) {
	checkDenseGEMV(dst, w, x, r0, r1)
	b := w.Type.RowBytes(w.Cols)
	for r := r0; r < r1; r++ {
		dst[r] = denseDot(w.Type, w.Data[r*b:(r+1)*b], x[:w.Cols])
	}
}

func goDenseGEMM(dst []float32, ldd int, w *Dense, x []float32, ldx, n, r0, r1 int) {
	checkDenseGEMM(dst, ldd, w, x, ldx, n, r0, r1)
	b := w.Type.RowBytes(w.Cols)
	for r := r0; r < r1; r++ {
		for t := range n {
			dst[t*ldd+r] = denseDot(w.Type, w.Data[r*b:(r+1)*b], x[t*ldx:t*ldx+w.Cols])
		}
	}
}

func denseDot(t DType, row []byte, x []float32) float32 {
	var s lanes
	if t == Q8_0 {
		for i := 0; i < len(x); i += 32 {
			b := row[i/32*34:][:34]
			d := F16ToF32(binary.LittleEndian.Uint16(b))
			for l := range s {
				p := float32(float32(int8(b[2+l])) * x[i+l])
				p = FMA32(float32(int8(b[18+l])), x[i+16+l], p)
				s[l] = FMA32(d, p, s[l])
			}
		}
		return s.sum()
	}
	for i, v := range x {
		s[i&15] = FMA32(element(t, row, i), v, s[i&15])
	}
	s.pad(len(x))
	return s.sum()
}

// element is element i of a row of type F32, F16 or BF16.
func element(t DType, row []byte, i int) float32 {
	switch t {
	case F16:
		return F16ToF32(binary.LittleEndian.Uint16(row[2*i:]))
	case BF16:
		return BF16ToF32(binary.LittleEndian.Uint16(row[2*i:]))
	}
	return math.Float32frombits(binary.LittleEndian.Uint32(row[4*i:]))
}

func goDenseRow(dst []float32, w *Dense, r int) {
	checkDenseRow(dst, w, r)
	b := w.Type.RowBytes(w.Cols)
	row := w.Data[r*b : (r+1)*b]
	for i := range w.Cols {
		if w.Type == Q8_0 {
			k := row[i/32*34:]
			dst[i] = F16ToF32(binary.LittleEndian.Uint16(k)) * float32(int8(k[2+i%32]))
		} else {
			dst[i] = element(w.Type, row, i)
		}
	}
}
