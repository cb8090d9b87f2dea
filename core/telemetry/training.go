package telemetry

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// stepBuckets are for steps, evaluations and checkpoints, in seconds.
var stepBuckets = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 25, 50, 100}

// Training is the metrics of a training. Its registry is its own. All methods are safe for
// concurrent use, and those of a nil *Training do nothing.
type Training struct {
	registry *prometheus.Registry

	step, steps, epoch, at                    prometheus.Gauge
	loss, ce, z, bpb, entropy, lr, norm, clip prometheus.Gauge
	speed, mfu                                prometheus.Gauge
	tokens, skipped, wait                     prometheus.Counter
	duration, evaluation, saving              prometheus.Observer
	// Those that have no value before they were measured.
	flips, zeros, similarity, gain               *prometheus.GaugeVec
	valBPB, valNats, valStep, bestBPB, savedStep *prometheus.GaugeVec
	norms                                        *prometheus.GaugeVec   // class
	build                                        *prometheus.GaugeVec   // version, kernel
	anomalies                                    *prometheus.CounterVec // kind
	checkpoints                                  *prometheus.CounterVec // result

	version     string
	class, kind *label
	seen        bool
	best        float64
}

// NewTraining returns the metrics of a training. kinds are those of its anomalies: a series
// that begins at 1 has no increase for Prometheus, so they begin at 0.
func NewTraining(o ServingOptions, kinds ...string) *Training {
	r := newRegistry(&o)
	g := func(name, help string) prometheus.Gauge { return gauge(r, "nanochat_train_"+name, help) }
	c := func(name, help string) prometheus.Counter { return counter(r, "nanochat_train_"+name, help) }
	later := func(name, help string) *prometheus.GaugeVec { return gauges(r, "nanochat_train_"+name, help) }
	h := func(name, help string) prometheus.Observer {
		return histograms(r, "nanochat_train_"+name, help, stepBuckets).WithLabelValues()
	}
	t := &Training{
		registry: r, build: buildInfo(r),
		step:    g("step", "Steps taken since the first start of the run."),
		steps:   g("steps_planned", "Steps of the whole run."),
		epoch:   g("epoch", "Passes through the data, with a fraction."),
		at:      g("last_step_timestamp_seconds", "Time at which the last step ended, in seconds since 1970."),
		loss:    g("loss", "Objective of the last step, in nats for each token."),
		ce:      g("cross_entropy_nats", "Cross-entropy of the last step, in nats for each token."),
		z:       g("z_loss_nats", "Z-loss of the last step, in nats for each token."),
		bpb:     g("bpb", "Cross-entropy of the last step, in bits for each byte of text."),
		entropy: g("entropy_nats", "Mean entropy of the predictions of the last step, in nats."),
		lr:      g("learning_rate", "Learning rate of the matrices."),
		norm:    g("gradient_norm", "Norm of all gradients before clipping."),
		norms:   gauges(r, "nanochat_train_class_gradient_norm", "Norm of the gradients of a class of parameters.", "class"),
		clip:    g("clip_factor", "Factor of the clipping of gradients, 1 if none."),
		speed:   g("tokens_per_second", "Speed of the last step."),
		mfu:     g("mfu_ratio", "Share of the machine's peak that the arithmetic of the last step reached."),
		flips:   later("trit_flip_ratio", "Share of the ternary weights that a step changed, measured with every line of the log."),
		zeros:   later("trit_zero_ratio", "Share of the ternary weights that is zero, measured with every line of the log."),
		similarity: later("stream_similarity",
			"Mean cosine between the residual streams: 1 means that mixing has no effect."),
		gain:      later("mhc_gain", "Largest sum of a row of the product of all mixings of residual streams: 1, unless one is not doubly stochastic."),
		valBPB:    later("validation_bpb", "Last evaluation, in bits for each byte of text."),
		valNats:   later("validation_cross_entropy_nats", "Last evaluation, in nats for each token."),
		valStep:   later("validation_step", "Step of the last evaluation."),
		bestBPB:   later("validation_best_bpb", "Best evaluation since this part of the run began."),
		savedStep: later("checkpoint_step", "Step of the last checkpoint that was saved."),
		tokens:    c("tokens_total", "Tokens learned since the first start of the run."),
		skipped:   c("skipped_steps_total", "Steps that changed nothing because something was not finite."),
		wait:      c("data_wait_seconds_total", "Time that steps waited for data."),
		duration:  h("step_duration_seconds", "Time of a step."), evaluation: h("evaluation_duration_seconds", "Time of an evaluation."),
		saving:      h("checkpoint_duration_seconds", "Time of saving a checkpoint."),
		anomalies:   counters(r, "nanochat_train_anomalies_total", "Warnings of the detectors, and other events, by kind.", "kind"),
		checkpoints: counters(r, "nanochat_train_checkpoints_total", "Checkpoints, by whether they were saved.", "result"),
		class:       newLabel(256), kind: newLabel(32),
	}
	for _, result := range []string{"saved", "failed"} {
		t.checkpoints.WithLabelValues(result)
	}
	for _, kind := range kinds {
		t.anomalies.WithLabelValues(t.kind.of(kind))
	}
	t.version = o.Version
	return t
}

