package optim

import (
	"math"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// chunkLen is the elements whose squares are summed in float32, in the canonical
// order of kernels; chunks are summed in float64, in order. Where workers divide
// a tensor, they divide it between chunks.
const chunkLen = 4096

func chunkCount(n int) int { return (n + chunkLen - 1) / chunkLen }

func sqrt(v float64) float64 { return math.Sqrt(v) }

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// gradientSums is this worker's part of the sums of squares of all gradients.
func (p *Optimizer) gradientSums(w *team.Worker) {
	for i := range p.slots {
		s := &p.slots[i]
		lo, hi := w.Range(len(s.G), chunkLen)
		p.squares(w, s.G, s.chunks[0], lo, hi)
	}
}

// squares writes the sums of squares of the chunks of x in lo ≤ i < hi to sums,
// where x begins at chunk first. A sum that float32 cannot hold well is taken in
// float64: only what is not finite in x gives one that is not finite.
func (p *Optimizer) squares(w *team.Worker, x []float32, first, lo, hi int) {
	k := &p.workers[w.ID]
	for ; lo < hi; lo += chunkLen {
		c := x[lo:min(lo+chunkLen, hi)]
		k.dense = kernels.Dense{Rows: 1, Cols: len(c), Type: kernels.F32, Data: kernels.F32Bytes(c)}
		p.o.Set.DenseGEMV(k.dot[:], &k.dense, c, 0, 1)
		sum := float64(k.dot[0])
		if !(sum > 1e-24 && sum < 1e36) {
			sum = 0
			for _, v := range c {
				sum += float64(float64(v) * float64(v))
			}
		}
		p.sums[first+lo/chunkLen] = sum
	}
}
