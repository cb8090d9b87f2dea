package bench

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/model"
)

func TestStreams(t *testing.T) {
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN = 64, 1, 2, 2, 32, 64
	c.Vocab, c.Context, c.Group = 64, 1<<15, 64 // long: a stream must not end while another has not begun
	o := StreamsOptions{ModelOptions: ModelOptions{Name: "little", Threads: 1, Prompt: 200, Decode: 20, Open: func() (*model.Model, int64, func() error, error) {
		m, err := model.Init(t.Context(), c, 1, model.Options{})
		return m, 0, func() error { return nil }, err
	}}, Streams: 3}
	r, err := MeasureStreams(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, []int{3, 1, 20, 200, 8}, []int{r.Streams, r.Threads, r.Tokens, r.Prompt, r.Writing})
	for _, s := range []Spread{r.One, r.All, r.Ratio, r.TTFT, r.Median} {
		require.Positive(t, s.Min)
		require.LessOrEqual(t, s.Min, s.Median)
		require.LessOrEqual(t, s.Median, s.Max)
	}
	require.Positive(t, r.Gap.Min)
	require.GreaterOrEqual(t, r.Idle.Min, 1.0)

	doc, err := Markdown("<!-- begin machine -->\n<!-- end machine -->\n<!-- begin streams -->\n<!-- end streams -->", &Report{Format: Format, Together: r})
	require.NoError(t, err)
	require.Contains(t, doc, "| little |       1 |       3 |")
	var text strings.Builder
	require.NoError(t, (&Report{Together: r}).Text(&text))
	require.Contains(t, text.String(), "largest gap")

	report := &Report{Together: r}
	require.Len(t, Compare(report, report), 4)
	require.Empty(t, report.Targets())
	wanted := *r
	wanted.Name, wanted.Streams, wanted.Ratio.Median, wanted.Gap.Median = "nano-125m", 16, 2.5, 4.1
	ts := (&Report{Together: &wanted}).Targets()
	require.Len(t, ts, 2)
	require.True(t, ts[0].Reached)
	require.False(t, ts[1].Reached)

	o.Streams = 1
	_, err = MeasureStreams(t.Context(), o)
	require.ErrorContains(t, err, "1 streams")
	o.Streams, o.Prompt = 2, c.Context
	_, err = MeasureStreams(t.Context(), o)
	var ce *ContextError
	require.ErrorAs(t, err, &ce)
	o.Prompt = 10
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = MeasureStreams(ctx, o)
	require.ErrorIs(t, err, context.Canceled)
}
