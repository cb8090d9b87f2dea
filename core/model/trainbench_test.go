package model

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/kernels/team"
)

// nano5 is the shape of the model of five million weights that is trained on two
// cores.
func nano5() config.Model {
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN = 256, 6, 4, 4, 64, 1024
	c.FFNKind, c.Vocab, c.Context = config.FFNReLU2, 4096, 512
	c.Embedding, c.Head = config.TypeQ8_0, config.TypeQ8_0
	c.QKNorm, c.SubNorm, c.LogitSoftcap, c.ResidualScalars = true, true, 15, true
	return c
}

func nano125() config.Model {
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN = 768, 12, 12, 12, 64, 2048
	c.Vocab, c.Context = 16384, 512
	c.Embedding, c.Head, c.TieEmbeddings = config.TypeQ8_0, config.TypeQ8_0, true
	c.SubNorm, c.Streams = true, 2
	return c
}

// BenchmarkTrain is forward and backward of one micro-batch, in tokens per second and
// the share of each part.
func BenchmarkTrain(b *testing.B) {
	for _, x := range []struct {
		name            string
		c               config.Model
		rows, seq, team int
	}{{"nano-5m/8x512", nano5(), 8, 512, 2}, {"nano-5m/4x512", nano5(), 4, 512, 2}, {"nano-5m/one thread", nano5(), 4, 512, 1}, {"nano-125m/4x256", nano125(), 4, 256, 2}} {
		b.Run(x.name, func(b *testing.B) {
			tm := team.New(x.team, team.Options{})
			defer tm.Close()
			tr, err := NewTrainer(x.c, TrainOptions{Team: tm, Tokens: x.rows * x.seq})
			require.NoError(b, err)
			tr.Init(1)
			require.NoError(b, tr.Refresh())
			batch := &TrainBatch{Rows: x.rows, SeqLen: x.seq, Tokens: text(x.c, x.rows*x.seq)}
			batch.Targets = append(batch.Tokens[1:len(batch.Tokens):len(batch.Tokens)], 0)
			batch.Starts = make([]int32, len(batch.Tokens))
			pass := func() {
				_, err := tr.Backward(batch, LossOptions{Scale: 1e-4})
				require.NoError(b, err)
			}
			pass()
			tr.ClearParts()
			b.ResetTimer()
			for range b.N {
				pass()
			}
			s := b.Elapsed().Seconds()
			b.ReportMetric(float64(b.N*len(batch.Tokens))/s, "tok/s")
			shares := ""
			for _, p := range tr.Parts() {
				shares += fmt.Sprintf("; %s %.1f %%", p.Name, 100*p.Seconds/s)
			}
			b.Log(shares[2:])
		})
	}
}
