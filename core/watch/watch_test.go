package watch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/train"
)

// run tells w of two steps of a run, the second with all there is.
func run(w *Watch, out string) {
	cfg := &config.Config{Name: "nano"}
	cfg.Train.Out, cfg.Train.LogEvery = out, 2
	w.Began(&train.Beginning{Config: cfg, Step: 6, Steps: 20, Tokens: 600, Kernel: "avx2", Threads: 2})
	at := time.Unix(1_700_000_000, 0)
	phases := func(more ...train.Phase) []train.Phase {
		return append([]train.Phase{
			{Name: train.PhaseStep, From: at, To: at.Add(4)}, {Name: train.PhaseData, From: at, To: at.Add(1)}, {Name: train.PhaseForward, From: at.Add(1), To: at.Add(2)},
			{Name: train.PhaseBackward, From: at.Add(2), To: at.Add(3)}, {Name: train.PhaseOptimizer, From: at.Add(3), To: at.Add(4)},
		}, more...)
	}
	w.Stepped(&train.Metrics{Step: 7, Tokens: 700, Loss: 3, StepMS: 20}, phases())
	half := train.Number(0.5)
	w.Stepped(&train.Metrics{
		Step: 8, Tokens: 800, Loss: train.Number(math.NaN()), StepMS: 20, WaitMS: 3, Skipped: true, FlipRate: &half, ZeroFraction: &half, Cosine: &half, Gain: &half,
		Norms: map[string]train.Number{"matrix": 2}, Val: &train.Eval{BPB: 1.5, Nats: 3},
		Events: []train.Event{{Kind: train.LossSpike, Step: 8, Text: "loss is high"}},
	}, phases(train.Phase{Name: train.PhaseEvaluate, From: at.Add(4), To: at.Add(9)}))
	w.Saved(&train.Saving{Step: 8, Path: "ckpt", From: at, To: at.Add(time.Second)})
	w.Saved(&train.Saving{Step: 8, Err: errors.New("disk full"), From: at, To: at})
	w.Ended(&train.Result{Steps: 8}, errors.New("stopped"))
}

func TestEveryoneIsTold(t *testing.T) {
	var mu sync.Mutex
	var got []*spans.Span
	collect := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var m collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, m.ResourceSpans[0].ScopeSpans[0].Spans...)
	}))
	defer collect.Close()
	dir := t.TempDir()
	path := filepath.Join(dir, "logs", "x.jsonl")
	w, err := New(Options{
		MetricsAddr: "127.0.0.1:0", OTLP: collect.URL, LogFile: path, Version: "1", Model: "nano", Run: dir,
		Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
	})
	require.NoError(t, err)
	run(w, dir)
	res, err := http.Get("http://" + w.Addr() + "/metrics")
	require.NoError(t, err)
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	res.Body.Close()
	for _, line := range []string{
		`nanochat_train_step 8`, `nanochat_train_tokens_total 800`, `nanochat_train_loss NaN`, `nanochat_train_validation_bpb 1.5`, `nanochat_train_mhc_gain 0.5`,
		`nanochat_train_anomalies_total{kind="loss"} 1`, `nanochat_train_anomalies_total{kind="save"} 0`, `nanochat_train_checkpoints_total{result="failed"} 1`, `nanochat_train_checkpoint_step 8`,
		`nanochat_build_info{kernel="avx2",version="1"} 1`, `nanochat_train_skipped_steps_total 1`, `nanochat_train_step_duration_seconds_count 2`,
	} {
		require.Contains(t, string(text), line+"\n")
	}
	w.Close()
	_, err = http.Get("http://" + w.Addr() + "/metrics")
	require.Error(t, err, "it listens after Close")

	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var messages []string
	id, err := os.ReadFile(filepath.Join(dir, "run_id"))
	require.NoError(t, err)
	for l := range bytes.Lines(b) {
		var m map[string]any
		require.NoError(t, json.Unmarshal(l, &m), "%s", l)
		require.Equal(t, strings.TrimSpace(string(id)), m["run_id"])
		require.Equal(t, "nano", m["model_config"])
		require.Equal(t, "4bf92f3577b34da6a3ce929d0e0e4736", m["trace_id"])
		messages = append(messages, m["level"].(string)+" "+m["msg"].(string))
		if m["msg"] == "step" {
			require.Equal(t, 8., m["step"])
			require.Nil(t, m["loss"], "NaN is not JSON")
			require.Equal(t, 0.5, m["flip_rate"])
		}
	}
	require.Equal(t, []string{"INFO training began", "WARN loss is high", "INFO step", "INFO evaluation", "INFO checkpoint", "ERROR checkpoint", "ERROR training ended"}, messages)

	parents := map[string]string{}
	for _, s := range got {
		parents[string(s.SpanId)] = s.Name
	}
	var names []string
	for _, s := range got {
		parent := parents[string(s.ParentSpanId)]
		if s.Name != train.PhaseStep && s.Name != "checkpoint" {
			require.Equal(t, train.PhaseStep, parent, s.Name)
		} else {
			require.Equal(t, "\x00\xf0\x67\xaa\x0b\xa9\x02\xb7", string(s.ParentSpanId), s.Name)
		}
		names = append(names, s.Name)
	}
	require.Equal(t, []string{
		"data", "forward", "backward", "optimizer", "step", "data", "forward", "backward", "optimizer", "evaluation", "step", "checkpoint", "checkpoint",
	}, names)
	require.Zero(t, w.Dropped())

	// The next part of the run has its name, and its log goes on.
	again, err := New(Options{LogFile: path, Run: dir})
	require.NoError(t, err)
	run(again, dir)
	again.Close()
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(after, b))
	require.Equal(t, 2*len(messages), bytes.Count(after, id[:12]))
}

func TestNoOneIsTold(t *testing.T) {
	w, err := New(Options{})
	require.NoError(t, err)
	dir := t.TempDir()
	run(w, dir)
	w.Close()
	require.Zero(t, w.Dropped())
	require.Empty(t, w.Addr())
}

func TestRefused(t *testing.T) {
	busy, err := New(Options{MetricsAddr: "127.0.0.1:0"})
	require.NoError(t, err)
	defer busy.Close()
	for text, o := range map[string]Options{
		"address already in use":              {MetricsAddr: busy.Addr()},
		"choose another address":              {MetricsAddr: "nonsense"},
		"as in http://localhost:4318":         {OTLP: "localhost"},
		`OTLP endpoint "x" is not a URL of H`: {OTLP: "x", MetricsAddr: "127.0.0.1:0"},
	} {
		_, err := New(o)
		require.ErrorContains(t, err, text)
	}
}

// A log on a full disk and a collector that is gone lose what they are told, and count it.
func TestLossesAreCounted(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("no /dev/full")
	}
	w, err := New(Options{LogFile: "/dev/full", OTLP: "http://127.0.0.1:1", Run: t.TempDir()})
	require.NoError(t, err)
	run(w, t.TempDir())
	w.Close()
	require.EqualValues(t, 7+13, w.Dropped())
}
