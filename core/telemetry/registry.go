package telemetry

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func newRegistry(o *ServingOptions) *prometheus.Registry {
	r := prometheus.NewRegistry()
	if o.Process {
		r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	dropped := o.Dropped
	if dropped == nil {
		dropped = func() int64 { return 0 }
	}
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "nanochat_telemetry_dropped_total", Help: "Log lines, events and spans that were lost because they could not be written or sent.",
	}, func() float64 { return float64(dropped()) }))
	return r
}

// scrape answers with what could be gathered, whatever else failed.
func scrape(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true})
}

func buildInfo(r *prometheus.Registry) *prometheus.GaugeVec {
	return gauges(r, "nanochat_build_info", "1, with the version of the program and the kernels in use.", "version", "kernel")
}

func gauge(r *prometheus.Registry, name, help string) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	r.MustRegister(g)
	return g
}

func gauges(r *prometheus.Registry, name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	r.MustRegister(g)
	return g
}

func counter(r *prometheus.Registry, name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	r.MustRegister(c)
	return c
}

func counters(r *prometheus.Registry, name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	r.MustRegister(c)
	return c
}

func histograms(r *prometheus.Registry, name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	r.MustRegister(h)
	return h
}

// engineMetric is a metric that is read from an Engine at a scrape.
type engineMetric struct {
	name, help string
	kind       prometheus.ValueType
	of         func(e *Engine) float64
}

var engineMetrics = []engineMetric{
	{"nanochat_queue_depth", "Requests that wait for a place in the batch.", prometheus.GaugeValue, func(e *Engine) float64 { return float64(e.Waiting) }},
	{"nanochat_batch_size", "Sequences that are computed together.", prometheus.GaugeValue, func(e *Engine) float64 { return float64(e.Running) }},
	{"nanochat_tokens_prompt_total", "Tokens of prompts.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.PromptTokens) }},
	{"nanochat_tokens_generated_total", "Tokens generated.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.Generated) }},
	{"nanochat_prefix_cache_tokens_total", "Tokens of prompts that were not computed because an earlier request had begun alike.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.CachedTokens) }},
	{"nanochat_prefix_cache_evicted_pages_total", "Pages of remembered beginnings that made room.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.EvictedPages) }},
	{"nanochat_prefix_cache_pages", "Pages of the cache that remember beginnings of prompts.", prometheus.GaugeValue, func(e *Engine) float64 { return float64(e.CachedPages) }},
	{"nanochat_kv_cache_pages", "Pages of the cache of keys and values.", prometheus.GaugeValue, func(e *Engine) float64 { return float64(e.Pages) }},
	{"nanochat_kv_cache_used_pages", "Pages of the cache that belong to requests and sessions.", prometheus.GaugeValue, func(e *Engine) float64 { return float64(e.UsedPages) }},
	{"nanochat_engine_steps_total", "Steps of the engine.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.Steps) }},
	{"nanochat_engine_decode_steps_total", "Steps of the engine in which no prompt was read.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.DecodeSteps) }},
	{"nanochat_engine_tokens_total", "Tokens that went through the model.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.Computed) }},
	{"nanochat_draft_tokens_total", "Tokens that were guessed ahead.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.Drafted) }},
	{"nanochat_draft_accepted_tokens_total", "Tokens that were guessed ahead and were right.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.Accepted) }},
	{"nanochat_streams_finished_total", "Streams of tokens that ended by themselves.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.Finished) }},
	{"nanochat_streams_cancelled_total", "Streams of tokens that were cancelled.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.Cancelled) }},
	{"nanochat_streams_failed_total", "Streams of tokens that failed.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.Failed) }},
	{"nanochat_streams_preempted_total", "Times that a stream lost its cache to an older one for a while.", prometheus.CounterValue, func(e *Engine) float64 { return float64(e.Preempted) }},
}

// engineDescs has the description of each of engineMetrics.
func engineDescs() (out []*prometheus.Desc) {
	for _, m := range engineMetrics {
		out = append(out, prometheus.NewDesc(m.name, m.help, []string{"model"}, nil))
	}
	return out
}

// engines collects the metrics of all engines when they are asked for.
type engines struct {
	s     *Serving
	descs []*prometheus.Desc
}

// Describe sends the descriptions.
func (e engines) Describe(out chan<- *prometheus.Desc) {
	for _, d := range e.descs {
		out <- d
	}
}

// Collect sends the metrics.
func (e engines) Collect(out chan<- prometheus.Metric) {
	for _, m := range e.s.list() {
		m.mu.Lock()
		sum := m.sum()
		m.mu.Unlock()
		for i := range engineMetrics {
			out <- prometheus.MustNewConstMetric(e.descs[i], engineMetrics[i].kind, engineMetrics[i].of(&sum), m.name)
		}
	}
}
