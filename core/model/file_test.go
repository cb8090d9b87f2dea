package model

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/kernels"
)

func open(t testing.TB, path string) *gguf.File {
	t.Helper()
	f, err := gguf.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// readConfig reads the configuration of a file from its header.
func readConfig(t testing.TB, path string) (config.Model, error) {
	t.Helper()
	f, err := gguf.ReadInfo(path)
	require.NoError(t, err)
	return ReadConfig(f)
}

// A saved model is the same model: same configuration, bytes, logits and file.
func TestSaveLoad(t *testing.T) {
	for name, c := range axes() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m := initModel(t, c, 3, nil)
			extra := gguf.KV{Key: "tokenizer.ggml.model", Value: gguf.V("gpt2")}
			require.NoError(t, m.Save(filepath.Join(dir, "a.gguf"), extra))
			f := open(t, filepath.Join(dir, "a.gguf"))
			got, err := Load(f, Options{})
			require.NoError(t, err)
			if c.TieEmbeddings {
				c.Head = c.Embedding
			}
			require.Equal(t, c, got.Config())
			conf, err := readConfig(t, filepath.Join(dir, "a.gguf"))
			require.NoError(t, err)
			require.Equal(t, c, conf)
			require.Equal(t, "nanochat", got.Arch())
			require.True(t, slices.ContainsFunc(got.Meta(), func(kv gguf.KV) bool { return kv.Key == extra.Key }))
			ids := text(c, 20)
			require.Equal(t, run(t, m, 1, kernels.KVF16, ids, 20), run(t, got, 1, kernels.KVF16, ids, 20))
			require.NoError(t, got.Save(filepath.Join(dir, "b.gguf")))
			a, err := os.ReadFile(filepath.Join(dir, "a.gguf"))
			require.NoError(t, err)
			b, err := os.ReadFile(filepath.Join(dir, "b.gguf"))
			require.NoError(t, err)
			require.True(t, bytes.Equal(a, b), "saving a loaded model changes the file")
			require.LessOrEqual(t, got.Memory().Total()-got.Memory().Rope, f.Size)
		})
	}
}

// rewrite copies a file with changes to its metadata and tensors; nil drops one.
func rewrite(t testing.TB, from, to string, meta map[string]*gguf.Value, tensors map[string]*gguf.Source) {
	t.Helper()
	f := open(t, from)
	var kvs []gguf.KV
	for _, kv := range f.Meta {
		if v, ok := meta[kv.Key]; ok {
			delete(meta, kv.Key)
			if v == nil {
				continue
			}
			kv.Value = *v
		}
		kvs = append(kvs, kv)
	}
	for k, v := range meta {
		kvs = append(kvs, gguf.KV{Key: k, Value: *v})
	}
	var sources []gguf.Source
	for i := range f.Tensors {
		x := &f.Tensors[i]
		s := gguf.FromBytes(x.Name, x.Type, x.Dims, x.Data)
		if n, ok := tensors[x.Name]; ok {
			delete(tensors, x.Name)
			if n == nil {
				continue
			}
			s = *n
		}
		sources = append(sources, s)
	}
	for _, s := range tensors {
		sources = append(sources, *s)
	}
	require.NoError(t, writeFile(to, kvs, sources))
}

