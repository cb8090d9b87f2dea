package model

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/kernels"
)

// Options are the choices that are not part of a model.
type Options struct {
	// Set computes. The default value is kernels.Best().
	Set *kernels.Set
	// Context, if not 0, lowers the number of positions below what the model
	// was made for. A larger number is a *LimitError.
	Context int
	// HugePages copies the matrices into memory with huge pages. Without it they
	// are views of the file.
	HugePages bool
}

// LimitError reports Options that ask for a longer context than a model has.
type LimitError struct {
	// Path is the file of the model, or empty.
	Path string
	// Asked is the number of positions asked for, Context the number there are.
	Asked, Context int
}

func (e *LimitError) Error() string {
	name := e.Path
	if name == "" {
		name = "the model"
	}
	return fmt.Sprintf("model: a context of %d positions was asked for, %s was made for %d: ask for at most that", e.Asked, name, e.Context)
}

func (o Options) withDefaults() Options {
	if o.Set == nil {
		o.Set = kernels.Best()
	}
	return o
}

// Model is a network with its weights. It does not change after it is made and
// may be shared by any number of goroutines.
type Model struct {
	cfg  config.Model
	set  *kernels.Set
	arch string // general.architecture it came from
	rope ropeTable

	embed  kernels.Dense // [Vocab, Dim]
	head   kernels.Dense // [Vocab, Dim]; the same memory as embed if tied
	norm   []float32     // [Dim], the last norm
	layers []layer

	ropeFactors []float32 // rope_freqs.weight, or nil

	meta []gguf.KV // of the file, what is not this package's business
	hold any       // keeps what the weights point into alive
}

// layer is one block. Norm weights that the configuration does without are nil.
type layer struct {
	mhcAttn, mhcFFN *mhc.Site
	scalars         []float32 // [2], on the stream and on the embedding added to it

	attnNorm     []float32 // [Dim]
	q, k, v, o   linear    // [Heads·HeadDim, Dim], 2 × [KVHeads·HeadDim, Dim], [Dim, Heads·HeadDim]
	qNorm, kNorm []float32 // [HeadDim]
	attnSub      []float32 // [Heads·HeadDim]

	ffnNorm        []float32 // [Dim]
	gate, up, down linear    // [FFN, Dim], [FFN, Dim], [Dim, FFN]; relu2 has no gate
	ffnSub         []float32 // [FFN]
}

// int8Head reports whether the head multiplies int8 activations, as ternary
// projections do: those in q8_0 of our own architecture. Foreign models keep the
// float product that they were made with.
func (m *Model) int8Head() bool { return m.arch == arch && m.head.Type == kernels.Q8_0 }

// linear is a projection: a ternary matrix, or in foreign models a dense one.
type linear struct {
	ternary *kernels.Ternary
	dense   *kernels.Dense
}

func (l *linear) rows() int {
	switch {
	case l.ternary != nil:
		return l.ternary.Rows
	case l.dense != nil:
		return l.dense.Rows
	}
	return 0
}

// Config is the shape of the network. For a foreign model Group is that of its
// ternary matrices.
func (m *Model) Config() config.Model { return m.cfg }

// Arch is the architecture of the file the model came from: "nanochat" unless it
// is foreign.
func (m *Model) Arch() string { return m.arch }

// Set is the kernel set the model computes with.
func (m *Model) Set() *kernels.Set { return m.set }

// WithSet is m computed by another set: the same weights in the same memory, and the
// same bits.
func (m *Model) WithSet(set *kernels.Set) *Model {
	n := &Model{
		cfg: m.cfg, set: set, arch: m.arch, embed: m.embed, head: m.head, norm: m.norm,
		layers: m.layers, ropeFactors: m.ropeFactors, meta: m.meta, hold: m,
	}
	from, to := &m.rope, &n.rope
	to.base, to.scale, to.factors = from.base, from.scale, from.factors
	to.rotary, to.interleaved, to.limit = from.rotary, from.interleaved, from.limit
	return n
}

// Meta is the metadata that the model was loaded with and does not read itself:
// tokenizer, chat template, licence, provenance. It must not be changed.
func (m *Model) Meta() []gguf.KV { return m.meta }

// Memory is what the weights take, in bytes. Bytes that are views of a mapped
// file count too: they are resident once used.
type Memory struct {
	// Tiles and Scales are the ternary projections; Dense the others.
	Tiles, Scales, Dense int64
	// Embedding and Head are those matrices; Head is 0 if it is the embedding.
	Embedding, Head int64
	// Norms counts norm weights, MHC the hyper-connections, Rope the angle tables
	// made so far.
	Norms, MHC, Rope int64
}

