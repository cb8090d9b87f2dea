package model

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
)

// wide is a plain shape that fits the blocks of every exported type.
func wide() config.Model {
	c := small()
	c.Dim, c.Heads, c.KVHeads, c.HeadDim, c.FFN, c.Group, c.Layers = 256, 4, 2, 64, 512, 256, 2
	return c
}

// What is exported and converted back is the same model, bit for bit.
func TestExportConvert(t *testing.T) {
	for _, kind := range []string{archLlama, archBitnet, "bitnet relu2"} {
		for _, typ := range []gguf.Type{gguf.F16, gguf.Q4_0, gguf.TQ2_0} {
			for _, group := range []int{0, 128, 256} {
				t.Run(fmt.Sprint(kind, " ", typ, " ", group), func(t *testing.T) {
					c := wide()
					c.Group = group
					if kind != archLlama {
						c.SubNorm, c.TieEmbeddings = true, true
					}
					if kind == "bitnet relu2" {
						c.FFNKind = config.FFNReLU2GLU
					}
					m := initModel(t, c, 5, nil)
					dir := t.TempDir()
					path := filepath.Join(dir, "out.gguf")
					err := m.Export(path, typ, gguf.KV{Key: "tokenizer.ggml.model", Value: gguf.V("gpt2")})
					if typ == gguf.TQ2_0 && group == 128 {
						require.ErrorContains(t, err, "export as Q4_0 or F16")
						return
					}
					require.NoError(t, err)
					foreign, err := Load(open(t, path), Options{})
					require.NoError(t, err)
					require.Equal(t, map[string]string{"bitnet relu2": archBitnetB158, archBitnet: archBitnet, archLlama: archLlama}[kind], foreign.Arch())
					conf, err := readConfig(t, path)
					require.NoError(t, err)
					if typ != gguf.TQ2_0 && kind != archLlama {
						conf.Group = foreign.Config().Group // of floats, which only their values tell
					}
					require.Equal(t, foreign.Config(), conf)
					ids := text(c, 12)
					want := run(t, m, 1, kernels.KVF16, ids, 12)
					if typ == gguf.TQ2_0 { // only head dimensions changed places, which moves a few roundings
						got := run(t, foreign, 1, kernels.KVF16, ids, 12)
						for i := range got {
							require.InDeltaSlice(t, want[i], got[i], 0.1)
						}
					}
					back, err := foreign.Convert(t.Context(), ConvertOptions{})
					require.NoError(t, err)
					require.Equal(t, want, run(t, back, 1, kernels.KVF16, ids, 12))
					require.NoError(t, back.Save(filepath.Join(dir, "back.gguf")))
					again, err := Load(open(t, filepath.Join(dir, "back.gguf")), Options{})
					require.NoError(t, err)
					require.Equal(t, want, run(t, again, 1, kernels.KVF16, ids, 12))
					require.Equal(t, "tokenizer.ggml.model", again.Meta()[0].Key)
				})
			}
		}
	}
}

// A gain survives: as a tensor of its own in our files and in "bitnet" files.
func TestGain(t *testing.T) {
	c := wide()
	c.SubNorm, c.TieEmbeddings, c.Group = true, true, 0
	m := initModel(t, c, 6, nil)
	for i := range m.layers {
		for j, p := range m.layers[i].projections() {
			if p.ternary != nil {
				p.ternary.Gain = 0.7123456 + float32(j)
			}
		}
	}
	dir := t.TempDir()
	ids := text(c, 20)
	want := run(t, m, 1, kernels.KVF16, ids, 20)
	require.NoError(t, m.Save(filepath.Join(dir, "own.gguf")))
	own, err := Load(open(t, filepath.Join(dir, "own.gguf")), Options{})
	require.NoError(t, err)
	require.Equal(t, want, run(t, own, 1, kernels.KVF16, ids, 20))
	require.NoError(t, m.Export(filepath.Join(dir, "tq2.gguf"), gguf.TQ2_0))
	foreign, err := Load(open(t, filepath.Join(dir, "tq2.gguf")), Options{})
	require.NoError(t, err)
	require.NotNil(t, foreign.hold.(*gguf.File).Tensor("blk.1.attn_q.scale"))
	back, err := foreign.Convert(t.Context(), ConvertOptions{})
	require.NoError(t, err)
	got := run(t, back, 1, kernels.KVF16, ids, 20)
	for i := range got {
		require.InDeltaSlice(t, want[i], got[i], 1e-4) // one scale per row became one per 256 inputs
	}

	m.cfg.SubNorm = false
	err = m.Export(filepath.Join(dir, "llama.gguf"), gguf.TQ2_0)
	require.ErrorContains(t, err, "do not fit")
	require.NoError(t, m.Export(filepath.Join(dir, "llama.gguf"), gguf.F16))
}