func TestLoadRejects(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.gguf")
	c := small()
	c.Streams, c.MHCDynamic = 2, true
	require.NoError(t, initModel(t, c, 1, nil).Save(good))
	f := open(t, good)
	value := func(v gguf.Value) *gguf.Value { return &v }
	spoil := func(name string, change func(b []byte)) map[string]*gguf.Source {
		x := f.Tensor(name)
		b := bytes.Clone(x.Data)
		change(b)
		s := gguf.FromBytes(name, x.Type, x.Dims, b)
		return map[string]*gguf.Source{name: &s}
	}
	as := func(name string, typ gguf.Type, dims ...uint64) map[string]*gguf.Source {
		n, err := gguf.Size(typ, dims)
		require.NoError(t, err)
		s := gguf.FromBytes(name, typ, dims, make([]byte, n))
		return map[string]*gguf.Source{name: &s}
	}
	contents := []string{"code 3", "scale inf", "embedding nan", "head scale inf", "norm nan", "mhc inf", "rope factor"}
	for _, x := range []struct {
		name    string
		meta    map[string]*gguf.Value
		tensors map[string]*gguf.Source
		says    []string
	}{
		{"architecture", map[string]*gguf.Value{"general.architecture": value(gguf.V("gpt5"))}, nil, []string{`"gpt5"`, "llama"}},
		{"no architecture", map[string]*gguf.Value{"general.architecture": nil}, nil, []string{"general.architecture"}},
		{"version", map[string]*gguf.Value{"nanochat.format_version": value(gguf.V(uint32(9)))}, nil, []string{"9"}},
		{"missing key", map[string]*gguf.Value{"nanochat.block_count": nil}, nil, []string{"nanochat.block_count"}},
		{"wrong type", map[string]*gguf.Value{"nanochat.block_count": value(gguf.V("3"))}, nil, []string{"nanochat.block_count", "string"}},
		{"unknown key", map[string]*gguf.Value{"nanochat.attention.window": value(gguf.V(uint32(9)))}, nil, []string{"nanochat.attention.window"}},
		{"absurd dim", map[string]*gguf.Value{"nanochat.embedding_length": value(gguf.V(uint32(1 << 30)))}, nil, []string{"dim"}},
		{"absurd layers", map[string]*gguf.Value{"nanochat.block_count": value(gguf.V(uint32(4000)))}, nil, []string{"layers"}},
		{"absurd streams", map[string]*gguf.Value{"nanochat.mhc.streams": value(gguf.V(uint32(3)))}, nil, []string{"streams"}},
		{"heads", map[string]*gguf.Value{"nanochat.attention.head_count_kv": value(gguf.V(uint32(3)))}, nil, []string{"heads"}},
		{"odd head", map[string]*gguf.Value{"nanochat.attention.key_length": value(gguf.V(uint32(23)))}, nil, []string{"head_dim"}},
		{"theta", map[string]*gguf.Value{"nanochat.rope.freq_base": value(gguf.V(-1.0))}, nil, []string{"rope_theta"}},
		{"rotary", map[string]*gguf.Value{"nanochat.rope.dimension_count": value(gguf.V(uint32(26)))}, nil, []string{"rotary"}},
		{"group", map[string]*gguf.Value{"nanochat.group_size": value(gguf.V(uint32(100)))}, nil, []string{"group"}},
		{"more layers", map[string]*gguf.Value{"nanochat.block_count": value(gguf.V(uint32(4)))}, nil, []string{"blk.3."}},
		{"fewer layers", map[string]*gguf.Value{"nanochat.block_count": value(gguf.V(uint32(2)))}, nil, []string{"blk.2."}},
		{"missing tensor", nil, map[string]*gguf.Source{"blk.1.ffn_up.weight.s": nil}, []string{"blk.1.ffn_up.weight.s", "missing"}},
		{"missing norm", nil, map[string]*gguf.Source{"output_norm.weight": nil}, []string{"output_norm.weight", "missing"}},
		{"unknown tensor", nil, as("blk.0.attn_q.bias", gguf.F32, 96), []string{"blk.0.attn_q.bias"}},
		{"head type", nil, as("output.weight", gguf.F32, 96, 211), []string{"output.weight", "F32"}},
		{"head shape", nil, as("output.weight", gguf.F16, 96, 210), []string{"output.weight", "210"}},
		{"norm type", nil, as("output_norm.weight", gguf.F16, 96), []string{"output_norm.weight", "F16", "F32"}},
		{"tile shape", nil, as("blk.1.attn_q.weight.t", gguf.I8, 64, 6, 5), []string{"blk.1.attn_q.weight.t"}},
		{"code 3", nil, spoil("blk.2.ffn_down.weight.t", func(b []byte) { b[1000] |= 0x30 }), []string{"blk.2.ffn_down.weight.t", "code 3"}},
		{"scale inf", nil, spoil("blk.2.attn_k.weight.s", func(b []byte) { b[3] = 0x7c }), []string{"blk.2.attn_k.weight.s", "finite"}},
		{"embedding nan", nil, spoil("token_embd.weight", func(b []byte) { b[501] = 0xff }), []string{"token_embd.weight", "finite"}},
		{"head scale inf", nil, spoil("output.weight", func(b []byte) { b[35], b[34] = 0x7c, 0 }), []string{"output.weight", "finite"}},
		{"norm nan", nil, spoil("blk.0.attn_norm.weight", func(b []byte) { b[7], b[6] = 0x7f, 0xff }), []string{"blk.0.attn_norm.weight", "NaN"}},
		{"mhc inf", nil, spoil("blk.0.mhc_ffn.proj", func(b []byte) { copy(b[4:], []byte{0, 0, 0x80, 0x7f}) }), []string{"blk.0.mhc_ffn.proj", "Inf"}},
		{"rope factor", nil, as("rope_freqs.weight", gguf.F32, 12), []string{"rope_freqs.weight"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			bad := filepath.Join(t.TempDir(), "bad.gguf")
			rewrite(t, good, bad, x.meta, x.tensors)
			_, err := Load(open(t, bad), Options{})
			var fe *gguf.FormatError
			require.ErrorAs(t, err, &fe)
			require.Equal(t, bad, fe.Path)
			for _, s := range x.says {
				require.Contains(t, err.Error(), s)
			}
			_, byHeader := readConfig(t, bad)
			if slices.Contains(contents, x.name) {
				require.NoError(t, byHeader)
			} else {
				require.Equal(t, err, byHeader)
			}
		})
	}
	_, err := Load(f, Options{Context: c.Context + 1})
	var le *LimitError
	require.ErrorAs(t, err, &le)
	require.Equal(t, &LimitError{good, c.Context + 1, c.Context}, le)
	require.ErrorContains(t, err, "301")
	_, err = Init(t.Context(), c, 1, Options{Context: c.Context + 1})
	require.ErrorAs(t, err, &le)
	m, err := Load(f, Options{Context: 50})
	require.NoError(t, err)
	require.Equal(t, 50, m.Config().Context)
}

