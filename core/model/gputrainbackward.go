package model

import (
	"github.com/architehc/nanochat/kernels/cuda"
)

// head computes the loss and, if the pass learns, the gradient of the head and of what is in
// front of it, a block of tokens at a time.
func (p *gpuPass) head() {
	stride := p.vocabStride()
	for first := 0; first < p.n; first += p.block {
		n := min(p.block, p.n-first)
		x, factor := p.headX+cuda.Ptr(2*first*p.dim), p.headFactor+cuda.Ptr(2*first*p.dim)
		p.multiply(&cuda.Product{
			M: n, N: p.vocab, K: p.dim, A: x, LDA: p.dim, B: p.gpuNet.head.half, LDB: p.dim, TransB: true, TypeA: cuda.BlasF16,
			D: p.logits, LDD: stride, TypeD: cuda.BlasF32,
		})
		p.mark(partHead)
		at := cuda.Ptr(4 * first)
		c := &cuda.CrossEntropy{
			Logits: p.logits, Targets: p.batch.targets + at, Options: p.terms, Results: p.results + 4*at, Vocab: p.vocab, Stride: stride,
		}
		if p.int8Head {
			c.Scale = p.finalAct.Scale + at
		}
		if p.learn {
			c.DZ = p.dz
		}
		p.do(p.loss.CrossEntropy(c, n))
		p.mark(partLoss)
		if !p.learn {
			continue
		}
		w := &p.gpuNet.head
		p.multiply(&cuda.Product{
			M: n, N: p.dim, K: p.vocab, A: p.dz, LDA: stride, B: w.used, LDB: p.dim, TypeA: cuda.BlasBF16,
			D: p.din + cuda.Ptr(4*first*p.dim), LDD: p.dim, TypeD: cuda.BlasF32,
		})
		p.multiply(&cuda.Product{
			M: p.vocab, N: p.dim, K: n, A: p.dz, LDA: stride, TransA: true, B: factor, LDB: p.dim, TypeA: cuda.BlasBF16,
			D: w.g, LDD: p.dim, TypeD: cuda.BlasF32, Beta: 1,
		})
		p.mark(partHeadBackward)
	}
	p.do(p.loss.Sum(p.sums, p.results, p.batch.targets, p.n))
	p.mark(partLoss)
}

func (p *gpuPass) multiply(m *cuda.Product) {
	m.Alpha = 1
	p.do(p.blas.MatMul(m))
}

// products computes dst = dy·W and adds dyᵀ·x to the gradient of w.
func (p *gpuPass) products(dst cuda.Ptr, w *gpuMatrix) {
	p.multiply(&cuda.Product{
		M: p.n, N: w.cols, K: w.rows, A: p.dy, LDA: w.rows, B: w.used, LDB: w.cols, TypeA: cuda.BlasBF16,
		D: dst, LDD: w.cols, TypeD: cuda.BlasF32,
	})
	p.mark(partInputs)
	p.multiply(&cuda.Product{
		M: w.rows, N: w.cols, K: p.n, A: p.dy, LDA: w.rows, TransA: true, B: p.x, LDB: w.cols, TypeA: cuda.BlasBF16,
		D: w.g, LDD: w.cols, TypeD: cuda.BlasF32, Beta: 1,
	})
	p.mark(partWeights)
}

// sum keeps partial sums of a gradient to be added at the end of a layer.
func (p *gpuPass) sum(s cuda.PartialSum, to gpuVector, err error) {
	p.do(err)
	if to.g != 0 {
		p.partials = append(p.partials, s.Into(to.g))
	}
}

// backward adds the gradients of all weights, from that of the head's input.
func (p *gpuPass) backward() {
	c := &cuda.LastNormBack{
		D: p.din, X: p.layers[len(p.layers)-1].left, Weight: p.norm.w, Partial: p.partial[1], DX: p.dx, DEmbed: p.dembed,
		Streams: p.cfg.Streams, Dim: p.dim, Eps: p.eps(),
	}
	if p.int8Head {
		c.Act = &p.finalAct
	}
	s, err := p.train.LastNormBack(c, p.n)
	p.sum(s, p.norm, err)
	p.addSums()
	for i := len(p.layers) - 1; i >= 0; i-- {
		p.recomputed(i)
		p.feedForwardBack(&p.layers[i])
		p.attentionBack(&p.layers[i])
		p.addSums()
		p.mark(partTokens)
	}
	p.do(p.train.EmbedBack(&cuda.EmbedBack{
		G: p.embed.g, DX: p.dx, DEmbed: p.dembed, Ids: p.batch.sortedIDs, Tokens: p.batch.sortedTokens, Partial: p.embedPart,
		Streams: p.cfg.Streams, Dim: p.dim,
	}, p.n))
	p.mark(partEmbedding)
}

// addSums adds up what sum has kept.
func (p *gpuPass) addSums() {
	p.do(p.train.AddPartials(p.partials...))
	p.partials = p.partials[:0]
}

