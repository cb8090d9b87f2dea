package tune

import "github.com/architehc/nanochat/kernels"

// route is one shape and the set that runs it.
type route struct {
	m, k, group int
	dtype       kernels.DType
	batch       int
	set         *kernels.Set
}

// compose builds the set that runs each chosen shape on its set.
func compose(o Options, choices []Choice) *kernels.Set {
	routes := map[Op][]route{}
	for _, c := range choices {
		for _, s := range o.Sets {
			if s.Name == c.Kernel && s != o.Fallback {
				routes[c.Op] = append(routes[c.Op], route{c.M, c.K, c.Group, c.Type, c.Batch, s})
			}
		}
	}
	if len(routes) == 0 {
		return o.Fallback
	}
	set := *o.Fallback
	set.Name = o.Fallback.Name + " tuned"
	fallback := o.Fallback
	if r := routes[TernaryGEMV]; r != nil {
		set.TernaryGEMV = func(dst []float32, w *kernels.Ternary, x *kernels.Act, r0, r1 int) {
			lookup(r, w.Rows, w.Cols, w.Group, 0, 1, fallback).TernaryGEMV(dst, w, x, r0, r1)
		}
	}
	if r := routes[TernaryGEMM]; r != nil {
		set.TernaryGEMM = func(dst []float32, ldd int, w *kernels.Ternary, x *kernels.Act, r0, r1 int, scratch []byte) {
			lookup(r, w.Rows, w.Cols, w.Group, 0, Bucket(x.N), fallback).TernaryGEMM(dst, ldd, w, x, r0, r1, scratch)
		}
	}
	if r := routes[DenseGEMV]; r != nil {
		set.DenseGEMV = func(dst []float32, w *kernels.Dense, x []float32, r0, r1 int) {
			lookup(r, w.Rows, w.Cols, 0, w.Type, 1, fallback).DenseGEMV(dst, w, x, r0, r1)
		}
	}
	if r := routes[DenseGEMM]; r != nil {
		set.DenseGEMM = func(dst []float32, ldd int, w *kernels.Dense, x []float32, ldx, n, r0, r1 int) {
			lookup(r, w.Rows, w.Cols, 0, w.Type, Bucket(n), fallback).DenseGEMM(dst, ldd, w, x, ldx, n, r0, r1)
		}
	}
	if r := routes[Q8GEMV]; r != nil {
		set.Q8GEMV = func(dst []float32, w *kernels.Dense, x *kernels.Act, r0, r1 int) {
			lookup(r, w.Rows, w.Cols, 0, w.Type, 1, fallback).Q8GEMV(dst, w, x, r0, r1)
		}
	}
	if r := routes[Q8GEMM]; r != nil {
		set.Q8GEMM = func(dst []float32, ldd int, w *kernels.Dense, x *kernels.Act, r0, r1 int) {
			lookup(r, w.Rows, w.Cols, 0, w.Type, Bucket(x.N), fallback).Q8GEMM(dst, ldd, w, x, r0, r1)
		}
	}
	return &set
}

// lookup is the set of a shape. A model has few shapes, so a scan is fastest.
func lookup(routes []route, m, k, group int, t kernels.DType, batch int, fallback *kernels.Set) *kernels.Set {
	for i := range routes {
		r := &routes[i]
		if r.m == m && r.k == k && r.batch == batch && r.group == group && r.dtype == t {
			return r.set
		}
	}
	return fallback
}
