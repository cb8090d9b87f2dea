package model

import (
	"fmt"
	"runtime"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
)

// gpuWork is the device's part of a Work. Names are those of lane and results.
type gpuWork struct {
	g      *GPU
	memory *gpuMemory

	x, next, initial, u, final   cuda.Ptr
	qkv, att, y, up              cuda.Ptr // of a token all of q, k and v; all of up, and of gate if there is one
	in, attOut, ff, finalAct     cuda.Act
	coefs                        cuda.Ptr // [tokens]Coef, where the mixing depends on the token
	coefZ, coefInverse           cuda.Ptr // of cuda.FewTokens, see cuda.MHCCoefs
	logits                       cuda.Ptr
	logitRoom                    int // rows
	numbers                      cuda.Ptr
	numberRoom                   int
	hidden                       []float32 // [want][Dim] of the last step that asked for it
	table                        []int32   // what goes to numbers
	ids, positions, pageOf       cuda.Ptr  // [tokens]
	tokens, firstPage            cuda.Ptr  // [tokens]: of queries, all of them
	rows, rowPositions, rowPages cuda.Ptr  // [want]
	pages, heads                 cuda.Ptr  // of all sequences; [logit rows]
	scores                       cuda.Ptr  // of steps of one token a sequence
	scoreRoom                    int
	graphs                       []stepGraph // of such steps, the one used last at the end
}

// NewGPUWork is NewWork on g's device.
func NewGPUWork(g *GPU, maxTokens int) (*Work, error) {
	if maxTokens < 1 || maxTokens > 1<<15 {
		return nil, fmt.Errorf("model: steps of %d tokens on a GPU: want 1 to %d", maxTokens, 1<<15)
	}
	m := g.m
	kinds, err := m.inputKinds()
	if err != nil {
		return nil, err
	}
	w := &Work{m: m, maxTokens: maxTokens, gpu: &gpuWork{g: g, memory: &gpuMemory{device: g.device}}}
	w.ids, w.pos, w.rows = make([]int32, maxTokens), make([]int32, maxTokens), make([]int32, maxTokens)
	err = g.device.Do(func(t *cuda.Thread) error { return w.gpu.allocate(t, kinds, maxTokens) })
	if err != nil {
		w.gpu.memory.free()
		return nil, fmt.Errorf("model: steps of %d tokens on the GPU: %w", maxTokens, err)
	}
	runtime.AddCleanup(w, (*gpuMemory).free, w.gpu.memory)
	return w, nil
}

func (d *gpuWork) allocate(t *cuda.Thread, kinds [3]inputKind, tokens int) (err error) {
	c := &d.g.m.cfg
	for _, f := range []struct {
		dst  *cuda.Ptr
		cols int
	}{
		{&d.x, c.Streams * c.Dim}, {&d.next, c.Streams * c.Dim}, {&d.initial, c.Dim}, {&d.u, c.Dim}, {&d.final, c.Dim}, {&d.y, c.Dim},
		{&d.qkv, (c.Heads + 2*c.KVHeads) * c.HeadDim}, {&d.att, c.Heads * c.HeadDim}, {&d.up, 2 * c.FFN},
	} {
		if *f.dst, err = d.memory.alloc(t, 4*tokens*f.cols); err != nil {
			return err
		}
	}
	if d.g.mixing != nil {
		if d.coefs, err = d.memory.alloc(t, 4*cuda.CoefFloats*tokens); err != nil {
			return err
		}
		if d.coefZ, err = d.memory.alloc(t, 4*(cuda.MHCLogits+1)*cuda.FewTokens); err != nil {
			return err
		}
		d.coefInverse = d.coefZ + 4*cuda.MHCLogits*cuda.FewTokens
	}
	for i, a := range []*cuda.Act{&d.in, &d.attOut, &d.ff} {
		if *a, err = d.memory.act(t, tokens, kinds[i].cols, kinds[i].group); err != nil {
			return err
		}
	}
	d.finalAct, err = d.memory.act(t, tokens, c.Dim, c.Dim)
	return err
}

// run computes the step that w has planned.
func (d *gpuWork) run(w *Work) error {
	slab := w.pool.gpu
	if slab.err != nil {
		return slab.err
	}
	return d.g.device.Do(func(t *cuda.Thread) error {
		if err := d.send(t, w); err != nil {
			return err
		}
		compute := func() error { return d.queue(w, 0) }
		if decodes(w) {
			compute = func() error { return d.decode(t, w) }
		}
		if err := compute(); err != nil {
			return err
		}
		if w.hidden {
			n := w.want * d.g.m.cfg.Dim
			if cap(d.hidden) < n {
				d.hidden = make([]float32, n)
			}
			if err := cuda.Download(t, d.hidden[:n], d.final); err != nil {
				return err
			}
		}
		return d.g.stage.logits(t, w.logits[:w.logitRows*d.g.m.cfg.Vocab], d.logits)
	})
}

