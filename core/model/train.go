package model

import (
	"fmt"
	"math"
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/internal/rng"
	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// TrainOptions are the choices of a Trainer.
type TrainOptions struct {
	// Set computes. The default value is kernels.Best().
	Set *kernels.Set
	// Team is the workers. The default is the calling goroutine alone.
	Team *team.Team
	// Tokens is the most tokens of a TrainBatch.
	Tokens int
	// Recompute keeps only the streams between layers from the forward and computes
	// the rest of a layer again in the backward: less memory, about a third more time.
	Recompute bool
	// Float leaves projections, embedding and head in float32: the network that a
	// ternary one is compared with.
	Float bool
	// F32 multiplies in float32 in the backward, instead of in bfloat16.
	F32 bool
}

// Trainer is a network in training: latent float32 weights, their gradients, and a
// Model that holds the weights as inference has them and as every forward of the
// training uses them. It is for one goroutine.
//
// Quantisation is straight through: a gradient passes a quantiser unchanged, and
// scales count as constants. The gradient of a projection's weights is taken with
// the quantised inputs, that of its inputs with the quantised weights.
type Trainer struct {
	m    *Model
	o    TrainOptions
	work *Work
	pool *Pool
	seqs []Seq
	step Step

	params []optim.Param
	layers []trainLayer
	embed  matrix
	head   *matrix // embed if tied
	norm   []float32
	jobs   []refreshJob
	ready  bool // the model follows the latents
	// bare is weights alone: neither gradients, nor factors, nor memory for a step. They
	// are the host's copy of those that a GPU trains.
	bare bool

	backward
}

// trainLayer is the latents and gradients of one layer.
type trainLayer struct {
	qkv, o, up, down matrix // qkv and up are stacks: q, k, v; up and, if there is one, gate

	attnNorm, qNorm, kNorm, attnSub, ffnNorm, ffnSub []float32 // gradients
	scalars                                          []float32
	mhcAttn, mhcFFN                                  *mhc.Grad
}

// A matrix is latent weights [rows, cols], their gradient, and the weights that
// the forward multiplies by, in the form in which the backward does.
type matrix struct {
	rows, cols int
	w, g       []float32
	used       factors
}

// factors are numbers on their way into a product of the backward: in bfloat16, or
// in float32 where that was chosen.
type factors struct {
	half []uint16
	full []float32
}

func (f *factors) operand(stride int, trans bool) kernels.Operand {
	return kernels.Operand{BF16: f.half, F32: f.full, Stride: stride, Trans: trans}
}

// put makes vector i, of length n, a·x.
func (f *factors) put(k *kernels.Set, i, n int, a float32, x []float32) {
	if f.half != nil {
		k.BF16(f.half[i*n:(i+1)*n], a, x)
	} else {
		k.Scale(f.full[i*n:(i+1)*n], a, x)
	}
}

// putInt8 makes vector i, of length n, q.
func (f *factors) putInt8(k *kernels.Set, i, n int, q []int8) {
	if f.half != nil {
		k.BF16FromI8(f.half[i*n:(i+1)*n], q[:n])
		return
	}
	dst := f.full[i*n : (i+1)*n]
	for j, v := range q[:n] {
		dst[j] = float32(v)
	}
}

// NewTrainer makes a network of shape c whose weights are all zero.
func NewTrainer(c config.Model, o TrainOptions) (*Trainer, error) {
	t, err := newWeights(c, o, false)
	if err != nil {
		return nil, err
	}
	if t.work, err = newTrainWork(t.m, t.o.Team, o.Tokens, o.Recompute); err != nil {
		return nil, err
	}
	if err := t.newPages(firstPages(o.Tokens)); err != nil {
		return nil, err
	}
	t.newBackward()
	return t, nil
}

// newWeights makes a Trainer that cannot compute a step yet, or, if it is bare, never.
func newWeights(c config.Model, o TrainOptions, bare bool) (*Trainer, error) {
	if err := checkTrain(c, o); err != nil {
		return nil, err
	}
	if o.Set == nil {
		o.Set = kernels.Best()
	}
	if o.Team == nil {
		o.Team = team.New(1, team.Options{})
	}
	m, err := newModel(c, arch, Options{Set: o.Set})
	if err != nil {
		return nil, err
	}
	t := &Trainer{m: m, o: o, layers: make([]trainLayer, c.Layers), bare: bare}
	if err := t.allocate(); err != nil {
		return nil, err
	}
	return t, m.finish(Options{Set: o.Set})
}

func checkTrain(c config.Model, o TrainOptions) error {
	if err := checkConfig(c); err != nil {
		return err
	}
	if err := checkStorage(c); err != nil {
		return err
	}
	if o.Tokens < 1 || o.Tokens > 1<<16 {
		return fmt.Errorf("model: training with %d tokens at a time: want 1 to %d", o.Tokens, 1<<16)
	}
	return nil
}

// place is where a projection stands in a stack of latents.
type place struct {
	m   *matrix
	row int
}

// allocate makes the weights of the model, latents and gradients.
func (t *Trainer) allocate() error {
	c := &t.m.cfg
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	places := map[*linear]place{}
	for i := range t.layers {
		l, x := &t.m.layers[i], &t.layers[i]
		x.qkv, x.o = t.newMatrix(q+2*kv, c.Dim), t.newMatrix(c.Dim, q)
		places[&l.q], places[&l.k], places[&l.v] = place{&x.qkv, 0}, place{&x.qkv, q}, place{&x.qkv, q + kv}
		places[&l.o] = place{&x.o, 0}
		inner := c.FFN
		if c.FFNKind != config.FFNReLU2 {
			inner *= 2
		}
		x.up, x.down = t.newMatrix(inner, c.Dim), t.newMatrix(c.Dim, c.FFN)
		if inner > c.FFN {
			places[&l.gate] = place{&x.up, c.FFN}
		}
		places[&l.up], places[&l.down] = place{&x.up, 0}, place{&x.down, 0}
	}
	t.embed = t.newMatrix(c.Vocab, c.Dim)
	t.head = &t.embed
	if !c.TieEmbeddings {
		t.embed.used = factors{} // nothing is multiplied by it
		head := t.newMatrix(c.Vocab, c.Dim)
		t.head = &head
	}
	grads := t.vectors()
	for _, s := range t.m.slots() {
		switch {
		case s.optional:
		case s.vec != nil:
			t.addVector(s, grads[s.vec])
		case s.dense != nil:
			w, class, kind := &t.embed, optim.Embedding, c.Embedding
			if s.name != "token_embd.weight" {
				w, class, kind = t.head, optim.Head, c.Head
			}
			t.addDense(s, w, denseType(kind))
			t.params = append(t.params, optim.Param{Name: s.name, Class: class, Rows: w.rows, Cols: w.cols, W: w.w, G: w.g})
		default:
			if err := t.addLinear(s, places[s.lin]); err != nil {
				return err
			}
		}
	}
	if c.TieEmbeddings {
		t.m.head = t.m.embed
	}
	return nil
}

func (t *Trainer) newMatrix(rows, cols int) matrix {
	m := matrix{rows: rows, cols: cols, w: make([]float32, rows*cols)}
	if t.bare {
		return m
	}
	m.g = make([]float32, rows*cols)
	switch {
	case !t.o.F32:
		m.used.half = make([]uint16, rows*cols)
	case t.o.Float:
		m.used.full = m.w
	default:
		m.used.full = make([]float32, rows*cols)
	}
	return m
}

// vectors says where the gradients of vectors stand.
func (t *Trainer) vectors() map[*[]float32]*[]float32 {
	grads := map[*[]float32]*[]float32{&t.m.norm: &t.norm}
	for i := range t.layers {
		l, x := &t.m.layers[i], &t.layers[i]
		grads[&l.scalars], grads[&l.attnNorm], grads[&l.ffnNorm] = &x.scalars, &x.attnNorm, &x.ffnNorm
		grads[&l.qNorm], grads[&l.kNorm] = &x.qNorm, &x.kNorm
		grads[&l.attnSub], grads[&l.ffnSub] = &x.attnSub, &x.ffnSub
		x.mhcAttn, x.mhcFFN = mhc.NewGrad(l.mhcAttn.Config), mhc.NewGrad(l.mhcFFN.Config)
		for s, g := range map[*mhc.Site]*mhc.Grad{l.mhcAttn: x.mhcAttn, l.mhcFFN: x.mhcFFN} {
			grads[&s.Pre], grads[&s.Post], grads[&s.Res] = &g.Pre, &g.Post, &g.Res
			grads[&s.Gate], grads[&s.Proj] = &g.Gate, &g.Proj
		}
	}
	return grads
}

// addVector makes the vector of slot s a parameter: the model's own memory is the
// latent.
func (t *Trainer) addVector(s slot, grad *[]float32) {
	rows, cols := 1, 1
	for _, d := range s.dims {
		rows, cols = rows*cols, d
	}
	if *s.vec == nil {
		*s.vec = make([]float32, rows*cols)
	}
	if *grad == nil && !t.bare {
		*grad = make([]float32, rows*cols)
	}
	class := optim.Scalar
	if strings.Contains(s.name, ".mhc_") {
		class = optim.MHC
	}
	t.params = append(t.params, optim.Param{Name: s.name, Class: class, Rows: rows, Cols: cols, W: *s.vec, G: *grad})
}

func (t *Trainer) addDense(s slot, w *matrix, kind kernels.DType) {
	d := s.dense
	*d = kernels.Dense{Rows: w.rows, Cols: w.cols, Type: kind}
	if t.o.Float {
		d.Type, d.Data = kernels.F32, kernels.F32Bytes(w.w)
	} else {
		d.Data = kernels.AlignedBytes(w.rows * kind.RowBytes(w.cols))
	}
	t.addJobs(refreshJob{dense: d, at: place{w, 0}, name: s.name}, w.rows)
}

func (t *Trainer) addLinear(s slot, at place) error {
	lo, hi := at.row*s.cols, (at.row+s.rows)*s.cols
	w := at.m.w[lo:hi:hi]
	p := optim.Param{Name: s.name, Class: optim.Matrix, Rows: s.rows, Cols: s.cols, W: w}
	if !t.bare {
		p.G = at.m.g[lo:hi:hi]
	}
	t.params = append(t.params, p)
	if t.o.Float {
		s.lin.dense = &kernels.Dense{Rows: s.rows, Cols: s.cols, Type: kernels.F32, Data: kernels.F32Bytes(w)}
		t.addJobs(refreshJob{dense: s.lin.dense, at: at, name: s.name}, s.rows)
		return nil
	}
	q, err := ternary.New(s.rows, s.cols, t.m.cfg.Group)
	if err != nil {
		return err
	}
	s.lin.ternary = q
	t.addJobs(refreshJob{ternary: q, at: at, name: s.name}, s.rows)
	return nil
}

// Init makes the weights the start of training, which depends on the shape and the
// seed alone. Projections are normal with a deviation of 1/√inputs; those whose
// results are added to the streams are less by 1/√(2·Layers), so that the streams
// keep the size of the embedding through the layers. The embedding has a deviation
// of 1 and the head one that makes logits of 0.08: the loss starts at log Vocab. A
// tied matrix has 1/√Dim, and what is added to it is less in proportion. Norm
// weights are 1, residual scalars 1 and 0, hyper-connections as mhc.Site.Init has
// them. Refresh must follow.
func (t *Trainer) Init(seed uint64) {
	c := &t.m.cfg
	embed, head := 1.0, 0.08/math.Sqrt(float64(c.Dim))
	if c.TieEmbeddings {
		embed = 1 / math.Sqrt(float64(c.Dim))
	}
	added := embed / math.Sqrt(2*float64(c.Layers))
	_ = parallel(len(t.params), func(i int) error { // none fails
		p := &t.params[i]
		switch p.Class {
		case optim.Scalar:
			for j := range p.W {
				p.W[j] = 1
			}
			if strings.HasSuffix(p.Name, ".residual_scalars") {
				p.W[1] = 0
			}
		case optim.Embedding, optim.Head, optim.Matrix:
			std := 1 / math.Sqrt(float64(p.Cols))
			switch {
			case p.Class == optim.Embedding:
				std = embed
			case p.Class == optim.Head:
				std = head
			case strings.HasSuffix(p.Name, ".attn_output.weight"), strings.HasSuffix(p.Name, ".ffn_down.weight"):
				std *= added
			}
			rng.New(seed, uint64(i)).FillNormal(p.W, std)
		}
		return nil
	})
	for i := range t.m.layers {
		l := &t.m.layers[i]
		for _, site := range []*mhc.Site{l.mhcAttn, l.mhcFFN} {
			for _, p := range site.Params() {
				clear(p.Data)
			}
			site.Init(i)
		}
	}
	t.ready = false
}

// Params lists the tensors to train, by their names in a file, in its order. Their
// weights may be changed; Refresh must follow.
func (t *Trainer) Params() []optim.Param { return t.params }

// Model is the network with the weights of the last Refresh: the very ones that
// Backward and Evaluate compute with. It changes at the next Refresh. With Float it
// cannot be saved, for a file of this architecture is ternary.
func (t *Trainer) Model() *Model { return t.m }

// ClearGrads makes all gradients zero.
func (t *Trainer) ClearGrads() {
	for i := range t.params {
		clear(t.params[i].G)
	}
}
