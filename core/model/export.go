package model

import (
	"fmt"
	"io"
	"strings"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
)

// exportTypes are the storage types of exported projections and what llama.cpp
// calls a file of them.
var exportTypes = map[gguf.Type]uint32{gguf.F16: 1, gguf.Q4_0: 2, gguf.TQ2_0: 37}

// Export writes m for other programs: as architecture "llama", or with sub-norms as
// "bitnet", for llama.cpp; with sub-norms and gated ReLU² as "bitnet-b1.58", which
// bitnet.cpp and ik_llama.cpp run and llama.cpp does not. A model with other
// parts is refused.
//
// The projections are stored as t. TQ2_0 has one scale per 256 inputs and Q4_0 one
// per 32; a matrix whose scales or shape do not fit exactly is refused. F16 always
// works; it rounds once where a matrix has a gain and the architecture no place for it.
// llama.cpp computes with F16 weights in floating point, so its logits then differ
// by the rounding of activations to int8 that this engine does.
func (m *Model) Export(path string, t gguf.Type, meta ...gguf.KV) error {
	fileType, ok := exportTypes[t]
	if !ok {
		return fmt.Errorf("model: export as %s: not supported; supported are F16, Q4_0 and TQ2_0", t)
	}
	as, err := m.plain()
	if err != nil {
		return err
	}
	keys := m.exportKeys(as)
	keys = append(keys, gguf.KV{Key: "general.file_type", Value: gguf.V(fileType)},
		gguf.KV{Key: "general.quantization_version", Value: gguf.V(uint32(2))})
	var sources []gguf.Source
	for _, s := range m.slots() {
		switch {
		case s.vec != nil:
			if !s.optional || *s.vec != nil {
				sources = append(sources, gguf.FromBytes(s.name, gguf.F32, ggmlDims(s.dims), gguf.Bytes(*s.vec)))
			}
		case s.dense != nil:
			sources = append(sources, gguf.FromBytes(s.name, gguf.Type(s.dense.Type), []uint64{uint64(s.cols), uint64(s.rows)}, s.dense.Data))
		case s.lin.ternary == nil:
			return fmt.Errorf("model: export: tensor %q is not ternary; convert the model first", s.name)
		default:
			sources = append(sources, m.exportLinear(s, as, t)...)
		}
	}
	for _, s := range sources {
		if _, err := gguf.Size(s.Type, s.Dims); err != nil {
			return fmt.Errorf("model: export: tensor %q as %s: %w; F16 always fits", s.Name, s.Type, err)
		}
	}
	return gguf.Write(fsx.OS(), path, mergeMeta(keys, m.meta, meta), sources, gguf.WriteOptions{Alignment: 32})
}

// exportKeys are the keys that llama.cpp reads for a model of that architecture.
func (m *Model) exportKeys(as string) []gguf.KV {
	c := &m.cfg
	number := func(key string, v int) gguf.KV { return gguf.KV{Key: as + "." + key, Value: gguf.V(uint32(v))} }
	float := func(key string, v float64) gguf.KV { return gguf.KV{Key: as + "." + key, Value: gguf.V(float32(v))} }
	keys := []gguf.KV{
		{Key: archKey, Value: gguf.V(as)},
		number("vocab_size", c.Vocab), number("context_length", c.Context), number("embedding_length", c.Dim),
		number("block_count", c.Layers), number("feed_forward_length", c.FFN),
		number("attention.head_count", c.Heads), number("attention.head_count_kv", c.KVHeads),
		number("attention.key_length", c.HeadDim), number("attention.value_length", c.HeadDim),
		number("rope.dimension_count", m.rope.rotary),
		float("attention.layer_norm_rms_epsilon", c.NormEps), float("rope.freq_base", c.RopeTheta),
	}
	if m.rope.scale != 1 {
		keys = append(keys, gguf.KV{Key: as + ".rope.scaling.type", Value: gguf.V("linear")}, float("rope.scaling.factor", 1/m.rope.scale))
	}
	return keys
}

// exportLinear is a projection as one tensor of type t and, where the architecture
// has it and it is not 1, its gain as another.
func (m *Model) exportLinear(s slot, as string, t gguf.Type) []gguf.Source {
	w := *s.lin.ternary
	dims := []uint64{uint64(s.cols), uint64(s.rows)}
	var out []gguf.Source
	if as == archBitnet && w.Gain != 1 {
		out = append(out, gguf.FromBytes(strings.TrimSuffix(s.name, "weight")+"scale", gguf.F32, []uint64{1}, gguf.Bytes([]float32{w.Gain})))
		w.Gain = 1
	}
	rows := identity
	if as == archLlama && !m.rope.interleaved && (s.is("attn_q") || s.is("attn_k")) {
		rows = joinPairs(m.cfg.HeadDim, m.rope.rotary)
	}
	return append(out, gguf.Source{Name: s.name, Type: t, Dims: dims, Write: func(to io.Writer) error {
		values, back := make([]float32, s.cols), make([]float32, s.cols)
		size, err := gguf.Size(t, dims[:1])
		if err != nil {
			return err
		}
		data := make([]byte, size)
		for r := range s.rows {
			if err := ternary.DequantizeRow(values, &w, rows(r)); err != nil {
				return err
			}
			if t == gguf.Q4_0 {
				err = ternaryQ4(data, values)
			} else {
				err = gguf.Quantize(data, t, values)
			}
			if err == nil {
				err = gguf.Dequantize(back, t, data)
			}
			if err != nil {
				return err
			}
			for i := range values {
				if back[i] != values[i] && t != gguf.F16 {
					return fmt.Errorf("row %d: the scales of its groups of %d do not fit the blocks of %s; export as Q4_0 or F16", rows(r), w.Group, t)
				}
			}
			if _, err := to.Write(data); err != nil {
				return err
			}
		}
		return nil
	}})
}

// ternaryQ4 writes values, a scale times -1, 0 and 1 in every 32, as Q4_0 with that
// scale: the codes 7, 8 and 9. Other values are rounded to these.
func ternaryQ4(dst []byte, values []float32) error {
	for b := 0; b+32 <= len(values); b += 32 {
		part := values[b : b+32]
		d := float32(0)
		for _, v := range part {
			d = max(d, v, -v)
		}
		bits := kernels.F32ToF16(d)
		if bits >= 0x7c00 {
			return fmt.Errorf("scale %v does not fit half precision", d)
		}
		block := dst[b/32*18:][:18]
		block[0], block[1] = byte(bits), byte(bits>>8)
		code := func(v float32) byte {
			switch {
			case v > 0:
				return 9
			case v < 0:
				return 7
			}
			return 8
		}
		for i := range 16 {
			block[2+i] = code(part[i]) | code(part[i+16])<<4
		}
	}
	return nil
}
