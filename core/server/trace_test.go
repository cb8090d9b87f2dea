package server

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/telemetry"
)

// TestSpans: a request has spans of its parts, in the trace that the client began.
func TestSpans(t *testing.T) {
	var mu sync.Mutex
	var got bytes.Buffer
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		io.Copy(&got, r.Body)
	}))
	defer collector.Close()
	tracer, err := telemetry.NewTracer(telemetry.TraceOptions{Endpoint: collector.URL, Service: "test"})
	require.NoError(t, err)
	f := serve(t, Options{Tracer: tracer}, nil)
	req, err := http.NewRequest("POST", f.url+"/v1/completions", strings.NewReader(`{"prompt":"a","max_tokens":3,"ignore_eos":true}`))
	require.NoError(t, err)
	req.Header.Set("Traceparent", "00-0102030405060708090a0b0c0d0e0f10-a1a2a3a4a5a6a7a8-01")
	r, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	r.Body.Close()
	require.Equal(t, 200, r.StatusCode)
	f.wait(t)
	tracer.Close()
	mu.Lock()
	defer mu.Unlock()
	for _, name := range []string{"POST /v1/completions", "queue", "prefill", "decode", "request_id", "prompt_tokens"} {
		require.Contains(t, got.String(), name)
	}
	id := "\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10"
	require.GreaterOrEqual(t, strings.Count(got.String(), id), 4, "all are in the client's trace")
	require.Zero(t, tracer.Dropped())
}

// TestCollectorThatDoesNotAnswer: requests do not wait for it.
func TestCollectorThatDoesNotAnswer(t *testing.T) {
	hold := make(chan struct{})
	collector := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hold }))
	defer collector.Close()
	defer close(hold)
	tracer, err := telemetry.NewTracer(telemetry.TraceOptions{Endpoint: collector.URL})
	require.NoError(t, err)
	defer tracer.Close()
	f := serve(t, Options{Tracer: tracer}, nil)
	begin := time.Now()
	for range 50 {
		f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":1}`)
	}
	require.Less(t, time.Since(begin), 5*time.Second, "one wait for the collector takes as long")
}

// TestCounts: what happens is counted under names that clients cannot make up.
func TestCounts(t *testing.T) {
	f := serve(t, Options{Metrics: telemetry.NewServing(telemetry.ServingOptions{})}, nil)
	f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":5,"ignore_eos":true,"strange":1}`)
	f.post(t, "/v1/completions", `{"prompt":"a","max_tokens":5000}`)
	f.post(t, "/v1/completions", `{"prompt":"a","model":"made-up"}`)
	f.get(t, "GET", "/made/up/path")
	b, err := io.ReadAll(f.get(t, "GET", "/metrics").Body)
	require.NoError(t, err)
	for _, line := range []string{
		`nanochat_inference_requests_total{code="200",endpoint="/v1/completions",model="m"} 1`,
		`nanochat_inference_requests_total{code="400",endpoint="/v1/completions",model="m"} 1`,
		`nanochat_inference_requests_total{code="404",endpoint="/v1/completions",model=""} 1`,
		`nanochat_inference_requests_total{code="404",endpoint="other",model=""} 1`,
		`nanochat_tokens_generated_total{model="m"} 5`,
		`nanochat_time_to_first_token_seconds_count{model="m"} 1`,
		`nanochat_inter_token_latency_seconds_count{model="m"} 4`,
		`nanochat_unknown_fields_total{field="strange"} 1`,
		`nanochat_model_loaded{model="m"} 1`,
		`nanochat_requests_rejected_total{reason="model_not_found"} 1`,
	} {
		require.Contains(t, string(b), line+"\n")
	}
	require.NotContains(t, string(b), "made-up")
	require.NotContains(t, string(b), "made/up")
}
