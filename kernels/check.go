package kernels

import "fmt"

// checkLen panics unless a slice has room for want values.
func checkLen(what string, got, want int) {
	if got < want {
		panic(fmt.Sprintf("kernels: %s has length %d, want at least %d", what, got, want))
	}
}

func checkQuantize(q []int8, sums []int32, x []float32, group int) {
	if group <= 0 || len(q) < len(x) || len(sums) != (len(x)+group-1)/group {
		panic(fmt.Sprintf("kernels: Quantize of %d values in groups of %d into %d values and %d sums", len(x), group, len(q), len(sums)))
	}
}

// checkTernary panics unless w is well formed, x fits it and the range is valid.
func checkTernary(w *Ternary, x *Act, r0, r1 int) {
	if w.Rows <= 0 || w.Cols <= 0 || w.Cols > maxCols || w.Group <= 0 || w.Group != w.Cols && w.Group%TileSide != 0 {
		panic(fmt.Sprintf("kernels: ternary matrix of %d rows and %d columns in groups of %d", w.Rows, w.Cols, w.Group))
	}
	checkLen("Tiles", len(w.Tiles), w.Blocks()*w.ColTiles()*64)
	checkLen("Scales", len(w.Scales), w.Blocks()*w.Groups()*TileSide)
	if x.Cols != w.Cols || x.Group != w.Group || x.Stride != ActStride(x.Cols) || x.N < 1 {
		panic(fmt.Sprintf("kernels: %d activations of %d columns (stride %d) in groups of %d meet a matrix of %d columns in groups of %d",
			x.N, x.Cols, x.Stride, x.Group, w.Cols, w.Group))
	}
	checkLen("Act.Q", len(x.Q), x.N*x.Stride)
	checkLen("Act.Scale", len(x.Scale), x.N)
	checkLen("Act.Sums", len(x.Sums), x.N*w.Groups())
	if r0 < 0 || r0 > r1 || r1 > w.Rows || r0%TileSide != 0 || r1%TileSide != 0 && r1 != w.Rows {
		panic(fmt.Sprintf("kernels: rows %d to %d of %d: not on blocks of %d", r0, r1, w.Rows, TileSide))
	}
}

func checkGEMM(dst []float32, ldd int, w *Ternary, x *Act, scratch []byte) {
	if ldd < w.Rows {
		panic(fmt.Sprintf("kernels: dst has stride %d, the matrix has %d rows", ldd, w.Rows))
	}
	checkLen("dst", len(dst), (x.N-1)*ldd+w.Rows)
	checkLen("scratch", len(scratch), GEMMScratch(x.N, x.Cols))
}
