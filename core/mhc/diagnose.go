package mhc

import "math"

// Similarity is the mean cosine between pairs of the n streams of x, [n·dim]: 1
// when all point the same way, which means that mixing has no effect. A zero
// stream has cosine 0 with every other. With one stream it is 1.
func Similarity(x []float32, n int) float64 {
	if n < 2 {
		return 1
	}
	g := gram(x, n)
	sum := 0.0
	for i := range n {
		for j := range i {
			if d := math.Sqrt(g[i][i] * g[j][j]); d > 0 {
				sum += g[i][j] / d
			}
		}
	}
	return sum / float64(n*(n-1)/2)
}

// EffectiveRank is exp of the entropy of the singular values of the n streams of
// x, [n·dim], normalised to sum 1 (Roy and Vetterli, 2007): from 1, all streams
// on one line, to n. It is 0 if x is zero.
func EffectiveRank(x []float32, n int) float64 {
	g := gram(x, n)
	jacobi(&g, n)
	total := 0.0
	for i := range n {
		g[i][i] = math.Sqrt(max(g[i][i], 0))
		total += g[i][i]
	}
	if total == 0 {
		return 0
	}
	h := 0.0
	for i := range n {
		if p := g[i][i] / total; p > 0 {
			h -= p * math.Log(p)
		}
	}
	return math.Exp(h)
}

// gram is X·Xᵀ.
func gram(x []float32, n int) (g [MaxStreams][MaxStreams]float64) {
	dim := len(x) / n
	for i := range n {
		for j := range i + 1 {
			for k := range dim {
				g[i][j] += float64(x[i*dim+k]) * float64(x[j*dim+k])
			}
			g[j][i] = g[i][j]
		}
	}
	return g
}

// jacobi makes the symmetric g diagonal by rotations: its diagonal is then its
// eigenvalues.
func jacobi(g *[MaxStreams][MaxStreams]float64, n int) {
	for range 30 {
		off := 0.0
		for i := range n {
			for j := range i {
				off += g[i][j] * g[i][j]
			}
		}
		if off == 0 {
			return
		}
		for p := range n {
			for q := range p {
				if g[p][q] == 0 {
					continue
				}
				theta := (g[q][q] - g[p][p]) / (2 * g[p][q])
				t := math.Copysign(1, theta) / (math.Abs(theta) + math.Hypot(theta, 1))
				c := 1 / math.Hypot(t, 1)
				s := t * c
				for k := range n {
					g[k][p], g[k][q] = c*g[k][p]-s*g[k][q], s*g[k][p]+c*g[k][q]
				}
				for k := range n {
					g[p][k], g[q][k] = c*g[p][k]-s*g[q][k], s*g[p][k]+c*g[q][k]
				}
			}
		}
	}
}