func TestExportRefuses(t *testing.T) {
	for name, x := range map[string]struct {
		change func(c *config.Model)
		says   string
	}{
		"streams": {func(c *config.Model) { c.Streams = 2 }, "stream"},
		"qk norm": {func(c *config.Model) { c.QKNorm = true }, "qk_norm"},
		"scalars": {func(c *config.Model) { c.ResidualScalars = true }, "residual_scalars"},
		"softcap": {func(c *config.Model) { c.LogitSoftcap = 30 }, "logit_softcap"},
		"relu2":   {func(c *config.Model) { c.FFNKind = config.FFNReLU2 }, "relu2"},
		"head":    {func(c *config.Model) { c.SubNorm = true }, "head"},
		"shape":   {func(c *config.Model) { c.FFN = 160 }, "F16 always fits"},
	} {
		c := wide()
		x.change(&c)
		err := initModel(t, c, 1, nil).Export(filepath.Join(t.TempDir(), "x.gguf"), gguf.TQ2_0)
		require.ErrorContains(t, err, x.says, name)
	}
	m := initModel(t, wide(), 1, nil)
	require.ErrorContains(t, m.Export(filepath.Join(t.TempDir(), "x.gguf"), gguf.Q8_0), "TQ2_0")
}

// Dense projections need leave to become ternary.
func TestConvertDense(t *testing.T) {
	c := wide()
	dir := t.TempDir()
	path := filepath.Join(dir, "f16.gguf")
	require.NoError(t, initModel(t, c, 7, nil).Export(path, gguf.F16))
	f := open(t, path)
	x := f.Tensor("blk.1.ffn_up.weight")
	values := make([]float32, c.Dim*c.FFN)
	require.NoError(t, gguf.Dequantize(values, x.Type, x.Data))
	values[300] *= 1.5
	data := make([]byte, len(x.Data))
	require.NoError(t, gguf.Quantize(data, gguf.F16, values))
	s := gguf.FromBytes(x.Name, x.Type, x.Dims, data)
	rewrite(t, path, filepath.Join(dir, "bad.gguf"), nil, map[string]*gguf.Source{x.Name: &s})
	m, err := Load(open(t, filepath.Join(dir, "bad.gguf")), Options{})
	require.NoError(t, err)
	_, err = m.Convert(t.Context(), ConvertOptions{})
	require.ErrorContains(t, err, `"blk.1.ffn_up.weight": row 1 is not ternary`)
	require.ErrorIs(t, err, ErrNotTernary)
	n, err := m.Convert(t.Context(), ConvertOptions{Quantize: true, Group: 128})
	require.NoError(t, err)
	require.Equal(t, 128, n.Config().Group)
	want, err := ternary.Quantize(values, c.FFN, c.Dim, 128)
	require.NoError(t, err)
	require.Equal(t, want, n.layers[1].up.ternary)
	_, err = m.Convert(t.Context(), ConvertOptions{Quantize: true, Group: 7})
	require.ErrorContains(t, err, "group 7")
	n, err = n.Convert(t.Context(), ConvertOptions{Embedding: config.TypeQ8_0})
	require.NoError(t, err)
	require.Equal(t, kernels.Q8_0, n.embed.Type)
	require.Equal(t, config.TypeQ8_0, n.Config().Embedding)
	require.Equal(t, want, n.layers[1].up.ternary)
	require.NoError(t, n.Save(filepath.Join(dir, "q8.gguf")))
	_, err = n.Convert(t.Context(), ConvertOptions{Embedding: "q4_0"})
	require.ErrorContains(t, err, "q4_0")
	require.NotErrorIs(t, err, ErrNotTernary)
}

