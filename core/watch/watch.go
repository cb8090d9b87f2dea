package watch

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/telemetry"
	"github.com/architehc/nanochat/core/telemetry/sink"
	"github.com/architehc/nanochat/core/train"
)

// Options says who is shown what. The zero value shows nothing to anyone.
type Options struct {
	// MetricsAddr is where Prometheus scrapes, as in 127.0.0.1:9400.
	MetricsAddr string
	// OTLP is the URL of an OpenTelemetry collector, as in http://localhost:4318.
	OTLP string
	// Traceparent is the trace that the steps belong to, as W3C writes it; empty: each
	// step is a trace of its own.
	Traceparent string
	// LogFile is the file that gets the log as JSON lines, after what stands in it; Log
	// gets it instead, if not nil.
	LogFile string
	Log     io.Writer
	// Version of the program.
	Version string
	// Model is the name of the configuration, and Run the directory of the run.
	Model, Run string
	// FS is the disk; the default is the real one.
	FS fsx.FS
	// Client sends spans; nil: one with a short timeout.
	Client *http.Client
}

// Watch is a train.Observer.
type Watch struct {
	log     *telemetry.Logger
	metrics *telemetry.Training
	tracer  *telemetry.Tracer
	addr    string
	fs      fsx.FS
	id      string
	isNew   bool
	cancel  context.CancelFunc
	ctx     context.Context // of all spans

	every int // steps between two lines of the log
	steps int
	last  int64 // tokens, after the last step
}

var _ train.Observer = (*Watch)(nil)

// New returns an observer, which listens already. An error is that of an address or a URL
// that cannot be used; a file or a collector that cannot be reached is none.
func New(o Options) (*Watch, error) {
	if o.FS == nil {
		o.FS = fsx.OS()
	}
	w := &Watch{fs: o.FS}
	w.id, w.isNew = runID(o.FS, o.Run)
	run := telemetry.Attrs{RunID: w.id, Model: o.Model}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	if o.Traceparent != "" {
		w.ctx = w.tracer.Extract(w.ctx, http.Header{"Traceparent": {o.Traceparent}})
	}
	var err error
	if o.OTLP != "" {
		w.tracer, err = telemetry.NewTracer(telemetry.TraceOptions{Endpoint: o.OTLP, Service: "nanochat-train", Version: o.Version, Run: run, Client: o.Client})
		if err != nil {
			w.Close()
			return nil, err
		}
	}
	if o.MetricsAddr != "" {
		var kinds []string
		for _, k := range train.Kinds() {
			kinds = append(kinds, string(k))
		}
		w.metrics = telemetry.NewTraining(telemetry.ServingOptions{Version: o.Version, Process: true, Dropped: w.Dropped}, kinds...)
		addr, err := telemetry.Listen(w.ctx, o.MetricsAddr, w.metrics.Handler())
		if err != nil {
			w.Close()
			return nil, err
		}
		w.addr = addr.String()
	}
	switch {
	case o.Log != nil:
		w.log = telemetry.NewLogger(o.Log, nil, run)
	case o.LogFile != "":
		w.log = telemetry.LogTo(sink.NewFile(sink.OpenFile(o.FS, filepath.Clean(o.LogFile), nil, clock.System())), nil, run)
	}
	return w, nil
}

// Addr is the address that metrics are at, "" without.
func (w *Watch) Addr() string { return w.addr }

// idFile keeps the name of a run in its directory.
const idFile = "run_id"

// runID is the name of the run in dir, the same one at each resume; new says that it has
// none yet.
func runID(fsys fsx.FS, dir string) (id string, isNew bool) {
	if b, err := fsx.ReadFile(fsys, filepath.Join(dir, idFile), 64); err == nil && len(strings.TrimSpace(string(b))) == 12 {
		return strings.TrimSpace(string(b)), false
	}
	return telemetry.NewRunID(), true
}

// keepID writes the name of the run down. Without the file its next part has another
// name, no more.
func (w *Watch) keepID(dir string) {
	if w.isNew {
		_ = fsx.WriteAtomic(w.fs, filepath.Join(dir, idFile), func(f io.Writer) error {
			_, err := io.WriteString(f, w.id+"\n")
			return err
		})
	}
}

// Dropped is the number of lines and spans that were lost.
func (w *Watch) Dropped() int64 { return w.log.Dropped() + w.tracer.Dropped() }

// Close sends what waits, for a second at most, and stops listening.
func (w *Watch) Close() {
	w.tracer.Close()
	w.log.Close()
	w.cancel()
}

// line writes a line of the log.
func (w *Watch) line(ctx context.Context, level slog.Level, msg string, attrs ...slog.Attr) {
	if w.log != nil {
		w.log.LogAttrs(ctx, level, msg, attrs...)
	}
}
