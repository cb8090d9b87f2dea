package model

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
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
// prefill of 512 tokens: BenchmarkForward/decode/n=1/threads=2.
func BenchmarkForward(b *testing.B) {
	for _, streams := range []int{1, 2} {
		c := nano()
		c.Streams = streams
		if v := os.Getenv("LAYERS"); v != "" {
			fmt.Sscan(v, &c.Layers, &c.Vocab)
		}
		m, err := Init(c, 1, Options{HugePages: os.Getenv("HUGE") != ""})
		require.NoError(b, err)
		for threads := 1; threads <= min(2, team.DefaultSize()); threads++ {
			b.Run(fmt.Sprintf("decode/n=%d/threads=%d", streams, threads), func(b *testing.B) { benchmark(b, m, threads, 1, 128) })
			b.Run(fmt.Sprintf("prefill/n=%d/threads=%d", streams, threads), func(b *testing.B) { benchmark(b, m, threads, 512, 512) })
		}
	}
}

// benchmark runs steps of n tokens, from an empty sequence again at position limit.
func benchmark(b *testing.B, m *Model, threads, n, limit int) {
	tm := team.New(threads, team.Options{Pin: true})
	defer tm.Close()
	w, err := NewWork(m, tm, n)
	require.NoError(b, err)
	p, err := NewPool(m, limit/kernels.PageLen+1, kernels.KVF16)
	require.NoError(b, err)
	ids, seq := text(m.cfg, n), &Seq{}
	step := &Step{Tokens: ids, Seqs: []SeqStep{{seq, n, LogitsLast}}}
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
		_, err := Init(nano(), 1, Options{})
		require.NoError(b, err)
	}
}
