package model

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/safetensors"
)

const (
	hfConfig  = "config.json"
	hfWeights = "model.safetensors"
	hfIndex   = "model.safetensors.index.json"

	maxJSON = 64 << 20
)

// hfLlama is what config.json of a LlamaForCausalLM says; absent keys have the
// defaults of the Python package transformers.
type hfLlama struct {
	ModelType      string   `json:"model_type"`
	Architectures  []string `json:"architectures"`
	Hidden         int      `json:"hidden_size"`
	Layers         int      `json:"num_hidden_layers"`
	Heads          int      `json:"num_attention_heads"`
	KVHeads        *int     `json:"num_key_value_heads"`
	HeadDim        *int     `json:"head_dim"`
	Intermediate   int      `json:"intermediate_size"`
	Vocab          int      `json:"vocab_size"`
	Positions      int      `json:"max_position_embeddings"`
	Eps            float64  `json:"rms_norm_eps"`
	Theta          *float64 `json:"rope_theta"`
	Scaling        *hfRope  `json:"rope_scaling"`
	Rope           *hfRope  `json:"rope_parameters"` // newer versions
	Act            string   `json:"hidden_act"`
	AttentionBias  bool     `json:"attention_bias"`
	MLPBias        bool     `json:"mlp_bias"`
	Tied           bool     `json:"tie_word_embeddings"`
	PartialRotary  *float64 `json:"partial_rotary_factor"`
	Quantized      any      `json:"quantization_config"`
	SlidingWindow  *int     `json:"sliding_window"`
	ResidualFactor *float64 `json:"residual_multiplier"`
}

type hfRope struct {
	Type    string   `json:"rope_type"`
	OldType string   `json:"type"`
	Theta   *float64 `json:"rope_theta"`
}

// scaled reports whether positions are changed.
func (r *hfRope) scaled() bool {
	return r != nil && (r.Type != "" && r.Type != "default" || r.OldType != "" && r.OldType != "default")
}

// openDir reads a directory as transformers writes it.
func (p *Pretrained) openDir(dir string) error {
	var h hfLlama
	h.Act, h.Eps, h.Positions = "silu", 1e-6, 2048
	if err := readJSON(filepath.Join(dir, hfConfig), &h); err != nil {
		return err
	}
	if err := p.hfShape(&h); err != nil {
		return err
	}
	files, err := hfFiles(dir)
	if err != nil {
		return err
	}
	for _, name := range files.order {
		f, err := safetensors.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		p.closers = append(p.closers, f.Close)
		for i := range f.Tensors {
			t := &f.Tensors[i]
			if files.of != nil && files.of[t.Name] != name {
				return p.errorf("tensor %q is in %s, %s says it is in %q", t.Name, name, hfIndex, files.of[t.Name])
			}
			delete(files.of, t.Name)
			if err := p.hfTensor(t); err != nil {
				return err
			}
		}
	}
	for name, file := range files.of {
		return p.errorf("tensor %q is not in %s, where %s says it is", name, file, hfIndex)
	}
	return nil
}

// hfShape sets the configuration.
func (p *Pretrained) hfShape(h *hfLlama) error {
	bad := func(key string, have any, want string) error {
		return p.errorf("%s: %q is %v, expected %s", hfConfig, key, have, want)
	}
	switch {
	case h.ModelType != "llama" && !slices.Contains(h.Architectures, "LlamaForCausalLM"):
		return bad("model_type", fmt.Sprintf("%q", h.ModelType), `"llama"`)
	case h.Act != "silu":
		return bad("hidden_act", fmt.Sprintf("%q", h.Act), `"silu"`)
	case h.AttentionBias:
		return bad("attention_bias", true, "false: the trainer has no biases")
	case h.MLPBias:
		return bad("mlp_bias", true, "false: the trainer has no biases")
	case h.Scaling.scaled():
		return bad("rope_scaling", fmt.Sprintf("%q", h.Scaling.Type+h.Scaling.OldType), "null: the trainer does not scale rotary positions")
	case h.Rope.scaled():
		return bad("rope_parameters", fmt.Sprintf("%q", h.Rope.Type+h.Rope.OldType), `"default": the trainer does not scale rotary positions`)
	case h.PartialRotary != nil && *h.PartialRotary != 1:
		return bad("partial_rotary_factor", *h.PartialRotary, "1")
	case h.Quantized != nil:
		return bad("quantization_config", "set", "none: float weights are needed")
	case h.SlidingWindow != nil:
		return bad("sliding_window", *h.SlidingWindow, "none")
	case h.ResidualFactor != nil && *h.ResidualFactor != 1:
		return bad("residual_multiplier", *h.ResidualFactor, "1")
	}
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.FFN = h.Hidden, h.Layers, h.Heads, h.Intermediate
	c.Vocab, c.Context, c.NormEps, c.TieEmbeddings = h.Vocab, h.Positions, h.Eps, h.Tied
	if c.KVHeads = c.Heads; h.KVHeads != nil {
		c.KVHeads = *h.KVHeads
	}
	if c.HeadDim = c.Dim / max(c.Heads, 1); h.HeadDim != nil {
		c.HeadDim = *h.HeadDim
	}
	if h.Theta != nil {
		c.RopeTheta = *h.Theta
	} else if h.Rope != nil && h.Rope.Theta != nil {
		c.RopeTheta = *h.Rope.Theta
	}
	p.cfg = c
	return nil
}

