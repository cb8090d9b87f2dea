package model

import (
	"encoding/json"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/safetensors"
)

// hfSource is a small llama as transformers writes it, to be spoilt by tests.
type hfSource struct {
	config  map[string]any
	tensors map[string]safetensors.Source
	index   map[string]any // not written if nil
}

func newHFSource() *hfSource {
	s := &hfSource{config: map[string]any{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
		"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 40,
		"max_position_embeddings": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
	}, tensors: map[string]safetensors.Source{}}
	add := func(name string, shape ...int) {
		n := 1
		for _, d := range shape {
			n *= d
		}
		values := make([]float32, n)
		for i := range values {
			values[i] = float32(len(s.tensors)) + float32(i)/1024
		}
		s.tensors[name] = safetensors.FromFloat32s(name, shape, values)
	}
	p := "model.layers.0."
	add("model.embed_tokens.weight", 40, 64)
	add(p+"input_layernorm.weight", 64)
	add(p+"self_attn.q_proj.weight", 64, 64)
	add(p+"self_attn.k_proj.weight", 32, 64)
	add(p+"self_attn.v_proj.weight", 32, 64)
	add(p+"self_attn.o_proj.weight", 64, 64)
	add(p+"post_attention_layernorm.weight", 64)
	add(p+"mlp.gate_proj.weight", 96, 64)
	add(p+"mlp.up_proj.weight", 96, 64)
	add(p+"mlp.down_proj.weight", 64, 96)
	add("model.norm.weight", 64)
	add("lm_head.weight", 40, 64)
	return s
}

// set replaces a tensor.
func (s *hfSource) set(name string, values []float32, shape ...int) {
	s.tensors[name] = safetensors.FromFloat32s(name, shape, values)
}

// write writes the files and returns their directory.
func (s *hfSource) write(t testing.TB) string {
	dir := t.TempDir()
	put := func(name string, v any) {
		b, err := json.Marshal(v)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o666))
	}
	put("config.json", s.config)
	if s.index != nil {
		put("model.safetensors.index.json", s.index)
	}
	var list []safetensors.Source
	for _, name := range slices.Sorted(maps.Keys(s.tensors)) {
		list = append(list, s.tensors[name])
	}
	require.NoError(t, safetensors.WriteFile(nil, filepath.Join(dir, "model.safetensors"), nil, list))
	return dir
}

