package train

import (
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
)

// network is what the loop needs of a model.Trainer.
type network interface {
	Init(seed uint64)
	Params() []optim.Param
	ClearGrads()
	Backward(b *batch, l lossOptions) (lossSum, error)
	Evaluate(b *batch) (lossSum, error)
	Refresh() error
	// Save writes the model that the forward pass uses.
	Save(fsys fsx.FS, path string, meta []gguf.KV) error
	// Ternary is the quantised projections, as the forward pass reads them.
	Ternary() []*kernels.Ternary
	// Memory is what it allocated.
	Memory() Parts
	// Cosine is the mean cosine between the residual streams of the last Backward; ok
	// is false where there is one stream only.
	Cosine() (v float64, ok bool)
	Close() error
}

// The types of model.Trainer, field for field.
type (
	batch struct {
		Tokens, Targets, Starts []int32
		Rows, SeqLen            int
	}
	lossOptions struct{ Scale, Z, Entropy, Smoothing float64 }
	lossSum     struct {
		Count                         int
		NLL, LSE2, Entropy, Objective float64
	}
)

func (s *lossSum) add(o lossSum) {
	s.Count += o.Count
	s.NLL += o.NLL
	s.LSE2 += o.LSE2
	s.Entropy += o.Entropy
	s.Objective += o.Objective
}

// part is the rows lo to hi of a batch.
func (b *batch) part(lo, hi int) *batch {
	n := b.SeqLen
	return &batch{Tokens: b.Tokens[lo*n : hi*n], Targets: b.Targets[lo*n : hi*n], Starts: b.Starts[lo*n : hi*n], Rows: hi - lo, SeqLen: n}
}

// pairs is the number of (query, key) pairs of attention in b: each token sees its
// document from Starts on.
func (b *batch) pairs() (n int64) {
	for i, s := range b.Starts {
		n += int64(i%b.SeqLen) - int64(s) + 1
	}
	return n
}