// send copies the numbers of the step to the device, in one piece.
func (d *gpuWork) send(t *cuda.Thread, w *Work) (err error) {
	n := w.tokens
	d.table = d.table[:0]
	place := map[*cuda.Ptr]int{}
	begin := func(p *cuda.Ptr) { place[p] = len(d.table) }
	begin(&d.ids)
	d.table = append(d.table, w.ids[:n]...)
	begin(&d.positions)
	d.table = append(d.table, w.pos[:n]...)
	begin(&d.tokens)
	for i := range n {
		d.table = append(d.table, int32(i))
	}
	begin(&d.pageOf)
	for _, s := range w.seqs {
		for i := range s.n {
			d.table = append(d.table, s.pages[(s.pos+i)/kernels.PageLen])
		}
	}
	begin(&d.firstPage)
	first := int32(0)
	starts := len(d.table)
	for _, s := range w.seqs {
		for range s.n {
			d.table = append(d.table, first)
		}
		first += int32(len(s.pages))
	}
	begin(&d.rows)
	d.table = append(d.table, w.rows[:w.want]...)
	begin(&d.rowPositions)
	for _, r := range w.rows[:w.want] {
		d.table = append(d.table, w.pos[r])
	}
	begin(&d.rowPages)
	for _, r := range w.rows[:w.want] {
		d.table = append(d.table, d.table[starts+int(r)])
	}
	begin(&d.heads)
	for _, b := range w.blocks {
		for i := range b.n {
			d.table = append(d.table, int32(b.first+i))
		}
	}
	begin(&d.pages)
	for _, s := range w.seqs {
		d.table = append(d.table, s.pages...)
	}
	if len(d.table) > d.numberRoom {
		d.numberRoom = max(2*len(d.table), 1024)
		d.forget(t)
		if err = d.memory.grow(t, &d.numbers, 4*d.numberRoom); err != nil {
			return err
		}
	}
	if w.logitRows > d.logitRoom {
		d.logitRoom = max(w.logitRows, min(w.maxTokens, 8))
		d.forget(t)
		if err = d.memory.grow(t, &d.logits, 4*d.logitRoom*d.g.m.cfg.Vocab); err != nil {
			return err
		}
	}
	for p, at := range place {
		*p = d.numbers + cuda.Ptr(4*at)
	}
	return d.g.stage.numbers(t, d.numbers, d.table)
}

// queue queues the step: Work.run on the device. If room is not 0, the step has one token of each
// sequence, and it is a number of positions that all of them are below.
func (d *gpuWork) queue(w *Work, room int) error {
	g, c, o := d.g, &d.g.m.cfg, d.g.ops
	n, x, last := w.tokens, d.x, len(g.layers)-1
	rows, wide := (c.Heads+2*c.KVHeads)*c.HeadDim, c.FFN
	if g.layers[0].gate.Rows > 0 {
		wide *= 2
	}
	initial := cuda.Ptr(0)
	if c.ResidualScalars {
		initial = d.initial
	}
	q := &queue{}
	q.do(o.Embed(x, initial, &g.embed, d.ids, n, c.Streams))
	l := &g.layers[0]
	q.do(d.enter(cuda.Mix{X: x, Initial: initial, Scalars: l.scalars, U: d.u, Read: l.mhcAttn}, 0, l.attnNorm, n))
	for i := range g.layers {
		l := &g.layers[i]
		q.do(d.project(d.qkv, rows, &l.qkv, n, &l.q, &l.k, &l.v))
		if room > 0 {
			q.do(g.decode.Attend(d.attendDecode(w, i, room), n))
		} else {
			q.do(o.Rotate(d.rotation(w, i), n))
			a := d.attend(w, i)
			if i == last && w.want < n {
				if w.want == 0 {
					return q.err // the caches are complete
				}
				n = w.want
				a.Tokens, a.Positions, a.FirstPage = d.rows, d.rowPositions, d.rowPages
				q.do(o.Gather(d.next, x, d.rows, n, c.Streams*c.Dim))
				x = d.next
				if g.mixing != nil { // of these tokens
					q.do(d.mix(cuda.Mix{X: x}, 2*i, n))
				}
			}
			q.do(o.Attention(a, n))
		}
		q.do(d.put(&d.attOut, d.att, l.attnSub, n))
		q.do(o.Ternary(d.y, l.o.Rows, &l.o, &d.attOut, n))
		q.do(d.enter(cuda.Mix{X: x, Y: d.y, Write: l.mhcAttn, U: d.u, Read: l.mhcFFN}, 2*i+1, l.ffnNorm, n))
		q.do(d.project(d.up, wide, &l.upGate, n, &l.up, &l.gate))
		q.do(g.decode.ActivateQuantize(&d.ff, d.up, d.up+cuda.Ptr(4*c.FFN), wide, activation(c.FFNKind), cuda.Normed{Weight: l.ffnSub, Eps: float32(c.NormEps)}, n))
		q.do(o.Ternary(d.y, l.down.Rows, &l.down, &d.ff, n))
		if i < last {
			to := &g.layers[i+1]
			q.do(d.enter(cuda.Mix{X: x, Y: d.y, Write: l.mhcFFN, Initial: initial, Scalars: to.scalars, U: d.u, Read: to.mhcAttn}, 2*(i+1), to.attnNorm, n))
		} else {
			q.do(d.leave(cuda.Mix{X: x, Y: d.y, Write: l.mhcFFN, Mean: d.final}, n))
		}
	}
	if w.logitRows > 0 {
		h := &cuda.Head{Table: &g.head, X: d.final, Softcap: float32(c.LogitSoftcap)}
		if g.m.int8Head() {
			h.Act = &d.finalAct
		}
		q.do(o.Logits(d.logits, h, d.heads, w.logitRows))
	}
	return q.err
}

