package watch

import (
	"context"
	"log/slog"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/architehc/nanochat/core/telemetry"
	"github.com/architehc/nanochat/core/train"
)

// Began notes where the run begins.
func (w *Watch) Began(b *train.Beginning) {
	w.every, w.steps, w.last = b.Config.Train.LogEvery, b.Steps, b.Tokens
	w.keepID(b.Config.Train.Out)
	w.metrics.Began(b.Kernel, b.Step, b.Steps, b.Tokens)
	w.line(telemetry.WithStep(w.ctx, b.Step), slog.LevelInfo, "training began", slog.Int("steps", b.Steps), slog.Int64("tokens", b.Tokens),
		slog.Int64("weights", b.Config.Model.Params().Total()), slog.String("kernel", b.Kernel), slog.Int("threads", b.Threads), slog.Bool("resumed", b.Step > 0), slog.String("metrics", w.addr))
}

// Stepped notes a step: a trace with its parts, the metrics, and with every line of the
// log one of ours.
func (w *Watch) Stepped(m *train.Metrics, phases []train.Phase) {
	ctx := telemetry.WithStep(w.trace(m, phases), m.Step)
	for _, e := range m.Events {
		w.metrics.Anomaly(string(e.Kind))
		w.line(ctx, slog.LevelWarn, e.Text, slog.String("event", string(e.Kind)))
	}
	w.measure(m, phases)
	if w.every > 0 && m.Step%w.every == 0 || m.Step == w.steps || m.Val != nil {
		w.line(ctx, slog.LevelInfo, "step", numbers(m)...)
	}
	if v := m.Val; v != nil {
		w.line(ctx, slog.LevelInfo, "evaluation", number("bpb", v.BPB), number("nats", v.Nats), slog.Int("tokens", v.Tokens), number("seconds", v.Seconds))
	}
}

// trace sends the spans of a step and returns the context of the step's.
func (w *Watch) trace(m *train.Metrics, phases []train.Phase) context.Context {
	if w.tracer == nil || len(phases) == 0 {
		return w.ctx
	}
	first, last := phases[0], phases[len(phases)-1]
	if first.Name != train.PhaseStep { // only an evaluation that was interrupted
		return w.ctx
	}
	ctx, span := w.tracer.StartAt(w.ctx, first.Name, first.From, slog.Int("step", m.Step), slog.Int64("tokens", m.Tokens), slog.Bool("skipped", m.Skipped),
		slog.Float64("loss", float64(m.Loss)), slog.Float64("tokens_per_second", float64(m.TokensPerSecond)))
	for _, p := range phases[1:] {
		w.tracer.Record(ctx, p.Name, p.From, p.To)
	}
	for _, e := range m.Events {
		span.Event(string(e.Kind), slog.String("text", e.Text))
	}
	end := first.To
	if last.To.After(end) {
		end = last.To
	}
	span.EndAt(end)
	return ctx
}

// measure sets the metrics.
func (w *Watch) measure(m *train.Metrics, phases []train.Phase) {
	if w.metrics == nil {
		return
	}
	milliseconds := func(v train.Number) time.Duration { return time.Duration(float64(v) * float64(time.Millisecond)) }
	s := &telemetry.Step{
		Step: m.Step, Steps: w.steps, Tokens: m.Tokens - w.last, Epoch: float64(m.Epoch),
		Loss: float64(m.Loss), CE: float64(m.CE), Z: float64(m.Z), BPB: float64(m.BPB), Entropy: float64(m.Entropy),
		LR: float64(m.LR), GradNorm: float64(m.GradNorm), Clip: float64(m.Clip), Norms: map[string]float64{},
		TokensPerSecond: float64(m.TokensPerSecond), MFU: float64(m.MFU), Duration: milliseconds(m.StepMS), Wait: milliseconds(m.WaitMS), Skipped: m.Skipped,
		FlipRate: (*float64)(m.FlipRate), ZeroFraction: (*float64)(m.ZeroFraction), Similarity: (*float64)(m.Cosine), Gain: (*float64)(m.Gain),
	}
	w.last = m.Tokens
	for class, v := range m.Norms {
		s.Norms[class] = float64(v)
	}
	for _, p := range phases {
		s.At = p.To
		if p.Name == train.PhaseEvaluate {
			s.Evaluation = p.To.Sub(p.From)
		}
	}
	if v := m.Val; v != nil {
		s.ValidationBPB, s.ValidationNats = (*float64)(&v.BPB), (*float64)(&v.Nats)
	}
	w.metrics.Stepped(s)
}

// number is an attribute; JSON has no numbers that are none.
func number(key string, v train.Number) slog.Attr {
	if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
		return slog.Any(key, nil)
	}
	return slog.Float64(key, float64(v))
}

// numbers is the attributes of a step's line.
func numbers(m *train.Metrics) []slog.Attr {
	out := []slog.Attr{
		slog.Int64("tokens", m.Tokens), number("epoch", m.Epoch), number("loss", m.Loss), number("ce", m.CE), number("bpb", m.BPB), number("entropy", m.Entropy),
		number("lr", m.LR), number("grad_norm", m.GradNorm), number("tokens_per_second", m.TokensPerSecond), number("mfu", m.MFU),
		number("data_wait_ms", m.WaitMS), number("step_ms", m.StepMS), slog.Bool("skipped", m.Skipped),
	}
	some := map[string]*train.Number{"flip_rate": m.FlipRate, "zero_fraction": m.ZeroFraction, "stream_similarity": m.Cosine, "mhc_gain": m.Gain}
	for _, key := range slices.Sorted(maps.Keys(some)) {
		if v := some[key]; v != nil {
			out = append(out, number(key, *v))
		}
	}
	return out
}

// Saved notes a checkpoint.
func (w *Watch) Saved(s *train.Saving) {
	w.metrics.Saved(s.Step, s.Path != "", s.To.Sub(s.From))
	w.tracer.Record(w.ctx, "checkpoint", s.From, s.To, slog.Int("step", s.Step), slog.Bool("saved", s.Path != ""))
	ctx, level := telemetry.WithStep(w.ctx, s.Step), slog.LevelInfo
	attrs := []slog.Attr{slog.String("path", s.Path), slog.Float64("seconds", s.To.Sub(s.From).Seconds())}
	if s.Err != nil {
		level = slog.LevelError
		attrs = append(attrs, slog.String("error", s.Err.Error()))
	}
	w.line(ctx, level, "checkpoint", attrs...)
}

// Ended notes the end of the run.
func (w *Watch) Ended(r *train.Result, err error) {
	ctx, level := telemetry.WithStep(w.ctx, r.Steps), slog.LevelInfo
	attrs := []slog.Attr{slog.Int64("tokens", r.Tokens), slog.Float64("seconds", r.Seconds), slog.Int("skipped", r.Skipped)}
	if err != nil {
		level = slog.LevelError
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	w.line(ctx, level, "training ended", attrs...)
	w.tracer.Close() // so that Dropped, which is asked next, knows what did not arrive
	w.log.Close()
}
