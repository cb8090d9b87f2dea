package bench

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
	"github.com/architehc/nanochat/kernels/tune"
)

// Options says how to measure.
type Options struct {
	// Threads are the team sizes to measure. The default is one, and all cores this
	// process may use.
	Threads []int
	// Sets are the kernel sets to measure. The default is the best one, and for
	// the shapes that ask for it the best one of AVX2.
	Sets []*kernels.Set
	// Repeats is the number of repetitions whose median counts: at least 5. The default
	// value is 7.
	Repeats int
	// BatchTime is how long one repetition takes at least. The default value is 15 ms.
	BatchTime time.Duration
	// MaxBytes leaves out shapes that need more memory than that. 0 means half of the
	// machine's, or no limit if that is unknown.
	MaxBytes int64
	// Progress is told what is being measured, before it is. It may be nil.
	Progress func(name string)
}

func (o Options) withDefaults() Options {
	if len(o.Threads) == 0 {
		o.Threads = []int{1}
		if n := team.DefaultSize(); n > 1 {
			o.Threads = append(o.Threads, n)
		}
	}
	if o.Repeats == 0 {
		o.Repeats = 7
	}
	o.Repeats = max(o.Repeats, 5)
	if o.BatchTime <= 0 {
		o.BatchTime = 15 * time.Millisecond
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o
}

// A task is one thing to time: body runs it iters times on every worker.
type task struct {
	body  func(w *team.Worker, iters int)
	iters int
	// per is the amount of work of one iteration of all workers together.
	per float64
	// rates are amounts per nanosecond, one per repetition.
	rates []float64
}

// calibrate warms the task up and chooses iters so that it takes about d.
func (t *task) calibrate(tm *team.Team, d time.Duration) error {
	t.iters = 1
	for range 20 {
		ns, err := t.time(tm)
		if err != nil {
			return err
		}
		want := float64(d.Nanoseconds())
		if ns >= want/2 {
			t.iters = max(1, int(math.Round(float64(t.iters)*want/ns)))
			return nil
		}
		t.iters = max(t.iters+1, int(float64(t.iters)*min(100, want/max(ns, 1))))
	}
	return nil
}

// time runs the task once and returns nanoseconds.
func (t *task) time(tm *team.Team) (float64, error) {
	iters := t.iters
	start := time.Now()
	err := tm.Run(func(w *team.Worker) { t.body(w, iters) })
	return float64(time.Since(start).Nanoseconds()), err
}

// alternate times the tasks in turn, so that each repetition of one meets the
// same machine as that of the others.
func alternate(ctx context.Context, tm *team.Team, o Options, tasks []*task, durations []time.Duration) error {
	for i, t := range tasks {
		if err := t.calibrate(tm, durations[i]); err != nil {
			return fmt.Errorf("bench: %w", err)
		}
	}
	for range o.Repeats {
		for _, t := range tasks {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("bench: %w", context.Cause(ctx))
			}
			ns, err := t.time(tm)
			if err != nil {
				return fmt.Errorf("bench: %w", err)
			}
			t.rates = append(t.rates, t.per*float64(t.iters)/max(ns, 1))
		}
	}
	return nil
}

func (t *task) spread() Spread { return spreadOf(t.rates) }

func spreadOf(x []float64) Spread {
	if len(x) == 0 {
		return Spread{}
	}
	return Spread{Median: round(tune.Median(x)), Min: round(slices.Min(x)), Max: round(slices.Max(x))}
}

// round keeps four significant digits: more would be noise.
func round(x float64) float64 {
	if x == 0 || math.IsInf(x, 0) || math.IsNaN(x) {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(x))))
	return math.Round(x*scale) / scale
}

func round2(x float64) float64 { return math.Round(x*100) / 100 }
