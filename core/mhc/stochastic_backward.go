package mhc

// tape is what sinkhorn leaves for sinkhornBackward: the softmax, then after every
// division the matrix and the sums it was divided by, 0 where it was not. A nil
// tape records nothing.
type tape struct {
	values []float32
	used   int
}

// tapeLen is the length of the values of the tape of one matrix.
func (c Config) tapeLen() int {
	if c.Kind != Sinkhorn {
		return 0
	}
	square := c.Streams * c.Streams
	return square + (2*c.SinkhornIters+2)*(square+c.Streams)
}

func (t *tape) matrix(h *Matrix, n int) {
	if t == nil {
		return
	}
	for i := range n {
		t.used += copy(t.values[t.used:], h[i][:n])
	}
}

func (t *tape) step(h *Matrix, sums *[MaxStreams]float32, n int) {
	if t == nil {
		return
	}
	t.matrix(h, n)
	t.used += copy(t.values[t.used:], sums[:n])
}

// last takes the last step off the tape: the matrix [n, n] and the sums.
func (t *tape) last(n int) (h, sums []float32) {
	t.used -= n*n + n
	return t.values[t.used:][:n*n], t.values[t.used+n*n:][:n]
}

// gradient of a Matrix. The chain through the iterations is short sums over n
// values, so float64 costs little and keeps what small differences say.
type matrix64 [MaxStreams][MaxStreams]float64

// birkhoffBackward writes the gradient of the logits to dl, from that of the matrix,
// g, and the shares w of the permutations (the softmax of the logits).
func birkhoffBackward(dl []float64, g *matrix64, w []float32, n int) {
	for p := range w {
		dl[p] = 0
		for i, j := range permutations[n][p][:n] {
			dl[p] += g[i][j]
		}
	}
	softmaxBackward(dl, w)
}

// softmaxBackward replaces d, the gradient of w = softmax(l), by that of l.
func softmaxBackward(d []float64, w []float32) {
	mean := 0.0
	for i, p := range w {
		mean += float64(p) * d[i]
	}
	for i, p := range w {
		d[i] = float64(p) * (d[i] - mean)
	}
}

// sinkhornBackward writes the gradient of the logits [n, n] to dl, from that of the
// matrix, g, which it overwrites, and the tape of sinkhorn, which it uses up.
// It differentiates the steps that were run, unfinished as they may be.
func sinkhornBackward(dl []float64, g *matrix64, t *tape, n int) {
	g.fillBackward(t.values[t.used-n*n-n:][:n*n], n)
	g.divideBackward(t, n, true)
	g.divideBackward(t, n, false)
	for t.used > n*n {
		g.divideBackward(t, n, false)
		g.divideBackward(t, n, true)
	}
	for i := range n {
		d := dl[i*n : (i+1)*n]
		copy(d, g[i][:n])
		softmaxBackward(d, t.values[i*n:][:n])
	}
}

// fillBackward is the backward of the last step of round, h + r·cᵀ/Σr, where r and
// c are what the rows and columns of h, [n, n], lack to 1.
func (g *matrix64) fillBackward(h []float32, n int) {
	var m Matrix
	for i := range n {
		copy(m[i][:], h[i*n:(i+1)*n])
	}
	rows, cols, total := m.deficits(n)
	if total == 0 {
		return
	}
	var dr, dc [MaxStreams]float64
	mean := 0.0 // Σ_i r_i·dr_i/Σr: what a larger Σr takes away
	for i := range n {
		for j := range n {
			dr[i] += g[i][j] * float64(cols[j]) / float64(total)
			dc[j] += g[i][j] * float64(rows[i]) / float64(total)
		}
		mean += dr[i] * float64(rows[i]) / float64(total)
	}
	for i := range n {
		for j := range n {
			if rows[i] > 0 {
				g[i][j] -= dr[i] - mean
			}
			if cols[j] > 0 {
				g[i][j] -= dc[j]
			}
		}
	}
}

// divideBackward is the backward of the last step on the tape, a division of rows, or
// columns, by their sums, h' = h/Σh: dh = (dh' - Σ dh'·h')/Σh.
func (g *matrix64) divideBackward(t *tape, n int, columns bool) {
	h, sums := t.last(n)
	for line, s := range sums {
		if s == 0 {
			continue
		}
		mean := 0.0
		for k := range n {
			i, j := line, k
			if columns {
				i, j = k, line
			}
			mean += g[i][j] * float64(h[i*n+j])
		}
		for k := range n {
			i, j := line, k
			if columns {
				i, j = k, line
			}
			g[i][j] = (g[i][j] - mean) / float64(s)
		}
	}
}
