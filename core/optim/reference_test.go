package optim

import (
	"math"
	"math/rand/v2"
	"slices"
)

// mat is a dense float64 matrix: the reference of the tests.
type mat struct {
	r, c int
	v    []float64
}

func newMat(r, c int) mat { return mat{r, c, make([]float64, r*c)} }

func matOf(x []float32, r, c int) mat {
	m := newMat(r, c)
	for i, v := range x {
		m.v[i] = float64(v)
	}
	return m
}

func normalMat(rnd *rand.Rand, r, c int) mat {
	m := newMat(r, c)
	for i := range m.v {
		m.v[i] = rnd.NormFloat64()
	}
	return m
}

func (a mat) t() mat {
	b := newMat(a.c, a.r)
	for i := range a.r {
		for j := range a.c {
			b.v[j*a.r+i] = a.v[i*a.c+j]
		}
	}
	return b
}

func (a mat) mul(b mat) mat {
	d := newMat(a.r, b.c)
	for i := range a.r {
		for k := range a.c {
			for j := range b.c {
				d.v[i*b.c+j] += a.v[i*a.c+k] * b.v[k*b.c+j]
			}
		}
	}
	return d
}

// lin is s·a + u·b.
func (a mat) lin(s float64, b mat, u float64) mat {
	d := newMat(a.r, a.c)
	for i := range d.v {
		d.v[i] = s*a.v[i] + u*b.v[i]
	}
	return d
}

func (a mat) norm() float64 {
	var s float64
	for _, v := range a.v {
		s += v * v
	}
	return math.Sqrt(s)
}

func (a mat) f32() []float32 {
	d := make([]float32, len(a.v))
	for i, v := range a.v {
		d[i] = float32(v)
	}
	return d
}

// svd is the singular value decomposition of a, U·diag(s)·Vᵀ with the shorter
// side's number of values, largest first, by one-sided Jacobi: columns are rotated
// until they are orthogonal.
func (a mat) svd() (u mat, s []float64, v mat) {
	if a.r < a.c {
		v, s, u = a.t().svd()
		return u, s, v
	}
	cols, basis := a.t(), newMat(a.c, a.c) // rows of cols are columns of a
	for i := range a.c {
		basis.v[i*a.c+i] = 1
	}
	row := func(m mat, i int) []float64 { return m.v[i*m.c:][:m.c] }
	for sweep, off := 0, 1.0; sweep < 60 && off > 1e-14; sweep++ {
		off = 0
		for p := range a.c {
			for q := p + 1; q < a.c; q++ {
				var pp, qq, pq float64
				x, y := row(cols, p), row(cols, q)
				for i := range x {
					pp, qq, pq = pp+x[i]*x[i], qq+y[i]*y[i], pq+x[i]*y[i]
				}
				if pq == 0 {
					continue
				}
				off = max(off, math.Abs(pq)/math.Sqrt(pp*qq))
				z := (qq - pp) / (2 * pq)
				t := math.Copysign(1, z) / (math.Abs(z) + math.Hypot(1, z))
				c := 1 / math.Hypot(1, t)
				for _, m := range []mat{cols, basis} {
					x, y := row(m, p), row(m, q)
					for i := range x {
						x[i], y[i] = c*x[i]-c*t*y[i], c*t*x[i]+c*y[i]
					}
				}
			}
		}
	}
	order := make([]int, a.c)
	length := make([]float64, a.c)
	for i := range order {
		order[i] = i
		length[i] = mat{1, a.r, row(cols, i)}.norm()
	}
	slices.SortFunc(order, func(i, j int) int {
		if length[i] > length[j] {
			return -1
		}
		return 1
	})
	ut, vt := newMat(a.c, a.r), newMat(a.c, a.c)
	for k, i := range order {
		s = append(s, length[i])
		for j, x := range row(cols, i) {
			row(ut, k)[j] = x / length[i]
		}
		copy(row(vt, k), row(basis, i))
	}
	return ut.t(), s, vt.t()
}

// newtonSchulz is the iteration of Muon in float64, as its authors write it.
func newtonSchulz(g mat, steps int) mat {
	x := g.lin(1/g.norm(), g, 0)
	if g.r > g.c {
		x = x.t()
	}
	for range steps {
		a := x.mul(x.t())
		b := a.lin(float64(nsB), a.mul(a), float64(nsC))
		x = x.lin(float64(nsA), b.mul(x), 1)
	}
	if g.r > g.c {
		x = x.t()
	}
	return x
}
