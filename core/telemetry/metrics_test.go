package telemetry

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// fullServing is a server's metrics in which every metric has a value.
func fullServing(process bool) *Serving {
	s := NewServing(ServingOptions{Version: "1.2.3", Kernel: "avx2", Process: process})
	s.QueueCapacity(64)
	m := s.Model("nano")
	m.Loaded(2*time.Second, func() Engine {
		return Engine{Steps: 10, Generated: 7, PromptTokens: 100, CachedTokens: 40, Running: 3, Waiting: 2}
	})
	s.RequestStarted()
	m.Queued(time.Millisecond)
	m.FirstToken(20 * time.Millisecond)
	m.NextToken(3 * time.Millisecond)
	s.RequestFinished("/v1/chat/completions", "nano", 200, 120*time.Millisecond)
	s.RequestStarted()
	s.Rejected("queue_full")
	s.Cancelled("client_gone")
	s.UnknownField("logit_biass")
	return s
}

// fullTraining is a training's metrics in which every metric has a value.
func fullTraining(process bool) *Training {
	t := NewTraining(ServingOptions{Version: "1.2.3", Process: process, Dropped: func() int64 { return 3 }})
	t.Began("avx2", 4, 100, 4000)
	v := 0.5
	t.Stepped(&Step{
		Step: 5, Steps: 100, Tokens: 1000, Loss: 2, Norms: map[string]float64{"matrix": 1}, At: time.Unix(1, 0), Duration: time.Second, Wait: time.Millisecond,
		FlipRate: &v, ZeroFraction: &v, Similarity: &v, Gain: &v, ValidationBPB: &v, ValidationNats: &v, Skipped: true,
	})
	t.Anomaly("loss")
	t.Saved(5, true, time.Second)
	t.Saved(5, false, time.Second)
	return t
}

// get is the text of a scrape.
func get(t testing.TB, h http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// promtool runs Prometheus' checker on in.
func promtool(t *testing.T, in string, args ...string) {
	t.Helper()
	path := os.Getenv("NANOCHAT_PROMTOOL")
	if path == "" {
		t.Skip("NANOCHAT_PROMTOOL is not set: want promtool of Prometheus; `make test` sets it")
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("error")) {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestPromtoolFindsNothing(t *testing.T) {
	for name, h := range map[string]http.Handler{"serving": fullServing(true).Handler(), "training": fullTraining(true).Handler()} {
		t.Run(name, func(t *testing.T) { promtool(t, get(t, h), "check", "metrics") })
	}
}

// value finds a line of a scrape.
func value(t *testing.T, text, series string) string {
	t.Helper()
	for l := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(strings.TrimSuffix(l, "\n"), series+" "); ok {
			return rest
		}
	}
	return "none"
}

func TestServingValues(t *testing.T) {
	s := fullServing(false)
	check := func(want map[string]string) {
		t.Helper()
		text := get(t, s.Handler())
		for series, v := range want {
			if got := value(t, text, series); got != v {
				t.Errorf("%s is %s, want %s", series, got, v)
			}
		}
	}
	check(map[string]string{
		`nanochat_inference_requests_total{code="200",endpoint="/v1/chat/completions",model="nano"}`: "1",
		`nanochat_inference_latency_seconds_bucket{endpoint="/v1/chat/completions",le="0.1"}`:        "0",
		`nanochat_inference_latency_seconds_bucket{endpoint="/v1/chat/completions",le="0.25"}`:       "1",
		`nanochat_active_requests`:                                 "1",
		`nanochat_model_load_time_seconds{model="nano"}`:           "2",
		`nanochat_model_loaded{model="nano"}`:                      "1",
		`nanochat_time_to_first_token_seconds_count{model="nano"}`: "1",
		`nanochat_inter_token_latency_seconds_sum{model="nano"}`:   "0.003",
		`nanochat_queue_depth{model="nano"}`:                       "2",
		`nanochat_queue_capacity`:                                  "64",
		`nanochat_batch_size{model="nano"}`:                        "3",
		`nanochat_tokens_prompt_total{model="nano"}`:               "100",
		`nanochat_prefix_cache_tokens_total{model="nano"}`:         "40",
		`nanochat_tokens_generated_total{model="nano"}`:            "7",
		`nanochat_requests_cancelled_total{reason="client_gone"}`:  "1",
		`nanochat_requests_rejected_total{reason="queue_full"}`:    "1",
		`nanochat_unknown_fields_total{field="logit_biass"}`:       "1",
		`nanochat_build_info{kernel="avx2",version="1.2.3"}`:       "1",
	})
	// Counters go on over a model's unloading and another load; states do not.
	m := s.Model("nano")
	m.Unloaded()
	check(map[string]string{
		`nanochat_tokens_generated_total{model="nano"}`: "7", `nanochat_queue_depth{model="nano"}`: "0", `nanochat_model_loaded{model="nano"}`: "0",
	})
	m.Loaded(time.Second, func() Engine { return Engine{Generated: 5} })
	check(map[string]string{`nanochat_tokens_generated_total{model="nano"}`: "12", `nanochat_batch_size{model="nano"}`: "0"})
	m.Loaded(time.Second, func() Engine { panic("engine") })
	check(map[string]string{`nanochat_tokens_generated_total{model="nano"}`: "12"})
}

// The plan fixes the buckets of the latency.
func TestLatencyBuckets(t *testing.T) {
	text := get(t, fullServing(false).Handler())
	var got []string
	for _, m := range regexp.MustCompile(`nanochat_inference_latency_seconds_bucket\{.*le="([^"]+)"\}`).FindAllStringSubmatch(text, -1) {
		got = append(got, m[1])
	}
	if want := strings.Fields("0.001 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10 +Inf"); !slices.Equal(got, want) {
		t.Errorf("buckets %v, want %v", got, want)
	}
}

// Whatever clients send, the number of series stays bounded and the scrape valid.
func TestLabelsAreBounded(t *testing.T) {
	s := NewServing(ServingOptions{})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				hostile := fmt.Sprintf("%d-%d\xff\n\"%s", g, i, strings.Repeat("x", 100))
				s.UnknownField(hostile)
				s.Rejected(hostile)
				s.Cancelled(hostile)
				s.RequestStarted()
				s.RequestFinished(hostile, hostile, 200, 0)
				s.Model(hostile).FirstToken(0)
			}
		})
	}
	wg.Wait()
	text := get(t, s.Handler())
	if n := strings.Count(text, "nanochat_unknown_fields_total{"); n != 65 {
		t.Errorf("%d fields, want 64 and other", n)
	}
	if n := strings.Count(text, "\n"); n > 10000 {
		t.Errorf("%d lines", n)
	}
	if !strings.Contains(text, `nanochat_unknown_fields_total{field="other"} 3936`) {
		t.Error("what passed the bound is not counted as other")
	}
	t.Logf("RELIABILITY | requests with made-up names of fields, models and endpoints: the series of a scrape stay bounded | 4000 of each, %d lines | `core/telemetry TestLabelsAreBounded` |", strings.Count(text, "\n"))
	promtool(t, text, "check", "metrics")
}

