package model

import (
	"slices"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
)

// gpuTransit is memory that the device reaches by itself, for what goes to and fro at every step. It
// belongs to the device, whose steps run one after the other.
type gpuTransit struct {
	table []int32
	rows  []float32
}

// stagedBytes is the most that goes through a gpuTransit.
const stagedBytes = 32 << 20

// numbers queues a copy of table to dst. The step has to be waited for before the next.
func (s *gpuTransit) numbers(t *cuda.Thread, dst cuda.Ptr, table []int32) (err error) {
	if len(s.table) < len(table) {
		if s.table, err = cuda.Pinned[int32](t, 2*len(table)); err != nil {
			return err
		}
	}
	return cuda.Upload(t, dst, s.table[:copy(s.table, table)])
}

// logits copies src to dst and waits for all that was queued.
func (s *gpuTransit) logits(t *cuda.Thread, dst []float32, src cuda.Ptr) (err error) {
	if 4*len(dst) > stagedBytes {
		return cuda.Download(t, dst, src)
	}
	if len(s.rows) < len(dst) {
		if s.rows, err = cuda.Pinned[float32](t, max(len(dst), min(2*len(s.rows), stagedBytes/4))); err != nil {
			return err
		}
	}
	if err = cuda.DownloadAsync(t, s.rows[:len(dst)], src); err != nil {
		return err
	}
	err = t.Wait()
	copy(dst, s.rows)
	return err
}

// decodes says whether w's step has one token of each sequence, all of which go through the whole
// network: then few kernels do it, of which each is little work, so that they are recorded
// once for a shape of step and launched as a whole.
func decodes(w *Work) bool { return len(w.seqs) == w.tokens && w.want == w.tokens }

// stepShape is what the launches of such a step depend on beside the numbers that are sent.
type stepShape struct {
	tokens, logitRows, room       int
	slab, numbers, logits, scores cuda.Ptr
	kind                          kernels.KVType
	pageBytes                     int
}

type stepGraph struct {
	stepShape
	graph *cuda.Graph
}

// stepGraphs is the most graphs that a Work keeps.
const stepGraphs = 32

// decode queues the step by its graph, which it records if there is none.
func (d *gpuWork) decode(t *cuda.Thread, w *Work) error {
	pages := 1
	for _, s := range w.seqs {
		pages = max(pages, s.pos/kernels.PageLen+1)
	}
	room := 1 // in powers of two, so that there are few shapes
	for room < pages {
		room *= 2
	}
	room *= kernels.PageLen
	if need := w.tokens * d.g.m.cfg.Heads * room; need > d.scoreRoom {
		d.forget(t)
		d.scoreRoom = max(need, 8*1024*d.g.m.cfg.Heads)
		if err := d.memory.grow(t, &d.scores, 4*d.scoreRoom); err != nil {
			d.scoreRoom = 0
			return err
		}
	}
	shape := stepShape{w.tokens, w.logitRows, room, w.pool.gpu.at, d.numbers, d.logits, d.scores, w.pool.kind, w.pool.pageBytes}
	i := slices.IndexFunc(d.graphs, func(g stepGraph) bool { return g.stepShape == shape })
	if i < 0 {
		record := func() error { return d.queue(w, room) }
		g, err := t.Graph(func() error { return t.Early(record) })
		if err != nil { // a driver may not record kernels that begin early
			g, err = t.Graph(record)
		}
		if err != nil {
			return err
		}
		d.graphs, d.memory.graphs = append(d.graphs, stepGraph{shape, g}), append(d.memory.graphs, g)
		if i = len(d.graphs) - 1; i == stepGraphs {
			old := d.graphs[0].graph
			d.graphs, i = slices.Delete(d.graphs, 0, 1), i-1
			d.memory.graphs = slices.DeleteFunc(d.memory.graphs, func(g *cuda.Graph) bool { return g == old })
			t.Drop(old)
		}
	}
	g := d.graphs[i]
	copy(d.graphs[i:], d.graphs[i+1:])
	d.graphs[len(d.graphs)-1] = g
	return t.Replay(g.graph)
}

// forget drops the graphs, whose memory is about to be another.
func (d *gpuWork) forget(t *cuda.Thread) {
	for _, g := range d.graphs {
		t.Drop(g.graph)
	}
	d.graphs, d.memory.graphs = nil, nil
}

func (d *gpuWork) attendDecode(w *Work, layer, room int) *cuda.DecodeAttend {
	c, l, rope := &d.g.m.cfg, &d.g.layers[layer], &d.g.m.rope
	a := &cuda.DecodeAttend{
		Scores: d.scores, Dst: d.att, QKV: d.qkv, QNorm: l.qNorm, KNorm: l.kNorm, Cosine: d.g.cosine, Sine: d.g.sine,
		Positions: d.positions, FirstPage: d.firstPage, Pages: d.pages, Cache: d.cache(w.pool, layer),
		LD: int32((c.Heads + 2*c.KVHeads) * c.HeadDim), Heads: int32(c.Heads), Half: int32(rope.rotary / 2),
		Room: int32(room), Eps: float32(c.NormEps), Scale: attentionScale(c.HeadDim),
	}
	if rope.interleaved {
		a.Interleaved = 1
	}
	return a
}
