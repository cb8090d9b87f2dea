package model

import (
	"context"
	"math"
	"slices"

	"github.com/architehc/nanochat/core/internal/rng"
	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// nearWidth is how close to the threshold of its trit, in scales, a latent weight
// counts as near: a tenth of the way to the centre of the trit on either side.
const nearWidth = 0.05

// ProjectionStats describes a ternary projection.
type ProjectionStats struct {
	Name  string `json:"name"`
	Rows  int    `json:"rows"`
	Cols  int    `json:"cols"`
	Group int    `json:"group"`
	// Minus, Zero and Plus are the shares of the trits.
	Minus float64 `json:"minus"`
	Zero  float64 `json:"zero"`
	Plus  float64 `json:"plus"`
	// DeadRows is the number of outputs whose weights are all zero.
	DeadRows int `json:"dead_rows"`
	// The scales, the gain included.
	ScaleMin    float32 `json:"scale_min"`
	ScaleMedian float32 `json:"scale_median"`
	ScaleMax    float32 `json:"scale_max"`
	// Near is the share of latent weights within 0.05 scales of the threshold at which
	// their trit changes; nil where only the trits are known.
	Near *float64 `json:"near_threshold,omitempty"`
}

// DenseStats describes an embedding, a head or a dense projection by the root mean
// squares of its rows.
type DenseStats struct {
	Name   string  `json:"name"`
	Rows   int     `json:"rows"`
	Cols   int     `json:"cols"`
	Min    float64 `json:"rms_min"`
	Median float64 `json:"rms_median"`
	Max    float64 `json:"rms_max"`
}

// WeightStats describes the matrices of a model, in the order of its file.
type WeightStats struct {
	Projections []ProjectionStats `json:"projections"`
	Dense       []DenseStats      `json:"dense"`
}

// WeightStats looks at all matrices of m. It fails only when ctx ends.
func (m *Model) WeightStats(ctx context.Context) (WeightStats, error) {
	var all []slot
	for _, s := range m.slots() {
		if s.dense != nil || s.lin != nil {
			all = append(all, s)
		}
	}
	projections, dense := make([]ProjectionStats, len(all)), make([]DenseStats, len(all))
	err := parallelUntil(ctx, len(all), func(i int) error {
		switch s := &all[i]; {
		case s.dense != nil:
			dense[i] = m.denseStats(s.name, s.dense)
		case s.lin.ternary != nil:
			projections[i] = projectionStats(s.name, s.lin.ternary)
		case s.lin.dense != nil:
			dense[i] = m.denseStats(s.name, s.lin.dense)
		}
		return nil
	})
	return WeightStats{
		Projections: slices.DeleteFunc(projections, func(p ProjectionStats) bool { return p.Name == "" }),
		Dense:       slices.DeleteFunc(dense, func(d DenseStats) bool { return d.Name == "" }),
	}, err
}

func projectionStats(name string, w *kernels.Ternary) ProjectionStats {
	p := ProjectionStats{Name: name, Rows: w.Rows, Cols: w.Cols, Group: w.Group, DeadRows: ternary.DeadRows(w)}
	c := ternary.CountTrits(w)
	total := float64(c.Total())
	p.Minus, p.Zero, p.Plus = float64(c.Minus)/total, float64(c.Zero)/total, float64(c.Plus)/total
	p.ScaleMin, p.ScaleMedian, p.ScaleMax = ternary.ScaleRange(w)
	return p
}

func (m *Model) denseStats(name string, w *kernels.Dense) DenseStats {
	rms, row := make([]float64, w.Rows), make([]float32, w.Cols)
	for r := range rms {
		m.set.DenseRow(row, w, r)
		rms[r] = math.Sqrt(float64(m.set.Dot(row, row)) / float64(w.Cols))
	}
	slices.Sort(rms)
	return DenseStats{name, w.Rows, w.Cols, rms[0], rms[(len(rms)-1)/2], rms[len(rms)-1]}
}

// WeightStats is that of the Model, with what the latent weights tell besides.
func (t *Trainer) WeightStats(ctx context.Context) (WeightStats, error) {
	s, err := t.m.WeightStats(ctx)
	if err != nil {
		return s, err
	}
	latents := map[string][]float32{}
	for i := range t.params {
		latents[t.params[i].Name] = t.params[i].W
	}
	byName := map[string]*kernels.Ternary{}
	for _, slot := range t.m.slots() {
		if slot.lin != nil {
			byName[slot.name] = slot.lin.ternary
		}
	}
	return s, parallelUntil(ctx, len(s.Projections), func(i int) error {
		p := &s.Projections[i]
		near, err := ternary.NearThreshold(byName[p.Name], latents[p.Name], nearWidth)
		p.Near = &near
		return err
	})
}

// Projections is the ternary projections as the forward computes with them, in the
// order of the file: to read only.
func (t *Trainer) Projections() (all []*kernels.Ternary) {
	for _, s := range t.m.slots() {
		if s.lin != nil && s.lin.ternary != nil {
			all = append(all, s.lin.ternary)
		}
	}
	return all
}

// cosineTokens is how many tokens StreamCosine looks at.
const cosineTokens = 16

// StreamCosine is the mean cosine between the residual streams behind each layer,
// for some tokens of the last Backward or Evaluate: 1 when mixing has no effect, as
// at the start of a training. ok is false with one stream, or before the first.
func (t *Trainer) StreamCosine() (cosine float64, ok bool) {
	n := t.m.cfg.Streams
	if n < 2 || t.tokens == 0 {
		return 0, false
	}
	step, count := max(t.tokens/cosineTokens, 1), 0
	for i := range t.work.tape.layers {
		for token := 0; token < t.tokens; token += step {
			cosine += mhc.Similarity(row(t.work.tape.layers[i].left, token, n*t.m.cfg.Dim), n)
			count++
		}
	}
	return cosine / float64(count), true
}

// StreamStats describes the residual streams in front of one layer function, on the
// mean over tokens.
type StreamStats struct {
	Layer int `json:"layer"`
	// Part is "attention" or "ffn", or "output" behind the last layer.
	Part string `json:"part"`
	// RMS is the root mean square of their values; Similarity the mean cosine between
	// two of them, and EffectiveRank how many they are in effect (package mhc).
	RMS           float64 `json:"rms"`
	Similarity    float64 `json:"similarity"`
	EffectiveRank float64 `json:"effective_rank"`
	// Mixing is nil for one stream.
	Mixing *mhc.Mixing `json:"mixing,omitempty"`
}

// RandomTokens is n ids, each as likely as any other.
func (m *Model) RandomTokens(n int, seed uint64) []int32 {
	r, ids := rng.New(seed, 0), make([]int32, n)
	for i := range ids {
		ids[i] = int32(r.IntN(m.cfg.Vocab))
	}
	return ids
}

// StreamStats runs ids through m, as one sequence from position 0, and looks at the
// streams.
func (m *Model) StreamStats(tm *team.Team, ids []int32) ([]StreamStats, error) {
	c := &m.cfg
	if len(ids) > c.Context {
		return nil, &ContextError{0, len(ids), c.Context}
	}
	w, err := newTrainWork(m, tm, max(len(ids), 1), false)
	if err != nil {
		return nil, err
	}
	p, err := NewPool(m, len(ids)/kernels.PageLen+1, kernels.KVF16)
	if err != nil {
		return nil, err
	}
	seq := &Seq{}
	if err := p.Grow(seq, len(ids)); err != nil {
		return nil, err
	}
	w.tape.setTokens(len(ids))
	if err := m.Forward(w, p, &Step{Tokens: ids, Seqs: []SeqStep{{Seq: seq, N: len(ids), Logits: LogitsAll}}}); err != nil {
		return nil, err
	}
	var all []StreamStats
	look := func(layer int, part string, site *mhc.Site, streams []float32) {
		var states mhc.States
		var mixings mhc.Mixings
		var coef mhc.Coef
		scratch := make([]float32, site.ScratchLen())
		for i := range ids {
			x := row(streams, i, c.Streams*c.Dim)
			states.Add(x, c.Streams)
			if part != "output" {
				mixings.Add(site.Coef(m.set, &coef, x, scratch))
			}
		}
		all = append(all, StreamStats{layer, part, states.RMS(), states.Similarity(), states.EffectiveRank(), mixings.Mean()})
	}
	for i := range m.layers {
		l := &w.tape.layers[i]
		look(i, "attention", m.layers[i].mhcAttn, l.entered)
		look(i, "ffn", m.layers[i].mhcFFN, l.middle)
		if i == len(m.layers)-1 {
			look(i, "output", m.layers[i].mhcFFN, l.left)
		}
	}
	return all, nil
}
