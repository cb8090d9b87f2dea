package train

import (
	"fmt"
	"math"
	"slices"

	"github.com/architehc/nanochat/core/config"
)

// Kind is a kind of anomaly.
type Kind string

// The kinds.
const (
	NonFinite Kind = "non_finite" // the loss or a gradient is not a finite number
	LossSpike Kind = "loss"       // the loss lies far above its running mean
	GradSpike Kind = "grad_norm"  // the gradient norm lies far above its running median
	Entropy   Kind = "entropy"    // the entropy of the predictions lies far from its running mean
	Flips     Kind = "flip_rate"  // many trits changed in one step
	Zeros     Kind = "zero_fraction"
	Collapse  Kind = "collapse" // the residual streams have become alike
)

// Kinds is all kinds of events: those above, a checkpoint that could not be saved, and
// observations that were lost.
func Kinds() []Kind {
	return []Kind{NonFinite, LossSpike, GradSpike, Entropy, Flips, Zeros, Collapse, unsaved, unseen}
}

// The kinds of events that are no anomalies.
const (
	unsaved Kind = "save"
	unseen  Kind = "telemetry"
)

// Event is something that a person who watches a run should know.
type Event struct {
	Kind Kind   `json:"kind"`
	Step int    `json:"step"`
	Text string `json:"text"`
}

// minSamples is the number of steps below which means and medians say nothing.
const minSamples = 16

// detector watches the numbers of every step. Its whole state is Detector, which a
// checkpoint keeps.
type detector struct {
	limits config.Anomaly
	s      Detector
}

// Detector is the state of the detectors.
type Detector struct {
	// Losses and Norms are those of the last steps that were not anomalous, Entropies and
	// Flips of all, the oldest first; flips are measured with every line of the log only.
	Losses    []float64 `json:"losses"`
	Norms     []float64 `json:"norms"`
	Entropies []float64 `json:"entropies,omitempty"`
	Flips     []float64 `json:"flips,omitempty"`
	// Streak is the bad steps in a row: skipped, or with an anomalous loss.
	Streak int `json:"streak"`
	// Counts is how often each kind was found, and Told the step at which it was last
	// reported: once in a window is enough.
	Counts map[Kind]int `json:"counts"`
	Told   map[Kind]int `json:"told"`
}

func newDetector(limits config.Anomaly) *detector {
	return &detector{limits: limits, s: Detector{Counts: map[Kind]int{}, Told: map[Kind]int{}}}
}

// restore takes the state of a checkpoint.
func (d *detector) restore(s Detector) {
	if s.Counts == nil {
		s.Counts = map[Kind]int{}
	}
	if s.Told == nil {
		s.Told = map[Kind]int{}
	}
	d.s = s
	for _, v := range []*[]float64{&d.s.Losses, &d.s.Norms, &d.s.Entropies, &d.s.Flips} {
		*v = last(*v, d.limits.Window)
	}
}

