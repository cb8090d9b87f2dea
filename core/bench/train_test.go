package bench

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
)

// littleTraining is a network that trains in a blink.
func littleTraining(t *testing.T) *config.Config {
	c, err := config.Parse("test", []byte(`
name = "little"
[model]
dim = 64
layers = 2
heads = 2
ffn = 128
vocab = 96
context = 64
[train]
rows = 4
micro_rows = 2
seq_len = 32
`))
	require.NoError(t, err)
	return c
}

func TestTrain(t *testing.T) {
	for _, only := range []bool{false, true} {
		r, err := MeasureTrain(t.Context(), TrainOptions{Name: "little", Config: littleTraining(t), ForwardBackward: only, Threads: 2})
		require.NoError(t, err)
		require.Greater(t, r.TokS.Median, 0.0)
		require.Equal(t, !only, r.Update)
		require.Equal(t, map[bool]int{false: 4, true: 2}[only], r.Rows)
		shares, names := 0.0, map[string]bool{}
		for _, p := range r.Parts {
			shares += p.Share
			names[p.Name] = true
		}
		require.InDelta(t, 1, shares, 0.02)
		require.True(t, names["weight gradients"] && names["head"] && names["attention backward"])
		require.Equal(t, !only, names["optimizer"])
		require.Equal(t, !only, r.Optimizer.State > 0)
		if r.MFU != nil {
			require.Greater(t, r.Peak.Median, 0.0)
			require.Greater(t, r.MFU.Median, 0.0)
			require.Less(t, r.MFU.Median, 1.0)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := MeasureTrain(ctx, TrainOptions{Config: littleTraining(t), Threads: 1})
	require.ErrorIs(t, err, context.Canceled)
}

// The count of a token by hand: two layers of 4·64² and 3·64·128 weights (SwiGLU) and
// a head of 96·64; 16.5 pairs of 64 elements, 12 operations each, in two layers.
func TestFLOPsPerToken(t *testing.T) {
	c := littleTraining(t)
	require.InDelta(t, 6*(2*(4*64*64+3*64*128)+96*64)+12*2*64*16.5, flopsPerToken(c.Model, 32), 1e-6)
}