func openPretrained(t testing.TB, path string) *Pretrained {
	p, err := OpenPretrained(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// TestPretrainedTernary starts a ternary training with everything that a training
// may add.
func TestPretrainedTernary(t *testing.T) {
	s := newHFSource()
	s.config["tie_word_embeddings"] = true // lm_head is then a copy, and not looked at
	p := openPretrained(t, filepath.Join(s.write(t), "model.safetensors"))
	c := p.Config()
	require.True(t, c.TieEmbeddings)
	require.Equal(t, 128, c.Group)
	c.TieEmbeddings, c.SubNorm, c.QKNorm, c.ResidualScalars, c.Streams, c.LogitSoftcap, c.Context = false, true, true, true, 2, 15, 16
	c.Embedding = config.TypeQ8_0
	require.NoError(t, p.Fits(c))
	tr, err := NewTrainer(c, TrainOptions{Tokens: 8})
	require.NoError(t, err)
	tr.Init(1)
	left, err := p.Fill(tr.Params())
	require.NoError(t, err)
	require.NoError(t, tr.Refresh())
	require.Equal(t, []string{
		"blk.0.residual_scalars", "blk.0.mhc_attn.pre", "blk.0.mhc_attn.post", "blk.0.mhc_attn.res",
		"blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight", "blk.0.attn_sub_norm.weight",
		"blk.0.mhc_ffn.pre", "blk.0.mhc_ffn.post", "blk.0.mhc_ffn.res", "blk.0.ffn_sub_norm.weight",
	}, left)
	got := map[string][]float32{}
	for _, x := range tr.Params() {
		got[x.Name] = x.W
	}
	require.Equal(t, float32(1), got["blk.0.attn_sub_norm.weight"][0])
	require.Equal(t, got[embedName], got[headName])
	require.Equal(t, float32(3+1.0/1024), got["blk.0.attn_k.weight"][1])
	require.Equal(t, float32(9+2.0/1024), got["blk.0.ffn_down.weight"][2])
}

func TestPretrainedFits(t *testing.T) {
	p := openPretrained(t, newHFSource().write(t))
	for want, change := range map[string]func(c *config.Model){
		"model.dim is 128 in the configuration and 64 there; set model.dim = 64": func(c *config.Model) { c.Dim = 128 },
		"model.ffn_kind is relu2": func(c *config.Model) { c.FFNKind = config.FFNReLU2 },
		"model.vocab is 41":       func(c *config.Model) { c.Vocab = 41 },
		"model.rope_theta is 500": func(c *config.Model) { c.RopeTheta = 500 },
		"model.norm_eps is":       func(c *config.Model) { c.NormEps = 1e-5 },
		"has a head of its own, the configuration none; set model.tie_embeddings": func(c *config.Model) { c.TieEmbeddings = true },
	} {
		c := p.Config()
		change(&c)
		require.ErrorContains(t, p.Fits(c), want)
	}
	c := p.Config()
	c.FFN = 128
	tr, err := NewTrainer(c, TrainOptions{Tokens: 8})
	require.NoError(t, err)
	_, err = p.Fill(tr.Params())
	require.ErrorContains(t, err, "is [96 64] there and [128 64] here")
	c = p.Config()
	c.Layers = 2
	tr, err = NewTrainer(c, TrainOptions{Tokens: 8})
	require.NoError(t, err)
	_, err = p.Fill(tr.Params())
	require.ErrorContains(t, err, `has no tensor for "blk.1.`)
}

func TestPretrainedRejects(t *testing.T) {
	nan := make([]float32, 64)
	nan[7] = float32(math.Inf(-1))
	set := func(key string, v any) func(s *hfSource) { return func(s *hfSource) { s.config[key] = v } }
	index := func(name, file string) func(s *hfSource) {
		return func(s *hfSource) {
			m := map[string]string{}
			for n := range s.tensors {
				m[n] = "model.safetensors"
			}
			m[name] = file
			s.index = map[string]any{"weight_map": m}
		}
	}
	for _, c := range []struct {
		name string
		f    func(s *hfSource)
		want string
	}{
		{"other architecture", func(s *hfSource) { s.config["model_type"], s.config["architectures"] = "gpt2", []string{} }, `"model_type" is "gpt2", expected "llama"`},
		{"activation", set("hidden_act", "gelu"), `"hidden_act" is "gelu"`},
		{"attention bias", set("attention_bias", true), `"attention_bias" is true`},
		{"mlp bias", set("mlp_bias", true), `"mlp_bias" is true`},
		{"scaled", set("rope_scaling", map[string]any{"rope_type": "llama3", "factor": 8.0}), `"rope_scaling" is "llama3", expected null`},
		{"scaled, old", set("rope_scaling", map[string]any{"type": "linear", "factor": 8.0}), `"rope_scaling" is "linear"`},
		{"scaled, new", set("rope_parameters", map[string]any{"rope_type": "yarn"}), `"rope_parameters" is "yarn"`},
		{"partial", set("partial_rotary_factor", 0.5), `"partial_rotary_factor" is 0.5`},
		{"quantized", set("quantization_config", map[string]any{"bits": 4}), "float weights are needed"},
		{"window", set("sliding_window", 4096), `"sliding_window" is 4096`},
		{"no heads", set("num_attention_heads", 0), "heads is 0, expected 1 to"},
		{"negative", set("hidden_size", -64), "dim is -64"},
		{"a number as text", set("hidden_size", "64"), "config.json: json: cannot unmarshal"},
		{"layers", set("num_hidden_layers", 2), `has no tensor for "blk.1.attn_norm.weight"`},
		{"many layers", set("num_hidden_layers", 4000), "4000 layers, but only 12 tensors"},
		{"vocabulary", set("vocab_size", 41), `"token_embd.weight" is [40 64], expected [41 64]`},
		{"head dimension", set("head_dim", 16), `"blk.0.attn_q.weight" is [64 64], expected [32 64]`},
		{"no head", func(s *hfSource) { delete(s.tensors, "lm_head.weight") }, `has no tensor for "output.weight"`},
		{"no norm", func(s *hfSource) { delete(s.tensors, "model.norm.weight") }, `has no tensor for "output_norm.weight"`},
		{"unknown tensor", func(s *hfSource) { s.set("model.layers.0.self_attn.q_proj.bias", nan, 64) }, `tensor "model.layers.0.self_attn.q_proj.bias" is not known`},
		{"a layer too many", func(s *hfSource) { s.set("model.layers.7.input_layernorm.weight", nan, 64) }, `"blk.7.attn_norm.weight", which no part of the model wants`},
		{"three dimensions", func(s *hfSource) { s.set("model.norm.weight", nan, 1, 1, 64) }, "has 3 dimensions"},
		{"no dimension", func(s *hfSource) { s.set("model.norm.weight", nan[:1]) }, "has 0 dimensions"},
		{"integers", func(s *hfSource) {
			s.tensors["model.norm.weight"] = safetensors.FromBytes("model.norm.weight", safetensors.I8, []int{64}, make([]byte, 64))
		}, "is I8, expected F32, F16 or BF16"},
		{"infinite", func(s *hfSource) { s.set("model.norm.weight", nan, 64) }, `value 7 of "output_norm.weight" is -Inf`},
		{"index: outside", index("lm_head.weight", "../model.safetensors"), `is in "../model.safetensors", expected the name`},
		{"index: absolute", index("lm_head.weight", "/model.safetensors"), "expected the name of a .safetensors file"},
		{"index: no such file", index("lm_head.weight", "b.safetensors"), "b.safetensors: no such file"},
		{"index: no such tensor", index("x", "model.safetensors"), `tensor "x" is not in model.safetensors, where model.safetensors.index.json says it is`},
		{"index: empty", func(s *hfSource) { s.index = map[string]any{} }, "weight_map is empty"},
	} {
		s := newHFSource()
		c.f(s)
		dir := s.write(t)
		p, err := OpenPretrained(dir)
		if err == nil { // a fault of values
			tr, e := NewTrainer(p.Config(), TrainOptions{Tokens: 8})
			require.NoError(t, e)
			_, err = p.Fill(tr.Params())
			require.NoError(t, p.Close())
		}
		require.ErrorContains(t, err, c.want, c.name)
		require.ErrorContains(t, err, dir, c.name)
	}
	for name, change := range map[string]func(dir string) error{
		"neither model.safetensors nor": func(dir string) error { return os.Remove(filepath.Join(dir, "model.safetensors")) },
		"config.json: no such file":     func(dir string) error { return os.Remove(filepath.Join(dir, "config.json")) },
		"safetensors: ":                 func(dir string) error { return os.Truncate(filepath.Join(dir, "model.safetensors"), 5000) },
	} {
		dir := newHFSource().write(t)
		require.NoError(t, change(dir))
		_, err := OpenPretrained(dir)
		require.ErrorContains(t, err, name)
	}
	_, err := OpenPretrained(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestPretrainedGGUFRejects: what a GGUF file can hold and a training cannot.
func TestPretrainedGGUFRejects(t *testing.T) {
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN, c.Vocab, c.Group = 64, 1, 2, 1, 32, 96, 40, 64
	m, err := Init(t.Context(), c, 1, Options{})
	require.NoError(t, err)
	dir := t.TempDir()
	own, plain, scaled := filepath.Join(dir, "own.gguf"), filepath.Join(dir, "plain.gguf"), filepath.Join(dir, "scaled.gguf")
	require.NoError(t, m.Save(own))
	_, err = OpenPretrained(own)
	require.ErrorIs(t, err, ErrTernaryOnly)
	require.NoError(t, m.Export(plain, gguf.F16))
	p := openPretrained(t, plain)
	require.Equal(t, 1e-5, p.Config().NormEps, "not the float32 next to it")
	v, w := gguf.V("linear"), gguf.V(float32(4))
	rewrite(t, plain, scaled, map[string]*gguf.Value{"llama.rope.scaling.type": &v, "llama.rope.scaling.factor": &w}, nil)
	_, err = OpenPretrained(scaled)
	require.ErrorContains(t, err, "rotary positions are scaled")
	b, err := os.ReadFile(plain)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(scaled, b[:len(b)/2], 0o666))
	_, err = OpenPretrained(scaled)
	require.ErrorContains(t, err, "gguf: ")
	require.True(t, strings.Contains(err.Error(), scaled))
}
