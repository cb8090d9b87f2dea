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
			D: p.din + cuda.Ptr(2*first*p.dim), LDD: p.dim, TypeD: cuda.BlasBF16,
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

// products computes dst = dy·W, in bfloat16, and adds dyᵀ·x to the gradient of w.
func (p *gpuPass) products(dst cuda.Ptr, w *gpuMatrix) {
	p.multiply(&cuda.Product{
		M: p.n, N: w.cols, K: w.rows, A: p.dy, LDA: w.rows, B: w.used, LDB: w.cols, TypeA: cuda.BlasBF16,
		D: dst, LDD: w.cols, TypeD: cuda.BlasBF16,
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
	last := len(p.layers) - 1
	c := &cuda.LastNormBack{
		D: p.din, HalfD: true, X: p.layers[last].left, Weight: p.norm.w, Partial: p.partial[1], DX: p.dx, DEmbed: p.dembed,
		Streams: p.cfg.Streams, Dim: p.dim, Eps: p.eps(),
	}
	if p.int8Head {
		c.Act = &p.finalAct
	}
	s, err := p.train.LastNormBack(c, p.n)
	p.sum(s, p.norm, err)
	p.addSums()
	p.do(p.train.Leave(p.leaveFFN(&p.layers[last]), p.n))
	for i := last; i >= 0; i-- {
		p.feedForwardBack(&p.layers[i])
		p.attentionBack(i)
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

// feedForwardBack is the backward of the second half of a layer, whose end it finds as dy
// and x, and of the output projection of attention.
func (p *gpuPass) feedForwardBack(l *gpuTrainLayer) {
	p.mark(partTokens)
	p.products(p.wideGrad, &l.down)
	s, err := p.train.ActivateBack(&cuda.ActivateBack{
		D: p.wideGrad, HalfD: true, Rows: l.upY, Weight: l.ffnSub.w, Partial: p.partial[0], Act: &l.ff, DYB: p.dy,
		Input: cuda.Factor{Act: &l.ffnIn, BF16: p.x}, FFN: p.ffn, Kind: activation(p.cfg.FFNKind), Eps: p.eps(),
	}, p.n)
	p.sum(s, l.ffnSub, err)
	p.mark(partTokens)
	p.products(p.din, &l.up)
	p.enterBack(p.enterOf(&l.mhcFFN, l.middle, &l.ffnIn, l.ffnNorm, p.partial[1]), &l.mhcFFN, l.ffnNorm, gpuVector{}, p.leaveAttention(l))
	p.mark(partTokens)
	p.products(p.datt, &l.o)
	s, err = p.train.SubNormBack(&cuda.SubNormBack{
		D: p.datt, HalfD: true, Weight: l.attnSub.w, X: l.att, Partial: p.partial[2], Act: &l.attOut, Dst: p.dout, Width: p.q, Eps: p.eps(),
	}, p.n)
	p.sum(s, l.attnSub, err)
	p.mark(partTokens)
}

// attentionBack is the backward of the first half of layer index, from the gradient of the
// result of attention, and of the end of the layer before.
func (p *gpuPass) attentionBack(index int) {
	l := &p.layers[index]
	p.do(p.flash.Backward(p.dq, p.dk, p.dv, p.delta, p.dout, l.att, l.lse, l.rotated, p.attention()))
	p.mark(partAttentionBackward)
	q, k, err := p.train.RotateBack(&cuda.RotateBack{
		TrainRotation: p.rotation(l, l.qkvY), DQ: p.dq, DK: p.dk, DV: p.dv, HalfD: true, DYB: p.dy,
		Input: cuda.Factor{Act: &l.in, BF16: p.x}, Partial: p.partial[3],
	}, p.docs)
	p.sum(q, l.qNorm, err)
	p.sum(k, l.kNorm, err)
	p.mark(partTokens)
	p.products(p.din, &l.qkv)
	e := p.enterOf(&l.mhcAttn, l.entered, &l.in, l.attnNorm, p.partial[4])
	if p.cfg.ResidualScalars {
		e.Residual = &cuda.Residual{Before: l.before, Initial: p.initial, Scalars: l.scalars.w, DEmbed: p.dembed}
	}
	if index == 0 {
		p.enterBack(e, &l.mhcAttn, l.attnNorm, l.scalars, nil)
		return
	}
	before := &p.layers[index-1]
	if !p.recompute {
		p.enterBack(e, &l.mhcAttn, l.attnNorm, l.scalars, p.leaveFFN(before))
		return
	}
	p.enterBack(e, &l.mhcAttn, l.attnNorm, l.scalars, nil)
	p.again(before)
	p.do(p.train.Leave(p.leaveFFN(before), p.n))
}

// leaveFFN is the backward of the writing of what the feed-forward part of l gives. It makes
// the gradient of that, and the input of the down projection, factors.
func (p *gpuPass) leaveFFN(l *gpuTrainLayer) *cuda.Leave {
	return p.leave(&l.mhcFFN, l.middle, l.downY, &l.ff)
}

// leaveAttention is the same for what attention gives.
func (p *gpuPass) leaveAttention(l *gpuTrainLayer) *cuda.Leave {
	return p.leave(&l.mhcAttn, l.entered, l.oY, &l.attOut)
}

func (p *gpuPass) leave(site *gpuSite, x, y cuda.Ptr, in *cuda.Act) *cuda.Leave {
	return &cuda.Leave{
		DX: p.dx, Old: p.dx, X: x, Y: y, Coef: site.coef, CoefGrad: p.coefGrads[site.number%2], CoefStride: p.coefStride(), DYB: p.dy,
		Input: cuda.Factor{Act: in, BF16: p.x}, Streams: p.cfg.Streams, Dim: p.dim,
	}
}

// enterOf is the backward of the reading of a layer function's input from the streams x and
// of its norm.
func (p *gpuPass) enterOf(site *gpuSite, x cuda.Ptr, in *cuda.Act, weight gpuVector, partial cuda.Ptr) *cuda.Enter {
	return &cuda.Enter{
		D: p.din, HalfD: true, DX: p.dx, X: x, Weight: weight.w, Partial: partial, Act: in, Coef: site.coef, CoefGrad: p.coefGrads[site.number%2],
		CoefStride: p.coefStride(), Streams: p.cfg.Streams, Dim: p.dim, Eps: p.eps(),
	}
}

// enterBack queues e, the backward of the mixing, and next, unless that is nil: in one kernel
// where nothing has to be added to the streams' gradient in between.
func (p *gpuPass) enterBack(e *cuda.Enter, site *gpuSite, weight, scalars gpuVector, next *cuda.Leave) {
	residual := e.Residual
	if p.dynamic() {
		e.Residual = nil // the mixing has a gradient for the streams behind them
	} else {
		e.Next = next
	}
	w, s, err := p.train.Enter(e, p.n)
	p.sum(w, weight, err)
	switch {
	case p.cfg.Streams == 1:
	case !p.dynamic():
		p.mark(partTokens)
		p.do(p.mhc.Finish(p.sites, site.number, e.CoefGrad, p.n))
		p.mark(partMixing)
	default:
		p.mark(partTokens)
		p.do(p.mhc.Backward(p.sites, site.number, &cuda.MHCBackward{X: e.X, DX: p.dx, Grad: e.CoefGrad, Z: site.z, Inverse: site.inverse}, p.n))
		p.mark(partMixing)
		if residual != nil {
			p.addSums() // the next kernel writes where this one's are
			e.D, e.Residual = 0, residual
			if _, s, err = p.train.Enter(e, p.n); err != nil {
				p.do(err)
			}
		}
		if next != nil {
			p.do(p.train.Leave(next, p.n))
		}
	}
	if residual != nil {
		p.sum(s, scalars, nil)
	}
}
