package telemetry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// receiver is an OTLP collector that keeps what it gets.
type receiver struct {
	*httptest.Server
	mu    sync.Mutex
	spans map[string]*spans.Span
	attrs map[string]string // of the resource
	heads []http.Header
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{spans: map[string]*spans.Span{}, attrs: map[string]string{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		var m collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(b, &m); err != nil || q.URL.Path != "/v1/traces" || q.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s %v: %v", q.URL, q.Header, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.heads = append(r.heads, q.Header)
		for _, rs := range m.ResourceSpans {
			for _, a := range rs.Resource.Attributes {
				r.attrs[a.Key] = a.Value.GetStringValue()
			}
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					r.spans[s.Name] = s
				}
			}
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func TestSpansArrive(t *testing.T) {
	r := newReceiver(t)
	tr, err := NewTracer(TraceOptions{
		Endpoint: r.URL, Service: "nanochat", Version: "1", Run: Attrs{RunID: "r1", Model: "nano"}, Headers: map[string]string{"Api-Key": "k"},
	})
	if err != nil {
		t.Fatal(err)
	}
	in := http.Header{"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, "Tracestate": {"a=b"}}
	ctx := tr.Extract(context.Background(), in)
	ctx, request := tr.StartRequest(ctx, "request", slog.String("model", "nano"), slog.Int("n", 3), slog.Bool("stream", true), slog.Float64("t", 0.5))
	if got := TraceID(ctx); got != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("trace %s", got)
	}
	from := time.Unix(1700000000, 5)
	tr.Record(ctx, "queue", from, from.Add(time.Second))
	_, decode := tr.Start(ctx, "decode")
	decode.Fail(errors.New("broken"))
	decode.Fail(nil)
	decode.Event("token", slog.Int("id", 7))
	decode.End()
	request.Set(slog.Int("tokens", 12))
	request.End()
	out := http.Header{}
	tr.Inject(ctx, out)
	if p := out.Get("Traceparent"); !strings.HasPrefix(p, "00-4bf92f3577b34da6a3ce929d0e0e4736-") {
		t.Errorf("traceparent %q", p)
	}
	tr.Close()
	_, late := tr.Start(context.Background(), "late")
	late.End()
	if tr.Dropped() != 1 {
		t.Errorf("%d dropped, want the one after Close", tr.Dropped())
	}
	if r.attrs["service.name"] != "nanochat" || r.attrs["run_id"] != "r1" || r.attrs["model_config"] != "nano" || r.heads[0].Get("Api-Key") != "k" {
		t.Errorf("resource %v, headers %v", r.attrs, r.heads[0])
	}
	root, queue, dec := r.spans["request"], r.spans["queue"], r.spans["decode"]
	if len(r.spans) != 3 || root == nil || queue == nil || dec == nil {
		t.Fatalf("spans %v", r.spans)
	}
	if string(root.ParentSpanId) != "\x00\xf0\x67\xaa\x0b\xa9\x02\xb7" || root.Kind != spans.Span_SPAN_KIND_SERVER || root.TraceState != "a=b" || root.Flags&1 == 0 {
		t.Errorf("root %v", root)
	}
	if len(root.Attributes) != 5 || root.Attributes[1].Value.GetIntValue() != 3 || !root.Attributes[2].Value.GetBoolValue() ||
		root.Attributes[3].Value.GetDoubleValue() != 0.5 || root.Attributes[4].Value.GetIntValue() != 12 {
		t.Errorf("attributes %v", root.Attributes)
	}
	if string(queue.ParentSpanId) != string(root.SpanId) || string(queue.TraceId) != string(root.TraceId) ||
		queue.StartTimeUnixNano != 1700000000_000000005 || queue.EndTimeUnixNano != 1700000001_000000005 {
		t.Errorf("queue %v", queue)
	}
	if dec.Status.GetCode() != spans.Status_STATUS_CODE_ERROR || dec.Status.Message != "broken" || len(dec.Events) != 2 || dec.Events[1].Name != "token" {
		t.Errorf("decode %v", dec)
	}
}

// A client that says that its trace is not kept is obeyed.
func TestUnsampledTracesAreNotSent(t *testing.T) {
	r := newReceiver(t)
	tr, err := NewTracer(TraceOptions{Endpoint: r.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx := tr.Extract(context.Background(), http.Header{"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"}})
	_, s := tr.Start(ctx, "not kept")
	s.End()
	tr.Close()
	if len(r.spans) != 0 || tr.Dropped() != 0 {
		t.Errorf("%v arrived, %d dropped", r.spans, tr.Dropped())
	}
	// Headers that are none give a new trace.
	for _, bad := range []string{"", "00", "00-0-0-0", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", strings.Repeat("0", 1<<20), "\xff\x00"} {
		if id := TraceID(tr.Extract(context.Background(), http.Header{"Traceparent": {bad}})); id != "" {
			t.Errorf("%.20q is trace %s", bad, id)
		}
	}
}

// A collector that is not there, or accepts and never answers, holds up nothing.
func TestUnreachableCollector(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	refusing, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := refusing.Addr().String()
	refusing.Close()
	failing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }))
	defer failing.Close()
	for name, url := range map[string]string{"silent": "http://" + silent.Addr().String(), "nobody": "http://" + gone, "failing": failing.URL, "no such host": "http://collector.invalid:4318"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const n = 20_000
			tr, err := NewTracer(TraceOptions{Endpoint: url})
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			for range n {
				_, s := tr.Start(context.Background(), "x")
				s.End()
			}
			if d := time.Since(began); d > 2*time.Second {
				t.Errorf("%d spans took %v", n, d)
			}
			began = time.Now()
			tr.Close()
			if d := time.Since(began); d > 2*time.Second {
				t.Errorf("Close took %v", d)
			}
			for wait := 0; tr.Dropped() < n && wait < 200; wait++ { // what was under way ends soon after
				time.Sleep(10 * time.Millisecond)
			}
			if got := tr.Dropped(); got != n {
				t.Errorf("%d of %d spans counted as dropped", got, n)
			}
			t.Logf("RELIABILITY | spans to a collector that cannot be reached (%s): none delays its maker, all are counted | %d of %d | `core/telemetry TestUnreachableCollector` |", name, tr.Dropped(), n)
		})
	}
}