// Handler answers a scrape.
func (t *Training) Handler() http.Handler {
	if t == nil {
		return http.NotFoundHandler()
	}
	return scrape(t.registry)
}

// Step is the numbers of a step. Those that are nil were not measured.
type Step struct {
	Step, Steps                         int
	Tokens                              int64 // learned in this step
	Epoch                               float64
	At                                  time.Time
	Loss, CE, Z, BPB, Entropy           float64
	LR, GradNorm, Clip                  float64
	Norms                               map[string]float64
	TokensPerSecond, MFU                float64
	Duration, Wait                      time.Duration
	Skipped                             bool
	FlipRate, ZeroFraction, Similarity  *float64
	Gain, ValidationBPB, ValidationNats *float64
	Evaluation                          time.Duration
}

// Began notes with which kernels a run begins, or goes on, and where. It comes once.
func (t *Training) Began(kernel string, step, steps int, tokens int64) {
	if t == nil {
		return
	}
	t.build.WithLabelValues(newLabel(1).of(t.version), newLabel(1).of(kernel)).Set(1)
	t.step.Set(float64(step))
	t.steps.Set(float64(steps))
	t.tokens.Add(float64(max(tokens, 0)))
}

// Stepped notes a step. It is called from one goroutine.
func (t *Training) Stepped(s *Step) {
	if t == nil {
		return
	}
	for _, v := range []struct {
		to prometheus.Gauge
		v  float64
	}{
		{t.step, float64(s.Step)}, {t.steps, float64(s.Steps)}, {t.epoch, s.Epoch}, {t.at, float64(s.At.UnixMilli()) / 1e3},
		{t.loss, s.Loss}, {t.ce, s.CE}, {t.z, s.Z}, {t.bpb, s.BPB}, {t.entropy, s.Entropy}, {t.lr, s.LR}, {t.norm, s.GradNorm},
		{t.clip, s.Clip}, {t.speed, s.TokensPerSecond}, {t.mfu, s.MFU},
	} {
		v.to.Set(v.v)
	}
	for _, v := range []struct {
		to *prometheus.GaugeVec
		v  *float64
	}{{t.flips, s.FlipRate}, {t.zeros, s.ZeroFraction}, {t.similarity, s.Similarity}, {t.gain, s.Gain}, {t.valBPB, s.ValidationBPB}, {t.valNats, s.ValidationNats}} {
		if v.v != nil {
			v.to.WithLabelValues().Set(*v.v)
		}
	}
	for class, v := range s.Norms {
		t.norms.WithLabelValues(t.class.of(class)).Set(v)
	}
	t.tokens.Add(float64(max(s.Tokens, 0)))
	t.wait.Add(max(s.Wait.Seconds(), 0))
	t.duration.Observe(s.Duration.Seconds())
	if s.Skipped {
		t.skipped.Inc()
	}
	if v := s.ValidationBPB; v != nil {
		t.valStep.WithLabelValues().Set(float64(s.Step))
		t.evaluation.Observe(s.Evaluation.Seconds())
		if !t.seen || *v < t.best {
			t.seen, t.best = true, *v
			t.bestBPB.WithLabelValues().Set(*v)
		}
	}
}

// Anomaly notes an event of a kind.
func (t *Training) Anomaly(kind string) {
	if t != nil {
		t.anomalies.WithLabelValues(t.kind.of(kind)).Inc()
	}
}

// Saved notes a checkpoint after step, or that it failed.
func (t *Training) Saved(step int, ok bool, d time.Duration) {
	if t == nil {
		return
	}
	result := "failed"
	if ok {
		result = "saved"
		t.savedStep.WithLabelValues().Set(float64(step))
	}
	t.checkpoints.WithLabelValues(result).Inc()
	t.saving.Observe(d.Seconds())
}