// shards says which files there are, and in which each tensor is.
type shards struct {
	order []string
	of    map[string]string // nil: one file has all
}

func hfFiles(dir string) (shards, error) {
	index := filepath.Join(dir, hfIndex)
	if isMissing(index) {
		if isMissing(filepath.Join(dir, hfWeights)) {
			return shards{}, fmt.Errorf("model: weights to start from: %s: neither %s nor %s is there", dir, hfWeights, hfIndex)
		}
		return shards{order: []string{hfWeights}}, nil
	}
	var x struct {
		Map map[string]string `json:"weight_map"`
	}
	if err := readJSON(index, &x); err != nil {
		return shards{}, err
	}
	s := shards{of: x.Map}
	for name, file := range x.Map {
		if !filepath.IsLocal(file) || filepath.Base(file) != file || !strings.HasSuffix(file, ".safetensors") {
			return s, fmt.Errorf("model: %s: tensor %q is in %q, expected the name of a .safetensors file beside it", index, name, file)
		}
		s.order = append(s.order, file)
	}
	slices.Sort(s.order)
	s.order = slices.Compact(s.order)
	if len(s.order) == 0 {
		return s, fmt.Errorf("model: %s: weight_map is empty", index)
	}
	return s, nil
}

// hfNames maps names of transformers to ours; those of layers without their beginnings.
var hfNames = map[string]string{
	"model.embed_tokens.weight": embedName,
	"model.norm.weight":         "output_norm.weight",
	"lm_head.weight":            headName,
	"input_layernorm":           "attn_norm",
	"self_attn.q_proj":          "attn_q",
	"self_attn.k_proj":          "attn_k",
	"self_attn.v_proj":          "attn_v",
	"self_attn.o_proj":          "attn_output",
	"post_attention_layernorm":  "ffn_norm",
	"mlp.gate_proj":             "ffn_gate",
	"mlp.up_proj":               "ffn_up",
	"mlp.down_proj":             "ffn_down",
}

var hfLayer = regexp.MustCompile(`^model\.layers\.(0|[1-9]\d{0,4})\.(.+)\.weight$`)

// hfTensor adds a tensor. Rotary pairs of transformers are (i, i+d/2), as ours, so
// that all rows keep their places.
func (p *Pretrained) hfTensor(t *safetensors.Tensor) error {
	if strings.HasSuffix(t.Name, ".rotary_emb.inv_freq") { // computed from the configuration
		return nil
	}
	name := hfNames[t.Name]
	if m := hfLayer.FindStringSubmatch(t.Name); m != nil && hfNames[m[2]] != "" {
		name = "blk." + m[1] + "." + hfNames[m[2]] + ".weight"
	}
	if name == "" {
		return p.errorf("tensor %q is not known; expected those of LlamaForCausalLM without biases", t.Name)
	}
	if name == headName && p.cfg.TieEmbeddings {
		return nil // a copy of the embedding
	}
	if len(t.Shape) < 1 || len(t.Shape) > 2 {
		return p.errorf("tensor %q has %d dimensions, expected 1 or 2", t.Name, len(t.Shape))
	}
	switch t.DType {
	case safetensors.F32, safetensors.F16, safetensors.BF16:
	default:
		return p.errorf("tensor %q is %s, expected F32, F16 or BF16", t.Name, t.DType)
	}
	x := pretrainedTensor{rows: 1, cols: t.Shape[len(t.Shape)-1], read: t.Float32s}
	if len(t.Shape) == 2 {
		x.rows = t.Shape[0]
	}
	p.weights[name] = x
	return nil
}

func readJSON(path string, v any) error {
	b, err := fsx.ReadFile(fsx.OS(), path, maxJSON)
	if err != nil {
		return fmt.Errorf("model: weights to start from: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("model: %s: %w", path, err)
	}
	return nil
}
