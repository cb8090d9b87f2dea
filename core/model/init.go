package model

import (
	"context"
	"math"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/rng"
	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
)

// Init makes a model with random weights that look trained: a third of the trits
// is zero, results of projections have about unit variance (those that are added
// to the residual stream less, by 1/√(2·Layers)), logits have about unit
// variance, norm weights spread around 1, and every switch of the configuration
// has an effect. They depend on c and seed alone.
//
// It is for tests and benchmarks; training starts from latent weights. When ctx ends
// it stops within milliseconds and returns ctx's error.
func Init(ctx context.Context, c config.Model, seed uint64, o Options) (*Model, error) {
	if err := checkConfig(c); err != nil {
		return nil, err
	}
	if err := checkStorage(c); err != nil {
		return nil, err
	}
	if o.Context > c.Context {
		return nil, &LimitError{Asked: o.Context, Context: c.Context}
	}
	m, err := newModel(c, arch, o.withDefaults())
	if err != nil {
		return nil, err
	}
	g := &generator{seed: seed}
	std := 1 / math.Sqrt(float64(c.Dim))
	g.dense(&m.embed, c.Vocab, c.Dim, denseType(c.Embedding), std)
	if c.TieEmbeddings {
		m.head = m.embed
	} else {
		g.dense(&m.head, c.Vocab, c.Dim, denseType(c.Head), std)
	}
	m.norm = g.normWeight(c.Dim)
	for i := range m.layers {
		if err := g.layer(&m.layers[i], c, i); err != nil {
			return nil, err
		}
	}
	if err := parallelUntil(ctx, len(g.jobs), func(i int) error { return g.jobs[i]() }); err != nil {
		return nil, err
	}
	return m, m.finish(o)
}

// newModel is a model of shape c without weights.
func newModel(c config.Model, arch string, o Options) (*Model, error) {
	m := &Model{cfg: c, set: o.Set, arch: arch, layers: make([]layer, c.Layers)}
	if o.Context > 0 && o.Context < c.Context {
		m.cfg.Context = o.Context
	}
	m.rope.base, m.rope.scale = c.RopeTheta, 1
	m.rope.rotary, m.rope.limit = c.HeadDim, m.cfg.Context
	for i := range m.layers {
		l := &m.layers[i]
		sites, err := newSites(c)
		if err != nil {
			return nil, err
		}
		l.mhcAttn, l.mhcFFN = sites[0], sites[1]
	}
	return m, nil
}

func denseType(name string) kernels.DType {
	if name == config.TypeQ8_0 {
		return kernels.Q8_0
	}
	return kernels.F16
}

// generator makes random tensors, each from a stream of its own, so that the work
// can be split anyhow.
type generator struct {
	seed, stream uint64
	jobs         []func() error
}

func (g *generator) next() uint64 {
	g.stream++
	return g.stream
}

// initRows is the number of rows that one job fills.
const initRows = 256

