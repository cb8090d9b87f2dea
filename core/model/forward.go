package model

import (
	"math"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// run is the network, executed by every worker of the team at the same time.
//
// Two kinds of work alternate. Row work (projections, attention) is split by rows
// of the matrix or by heads, for all tokens. Token work (norms, quantisation,
// residuals) goes token by token: if they are few every worker does all of them
// in its own memory, else they are split. A barrier stands wherever one kind
// reads what another worker wrote for the other: four in a layer if tokens are
// few and the heads divide evenly, else up to nine.
func (w *Work) run(t *team.Worker) {
	c := &w.workers[t.ID]
	c.t = t
	c.use(&c.own, w.tokens)
	m := c.m
	c.record(0)
	for i := c.lo; i < c.hi; i++ {
		s := c.embed(i)
		c.enter(&m.layers[0], i, s)
	}
	c.share()
	c.mark(partNorms)
	last := len(m.layers) - 1
	for index := range m.layers {
		if !c.block(index) {
			return // the caches are complete
		}
		c.down(index)
		if index < last {
			c.record(index + 1)
		}
		for i := c.lo; i < c.hi; i++ {
			s := c.write(m.layers[index].mhcFFN, i)
			if index < last {
				c.enter(&m.layers[index+1], i, s)
			} else {
				c.finish(i, s)
			}
		}
		c.swap()
		c.share()
		c.mark(partNorms)
	}
	if w.tape == nil {
		c.head()
	}
}

// block computes layer index up to the input of its down projection. It reports whether logits are wanted at all.
func (c *worker) block(index int) bool {
	w, m, t := c.w, c.m, c.t
	l, last := &m.layers[index], index == len(m.layers)-1
	c.recordBlock(index)

	c.project(c.r.q, &l.q, &c.in, w.headSplit)
	c.project(c.r.k, &l.k, &c.in, w.headSplit)
	c.project(c.r.v, &l.v, &c.in, w.headSplit)
	c.mark(partProjections)
	c.attention(index, last)
	t.Barrier()
	c.mark(partAttention)
	if last && w.want < w.tokens {
		if w.want == 0 {
			return false
		}
		c.narrow()
	}
	for i := c.lo; i < c.hi; i++ {
		c.put(&c.attOut, i, row(c.r.att, i, m.cfg.Heads*m.cfg.HeadDim), l.attnSub)
	}
	c.share()
	c.mark(partNorms)
	c.project(c.r.y, &l.o, &c.attOut, false)
	t.Barrier()
	c.mark(partProjections)
	c.recordFFN(index)
	for i := c.lo; i < c.hi; i++ {
		s := c.write(l.mhcAttn, i)
		c.read(l.mhcFFN, i, s, l.ffnNorm)
	}
	c.swap()
	c.share()
	c.mark(partNorms)

	c.project(c.r.up, &l.up, &c.in, false)
	if c.r.gate != nil {
		c.project(c.r.gate, &l.gate, &c.in, false)
	}
	if c.few { // each worker its rows, else below each its tokens
		lo, hi := t.Range(m.cfg.FFN, kernels.TileSide)
		for i := range c.n {
			c.activate(row(c.r.hidden, i, m.cfg.FFN)[lo:hi], i, lo, hi)
		}
	}
	t.Barrier()
	c.mark(partProjections)
	for i := c.lo; i < c.hi; i++ {
		hidden := row(c.r.hidden, i, m.cfg.FFN)
		if !c.few {
			c.activate(hidden, i, 0, m.cfg.FFN)
		}
		c.put(&c.ff, i, hidden, l.ffnSub)
	}
	c.share()
	c.mark(partNorms)
	return true
}

// down computes the result of the feed-forward part of layer index.
func (c *worker) down(index int) {
	c.recordResult(index)
	c.project(c.r.y, &c.m.layers[index].down, &c.ff, false)
	c.t.Barrier()
	c.mark(partProjections)
}

// use makes n tokens those that the worker works on, in own memory if they are
// few and else in the shared lane.
func (c *worker) use(own *lane, n int) {
	c.n, c.few = n, n <= fewTokens && c.w.tape == nil
	c.r = c.w.results
	if c.few {
		c.lane, c.lo, c.hi = *own, 0, n
	} else {
		c.lane = c.w.shared
		c.lo, c.hi = c.t.Range(n, 1)
	}
	c.in.act.N, c.attOut.act.N, c.ff.act.N, c.finalAct.N = n, n, n, n
}

// share ends token work: what the workers put into a shared lane becomes visible.
func (c *worker) share() {
	if !c.few {
		c.t.Barrier()
	}
}

// row is vector i of a, [...][n].
func row(a []float32, i, n int) []float32 { return a[i*n : (i+1)*n : (i+1)*n] }

// embed returns token i's streams, all equal to its embedding.
func (c *worker) embed(i int) []float32 {
	cfg := &c.m.cfg
	s := row(c.x, i, cfg.Streams*cfg.Dim)
	c.k.DenseRow(s[:cfg.Dim], &c.m.embed, int(c.w.ids[i]))
	mhc.Expand(s[cfg.Dim:], s[:cfg.Dim])
	if cfg.ResidualScalars {
		copy(row(c.initial, i, cfg.Dim), s)
	}
	return s
}

// enter begins layer l for token i with streams s: the layer's scalars, then the
// input of its attention.
func (c *worker) enter(l *layer, i int, s []float32) {
	if cfg := &c.m.cfg; cfg.ResidualScalars {
		dst := s
		if c.entered != nil {
			dst = row(c.entered, i, cfg.Streams*cfg.Dim)
		}
		c.k.Scale(dst, l.scalars[0], s)
		for j := range cfg.Streams {
			c.k.Axpy(row(dst, j, cfg.Dim), l.scalars[1], row(c.initial, i, cfg.Dim))
		}
		s = dst
	}
	c.read(l.mhcAttn, i, s, l.attnNorm)
}

// read puts what a layer function reads from token i's streams s, normed, into in.
func (c *worker) read(site *mhc.Site, i int, s, weight []float32) {
	if site.Streams == 1 {
		c.put(&c.in, i, s, weight)
		return
	}
	coef := site.Coef(c.k, c.coef(i), s, c.mix)
	if c.coefLog != nil {
		c.coefLog[i] = *coef
	}
	coef.Read(c.k, c.u, s)
	c.put(&c.in, i, c.u, weight)
}

// write returns token i's streams after a layer function that left its result
// in y. They are in x for one stream, unless taped, and else in next, until swap.
func (c *worker) write(site *mhc.Site, i int) []float32 {
	cfg := &c.m.cfg
	x, dst := row(c.x, i, cfg.Streams*cfg.Dim), row(c.next, i, cfg.Streams*cfg.Dim)
	y := row(c.r.y, i, cfg.Dim)
	switch {
	case cfg.Streams == 1 && c.w.tape != nil:
		c.k.Add(dst, x, y)
	case cfg.Streams == 1:
		c.k.Add(x, x, y)
		return x
	case cfg.MHCDynamic: // read left it there
		c.coef(i).Write(c.k, dst, x, y)
	default:
		site.Coef(c.k, nil, nil, nil).Write(c.k, dst, x, y)
	}
	return dst
}

// swap ends a round of write.
func (c *worker) swap() {
	if c.m.cfg.Streams > 1 || c.w.tape != nil {
		c.x, c.next = c.next, c.x
	}
}

// coef is the place of token i's mixing, nil if it does not depend on the token.
func (c *worker) coef(i int) *mhc.Coef {
	if c.coefs == nil {
		return nil
	}
	return &c.coefs[i]
}

// put makes x vector i of in, normed first if there is a weight.
func (c *worker) put(in *input, i int, x, weight []float32) {
	norm := c.norm[:len(x)]
	if in.dense != nil {
		norm = row(in.dense, i, len(x))
	}
	a := &in.act
	switch {
	case a.Q == nil && weight == nil:
		copy(norm, x)
		return
	case a.Q == nil:
		c.k.RMSNorm(norm, x, weight, c.eps)
		return
	}
	groups := len(a.Sums) / len(a.Scale)
	q, sums := a.Q[i*a.Stride:(i+1)*a.Stride], a.Sums[i*groups:(i+1)*groups]
	if weight != nil {
		a.Scale[i] = c.k.RMSNormQuantize(q, sums, norm, x, weight, c.eps, a.Group)
		return
	}
	if in.dense != nil {
		copy(norm, x)
	}
	a.Scale[i] = c.k.Quantize(q, sums, x, a.Group)
}

// project computes this worker's rows of dst = l·in for all tokens, dst being
// [tokens][rows]. With byHead the rows are those of whole key/value heads.
func (c *worker) project(dst []float32, l *linear, in *input, byHead bool) {
	rows := l.rows()
	lo, hi := 0, 0
	if byHead {
		heads := c.m.cfg.KVHeads
		lo, hi = c.t.Range(heads, 1)
		lo, hi = lo*(rows/heads), hi*(rows/heads)
	} else {
		lo, hi = c.t.Range(rows, kernels.TileSide)
	}
	switch {
	case lo == hi:
	case l.dense != nil && c.n == 1:
		c.k.DenseGEMV(dst[:rows], l.dense, in.dense[:l.dense.Cols], lo, hi)
	case l.dense != nil:
		c.k.DenseGEMM(dst, rows, l.dense, in.dense, l.dense.Cols, c.n, lo, hi)
	case c.n == 1:
		c.k.TernaryGEMV(dst[:rows], l.ternary, &in.act, lo, hi)
	default:
		c.k.TernaryGEMM(dst, rows, l.ternary, &in.act, lo, hi, c.scratch)
	}
}

// activate computes inner values lo ≤ r < hi of token i from those of up and gate
// to dst, [hi-lo].
func (c *worker) activate(dst []float32, i, lo, hi int) {
	n := c.m.cfg.FFN
	lo, hi = i*n+lo, i*n+hi
	up := c.r.up[lo:hi]
	switch c.m.cfg.FFNKind {
	case config.FFNReLU2:
		c.k.ReLU2(dst, up)
	case config.FFNReLU2GLU:
		c.k.ReLU2GLU(dst, c.r.gate[lo:hi], up)
	default:
		c.k.SwiGLU(dst, c.r.gate[lo:hi], up)
	}
}

// narrow leaves only the tokens whose logits are wanted, of which attention has
// left the results in rows 0 ≤ i < want of att.
func (c *worker) narrow() {
	x := c.x
	c.use(&c.own, c.w.want)
	cfg := &c.m.cfg
	l := &c.m.layers[len(c.m.layers)-1]
	for i := c.lo; i < c.hi; i++ {
		s := row(c.next, i, cfg.Streams*cfg.Dim)
		copy(s, row(x, int(c.w.rows[i]), cfg.Streams*cfg.Dim))
		l.mhcAttn.Coef(c.k, c.coef(i), s, c.mix)
	}
	c.x, c.next = c.next, c.x
}

// finish puts token i, its streams joined and normed, in front of the head.
func (c *worker) finish(i int, s []float32) {
	f := row(c.final, i, c.m.cfg.Dim)
	mhc.Collapse(c.k, f, s)
	if a := &c.finalAct; a.Q != nil {
		a.Scale[i] = c.k.RMSNormQuantize(a.Q[i*a.Stride:(i+1)*a.Stride], a.Sums[i:i+1], f, f, c.m.norm, c.eps, a.Group)
		return
	}
	c.k.RMSNorm(f, f, c.m.norm, c.eps)
}

// head computes this worker's part of the logits.
func (c *worker) head() {
	cfg := &c.m.cfg
	lo, hi := c.t.Range(cfg.Vocab, kernels.TileSide)
	if lo == hi {
		return
	}
	logits := c.w.logits
	done := 0
	for _, b := range c.w.blocks {
		c.multiplyHead(logits[done*cfg.Vocab:], b.first, b.n, lo, hi)
		done += b.n
	}
	if cfg.LogitSoftcap > 0 {
		for i := range done {
			z := row(logits, i, cfg.Vocab)[lo:hi]
			c.k.Softcap(z, float32(cfg.LogitSoftcap), z)
		}
	}
}

// multiplyHead computes rows lo ≤ r < hi of the head for n tokens from first on:
// logits [n][Vocab] before their cap.
func (c *worker) multiplyHead(logits []float32, first, n, lo, hi int) {
	cfg, head := &c.m.cfg, &c.m.head
	if f := &c.finalAct; f.Q != nil {
		a := &c.headAct
		*a = kernels.Act{
			N: n, Cols: f.Cols, Stride: f.Stride, Group: f.Group,
			Q: f.Q[first*f.Stride:], Scale: f.Scale[first:], Sums: f.Sums[first:],
		}
		if n == 1 {
			c.k.Q8GEMV(logits[:cfg.Vocab], head, a, lo, hi)
		} else {
			c.k.Q8GEMM(logits, cfg.Vocab, head, a, lo, hi)
		}
		return
	}
	if x := c.final[first*cfg.Dim:]; n == 1 {
		c.k.DenseGEMV(logits[:cfg.Vocab], head, x[:cfg.Dim], lo, hi)
	} else {
		c.k.DenseGEMM(logits, cfg.Vocab, head, x, cfg.Dim, n, lo, hi)
	}
}

// attention rotates and stores this step's keys and values and writes the
// attention of all tokens to att; in the last layer only of those whose logits
// are wanted, in rows 0 ≤ i < want.
//
// With headSplit a worker has computed the queries, keys and values of its heads
// itself and goes on with them alone. Otherwise the work is dealt out in units of
// a sequence and a head.
func (c *worker) attention(layer int, last bool) {
	cfg, w, l := &c.m.cfg, c.w, &c.m.layers[layer]
	if w.headSplit {
		h0, h1 := c.t.Range(cfg.KVHeads, 1)
		for s := range w.seqs {
			c.store(layer, l, &w.seqs[s], h0, h1)
			c.attend(layer, &w.seqs[s], last, 0, w.seqs[s].n, h0*(cfg.Heads/cfg.KVHeads), h1*(cfg.Heads/cfg.KVHeads))
		}
		return
	}
	c.t.Barrier()
	unit := 0
	for s := range w.seqs {
		for h := range cfg.KVHeads {
			if unit%c.t.N == c.t.ID {
				c.store(layer, l, &w.seqs[s], h, h+1)
			}
			unit++
		}
	}
	c.t.Barrier()
	// Queries of one key/value head share its converted pages, so they stay
	// together unless that leaves workers without work.
	unit = 0
	heads := cfg.Heads / cfg.KVHeads
	if len(w.seqs)*cfg.KVHeads < c.t.N {
		heads = 1
	}
	for s := range w.seqs {
		for q := 0; q < w.seqs[s].n; q += queryBlock {
			for h := 0; h < cfg.Heads; h += heads {
				if unit%c.t.N == c.t.ID {
					c.attend(layer, &w.seqs[s], last, q, min(q+queryBlock, w.seqs[s].n), h, h+heads)
				}
				unit++
			}
		}
	}
}

// queryBlock is the number of queries in a unit of attention.
const queryBlock = 64

// store norms and rotates the queries and keys of sequence s that belong to
// key/value heads h0 ≤ h < h1, and stores keys and values.
func (c *worker) store(layer int, l *layer, s *span, h0, h1 int) {
	cfg, w, rope := &c.m.cfg, c.w, &c.m.rope
	hd, rep := cfg.HeadDim, cfg.Heads/cfg.KVHeads
	c.cache(layer, s, h0, h1)
	for i := s.first; i < s.first+s.n; i++ {
		q := row(c.r.rotQ, i, cfg.Heads*hd)[h0*rep*hd : h1*rep*hd]
		k := row(c.r.rotK, i, cfg.KVHeads*hd)[h0*hd : h1*hd]
		if l.qNorm != nil {
			fromQ := row(c.r.q, i, cfg.Heads*hd)[h0*rep*hd : h1*rep*hd]
			fromK := row(c.r.k, i, cfg.KVHeads*hd)[h0*hd : h1*hd]
			for h := 0; h < len(q); h += hd {
				c.k.RMSNorm(q[h:h+hd], fromQ[h:h+hd], l.qNorm, c.eps)
			}
			for h := 0; h < len(k); h += hd {
				c.k.RMSNorm(k[h:h+hd], fromK[h:h+hd], l.kNorm, c.eps)
			}
		}
		cos, sin := w.rope.at(int(w.pos[i]))
		c.k.RoPE(q, (h1-h0)*rep, hd, cos, sin, rope.interleaved)
		c.k.RoPE(k, h1-h0, hd, cos, sin, rope.interleaved)
		c.k.KVStore(&c.kv, int(w.pos[i]), k, row(c.r.v, i, cfg.KVHeads*hd)[h0*hd:h1*hd])
	}
}

// attend writes the attention of queries q0 ≤ i < q1 of sequence s and query heads
// h0 ≤ h < h1 to att. In the last layer it leaves out unwanted queries.
func (c *worker) attend(layer int, s *span, last bool, q0, q1, h0, h1 int) {
	cfg := &c.m.cfg
	out := s.first
	if last {
		q0 = max(q0, s.n-s.want)
		out = s.out - (s.n - s.want)
	}
	if q0 >= q1 || h0 == h1 {
		return
	}
	width := cfg.Heads * cfg.HeadDim
	c.cache(layer, s, 0, cfg.KVHeads)
	a := kernels.Query{Pos: s.pos + q0, N: q1 - q0, Heads: cfg.Heads, Scale: c.scale}
	c.k.Attention(c.r.att[(out+q0)*width:], width, c.r.rotQ[(s.first+q0)*width:], width, &c.kv, a, h0, h1, c.scratch)
}

// cache makes kv the view of one layer and key/value heads h0 ≤ h < h1 of s.
func (c *worker) cache(layer int, s *span, h0, h1 int) {
	p, cfg := c.w.pool, &c.m.cfg
	c.kv = kernels.KV{
		Type: p.kind, Heads: h1 - h0, HeadDim: cfg.HeadDim,
		Slab: p.slab, Pages: s.pages, PageBytes: p.pageBytes,
		LayerOffset: layer*p.layerBytes + h0*p.kind.HeadBytes(cfg.HeadDim),
	}
}

// attentionScale is 1/√headDim, rounded once.
func attentionScale(headDim int) float32 { return float32(1 / math.Sqrt(float64(headDim))) }
