package model

import (
	"github.com/architehc/nanochat/kernels/cuda"
)

// What a step on a device spends time on besides the parts of a Trainer.
const (
	partOptimizer = parts + iota
	gpuTimes
)

// gpuClock counts the device's time by part, with events.
type gpuClock struct {
	on    bool
	marks []gpuMark // of the step at hand
	sum   [gpuTimes]float64
}

// gpuMark is a place in the stream, where a part ends.
type gpuMark struct {
	of part
	at *cuda.Event
}

// start begins a step.
func (c *gpuClock) start(t *cuda.Thread) error {
	c.clear(t)
	return c.mark(t, 0)
}

// mark counts the time since the last mark to a part.
func (c *gpuClock) mark(t *cuda.Thread, of part) error {
	if !c.on {
		return nil
	}
	at, err := t.Record()
	c.marks = append(c.marks, gpuMark{of, at})
	return err
}

// read adds up what a step that has ended took.
func (c *gpuClock) read(t *cuda.Thread) error {
	for i := 1; i < len(c.marks); i++ {
		seconds, err := t.Elapsed(c.marks[i-1].at, c.marks[i].at)
		if err != nil {
			return err
		}
		c.sum[c.marks[i].of] += seconds
	}
	c.clear(t)
	return nil
}

func (c *gpuClock) clear(t *cuda.Thread) {
	for _, m := range c.marks {
		t.Release(m.at)
	}
	c.marks = c.marks[:0]
}

// mark counts the time since the last mark to a part.
func (p *gpuPass) mark(of part) {
	if p.clock.on {
		p.do(p.clock.mark(p.t, of))
	}
}

// SetTiming switches on or off that Parts counts. While it is on nothing is launched as a
// graph.
func (g *GPUTrainer) SetTiming(on bool) { g.clock.on = on }

// Parts is the device's time since the last ClearParts, by part, while timing was on.
func (g *GPUTrainer) Parts() []PartTime {
	out := make([]PartTime, gpuTimes)
	for i, s := range g.clock.sum {
		name := "optimizer"
		if part(i) < parts {
			name = partNames[i]
		}
		out[i] = PartTime{name, s}
	}
	return out
}

// ClearParts begins to count time anew.
func (g *GPUTrainer) ClearParts() { g.clock.sum = [gpuTimes]float64{} }
