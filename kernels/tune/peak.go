package tune

import (
	"fmt"
	"time"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// TrainPeak is the instruction that bounds the backward pass: the dot product in
// bfloat16, or in float32 where that is asked for or the CPU has no others. ok is
// false in builds that cannot measure one.
func TrainPeak(f32 bool) (p kernels.Peak, ok bool) {
	limits, ok := kernels.Roofline()
	if !ok {
		return p, false
	}
	if p = limits.DotBF16; p.Run == nil || f32 {
		p = limits.FMA
	}
	return p, p.Run != nil && p.Ops > 0
}

// Rate is how many operations a second all workers together do by p: the best of some
// tries of at least half of d each, because other programs can only slow one down.
func Rate(tm *team.Team, p kernels.Peak, tries int, d time.Duration) (best float64, err error) {
	const chunk = 2000 // iterations per call into C
	n := 1
	for try := 0; try < tries; {
		began := time.Now()
		if err := tm.Run(func(w *team.Worker) {
			w.Barrier()
			for range n {
				p.Run(chunk)
			}
		}); err != nil {
			return 0, fmt.Errorf("tune: %w", err)
		}
		took := max(time.Since(began), 1)
		if took < d/2 && n < 1<<20 {
			n = min(2*n, 1<<20)
			continue
		}
		try++
		best = max(best, float64(p.Ops)*chunk*float64(n)*float64(tm.Size())/took.Seconds())
	}
	return best, nil
}
