package model

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

func TestWeightStats(t *testing.T) {
	c := small()
	c.TieEmbeddings = false
	tr := newTrainer(t, c, 1, TrainOptions{Tokens: 8})
	params := map[string][]float32{}
	for _, p := range tr.Params() {
		params[p.Name] = p.W
	}
	// A dead output, and an embedding whose first row is three times as long as any.
	const name = "blk.1.ffn_down.weight"
	clear(params[name][c.FFN : 2*c.FFN])
	embed, largest := params["token_embd.weight"], 0.0
	for r := range c.Vocab {
		s := 0.0
		for _, v := range embed[r*c.Dim : (r+1)*c.Dim] {
			s += float64(v) * float64(v)
		}
		largest = max(largest, math.Sqrt(s/float64(c.Dim)))
	}
	for i := range c.Dim {
		embed[i] = float32(3 * largest)
	}
	require.NoError(t, tr.Refresh())
	s, err := tr.WeightStats(t.Context())
	require.NoError(t, err)
	require.Len(t, s.Dense, 2)
	require.Equal(t, "token_embd.weight", s.Dense[0].Name)
	require.Equal(t, "output.weight", s.Dense[1].Name)
	require.InEpsilon(t, 3*largest, s.Dense[0].Max, 0.02) // stored in few bits
	require.Less(t, s.Dense[0].Median, largest)
	require.Len(t, s.Projections, len(tr.Projections()))
	for i, p := range s.Projections {
		w := tr.Projections()[i]
		require.Equal(t, []int{w.Rows, w.Cols}, []int{p.Rows, p.Cols}, p.Name)
		require.InDelta(t, 1, p.Minus+p.Zero+p.Plus, 1e-12)
		require.InDelta(t, p.Minus, p.Plus, 0.1)
		require.Greater(t, p.Zero, 0.2)
		require.LessOrEqual(t, p.ScaleMin, p.ScaleMedian)
		require.LessOrEqual(t, p.ScaleMedian, p.ScaleMax)
		require.Greater(t, *p.Near, 0.01) // normal weights: about 0.1·2·density at the half scale
		require.Less(t, *p.Near, 0.15)
		dead := 0
		if p.Name == name {
			dead = 1
		}
		require.Equal(t, dead, p.DeadRows, p.Name)
	}
	m, err := tr.Model().WeightStats(t.Context())
	require.NoError(t, err)
	require.Nil(t, m.Projections[0].Near)
	require.Equal(t, s.Dense, m.Dense)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = tr.WeightStats(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

// Equal streams at the start, different ones where the mixing is random; and the
// same numbers as from the streams of the very model that inference has.
func TestStreamStats(t *testing.T) {
	tm := team.New(2, team.Options{})
	defer tm.Close()
	for _, n := range []int{1, 2, 4} {
		c := small()
		c.Streams, c.MHC, c.MHCDynamic, c.SinkhornIters = n, config.MHCBvN, n == 4, 20
		ids := text(c, 20)
		fresh, err := NewTrainer(c, TrainOptions{Tokens: 1, Team: tm})
		require.NoError(t, err)
		fresh.Init(3)
		require.NoError(t, fresh.Refresh())
		m := fresh.Model()
		start, err := m.StreamStats(tm, ids)
		require.NoError(t, err)
		require.Len(t, start, 2*c.Layers+1)
		for _, s := range start {
			require.InDelta(t, 1, s.Similarity, 1e-5)
			require.InDelta(t, 1, s.EffectiveRank, 1e-2)
			require.Greater(t, s.RMS, 0.0)
		}
		require.Equal(t, "output", start[2*c.Layers].Part)
		require.Nil(t, start[2*c.Layers].Mixing)
		embedding := 0.0
		row := make([]float32, c.Dim)
		for _, id := range ids {
			m.set.DenseRow(row, &m.embed, int(id))
			for _, v := range row {
				embedding += float64(v) * float64(v) / float64(len(ids)*c.Dim)
			}
		}
		require.InEpsilon(t, embedding, start[0].RMS*start[0].RMS, 1e-5)
		if n == 1 {
			require.Nil(t, start[0].Mixing)
			continue
		}
		for i, s := range start[:2*c.Layers] {
			require.Equal(t, i/2, s.Layer)
			require.Greater(t, s.Mixing.Kept, 0.9)
			require.InDelta(t, 1, s.Mixing.Post[0], 1e-6)
			require.Greater(t, s.Mixing.Pre[s.Layer%n], 0.8)
		}

		tr := newTrainer(t, c, 2, TrainOptions{Tokens: 40})
		_, ok := tr.StreamCosine()
		require.False(t, ok)
		moved, err := tr.Model().StreamStats(tm, ids)
		require.NoError(t, err)
		require.Less(t, moved[2*c.Layers].Similarity, 0.999)
		require.Greater(t, moved[2*c.Layers].EffectiveRank, 1.01)
		require.Equal(t, c.MHCDynamic, moved[1].Mixing.Spread > 0)
		b := &TrainBatch{Rows: 1, SeqLen: 20, Tokens: ids, Targets: make([]int32, 20), Starts: make([]int32, 20)}
		_, err = tr.Evaluate(b)
		require.NoError(t, err)
		cosine, ok := tr.StreamCosine() // of every token, for there are few; behind layers, not in front of them
		require.True(t, ok)
		want := 0.0
		for i := 1; i < c.Layers; i++ {
			want += moved[2*i].Similarity / float64(c.Layers)
		}
		want += moved[2*c.Layers].Similarity / float64(c.Layers)
		require.InDelta(t, want, cosine, 1e-6)
	}
}

func TestRandomTokens(t *testing.T) {
	m := initModel(t, small(), 3, kernels.Best())
	ids := m.RandomTokens(4000, 9)
	require.Equal(t, ids[:10], m.RandomTokens(10, 9))
	require.NotEqual(t, ids[:10], m.RandomTokens(10, 8))
	seen := map[int32]bool{}
	for _, id := range ids {
		seen[id] = true
	}
	require.Len(t, seen, m.cfg.Vocab)
}

func TestStreamStatsRejects(t *testing.T) {
	tm := team.New(1, team.Options{})
	defer tm.Close()
	c := small()
	m := initModel(t, c, 3, kernels.Best())
	_, err := m.StreamStats(tm, make([]int32, c.Context+1))
	var long *ContextError
	require.ErrorAs(t, err, &long)
	_, err = m.StreamStats(tm, nil)
	require.Error(t, err)
	_, err = m.StreamStats(tm, []int32{int32(c.Vocab)})
	require.ErrorContains(t, err, "vocabulary")
}

// A foreign model with dense projections has no trits to describe.
func TestWeightStatsOfDense(t *testing.T) {
	m := initModel(t, small(), 3, kernels.Best())
	before, err := m.WeightStats(t.Context())
	require.NoError(t, err)
	l := &m.layers[0].q
	values := make([]float32, l.ternary.Rows*l.ternary.Cols)
	require.NoError(t, ternary.Dequantize(values, l.ternary))
	l.dense = &kernels.Dense{Rows: l.ternary.Rows, Cols: l.ternary.Cols, Type: kernels.F32, Data: kernels.F32Bytes(values)}
	l.ternary = nil
	after, err := m.WeightStats(t.Context())
	require.NoError(t, err)
	require.Equal(t, before.Projections[1:], after.Projections)
	require.Len(t, after.Dense, len(before.Dense)+1)
	require.Greater(t, after.Dense[1].Min, 0.0)
	require.Equal(t, gguf.F32, gguf.Type(l.dense.Type))
}