// I2_S: four codes to a byte, the first in the high bits, 128 weights in 32
// bytes, one float32 scale at the end of the tensor.
func TestI2S(t *testing.T) {
	c := wide()
	c.SubNorm, c.TieEmbeddings, c.Group = true, true, 0
	m := initModel(t, c, 8, nil)
	for i := range m.layers {
		for j, p := range m.layers[i].projections() {
			w := p.ternary
			w.Gain = 0.05 + float32(j)/100
			for k := range w.Scales {
				w.Scales[k] = half1
			}
		}
	}
	dir := t.TempDir()
	require.NoError(t, m.Export(filepath.Join(dir, "a.gguf"), gguf.TQ2_0))
	tensors := map[string]*gguf.Source{}
	for _, s := range m.slots() {
		if s.lin == nil {
			continue
		}
		w := s.lin.ternary
		trits := make([]int8, w.Rows*w.Cols)
		require.NoError(t, ternary.Trits(trits, w))
		data := make([]byte, len(trits)/4+32)
		for i, v := range trits {
			data[i/128*32+i%32] |= byte(v+1) << (6 - i%128/32*2)
		}
		copy(data[len(trits)/4:], gguf.Bytes([]float32{w.Gain}))
		src := gguf.FromBytes(s.name, gguf.I2_S, []uint64{uint64(s.cols), uint64(s.rows)}, data)
		tensors[s.name] = &src
		tensors[s.name[:len(s.name)-len("weight")]+"scale"] = nil
	}
	meta := map[string]*gguf.Value{}
	rewrite(t, filepath.Join(dir, "a.gguf"), filepath.Join(dir, "b.gguf"), meta, tensors)
	got, err := Load(open(t, filepath.Join(dir, "b.gguf")), Options{})
	require.NoError(t, err)
	ids := text(c, 20)
	require.Equal(t, run(t, m, 1, kernels.KVF16, ids, 20), run(t, got, 1, kernels.KVF16, ids, 20))

	bad := *tensorsCopy(open(t, filepath.Join(dir, "b.gguf")), "blk.0.attn_k.weight", func(b []byte) { b[9] |= 0xc0 })
	rewrite(t, filepath.Join(dir, "b.gguf"), filepath.Join(dir, "c.gguf"), nil, map[string]*gguf.Source{bad.Name: &bad})
	_, err = Load(open(t, filepath.Join(dir, "c.gguf")), Options{})
	require.ErrorContains(t, err, `"blk.0.attn_k.weight": rows from 0: the tensor holds an invalid code`)
}

// tensorsCopy is a changed copy of a tensor.
func tensorsCopy(f *gguf.File, name string, change func(b []byte)) *gguf.Source {
	x := f.Tensor(name)
	b := append([]byte(nil), x.Data...)
	change(b)
	s := gguf.FromBytes(name, x.Type, x.Dims, b)
	return &s
}

func TestForeignRejects(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.gguf")
	require.NoError(t, initModel(t, wide(), 1, nil).Export(good, gguf.TQ2_0))
	f := open(t, good)
	v := func(v gguf.Value) *gguf.Value { return &v }
	for name, x := range map[string]struct {
		meta    map[string]*gguf.Value
		tensors map[string]*gguf.Source
		says    string
	}{
		"experts": {map[string]*gguf.Value{"llama.expert_count": v(gguf.V(uint32(8)))}, nil, "expert_count"},
		"yarn":    {map[string]*gguf.Value{"llama.rope.scaling.type": v(gguf.V("yarn"))}, nil, "yarn"},
		"window":  {map[string]*gguf.Value{"llama.attention.sliding_window": v(gguf.V(uint32(8)))}, nil, "sliding_window"},
		"values":  {map[string]*gguf.Value{"llama.attention.value_length": v(gguf.V(uint32(8)))}, nil, "length 8"},
		"eps":     {map[string]*gguf.Value{"llama.attention.layer_norm_rms_epsilon": nil}, nil, "layer_norm_rms_epsilon"},
		"bias":    {nil, map[string]*gguf.Source{"blk.0.attn_q.bias": {Name: "blk.0.attn_q.bias", Type: gguf.F32, Dims: []uint64{256}, Write: gguf.FromBytes("", gguf.F32, nil, make([]byte, 1024)).Write}}, "attn_q.bias"},
		"missing": {nil, map[string]*gguf.Source{"blk.1.ffn_down.weight": nil}, "blk.1.ffn_down.weight"},
		"code 3":  {nil, map[string]*gguf.Source{"blk.0.attn_v.weight": tensorsCopy(f, "blk.0.attn_v.weight", func(b []byte) { b[70] |= 3 })}, "invalid code"},
		"scale":   {nil, map[string]*gguf.Source{"blk.0.attn_v.weight": tensorsCopy(f, "blk.0.attn_v.weight", func(b []byte) { b[65] = 0x7d })}, "blk.0.attn_v.weight"},
	} {
		bad := filepath.Join(t.TempDir(), "bad.gguf")
		rewrite(t, good, bad, x.meta, x.tensors)
		_, err := Load(open(t, bad), Options{})
		var fe *gguf.FormatError
		require.ErrorAs(t, err, &fe, name)
		require.Contains(t, err.Error(), x.says, name)
	}
}
