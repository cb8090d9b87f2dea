package mhc

import "github.com/architehc/nanochat/kernels"

// Matrix is H_res: row i says what new stream i takes from the old ones. Only the
// first n rows and columns count.
type Matrix [MaxStreams][MaxStreams]float32

// permutations[n] are the permutations of n in lexicographic order.
var permutations = func() (all [MaxStreams + 1][][MaxStreams]uint8) {
	for n := 1; n <= MaxStreams; n++ {
		var extend func(p [MaxStreams]uint8, k int, used uint)
		extend = func(p [MaxStreams]uint8, k int, used uint) {
			if k == n {
				all[n] = append(all[n], p)
				return
			}
			for v := range n {
				if used>>v&1 == 0 {
					p[k] = uint8(v)
					extend(p, k+1, used|1<<v)
				}
			}
		}
		extend([MaxStreams]uint8{}, 0, 0)
	}
	return all
}()

// birkhoff sets h to Σ_k softmax(l)_k·P_k, ascending k. It overwrites l.
func birkhoff(k *kernels.Set, h *Matrix, l []float32, n int) {
	k.Softmax(l, l)
	*h = Matrix{}
	for p, w := range l {
		for i, j := range permutations[n][p][:n] {
			h[i][j] += w
		}
	}
}

// sinkhorn sets h to the balanced exp(l), l [n, n]. It overwrites l and records on
// tape, which may be nil, what sinkhornBackward needs.
func sinkhorn(k *kernels.Set, h *Matrix, l []float32, n, iters int, tape *tape) {
	*h = Matrix{}
	for i := range n {
		k.Softmax(l[i*n:(i+1)*n], l[i*n:(i+1)*n])
		copy(h[i][:], l[i*n:(i+1)*n])
	}
	tape.matrix(h, n)
	for range iters {
		h.divideColumns(n, 0, tape)
		h.divideRows(n, 0, tape)
	}
	h.round(n, tape)
}

// round makes a nonnegative h doubly stochastic by the smallest steps: no row and
// then no column above 1, and the deficits filled up by a rank-one matrix.
func (h *Matrix) round(n int, tape *tape) {
	h.divideRows(n, 1, tape)
	h.divideColumns(n, 1, tape)
	rows, cols, total := h.deficits(n)
	if total == 0 {
		return
	}
	for i := range n {
		for j := range n {
			h[i][j] += float32(rows[i]*cols[j]) / total
		}
	}
}

// deficits is what the rows and the columns of h lack to 1, and the sum over rows.
func (h *Matrix) deficits(n int) (rows, cols [MaxStreams]float32, total float32) {
	for i := range n {
		rows[i] = max(1-h.rowSum(i, n), 0)
		cols[i] = max(1-h.colSum(i, n), 0)
		total += rows[i]
	}
	return rows, cols, total
}

// divideRows divides the rows whose sum is more than above by it.
func (h *Matrix) divideRows(n int, above float32, tape *tape) {
	var sums [MaxStreams]float32
	for i := range n {
		if r := h.rowSum(i, n); r > above {
			sums[i] = r
			for j := range n {
				h[i][j] /= r
			}
		}
	}
	tape.step(h, &sums, n)
}

// divideColumns divides the columns whose sum is more than above by it.
func (h *Matrix) divideColumns(n int, above float32, tape *tape) {
	var sums [MaxStreams]float32
	for j := range n {
		if c := h.colSum(j, n); c > above {
			sums[j] = c
			for i := range n {
				h[i][j] /= c
			}
		}
	}
	tape.step(h, &sums, n)
}

func (h *Matrix) rowSum(i, n int) (s float32) {
	for j := range n {
		s += h[i][j]
	}
	return s
}

func (h *Matrix) colSum(j, n int) (s float32) {
	for i := range n {
		s += h[i][j]
	}
	return s
}