// Total is the sum of all parts.
func (b Memory) Total() int64 {
	return b.Tiles + b.Scales + b.Dense + b.Embedding + b.Head + b.Norms + b.MHC + b.Rope
}

// Memory counts the weights of m.
func (m *Model) Memory() Memory {
	b := Memory{Embedding: int64(len(m.embed.Data)), Norms: 4 * int64(len(m.norm)), Rope: m.rope.bytes()}
	if !m.cfg.TieEmbeddings {
		b.Head = int64(len(m.head.Data))
	}
	for i := range m.layers {
		l := &m.layers[i]
		for _, p := range l.projections() {
			if t := p.ternary; t != nil {
				b.Tiles += int64(len(t.Tiles))
				b.Scales += 2 * int64(len(t.Scales))
			} else if p.dense != nil {
				b.Dense += int64(len(p.dense.Data))
			}
		}
		for _, n := range [][]float32{l.attnNorm, l.ffnNorm, l.qNorm, l.kNorm, l.attnSub, l.ffnSub, l.scalars} {
			b.Norms += 4 * int64(len(n))
		}
		for _, s := range []*mhc.Site{l.mhcAttn, l.mhcFFN} {
			for _, p := range s.Params() {
				b.MHC += 4 * int64(len(p.Data))
			}
		}
	}
	return b
}

// projections lists the seven projections; gate may be empty.
func (l *layer) projections() [7]*linear {
	return [7]*linear{&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}
}

// finish checks that the parts fit together and prepares what is computed once.
func (m *Model) finish(o Options) error {
	for i := range m.layers {
		l := &m.layers[i]
		l.mhcAttn.Prepare(m.set)
		l.mhcFFN.Prepare(m.set)
	}
	if _, err := m.inputKinds(); err != nil {
		return err
	}
	if o.HugePages {
		return m.moveToHugePages()
	}
	return nil
}

// shortestGroup is the shortest group of a ternary projection, 0 if all have one
// scale per row.
func (m *Model) shortestGroup() int {
	group := 0
	for i := range m.layers {
		for _, p := range m.layers[i].projections() {
			if w := p.ternary; w != nil && w.Group < w.Cols && (group == 0 || w.Group < group) {
				group = w.Group
			}
		}
	}
	return group
}

func mhcConfig(c config.Model) mhc.Config {
	mc := mhc.Config{Streams: c.Streams, Dim: c.Dim, Dynamic: c.MHCDynamic, SinkhornIters: c.SinkhornIters}
	if c.MHC == config.MHCSinkhorn {
		mc.Kind = mhc.Sinkhorn
	}
	return mc
}

func newSites(c config.Model) (sites [2]*mhc.Site, err error) {
	for i := range sites {
		if sites[i], err = mhc.New(mhcConfig(c)); err != nil {
			return sites, err
		}
	}
	return sites, nil
}

// ropeTable holds the cosines and sines of positions 0, 1, ...; it grows when a
// step reaches further, up to the context.
type ropeTable struct {
	base, scale float64
	factors     []float64 // per frequency, or nil
	rotary      int       // rotated elements of a head
	interleaved bool      // pairs (2i, 2i+1) instead of (i, i+rotary/2)
	limit       int       // positions

	grow sync.Mutex
	rows atomic.Pointer[ropeRows]
}

type ropeRows struct {
	positions, half int
	cos, sin        []float32 // [positions][half]
}

// firstRope is how many positions a table starts with.
const firstRope = 1024

// upTo returns a table of at least n positions, n ≤ limit.
func (t *ropeTable) upTo(n int) *ropeRows {
	if r := t.rows.Load(); r != nil && r.positions >= n {
		return r
	}
	t.grow.Lock()
	defer t.grow.Unlock()
	r := t.rows.Load()
	if r != nil && r.positions >= n {
		return r
	}
	positions := firstRope
	if r != nil {
		positions = 2 * r.positions
	}
	for positions < n {
		positions *= 2
	}
	positions = min(positions, t.limit)
	half := t.rotary / 2
	r = &ropeRows{positions, half, make([]float32, positions*half), make([]float32, positions*half)}
	kernels.RoPETable(r.cos, r.sin, positions, t.rotary, t.base, t.scale, t.factors)
	t.rows.Store(r)
	return r
}

func (r *ropeRows) at(pos int) (cos, sin []float32) {
	return r.cos[pos*r.half : (pos+1)*r.half], r.sin[pos*r.half : (pos+1)*r.half]
}

func (t *ropeTable) bytes() int64 {
	if r := t.rows.Load(); r != nil {
		return 8 * int64(len(r.cos))
	}
	return 0
}
