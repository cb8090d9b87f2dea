package train

import (
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// findPeak measures the peak, unless it was given, and keeps the highest: other
// programs can only have made it look lower.
func (r *run) findPeak() {
	if r.peak = max(r.peak, r.o.Peak); r.o.Peak == 0 {
		r.peak = max(r.peak, measurePeak(r.team, r.clock, r.cfg.Train.F32))
	}
}

// measurePeak is the rate, in operations a second, at which all workers together do
// the dot products of the backward pass and nothing else: in bfloat16, or in float32
// where that was chosen or the CPU has no others. It is the best of a few short
// measurements, because other programs can only slow it down. 0: this build cannot.
func measurePeak(w *team.Team, c clock.Clock, f32 bool) float64 {
	limits, ok := kernels.Roofline()
	if !ok {
		return 0
	}
	p := limits.DotBF16
	if p.Run == nil || f32 {
		p = limits.FMA
	}
	if p.Run == nil || p.Ops == 0 {
		return 0
	}
	const chunk = 2000
	best := 0.0
	n := 1
	for tries := 0; tries < 10; {
		began := c.Now()
		if w.Run(func(*team.Worker) {
			for range n {
				p.Run(chunk)
			}
		}) != nil {
			return 0
		}
		took := c.Now().Sub(began)
		if took < 5*time.Millisecond && n < 1<<20 {
			n *= 2
			continue
		}
		tries++
		best = max(best, float64(p.Ops)*chunk*float64(n)*float64(w.Size())/max(took.Seconds(), 1e-9))
	}
	return best
}
