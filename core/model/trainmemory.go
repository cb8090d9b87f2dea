package model

import (
	"reflect"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/kernels"
)

// TrainMemory is the bytes that a Trainer has allocated, by part. Tables of rotary
// angles and what an optimizer keeps are not among them.
type TrainMemory struct {
	// Weights are the latent matrices and Grads all gradients; Model is the weights
	// as inference has them, vectors included, and Factors those of the matrices as
	// the backward multiplies by them.
	Weights, Grads, Model, Factors int64
	// Tape is what the forward keeps, Pages the keys and values of one layer, and
	// Scratch the rest of what a step works in.
	Tape, Pages, Scratch int64
}

// Total is the sum of all parts.
func (m TrainMemory) Total() int64 {
	return m.Weights + m.Grads + m.Model + m.Factors + m.Tape + m.Pages + m.Scratch
}

// Memory counts what t has allocated.
func (t *Trainer) Memory() TrainMemory {
	b, w := &t.backward, t.work
	m := TrainMemory{Pages: t.pool.Bytes()}
	for i := range t.params {
		m.Grads += bytesOf(t.params[i].G)
	}
	for _, x := range t.matrices() {
		m.Weights += bytesOf(x.w)
		if f := &x.used; f.full == nil || !t.o.Float {
			m.Factors += f.bytes()
		}
	}
	s := t.m.Memory()
	m.Model = s.Norms + s.MHC
	if !t.o.Float {
		m.Model += s.Tiles + s.Scales + s.Dense + s.Embedding + s.Head
	}

	m.Tape = bytesOf(w.tape.start)
	for i := range w.tape.layers {
		l := &w.tape.layers[i]
		m.Tape += bytesOf(l.left)
		if i == 0 || !t.o.Recompute {
			m.Tape += l.bytes(i == 0)
			if t.m.cfg.ResidualScalars {
				m.Tape += bytesOf(l.entered)
			}
		}
	}
	m.Scratch = int64(w.shared.bytes()) + coefBytes*int64(len(w.shared.coefs)) + 4*int64(len(w.ids)+len(w.pos)+len(w.rows))
	m.Scratch += bytesOf(b.dx, b.dxOther, b.dembed, b.datt, b.dq, b.dk, b.dv, b.din, b.wide, b.partial, b.logits, b.headScale, b.scalars)
	m.Scratch += b.dy.bytes() + b.x.bytes() + rowBytes*int64(len(b.results)) + coefGradBytes*int64(len(b.coefGrads))
	for _, g := range b.mixGrads {
		m.Scratch += bytesOf(g.Pre, g.Post, g.Res, g.Gate, g.Proj)
	}
	for i := range b.workers {
		k, c := &b.workers[i], &w.workers[i]
		m.Scratch += bytesOf(k.hidden, k.y, k.mix, k.capped, c.u, c.norm, c.mix)
		m.Scratch += int64(len(k.product) + len(k.attention) + len(c.scratch))
	}
	return m
}

// matrices lists the latents.
func (t *Trainer) matrices() []*matrix {
	all := []*matrix{&t.embed}
	if t.head != &t.embed {
		all = append(all, t.head)
	}
	for i := range t.layers {
		l := &t.layers[i]
		all = append(all, &l.qkv, &l.o, &l.up, &l.down)
	}
	return all
}

var (
	coefBytes     = int64(reflect.TypeFor[mhc.Coef]().Size())
	coefGradBytes = int64(reflect.TypeFor[mhc.CoefGrad]().Size())
	rowBytes      = int64(reflect.TypeFor[lossRow]().Size())
)

func bytesOf(all ...[]float32) (n int64) {
	for _, x := range all {
		n += 4 * int64(len(x))
	}
	return n
}

func (f *factors) bytes() int64 { return 2*int64(len(f.half)) + bytesOf(f.full) }

// bytes counts what l does not share with the layers before it.
func (l *tapeLayer) bytes(first bool) int64 {
	r := &l.r
	n := bytesOf(r.q, r.k, r.v, r.att, r.up, r.gate, l.middle)
	if len(r.q) > 0 && &r.rotQ[0] != &r.q[0] {
		n += bytesOf(r.rotQ, r.rotK)
	}
	for _, in := range []*input{&l.in, &l.attOut, &l.ffnIn, &l.ff} {
		n += int64(actBytes(&in.act)) + bytesOf(in.dense)
	}
	shared := &r.y[0] == &l.down[0]
	if first || !shared {
		n += bytesOf(r.y)
	}
	if !shared {
		n += bytesOf(l.down)
	}
	if first {
		n += bytesOf(r.hidden)
	}
	return n + coefBytes*int64(len(l.attnCoefs)+len(l.ffnCoefs))
}

// TrainMemoryOf is what Memory of a new Trainer would be, without making it.
func TrainMemoryOf(c config.Model, o TrainOptions) (TrainMemory, error) {
	if err := checkTrain(c, o); err != nil {
		return TrainMemory{}, err
	}
	site, err := mhc.New(mhcConfig(c))
	if err != nil {
		return TrainMemory{}, err
	}
	p := predictor{c: c, o: o, site: site.Config, workers: 1}
	if o.Team != nil {
		p.workers = int64(o.Team.Size())
	}
	p.tokens, p.dim, p.ffn = int64(o.Tokens), int64(c.Dim), int64(c.FFN)
	p.q, p.kv = int64(c.Heads*c.HeadDim), int64(c.KVHeads*c.HeadDim)
	p.inner = p.ffn
	if c.FFNKind != config.FFNReLU2 {
		p.inner *= 2
	}
	p.streams = int64(c.Streams) * p.dim
	var m TrainMemory
	p.weights(&m)
	p.tape(&m)
	p.scratch(&m)
	m.Pages = int64(firstPages(o.Tokens)) * int64(c.KVHeads*kernels.KVF16.HeadBytes(c.HeadDim))
	return m, nil
}

// predictor is the sizes that a Trainer's memory follows from.
type predictor struct {
	c       config.Model
	o       TrainOptions
	site    mhc.Config
	workers int64

	tokens, dim, ffn, q, kv int64
	inner                   int64 // rows of up, and gate
	streams                 int64 // values of a token's streams
}

func (p *predictor) weights(m *TrainMemory) {
	c, layers := &p.c, int64(p.c.Layers)
	count := c.Params()
	table := int64(c.Vocab) * p.dim
	m.Weights = 4 * (count.Ternary + count.Embedding + count.Head)
	m.Grads = m.Weights + 4*(count.Norms+count.MHC)
	switch {
	case !p.o.F32:
		m.Factors = 2 * (count.Ternary + table)
	case !p.o.Float:
		m.Factors = 4 * (count.Ternary + table)
	}
	m.Model = 4 * (count.Norms + count.MHC)
	if p.o.Float {
		return
	}
	ternary := func(rows, cols int64) int64 {
		w := kernels.Ternary{Rows: int(rows), Cols: int(cols), Group: c.Group}
		if c.Group == 0 {
			w.Group = w.Cols
		}
		return int64(w.Blocks()) * (64*int64(w.ColTiles()) + 2*kernels.TileSide*int64(w.Groups()))
	}
	layer := ternary(p.q, p.dim) + 2*ternary(p.kv, p.dim) + ternary(p.dim, p.q) +
		p.inner/p.ffn*ternary(p.ffn, p.dim) + ternary(p.dim, p.ffn)
	m.Model += layers*layer + int64(c.Vocab*denseType(c.Embedding).RowBytes(c.Dim))
	if !c.TieEmbeddings {
		m.Model += int64(c.Vocab * denseType(c.Head).RowBytes(c.Dim))
	}
}

// act is the bytes of int8 vectors, input those of the input of a projection.
func (p *predictor) act(cols, group int64) int64 {
	return p.tokens * (int64(kernels.ActStride(int(cols))) + 4 + 4*((cols+group-1)/group))
}

func (p *predictor) input(cols int64) int64 {
	if p.o.Float {
		return 4 * p.tokens * cols
	}
	if p.c.Group == 0 {
		return p.act(cols, cols)
	}
	return p.act(cols, int64(p.c.Group))
}

func (p *predictor) dynamic() bool { return p.c.Streams > 1 && p.c.MHCDynamic }

func (p *predictor) tape(m *TrainMemory) {
	c, token := &p.c, 4*p.tokens
	layer := 2*p.input(p.dim) + p.input(p.q) + p.input(p.ffn) + token*(p.streams+2*p.q+2*p.kv+p.inner)
	if c.QKNorm {
		layer += token * (p.q + p.kv)
	}
	if c.ResidualScalars {
		layer += token * p.streams
	}
	once := token * p.ffn // the activated values
	if c.Streams > 1 {
		layer += 2 * token * p.dim
	} else {
		once += token * p.dim
	}
	if p.dynamic() {
		layer += 2 * coefBytes * p.tokens
	}
	layers := int64(c.Layers)
	m.Tape = once + (layers+1)*token*p.streams
	if p.o.Recompute {
		layers = 1
	}
	m.Tape += layers * layer
}

func (p *predictor) scratch(m *TrainMemory) {
	c, token := &p.c, 4*p.tokens
	n := token*p.dim + 3*token // in front of the head; ids, positions, rows
	if c.ResidualScalars {
		n += token * (p.dim + 2*int64(c.Layers))
	}
	head := c.Head
	if c.TieEmbeddings {
		head = c.Embedding
	}
	if !p.o.Float && head == config.TypeQ8_0 {
		n += p.act(p.dim, p.dim)
	}
	_, chunk, blocks := chunks(c, p.o.Tokens, int(p.workers))
	widest := max(p.dim, p.q, p.ffn)
	part := max(widest, 2*int64(c.HeadDim))
	factor := int64(2)
	if p.o.F32 {
		factor = 4
	}
	n += token*(p.streams+p.dim+2*p.q+2*p.kv) + rowBytes*p.tokens + 4*headTokens
	n += int64(chunk) * (4*(p.dim+p.ffn) + factor*(max(p.q+2*p.kv, p.inner)+widest))
	n += 4 * (int64(blocks)*part + int64(min(headTokens, p.o.Tokens)*c.Vocab))
	if c.Streams > 1 {
		n += token*p.streams + coefGradBytes*p.tokens
		logits := int64(p.site.Logits())
		grad := logits
		if c.MHCDynamic {
			n += coefBytes * p.tokens
			grad += 3 + logits*p.streams
		}
		n += 4 * grad * int64(blocks)
	}
	worker := 4 * (p.ffn + 2*p.dim + widest + int64(p.site.BackwardScratchLen()+p.site.ScratchLen()+c.Vocab))
	worker += int64(kernels.MatMulScratch() + kernels.AttentionBackwardScratch(min(p.o.Tokens, c.Context), c.HeadDim))
	worker += int64(max(kernels.GEMMScratch(p.o.Tokens, int(widest)), kernels.AttentionScratch(c.HeadDim)))
	m.Scratch = n + p.workers*worker
}
