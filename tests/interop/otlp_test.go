package interop

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/architehc/nanochat/core/telemetry"
)

// What reaches a collector is what was meant, read by messages that another project
// generated, in another language.
func TestSpansAreOTLP(t *testing.T) {
	py := os.Getenv("NANOCHAT_PYTHON")
	if py == "" {
		t.Skip("NANOCHAT_PYTHON is not set: want a Python with the packages of requirements-dev.txt; `make test` sets it")
	}
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { body, _ = io.ReadAll(r.Body) }))
	defer server.Close()
	tr, err := telemetry.NewTracer(telemetry.TraceOptions{Endpoint: server.URL, Service: "nanochat", Version: "1", Run: telemetry.Attrs{RunID: "r"}})
	if err != nil {
		t.Fatal(err)
	}
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	ctx := tr.Extract(context.Background(), http.Header{"Traceparent": {"00-" + trace + "-00f067aa0ba902b7-01"}})
	at := time.Unix(1_700_000_000, 1)
	ctx, root := tr.StartAt(ctx, "größe", at, slog.Int("n", -3), slog.Float64("f", 0.25), slog.Bool("b", true), slog.String("s", "x"))
	tr.Record(ctx, "child", at, at.Add(5))
	root.Fail(errors.New("no"))
	root.EndAt(at.Add(time.Second))
	tr.Close()

	cmd := exec.Command(py, "otlp_reference.py")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(body), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	type attribute struct {
		Key   string
		Value map[string]any
	}
	var got struct {
		ResourceSpans []struct {
			Resource   struct{ Attributes []attribute }
			ScopeSpans []struct {
				Spans []struct {
					TraceID, SpanID, ParentSpanID, Name, Kind, StartTimeUnixNano, EndTimeUnixNano string
					Attributes                                                                    []attribute
					Status                                                                        struct{ Code, Message string }
				}
			}
		}
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if d := cmp.Diff([]attribute{
		{"run_id", map[string]any{"stringValue": "r"}}, {"service.name", map[string]any{"stringValue": "nanochat"}}, {"service.version", map[string]any{"stringValue": "1"}},
	}, got.ResourceSpans[0].Resource.Attributes); d != "" {
		t.Errorf("resource (-want +got):\n%s", d)
	}
	spans := got.ResourceSpans[0].ScopeSpans[0].Spans
	id := func(s string) string {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Error(err)
		}
		return hex.EncodeToString(b)
	}
	child, parent := spans[0], spans[1]
	if id(parent.TraceID) != trace || id(parent.ParentSpanID) != "00f067aa0ba902b7" || parent.Name != "größe" || child.ParentSpanID != parent.SpanID ||
		child.TraceID != parent.TraceID || parent.StartTimeUnixNano != "1700000000000000001" || parent.EndTimeUnixNano != "1700000001000000001" ||
		child.EndTimeUnixNano != "1700000000000000006" || parent.Kind != "SPAN_KIND_INTERNAL" {
		t.Errorf("spans:\n%s", out)
	}
	if parent.Status.Code != "STATUS_CODE_ERROR" || parent.Status.Message != "no" {
		t.Errorf("status %+v", parent.Status)
	}
	if d := cmp.Diff([]attribute{
		{"n", map[string]any{"intValue": "-3"}}, {"f", map[string]any{"doubleValue": 0.25}}, {"b", map[string]any{"boolValue": true}}, {"s", map[string]any{"stringValue": "x"}},
	}, parent.Attributes); d != "" {
		t.Errorf("attributes (-want +got):\n%s", d)
	}
}
