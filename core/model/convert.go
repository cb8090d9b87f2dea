package model

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
)

// ErrNotTernary is wrapped by Convert's error about weights that only Quantize makes
// ternary.
var ErrNotTernary = errors.New("weights are not a scale times -1, 0 and 1")

// ConvertOptions are the choices of Convert.
type ConvertOptions struct {
	// Quantize makes dense projections ternary, group by group, whatever that
	// costs: a model that was not trained for it is not usable afterwards.
	// Without it only weights that are a scale times -1, 0 and 1 are taken.
	Quantize bool
	// Group is the length of the groups that Quantize makes: 64, 128, 256 or 0 for
	// whole rows. It has no meaning without Quantize, where the longest length that
	// fits all matrices is found.
	Group int
	// Embedding is the storage type of embedding and head: "f16" or "q8_0", which
	// rounds, is half the bytes, and half the time where a head is read from memory
	// for every token. The default value keeps these two and makes others f16.
	Embedding string
}

// Convert makes a nanochat model of a foreign one: tiles with half-precision
// scales, an f16 or q8_0 embedding, half-split rotary pairs. Trits and scales stay
// what they are; rows of queries and keys change places. The result uses m's
// memory. When ctx ends Convert stops within milliseconds and returns ctx's error.
func (m *Model) Convert(ctx context.Context, o ConvertOptions) (*Model, error) {
	if err := checkConfig(m.cfg); err != nil {
		return nil, err
	}
	n := &Model{
		cfg: m.cfg, set: m.set, arch: arch, embed: m.embed, head: m.head, norm: m.norm,
		layers: slices.Clone(m.layers), ropeFactors: m.ropeFactors, meta: m.meta, hold: m,
	}
	n.rope.base, n.rope.scale, n.rope.factors = m.rope.base, m.rope.scale, m.rope.factors
	n.rope.rotary, n.rope.limit = m.rope.rotary, m.rope.limit
	switch o.Embedding {
	case "", config.TypeF16, config.TypeQ8_0:
	default:
		return nil, fmt.Errorf("model: convert: embedding %q is neither %q nor %q", o.Embedding, config.TypeF16, config.TypeQ8_0)
	}
	o.Quantize = o.Quantize && m.hasDense()
	var err error
	if n.cfg.Group, err = m.commonGroup(ctx, o); err != nil {
		return nil, err
	}
	slots := n.slots()
	err = parallelUntil(ctx, len(slots), func(i int) error {
		s := &slots[i]
		switch {
		case s.dense != nil:
			return s.toStorage(ctx, o.Embedding)
		case s.lin == nil:
			return nil
		}
		rows := identity
		if m.rope.interleaved && (s.is("attn_q") || s.is("attn_k")) {
			rows = splitPairs(m.cfg.HeadDim, m.rope.rotary)
		}
		if err := s.toTernary(ctx, n.cfg.Group, rows, o.Quantize); err != nil {
			return fmt.Errorf("model: convert: tensor %q: %w", s.name, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if n.cfg.TieEmbeddings {
		n.head = n.embed
	}
	n.cfg.Embedding, n.cfg.Head = storageName(&n.embed), storageName(&n.head)
	return n, n.finish(Options{})
}

func (m *Model) hasDense() bool {
	for i := range m.layers {
		for _, p := range m.layers[i].projections() {
			if p.dense != nil {
				return true
			}
		}
	}
	return false
}

// commonGroup finds the longest group length, 0 for whole rows, that all matrices
// have or can be cut into.
func (m *Model) commonGroup(ctx context.Context, o ConvertOptions) (int, error) {
	if o.Quantize {
		switch o.Group {
		case 0, 64, 128, 256:
			return o.Group, nil
		}
		return 0, fmt.Errorf("model: convert: group %d is none of 0 (whole row), 64, 128, 256", o.Group)
	}
	slots := m.slots()
	groups := make([]int, len(slots))
	err := parallelUntil(ctx, len(slots), func(i int) error {
		s := &slots[i]
		switch {
		case s.lin == nil:
			return nil
		case s.lin.ternary != nil:
			if w := s.lin.ternary; w.Group != w.Cols {
				groups[i] = w.Group
			}
			return nil
		}
		values := make([]float32, s.cols)
		g, err := exactGroup(s.rows, s.cols, func(r int) ([]float32, error) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			return values, denseRow(values, s.lin.dense, r)
		})
		if err != nil {
			return fmt.Errorf("model: convert: tensor %q: %w", s.name, err)
		}
		groups[i] = g
		return nil
	})
	common := 0
	for _, g := range groups {
		if g != 0 && (common == 0 || g < common) {
			common = g
		}
	}
	return common, err
}

// exactGroup is the longest group length, 0 for the row, for which the values of a
// matrix are a scale that half precision holds times -1, 0 and 1.
func exactGroup(rows, cols int, row func(r int) ([]float32, error)) (int, error) {
	groups := []int{0, 256, 128, 64}
	for r := range rows {
		values, err := row(r)
		if err != nil {
			return 0, err
		}
		for !exactRow(values, groups[0]) {
			if groups = groups[1:]; len(groups) == 0 {
				return 0, fmt.Errorf("row %d is not ternary: its %w; to quantise them all the same ask for it", r, ErrNotTernary)
			}
		}
	}
	return groups[0], nil
}

func exactRow(values []float32, group int) bool {
	if group == 0 {
		group = len(values)
	}
	for part := range slices.Chunk(values, group) {
		if d, ok := commonScale(part); !ok || kernels.F16ToF32(kernels.F32ToF16(d)) != d {
			return false
		}
	}
	return true
}

// denseRow writes row r of w to dst.
func denseRow(dst []float32, w *kernels.Dense, r int) error {
	size := len(w.Data) / w.Rows
	return gguf.Dequantize(dst, gguf.Type(w.Type), w.Data[r*size:(r+1)*size])
}

// is reports whether s is the projection of that name in some layer.
func (s *slot) is(name string) bool {
	var layer int
	var rest string
	n, _ := fmt.Sscanf(s.name, "blk.%d.%s", &layer, &rest)
	return n == 2 && rest == name+".weight"
}

// toStorage makes the embedding s the given type, "" for f16 unless it is f16 or
// q8_0.
func (s *slot) toStorage(ctx context.Context, name string) error {
	w := s.dense
	if name == "" && w.Type == kernels.Q8_0 {
		name = config.TypeQ8_0
	}
	t := denseType(name)
	if w.Type == t {
		return nil
	}
	n, b := gguf.Type(t).BlockSize()
	if w.Cols%n != 0 {
		return fmt.Errorf("model: convert: tensor %q: rows of %d are not whole blocks of %s", s.name, w.Cols, name)
	}
	size := w.Cols / n * b
	out := kernels.Dense{Rows: w.Rows, Cols: w.Cols, Type: t, Data: kernels.AlignedBytes(w.Rows * size)}
	row := make([]float32, w.Cols)
	for r := range w.Rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := denseRow(row, w, r)
		if err == nil {
			err = gguf.Quantize(out.Data[r*size:(r+1)*size], gguf.Type(t), row)
		}
		if err != nil {
			return fmt.Errorf("model: convert: tensor %q, row %d: %w", s.name, r, err)
		}
	}
	*w = out
	return nil
}

// toTernary makes s ternary with the given group length. Row r of the result is
// row rows(r) of s.
func (s *slot) toTernary(ctx context.Context, group int, rows func(r int) int, quantize bool) error {
	if group == 0 {
		group = s.cols
	}
	moved := slices.ContainsFunc(seq(s.rows), func(r int) bool { return rows(r) != r })
	if w := s.lin.ternary; w != nil && w.Group == group && !moved {
		return nil
	}
	var gain float32 = 1
	out, err := ternary.New(s.rows, s.cols, group)
	if err != nil {
		return err
	}
	values := make([]float32, kernels.TileSide*s.cols)
	trits := make([]int8, len(values))
	scales := make([]uint16, kernels.TileSide*out.Groups())
	var plain kernels.Ternary // s without its gain, which stays apart
	if s.lin.ternary != nil {
		plain = *s.lin.ternary
		gain, plain.Gain = plain.Gain, 1
	}
	err = eachBlock(out, func(r0, n int) ([]int8, []uint16, error) {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		for r := range n {
			row := values[r*s.cols : (r+1)*s.cols]
			var err error
			if s.lin.ternary != nil {
				err = ternary.DequantizeRow(row, &plain, rows(r0+r))
			} else {
				err = denseRow(row, s.lin.dense, rows(r0+r))
			}
			if err != nil {
				return nil, nil, err
			}
		}
		if s.lin.dense != nil && quantize {
			w, err := ternary.Quantize(values[:n*s.cols], n, s.cols, group)
			if err != nil {
				return nil, nil, fmt.Errorf("rows from %d: %w", r0, err)
			}
			if err := ternary.Trits(trits[:n*s.cols], w); err != nil {
				return nil, nil, err
			}
			return trits[:n*s.cols], scales[:n*out.Groups()], ternary.RowScales(scales[:n*out.Groups()], w)
		}
		if err := exactBlock(trits[:n*s.cols], scales, values[:n*s.cols], s.cols, group); err != nil {
			return nil, nil, fmt.Errorf("rows from %d: %w", r0, err)
		}
		return trits[:n*s.cols], scales[:n*out.Groups()], nil
	})
	out.Gain = gain
	*s.lin = linear{ternary: out}
	return err
}

func identity(r int) int { return r }

func seq(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// splitPairs maps a row of a projection whose rotary pairs are (i, i+rotary/2) to
// the row of one whose pairs are (2i, 2i+1).
func splitPairs(headDim, rotary int) func(r int) int {
	return func(r int) int {
		h, i := r/headDim, r%headDim
		if i >= rotary {
			return r
		}
		return h*headDim + 2*(i%(rotary/2)) + i/(rotary/2)
	}
}

// joinPairs is the inverse of splitPairs.
func joinPairs(headDim, rotary int) func(r int) int {
	return func(r int) int {
		h, i := r/headDim, r%headDim
		if i >= rotary {
			return r
		}
		return h*headDim + i%2*(rotary/2) + i/2
	}
}

// plain is the architecture of other programs that expresses m, or why none does.
func (m *Model) plain() (as string, err error) {
	c := &m.cfg
	for _, x := range []struct {
		bad  bool
		what string
	}{
		{c.Streams > 1, "more than one residual stream (mhc)"},
		{c.QKNorm, "norms of queries and keys (qk_norm)"},
		{c.ResidualScalars, "scalars on the residual stream (residual_scalars)"},
		{c.LogitSoftcap != 0, "a soft cap on logits (logit_softcap)"},
		{c.FFNKind == config.FFNReLU2, "an ungated feed-forward part (relu2)"},
		{!c.SubNorm && c.FFNKind != config.FFNSwiGLU, "gated ReLU² without sub-norms"},
		{c.SubNorm && !c.TieEmbeddings, "sub-norms with a head of its own"},
		{c.SubNorm && c.Heads*c.HeadDim != c.Dim, "sub-norms with heads that are not as wide as the model"},
		{c.SubNorm && (m.rope.scale != 1 || m.ropeFactors != nil), "sub-norms with scaled rotary positions"},
	} {
		if x.bad {
			return "", fmt.Errorf("model: llama.cpp and bitnet.cpp have no architecture for a model with %s", x.what)
		}
	}
	switch {
	case c.FFNKind == config.FFNReLU2GLU:
		return archBitnetB158, nil
	case c.SubNorm:
		return archBitnet, nil
	}
	return archLlama, nil
}
