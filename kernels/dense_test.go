package kernels

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

var denseTypes = []DType{F32, F16, BF16, Q8_0}

func (t DType) testName() string {
	return map[DType]string{F32: "f32", F16: "f16", BF16: "bf16", Q8_0: "q8_0"}[t]
}

// randomDense fills rows with finite values of about unit size.
func randomDense(r *rand.Rand, data []byte, t DType, rows, cols int) *Dense {
	w := &Dense{Rows: rows, Cols: cols, Type: t, Data: data}
	for i := range rows * cols {
		v := float32(r.NormFloat64())
		switch t {
		case F32:
			binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(v))
		case F16:
			binary.LittleEndian.PutUint16(data[2*i:], F32ToF16(v))
		case BF16:
			binary.LittleEndian.PutUint16(data[2*i:], F32ToBF16(v))
		case Q8_0:
			b := data[i/32*34:]
			if i%32 == 0 {
				binary.LittleEndian.PutUint16(b, F32ToF16(float32(math.Abs(float64(v))/64)))
			}
			b[2+i%32] = byte(r.Uint32())
		}
	}
	return w
}

func TestDenseMatchesReference(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	ref := newGoSet()
	for _, typ := range denseTypes {
		cols := lengths()
		if typ == Q8_0 {
			cols = []int{32, 64, 96, 160, 256, 288}
		}
		for i, cols := range cols {
			rows, n := 1+i%19, 1+i%11
			data := newGuarded[byte](rows*typ.RowBytes(cols), 2*r.IntN(32))
			w := randomDense(r, data.v, typ, rows, cols)
			ldx, ldd := cols+r.IntN(3), rows+r.IntN(3)
			x := newGuarded[float32]((n-1)*ldx+cols, 4*r.IntN(16))
			normals(r, x.v)
			if i%4 == 3 {
				anyFloats(r, x.v)
				r2 := rand.New(rand.NewPCG(8, uint64(i)))
				for j := range data.v {
					data.v[j] = byte(r2.Uint32())
				}
			}
			want := make([]float32, (n-1)*ldd+rows)
			ref.DenseGEMM(want, ldd, w, x.v, ldx, n, 0, rows)
			row := make([]float32, cols)
			for _, s := range All() {
				what := fmt.Sprintf("%s %s %dx%d n=%d", s.Name, typ.testName(), rows, cols, n)
				got := newGuarded[float32](len(want), 4*r.IntN(16))
				clear(got.v)
				cut := r.IntN(rows + 1)
				s.DenseGEMM(got.v, ldd, w, x.v, ldx, n, 0, cut)
				s.DenseGEMM(got.v, ldd, w, x.v, ldx, n, cut, rows)
				requireSame(t, want, got.v, what)
				got.check(t, what)
				for j := range n {
					one := newGuarded[float32](rows, 4*r.IntN(16))
					s.DenseGEMV(one.v, w, x.v[j*ldx:], 0, cut)
					s.DenseGEMV(one.v, w, x.v[j*ldx:], cut, rows)
					requireSame(t, want[j*ldd:j*ldd+rows], one.v, what+" GEMV")
					one.check(t, what)
				}
				for j := range rows {
					ref.DenseRow(row, w, j)
					got := newGuarded[float32](cols, 4*r.IntN(16))
					s.DenseRow(got.v, w, j)
					requireSame(t, row, got.v, what+" row")
					got.check(t, what)
				}
			}
			data.check(t, "weights")
		}
	}
}

func TestDenseIsAMatrixProduct(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	const rows, cols = 7, 512
	s := Best()
	for _, typ := range denseTypes {
		w := randomDense(r, make([]byte, rows*typ.RowBytes(cols)), typ, rows, cols)
		x, y, row := make([]float32, cols), make([]float32, rows), make([]float32, cols)
		normals(r, x)
		s.DenseGEMV(y, w, x, 0, rows)
		for i := range rows {
			s.DenseRow(row, w, i)
			var sum, abs float64
			for k := range row {
				p := float64(row[k]) * float64(x[k])
				sum += p
				abs += math.Abs(p)
			}
			require.InDelta(t, sum, float64(y[i]), abs*4e-6, typ.testName())
		}
	}
}

func BenchmarkDenseGEMV(b *testing.B) {
	r := rand.New(rand.NewPCG(10, 10))
	for _, c := range []struct {
		t          DType
		rows, cols int
	}{{F16, 16384, 768}, {Q8_0, 16384, 768}, {Q8_0, 128256, 2560}, {F16, 1024, 768}, {Q8_0, 1024, 768}} {
		w := randomDense(r, make([]byte, c.rows*c.t.RowBytes(c.cols)), c.t, c.rows, c.cols)
		x, y := make([]float32, c.cols), make([]float32, c.rows)
		normals(r, x)
		for _, s := range cSets() {
			b.Run(fmt.Sprintf("%s/%dx%d/%s", c.t.testName(), c.rows, c.cols, s.Name), func(b *testing.B) {
				b.SetBytes(int64(len(w.Data)))
				for b.Loop() {
					s.DenseGEMV(y, w, x, 0, c.rows)
				}
			})
		}
	}
}

func BenchmarkDenseGEMM(b *testing.B) {
	r := rand.New(rand.NewPCG(11, 11))
	const rows, cols, n = 2048, 768, 64
	x, y := make([]float32, n*cols), make([]float32, n*rows)
	normals(r, x)
	for _, typ := range denseTypes {
		w := randomDense(r, make([]byte, rows*typ.RowBytes(cols)), typ, rows, cols)
		for _, s := range cSets() {
			b.Run(fmt.Sprintf("%s/%dx%dx%d/%s", typ.testName(), rows, cols, n, s.Name), func(b *testing.B) {
				for b.Loop() {
					s.DenseGEMM(y, rows, w, x, cols, n, 0, rows)
				}
				b.ReportMetric(2*rows*cols*n*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}