func (g *generator) dense(w *kernels.Dense, rows, cols int, t kernels.DType, std float64) {
	n, b := gguf.Type(t).BlockSize()
	size := cols / n * b
	*w = kernels.Dense{Rows: rows, Cols: cols, Type: t, Data: kernels.AlignedBytes(rows * size)}
	stream := g.next()
	for r0 := 0; r0 < rows; r0 += initRows {
		g.jobs = append(g.jobs, func() error {
			row := make([]float32, cols)
			for r := r0; r < min(r0+initRows, rows); r++ {
				g.bell(row, stream, uint64(r)*uint64((cols+3)/4), std)
				if err := gguf.Quantize(w.Data[r*size:(r+1)*size], gguf.Type(t), row); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// bell fills dst with numbers that are nearly normal, each the sum of the four
// bytes of a word, from the words of a stream, four from each block on.
func (g *generator) bell(dst []float32, stream, block uint64, std float64) {
	const mean, variance = 4 * 127.5, 4 * (256*256 - 1) / 12.0
	scale := float32(std / math.Sqrt(variance))
	for i := 0; i < len(dst); i += 4 {
		words := rng.Block(g.seed, stream, block)
		block++
		for k, v := range words[:min(4, len(dst)-i)] {
			pairs := v&0x00ff00ff + v>>8&0x00ff00ff
			dst[i+k] = (float32(pairs&0xffff+pairs>>16) - mean) * scale
		}
	}
}

// fourTrits[i] is the codes of a byte of a tile for 0 ≤ i < 81: every trit has
// each value in a third of them.
var fourTrits = func() (t [81]byte) {
	for i := range t {
		t[i] = byte(i%3 | i/3%3<<2 | i/9%3<<4 | i/27<<6)
	}
	return t
}()

// ternary makes a matrix whose results have variance gain² for inputs of variance 1.
func (g *generator) ternary(l *linear, rows, cols, group int, gain float64) error {
	w, err := ternary.New(rows, cols, group)
	if err != nil {
		return err
	}
	l.ternary = w
	stream := g.next()
	size := w.ColTiles() * 64
	scales := w.Groups() * kernels.TileSide
	s := gain * math.Sqrt(1.5/float64(cols))
	for b0 := 0; b0 < w.Blocks(); b0 += initRows / kernels.TileSide {
		g.jobs = append(g.jobs, func() error {
			for b := b0; b < min(b0+initRows/kernels.TileSide, w.Blocks()); b++ {
				g.tiles(w.Tiles[b*size:(b+1)*size], stream, uint64(b)*uint64(size/8))
				ternary.ClearPadding(w, b, b+1)
				src := rng.New(g.seed, ^stream).At(uint64(b * scales))
				for i := range scales {
					w.Scales[b*scales+i] = kernels.F32ToF16(float32(s) * (0.75 + 0.5*src.Float32()))
				}
			}
			return nil
		})
	}
	return nil
}

// tiles fills t with random trits from the words of a stream, eight bytes from
// each block on.
func (g *generator) tiles(t []byte, stream, block uint64) {
	for ; len(t) >= 8; t = t[8:] {
		for i, v := range rng.Block(g.seed, stream, block) {
			t[2*i] = fourTrits[v&0xffff*81>>16]
			t[2*i+1] = fourTrits[v>>16*81>>16]
		}
		block++
	}
}

func (g *generator) normWeight(n int) []float32 {
	w := make([]float32, n)
	rng.New(g.seed, g.next()).FillNormal(w, 0.1)
	for i := range w {
		w[i]++
	}
	return w
}

func (g *generator) layer(l *layer, c config.Model, index int) error {
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	add := 1 / math.Sqrt(2*float64(c.Layers))
	type matrix struct {
		l          *linear
		rows, cols int
		gain       float64
	}
	ms := []matrix{{&l.q, q, c.Dim, 1}, {&l.k, kv, c.Dim, 1}, {&l.v, kv, c.Dim, 1}, {&l.o, c.Dim, q, add},
		{&l.up, c.FFN, c.Dim, 1}, {&l.down, c.Dim, c.FFN, add}}
	if c.FFNKind != config.FFNReLU2 {
		ms = append(ms, matrix{&l.gate, c.FFN, c.Dim, 1})
	}
	for _, x := range ms {
		if err := g.ternary(x.l, x.rows, x.cols, c.Group, x.gain); err != nil {
			return err
		}
	}
	l.attnNorm, l.ffnNorm = g.normWeight(c.Dim), g.normWeight(c.Dim)
	if c.QKNorm {
		l.qNorm, l.kNorm = g.normWeight(c.HeadDim), g.normWeight(c.HeadDim)
	}
	if c.SubNorm {
		l.attnSub, l.ffnSub = g.normWeight(q), g.normWeight(c.FFN)
	}
	if c.ResidualScalars {
		s := rng.New(g.seed, g.next())
		l.scalars = []float32{1 - float32(0.1*s.Float32()), 0.1 + float32(0.1*s.Float32())}
	}
	for _, site := range []*mhc.Site{l.mhcAttn, l.mhcFFN} {
		site.Init(index)
		for _, p := range site.Params() {
			noise := make([]float32, len(p.Data))
			std := 0.5
			if p.Name == "proj" {
				std = 1 / math.Sqrt(float64(c.Streams*c.Dim))
			}
			rng.New(g.seed, g.next()).FillNormal(noise, std)
			for i, v := range noise {
				p.Data[i] += v
			}
		}
	}
	return nil
}
