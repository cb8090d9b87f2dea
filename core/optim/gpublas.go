package optim

import "github.com/architehc/nanochat/kernels/cuda"

// blasType is the type of the elements of a matrix.
type blasType int

const (
	blasF32 blasType = iota
	blasBF16
)

// product is D = Alpha·op(A)·op(B) + Beta·C, row by row, for a batch of matrices.
type product struct {
	M, N, K                            int
	A, B, C, D                         cuda.Ptr
	TypeA, TypeD                       blasType
	LDA, LDB, LDC, LDD                 int
	TransA, TransB                     bool
	Alpha, Beta                        float32
	Batch                              int
	StrideA, StrideB, StrideC, StrideD int64
}