// look takes the numbers of a step and returns what is to be reported.
func (d *detector) look(m *Metrics) (events []Event) {
	report := func(kind Kind, format string, args ...any) {
		d.s.Counts[kind]++
		if told, ok := d.s.Told[kind]; ok && m.Step-told < d.limits.Window {
			return
		}
		d.s.Told[kind] = m.Step
		events = append(events, Event{kind, m.Step, fmt.Sprintf(format, args...)})
	}
	loss, norm := float64(m.Loss), float64(m.GradNorm)
	bad := false
	switch {
	case m.Skipped:
		bad = true
		report(NonFinite, "%s is not finite; the step was skipped", m.NonFinite)
	case d.lossIsAnomalous(loss):
		bad = true
		mean, std := meanStd(d.s.Losses)
		report(LossSpike, "loss %.4g is %.1f standard deviations above the mean %.4g of %d steps", loss, (loss-mean)/std, mean, len(d.s.Losses))
	default:
		d.s.Losses = last(append(d.s.Losses, loss), d.limits.Window)
	}
	if !m.Skipped {
		if median := median(d.s.Norms); d.limits.GradRatio > 0 && len(d.s.Norms) >= minSamples && norm > d.limits.GradRatio*median {
			report(GradSpike, "gradient norm %.4g is %.1f times the median %.4g of %d steps", norm, norm/median, median, len(d.s.Norms))
		} else {
			d.s.Norms = last(append(d.s.Norms, norm), d.limits.Window)
		}
		entropy := float64(m.Entropy)
		if d.entropyIsAnomalous(entropy) {
			mean, std := meanStd(d.s.Entropies)
			report(Entropy, "the entropy of the predictions, %.4g nats, is %+.1f standard deviations from the mean %.4g of %d steps", entropy, (entropy-mean)/std, mean, len(d.s.Entropies))
		}
		// Unlike a loss, it may stay where it went, and then is what it is compared with.
		d.s.Entropies = last(append(d.s.Entropies, entropy), d.limits.Window)
	}
	if m.FlipRate != nil && !m.Skipped {
		flips, usual := float64(*m.FlipRate), median(d.s.Flips)
		switch {
		case d.limits.FlipRate > 0 && flips > d.limits.FlipRate:
			report(Flips, "%.2f %% of the trits changed in one step, limit %.2f %%", 100*flips, 100*d.limits.FlipRate)
		case d.limits.FlipRatio > 0 && len(d.s.Flips) >= minSamples && flips > d.limits.FlipRatio*max(usual, minFlips):
			report(Flips, "%.3g %% of the trits changed in one step, %.1f times the median %.3g %% of %d steps", 100*flips, flips/max(usual, minFlips), 100*usual, len(d.s.Flips))
		}
		d.s.Flips = last(append(d.s.Flips, flips), d.limits.Window)
	}
	if v := m.ZeroFraction; v != nil {
		if lo := d.limits.ZeroMin; lo > 0 && float64(*v) < lo {
			report(Zeros, "%.1f %% of the trits are zero, less than %.1f %%", 100**v, 100*lo)
		}
		if hi := d.limits.ZeroMax; hi > 0 && float64(*v) > hi {
			report(Zeros, "%.1f %% of the trits are zero, more than %.1f %%", 100**v, 100*hi)
		}
	}
	// Streams begin alike, and need some steps to part.
	if v := m.Cosine; v != nil && d.limits.Cosine > 0 && float64(*v) > d.limits.Cosine && m.Step > d.limits.Window {
		report(Collapse, "the mean cosine between residual streams is %.4f, limit %.4f", *v, d.limits.Cosine)
	}
	if d.s.Streak++; !bad {
		d.s.Streak = 0
	}
	return events
}

func (d *detector) lossIsAnomalous(loss float64) bool {
	if d.limits.LossSigma == 0 || len(d.s.Losses) < minSamples {
		return false
	}
	mean, std := meanStd(d.s.Losses)
	return loss > mean+d.limits.LossSigma*std
}

// minFlips is a share of trits too small for its multiples to be of note.
const minFlips = 1e-5

// minEntropyNoise is the least standard deviation of the entropy of predictions, as a
// share of its mean.
const minEntropyNoise = 0.01

func (d *detector) entropyIsAnomalous(entropy float64) bool {
	if d.limits.EntropySigma == 0 || len(d.s.Entropies) < minSamples {
		return false
	}
	mean, std := meanStd(d.s.Entropies)
	return math.Abs(entropy-mean) > d.limits.EntropySigma*max(std, minEntropyNoise*mean)
}

// diverged reports whether the run should stop.
func (d *detector) diverged() bool {
	return d.limits.Patience > 0 && d.s.Streak >= d.limits.Patience
}

// last keeps the last n values, in memory of its own once there are more.
func last(v []float64, n int) []float64 {
	if len(v) <= n {
		return v
	}
	copy(v, v[len(v)-n:])
	return v[:n]
}

// meanStd is the mean and the standard deviation; the latter at least a thousandth
// of the mean, because a few equal numbers are no measure of noise.
func meanStd(v []float64) (mean, std float64) {
	for _, x := range v {
		mean += x
	}
	mean /= float64(len(v))
	for _, x := range v {
		std += (x - mean) * (x - mean)
	}
	return mean, max(math.Sqrt(std/float64(len(v))), 1e-3*math.Abs(mean), 1e-12)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}
