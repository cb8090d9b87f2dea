package model

import (
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
)

// arch is the architecture of our own files.
const arch = "nanochat"

// formatVersion is the version of the keys and tensors below.
const formatVersion = 1

// A modelKey is one metadata key of the architecture "nanochat".
type modelKey struct {
	name string
	// put is the value for a model; take reads it.
	put  func(m *Model) gguf.Value
	take func(f *gguf.File, name string, m *Model) error
	// omit, if not nil, says when the key is left out; a missing key then means
	// the same.
	omit func(m *Model) bool
}

// modelKeys is every key that describes the network. Files must have all but those
// with omit, and no other key that begins with "nanochat." but those of ownKeys.
var modelKeys = []modelKey{
	intKey("nanochat.vocab_size", func(c *config.Model) *int { return &c.Vocab }),
	intKey("nanochat.context_length", func(c *config.Model) *int { return &c.Context }),
	intKey("nanochat.embedding_length", func(c *config.Model) *int { return &c.Dim }),
	intKey("nanochat.block_count", func(c *config.Model) *int { return &c.Layers }),
	intKey("nanochat.feed_forward_length", func(c *config.Model) *int { return &c.FFN }),
	stringKey("nanochat.feed_forward_kind", func(c *config.Model) *string { return &c.FFNKind }),
	intKey("nanochat.attention.head_count", func(c *config.Model) *int { return &c.Heads }),
	intKey("nanochat.attention.head_count_kv", func(c *config.Model) *int { return &c.KVHeads }),
	intKey("nanochat.attention.key_length", func(c *config.Model) *int { return &c.HeadDim }),
	floatKey("nanochat.attention.layer_norm_rms_epsilon", func(m *Model) *float64 { return &m.cfg.NormEps }),
	boolKey("nanochat.attention.qk_norm", func(c *config.Model) *bool { return &c.QKNorm }),
	floatKey("nanochat.rope.freq_base", func(m *Model) *float64 { return &m.cfg.RopeTheta }),
	boolKey("nanochat.tie_embeddings", func(c *config.Model) *bool { return &c.TieEmbeddings }),
	intKey("nanochat.group_size", func(c *config.Model) *int { return &c.Group }),
	boolKey("nanochat.sub_norm", func(c *config.Model) *bool { return &c.SubNorm }),
	floatKey("nanochat.logit_softcap", func(m *Model) *float64 { return &m.cfg.LogitSoftcap }),
	boolKey("nanochat.residual_scalars", func(c *config.Model) *bool { return &c.ResidualScalars }),
	intKey("nanochat.mhc.streams", func(c *config.Model) *int { return &c.Streams }),
	stringKey("nanochat.mhc.kind", func(c *config.Model) *string { return &c.MHC }),
	boolKey("nanochat.mhc.dynamic", func(c *config.Model) *bool { return &c.MHCDynamic }),
	intKey("nanochat.mhc.sinkhorn_iterations", func(c *config.Model) *int { return &c.SinkhornIters }),
	unless(intOf("nanochat.rope.dimension_count", func(m *Model) *int { return &m.rope.rotary }),
		func(m *Model) bool { return m.rope.rotary == m.cfg.HeadDim }),
	unless(floatKey("nanochat.rope.scale", func(m *Model) *float64 { return &m.rope.scale }),
		func(m *Model) bool { return m.rope.scale == 1 }),
}

// ownKeys are the beginnings of keys in our namespace that describe something
// other than the network: checksums, and where the weights came from.
var ownKeys = []string{"nanochat.sha256", "nanochat.training.", "nanochat.data.", "nanochat.tokenizer.", "nanochat.chat."}

const (
	archKey    = "general.architecture"
	versionKey = "nanochat.format_version"
	alignKey   = "general.alignment"
)

func intOf(name string, at func(m *Model) *int) modelKey {
	return modelKey{name: name,
		put: func(m *Model) gguf.Value { return gguf.V(uint32(*at(m))) },
		take: func(f *gguf.File, name string, m *Model) error {
			v, err := f.Uint(name)
			if err == nil && v > 1<<31-1 {
				err = f.Errorf(nil, "metadata key %q is %d, expected less than 2^31", name, v)
			}
			*at(m) = int(v)
			return err
		}}
}

func intKey(name string, at func(c *config.Model) *int) modelKey {
	return intOf(name, func(m *Model) *int { return at(&m.cfg) })
}

func floatKey(name string, at func(m *Model) *float64) modelKey {
	return modelKey{name: name,
		put: func(m *Model) gguf.Value { return gguf.V(*at(m)) },
		take: func(f *gguf.File, name string, m *Model) (err error) {
			*at(m), err = f.Float(name)
			return err
		}}
}

func boolKey(name string, at func(c *config.Model) *bool) modelKey {
	return modelKey{name: name,
		put: func(m *Model) gguf.Value { return gguf.V(*at(&m.cfg)) },
		take: func(f *gguf.File, name string, m *Model) (err error) {
			*at(&m.cfg), err = f.Bool(name)
			return err
		}}
}

func stringKey(name string, at func(c *config.Model) *string) modelKey {
	return modelKey{name: name,
		put: func(m *Model) gguf.Value { return gguf.V(*at(&m.cfg)) },
		take: func(f *gguf.File, name string, m *Model) (err error) {
			*at(&m.cfg), err = f.String(name)
			return err
		}}
}

func unless(k modelKey, omit func(m *Model) bool) modelKey {
	k.omit = omit
	return k
}

// passes reports whether a key of a file with the given architecture is none of
// this package's business and goes along unread.
func passes(key, architecture string) bool {
	switch key {
	case archKey, alignKey, "general.file_type", "general.quantization_version":
		return false
	}
	for _, own := range ownKeys {
		if strings.HasPrefix(key, own) {
			return own != "nanochat.sha256"
		}
	}
	return !strings.HasPrefix(key, arch+".") && !strings.HasPrefix(key, architecture+".")
}
