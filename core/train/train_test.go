package train

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/model"
)

func readAll(t testing.TB, fsys fsx.FS, path string) []byte {
	b, err := fsx.ReadFile(fsys, path, 1<<30)
	require.NoError(t, err)
	return b
}

// lines is the metrics file, with what depends on time left out.
func lines(t testing.TB, fsys fsx.FS) []map[string]any {
	var out []map[string]any
	for _, l := range bytes.Split(bytes.TrimSuffix(readAll(t, fsys, "run/metrics.jsonl"), []byte("\n")), []byte("\n")) {
		var m map[string]any
		require.NoError(t, json.Unmarshal(l, &m), "%s", l)
		for _, key := range []string{"tok_s", "mfu", "data_wait_ms", "step_ms"} {
			require.Contains(t, m, key)
			delete(m, key)
		}
		if v, ok := m["val"].(map[string]any); ok {
			delete(v, "seconds")
		}
		out = append(out, m)
	}
	return out
}

func TestRun(t *testing.T) {
	dir, fsys := prepared(t), fsx.NewCrash(1)
	var log bytes.Buffer
	var seen []int
	res, err := train(t, settings(t, dir), fsys, func(o *Options) {
		o.Log = &log
		o.Progress = func(p *Progress) { seen = append(seen, p.Step) }
	})
	require.NoError(t, err)
	t.Log(log.String())
	require.Equal(t, 12, res.Steps)
	require.EqualValues(t, 12*4*32, res.Tokens)
	require.Equal(t, "run/model.gguf", res.Model)
	require.NotNil(t, res.Val)
	require.Len(t, seen, 12)
	all := lines(t, fsys)
	require.Len(t, all, 12)
	first, last := all[0], all[11]
	require.InDelta(t, 5.6, first["ce"], 0.1) // ln 272
	require.Less(t, last["ce"], 5.3)
	for i, m := range all {
		require.EqualValues(t, i+1, m["step"])
		_, evaluated := m["val"]
		require.Equal(t, (i+1)%5 == 0 || i == 11, evaluated, "step %d", i+1)
	}
	require.NotEmpty(t, readAll(t, fsys, "run/best.gguf"))
	require.Contains(t, string(readAll(t, fsys, "run/config.toml")), "seq_len = 32")
}

// keep is an option that makes networks by make and notes their weights in to.
func keep(to map[string][]float32, make func(*run) (network, error)) func(*Options) {
	return func(o *Options) {
		o.hooks.network = func(r *run) (network, error) {
			n, err := make(r)
			if err == nil {
				for _, p := range n.Params() {
					to[p.Name] = p.W
				}
			}
			return n, err
		}
	}
}

// A run that is cut off after any number of steps and resumed is the run that was not.
func TestResume(t *testing.T) {
	dir := prepared(t)
	for name, make := range map[string]func(*run) (network, error){"fake": newFake, "real": newNetwork} {
		t.Run(name, func(t *testing.T) {
			stops := []int{1, 4, 5, 6, 11}
			if name == "real" {
				stops = []int{5, 7}
			}
			whole := fsx.NewCrash(1)
			weights := map[string][]float32{}
			want, err := train(t, settings(t, dir), whole, keep(weights, make))
			require.NoError(t, err)
			for _, at := range stops {
				fsys := fsx.NewCrash(1)
				ctx, cancel := context.WithCancel(context.Background())
				o := Options{FS: fsys, Progress: func(p *Progress) {
					if p.Step == at {
						cancel()
					}
				}, hooks: hooks{network: make}}
				res, err := Run(ctx, settings(t, dir), o)
				require.ErrorIs(t, err, context.Canceled)
				require.Equal(t, at, res.Steps)
				got := map[string][]float32{}
				res, err = train(t, settings(t, dir, "train.threads=2"), fsys, keep(got, make))
				require.NoError(t, err, "stopped after %d", at)
				require.Equal(t, at, res.Resumed)
				require.Equal(t, weights, got, "stopped after %d", at)
				require.Equal(t, lines(t, whole), lines(t, fsys))
				require.Equal(t, want.Best, res.Best)
			}
		})
	}
}

// An interrupt in the middle of an evaluation loses neither the step nor its evaluation.
func TestInterruptedEvaluation(t *testing.T) {
	dir := prepared(t)
	whole := fsx.NewCrash(1)
	weights := map[string][]float32{}
	want, err := train(t, settings(t, dir), whole, keep(weights, newFake))
	require.NoError(t, err)
	fsys := fsx.NewCrash(1)
	ctx, cancel := context.WithCancel(context.Background())
	res, err := Run(ctx, settings(t, dir), Options{FS: fsys, Peak: 1e12, hooks: hooks{network: func(r *run) (network, error) {
		n, err := newFake(r)
		return &interrupting{n, cancel}, err
	}}})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 5, res.Steps)
	require.Nil(t, res.Val)
	require.Len(t, lines(t, fsys), 4)
	got := map[string][]float32{}
	res, err = train(t, settings(t, dir), fsys, keep(got, newFake))
	require.NoError(t, err)
	require.Equal(t, weights, got)
	require.Equal(t, lines(t, whole), lines(t, fsys))
	require.Equal(t, want.Best, res.Best)
	require.Equal(t, want.BestStep, res.BestStep)
}

// interrupting is a network whose evaluation is interrupted.
type interrupting struct {
	network
	cancel func()
}

func (n *interrupting) Evaluate(b *model.TrainBatch) (model.LossSum, error) {
	n.cancel()
	return n.network.Evaluate(b)
}

// The float twin of a model is trained alike, and has no file; a network of several
// streams tells how alike they are.
func TestTwinAndStreams(t *testing.T) {
	dir := prepared(t)
	real := func(o *Options) { o.hooks.network = newNetwork }
	fsys := fsx.NewCrash(1)
	res, err := train(t, settings(t, dir, "train.float=true", "train.steps=6"), fsys, real)
	require.NoError(t, err)
	require.Empty(t, res.Model)
	m := lines(t, fsys)[5]
	require.NotContains(t, m, "flip_rate")
	require.NotContains(t, m, "stream_cosine")
	require.NotContains(t, m, "mhc_norms")
	require.Less(t, m["ce"], 5.5)
	_, err = train(t, settings(t, dir, "train.steps=6"), fsys, real)
	require.ErrorContains(t, err, "train.float: is false, but the run began with true")

	fsys = fsx.NewCrash(1)
	_, err = train(t, settings(t, dir, "model.streams=2", "train.steps=6", "train.recompute=true", "train.f32=true"), fsys, real)
	require.NoError(t, err)
	m = lines(t, fsys)[5]
	require.Contains(t, m, "flip_rate")
	require.Contains(t, m, "zero_fraction")
	require.InDelta(t, 0.5, m["stream_cosine"], 0.5)
	// The norms of the tensors are the parts of that of their class.
	sum := 0.0
	for name, v := range m["mhc_norms"].(map[string]any) {
		require.Contains(t, name, ".mhc_")
		sum += v.(float64) * v.(float64)
	}
	require.InEpsilon(t, m["norms"].(map[string]any)["mhc"], math.Sqrt(sum), 1e-4)
	require.NotEmpty(t, readAll(t, fsys, "run/model.gguf"))
}
