package tune

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/numa"
	"github.com/architehc/nanochat/kernels/team"
)

// Mode says whether to measure.
type Mode string

// The modes of tuning.
const (
	// Off uses the fallback set for everything and reads no file.
	Off Mode = "off"
	// Auto uses what is stored and measures what is missing.
	Auto Mode = "auto"
	// Refresh measures everything again.
	Refresh Mode = "refresh"
)

// ParseMode reads a mode's name; empty means Off.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case "":
		return Off, nil
	case Off, Auto, Refresh:
		return m, nil
	}
	return Off, fmt.Errorf("tune: unknown mode %q: want off, auto or refresh", s)
}

// Options says how to tune.
type Options struct {
	// Mode is Off by default.
	Mode Mode
	// Dir is the directory of the stored choices, see DefaultDir. Empty means that
	// nothing is read or stored.
	Dir string
	// Version is the version of the library; choices of another are not used.
	Version string
	// Sets are the candidates, best guess first. By default they are kernels.All()
	// without the portable ones, if there are others.
	Sets []*kernels.Set
	// Fallback runs what is not tuned. The default is kernels.Best().
	Fallback *kernels.Set
	// Team is the workers that measure, the same as will run. Nil means one worker.
	Team *team.Team
	// WorkingSet is the size of all weights that are used in turn, in bytes: if it
	// exceeds the last cache, matrices are measured coming from memory.
	WorkingSet int
	// Repeats is the number of timed batches whose median counts: 5 by default, and
	// at least.
	Repeats int
	// BatchTime is the least duration of one timed batch, 1 ms by default.
	BatchTime time.Duration
}

func (o Options) withDefaults() Options {
	if o.Fallback == nil {
		o.Fallback = kernels.Best()
	}
	if o.Sets == nil {
		o.Sets = slices.DeleteFunc(kernels.All(), func(s *kernels.Set) bool { return s.Name == "go" || s.Name == "scalar" })
		if len(o.Sets) == 0 {
			o.Sets = kernels.All()[:1]
		}
	}
	o.Repeats = max(o.Repeats, 5)
	if o.BatchTime <= 0 {
		o.BatchTime = time.Millisecond
	}
	return o
}

// Timing is one measured candidate.
type Timing struct {
	Kernel string `json:"kernel"`
	// Grain is the number of rows a worker takes at a time, 0 for one part each.
	Grain int `json:"grain"`
	// Nanoseconds is the median time of one product.
	Nanoseconds float64 `json:"ns"`
}

// Choice is the fastest candidate of a shape, and all that were measured.
type Choice struct {
	Shape
	Threads int `json:"threads"`
	Timing
	Candidates []Timing `json:"candidates"`
}

// Plan is the result of tuning.
type Plan struct {
	// Set runs every tuned shape on its fastest set and everything else on the
	// fallback. It is the fallback itself if nothing else is faster.
	Set *kernels.Set
	// Choices has one entry per shape.
	Choices []Choice
	// Measured counts the shapes measured now; the others were stored.
	Measured int
	// Notes says why stored choices were not used or could not be stored.
	Notes []string
}

// Grain is the number of rows workers should take at a time for a shape (see
// team.Counter), 0 for one part each, which is also the answer for a shape that
// was not tuned.
func (p *Plan) Grain(s Shape) int {
	s = s.bucketed()
	for i := range p.Choices {
		if p.Choices[i].Shape == s {
			return p.Choices[i].Grain
		}
	}
	return 0
}

// Tune finds the fastest set for each shape. The error is about the arguments
// or ctx; trouble with the stored file is in the plan's notes, and then shapes
// are measured. Plan.Set is usable even with an error.
func Tune(ctx context.Context, shapes []Shape, o Options) (*Plan, error) {
	o = o.withDefaults()
	p := &Plan{Set: o.Fallback}
	if o.Mode == Off || o.Mode == "" {
		return p, nil
	}
	if _, err := ParseMode(string(o.Mode)); err != nil {
		return p, err
	}
	tm := o.Team
	if tm == nil {
		tm = team.New(1, team.Options{})
		defer tm.Close()
	}
	machine := numa.ReadMachine()
	s := newStore(o, machine)
	var stored []Choice
	if o.Dir != "" && o.Mode == Auto {
		var err error
		if stored, err = s.read(); err != nil {
			p.Notes = append(p.Notes, err.Error())
		}
	}
	for _, shape := range shapes {
		shape = shape.bucketed()
		if err := shape.check(); err != nil {
			return p, err
		}
		if p.find(shape) {
			continue // asked for twice
		}
		if c := find(stored, shape, tm.Size()); c != nil {
			p.Choices = append(p.Choices, *c)
			continue
		}
		c, err := measure(ctx, shape, tm, o, machine)
		if err != nil {
			p.Set = compose(o, p.Choices)
			return p, err
		}
		p.Choices = append(p.Choices, c)
		p.Measured++
	}
	p.Set = compose(o, p.Choices)
	if o.Dir != "" && p.Measured > 0 {
		if err := s.write(p.Choices); err != nil {
			p.Notes = append(p.Notes, err.Error())
		}
	}
	return p, nil
}

func (p *Plan) find(s Shape) bool {
	return slices.ContainsFunc(p.Choices, func(c Choice) bool { return c.Shape == s })
}

func find(choices []Choice, s Shape, threads int) *Choice {
	for i := range choices {
		if choices[i].Shape == s && choices[i].Threads == threads {
			return &choices[i]
		}
	}
	return nil
}

// path is the file of a machine and version in dir.
func path(dir, id string) string { return filepath.Join(dir, "kernels-"+id+".json") }
