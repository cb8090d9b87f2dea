package mhc

import "github.com/architehc/nanochat/kernels"

// Coef is the mixing of one token at one site.
type Coef struct {
	n         int
	Pre, Post [MaxStreams]float32
	Res       Matrix
}

// Read writes the layer's input Σ_s h_pre[s]·X[s] to u, [dim], from x, [n·dim].
// With one stream the input is x itself: callers may use x in place of u, which
// Read fills all the same.
func (c *Coef) Read(k *kernels.Set, u, x []float32) {
	dim := len(u)
	if c.n == 1 {
		copy(u, x[:dim])
		return
	}
	k.Scale(u, c.Pre[0], x[:dim])
	for s := 1; s < c.n; s++ {
		k.Axpy(u, c.Pre[s], x[s*dim:(s+1)*dim])
	}
}

// Write writes the new state H_res·X + h_post ⊗ y to dst, [n·dim], from x, [n·dim],
// and the layer's output y, [dim]. dst may be x only with one stream; otherwise
// they do not overlap.
func (c *Coef) Write(k *kernels.Set, dst, x, y []float32) {
	dim := len(y)
	if c.n == 1 {
		k.Add(dst[:dim], x[:dim], y)
		return
	}
	for i := range c.n {
		d := dst[i*dim : (i+1)*dim]
		k.Scale(d, c.Res[i][0], x[:dim])
		for j := 1; j < c.n; j++ {
			k.Axpy(d, c.Res[i][j], x[j*dim:(j+1)*dim])
		}
		k.Axpy(d, c.Post[i], y)
	}
}

// Expand makes every stream of x, [n·dim], a copy of e, [dim].
func Expand(x, e []float32) {
	for len(x) > 0 {
		x = x[copy(x, e):]
	}
}

// Collapse writes the mean of the streams of x, [n·dim], to dst, [dim].
func Collapse(k *kernels.Set, dst, x []float32) {
	dim := len(dst)
	n := len(x) / dim
	if n == 1 {
		copy(dst, x)
		return
	}
	k.Add(dst, x[:dim], x[dim:2*dim])
	for s := 2; s < n; s++ {
		k.Add(dst, dst, x[s*dim:(s+1)*dim])
	}
	k.Scale(dst, 1/float32(n), dst)
}