// feedForwardBack is the backward of the second half of a layer, and of the output
// projection of attention.
func (p *gpuPass) feedForwardBack(l *gpuTrainLayer) {
	p.leave(&l.mhcFFN, l.middle, l.downY, &l.ff)
	p.mark(partTokens)
	p.products(p.wideGrad, &l.down)
	s, err := p.train.ActivateBack(&cuda.ActivateBack{
		D: p.wideGrad, Rows: l.upY, Weight: l.ffnSub.w, Partial: p.partial[0], Act: &l.ff, DYB: p.dy,
		Input: cuda.Factor{Act: &l.ffnIn, BF16: p.x}, FFN: p.ffn, Kind: activation(p.cfg.FFNKind), Eps: p.eps(),
	}, p.n)
	p.sum(s, l.ffnSub, err)
	p.mark(partTokens)
	p.products(p.din, &l.up)
	p.enterBack(&l.mhcFFN, l.middle, &l.ffnIn, l.ffnNorm, p.partial[1], nil, gpuVector{})
	p.leave(&l.mhcAttn, l.entered, l.oY, &l.attOut)
	p.mark(partTokens)
	p.products(p.datt, &l.o)
	s, err = p.train.SubNormBack(&cuda.SubNormBack{
		D: p.datt, Weight: l.attnSub.w, X: l.att, Partial: p.partial[2], Act: &l.attOut, Dst: p.dout, Width: p.q, Eps: p.eps(),
	}, p.n)
	p.sum(s, l.attnSub, err)
	p.mark(partTokens)
}

// attentionBack is the backward of the first half of a layer, from the gradient of the
// result of attention.
func (p *gpuPass) attentionBack(l *gpuTrainLayer) {
	p.do(p.flash.Backward(p.dq, p.dk, p.dv, p.delta, p.dout, l.att, l.lse, l.rotated, p.attention()))
	p.mark(partAttentionBackward)
	q, k, err := p.train.RotateBack(&cuda.RotateBack{
		TrainRotation: p.rotation(l, l.qkvY), DQ: p.dq, DK: p.dk, DV: p.dv, DYB: p.dy,
		Input: cuda.Factor{Act: &l.in, BF16: p.x}, Partial: p.partial[3],
	}, p.docs)
	p.sum(q, l.qNorm, err)
	p.sum(k, l.kNorm, err)
	p.mark(partTokens)
	p.products(p.din, &l.qkv)
	var r *cuda.Residual
	if p.cfg.ResidualScalars {
		r = &cuda.Residual{Before: l.before, Initial: p.initial, Scalars: l.scalars.w, DEmbed: p.dembed}
	}
	p.enterBack(&l.mhcAttn, l.entered, &l.in, l.attnNorm, p.partial[4], r, l.scalars)
}

// leave is the backward of the writing of a layer function's result y to the streams x. It
// makes the gradient of y, and the input in of the function's last projection, factors.
func (p *gpuPass) leave(site *gpuSite, x, y cuda.Ptr, in *cuda.Act) {
	p.do(p.train.Leave(&cuda.Leave{
		DX: p.dx, Old: p.dx, X: x, Y: y, Coef: site.coef, CoefGrad: p.coefGrads, CoefStride: p.coefStride(), DYB: p.dy,
		Input: cuda.Factor{Act: in, BF16: p.x}, Streams: p.cfg.Streams, Dim: p.dim,
	}, p.n))
}

// enterBack is the backward of the reading of a layer function's input from the streams x
// and of its norm, and of the residual scalars in front of it, if there are any.
func (p *gpuPass) enterBack(site *gpuSite, x cuda.Ptr, in *cuda.Act, weight gpuVector, partial cuda.Ptr, r *cuda.Residual, scalars gpuVector) {
	e := &cuda.Enter{
		D: p.din, DX: p.dx, X: x, Weight: weight.w, Partial: partial, Act: in, Coef: site.coef, CoefGrad: p.coefGrads, CoefStride: p.coefStride(),
		Residual: r, Streams: p.cfg.Streams, Dim: p.dim, Eps: p.eps(),
	}
	if p.dynamic() {
		e.Residual = nil // the mixing has a gradient for the streams in front of them
	}
	w, s, err := p.train.Enter(e, p.n)
	p.sum(w, weight, err)
	switch {
	case p.cfg.Streams == 1:
	case !p.dynamic():
		p.do(p.mhc.Finish(p.sites, site.number, p.coefGrads, p.n))
	default:
		p.mark(partTokens)
		p.do(p.mhc.Backward(p.sites, site.number, &cuda.MHCBackward{X: x, DX: p.dx, Grad: p.coefGrads, Z: site.z, Inverse: site.inverse}, p.n))
		p.mark(partMixing)
		if r != nil {
			s = p.residualBack(e, r)
		}
	}
	if r != nil {
		p.sum(s, scalars, nil)
	}
}

// residualBack is the backward of residual scalars alone: that of reading nothing.
func (p *gpuPass) residualBack(e *cuda.Enter, r *cuda.Residual) cuda.PartialSum {
	p.addSums() // the partial sums that the next kernel overwrites
	p.do(p.t.Fill(p.din, 0, uint64(4*p.n*p.dim)))
	e.Residual = r
	_, s, err := p.train.Enter(e, p.n)
	p.do(err)
	return s
}
