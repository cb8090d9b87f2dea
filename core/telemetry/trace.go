package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/architehc/nanochat/core/internal/clock"
)

// Tracer makes spans and sends them to a collector over OTLP/HTTP. The spans of a nil
// *Tracer are nil and do nothing.
type Tracer struct {
	tracer   trace.Tracer
	provider *sdk.TracerProvider
	export   *exporter
	dropped  atomic.Int64
}

// TraceOptions says where spans go and what they say of the process.
type TraceOptions struct {
	// Endpoint is the URL of a collector: http://localhost:4318, or with a path. /v1/traces
	// is added to it where it does not end so, as OTEL_EXPORTER_OTLP_ENDPOINT is defined.
	Endpoint string
	// Headers go with every export, such as the key of a service.
	Headers map[string]string
	// Service is service.name, and Version service.version.
	Service, Version string
	Run              Attrs
	// Ratio is the share of traces that are kept, of those that begin here: a trace that
	// a client began is kept if the client says so. 0: all.
	Ratio float64
	// Client sends. The default has a timeout of five seconds.
	Client *http.Client
	// Clock is for timeouts. The default is the system's.
	Clock clock.Clock
}

// NewTracer returns a tracer. It does not look for the collector: one that is not there,
// or slow, loses spans, which are counted, and holds up nothing. The error is that of an
// Endpoint that is no URL.
func NewTracer(o TraceOptions) (*Tracer, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("telemetry: OTLP endpoint %q is not a URL of HTTP (as in http://localhost:4318)", o.Endpoint)
	}
	if !strings.HasSuffix(u.Path, "/v1/traces") {
		u = u.JoinPath("v1", "traces")
	}
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	if o.Client == nil {
		o.Client = &http.Client{Timeout: exportTimeout}
	}
	t := &Tracer{}
	t.export = newExporter(u.String(), &o, &t.dropped)
	attrs := []attribute.KeyValue{attribute.String("service.name", o.Service), attribute.String("service.version", o.Version)}
	if o.Run.RunID != "" {
		attrs = append(attrs, attribute.String("run_id", o.Run.RunID))
	}
	if o.Run.Model != "" {
		attrs = append(attrs, attribute.String("model_config", o.Run.Model))
	}
	sampler := sdk.AlwaysSample()
	if o.Ratio > 0 && o.Ratio < 1 {
		sampler = sdk.TraceIDRatioBased(o.Ratio)
	}
	t.provider = sdk.NewTracerProvider(
		sdk.WithResource(resource.NewSchemaless(attrs...)), sdk.WithSampler(sdk.ParentBased(sampler)), sdk.WithSpanProcessor(t.export),
	)
	t.tracer = t.provider.Tracer("github.com/architehc/nanochat")
	return t, nil
}

// w3c reads and writes the header traceparent.
var w3c propagation.TraceContext

// Extract returns ctx with the trace that the headers of a request belong to, if they
// name one. Lines of a Logger then have its trace_id, spans it for a parent. It works
// with a nil *Tracer, too.
func (t *Tracer) Extract(ctx context.Context, h http.Header) context.Context {
	return w3c.Extract(ctx, propagation.HeaderCarrier(h))
}

// Inject writes the trace of ctx into the headers of a request or an answer.
func (t *Tracer) Inject(ctx context.Context, h http.Header) {
	w3c.Inject(ctx, propagation.HeaderCarrier(h))
}

// Span is one piece of work. The methods of a nil *Span do nothing. They may be called
// from any goroutine.
type Span struct{ span trace.Span }

// Start begins a span below that of ctx, and returns a context with it.
func (t *Tracer) Start(ctx context.Context, name string, attrs ...slog.Attr) (context.Context, *Span) {
	return t.StartAt(ctx, name, time.Time{}, attrs...)
}

// StartAt begins a span in the past; the zero time is now.
func (t *Tracer) StartAt(ctx context.Context, name string, at time.Time, attrs ...slog.Attr) (context.Context, *Span) {
	if t == nil {
		return ctx, nil
	}
	o := []trace.SpanStartOption{trace.WithAttributes(keyValues(attrs)...)}
	if !at.IsZero() {
		o = append(o, trace.WithTimestamp(at))
	}
	ctx, s := t.tracer.Start(ctx, name, o...)
	return ctx, &Span{s}
}

// StartRequest begins the span of a request that a server answers.
func (t *Tracer) StartRequest(ctx context.Context, name string, attrs ...slog.Attr) (context.Context, *Span) {
	if t == nil {
		return ctx, nil
	}
	ctx, s := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(keyValues(attrs)...))
	return ctx, &Span{s}
}

// Record is a span that is over: from and to are its times.
func (t *Tracer) Record(ctx context.Context, name string, from, to time.Time, attrs ...slog.Attr) {
	_, s := t.StartAt(ctx, name, from, attrs...)
	s.EndAt(to)
}

// Set adds attributes.
func (s *Span) Set(attrs ...slog.Attr) {
	if s != nil {
		s.span.SetAttributes(keyValues(attrs)...)
	}
}

// Event notes something that happened within the span.
func (s *Span) Event(name string, attrs ...slog.Attr) {
	if s != nil {
		s.span.AddEvent(name, trace.WithAttributes(keyValues(attrs)...))
	}
}

// Fail marks the span as failed; a nil error does nothing.
func (s *Span) Fail(err error) {
	if s != nil && err != nil {
		s.span.RecordError(err)
		s.span.SetStatus(codes.Error, err.Error())
	}
}

// End ends the span now.
func (s *Span) End() {
	if s != nil {
		s.span.End()
	}
}

// EndAt ends the span at a time.
func (s *Span) EndAt(at time.Time) {
	if s != nil {
		s.span.End(trace.WithTimestamp(at))
	}
}

// TraceID is the trace of ctx, 32 hexadecimal digits; "" if it has none.
func TraceID(ctx context.Context) string {
	if id := trace.SpanContextFromContext(ctx).TraceID(); id.IsValid() {
		return id.String()
	}
	return ""
}

// Dropped is the number of spans that were lost.
func (t *Tracer) Dropped() int64 {
	if t == nil {
		return 0
	}
	return t.dropped.Load()
}

// Close sends the spans that wait, for a second at most. Later ones are dropped.
func (t *Tracer) Close() {
	if t != nil {
		t.export.close()
	}
}

// keyValues translates attributes.
func keyValues(attrs []slog.Attr) []attribute.KeyValue {
	out := make([]attribute.KeyValue, 0, len(attrs))
	for _, a := range attrs {
		k := attribute.Key(a.Key)
		switch v := a.Value.Resolve(); v.Kind() {
		case slog.KindBool:
			out = append(out, k.Bool(v.Bool()))
		case slog.KindInt64:
			out = append(out, k.Int64(v.Int64()))
		case slog.KindFloat64:
			out = append(out, k.Float64(v.Float64()))
		default:
			out = append(out, k.String(v.String()))
		}
	}
	return out
}
