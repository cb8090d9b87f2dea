package model

import (
	"fmt"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/kernels"
)

// A slot is one tensor of a model and its place in memory: a float32 vector or
// small matrix, an embedding, or a projection.
type slot struct {
	name     string
	optional bool

	vec  *[]float32
	dims []int // of vec, slowest first

	dense *kernels.Dense
	lin   *linear
	rows  int // of dense and lin
	cols  int
}

// slots lists the tensors of a model of m's configuration in file order. The table
// of names stands in docs/FORMAT.md.
func (m *Model) slots() []slot {
	c := &m.cfg
	var all []slot
	vec := func(p *[]float32, dims []int, format string, args ...any) {
		all = append(all, slot{name: fmt.Sprintf(format, args...), vec: p, dims: dims})
	}
	dense := func(p *kernels.Dense, name string) {
		all = append(all, slot{name: name, dense: p, rows: c.Vocab, cols: c.Dim})
	}
	dense(&m.embed, "token_embd.weight")
	for i := range m.layers {
		l := &m.layers[i]
		norm := func(p *[]float32, n int, name string) { vec(p, []int{n}, "blk.%d.%s.weight", i, name) }
		lin := func(p *linear, rows, cols int, name string) {
			all = append(all, slot{name: fmt.Sprintf("blk.%d.%s.weight", i, name), lin: p, rows: rows, cols: cols})
		}
		q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
		if c.ResidualScalars {
			vec(&l.scalars, []int{2}, "blk.%d.residual_scalars", i)
		}
		m.mhcSlots(&all, l.mhcAttn, fmt.Sprintf("blk.%d.mhc_attn.", i))
		norm(&l.attnNorm, c.Dim, "attn_norm")
		lin(&l.q, q, c.Dim, "attn_q")
		lin(&l.k, kv, c.Dim, "attn_k")
		lin(&l.v, kv, c.Dim, "attn_v")
		if c.QKNorm {
			norm(&l.qNorm, c.HeadDim, "attn_q_norm")
			norm(&l.kNorm, c.HeadDim, "attn_k_norm")
		}
		if c.SubNorm {
			norm(&l.attnSub, q, "attn_sub_norm")
		}
		lin(&l.o, c.Dim, q, "attn_output")
		m.mhcSlots(&all, l.mhcFFN, fmt.Sprintf("blk.%d.mhc_ffn.", i))
		norm(&l.ffnNorm, c.Dim, "ffn_norm")
		if c.FFNKind != config.FFNReLU2 {
			lin(&l.gate, c.FFN, c.Dim, "ffn_gate")
		}
		lin(&l.up, c.FFN, c.Dim, "ffn_up")
		if c.SubNorm {
			norm(&l.ffnSub, c.FFN, "ffn_sub_norm")
		}
		lin(&l.down, c.Dim, c.FFN, "ffn_down")
	}
	vec(&m.norm, []int{c.Dim}, "output_norm.weight")
	if !c.TieEmbeddings {
		dense(&m.head, "output.weight")
	}
	vec(&m.ropeFactors, []int{m.rope.rotary / 2}, "rope_freqs.weight")
	all[len(all)-1].optional = true
	return all
}

// mhcSlots appends the parameters of a site.
func (m *Model) mhcSlots(all *[]slot, s *mhc.Site, prefix string) {
	for _, p := range s.Params() {
		at := map[string]*[]float32{"pre": &s.Pre, "post": &s.Post, "res": &s.Res, "gate": &s.Gate, "proj": &s.Proj}[p.Name]
		*all = append(*all, slot{name: prefix + p.Name, vec: at, dims: p.Dims})
	}
}
