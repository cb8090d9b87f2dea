package server

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/telemetry"
)

// collect is an OTLP collector that keeps spans by name.
func collect(t *testing.T) (url string, got func() map[string]*spans.Span) {
	var mu sync.Mutex
	all := map[string]*spans.Span{}
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var m collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, s := range m.ResourceSpans[0].ScopeSpans[0].Spans {
			all[s.Name] = s
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, func() map[string]*spans.Span {
		mu.Lock()
		defer mu.Unlock()
		return all
	}
}

// A request that comes with a trace is answered within it: its spans lie below the
// client's and have the times of its parts, and its line of the log has the trace.
func TestTraceOfARequest(t *testing.T) {
	url, got := collect(t)
	tracer, err := telemetry.NewTracer(telemetry.TraceOptions{Endpoint: url, Service: "nanochat"})
	require.NoError(t, err)
	var out bytes.Buffer
	log := telemetry.NewLogger(&out, nil, telemetry.Attrs{RunID: "r", Model: "m"})
	metrics := telemetry.NewServing(telemetry.ServingOptions{})
	f := serve(t, Options{Tracer: tracer, Log: log.Logger, Metrics: metrics}, nil)

	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	r, err := http.NewRequest("POST", f.url+"/v1/completions", strings.NewReader(`{"prompt":"fn main","max_tokens":5,"ignore_eos":true}`))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Traceparent", "00-"+trace+"-"+parent+"-01")
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	res.Body.Close()
	require.Equal(t, 200, res.StatusCode, "%s", body)
	f.wait(t)
	tracer.Close()
	log.Close()

	all := got()
	root := all["POST /v1/completions"]
	require.NotNil(t, root, "%v", all)
	require.Equal(t, trace, hex.EncodeToString(root.TraceId))
	require.Equal(t, parent, hex.EncodeToString(root.ParentSpanId))
	at := root.StartTimeUnixNano
	for _, name := range []string{"queue", "prefill", "decode"} {
		s := all[name]
		require.NotNil(t, s, name)
		require.Equal(t, root.SpanId, s.ParentSpanId, name)
		require.LessOrEqual(t, at, s.StartTimeUnixNano, name)
		require.LessOrEqual(t, s.StartTimeUnixNano, s.EndTimeUnixNano, name)
		at = s.EndTimeUnixNano
	}
	require.LessOrEqual(t, at, root.EndTimeUnixNano)
	require.Zero(t, tracer.Dropped())

	found := false
	for l := range bytes.Lines(out.Bytes()) {
		var m map[string]any
		require.NoError(t, json.Unmarshal(l, &m), "%s", l)
		require.Equal(t, "r", m["run_id"])
		found = found || m["trace_id"] == trace
	}
	require.True(t, found, "no line of the log has the trace:\n%s", out.String())

	w := httptest.NewRecorder()
	metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, line := range []string{
		`nanochat_inference_requests_total{code="200",endpoint="/v1/completions",model="m"} 1`, `nanochat_active_requests 0`,
		`nanochat_time_to_first_token_seconds_count{model="m"} 1`, `nanochat_inter_token_latency_seconds_count{model="m"} 4`,
		`nanochat_tokens_generated_total{model="m"} 5`, `nanochat_streams_finished_total{model="m"} 1`, `nanochat_model_loaded{model="m"} 0`,
	} {
		require.Contains(t, w.Body.String(), line+"\n")
	}
}

// TestTelemetryOverhead compares answers of a server that shows everything to everyone with
// those of one that shows nothing, turn by turn. It runs with NANOCHAT_PROFILE=model.gguf.
func TestTelemetryOverhead(t *testing.T) {
	path := os.Getenv("NANOCHAT_PROFILE")
	if path == "" {
		t.Skip("NANOCHAT_PROFILE names no model to measure")
	}
	url, _ := collect(t)
	tracer, err := telemetry.NewTracer(telemetry.TraceOptions{Endpoint: url})
	require.NoError(t, err)
	defer tracer.Close()
	log := telemetry.NewLogger(io.Discard, nil, telemetry.Attrs{RunID: "r"})
	defer log.Close()
	models := func() []ModelSpec {
		return []ModelSpec{{Name: "m", Find: func(context.Context) (string, error) { return path, nil }, Options: chat.Options{HugePages: true}}}
	}
	off := serve(t, Options{Models: models()}, nil)
	on := serve(t, Options{Models: models(), Tracer: tracer, Log: log.Logger, Metrics: telemetry.NewServing(telemetry.ServingOptions{Process: true})}, nil)
	answer := func(f *fixture) float64 {
		at := time.Now()
		r, err := http.Post(f.url+"/v1/completions", "application/json",
			strings.NewReader(`{"prompt":"fn main() {","max_tokens":64,"ignore_eos":true,"temperature":1,"seed":1,"stream":true}`))
		require.NoError(t, err)
		defer r.Body.Close()
		n, err := io.Copy(io.Discard, r.Body)
		require.NoError(t, err)
		require.Greater(t, n, int64(1000))
		return time.Since(at).Seconds()
	}
	answer(off)
	answer(on)
	const rounds = 31
	var a, b, ratios []float64
	for range rounds {
		x, y := answer(off), answer(on)
		a, b, ratios = append(a, x), append(b, y), append(ratios, y/x)
	}
	for _, l := range [][]float64{a, b, ratios} {
		slices.Sort(l)
	}
	t.Logf("%d answers of 64 tokens: %.2f ms without telemetry (best %.2f), %.2f ms with (best %.2f); median of ratios %.4f, of the best %.4f",
		rounds, a[rounds/2]*1e3, a[0]*1e3, b[rounds/2]*1e3, b[0]*1e3, ratios[rounds/2], b[0]/a[0])
}
