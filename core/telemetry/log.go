package telemetry

import (
	"context"
	"io"
	"log/slog"

	"go.opentelemetry.io/otel/trace"

	"github.com/architehc/nanochat/core/telemetry/sink"
)

// Attrs is what every line of a log and every span says of the process.
type Attrs struct {
	// RunID tells runs apart; see NewRunID.
	RunID string
	// Model is the name of the model's configuration, "" where there are several.
	Model string
}

// Logger is a slog.Logger whose lines are JSON objects with time, level, msg, run_id,
// model_config and, where the context of a call has them, step (see WithStep) and
// trace_id and span_id (see Tracer). It is for any number of goroutines.
type Logger struct {
	*slog.Logger
	sink *sink.Sink
}

// NewLogger returns a logger of lines of at least this level; a nil level is
// slog.LevelInfo. The lines go through a sink.Sink to w: a full disk, a closed pipe or a
// slow terminal loses lines, which are counted, and holds up nothing.
func NewLogger(w io.Writer, level slog.Leveler, run Attrs) *Logger {
	return LogTo(sink.New(w), level, run)
}

// LogTo is NewLogger with a sink of the caller's, which the logger closes.
func LogTo(s *sink.Sink, level slog.Leveler, run Attrs) *Logger {
	if level == nil {
		level = slog.LevelInfo
	}
	var attrs []slog.Attr
	if run.RunID != "" {
		attrs = append(attrs, slog.String("run_id", run.RunID))
	}
	if run.Model != "" {
		attrs = append(attrs, slog.String("model_config", run.Model))
	}
	h := slog.NewJSONHandler(s, &slog.HandlerOptions{Level: level}).WithAttrs(attrs)
	return &Logger{Logger: slog.New(handler{h}), sink: s}
}

// Discard returns a logger that writes nothing.
func Discard() *Logger { return &Logger{Logger: slog.New(slog.DiscardHandler)} }

// Dropped is the number of lines that were lost.
func (l *Logger) Dropped() int64 {
	if l == nil {
		return 0
	}
	return l.sink.Dropped()
}

// Close writes the lines that wait, for a second at most. Later lines are dropped.
func (l *Logger) Close() {
	if l != nil {
		l.sink.Close()
	}
}

// handler adds what the context of a call knows.
type handler struct{ slog.Handler }

type stepKey struct{}

// WithStep returns a context whose lines have this step.
func WithStep(ctx context.Context, step int) context.Context {
	return context.WithValue(ctx, stepKey{}, step)
}

// Handle writes one line.
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if step, ok := ctx.Value(stepKey{}).(int); ok {
		r.AddAttrs(slog.Int("step", step))
	}
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		r.AddAttrs(slog.String("trace_id", sc.TraceID().String()), slog.String("span_id", sc.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs returns a handler with more attributes.
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs)}
}

// WithGroup returns a handler whose further attributes stand in a group. step,
// trace_id and span_id stand in it, too.
func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }
