package model

import (
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// A tape is the memory in which a forward leaves what its backward needs. The
// forward is that of inference; it only writes to other places: every layer to
// buffers of its own where inference uses the same ones again.
type tape struct {
	start  []float32 // [tokens][Streams·Dim], the streams in front of the first layer
	layers []tapeLayer
	clock  *partClock
}

// tapeLayer is what one layer leaves. With recomputation all layers share
// everything but left.
type tapeLayer struct {
	r       results
	down    []float32 // y of the feed-forward part; r.y is that of attention
	entered []float32 // the streams that attention reads: after the residual scalars
	middle  []float32 // those that the feed-forward part reads
	left    []float32 // those that the layer leaves

	in, attOut, ffnIn, ff input
	attnCoefs, ffnCoefs   []mhc.Coef // of dynamic sites
}

// before is the streams in front of layer index.
func (t *tape) before(index int) []float32 {
	if index == 0 {
		return t.start
	}
	return t.layers[index-1].left
}

// setTokens makes n the number of vectors of all inputs.
func (t *tape) setTokens(n int) {
	for i := range t.layers {
		l := &t.layers[i]
		l.in.act.N, l.attOut.act.N, l.ffnIn.act.N, l.ff.act.N = n, n, n, n
	}
}

// newTrainWork is a Work whose step leaves a tape. Where recompute is set only the
// streams between layers have memory of their own.
func newTrainWork(m *Model, tm *team.Team, tokens int, recompute bool) (*Work, error) {
	c := &m.cfg
	kinds, err := m.inputKinds()
	if err != nil {
		return nil, err
	}
	w := newWork(m, tm, tokens)
	w.tape = &tape{layers: make([]tapeLayer, c.Layers), clock: &partClock{}}
	streams := func() []float32 { return make([]float32, tokens*c.Streams*c.Dim) }
	w.tape.start = streams()
	y := make([]float32, tokens*c.Dim)      // for one stream the backward does not need it
	hidden := make([]float32, tokens*c.FFN) // the backward computes it again
	for i := range w.tape.layers {
		l := &w.tape.layers[i]
		if i == 0 || !recompute {
			*l = newTapeLayer(m, kinds, tokens, y, hidden)
		} else {
			*l = w.tape.layers[0]
		}
		l.left = streams()
		if !c.ResidualScalars {
			l.entered = w.tape.before(i)
		}
	}
	lane := &w.shared
	lane.final = make([]float32, tokens*c.Dim)
	if c.ResidualScalars {
		lane.initial = make([]float32, tokens*c.Dim)
	}
	if c.Streams > 1 && c.MHCDynamic {
		lane.coefs = make([]mhc.Coef, tokens)
	}
	if m.int8Head() {
		lane.finalAct = *kernels.NewAct(tokens, c.Dim, c.Dim)
	}
	return w, nil
}

func newTapeLayer(m *Model, kinds [3]inputKind, tokens int, y, hidden []float32) tapeLayer {
	c := &m.cfg
	rows := func(n int) []float32 { return make([]float32, tokens*n) }
	l := tapeLayer{
		in: newInput(kinds[0], tokens), attOut: newInput(kinds[1], tokens),
		ffnIn: newInput(kinds[0], tokens), ff: newInput(kinds[2], tokens),
		middle: rows(c.Streams * c.Dim),
	}
	r := &l.r
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	r.q, r.k, r.v, r.att = rows(q), rows(kv), rows(kv), rows(q)
	r.rotQ, r.rotK = r.q, r.k
	if c.QKNorm {
		r.rotQ, r.rotK = rows(q), rows(kv)
	}
	r.up, r.hidden = rows(c.FFN), hidden
	if m.layers[0].gate.rows() > 0 {
		r.gate = rows(c.FFN)
	}
	r.y, l.down = y, y
	if c.Streams > 1 {
		r.y, l.down = rows(c.Dim), rows(c.Dim)
		if c.MHCDynamic {
			l.attnCoefs, l.ffnCoefs = make([]mhc.Coef, tokens), make([]mhc.Coef, tokens)
		}
	}
	if c.ResidualScalars {
		l.entered = rows(c.Streams * c.Dim)
	}
	return l
}

// record turns the worker to the place of what it is about to put in front of the
// attention of layer index.
func (c *worker) record(index int) {
	if c.w.tape == nil {
		return
	}
	if index == 0 {
		c.x = c.w.tape.start
	}
	l := &c.w.tape.layers[index]
	c.in, c.coefLog, c.entered = l.in, l.attnCoefs, nil
	if c.m.cfg.ResidualScalars {
		c.entered = l.entered
	}
}

// recordBlock turns the worker to the places of layer index.
func (c *worker) recordBlock(index int) {
	if c.w.tape == nil {
		return
	}
	l := &c.w.tape.layers[index]
	c.r, c.attOut, c.ff = l.r, l.attOut, l.ff
	c.x, c.next = l.entered, l.middle
}

// recordFFN turns the worker to the place of the input of the feed-forward part.
func (c *worker) recordFFN(index int) {
	if c.w.tape != nil {
		l := &c.w.tape.layers[index]
		c.in, c.coefLog = l.ffnIn, l.ffnCoefs
	}
}

// recordResult turns the worker to the places of what the layer leaves.
func (c *worker) recordResult(index int) {
	if c.w.tape != nil {
		l := &c.w.tape.layers[index]
		c.r.y, c.next = l.down, l.left
	}
}

// part is a part of a training step, by which its time is counted.
type part uint8

const (
	partNorms part = iota // norms, quantisation, residuals and activations of the forward
	partProjections
	partAttention
	partHead
	partLoss
	partHeadBackward
	partInputs  // products dY·W
	partWeights // products dYᵀ·X
	partAttentionBackward
	partTokens // norms, activations and conversions of the backward
	partMixing // hyper-connections backward
	partEmbedding
	partRefresh
	parts
)

var partNames = [parts]string{
	"norms and quantisation", "projections", "attention", "head", "cross entropy", "head backward",
	"input gradients", "weight gradients", "attention backward", "norms and activations backward",
	"hyper-connections backward", "embedding gradient", "quantising weights",
}

// partClock counts worker 0's time by part, waiting for the others included.
type partClock struct {
	last time.Time
	turn time.Time // end of the last forward
	sum  [parts]time.Duration
}

func (p *partClock) start() { p.last = clock.System().Now() }

func (p *partClock) mark(x part) {
	now := clock.System().Now()
	p.sum[x] += now.Sub(p.last)
	p.last = now
}

// mark counts the time since the last mark to a part of a taped step.
func (c *worker) mark(x part) {
	if c.w.tape != nil && c.t.ID == 0 {
		c.w.tape.clock.mark(x)
	}
}
