package tune

import (
	"fmt"

	"github.com/architehc/nanochat/kernels"
)

// Op names a kind of kernel that is tuned.
type Op string

// The tuned kernels.
const (
	TernaryGEMV Op = "ternary_gemv"
	TernaryGEMM Op = "ternary_gemm"
	DenseGEMV   Op = "dense_gemv"
	DenseGEMM   Op = "dense_gemm"
	Q8GEMV      Op = "q8_gemv"
	Q8GEMM      Op = "q8_gemm"
)

// MaxBucket is the largest batch bucket; larger batches count as this.
const MaxBucket = 512

// Bucket is the batch bucket of n vectors: the next power of two, at most
// MaxBucket.
func Bucket(n int) int {
	b := 1
	for b < n && b < MaxBucket {
		b *= 2
	}
	return b
}

// A Shape is one matrix product: W [M, K] times Batch vectors.
type Shape struct {
	Op Op  `json:"op"`
	M  int `json:"m"`
	K  int `json:"k"`
	// Group is the scale group of a ternary matrix; 0 for a dense one.
	Group int `json:"group,omitempty"`
	// Type is the storage of a dense matrix.
	Type kernels.DType `json:"type,omitempty"`
	// Batch is the number of vectors; 1 for GEMV. It is tuned per Bucket.
	Batch int `json:"batch"`
}

// bucketed is s with its batch replaced by the bucket, which is what it is stored under.
func (s Shape) bucketed() Shape {
	s.Batch = Bucket(s.Batch)
	return s
}

func (s Shape) ternary() bool { return s.Op == TernaryGEMV || s.Op == TernaryGEMM }

// Int8 says whether the vectors are quantised to int8; otherwise they are f32.
func (s Shape) Int8() bool { return s.ternary() || s.Op == Q8GEMV || s.Op == Q8GEMM }

// gemv says whether the op takes one vector.
func (s Shape) gemv() bool { return s.Op == TernaryGEMV || s.Op == DenseGEMV || s.Op == Q8GEMV }

// actGroup is the group length of the quantised vectors. Dense matrices have no
// groups.
func (s Shape) actGroup() int {
	if s.ternary() {
		return s.Group
	}
	return s.K
}

// check says what is wrong with s.
func (s Shape) check() error {
	const limit = 1 << 24
	switch s.Op {
	case TernaryGEMV, TernaryGEMM, DenseGEMV, DenseGEMM:
	case Q8GEMV, Q8GEMM:
		if s.Type != kernels.Q8_0 {
			return fmt.Errorf("tune: %s takes a Q8_0 matrix, not type %d", s.Op, s.Type)
		}
	default:
		return fmt.Errorf("tune: unknown op %q: want %s, %s, %s, %s, %s or %s", s.Op, TernaryGEMV, TernaryGEMM, DenseGEMV, DenseGEMM, Q8GEMV, Q8GEMM)
	}
	if s.M < 1 || s.K < 1 || s.Batch < 1 || s.M > limit || s.K > limit || s.Batch > limit {
		return fmt.Errorf("tune: %s of %d×%d for %d vectors: sizes must be 1 to %d", s.Op, s.M, s.K, s.Batch, limit)
	}
	if s.gemv() && s.Batch != 1 {
		return fmt.Errorf("tune: %s takes 1 vector, not %d", s.Op, s.Batch)
	}
	if s.ternary() {
		if s.Group < 1 || s.Group != s.K && s.Group%kernels.TileSide != 0 {
			return fmt.Errorf("tune: %s of %d columns: group %d must be a multiple of %d or all columns", s.Op, s.K, s.Group, kernels.TileSide)
		}
		return nil
	}
	if _, err := rowBytes(s.Type, s.K); err != nil {
		return err
	}
	return nil
}

// rowBytes is the size of one row of a dense matrix.
func rowBytes(t kernels.DType, cols int) (int, error) {
	switch t {
	case kernels.F32:
		return 4 * cols, nil
	case kernels.F16, kernels.BF16:
		return 2 * cols, nil
	case kernels.Q8_0:
		if cols%32 == 0 {
			return cols / 32 * 34, nil
		}
		return 0, fmt.Errorf("tune: Q8_0 rows of %d columns: want a multiple of 32", cols)
	}
	return 0, fmt.Errorf("tune: dense matrices of type %d are not supported: want F32, F16, BF16 or Q8_0", t)
}

// WeightBytes is the size of the matrix: what has to come from memory.
func (s Shape) WeightBytes() int {
	if s.ternary() {
		w := kernels.Ternary{Rows: s.M, Cols: s.K, Group: s.Group}
		return w.Blocks()*w.ColTiles()*64 + w.Blocks()*w.Groups()*kernels.TileSide*2
	}
	row, _ := rowBytes(s.Type, s.K)
	return s.M * row
}

// Ops is the number of operations of one product; a multiply-add is two.
func (s Shape) Ops() float64 { return 2 * float64(s.M) * float64(s.K) * float64(s.Batch) }
