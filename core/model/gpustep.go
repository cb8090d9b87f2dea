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
	q, k, v, att, y, gate, up    cuda.Ptr // q, k and v, up and gate lie one behind the other
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
		{&d.q, (c.Heads + 2*c.KVHeads) * c.HeadDim}, {&d.att, c.Heads * c.HeadDim}, {&d.up, 2 * c.FFN},
	} {
		if *f.dst, err = d.memory.alloc(t, 4*tokens*f.cols); err != nil {
			return err
		}
	}
	d.k = d.q + cuda.Ptr(4*tokens*c.Heads*c.HeadDim)
	d.v = d.k + cuda.Ptr(4*tokens*c.KVHeads*c.HeadDim)
	d.gate = d.up + cuda.Ptr(4*tokens*c.FFN)
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
		compute := func() error { return d.queue(w) }
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

// queue queues the step: Work.run on the device.
func (d *gpuWork) queue(w *Work) error {
	g, c, o := d.g, &d.g.m.cfg, d.g.ops
	n, last := w.tokens, len(g.layers)-1
	x, next := d.x, d.next
	q := &queue{}
	initial := cuda.Ptr(0)
	if c.ResidualScalars {
		initial = d.initial
	}
	q.do(o.Embed(x, initial, &g.embed, d.ids, n, c.Streams))
	l := &g.layers[0]
	q.do(d.mix(cuda.Mix{X: x, Initial: initial, Scalars: l.scalars, U: d.u, Read: l.mhcAttn}, 0, n))
	for i := range g.layers {
		l := &g.layers[i]
		q.do(d.put(&d.in, d.u, l.attnNorm, n))
		q.do(o.Ternary(d.q, l.q.Rows, &l.q, &d.in, n))
		q.do(o.Ternary(d.k, l.k.Rows, &l.k, &d.in, n))
		q.do(o.Ternary(d.v, l.v.Rows, &l.v, &d.in, n))
		q.do(o.Rotate(d.rotation(w, i), n))
		a := d.attend(w, i)
		if i == last && w.want < n {
			if w.want == 0 {
				return q.err // the caches are complete
			}
			n = w.want
			a.Tokens, a.Positions, a.FirstPage = d.rows, d.rowPositions, d.rowPages
			q.do(o.Gather(next, x, d.rows, n, c.Streams*c.Dim))
			x, next = next, x
			if g.mixing != nil { // of these tokens
				q.do(d.mix(cuda.Mix{X: x}, 2*i, n))
			}
		}
		q.do(o.Attention(a, n))
		q.do(d.put(&d.attOut, d.att, l.attnSub, n))
		q.do(o.Ternary(d.y, l.o.Rows, &l.o, &d.attOut, n))
		q.do(d.mix(cuda.Mix{X: x, Y: d.y, Write: l.mhcAttn, U: d.u, Read: l.mhcFFN}, 2*i+1, n))

		q.do(d.put(&d.in, d.u, l.ffnNorm, n))
		q.do(o.Ternary(d.up, l.up.Rows, &l.up, &d.in, n))
		if l.gate.Rows > 0 {
			q.do(o.Ternary(d.gate, l.gate.Rows, &l.gate, &d.in, n))
		}
		q.do(o.Activate(d.up, d.gate, d.up, n*c.FFN, activation(c.FFNKind)))
		q.do(d.put(&d.ff, d.up, l.ffnSub, n))
		q.do(o.Ternary(d.y, l.down.Rows, &l.down, &d.ff, n))
		m, site := cuda.Mix{X: x, Y: d.y, Write: l.mhcFFN, Mean: d.final}, -1
		if i < last {
			to := &g.layers[i+1]
			site = 2 * (i + 1)
			m = cuda.Mix{X: x, Y: d.y, Write: l.mhcFFN, Initial: initial, Scalars: to.scalars, U: d.u, Read: to.mhcAttn}
		}
		q.do(d.mix(m, site, n))
	}
	q.do(d.last(n))
	if w.logitRows > 0 {
		q.do(o.Logits(d.logits, d.headArgs(), d.heads, w.logitRows))
	}
	return q.err
}

// last norms d.final for the head.
func (d *gpuWork) last(tokens int) error {
	g, eps := d.g, float32(d.g.m.cfg.NormEps)
	if g.m.int8Head() {
		return g.ops.RMSNormQuantize(&d.finalAct, d.final, d.final, g.norm, eps, tokens)
	}
	return g.ops.Norm(d.final, d.final, g.norm, eps, tokens, g.m.cfg.Dim)
}

func (d *gpuWork) headArgs() *cuda.Head {
	h := &cuda.Head{Table: &d.g.head, X: d.final, Softcap: float32(d.g.m.cfg.LogitSoftcap)}
	if d.g.m.int8Head() {
		h.Act = &d.finalAct
	}
	return h
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
	r := &cuda.Rotation{
		Q: d.q, K: d.k, V: d.v, QNorm: l.qNorm, KNorm: l.kNorm, Cosine: d.g.cosine, Sine: d.g.sine,
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
		Dst: d.att, Q: d.q, Tokens: d.tokens, Positions: d.positions, FirstPage: d.firstPage, Pages: d.pages,
		Cache: d.cache(w.pool, layer), Heads: int32(c.Heads), Scale: attentionScale(c.HeadDim),
	}
}
