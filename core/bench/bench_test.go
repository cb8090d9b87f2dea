package bench

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/tune"
)

// quick measures for too short a time to mean anything.
func quick() Options { return Options{Threads: []int{1, 2}, BatchTime: time.Millisecond} }

// needsLimits skips builds without C, which have no loops for the limits.
func needsLimits(t *testing.T) {
	t.Helper()
	if _, ok := kernels.Roofline(); !ok {
		_, err := MeasureRoofline(t.Context(), quick())
		require.ErrorIs(t, err, ErrNoLimits)
		_, err = MeasureKernels(t.Context(), quick())
		require.ErrorIs(t, err, ErrNoLimits)
		t.Skip(err)
	}
}

func TestRoofline(t *testing.T) {
	needsLimits(t)
	if testing.Short() {
		t.Skip("reads memory larger than the caches")
	}
	r, err := MeasureRoofline(t.Context(), quick())
	require.NoError(t, err)
	threads := map[int]int{}
	for _, p := range r.Peaks {
		threads[p.Threads]++
		require.NotEmpty(t, p.Instruction)
		require.Greater(t, p.GOPS.Median, 0.1, p.Instruction)
		require.LessOrEqual(t, p.GOPS.Min, p.GOPS.Median)
		require.GreaterOrEqual(t, p.GOPS.Max, p.GOPS.Median)
	}
	require.Equal(t, threads[1], threads[2])
	require.GreaterOrEqual(t, threads[1], 2)
	levels := map[string]int{}
	for _, p := range r.Reads {
		levels[p.Level]++
		require.Greater(t, p.GBs.Median, 0.05, p.Level)
	}
	require.Equal(t, 2, levels["DRAM"])
	require.Equal(t, 2, levels["L2"])
}

func TestKernels(t *testing.T) {
	needsLimits(t)
	ps := []product{
		{Shape: tune.Shape{Op: tune.TernaryGEMV, M: 64, K: 128, Group: 64, Batch: 1}, avx2: true},
		{Shape: tune.Shape{Op: tune.TernaryGEMM, M: 64, K: 128, Group: 128, Batch: 9}},
		{Shape: tune.Shape{Op: tune.DenseGEMV, M: 64, K: 128, Type: kernels.F16, Batch: 1}},
		{Shape: tune.Shape{Op: tune.DenseGEMM, M: 64, K: 128, Type: kernels.Q8_0, Batch: 3}},
		{Shape: tune.Shape{Op: tune.DenseGEMV, M: 1 << 14, K: 1 << 13, Type: kernels.F32, Batch: 1}}, // larger than MaxBytes
	}
	as := []attention{{4, 2, 32, 70, 3, kernels.KVF16}, {4, 4, 32, 70, 1, kernels.KVI8}}
	o := quick().withDefaults()
	o.MaxBytes = 1 << 20
	ks, err := measureKernels(t.Context(), o, ps, as)
	require.NoError(t, err)
	ops := map[string]int{}
	for _, k := range ks {
		ops[k.Op]++
		require.Positive(t, k.GOPS)
		require.Positive(t, k.LimitGOPS)
		require.InEpsilon(t, k.GOPS/k.LimitGOPS, k.Fraction, 1e-3)
		require.InDelta(t, min(k.PeakGOPS, k.ReadGOPS), k.LimitGOPS, 0)
		require.Positive(t, k.WeightBytes)
		require.Contains(t, []string{"compute", "memory"}, k.Bound)
	}
	require.Equal(t, 2, ops["ternary_gemm"])
	require.Equal(t, 4, ops["attention"])
	require.Equal(t, 2, ops["dense_gemv"], "the large one is left out")
	require.InDelta(t, 4*4*32*(68+69+70), as[0].ops(), 0)

	// The names that readers of the JSON rely on.
	b, err := json.Marshal(ks[0])
	require.NoError(t, err)
	var m map[string]any
	require.NoError(t, json.Unmarshal(b, &m))
	for _, key := range []string{"op", "kernel", "m", "k", "n", "threads", "gops", "limit_gops", "fraction_of_limit"} {
		require.Contains(t, m, key)
	}
}

