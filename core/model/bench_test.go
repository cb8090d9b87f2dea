package model

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// nano is the shape whose speed is quoted.
func nano() config.Model {
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN = 768, 12, 12, 12, 64, 2048
	c.Vocab, c.Context = 16384, 1024
	c.Embedding, c.Head = config.TypeQ8_0, config.TypeQ8_0
	return c
}

// BenchmarkForward measures decoding with positions 0 to 127 in the cache, and
// prefill of 512 tokens: BenchmarkForward/nano/decode/threads=2. Of "layer", one
// layer and no head to speak of, everything stays in the second-level cache.
func BenchmarkForward(b *testing.B) {
	layer, streams := nano(), nano()
	layer.Layers, layer.Vocab = 1, 64
	streams.Streams = 2
	for _, x := range []struct {
		name string
		c    config.Model
		o    Options
	}{{"nano", nano(), Options{}}, {"huge pages", nano(), Options{HugePages: true}}, {"2 streams", streams, Options{}}, {"layer", layer, Options{}}} {
		m, err := Init(b.Context(), x.c, 1, x.o)
		require.NoError(b, err)
		for threads := 1; threads <= min(2, team.DefaultSize()); threads++ {
			b.Run(fmt.Sprintf("%s/decode/threads=%d", x.name, threads), func(b *testing.B) { benchmark(b, m, threads, 1, 128) })
			b.Run(fmt.Sprintf("%s/prefill/threads=%d", x.name, threads), func(b *testing.B) { benchmark(b, m, threads, 512, 512) })
		}
	}
}

// BenchmarkLoad opens a file whose pages are in memory, and computes the first
// logits.
func BenchmarkLoad(b *testing.B) {
	m, err := Init(b.Context(), nano(), 1, Options{})
	require.NoError(b, err)
	path := filepath.Join(b.TempDir(), "nano.gguf")
	require.NoError(b, m.Save(path))
	tm := team.New(min(2, team.DefaultSize()), team.Options{})
	defer tm.Close()
	for b.Loop() {
		f, err := gguf.Open(path)
		require.NoError(b, err)
		m, err := Load(f, Options{})
		require.NoError(b, err)
		w, err := NewWork(m, tm, 64)
		require.NoError(b, err)
		p, err := NewPool(m, 16, kernels.KVF16)
		require.NoError(b, err)
		seq := &Seq{}
		require.NoError(b, p.Grow(seq, 1))
		require.NoError(b, m.Forward(w, p, &Step{Tokens: []int32{1}, Seqs: []SeqStep{{seq, 1, LogitsLast, false}}}))
		require.NoError(b, f.Close())
	}
}

// benchmark runs steps of n tokens, from an empty sequence again at position limit.
func benchmark(b *testing.B, m *Model, threads, n, limit int) {
	tm := team.New(threads, team.Options{})
	defer tm.Close()
	w, err := NewWork(m, tm, n)
	require.NoError(b, err)
	p, err := NewPool(m, limit/kernels.PageLen+1, kernels.KVF16)
	require.NoError(b, err)
	ids, seq := text(m.cfg, n), &Seq{}
	step := &Step{Tokens: ids, Seqs: []SeqStep{{seq, n, LogitsLast, false}}}
	for b.Loop() {
		if seq.Len+n > limit {
			p.Truncate(seq, 0)
		}
		require.NoError(b, p.Grow(seq, n))
		require.NoError(b, m.Forward(w, p, step))
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "tok/s")
}

// BenchmarkInit makes random weights of the 125M shape.
func BenchmarkInit(b *testing.B) {
	for b.Loop() {
		_, err := Init(b.Context(), nano(), 1, Options{})
		require.NoError(b, err)
	}
}
