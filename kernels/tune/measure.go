package tune

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/numa"
	"github.com/architehc/nanochat/kernels/team"
)

// Limits of what a measurement may use.
const (
	maxWorkingSet = 256 << 20
	probes        = 4
	tie           = 0.97 // within this factor the better guess wins
	hopeless      = 3    // a candidate this many times slower than the best is not timed further
)

// candidate is one way to run a shape.
type candidate struct {
	set   *kernels.Set
	grain int
	times []float64 // ns per product, one per batch
}

// measure times all candidates of a shape and chooses the fastest. Batches of
// the candidates alternate, so that a disturbance hits all alike.
func measure(ctx context.Context, s Shape, tm *team.Team, o Options, m numa.Machine) (Choice, error) {
	threads := tm.Size()
	workingSet := 0
	if cache := m.LastCache(32 << 20); o.WorkingSet > cache {
		workingSet = min(2*cache, maxWorkingSet)
	}
	work, err := NewWork(s, threads, workingSet)
	if err != nil {
		return Choice{}, err
	}
	defer work.Close()
	work.Prepare(o.Fallback)

	var cs []*candidate
	for _, set := range o.Sets {
		cs = append(cs, &candidate{set: set})
		// Chunks of rows even out cores that are not equally fast.
		if grain := s.M / (8 * threads) / kernels.TileSide * kernels.TileSide; threads > 1 && grain > 0 {
			cs = append(cs, &candidate{set: set, grain: grain})
		}
	}
	cs, iters, err := probe(ctx, cs, work, tm, o)
	if err != nil {
		return Choice{}, err
	}
	for range o.Repeats {
		for _, c := range cs {
			if err := ctx.Err(); err != nil {
				return Choice{}, fmt.Errorf("tune: %w", err)
			}
			ns, err := timed(c, work, tm, iters)
			if err != nil {
				return Choice{}, err
			}
			c.times = append(c.times, ns)
		}
	}
	choice := Choice{Shape: s, Threads: threads}
	for _, c := range cs {
		t := Timing{Kernel: c.set.Name, Grain: c.grain, Nanoseconds: Median(c.times)}
		choice.Candidates = append(choice.Candidates, t)
		// A tie within the noise goes to the better guess, which comes first.
		if choice.Kernel == "" || t.Nanoseconds < tie*choice.Nanoseconds {
			choice.Timing = t
		}
	}
	return choice, nil
}

// probe warms up, drops hopeless candidates, and finds how many products take
// o.BatchTime.
func probe(ctx context.Context, cs []*candidate, work *Work, tm *team.Team, o Options) ([]*candidate, int, error) {
	once := make([]float64, len(cs))
	best := 0.0
	for i, c := range cs {
		if err := ctx.Err(); err != nil {
			return nil, 0, fmt.Errorf("tune: %w", err)
		}
		for try := range probes {
			ns, err := timed(c, work, tm, 1)
			if err != nil {
				return nil, 0, err
			}
			if try <= 1 || ns < once[i] { // the first only warms up
				once[i] = ns
			}
		}
		if best == 0 || once[i] < best {
			best = once[i]
		}
	}
	var keep []*candidate
	for i, c := range cs {
		if once[i] <= hopeless*best {
			keep = append(keep, c)
		}
	}
	return keep, max(1, int(float64(o.BatchTime.Nanoseconds())/max(best, 1))), nil
}

// timed runs the product iters times and returns nanoseconds per product.
func timed(c *candidate, work *Work, tm *team.Team, iters int) (float64, error) {
	start := time.Now()
	err := tm.Run(func(w *team.Worker) {
		for i := range iters {
			work.Run(c.set, w, i, c.grain)
		}
	})
	if err != nil {
		return 0, fmt.Errorf("tune: %s of %s: %w", work.Shape.Op, c.set.Name, err)
	}
	return float64(time.Since(start).Nanoseconds()) / float64(iters), nil
}

// Median is the middle of x, or the mean of the two in the middle; 0 if x is
// empty. x keeps its order.
func Median(x []float64) float64 {
	if len(x) == 0 {
		return 0
	}
	s := slices.Clone(x)
	slices.Sort(s)
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