// An endpoint is where the collector is, not where it takes traces; both are understood.
func TestTracerEndpoints(t *testing.T) {
	for endpoint, want := range map[string]string{
		"http://c:4318": "http://c:4318/v1/traces", "http://c:4318/": "http://c:4318/v1/traces", "https://c/otlp": "https://c/otlp/v1/traces",
		"https://c/otlp/?a=b": "https://c/otlp/v1/traces?a=b", "http://c/v1/traces": "http://c/v1/traces",
	} {
		tr, err := NewTracer(TraceOptions{Endpoint: endpoint})
		if err != nil || tr.export.url != want {
			t.Errorf("%s: %v, want %s", endpoint, err, want)
		}
		tr.Close()
	}
}

func TestTracerRejectsEndpoints(t *testing.T) {
	for _, bad := range []string{"", "localhost:4318", "ftp://x", "http://", ":", "http://[::1"} {
		if _, err := NewTracer(TraceOptions{Endpoint: bad}); err == nil || !strings.Contains(err.Error(), "as in http://localhost:4318") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestNilTracer(t *testing.T) {
	var tr *Tracer
	ctx, s := tr.Start(context.Background(), "x")
	s.Set(slog.Int("a", 1))
	s.Event("e")
	s.Fail(errors.New("x"))
	s.End()
	s.EndAt(time.Now())
	_, s = tr.StartRequest(ctx, "y")
	s.End()
	tr.Record(ctx, "z", time.Now(), time.Now())
	tr.Inject(ctx, http.Header{})
	tr.Close()
	if TraceID(ctx) != "" || tr.Dropped() != 0 {
		t.Error("a nil tracer traces")
	}
}

func BenchmarkSpan(b *testing.B) {
	r := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	defer r.Close()
	tr, err := NewTracer(TraceOptions{Endpoint: r.URL})
	if err != nil {
		b.Fatal(err)
	}
	defer tr.Close()
	at := time.Now()
	for b.Loop() {
		tr.Record(context.Background(), "x", at, at.Add(1), slog.Int("step", 1))
	}
}
