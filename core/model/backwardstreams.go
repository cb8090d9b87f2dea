package model

import (
	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/kernels"
)

// leave is the backward of write for token i: it returns the gradient of the
// result y of a layer function and leaves in old, until turn, that of the streams
// x as they were before, by way of H_res. coefs is the mixing of a dynamic site.
func (b *backWorker) leave(site *mhc.Site, coefs []mhc.Coef, i int, x, y []float32) []float32 {
	t, c := b.t, &b.t.m.cfg
	n := c.Streams * c.Dim
	d := row(b.dx, i, n)
	if c.Streams == 1 {
		return d
	}
	b.mixing(site, coefs, i).WriteBackward(b.k, row(b.old, i, n), b.y, &t.coefGrads[i], d, row(x, i, n), row(y, i, c.Dim))
	return b.y
}

// turn ends a round of leave.
func (b *backWorker) turn() {
	if b.t.m.cfg.Streams > 1 {
		b.dx, b.old = b.old, b.dx
	}
}

// enter is the backward of read for token i: from the gradient d of the normed
// input of a layer function, which it overwrites, it adds to that of the streams
// x and, in part, to that of the norm's weight.
func (b *backWorker) enter(site *mhc.Site, coefs []mhc.Coef, i int, d, x, weight, part []float32) {
	t, c := b.t, &b.t.m.cfg
	n := c.Streams * c.Dim
	x, dx := row(x, i, n), row(b.dx, i, n)
	if c.Streams == 1 {
		b.k.RMSNormBackward(d, part, d, x, weight, b.c.eps)
		b.k.Add(dx, dx, d)
		return
	}
	coef := b.mixing(site, coefs, i)
	coef.Read(b.k, b.c.u, x)
	b.k.RMSNormBackward(d, part, d, b.c.u, weight, b.c.eps)
	coef.ReadBackward(b.k, dx, &t.coefGrads[i], d, x)
	site.Backward(b.k, t.mixGrads[i/t.block], dx, &t.coefGrads[i], x, b.mix)
}

// mixing is the coefficients of token i.
func (b *backWorker) mixing(site *mhc.Site, coefs []mhc.Coef, i int) *mhc.Coef {
	if coefs != nil {
		return &coefs[i]
	}
	return site.Coef(b.k, nil, nil, nil)
}

// mergeLater leaves the blocks' gradients of a site to finish.
func (b *backWorker) mergeLater(site *mhc.Site, g *mhc.Grad) {
	if b.t.m.cfg.Streams > 1 {
		b.merge = pendingMix{site, g, b.first, b.n}
	}
}

// residual is the backward of the residual scalars of layer index for token i.
func (b *backWorker) residual(index, i int) {
	t, c := b.t, &b.t.m.cfg
	n := c.Streams * c.Dim
	scalars := t.m.layers[index].scalars
	d, de, e := row(b.dx, i, n), row(t.dembed, i, c.Dim), row(b.c.initial, i, c.Dim)
	sums := t.scalars[2*index*t.o.Tokens:]
	sums[i] = b.k.Dot(d, row(t.work.tape.before(index), i, n))
	second := float32(0)
	for s := range c.Streams {
		ds := row(d, s, c.Dim)
		second += b.k.Dot(ds, e)
		b.k.Axpy(de, scalars[1], ds)
	}
	sums[t.o.Tokens+i] = second
	b.k.Scale(d, scalars[0], d)
}

// embedding adds the gradient of the streams in front of the first layer to the
// rows of the embedding, and sums up that of the residual scalars. Workers divide
// the columns, so that a row's tokens are added in order.
func (b *backWorker) embedding() {
	t, c := b.t, &b.t.m.cfg
	n := c.Streams * c.Dim
	b.sync(partTokens)
	b.finish()
	b.take(0, t.tokens)
	for i := b.lo; i < b.hi; i++ {
		d, de := row(b.dx, i, n), row(t.dembed, i, c.Dim)
		if c.ResidualScalars {
			for s := range c.Streams {
				b.k.Add(de, de, row(d, s, c.Dim))
			}
		} else {
			mhc.ExpandBackward(b.k, de, d)
		}
	}
	b.sync(partTokens)
	if lo, hi := b.tw.Range(c.Dim, 16); lo < hi {
		for i := range t.tokens {
			g := row(t.embed.g, int(t.work.ids[i]), c.Dim)[lo:hi]
			b.k.Add(g, g, row(t.dembed, i, c.Dim)[lo:hi])
		}
	}
	if c.ResidualScalars && b.tw.ID == 0 {
		for l := range t.layers {
			for j := range 2 {
				sum := 0.0
				for _, v := range t.scalars[(2*l+j)*t.o.Tokens:][:t.tokens] {
					sum += float64(v)
				}
				t.layers[l].scalars[j] += float32(sum)
			}
		}
	}
	b.sync(partEmbedding)
}

// putAt makes the len(x) numbers from at on a·x.
func (f *factors) putAt(k *kernels.Set, at int, a float32, x []float32) {
	if f.half != nil {
		k.BF16(f.half[at:at+len(x)], a, x)
	} else {
		k.Scale(f.full[at:at+len(x)], a, x)
	}
}
