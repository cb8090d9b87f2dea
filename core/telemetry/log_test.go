package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
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

// stuck is a writer that blocks until it is released.
type stuck struct {
	release chan struct{}
	once    sync.Once
	in      chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	s.once.Do(func() { close(s.in) })
	<-s.release
	return len(b), nil
}

func TestSinkNeverBlocks(t *testing.T) {
	w := &stuck{release: make(chan struct{}), in: make(chan struct{})}
	s := NewSink(w)
	s.Write([]byte("x"))
	<-w.in
	began := time.Now()
	for range 2 * sinkDepth {
		if n, err := s.Write([]byte("line\n")); n != 5 || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("%d writes took %v", 2*sinkDepth, d)
	}
	if got := s.Dropped(); got != sinkDepth {
		t.Errorf("dropped %d, want %d", got, sinkDepth)
	}
	began = time.Now()
	s.Close()
	if d := time.Since(began); d > 2*closeWait {
		t.Errorf("Close took %v with a writer that blocks", d)
	}
	if got := s.Dropped(); got != 2*sinkDepth {
		t.Errorf("dropped %d after Close, want %d", got, 2*sinkDepth)
	}
	close(w.release)
}

// failing writers, one of which panics.
type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestSinkCountsFailures(t *testing.T) {
	_, pipe := io.Pipe()
	pipe.CloseWithError(io.ErrClosedPipe)
	for name, w := range map[string]io.Writer{
		"full disk":   writerFunc(func(b []byte) (int, error) { return 0, errors.New("no space left on device") }),
		"half a line": writerFunc(func(b []byte) (int, error) { return len(b) / 2, nil }),
		"panic":       writerFunc(func(b []byte) (int, error) { panic("writer") }),
		"closed pipe": pipe,
	} {
		l := NewLogger(w, nil, Attrs{})
		for range 100 {
			l.Info("line")
		}
		l.Close()
		if got := l.Dropped(); got != 100 {
			t.Errorf("%s: %d of 100 lines counted as dropped", name, got)
		}
	}
}

func TestSinkKeepsOrderAndAll(t *testing.T) {
	var out strings.Builder
	s := NewSink(&out)
	var want strings.Builder
	for i := range 1000 {
		line := strings.Repeat("x", i%50) + "\n"
		s.Write([]byte(line))
		want.WriteString(line)
	}
	s.Close()
	if out.String() != want.String() || s.Dropped() != 0 {
		t.Errorf("lines were lost or changed; dropped %d", s.Dropped())
	}
}