func TestCancel(t *testing.T) {
	needsLimits(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	_, err := MeasureRoofline(ctx, quick())
	require.ErrorIs(t, err, why)
	_, err = MeasureKernels(ctx, quick())
	require.ErrorIs(t, err, why)
	_, err = MeasureModel(ctx, tiny(t))
	require.ErrorIs(t, err, why)
}

// tinyConfig is a model small enough for a test.
func tinyConfig() config.Model {
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN = 64, 2, 2, 2, 32, 128
	c.Vocab, c.Context, c.Group = 96, 64, 64
	return c
}

func tiny(t *testing.T) ModelOptions {
	t.Helper()
	c := tinyConfig()
	return ModelOptions{Name: "tiny", Threads: 2, Decode: 16, Open: func() (*model.Model, int64, func() error, error) {
		m, err := model.Init(t.Context(), c, 1, model.Options{})
		return m, 0, func() error { return nil }, err
	}}
}

func TestModel(t *testing.T) {
	var steps []string
	o := tiny(t)
	o.Progress = func(s string) { steps = append(steps, s) }
	m, err := MeasureModel(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, 63, m.Prefill.Tokens, "the default lowered to the context")
	require.Equal(t, 16, m.Decode.Tokens)
	for name, v := range map[string]float64{
		"prefill": m.Prefill.TokS, "decode": m.Decode.TokS, "ttft": m.TTFT, "load": m.Load,
		"model": float64(m.ModelBytes), "kv": float64(m.KVBytes), "bytes": float64(m.BytesPerToken), "parameters": float64(m.Parameters),
	} {
		require.Positive(t, v, name)
	}
	if _, err := os.Stat("/proc/self/status"); err == nil {
		require.Greater(t, m.RSS, int64(1<<20))
		require.GreaterOrEqual(t, m.RSSPeak, m.RSS)
	}
	require.NotEmpty(t, steps)

	// The names that readers of the JSON rely on stand at the top of a report.
	r := NewReport("1.2.3", "abc")
	r.Model = m
	b, err := json.Marshal(r)
	require.NoError(t, err)
	var top map[string]any
	require.NoError(t, json.Unmarshal(b, &top))
	for _, key := range []string{"prefill", "decode", "ttft_ms", "load_ms", "rss_bytes", "model_bytes", "kernel", "threads"} {
		require.Contains(t, top, key)
	}
	require.Contains(t, top["prefill"], "tok_s")
	require.Contains(t, top["decode"], "tok_s")
}

func TestModelErrors(t *testing.T) {
	why := errors.New("no such model")
	_, err := MeasureModel(t.Context(), ModelOptions{Open: func() (*model.Model, int64, func() error, error) { return nil, 0, nil, why }})
	require.ErrorIs(t, err, why)
	o := tiny(t)
	o.Prompt = 64
	_, err = MeasureModel(t.Context(), o)
	var ce *ContextError
	require.ErrorAs(t, err, &ce)
	require.Equal(t, &ContextError{"prompt", 64, 64}, ce)
	o.Prompt, o.Decode = 63, 100
	_, err = MeasureModel(t.Context(), o)
	require.ErrorAs(t, err, &ce)
	require.Equal(t, &ContextError{"answer", 100, 64}, ce)
}

func TestNoise(t *testing.T) {
	stat := "cpu  100 5 50 1000 20 3 2 10 0 0\ncpu0 1 2 3\n"
	self := "42 (a b) c) R 1 1 1 0 -1 4194560 100 0 0 0 70 30 0 0 20 0 8 0\n"
	got, ok := parseTicks(stat, self)
	require.True(t, ok)
	require.Equal(t, ticks{all: 1190, busy: 160, steal: 10, self: 100}, got)
	for _, bad := range [][2]string{{"", self}, {"cpu 1 2", self}, {"cpu a b c d e f g h", self}, {stat, "42 x"}, {stat, "42 (x) R 1"}} {
		_, ok := parseTicks(bad[0], bad[1])
		require.False(t, ok, bad)
	}
	done := NoiseMeter()
	for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); {
	}
	if n := done(); n != nil {
		require.GreaterOrEqual(t, n.Others, 0.0)
		require.LessOrEqual(t, n.Others, 100.0)
	}
}

func TestRound(t *testing.T) {
	require.InDelta(t, 1235.0, round(1234.9), 1e-9)
	require.InDelta(t, 0.001235, round(0.00123456), 1e-12)
	require.Zero(t, round(0))
	require.Equal(t, Spread{2, 1, 3}, spreadOf([]float64{3, 1, 2}))
	require.Equal(t, []string{"-", "1.23", "12.3", "123"}, []string{num(0), num(1.234), num(12.34), num(123.4)})
	require.True(t, strings.HasSuffix(size(3<<20), "MiB"))
}
