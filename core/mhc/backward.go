package mhc

import "github.com/architehc/nanochat/kernels"

// WriteBackward is the backward of Write: from dout, the gradient of the new state,
// [n·dim], it writes the gradients dx of the old one, by way of H_res alone, and
// dy of the layer's output, and sets Post and Res of d. x and y are what Write
// had. dx and dout do not overlap; only with one stream dx and dy may be dout.
func (c *Coef) WriteBackward(k *kernels.Set, dx, dy []float32, d *CoefGrad, dout, x, y []float32) {
	dim := len(dy)
	if c.n == 1 {
		copyOnto(dx[:dim], dout[:dim])
		copyOnto(dy, dout[:dim])
		return
	}
	for j := range c.n {
		dst := dx[j*dim : (j+1)*dim]
		k.Scale(dst, c.Res[0][j], dout[:dim])
		for i := 1; i < c.n; i++ {
			k.Axpy(dst, c.Res[i][j], dout[i*dim:(i+1)*dim])
		}
	}
	k.Scale(dy, c.Post[0], dout[:dim])
	for i := range c.n {
		o := dout[i*dim : (i+1)*dim]
		if i > 0 {
			k.Axpy(dy, c.Post[i], o)
		}
		d.Post[i] = k.Dot(o, y)
		for j := range c.n {
			d.Res[i][j] = k.Dot(o, x[j*dim:(j+1)*dim])
		}
	}
}

// ReadBackward is the backward of Read: from du, the gradient of the layer's input,
// [dim], it adds to dx, the gradient of the state x, [n·dim], and sets Pre of d.
func (c *Coef) ReadBackward(k *kernels.Set, dx []float32, d *CoefGrad, du, x []float32) {
	dim := len(du)
	if c.n == 1 {
		k.Add(dx[:dim], dx[:dim], du)
		return
	}
	for s := range c.n {
		k.Axpy(dx[s*dim:(s+1)*dim], c.Pre[s], du)
		d.Pre[s] = k.Dot(du, x[s*dim:(s+1)*dim])
	}
}

// ExpandBackward writes the sum of the streams of dx, [n·dim], to de, [dim].
func ExpandBackward(k *kernels.Set, de, dx []float32) {
	dim := len(de)
	copyOnto(de, dx[:dim])
	for s := dim; s < len(dx); s += dim {
		k.Add(de, de, dx[s:s+dim])
	}
}

// CollapseBackward writes d/n, d [dim] being the gradient of the mean of n streams,
// to every stream of dx, [n·dim]. With one stream dx may be d.
func CollapseBackward(k *kernels.Set, dx, d []float32) {
	dim := len(d)
	if n := len(dx) / dim; n == 1 {
		copyOnto(dx, d)
	} else {
		k.Scale(dx[:dim], 1/float32(n), d)
		Expand(dx[dim:], dx[:dim])
	}
}

// BackwardScratchLen is the length of the scratch of Site.Backward.
func (c Config) BackwardScratchLen() int {
	if c.Streams == 1 || !c.Dynamic {
		return 0
	}
	return 2*c.Streams*c.Dim + 2*maxLogits + c.tapeLen()
}

// Backward adds to g what the mixing of a token contributes, from its gradient d,
// once all of d is set. x is the state that Coef had. A dynamic site adds the
// gradient of x, by way of the mixing, to dx, [Streams·Dim]; a static one reads only
// g and d, and its gradient is complete after FinishBackward. scratch has at
// least BackwardScratchLen values.
func (s *Site) Backward(k *kernels.Set, g *Grad, dx []float32, d *CoefGrad, x, scratch []float32) {
	if s.Streams == 1 {
		return
	}
	if !s.Dynamic {
		g.sum.add(d)
		return
	}
	width, logits := s.Streams*s.Dim, s.Logits()
	norm, scratch := scratch[:width], scratch[width:]
	dnorm, scratch := scratch[:width], scratch[width:]
	z, scratch := scratch[:logits], scratch[maxLogits:]
	l, scratch := scratch[:logits], scratch[maxLogits:]
	k.RMSNorm(norm, x, nil, normEps)
	k.DenseGEMV(z, &s.proj, norm, 0, logits)
	s.gated(l, z)

	var sum coefSum
	sum.add(d)
	var dl [maxLogits]float64
	s.logitsBackward(k, dl[:logits], &sum, l, scratch)

	s.addBias(g, dl[:logits])
	var dgate [3]float64
	clear(dnorm)
	for i := range logits {
		dgate[min(i/s.Streams, 2)] += dl[i] * float64(z[i])
		dz := float32(dl[i]) * s.gateOf(i)
		k.Axpy(g.Proj[i*width:(i+1)*width], dz, norm)
		k.Axpy(dnorm, dz, s.Proj[i*width:(i+1)*width])
	}
	for i, v := range dgate {
		g.Gate[i] += float32(v)
	}
	k.RMSNormBackward(dnorm, nil, dnorm, x, nil, normEps)
	k.Add(dx, dx, dnorm)
}

// FinishBackward turns the sums of a static site, over all tokens, into the
// gradient of its logits, adds that to g, and clears the sums. Call it once, after
// the last Backward and Merge. It does nothing for a dynamic site.
func (s *Site) FinishBackward(k *kernels.Set, g *Grad) {
	if s.Streams == 1 || s.Dynamic {
		return
	}
	var dl [maxLogits]float64
	n := s.Logits()
	l := g.scratch[:n]
	s.bias(l)
	s.logitsBackward(k, dl[:n], &g.sum, l, g.scratch[maxLogits:])
	s.addBias(g, dl[:n])
	g.sum = coefSum{}
}

// addBias adds dl to the gradients of pre, post and res.
func (s *Site) addBias(g *Grad, dl []float64) {
	for _, dst := range [...][]float32{g.Pre, g.Post, g.Res} {
		for i := range dst {
			dst[i] += float32(dl[i])
		}
		dl = dl[len(dst):]
	}
}

// logitsBackward writes the gradient of the logits l, which it overwrites, to dl,
// from that of the mixing, d, which it overwrites. scratch has room for a tape.
func (s *Site) logitsBackward(k *kernels.Set, dl []float64, d *coefSum, l, scratch []float32) {
	n := s.Streams
	k.Sigmoid(l[:2*n], l[:2*n])
	for i := range n {
		p, q := float64(l[i]), float64(l[n+i])
		dl[i] = d.pre[i] * p * (1 - p)
		dl[n+i] = d.post[i] * 2 * q * (1 - q)
	}
	if s.Kind == Sinkhorn {
		var h Matrix
		t := tape{values: scratch[:s.tapeLen()]}
		sinkhorn(k, &h, l[2*n:], n, s.SinkhornIters, &t)
		sinkhornBackward(dl[2*n:], &d.res, &t, n)
		return
	}
	k.Softmax(l[2*n:], l[2*n:])
	birkhoffBackward(dl[2*n:], &d.res, l[2*n:], n)
}

// copyOnto copies src to dst unless they are the same memory.
func copyOnto(dst, src []float32) {
	if len(dst) > 0 && &dst[0] != &src[0] {
		copy(dst, src)
	}
}
