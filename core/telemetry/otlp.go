package telemetry

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	collector "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	resource "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	spans "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/telemetry/sink"
)

const (
	exportTimeout = 5 * time.Second // of one request to the collector
	exportDelay   = time.Second     // a span waits for others at most
	exportSpans   = 512             // spans of a request, at most
	exportQueue   = 4096            // spans that wait, at most
)

// exporter takes ended spans from the SDK and posts them in batches, protobuf over HTTP.
// It is written for the slim form of the OTLP messages: the SDK's own exporter links a
// gRPC client, 5 MiB, to send the same bytes.
type exporter struct {
	url     string
	headers map[string]string
	client  *http.Client
	clock   clock.Clock
	dropped *atomic.Int64

	mu     sync.RWMutex // held for reading while a span is put into the queue
	closed bool
	queue  chan sdk.ReadOnlySpan
	done   chan struct{}
	ctx    context.Context // of requests
	cancel context.CancelFunc
}

func newExporter(url string, o *TraceOptions, dropped *atomic.Int64) *exporter {
	e := &exporter{
		url: url, headers: o.Headers, client: o.Client, clock: o.Clock, dropped: dropped,
		queue: make(chan sdk.ReadOnlySpan, exportQueue), done: make(chan struct{}),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	go e.run()
	return e
}

// OnStart does nothing.
func (*exporter) OnStart(context.Context, sdk.ReadWriteSpan) {}

// OnEnd puts a span into the queue, if there is room.
func (e *exporter) OnEnd(s sdk.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		e.dropped.Add(1)
		return
	}
	select {
	case e.queue <- s:
	default:
		e.dropped.Add(1)
	}
}

// Shutdown does what close does.
func (e *exporter) Shutdown(context.Context) error {
	e.close()
	return nil
}

// ForceFlush does nothing: spans wait for a second at most.
func (*exporter) ForceFlush(context.Context) error { return nil }

func (e *exporter) close() {
	e.mu.Lock()
	if !e.closed {
		e.closed = true
		close(e.queue)
	}
	e.mu.Unlock()
	select {
	case <-e.done:
	case <-e.clock.After(sink.CloseWait):
	}
	e.cancel()
}

// run sends batches until the queue is closed and empty.
func (e *exporter) run() {
	defer close(e.done)
	var batch []sdk.ReadOnlySpan
	var timer <-chan time.Time
	for {
		var full bool
		select {
		case s, ok := <-e.queue:
			if !ok {
				e.send(batch)
				return
			}
			if batch = append(batch, s); len(batch) == 1 {
				timer = e.clock.After(exportDelay)
			}
			full = len(batch) == exportSpans
		case <-timer:
			full = true
		}
		if full {
			e.send(batch)
			batch, timer = batch[:0], nil
		}
	}
}

// send posts a batch; one that does not arrive is counted and not tried again.
func (e *exporter) send(batch []sdk.ReadOnlySpan) {
	if len(batch) == 0 {
		return
	}
	sent := false
	defer func() {
		if recover() != nil || !sent {
			e.dropped.Add(int64(len(batch)))
		}
	}()
	body, err := proto.Marshal(message(batch))
	if err != nil {
		return
	}
	req, err := http.NewRequestWithContext(e.ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	for k, v := range e.headers {
		req.Header.Set(k, v)
	}
	res, err := e.client.Do(req)
	if err != nil {
		return
	}
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<16))
	res.Body.Close()
	sent = err == nil && res.StatusCode/100 == 2
}

// message is a batch as OTLP has it: all spans are of one resource and one scope.
func message(batch []sdk.ReadOnlySpan) *collector.ExportTraceServiceRequest {
	first := batch[0]
	scope := &spans.ScopeSpans{Scope: &common.InstrumentationScope{Name: first.InstrumentationScope().Name}}
	for _, s := range batch {
		scope.Spans = append(scope.Spans, span(s))
	}
	return &collector.ExportTraceServiceRequest{ResourceSpans: []*spans.ResourceSpans{{
		Resource: &resource.Resource{Attributes: pairs(first.Resource().Attributes())}, ScopeSpans: []*spans.ScopeSpans{scope},
	}}}
}

func span(s sdk.ReadOnlySpan) *spans.Span {
	trace, id := s.SpanContext().TraceID(), s.SpanContext().SpanID()
	out := &spans.Span{
		TraceId: trace[:], SpanId: id[:], TraceState: s.SpanContext().TraceState().String(), Name: s.Name(),
		Flags: uint32(s.SpanContext().TraceFlags()), Kind: spans.Span_SpanKind(s.SpanKind()), // SDK and OTLP number them alike
		StartTimeUnixNano: uint64(max(s.StartTime().UnixNano(), 0)), EndTimeUnixNano: uint64(max(s.EndTime().UnixNano(), 0)),
		Attributes: pairs(s.Attributes()), DroppedAttributesCount: uint32(s.DroppedAttributes()), DroppedEventsCount: uint32(s.DroppedEvents()),
	}
	if p := s.Parent(); p.SpanID().IsValid() {
		parent := p.SpanID()
		out.ParentSpanId = parent[:]
	}
	for _, e := range s.Events() {
		out.Events = append(out.Events, &spans.Span_Event{TimeUnixNano: uint64(max(e.Time.UnixNano(), 0)), Name: e.Name, Attributes: pairs(e.Attributes)})
	}
	if st := s.Status(); st.Code == codes.Error {
		out.Status = &spans.Status{Code: spans.Status_STATUS_CODE_ERROR, Message: st.Description}
	}
	return out
}

func pairs(attrs []attribute.KeyValue) (out []*common.KeyValue) {
	for _, a := range attrs {
		v := &common.AnyValue{}
		switch a.Value.Type() {
		case attribute.BOOL:
			v.Value = &common.AnyValue_BoolValue{BoolValue: a.Value.AsBool()}
		case attribute.INT64:
			v.Value = &common.AnyValue_IntValue{IntValue: a.Value.AsInt64()}
		case attribute.FLOAT64:
			v.Value = &common.AnyValue_DoubleValue{DoubleValue: a.Value.AsFloat64()}
		default:
			v.Value = &common.AnyValue_StringValue{StringValue: a.Value.String()}
		}
		out = append(out, &common.KeyValue{Key: string(a.Key), Value: v})
	}
	return out
}
