package bench

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// Change is one number that two reports have in common.
type Change struct {
	Name string `json:"name"`
	// Old and New are speeds, or times of which less is better.
	Old  float64 `json:"old"`
	New  float64 `json:"new"`
	Unit string  `json:"unit"`
	// Speedup is above 1 if New is better.
	Speedup float64 `json:"speedup"`
	// Noise is how far repetitions lay from the median, as a part of it: half their
	// range, of the report where it is larger. 0 for a number without repetitions.
	Noise float64 `json:"noise"`
	// Clear says that the change is larger than both measurements' spread and 3 %.
	Clear bool `json:"clear"`
}

// point is one number of a report, with its range.
type point struct {
	name, unit string
	value      Spread
	less       bool // is better
}

// points lists the numbers of a report.
func (r *Report) points() []point {
	var ps []point
	if r.Roofline != nil {
		for _, p := range r.Roofline.Peaks {
			ps = append(ps, point{fmt.Sprintf("%s, %d threads", p.Instruction, p.Threads), "GOPS", p.GOPS, false})
		}
		for _, p := range r.Roofline.Reads {
			ps = append(ps, point{fmt.Sprintf("read %s, %d threads", p.Level, p.Threads), "GB/s", p.GBs, false})
		}
	}
	for _, k := range r.Kernels {
		weights := k.Type
		if k.Group > 0 {
			weights = fmt.Sprintf("group %d", k.Group)
		}
		name := fmt.Sprintf("%s %s %d×%d×%d %s, %d threads", k.Op, k.Kernel, k.M, k.K, k.N, weights, k.Threads)
		ps = append(ps, point{name, "GOPS", Spread{k.GOPS, k.MinGOPS, k.MaxGOPS}, false})
	}
	if m := r.Model; m != nil {
		at := m.Name + ", " + by(m.Device, m.Threads)
		ps = append(ps,
			point{"prefill " + at, "tok/s", Spread{m.Prefill.TokS, m.Prefill.Min, m.Prefill.Max}, false},
			point{"decode " + at, "tok/s", Spread{m.Decode.TokS, m.Decode.Min, m.Decode.Max}, false},
			point{"first token " + at, "ms", Spread{Median: m.TTFT}, true},
			point{"load " + at, "ms", m.LoadSpread, true},
			point{"resident memory " + at, "MiB", Spread{Median: round(float64(m.RSS) / (1 << 20))}, true})
	}
	if s := r.Together; s != nil {
		at := s.Name + ", " + by(s.Device, s.Threads)
		ps = append(ps,
			point{fmt.Sprintf("%d streams %s", s.Streams, at), "tok/s", s.All, false},
			point{fmt.Sprintf("%d streams against one %s", s.Streams, at), "times", s.Ratio, false},
			point{fmt.Sprintf("first token beside %d streams %s", s.Writing, at), "ms", s.TTFT, true},
			point{fmt.Sprintf("largest gap beside a prompt %s", at), "medians", s.Gap, true})
	}
	return ps
}

// Compare lists the numbers that old and now have in common, in the order of
// now. Reports of different machines compare, but mean little.
func Compare(old, now *Report) []Change {
	before := map[string]point{}
	for _, p := range old.points() {
		before[p.name] = p
	}
	var cs []Change
	for _, p := range now.points() {
		o, ok := before[p.name]
		if !ok || o.value.Median <= 0 || p.value.Median <= 0 {
			continue
		}
		c := Change{Name: p.name, Old: o.value.Median, New: p.value.Median, Unit: p.unit}
		c.Speedup = round(c.New / c.Old)
		if p.less {
			c.Speedup = round(c.Old / c.New)
		}
		c.Noise = round(max(o.value.noise(), p.value.noise()))
		apart := o.value.Max < p.value.Min || p.value.Max < o.value.Min || o.value.Max == 0
		c.Clear = apart && c.differs()
		cs = append(cs, c)
	}
	return cs
}

// differs says that the change is worth a look, if it is one.
func (c Change) differs() bool { return math.Abs(c.Speedup-1) > 0.03 }

// Hidden counts the differences of more than 3 % that are no larger than the noise:
// they say nothing.
func Hidden(cs []Change) int {
	n := 0
	for _, c := range cs {
		if c.differs() && !c.Clear {
			n++
		}
	}
	return n
}

// noise is half the range as a part of the median.
func (s Spread) noise() float64 {
	if s.Max == 0 {
		return 0
	}
	return (s.Max - s.Min) / 2 / s.Median
}

// WriteChanges writes changes as a table. Clear ones are marked with their
// direction, those of more than 3 % that are not clear as noise.
func WriteChanges(w io.Writer, cs []Change) error {
	t := &table{title: "Compared with the older report", header: []string{"<what", "old", "new", "<unit", "±", "speedup", "<"}}
	for _, c := range cs {
		mark := ""
		switch {
		case c.Clear && c.Speedup > 1:
			mark = "faster"
		case c.Clear:
			mark = "slower"
		case c.differs():
			mark = "noise"
		}
		t.add(c.Name, num(c.Old), num(c.New), c.Unit, fmt.Sprintf("%.0f %%", 100*c.Noise), fmt.Sprintf("%.2f", c.Speedup), mark)
	}
	var b strings.Builder
	t.text(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// by is what computed, for people.
func by(device string, threads int) string {
	if device != "" {
		return device
	}
	return fmt.Sprintf("%d threads", threads)
}
