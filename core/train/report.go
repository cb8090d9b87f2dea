package train

import (
	"fmt"
	"strings"
	"time"

	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
)

// interval collects what a line of the log is a mean of.
type interval struct {
	steps              int
	loss, ce, bpb      float64
	tokens             float64
	seconds, wait, mfu float64
	pace               float64 // smoothed seconds of a step
}

// logf writes a line for people.
func (r *run) logf(format string, args ...any) {
	if r.o.Log != nil {
		fmt.Fprintf(r.o.Log, format+"\n", args...)
	}
}

// tell reports a step: always to Progress, and with line as a line of the log, which
// holds the means since the line before.
func (r *run) tell(m *Metrics, line bool) {
	v := &r.interval
	seconds := float64(m.StepMS) / 1e3
	if v.pace == 0 {
		v.pace = seconds
	}
	v.pace += (seconds - v.pace) / 10
	v.seconds += seconds
	v.wait += float64(m.WaitMS) / 1e3
	if !m.Skipped {
		v.steps++
		v.loss += float64(m.Loss)
		v.ce += float64(m.CE)
		v.bpb += float64(m.BPB)
	}
	v.tokens += float64(m.TokensPerSecond) * seconds
	v.mfu += float64(m.MFU) * seconds
	left := time.Duration(v.pace * float64(r.total-m.Step) * float64(time.Second))
	if r.o.Progress != nil {
		r.o.Progress(&Progress{Metrics: m, Step: m.Step, Steps: r.total, Left: left})
	}
	if !line {
		return
	}
	n, s := float64(max(v.steps, 1)), max(v.seconds, 1e-9)
	var b strings.Builder
	fmt.Fprintf(&b, "step %*d/%d  loss %.4f  ce %.4f  bpb %.4f  lr %.3g  grad %.3g  %.0f tok/s", len(fmt.Sprint(r.total)), m.Step, r.total,
		v.loss/n, v.ce/n, v.bpb/n, float64(m.LR), float64(m.GradNorm), v.tokens/s)
	if m.MFU > 0 {
		fmt.Fprintf(&b, "  mfu %.3f", v.mfu/s)
	}
	fmt.Fprintf(&b, "  wait %.1f %%", 100*v.wait/s)
	if m.FlipRate != nil {
		fmt.Fprintf(&b, "  flips %.3f %%", 100**m.FlipRate)
	}
	if m.ZeroFraction != nil {
		fmt.Fprintf(&b, "  zeros %.1f %%", 100**m.ZeroFraction)
	}
	if m.SkippedTotal > 0 {
		fmt.Fprintf(&b, "  skipped %d", m.SkippedTotal)
	}
	fmt.Fprintf(&b, "  left %s", Left(left))
	r.logf("%s", b.String())
	if m.Val != nil {
		best := ""
		if r.meta.BestStep == m.Step {
			best = ", the best so far"
		}
		r.logf("step %*d/%d  validation: %.4f bits per byte, %.4f nats per token, %d tokens in %.1f s%s", len(fmt.Sprint(r.total)), m.Step, r.total,
			m.Val.BPB, m.Val.Nats, m.Val.Tokens, m.Val.Seconds, best)
	}
	pace := v.pace
	*v = interval{pace: pace}
}

// size is a number of bytes for people.
func size(n int64) string {
	v, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB"} {
		if v >= 1024 {
			v, unit = v/1024, u
		}
	}
	if unit == "B" {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// Left is a time to come, for people: 1h05m, 4m10s, 12s.
func Left(d time.Duration) string {
	s := int(d.Round(time.Second).Seconds())
	switch {
	case s >= 3600:
		return fmt.Sprintf("%dh%02dm", s/3600, s%3600/60)
	case s >= 60:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	}
	return fmt.Sprintf("%ds", s)
}

// keepTrits copies the trits before an update.
func (r *run) keepTrits() error {
	now, err := r.learn.Projections()
	if err != nil {
		return err
	}
	if r.last == nil {
		for _, w := range now {
			c := *w
			c.Tiles = kernels.AlignedBytes(len(w.Tiles))
			r.last = append(r.last, &c)
		}
	}
	for i, w := range now {
		copy(r.last[i].Tiles, w.Tiles)
	}
	return nil
}

// mhcNorms is the norms of the gradients of the hyper-connections' tensors.
func (r *run) mhcNorms(report *optim.Report) map[string]Number {
	norms := map[string]Number{}
	for i := range r.params {
		if p := &r.params[i]; p.Class == optim.MHC && i < len(report.Norms) {
			norms[p.Name] = Number(report.Norms[i])
		}
	}
	return norms
}

// trits counts what the update did to them.
func (r *run) trits(m *Metrics) error {
	now, err := r.learn.Projections()
	if err != nil {
		return err
	}
	var changed, total, zero int
	for i, w := range now {
		c, n, err := ternary.Flips(r.last[i], w)
		if err != nil {
			return nil // another shape than before: nothing to compare
		}
		changed, total = changed+c, total+n
		zero += ternary.CountTrits(w).Zero
	}
	if total > 0 {
		flips, zeros := Number(float64(changed)/float64(total)), Number(float64(zero)/float64(total))
		m.FlipRate, m.ZeroFraction = &flips, &zeros
	}
	return nil
}
