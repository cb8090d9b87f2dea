package model

import (
	"fmt"

	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// fewTokens is the number of tokens up to which every worker does the token-wise
// work (norms, quantisation, residuals) of all tokens itself, in memory of its
// own: for so few that costs less than a barrier. Beyond it tokens are split.
const fewTokens = 2

// Work is the memory of Forward on one team, for steps of up to MaxTokens tokens.
// It is not safe for concurrent use.
type Work struct {
	m         *Model
	team      *team.Team
	maxTokens int
	body      func(*team.Worker) // the method value of run, made once
	headSplit bool               // workers compute whole key/value heads, see attention

	// The step at hand, read by all workers.
	pool   *Pool
	rope   *ropeRows
	seqs   []span
	tokens int
	ids    []int32 // [tokens]
	pos    []int32 // [tokens]
	want   int
	hidden bool    // whether some sequence asked for what stands in front of the head
	rows   []int32 // [want], the tokens that go through the whole network, ascending

	results
	logitRows int
	blocks    []block   // of the rows whose logits are wanted, ascending
	logits    []float32 // [logitRows][Vocab]

	shared  lane
	workers []worker
	tape    *tape    // of a Trainer's forward, else nil
	gpu     *gpuWork // if the steps are computed on a device, else nil
}

// results are what projections, attention and activation leave, [tokens][...]:
// workers write ranges of rows of the matrix, that is columns here.
type results struct {
	q, k, v, att, y, gate, up []float32

	rotQ, rotK []float32 // normed and rotated: in the place of q and k, unless taped
	hidden     []float32 // activated: in the place of gate, or of up without a gate, unless taped
}

// A lane is the memory of token-wise work. With many tokens the workers share
// one, each for its part of the tokens; with few each has its own.
type lane struct {
	x, next    []float32   // [tokens][Streams·Dim], the residual streams
	initial    []float32   // [tokens][Dim], the embedding, with ResidualScalars
	final      []float32   // [tokens][Dim], in front of the head
	finalAct   kernels.Act // the same in int8, if the head takes that
	coefs      []mhc.Coef  // [tokens], if they depend on the token
	in         input       // of q, k, v and gate, up: [tokens][Dim]
	attOut, ff input       // of o: [tokens][Heads·HeadDim], and down: [tokens][FFN]
}

// input is vectors on their way into projections: int8 if some projection of the
// model is ternary, float32 if some is dense.
type input struct {
	act   kernels.Act
	dense []float32 // [tokens][Cols]
}

// inputKind describes one input of all layers.
type inputKind struct {
	cols, group    int
	ternary, dense bool
}

// worker is what one member of the team works with. The slices of its lane are
// headers of shared memory or of its own.
type worker struct {
	lane
	own    lane
	t      *team.Worker
	w      *Work
	m      *Model
	k      *kernels.Set
	r      results // headers of shared memory
	n      int     // tokens
	lo, hi int     // its part of the token-wise work
	few    bool    // the lane is its own

	entered []float32  // where enter puts the streams; nil: where they are
	coefLog []mhc.Coef // where read puts the mixing too, or nil

	eps, scale float32 // of norms; of attention scores
	u, norm    []float32
	mix        []float32 // scratch of mhc
	scratch    []byte    // of matrix products and attention
	kv         kernels.KV
	headAct    kernels.Act // the tokens of finalAct that the head takes at a time
	_          [128]byte
}

// NewWork makes the memory for steps of up to maxTokens tokens of m on a team.
func NewWork(m *Model, t *team.Team, maxTokens int) (*Work, error) {
	if maxTokens < 1 || maxTokens > 1<<16 {
		return nil, fmt.Errorf("model: steps of %d tokens: want 1 to %d", maxTokens, 1<<16)
	}
	c := &m.cfg
	w := newWork(m, t, maxTokens)
	row := func(n int) []float32 { return make([]float32, maxTokens*n) }
	r := &w.results
	r.q, r.att = row(c.Heads*c.HeadDim), row(c.Heads*c.HeadDim)
	r.k, r.v = row(c.KVHeads*c.HeadDim), row(c.KVHeads*c.HeadDim)
	r.rotQ, r.rotK = r.q, r.k
	r.y, r.up = row(c.Dim), row(c.FFN)
	r.hidden = r.up
	if m.layers[0].gate.rows() > 0 {
		r.gate = row(c.FFN)
		r.hidden = r.gate
	}
	kinds, err := m.inputKinds()
	if err != nil {
		return nil, err
	}
	few := min(maxTokens, fewTokens)
	if maxTokens > few {
		w.shared = newLane(m, kinds, maxTokens)
	}
	for i := range w.workers {
		w.workers[i].own = newLane(m, kinds, few)
	}
	return w, nil
}

// newWork makes what is a step's own and the workers' scratch.
func newWork(m *Model, t *team.Team, maxTokens int) *Work {
	c := &m.cfg
	w := &Work{m: m, team: t, maxTokens: maxTokens}
	w.body = w.run
	w.headSplit = t.Size() == 1 || c.KVHeads%t.Size() == 0 && c.HeadDim%kernels.TileSide == 0
	w.ids, w.pos, w.rows = make([]int32, maxTokens), make([]int32, maxTokens), make([]int32, maxTokens)
	widest := max(c.Dim, c.Heads*c.HeadDim, c.FFN)
	scratch := max(kernels.GEMMScratch(maxTokens, widest), kernels.AttentionScratch(c.HeadDim))
	w.workers = make([]worker, t.Size())
	for i := range w.workers {
		w.workers[i] = worker{
			w: w, m: m, k: m.set,
			eps: float32(c.NormEps), scale: attentionScale(c.HeadDim),
			u: make([]float32, c.Dim), norm: make([]float32, widest),
			mix: make([]float32, m.layers[0].mhcAttn.ScratchLen()), scratch: kernels.AlignedBytes(scratch),
		}
	}
	return w
}

// inputKinds finds what the inputs of the projections must hold: of q, k, v, gate
// and up; of o; of down.
func (m *Model) inputKinds() (kinds [3]inputKind, err error) {
	c := &m.cfg
	for i, cols := range []int{c.Dim, c.Heads * c.HeadDim, c.FFN} {
		kinds[i].cols = cols
	}
	for i := range m.layers {
		l := &m.layers[i]
		for kind, ps := range [][]*linear{{&l.q, &l.k, &l.v, &l.gate, &l.up}, {&l.o}, {&l.down}} {
			for _, p := range ps {
				k := &kinds[kind]
				switch {
				case p.dense != nil:
					k.dense = true
				case p.ternary == nil:
				case k.ternary && k.group != p.ternary.Group:
					return kinds, fmt.Errorf("model: layer %d: matrices of %d inputs have scale groups of %d and %d, expected one length",
						i, k.cols, k.group, p.ternary.Group)
				default:
					k.ternary, k.group = true, p.ternary.Group
				}
			}
		}
	}
	return kinds, nil
}

func newLane(m *Model, kinds [3]inputKind, tokens int) lane {
	c := &m.cfg
	l := lane{x: make([]float32, tokens*c.Streams*c.Dim), next: make([]float32, tokens*c.Streams*c.Dim), final: make([]float32, tokens*c.Dim)}
	if c.ResidualScalars {
		l.initial = make([]float32, tokens*c.Dim)
	}
	if c.Streams > 1 && c.MHCDynamic {
		l.coefs = make([]mhc.Coef, tokens)
	}
	if m.int8Head() {
		l.finalAct = *kernels.NewAct(tokens, c.Dim, c.Dim)
	}
	l.in, l.attOut, l.ff = newInput(kinds[0], tokens), newInput(kinds[1], tokens), newInput(kinds[2], tokens)
	return l
}

func newInput(k inputKind, tokens int) (in input) {
	if k.ternary {
		in.act = *kernels.NewAct(tokens, k.cols, k.group)
	}
	if k.dense {
		in.dense = make([]float32, tokens*k.cols)
	}
	return in
}

// MaxTokens is the number of tokens a step of w may have.
func (w *Work) MaxTokens() int { return w.maxTokens }

// Rows is the number of rows of logits of the last step.
func (w *Work) Rows() int { return w.logitRows }

// Logits returns row i of the logits of the last step, [Vocab]. It is valid until
// the next Forward and may be written to.
func (w *Work) Logits(i int) []float32 {
	n := w.m.cfg.Vocab
	return w.logits[i*n : (i+1)*n : (i+1)*n]
}

// Hidden returns the hidden state of token i of sequence seq of the last step, [Dim]:
// its residual streams joined and normed, as the head takes it (before an int8 head
// rounds it). The step must have asked for it. It is valid until the next Forward and
// must not be written to.
func (w *Work) Hidden(seq, i int) []float32 {
	final := w.shared.final
	switch {
	case w.gpu != nil:
		final = w.gpu.hidden
	case w.want <= fewTokens:
		final = w.workers[0].own.final
	}
	return row(final, w.seqs[seq].out+i, w.m.cfg.Dim)
}

// Bytes is the size of w's buffers.
func (w *Work) Bytes() int64 {
	n := 0
	for _, s := range [][]float32{w.q, w.k, w.v, w.att, w.y, w.gate, w.up, w.logits} {
		n += 4 * len(s)
	}
	n += w.shared.bytes()
	for i := range w.workers {
		c := &w.workers[i]
		n += c.own.bytes() + 4*(len(c.u)+len(c.norm)+len(c.mix)) + len(c.scratch)
	}
	return int64(n)
}

func (l *lane) bytes() int {
	n := 4 * (len(l.x) + len(l.next) + len(l.initial) + len(l.final))
	for _, in := range []*input{&l.in, &l.attOut, &l.ff} {
		n += actBytes(&in.act) + 4*len(in.dense)
	}
	return n + actBytes(&l.finalAct)
}

func actBytes(a *kernels.Act) int { return len(a.Q) + 4*len(a.Scale) + 4*len(a.Sums) }
