package model

import (
	"github.com/architehc/nanochat/kernels/cuda"
)

// gpuPass is the micro batch at hand: its shape, and what is queued for it so far.
type gpuPass struct {
	*GPUTrainer
	queue
	t     *cuda.Thread
	n     int // tokens
	docs  cuda.Docs
	terms cuda.Ptr // of the loss
	learn bool     // gradients are wanted

	partials []cuda.PartialSum // of the layer at hand
}

func (p *gpuPass) eps() float32 { return float32(p.cfg.NormEps) }

// forward is the network up to the head, which leaves its tape.
func (p *gpuPass) forward() {
	p.do(p.ops.Embed(p.start, p.initial, &p.embed.table, p.batch.ids, p.n, p.cfg.Streams))
	first := &p.layers[0]
	p.enter(first, cuda.ForwardMix{Mix: cuda.Mix{X: first.before}})
	p.mark(partNorms)
	last := len(p.layers) - 1
	for i := range p.layers {
		l := &p.layers[i]
		p.layer(l)
		y := or(l.downY, p.y)
		p.project(y, &l.down, &l.ff)
		p.mark(partProjections)
		m := cuda.ForwardMix{Mix: cuda.Mix{X: l.middle, Y: y, Write: l.mhcFFN.coef, CoefStride: p.coefStride()}}
		if i < last {
			m.Left = l.left
			p.enter(&p.layers[i+1], m)
		} else {
			m.Out = l.left
			p.leaveLast(m)
		}
		p.mark(partNorms)
	}
}

// leaveLast queues m, with which the last layer ends, and puts its result, the streams joined
// and normed, in front of the head.
func (p *gpuPass) leaveLast(m cuda.ForwardMix) {
	if p.int8Head {
		p.do(p.fused.Mix(&p.finalAct, &m, p.norm.w, p.eps(), p.n, p.cfg.Streams))
		p.do(p.train.Factors(cuda.Factor{Act: &p.finalAct, BF16: p.headFactor, F16: p.headX}, p.n))
		return
	}
	x := m.Out
	if p.cfg.Streams > 1 {
		m.Mean, x = p.final, p.final
	}
	p.do(p.ops.Mix(m.Mix, p.n, p.cfg.Streams, p.dim))
	p.do(p.ops.Norm(p.final, x, p.norm.w, p.eps(), p.n, p.dim))
	p.do(p.train.Round(p.headFactor, p.headX, p.final, p.n*p.dim))
}

// or is p, or q if there is none.
func or(p, q cuda.Ptr) cuda.Ptr {
	if p != 0 {
		return p
	}
	return q
}

// coefStride is the distance between the mixings of tokens.
func (p *gpuPass) coefStride() int {
	if p.dynamic() {
		return cuda.CoefFloats
	}
	return 0
}

// enter begins layer l with the streams that m leaves: its scalars, and the input of its
// attention.
func (p *gpuPass) enter(l *gpuTrainLayer, m cuda.ForwardMix) {
	m.Out = l.entered
	if p.cfg.ResidualScalars {
		m.Initial, m.Scalars = p.initial, l.scalars.w
	} else {
		m.Left = 0 // where the layer before leaves them is where this one finds them
	}
	p.read(&l.mhcAttn, m, &l.in, l.attnNorm.w)
}

// read queues m and puts what a layer function reads from its result, normed, into in.
func (p *gpuPass) read(site *gpuSite, m cuda.ForwardMix, in *cuda.Act, weight cuda.Ptr) {
	if !p.dynamic() {
		m.Read = site.coef
		if m.Y == 0 && m.Scalars == 0 {
			m.Out = 0 // the streams are as they were
		}
		p.do(p.fused.Mix(in, &m, weight, p.eps(), p.n, p.cfg.Streams))
		return
	}
	if m.Y != 0 || m.Scalars != 0 {
		p.do(p.ops.Mix(m.Mix, p.n, p.cfg.Streams, p.dim))
	}
	p.do(p.mhc.Coefs(p.sites, site.number, &cuda.MHCCoefs{X: m.Out, Coef: site.coef, U: p.u, Z: site.z, Inverse: site.inverse}, p.n))
	p.do(p.fused.Quantize(in, p.u, weight, p.eps(), p.n))
}

// layer computes l from what its attention reads to what its down projection does.
func (p *gpuPass) layer(l *gpuTrainLayer) {
	qkv, y := or(l.qkvY, p.qkvY), or(l.oY, p.y)
	p.project(qkv, &l.qkv, &l.in)
	p.mark(partProjections)
	r := p.rotation(l, qkv)
	p.do(p.train.Rotate(l.rotated, &r, p.docs))
	p.do(p.flash.Forward(l.att, l.lse, l.rotated, p.attention()))
	p.mark(partAttention)
	p.do(p.fused.Quantize(&l.attOut, l.att, l.attnSub.w, p.eps(), p.n))
	p.mark(partNorms)
	p.project(y, &l.o, &l.attOut)
	p.mark(partProjections)
	m := cuda.ForwardMix{Mix: cuda.Mix{X: l.entered, Y: y, Write: l.mhcAttn.coef, Out: l.middle, CoefStride: p.coefStride()}}
	if l.entered == 0 {
		m.X, m.Initial, m.Prior = l.before, p.initial, l.scalars.w
	}
	p.read(&l.mhcFFN, m, &l.ffnIn, l.ffnNorm.w)
	p.mark(partNorms)
	p.project(l.upY, &l.up, &l.ffnIn)
	p.mark(partProjections)
	p.do(p.fused.Activate(&l.ff, l.upY, l.ffnSub.w, activation(p.cfg.FFNKind), p.eps(), p.n))
	p.mark(partNorms)
}

// rotation is how results qkv of the stack of l become queries and keys.
func (p *gpuPass) rotation(l *gpuTrainLayer, qkv cuda.Ptr) cuda.TrainRotation {
	c, rope := p.cfg, &p.host.m.rope
	return cuda.TrainRotation{
		X: qkv, QNorm: l.qNorm.w, KNorm: l.kNorm.w, Cosine: p.rope[0], Sine: p.rope[1],
		Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim, Half: rope.rotary / 2, Interleaved: rope.interleaved, Eps: p.eps(),
	}
}

// project computes dst = w·in.
func (p *gpuPass) project(dst cuda.Ptr, w *gpuMatrix, in *cuda.Act) {
	p.do(p.ops.Ternary(dst, w.rows, &w.packed, in, p.n))
}

func (p *gpuPass) attention() cuda.FlashShape {
	c := p.cfg
	return cuda.FlashShape{Docs: p.docs, Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim, Scale: attentionScale(c.HeadDim), HalfGrads: true}
}

// again runs the forward of l a second time, for the tape holds another layer's.
func (p *gpuPass) again(l *gpuTrainLayer) {
	p.enter(l, cuda.ForwardMix{Mix: cuda.Mix{X: l.before}})
	p.mark(partNorms)
	p.layer(l)
	if p.cfg.Streams > 1 {
		p.project(l.downY, &l.down, &l.ff)
		p.mark(partProjections)
	}
}