func TestTrainingValues(t *testing.T) {
	text := get(t, fullTraining(false).Handler())
	for series, want := range map[string]string{
		`nanochat_train_step`: "5", `nanochat_train_steps_planned`: "100", `nanochat_train_tokens_total`: "5000", `nanochat_train_loss`: "2",
		`nanochat_train_class_gradient_norm{class="matrix"}`: "1", `nanochat_train_trit_flip_ratio`: "0.5", `nanochat_train_skipped_steps_total`: "1",
		`nanochat_train_validation_best_bpb`: "0.5", `nanochat_train_validation_step`: "5", `nanochat_train_anomalies_total{kind="loss"}`: "1",
		`nanochat_train_checkpoints_total{result="failed"}`: "1", `nanochat_train_checkpoint_step`: "5", `nanochat_telemetry_dropped_total`: "3",
	} {
		if got := value(t, text, series); got != want {
			t.Errorf("%s is %s, want %s", series, got, want)
		}
	}
	// What was not measured has no value, rather than 0.
	fresh := NewTraining(ServingOptions{})
	fresh.Began("k", 0, 10, 0)
	if text := get(t, fresh.Handler()); strings.Contains(text, "trit_flip_ratio ") || strings.Contains(text, "validation_bpb ") {
		t.Errorf("values that were never measured:\n%s", text)
	}
}

func TestNilMetrics(t *testing.T) {
	var s *Serving
	s.RequestStarted()
	s.RequestFinished("e", "m", 200, 1)
	s.Rejected("r")
	s.Cancelled("c")
	s.UnknownField("f")
	s.QueueCapacity(1)
	m := s.Model("m")
	m.Queued(1)
	m.FirstToken(1)
	m.NextToken(1)
	m.Loaded(1, nil)
	m.Unloaded()
	var tr *Training
	tr.Began("k", 1, 2, 3)
	tr.Stepped(&Step{})
	tr.Anomaly("k")
	tr.Saved(1, true, 1)
	for _, h := range []http.Handler{s.Handler(), tr.Handler()} {
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil)); w.Code != 404 {
			t.Errorf("status %d of metrics that are off", w.Code)
		}
	}
}

// busyServing is a server with 4 models and 1,000 requests under way.
func busyServing() *Serving {
	s := fullServing(true)
	for i := range 4 {
		m := s.Model(fmt.Sprint("model", i))
		m.Loaded(1, func() Engine { return Engine{Running: 250, Generated: 1e6} })
		for range 250 {
			s.RequestStarted()
			m.FirstToken(1e6)
			m.NextToken(1e6)
		}
		for _, e := range []string{"/v1/completions", "/v1/embeddings", "/tokenize"} {
			for code := 200; code < 520; code += 40 {
				s.RequestStarted()
				s.RequestFinished(e, m.name, code, 1e6)
			}
		}
	}
	return s
}

func TestScrapeIsFast(t *testing.T) {
	h := busyServing().Handler()
	best := time.Hour
	for range 20 {
		began := time.Now()
		get(t, h)
		best = min(best, time.Since(began))
	}
	if best > scrapeLimit {
		t.Errorf("a scrape takes %v at best, want %v", best, scrapeLimit)
	}
}

func BenchmarkScrape(b *testing.B) {
	h := busyServing().Handler()
	b.ReportMetric(float64(len(get(b, h))), "bytes")
	for b.Loop() {
		get(b, h)
	}
}

func BenchmarkToken(b *testing.B) {
	m := NewServing(ServingOptions{}).Model("m")
	for b.Loop() {
		m.NextToken(3 * time.Millisecond)
	}
}

// names is every metric of a registry: name to help.
func names(r *prometheus.Registry) map[string]string {
	descs := make(chan *prometheus.Desc, 1000)
	r.Describe(descs)
	close(descs)
	out, re := map[string]string{}, regexp.MustCompile(`fqName: "([^"]+)", help: "([^"]*)"`)
	for d := range descs {
		if m := re.FindStringSubmatch(d.String()); m != nil {
			out[m[1]] = m[2]
		}
	}
	return out
}
