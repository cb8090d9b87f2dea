package telemetry

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// latencyBuckets are those of the project's plan, in seconds.
var latencyBuckets = []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// gapBuckets are for the time between two tokens, in seconds.
var gapBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1}

// Serving is the metrics of a server. Its registry is its own. All methods are safe
// for concurrent use, and those of a nil *Serving do nothing.
type Serving struct {
	registry *prometheus.Registry

	requests  *prometheus.CounterVec   // endpoint, model, code
	latency   *prometheus.HistogramVec // endpoint
	active    prometheus.Gauge
	firsts    *prometheus.HistogramVec // model
	gaps      *prometheus.HistogramVec // model
	queued    *prometheus.HistogramVec // model
	loads     *prometheus.GaugeVec     // model
	loaded    *prometheus.GaugeVec     // model
	limit     prometheus.Gauge
	cancelled *prometheus.CounterVec // reason
	rejected  *prometheus.CounterVec // reason
	unknown   *prometheus.CounterVec // field

	endpoint, modelName, reason, field *label

	mu     sync.Mutex
	models map[string]*ModelServing
}

// ServingOptions says what is told of the process.
type ServingOptions struct {
	// Version of the program and Kernel, the set of kernels in use.
	Version, Kernel string
	// Process adds memory, goroutines, garbage collection and file descriptors of the
	// process.
	Process bool
	// Dropped is asked at each scrape how many log lines, events and spans were lost; it
	// may be nil.
	Dropped func() int64
}

// NewServing returns the metrics of a server.
func NewServing(o ServingOptions) *Serving {
	r := newRegistry(&o)
	s := &Serving{
		registry: r,
		requests: counters(r, "nanochat_inference_requests_total", "Requests answered, by endpoint, model and HTTP status.", "endpoint", "model", "code"),
		latency:  histograms(r, "nanochat_inference_latency_seconds", "Time from the request to the end of its answer.", latencyBuckets, "endpoint"),
		active:   gauge(r, "nanochat_active_requests", "Requests that have no whole answer yet."),
		firsts:   histograms(r, "nanochat_time_to_first_token_seconds", "Time from the request to the first token of its answer.", latencyBuckets, "model"),
		gaps:     histograms(r, "nanochat_inter_token_latency_seconds", "Time between two tokens of an answer.", gapBuckets, "model"),
		queued:   histograms(r, "nanochat_queue_time_seconds", "Time that a request waited for a place in the batch.", latencyBuckets, "model"),
		loads:    gauges(r, "nanochat_model_load_time_seconds", "Time that the last load of the model took.", "model"),
		loaded:   gauges(r, "nanochat_model_loaded", "1 while the model is in memory.", "model"),
		limit:    gauge(r, "nanochat_queue_capacity", "Requests that may wait at most; further ones are rejected."),
		cancelled: counters(r, "nanochat_requests_cancelled_total", "Requests that ended before their answer was whole, by reason.",
			"reason"),
		rejected: counters(r, "nanochat_requests_rejected_total", "Requests that were refused before they reached a model, by reason.", "reason"),
		unknown:  counters(r, "nanochat_unknown_fields_total", "Fields of requests that are not known and were passed over, by name.", "field"),
		endpoint: newLabel(32), modelName: newLabel(64), reason: newLabel(32), field: newLabel(64),
		models: map[string]*ModelServing{},
	}
	buildInfo(r).WithLabelValues(newLabel(1).of(o.Version), newLabel(1).of(o.Kernel)).Set(1)
	// A series that begins at 1 has no increase for Prometheus: those of alerts begin at 0.
	s.rejected.WithLabelValues(s.reason.of("queue_full"))
	for _, reason := range []string{"client_gone", "timeout", "shutdown"} {
		s.cancelled.WithLabelValues(s.reason.of(reason))
	}
	r.MustRegister(engines{s, engineDescs()})
	return s
}

// Handler answers a scrape.
func (s *Serving) Handler() http.Handler {
	if s == nil {
		return http.NotFoundHandler()
	}
	return scrape(s.registry)
}

// RequestStarted notes that a request is being served; each needs a RequestFinished.
func (s *Serving) RequestStarted() {
	if s != nil {
		s.active.Inc()
	}
}

// RequestFinished notes the answer to a request: its endpoint, as the server names it
// and not as the client wrote it; the model, "" where none is meant; the HTTP status;
// and the time since the request came.
func (s *Serving) RequestFinished(endpoint, model string, code int, latency time.Duration) {
	if s == nil {
		return
	}
	endpoint = s.endpoint.of(endpoint)
	s.active.Dec()
	s.requests.WithLabelValues(endpoint, s.modelName.of(model), strconv.Itoa(code)).Inc()
	s.latency.WithLabelValues(endpoint).Observe(latency.Seconds())
}

// Rejected notes a request that was refused: queue_full, unauthorized, too_large, ….
func (s *Serving) Rejected(reason string) {
	if s != nil {
		s.rejected.WithLabelValues(s.reason.of(reason)).Inc()
	}
}

// Cancelled notes a request that ended early: client_gone, timeout, shutdown, ….
func (s *Serving) Cancelled(reason string) {
	if s != nil {
		s.cancelled.WithLabelValues(s.reason.of(reason)).Inc()
	}
}

// UnknownField notes a field of a request that the server does not know.
func (s *Serving) UnknownField(name string) {
	if s != nil {
		s.unknown.WithLabelValues(s.field.of(name)).Inc()
	}
}

// QueueCapacity tells how many requests may wait.
func (s *Serving) QueueCapacity(n int) {
	if s != nil {
		s.limit.Set(float64(n))
	}
}

// Model returns the metrics of a model, the same ones for a name each time: keep them
// where tokens are counted.
func (s *Serving) Model(name string) *ModelServing {
	if s == nil {
		return nil
	}
	name = s.modelName.of(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.models[name]
	if m == nil {
		m = &ModelServing{
			name: name, firsts: s.firsts.WithLabelValues(name), gaps: s.gaps.WithLabelValues(name), queued: s.queued.WithLabelValues(name),
			load: s.loads.WithLabelValues(name), loaded: s.loaded.WithLabelValues(name),
		}
		s.models[name] = m
	}
	return m
}

// list is the models in the order of their names.
func (s *Serving) list() []*ModelServing {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*ModelServing
	for _, name := range slices.Sorted(maps.Keys(s.models)) {
		out = append(out, s.models[name])
	}
	return out
}

// ModelServing is the metrics of one model. The methods of a nil *ModelServing do
// nothing.
type ModelServing struct {
	name                 string
	firsts, gaps, queued prometheus.Observer
	load, loaded         prometheus.Gauge

	mu     sync.Mutex
	before Engine // counters of engines that were closed
	engine func() Engine
}

// Engine is what the engine of a model counts; the fields of infer.Stats.
type Engine struct {
	// Since the engine was made.
	Steps, DecodeSteps                     int64
	PromptTokens, CachedTokens             int64
	Computed, Generated, Drafted, Accepted int64
	Finished, Cancelled, Failed, Preempted int64
	EvictedPages                           int64
	// Now.
	Running, Waiting              int
	Pages, UsedPages, CachedPages int
}

// Queued notes how long a request waited for a place in the batch.
func (m *ModelServing) Queued(d time.Duration) {
	if m != nil {
		m.queued.Observe(d.Seconds())
	}
}

// FirstToken notes the time from a request to the first token of its answer.
func (m *ModelServing) FirstToken(d time.Duration) {
	if m != nil {
		m.firsts.Observe(d.Seconds())
	}
}

// NextToken notes the time from the token before.
func (m *ModelServing) NextToken(d time.Duration) {
	if m != nil {
		m.gaps.Observe(d.Seconds())
	}
}

// Loaded notes that the model is in memory, after d. stats is called at each scrape, from
// any goroutine, until Unloaded returns: tokens, steps, queue and batch come from it, at no
// cost to the engine.
func (m *ModelServing) Loaded(d time.Duration, stats func() Engine) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fold()
	m.engine = stats
	m.load.Set(d.Seconds())
	m.loaded.Set(1)
}

// Unloaded notes that the model leaves memory: call it before the engine is closed.
func (m *ModelServing) Unloaded() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fold()
	m.loaded.Set(0)
}

// fold adds the counters of the engine to those of the ones before it.
func (m *ModelServing) fold() {
	m.before = m.sum()
	m.before.Running, m.before.Waiting, m.before.Pages, m.before.UsedPages, m.before.CachedPages = 0, 0, 0, 0, 0
	m.engine = nil
}

// sum is the counters of all engines of the model, and the present state of the last.
func (m *ModelServing) sum() Engine {
	e, b := Engine{}, &m.before
	if m.engine != nil {
		e = call(m.engine)
	}
	e.Steps += b.Steps
	e.DecodeSteps += b.DecodeSteps
	e.PromptTokens += b.PromptTokens
	e.CachedTokens += b.CachedTokens
	e.Computed += b.Computed
	e.Generated += b.Generated
	e.Drafted += b.Drafted
	e.Accepted += b.Accepted
	e.Finished += b.Finished
	e.Cancelled += b.Cancelled
	e.Failed += b.Failed
	e.Preempted += b.Preempted
	e.EvictedPages += b.EvictedPages
	return e
}

// call is f(), or nothing if it panics.
func call(f func() Engine) (e Engine) {
	defer func() {
		if recover() != nil {
			e = Engine{}
		}
	}()
	return f()
}
