package bench

import (
	"fmt"
	"math"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// attention is one row of the table of attention shapes: n queries, the last of
// which sees seen positions.
type attention struct {
	heads, kvHeads, headDim int
	seen, n                 int
	kind                    kernels.KVType
}

// attentions are decoding and a block of a prompt, for nano-125m and BitNet
// b1.58 2B4T.
func attentions() []attention {
	return []attention{
		{12, 12, 64, 512, 1, kernels.KVF16},
		{12, 12, 64, 512, 1, kernels.KVI8},
		{20, 5, 128, 512, 1, kernels.KVF16},
		{12, 12, 64, 512, 256, kernels.KVF16},
		{20, 5, 128, 512, 256, kernels.KVF16},
	}
}

// ops is the number of operations: a score and a weighted value per position
// and query, each headDim multiply-adds.
func (a attention) ops() float64 {
	first := a.seen - a.n + 1
	positions := float64(a.n) * float64(first+a.seen) / 2
	return 4 * float64(a.headDim) * float64(a.heads) * positions
}

func (m *meter) attention(a attention, set *kernels.Set) error {
	m.o.Progress(fmt.Sprintf("attention %d heads, %d positions, %d queries, %d threads", a.heads, a.seen, a.n, m.team.Size()))
	width := a.heads * a.headDim
	pages := (a.seen + kernels.PageLen - 1) / kernels.PageLen
	kv := kernels.KV{Type: a.kind, Heads: a.kvHeads, HeadDim: a.headDim, PageBytes: a.kvHeads * a.kind.HeadBytes(a.headDim)}
	kv.Slab = kernels.AlignedBytes(pages * kv.PageBytes)
	for i := range pages {
		kv.Pages = append(kv.Pages, int32(i))
	}
	row := make([]float32, a.kvHeads*a.headDim)
	for pos := range a.seen {
		for i := range row {
			row[i] = float32(math.Sin(float64(pos*31+i) * 0.1))
		}
		set.KVStore(&kv, pos, row, row)
	}
	q, dst := make([]float32, a.n*width), make([]float32, a.n*width)
	for i := range q {
		q[i] = float32(math.Cos(float64(i%1021) * 0.3))
	}
	query := kernels.Query{Pos: a.seen - a.n, N: a.n, Heads: a.heads, Scale: float32(1 / math.Sqrt(float64(a.headDim)))}
	scratch := make([][]byte, m.team.Size())
	for i := range scratch {
		scratch[i] = kernels.AlignedBytes(kernels.AttentionScratch(a.headDim))
	}
	// Each worker takes whole key/value heads, as the model does.
	share := a.heads / a.kvHeads
	run := &task{per: a.ops(), body: func(w *team.Worker, iters int) {
		lo, hi := w.Range(a.heads, share)
		for range iters {
			if lo < hi {
				set.Attention(dst, width, q, width, &kv, query, lo, hi, scratch[w.ID])
			}
			w.Barrier()
		}
	}}
	k := Kernel{Op: "attention", Kernel: set.Name, M: a.heads, K: a.seen, N: a.n, Type: "f16", WeightBytes: len(kv.Slab)}
	if a.kind == kernels.KVI8 {
		k.Type = "i8"
	}
	return m.against(k, run, m.limits.FMA, func(int) []byte { return kv.Slab })
}
