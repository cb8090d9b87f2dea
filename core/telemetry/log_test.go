package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"testing"
)

// lines decodes a log.
func lines(t *testing.T, b []byte) (out []map[string]any) {
	t.Helper()
	for l := range bytes.Lines(b) {
		var m map[string]any
		if err := json.Unmarshal(l, &m); err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		out = append(out, m)
	}
	return out
}

func TestLoggerLines(t *testing.T) {
	var out bytes.Buffer
	l := NewLogger(&out, slog.LevelInfo, Attrs{RunID: "r1", Model: "nano"})
	var tracer *Tracer
	ctx := tracer.Extract(context.Background(), http.Header{"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}})
	l.Debug("too fine")
	l.Info("plain", "text", "line\nwith \"quotes\" and \xff")
	l.WarnContext(WithStep(ctx, 7), "in a trace")
	l.With("who", "server").WithGroup("g").Error("grouped", "a", 1)
	l.Close()
	l.Info("too late")
	got := lines(t, out.Bytes())
	if len(got) != 3 {
		t.Fatalf("%d lines, want 3:\n%s", len(got), out.String())
	}
	for i, want := range []map[string]any{
		{"level": "INFO", "msg": "plain", "run_id": "r1", "model_config": "nano", "step": nil, "trace_id": nil},
		{"level": "WARN", "msg": "in a trace", "run_id": "r1", "model_config": "nano", "step": 7., "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7"},
		{"level": "ERROR", "msg": "grouped", "run_id": "r1", "who": "server"},
	} {
		for k, v := range want {
			if got[i][k] != v {
				t.Errorf("line %d: %s is %v, want %v", i, k, got[i][k], v)
			}
		}
	}
	if l.Dropped() != 1 {
		t.Errorf("%d lines dropped, want the one after Close", l.Dropped())
	}
}