// A file whose tensors are not aligned to 64 works too.
func TestLoadUnaligned(t *testing.T) {
	dir := t.TempDir()
	m := initModel(t, small(), 1, nil)
	require.NoError(t, m.Save(filepath.Join(dir, "a.gguf")))
	a, err := os.ReadFile(filepath.Join(dir, "a.gguf"))
	require.NoError(t, err)
	odd := append(make([]byte, 1), a...)[1:]
	f, err := gguf.Parse("memory", odd)
	require.NoError(t, err)
	got, err := Load(f, Options{})
	require.NoError(t, err)
	for i := range got.layers {
		for _, p := range got.layers[i].projections() {
			require.True(t, p.ternary == nil || kernels.Aligned(p.ternary.Tiles))
		}
	}
	ids := text(small(), 8)
	require.Equal(t, run(t, m, 1, kernels.KVF16, ids, 8), run(t, got, 1, kernels.KVF16, ids, 8))
}

func TestInitRejects(t *testing.T) {
	for name, change := range map[string]func(c *config.Model){
		"dim":       func(c *config.Model) { c.Dim = 0 },
		"head type": func(c *config.Model) { c.Head = "q4_0" },
		"q8_0 dim":  func(c *config.Model) { c.Dim = 100 },
		"ffn kind":  func(c *config.Model) { c.FFNKind = "gelu" },
		"eps":       func(c *config.Model) { c.NormEps = 0 },
		"mhc":       func(c *config.Model) { c.Streams, c.MHC = 2, "x" },
	} {
		c := small()
		change(&c)
		_, err := Init(t.Context(), c, 1, Options{})
		require.ErrorContains(t, err, "model: ", name)
	}
}
