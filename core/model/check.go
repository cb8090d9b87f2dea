package model

import (
	"fmt"
	"math"

	"github.com/architehc/nanochat/core/config"
)

// Limits of a configuration. They keep every size computed from it far from
// overflow, whatever file it came from.
const (
	maxDim     = 1 << 18 // also the widest input a ternary kernel sums exactly
	maxLayers  = 1 << 12
	maxHeads   = 1 << 12
	maxHeadDim = 1 << 10
	maxVocab   = 1 << 24
	maxContext = 1 << 24
)

// checkConfig reports the first thing that makes c no network.
func checkConfig(c config.Model) error {
	for _, r := range []struct {
		name     string
		v, limit int
	}{
		{"dim", c.Dim, maxDim}, {"layers", c.Layers, maxLayers}, {"heads", c.Heads, maxHeads},
		{"kv_heads", c.KVHeads, maxHeads}, {"head_dim", c.HeadDim, maxHeadDim}, {"ffn", c.FFN, maxDim},
		{"vocab", c.Vocab, maxVocab}, {"context", c.Context, maxContext},
	} {
		if r.v < 1 || r.v > r.limit {
			return fmt.Errorf("model: %s is %d, expected 1 to %d", r.name, r.v, r.limit)
		}
	}
	switch {
	case c.Heads%c.KVHeads != 0:
		return fmt.Errorf("model: %d heads are not a multiple of %d kv_heads", c.Heads, c.KVHeads)
	case c.HeadDim%2 != 0:
		return fmt.Errorf("model: head_dim %d is odd; rotary positions need pairs", c.HeadDim)
	case c.Heads*c.HeadDim > maxDim:
		return fmt.Errorf("model: %d heads of %d are wider than %d", c.Heads, c.HeadDim, maxDim)
	case c.FFNKind != config.FFNSwiGLU && c.FFNKind != config.FFNReLU2 && c.FFNKind != config.FFNReLU2GLU:
		return fmt.Errorf("model: ffn_kind %q is none of %q, %q, %q", c.FFNKind, config.FFNSwiGLU, config.FFNReLU2, config.FFNReLU2GLU)
	case c.Group != 0 && c.Group != 64 && c.Group != 128 && c.Group != 256:
		return fmt.Errorf("model: group %d is none of 0 (whole row), 64, 128, 256", c.Group)
	case c.Streams != 1 && c.Streams != 2 && c.Streams != 4:
		return fmt.Errorf("model: streams is %d, expected 1, 2 or 4", c.Streams)
	case c.Streams > 1 && c.MHC != config.MHCBvN && c.MHC != config.MHCSinkhorn:
		return fmt.Errorf("model: mhc %q is neither %q nor %q", c.MHC, config.MHCBvN, config.MHCSinkhorn)
	case !positive(c.RopeTheta) || c.RopeTheta > 1e12:
		return fmt.Errorf("model: rope_theta is %v, expected more than 0 and at most 1e12", c.RopeTheta)
	case !positive(c.NormEps) || c.NormEps > 1:
		return fmt.Errorf("model: norm_eps is %v, expected more than 0 and at most 1", c.NormEps)
	case c.LogitSoftcap != 0 && !positive(c.LogitSoftcap):
		return fmt.Errorf("model: logit_softcap is %v, expected 0 (off) or more", c.LogitSoftcap)
	}
	return nil
}

// checkStorage reports an embedding or head type that the configuration cannot
// have. Foreign models store them as they like.
func checkStorage(c config.Model) error {
	types := map[string]string{"embedding": c.Embedding}
	if !c.TieEmbeddings {
		types["head"] = c.Head
	}
	for _, name := range []string{"embedding", "head"} {
		t, ok := types[name]
		switch {
		case !ok || t == config.TypeF16:
		case t != config.TypeQ8_0:
			return fmt.Errorf("model: %s %q is neither %q nor %q", name, t, config.TypeF16, config.TypeQ8_0)
		case c.Dim%32 != 0:
			return fmt.Errorf("model: %s %q needs a dim that is a multiple of 32, not %d", name, t, c.Dim)
		}
	}
	return nil
}

func positive(v float64) bool { return v > 0 && !math.IsInf(v, 0) }