// enter mixes, and makes what the next function reads d.in.
func (d *gpuWork) enter(m cuda.Mix, site int, weight cuda.Ptr, tokens int) error {
	c := &d.g.m.cfg
	if d.g.mixing == nil {
		return d.g.decode.MixQuantize(&d.in, m, cuda.Normed{Weight: weight, Eps: float32(c.NormEps)}, tokens, c.Streams, c.Dim)
	}
	if err := d.mix(m, site, tokens); err != nil {
		return err
	}
	return d.put(&d.in, d.u, weight, tokens)
}

// leave mixes for the last time, and norms the mean for the head.
func (d *gpuWork) leave(m cuda.Mix, tokens int) error {
	g, c := d.g, &d.g.m.cfg
	eps := float32(c.NormEps)
	var act *cuda.Act
	if g.m.int8Head() {
		act = &d.finalAct
	}
	if g.mixing == nil {
		return g.decode.MixQuantize(act, m, cuda.Normed{Weight: g.norm, Eps: eps, Out: d.final}, tokens, c.Streams, c.Dim)
	}
	if err := d.mix(m, -1, tokens); err != nil {
		return err
	}
	if act == nil {
		return g.ops.Norm(d.final, d.final, g.norm, eps, tokens, c.Dim)
	}
	return g.ops.RMSNormQuantize(act, d.final, d.final, g.norm, eps, tokens)
}

// project computes all of the parts' rows, of vectors rows long: by the matrix that they are
// together, or one by one.
func (d *gpuWork) project(dst cuda.Ptr, rows int, whole *cuda.Ternary, tokens int, parts ...*cuda.Ternary) error {
	if whole.Rows > 0 {
		return d.g.ops.Ternary(dst, rows, whole, &d.in, tokens)
	}
	q := &queue{}
	for _, p := range parts {
		if p.Rows > 0 {
			q.do(d.g.ops.Ternary(dst, rows, p, &d.in, tokens))
			dst += cuda.Ptr(4 * p.Rows)
		}
	}
	return q.err
}

// queue keeps the first error of what is queued.
type queue struct{ err error }

func (q *queue) do(err error) {
	if q.err == nil {
		q.err = err
	}
}

// put makes x the input in, normed first if there is a weight.
func (d *gpuWork) put(in *cuda.Act, x, weight cuda.Ptr, tokens int) error {
	if weight == 0 {
		return d.g.ops.Quantize(in, x, tokens)
	}
	return d.g.ops.RMSNormQuantize(in, 0, x, weight, float32(d.g.m.cfg.NormEps), tokens)
}

func (d *gpuWork) cache(p *Pool, layer int) cuda.Cache {
	c := &d.g.m.cfg
	v := cuda.Cache{
		Slab: p.gpu.at, PageBytes: int64(p.pageBytes), LayerOffset: int64(layer * p.layerBytes),
		KVHeads: int32(c.KVHeads), HeadDim: int32(c.HeadDim),
	}
	if p.kind == kernels.KVI8 {
		v.Int8 = 1
	}
	return v
}

func (d *gpuWork) rotation(w *Work, layer int) *cuda.Rotation {
	c, l, rope := &d.g.m.cfg, &d.g.layers[layer], &d.g.m.rope
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	r := &cuda.Rotation{
		Q: d.qkv, K: d.qkv + cuda.Ptr(4*q), V: d.qkv + cuda.Ptr(4*(q+kv)), LD: int32(q + 2*kv), QNorm: l.qNorm, KNorm: l.kNorm, Cosine: d.g.cosine, Sine: d.g.sine,
		Positions: d.positions, Pages: d.pageOf, Cache: d.cache(w.pool, layer),
		Heads: int32(c.Heads), Half: int32(rope.rotary / 2), Eps: float32(c.NormEps),
	}
	if rope.interleaved {
		r.Interleaved = 1
	}
	return r
}

func (d *gpuWork) attend(w *Work, layer int) *cuda.Attend {
	c := &d.g.m.cfg
	return &cuda.Attend{
		Dst: d.att, Q: d.qkv, LD: int32((c.Heads + 2*c.KVHeads) * c.HeadDim), Tokens: d.tokens, Positions: d.positions, FirstPage: d.firstPage, Pages: d.pages,
		Cache: d.cache(w.pool, layer), Heads: int32(c.Heads), Scale: attentionScale(c.HeadDim),
	}
}
