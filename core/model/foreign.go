package model

import (
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/kernels"
)

// The foreign architectures, as llama.cpp and bitnet.cpp define them.
//
// "llama" is SwiGLU with interleaved rotary pairs; its projections are what they
// are: dense, or ternary with int8 activations where they are TQ1_0 or TQ2_0.
// The "bitnet" family has norms in front of the output and the down projection,
// half-split rotary pairs, the embedding as its head, and projections that are
// ternary by definition: float weights are quantised per tensor by mean
// magnitude unless they are a scale times -1, 0 and 1 already. "bitnet" is SwiGLU
// unless bitnet.hidden_activation is "relu2"; the other two are gated ReLU².
const (
	archLlama      = "llama"
	archBitnet     = "bitnet"
	archBitnetB158 = "bitnet-b1.58"
	archBitnet25   = "bitnet-25"
)

// foreign loads a file of one of them.
func (l *loader) foreign() error {
	if err := l.foreignConfig(); err != nil {
		return err
	}
	if err := l.shape(); err != nil {
		return err
	}
	bitnet := l.m.arch != archLlama
	linear := func(s *slot) error {
		t, err := l.need(s.name)
		if err != nil {
			return err
		}
		if !t.Is(t.Type, uint64(s.cols), uint64(s.rows)) {
			return l.f.Errorf(t, "is %v, expected [%d %d]", t.Dims, s.cols, s.rows)
		}
		var gain *gguf.Tensor
		if name := strings.TrimSuffix(s.name, "weight") + "scale"; bitnet && l.f.Tensor(name) != nil {
			if gain, err = l.typed(name, gguf.F32, 1); err != nil {
				return err
			}
		}
		return l.importLinear(s, t, gain, bitnet)
	}
	return l.tensors(linear, func(s *slot, t *gguf.Tensor) error { return nil })
}

// foreignConfig reads the architecture's keys.
func (l *loader) foreignConfig() error {
	m, f := l.m, l.f
	c := &m.cfg
	*c = config.DefaultModel()
	prefix := m.arch + "."
	var err error
	number := func(dst *int, key string, def int) {
		if err != nil {
			return
		}
		var v uint64
		if def < 0 {
			v, err = f.Uint(prefix + key)
		} else {
			v, err = f.UintOr(prefix+key, uint64(def))
		}
		if err == nil && v > 1<<31-1 {
			err = f.Errorf(nil, "metadata key %q is %d, expected less than 2^31", prefix+key, v)
		}
		*dst = int(v)
	}
	float := func(dst *float64, key string, def float64) {
		if err != nil {
			return
		}
		if def < 0 {
			*dst, err = f.Float(prefix + key)
		} else {
			*dst, err = f.FloatOr(prefix+key, def)
		}
	}
	number(&c.Layers, "block_count", -1)
	number(&c.Dim, "embedding_length", -1)
	number(&c.FFN, "feed_forward_length", -1)
	number(&c.Context, "context_length", -1)
	number(&c.Heads, "attention.head_count", -1)
	number(&c.KVHeads, "attention.head_count_kv", c.Heads)
	number(&c.HeadDim, "attention.key_length", c.Dim/max(c.Heads, 1))
	number(&m.rope.rotary, "rope.dimension_count", c.HeadDim)
	var valueDim, experts int
	number(&valueDim, "attention.value_length", c.HeadDim)
	number(&experts, "expert_count", 0)
	float(&c.NormEps, "attention.layer_norm_rms_epsilon", -1)
	float(&c.RopeTheta, "rope.freq_base", 10000)
	if err == nil {
		err = l.ropeScaling(prefix)
	}
	if err != nil {
		return err
	}
	if valueDim != c.HeadDim {
		return f.Errorf(nil, "values have length %d and keys %d, expected the same", valueDim, c.HeadDim)
	}
	if experts != 0 {
		return f.Errorf(nil, "mixtures of experts are not supported (%sexpert_count is %d)", prefix, experts)
	}
	for _, key := range []string{"attention.sliding_window", "attention.clamp_kqv", "attention.max_alibi_bias",
		"attention.scale", "logit_scale", "embedding_scale", "residual_scale", "final_logit_softcapping", "attn_logit_softcapping"} {
		switch v, _ := f.Lookup(prefix + key); v {
		case nil, float32(0), float64(0), uint32(0), int32(0), uint64(0), int64(0):
		default:
			return f.Errorf(nil, "metadata key %q is %v: not supported", prefix+key, v)
		}
	}
	embed := f.Tensor("token_embd.weight")
	if embed == nil || len(embed.Dims) != 2 || embed.Dims[1] > maxVocab {
		return f.Errorf(embed, "expected a matrix of embeddings \"token_embd.weight\" with at most %d rows", maxVocab)
	}
	c.Vocab = int(embed.Dims[1])
	c.TieEmbeddings = f.Tensor("output.weight") == nil
	c.Group = 0
	return l.variant(prefix)
}

// variant sets what the architectures differ in.
func (l *loader) variant(prefix string) error {
	c := &l.m.cfg
	switch l.m.arch {
	case archLlama:
		l.m.rope.interleaved = true
		return nil
	case archBitnet:
		act, err := l.f.StringOr(prefix+"hidden_activation", "silu")
		if err != nil {
			return err
		}
		switch act {
		case "silu":
		case "relu2":
			c.FFNKind = config.FFNReLU2GLU
		default:
			return l.f.Errorf(nil, "metadata key %q is %q, expected \"silu\" or \"relu2\"", prefix+"hidden_activation", act)
		}
	default:
		c.FFNKind = config.FFNReLU2GLU
	}
	c.SubNorm = true
	return nil
}

func (l *loader) ropeScaling(prefix string) error {
	l.m.rope.scale = 1
	kind, err := l.f.StringOr(prefix+"rope.scaling.type", "none")
	if err != nil {
		return err
	}
	factor := 1.0
	// Old files have the linear factor under another name and no type.
	if factor, err = l.f.FloatOr(prefix+"rope.scale_linear", 1); err != nil {
		return err
	}
	switch kind {
	case "none":
	case "linear":
		if factor, err = l.f.FloatOr(prefix+"rope.scaling.factor", factor); err != nil {
			return err
		}
	default:
		return l.f.Errorf(nil, "rope scaling of type %q is not supported; supported are \"none\", \"linear\" and the tensor rope_freqs.weight", kind)
	}
	if !positive(factor) || factor < 1 {
		return l.f.Errorf(nil, "rope scaling factor is %v, expected 1 or more", factor)
	}
	l.m.rope.scale = 1 / factor
	return nil
}

// isDense reports whether the kernels read t as it stands.
func isDense(t gguf.Type) bool {
	switch kernels.DType(t) {
	case kernels.F32, kernels.F16, kernels.BF16, kernels.Q8_0:
		return true
	}
	return false
}
