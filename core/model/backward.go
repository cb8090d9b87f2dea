package model

import (
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

const (
	// headTokens is the number of tokens whose logits exist at the same time.
	headTokens = 256
	// chunkTokens is the number of tokens that go through the products of the backward
	// together: what is between the products then stays in cache.
	chunkTokens = 512
)

// backward is the memory of a backward pass and what it is to do.
//
// Sums over tokens that no matrix product makes are taken over fixed blocks of
// tokens, one after the other inside a block, and the blocks are added in order: so
// no bit depends on the number of workers.
type backward struct {
	body    func(*team.Worker)
	tokens  int
	targets []int32
	loss    LossOptions
	learn   bool // gradients are wanted
	block   int  // tokens of a block
	chunk   int  // tokens that go through matrix products together, whole blocks

	dx, dxOther []float32 // [tokens][Streams·Dim], the streams' gradient and where the next one goes
	dembed      []float32 // [tokens][Dim], that of the embedding
	datt        []float32 // [tokens][Heads·HeadDim], that of the result of attention
	dq, dk, dv  []float32 // [tokens][...]
	din         []float32 // [chunk][Dim], that of an input of width Dim
	wide        []float32 // [chunk][FFN], that of the input of down
	dy, x       factors   // [chunk][...], of the product at hand: both factors of dyᵀ·x
	partial     []float32 // [blocks][partWidth]
	partWidth   int
	logits      []float32 // [headTokens][Vocab]
	headScale   []float32 // [headTokens], see gain
	results     []lossRow // [tokens]
	scalars     []float32 // [Layers][2][tokens], the tokens' parts of the gradients of residual scalars
	coefGrads   []mhc.CoefGrad
	mixGrads    []*mhc.Grad // [blocks]
	workers     []backWorker
}

// lossRow is the loss of one target.
type lossRow struct {
	nll, lse, entropy float32
	objective         float64
}

// backWorker is what one member of the team works with in the backward.
type backWorker struct {
	t       *Trainer
	c       *worker
	tw      *team.Worker
	k       *kernels.Set
	first   int // of the tokens at hand, n; with the whole step, of all tokens
	n       int
	lo, hi  int // its part of them, whole blocks
	dx, old []float32
	pending []pendingSum
	merge   pendingMix

	hidden    []float32 // [FFN], activated
	y         []float32 // [Dim]
	mix       []float32
	capped    []float32 // [Vocab]
	product   []byte    // scratch of matrix products
	attention []byte    // of attention backward
	grad      kernels.AttentionGrad
	ce        kernels.Loss
	_         [128]byte
}

// pendingSum is a gradient that the blocks' partial sums, from column on, are to
// be added to.
type pendingSum struct {
	dst      []float32
	column   int
	first, n int // of the tokens
}

// pendingMix is the gradient of a site that the blocks' are to be added to.
type pendingMix struct {
	site     *mhc.Site
	grad     *mhc.Grad
	first, n int // of the tokens
}

// newBackward makes the memory.
func (t *Trainer) newBackward() {
	c, b, n := &t.m.cfg, &t.backward, t.o.Tokens
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	width := max(q+2*kv, t.layers[0].up.rows)
	b.body = t.run
	var blocks int
	b.block, b.chunk, blocks = chunks(c, n, t.o.Team.Size())
	rows := func(width int) []float32 { return make([]float32, n*width) }
	b.dx, b.datt = rows(c.Streams*c.Dim), rows(q)
	b.din, b.wide = make([]float32, b.chunk*c.Dim), make([]float32, b.chunk*c.FFN)
	if c.Streams > 1 {
		b.dxOther = rows(c.Streams * c.Dim)
		b.coefGrads = make([]mhc.CoefGrad, n)
		for range blocks {
			b.mixGrads = append(b.mixGrads, mhc.NewGrad(t.m.layers[0].mhcAttn.Config))
		}
	}
	b.dembed = rows(c.Dim)
	if c.ResidualScalars {
		b.scalars = make([]float32, 2*c.Layers*n)
	}
	b.dq, b.dk, b.dv = rows(q), rows(kv), rows(kv)
	inputs := max(c.Dim, c.FFN, q)
	if t.o.F32 {
		b.dy.full, b.x.full = make([]float32, b.chunk*width), make([]float32, b.chunk*inputs)
	} else {
		b.dy.half, b.x.half = make([]uint16, b.chunk*width), make([]uint16, b.chunk*inputs)
	}
	b.partWidth = max(inputs, 2*c.HeadDim)
	b.partial = make([]float32, blocks*b.partWidth)
	b.logits = make([]float32, min(headTokens, n)*c.Vocab)
	b.results = make([]lossRow, n)
	b.headScale = make([]float32, headTokens)
	b.workers = make([]backWorker, t.o.Team.Size())
	need := kernels.AttentionBackwardScratch(min(n, c.Context), c.HeadDim)
	for i := range b.workers {
		b.workers[i] = backWorker{
			t: t, k: t.o.Set, c: &t.work.workers[i],
			hidden: make([]float32, c.FFN), y: make([]float32, c.Dim),
			mix: make([]float32, t.m.layers[0].mhcAttn.BackwardScratchLen()), capped: make([]float32, c.Vocab),
			product: kernels.AlignedBytes(kernels.MatMulScratch()), attention: kernels.AlignedBytes(need),
		}
	}
}

// chunks is the tokens of a block, those of a chunk, and the number of blocks.
func chunks(c *config.Model, tokens, workers int) (block, chunk, blocks int) {
	block = 32
	if c.Streams > 1 && c.MHCDynamic {
		block = 64 // such a site's gradient of one block is large
	}
	blocks = (tokens + block - 1) / block
	return block, min(max(chunkTokens, block*workers), blocks*block), blocks
}

// run is a training step's forward and backward, executed by every worker.
func (t *Trainer) run(tw *team.Worker) {
	t.work.run(tw)
	b := &t.workers[tw.ID]
	b.tw = tw
	b.dx, b.old, b.pending, b.merge = t.dx, t.dxOther, b.pending[:0], pendingMix{}
	if tw.ID == 0 {
		t.work.tape.clock.turn = t.work.tape.clock.last
	}
	b.head()
	if !t.learn {
		return
	}
	b.sync(partTokens) // the tokens are divided in another way from here on
	for i := len(t.layers) - 1; i >= 0; i-- {
		b.recompute(i)
		b.feedForward(i)
		b.attend(i)
	}
	b.embedding()
}

// take makes up to n tokens from first on those at hand.
func (b *backWorker) take(first, n int) {
	b.first, b.n = first, min(n, b.t.tokens-first)
	b.lo, b.hi = b.tw.Range(b.n, b.t.block)
	b.lo, b.hi = b.lo+first, b.hi+first
}

// sync ends a phase, whose time is counted to a part.
func (b *backWorker) sync(x part) {
	b.tw.Barrier()
	b.c.mark(x)
}

// multiply computes this worker's rows of a product.
func (b *backWorker) multiply(dst []float32, x, y kernels.Operand, p kernels.Product) {
	lo, hi := b.tw.Range(p.M, 8)
	if lo == hi {
		return
	}
	f := b.k.MatMulBF16
	if b.t.o.F32 {
		f = b.k.MatMul
	}
	f(dst, p.N, x, y, p, lo, hi, b.product)
}

// inputs computes dst = dy·W, [n][w.cols].
func (b *backWorker) inputs(dst []float32, w *matrix) {
	t := b.t
	b.multiply(dst, t.dy.operand(w.rows, false), w.used.operand(w.cols, false),
		kernels.Product{M: b.n, N: w.cols, K: w.rows})
	b.c.mark(partInputs)
}

// weights adds dyᵀ·x to the gradient of w.
func (b *backWorker) weights(w *matrix) {
	t := b.t
	b.multiply(w.g, t.dy.operand(w.rows, true), t.x.operand(w.cols, false),
		kernels.Product{M: w.rows, N: w.cols, K: b.n, Add: true})
}

// products is inputs and weights, and between them what is left from the phase
// before.
func (b *backWorker) products(dst []float32, w *matrix) {
	b.inputs(dst, w)
	b.weights(w)
	b.finish()
	b.sync(partWeights)
}

// finish adds the partial sums of blocks to the gradients.
func (b *backWorker) finish() {
	t := b.t
	for _, s := range b.pending {
		lo, hi := b.tw.Range(len(s.dst), 16)
		if lo == hi {
			continue
		}
		for i := s.first / t.block; i*t.block < s.first+s.n; i++ {
			part := t.partial[i*t.partWidth+s.column:][lo:hi]
			b.k.Add(s.dst[lo:hi], s.dst[lo:hi], part)
		}
	}
	b.pending = b.pending[:0]
	if m := &b.merge; m.grad != nil && b.tw.ID == 0 {
		for i := m.first / t.block; i*t.block < m.first+m.n; i++ {
			m.grad.Merge(b.k, t.mixGrads[i])
			t.mixGrads[i].Clear()
		}
		m.site.FinishBackward(b.k, m.grad)
	}
	b.merge = pendingMix{}
}

// part is the memory for partial sums of the block of token i, n numbers from
// column on; nil if there is no gradient dst to sum for. At the first token of a
// block it is cleared.
func (b *backWorker) part(i int, dst []float32, column int) []float32 {
	if dst == nil {
		return nil
	}
	t := b.t
	p := t.partial[i/t.block*t.partWidth+column:][:len(dst)]
	if i%t.block == 0 {
		clear(p)
	}
	return p
}

// later leaves the blocks' sums from column on to finish.
func (b *backWorker) later(dst []float32, column int) {
	if dst != nil {
		b.pending = append(b.pending, pendingSum{dst, column, b.first, b.n})
	}
}

// gain is what token i's dy is multiplied by in front of the products with in: the
// scale of its int8 values, which then are exact factors of the product for the
// weights. The gradient of the input must be divided by it. Inputs that are all
// zero, and float ones, have 1.
func gain(in *input, i int) float32 {
	if in.act.Q == nil {
		return 1
	}
	return gainOf(in.act.Scale[i])
}

func gainOf(scale float32) float32 {
	if scale > 1e-30 && scale < 1e30 {
		return scale
	}
	return 1
}

// divide divides x by a gain.
func (b *backWorker) divide(x []float32, gain float32) {
	if gain != 1 {
		b.k.Scale(x, 1/gain, x)
	}
}

// keep makes token i's vector of in, of length n, a factor of the product for the
// weights.
func (b *backWorker) keep(in *input, i, n int) {
	if a := &in.act; a.Q != nil {
		b.t.x.putInt8(b.k, i-b.first, n, a.Q[i*a.Stride:])
	} else {
		b.t.x.put(b.k, i-b.first, n, 1, row(in.dense, i, n))
	}
}

// head computes the loss, and the gradient of the head and of what is in front of
// it, a block of tokens at a time.
func (b *backWorker) head() {
	t, c := b.t, &b.t.m.cfg
	for first := 0; first < t.tokens; first += headTokens {
		b.take(first, headTokens)
		n := b.n
		if lo, hi := b.tw.Range(c.Vocab, kernels.TileSide); lo < hi {
			b.c.multiplyHead(t.logits, first, n, lo, hi)
		}
		b.sync(partHead)
		lo, hi := b.tw.Range(n, 1)
		for i := lo; i < hi; i++ {
			b.crossEntropy(first+i, row(t.logits, i, c.Vocab))
		}
		b.sync(partLoss)
		if !t.learn {
			continue
		}
		dz, x := kernels.Operand{F32: t.logits, Stride: c.Vocab}, kernels.Operand{F32: b.c.final[first*c.Dim:], Stride: c.Dim}
		if b.c.finalAct.Q != nil {
			x = t.x.operand(c.Dim, false)
		}
		w := t.head
		b.multiply(t.din, dz, w.used.operand(c.Dim, false), kernels.Product{M: n, N: c.Dim, K: c.Vocab})
		dz.Trans = true
		b.multiply(w.g, dz, x, kernels.Product{M: c.Vocab, N: c.Dim, K: n, Add: true})
		b.sync(partHeadBackward)
		b.lastNorm()
	}
}

// crossEntropy turns token i's logits z into their gradient, times its gain, and
// leaves its loss and its input of the head as a factor.
func (b *backWorker) crossEntropy(i int, z []float32) {
	t, c, target := b.t, &b.t.m.cfg, b.t.targets[i]
	r, o := &t.results[i], &b.ce
	*o = kernels.Loss{
		Scale: float32(t.loss.Scale), Cap: float32(c.LogitSoftcap),
		Z: float32(t.loss.Z), Entropy: float32(t.loss.Entropy), Smoothing: float32(t.loss.Smoothing),
	}
	mean := 0.0
	if t.loss.Smoothing != 0 && target >= 0 {
		y := z
		if c.LogitSoftcap > 0 {
			y = b.capped
			b.k.Softcap(y, o.Cap, z)
		}
		for _, v := range y {
			mean += float64(v)
		}
		mean /= float64(len(y))
	}
	var dst []float32
	if t.learn {
		dst = z
		scale := &t.headScale[i-b.first]
		*scale = 1
		if a := &b.c.finalAct; a.Q != nil {
			*scale = gainOf(a.Scale[i])
			t.x.putInt8(b.k, i-b.first, c.Dim, a.Q[i*a.Stride:])
		}
		o.Scale *= *scale
	}
	r.nll, r.lse, r.entropy = b.k.CrossEntropy(dst, z, target, o)
	s, lse := t.loss.Smoothing, float64(r.lse)
	r.objective = (1-s)*float64(r.nll) + s*(lse-mean) + t.loss.Z*lse*lse - t.loss.Entropy*float64(r.entropy)
}

// lastNorm is the backward of the norm in front of the head, and of the mean of the
// streams.
func (b *backWorker) lastNorm() {
	t, c := b.t, &b.t.m.cfg
	left := t.work.tape.before(c.Layers)
	for i := b.lo; i < b.hi; i++ {
		d := row(t.din, i-b.first, c.Dim)
		b.divide(d, t.headScale[i-b.first])
		mhc.Collapse(b.k, b.y, row(left, i, c.Streams*c.Dim))
		b.k.RMSNormBackward(d, b.part(i, t.norm, 0), d, b.y, t.m.norm, b.c.eps)
		mhc.CollapseBackward(b.k, row(b.dx, i, c.Streams*c.Dim), d)
		if c.ResidualScalars {
			clear(row(t.dembed, i, c.Dim))
		}
	}
	b.later(t.norm, 0)
	b.c.mark(partTokens)
}

// recompute runs the forward of layer index again if the tape holds another
// layer's.
func (b *backWorker) recompute(index int) {
	t, c := b.t, b.c
	if !t.o.Recompute || index == len(t.layers)-1 {
		return
	}
	b.sync(partTokens)
	c.record(index)
	before := t.work.tape.before(index)
	for i := c.lo; i < c.hi; i++ {
		c.enter(&t.m.layers[index], i, row(before, i, t.m.cfg.Streams*t.m.cfg.Dim))
	}
	c.share()
	c.mark(partNorms)
	c.block(index)
	if t.m.cfg.Streams > 1 {
		c.down(index)
	}
}

// feedForward is the backward of the second half of layer index, and of the output
// projection of attention.
func (b *backWorker) feedForward(index int) {
	t, c := b.t, &b.t.m.cfg
	l, x, tape := &t.m.layers[index], &t.layers[index], &t.work.tape.layers[index]
	b.c.r = tape.r
	q := c.Heads * c.HeadDim
	for first := 0; first < t.tokens; first += t.chunk {
		b.take(first, t.chunk)
		for i := b.lo; i < b.hi; i++ {
			dy := b.leave(l.mhcFFN, tape.ffnCoefs, i, tape.middle, tape.down)
			t.dy.put(b.k, i-first, c.Dim, gain(&tape.ff, i), dy)
			b.keep(&tape.ff, i, c.FFN)
		}
		b.turn()
		b.sync(partTokens)
		b.products(t.wide, &x.down)

		for i := b.lo; i < b.hi; i++ {
			d := row(t.wide, i-first, c.FFN)
			b.divide(d, gain(&tape.ff, i))
			if l.ffnSub != nil {
				b.c.activate(b.hidden, i, 0, c.FFN)
				b.k.RMSNormBackward(d, b.part(i, x.ffnSub, 0), d, b.hidden, l.ffnSub, b.c.eps)
			}
			b.activation(i, d, gain(&tape.ffnIn, i))
			b.keep(&tape.ffnIn, i, c.Dim)
		}
		b.later(x.ffnSub, 0)
		b.sync(partTokens)
		b.products(t.din, &x.up)

		for i := b.lo; i < b.hi; i++ {
			d := row(t.din, i-first, c.Dim)
			b.divide(d, gain(&tape.ffnIn, i))
			b.enter(l.mhcFFN, tape.ffnCoefs, i, d, tape.middle, l.ffnNorm, b.part(i, x.ffnNorm, 0))
			dy := b.leave(l.mhcAttn, tape.attnCoefs, i, tape.entered, tape.r.y)
			t.dy.put(b.k, i-first, c.Dim, gain(&tape.attOut, i), dy)
			b.keep(&tape.attOut, i, q)
		}
		b.turn()
		b.later(x.ffnNorm, 0)
		b.mergeLater(l.mhcFFN, x.mhcFFN)
		b.sync(partTokens)
		b.products(t.datt[first*q:], &x.o)

		for i := b.lo; i < b.hi; i++ {
			d := row(t.datt, i, q)
			b.divide(d, gain(&tape.attOut, i))
			if l.attnSub != nil {
				b.k.RMSNormBackward(d, b.part(i, x.attnSub, 0), d, row(tape.r.att, i, q), l.attnSub, b.c.eps)
			}
		}
		b.later(x.attnSub, 0)
	}
	b.sync(partTokens)
	b.finish()
}

// activation turns d, the gradient of token i's activated values, which it
// overwrites, into dy of the up and gate projections.
func (b *backWorker) activation(i int, d []float32, gain float32) {
	t, c := b.t, &b.t.m.cfg
	up := row(b.c.r.up, i, c.FFN)
	if c.FFNKind == config.FFNReLU2 {
		b.k.ReLU2Backward(d, d, up)
		t.dy.put(b.k, i-b.first, c.FFN, gain, d)
		return
	}
	gate, dup := row(b.c.r.gate, i, c.FFN), b.hidden
	if c.FFNKind == config.FFNReLU2GLU {
		b.k.ReLU2GLUBackward(d, dup, d, gate, up)
	} else {
		b.k.SwiGLUBackward(d, dup, d, gate, up)
	}
	at := 2 * (i - b.first)
	t.dy.put(b.k, at, c.FFN, gain, dup)
	t.dy.put(b.k, at+1, c.FFN, gain, d)
}

// attend is the backward of the first half of layer index, from the gradient of
// the result of attention.
func (b *backWorker) attend(index int) {
	t, c := b.t, &b.t.m.cfg
	l, x, tape := &t.m.layers[index], &t.layers[index], &t.work.tape.layers[index]
	b.documents(&tape.r)
	b.sync(partAttentionBackward)
	for first := 0; first < t.tokens; first += t.chunk {
		b.take(first, t.chunk)
		for i := b.lo; i < b.hi; i++ {
			b.heads(index, i, gain(&tape.in, i))
			b.keep(&tape.in, i, c.Dim)
		}
		b.later(x.qNorm, 0)
		b.later(x.kNorm, c.HeadDim)
		b.sync(partTokens)
		b.products(t.din, &x.qkv)

		for i := b.lo; i < b.hi; i++ {
			d := row(t.din, i-first, c.Dim)
			b.divide(d, gain(&tape.in, i))
			b.enter(l.mhcAttn, tape.attnCoefs, i, d, tape.entered, l.attnNorm, b.part(i, x.attnNorm, 0))
			if c.ResidualScalars {
				b.residual(index, i)
			}
		}
		b.later(x.attnNorm, 0)
		b.mergeLater(l.mhcAttn, x.mhcAttn)
	}
	b.c.mark(partTokens)
}

// documents computes dq, dk and dv from datt, a document and a head of keys
// at a time.
func (b *backWorker) documents(r *results) {
	t, c := b.t, &b.t.m.cfg
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	b.grad = kernels.AttentionGrad{
		Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim, Scale: b.c.scale,
		LDQ: q, LDK: kv, LDV: kv, LDO: q, BF16: !t.o.F32,
	}
	loop := b.tw.Counter(len(t.work.seqs)*c.KVHeads, 1, 1)
	for b.tw.Next(&loop) {
		for u := loop.Lo; u < loop.Hi; u++ {
			s, h := &t.work.seqs[u/c.KVHeads], u%c.KVHeads
			b.grad.N = s.n
			i := s.first
			b.k.AttentionBackward(t.dq[i*q:], t.dk[i*kv:], t.dv[i*kv:], t.datt[i*q:],
				r.rotQ[i*q:], r.rotK[i*kv:], r.v[i*kv:], r.att[i*q:], &b.grad, h, h+1, b.attention)
		}
	}
}

// heads turns the gradients of token i's rotated queries and keys back into those
// of the projections' results, and leaves them with that of the values as dy.
func (b *backWorker) heads(index, i int, gain float32) {
	t, c := b.t, &b.t.m.cfg
	l, x, r := &t.m.layers[index], &t.layers[index], &t.work.tape.layers[index].r
	hd := c.HeadDim
	q, kv := c.Heads*hd, c.KVHeads*hd
	dq, dk := row(t.dq, i, q), row(t.dk, i, kv)
	cos, sin := t.work.rope.at(int(t.work.pos[i]))
	b.k.RoPEBackward(dq, c.Heads, hd, cos, sin, false)
	b.k.RoPEBackward(dk, c.KVHeads, hd, cos, sin, false)
	if l.qNorm != nil {
		part := b.part(i, x.qNorm, 0)
		for h := 0; h < q; h += hd {
			b.k.RMSNormBackward(dq[h:h+hd], part, dq[h:h+hd], row(r.q, i, q)[h:h+hd], l.qNorm, b.c.eps)
		}
		part = b.part(i, x.kNorm, hd)
		for h := 0; h < kv; h += hd {
			b.k.RMSNormBackward(dk[h:h+hd], part, dk[h:h+hd], row(r.k, i, kv)[h:h+hd], l.kNorm, b.c.eps)
		}
	}
	width := q + 2*kv
	at := (i - b.first) * width
	t.dy.putAt(b.k, at, gain, dq)
	t.dy.putAt(b.k, at+q, gain, dk)
	t.dy.putAt(b.k, at+q+kv, gain, row(t.dv, i, kv))
}
