package train

import (
	"fmt"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// network is what the loop needs of a model.Trainer.
type network interface {
	Init(seed uint64)
	Params() []optim.Param
	ClearGrads()
	Backward(b *model.TrainBatch, l model.LossOptions) (model.LossSum, error)
	Evaluate(b *model.TrainBatch) (model.LossSum, error)
	Refresh() error
	// Save writes the model that the forward pass uses.
	Save(fsys fsx.FS, path string, meta []gguf.KV) error
	// Projections are those quantised, as the forward pass reads them.
	Projections() []*kernels.Ternary
	// Memory is what it allocated.
	Memory() Parts
	// StreamCosine is the mean cosine between the residual streams of the last Backward;
	// ok is false where there is one stream only.
	StreamCosine() (v float64, ok bool)
}

// trainer is a model.Trainer as a network.
type trainer struct{ *model.Trainer }

func newNetwork(r *run) (network, error) {
	t := &r.cfg.Train
	n, err := model.NewTrainer(r.cfg.Model, trainOptions(r.cfg, r.set, r.team))
	if err != nil {
		return nil, &Error{What: fmt.Sprintf("making the network of %d tokens at a time", t.MicroRows*t.SeqLen), Err: err}
	}
	return trainer{n}, nil
}

func trainOptions(cfg *config.Config, set *kernels.Set, w *team.Team) model.TrainOptions {
	t := &cfg.Train
	return model.TrainOptions{Set: set, Team: w, Tokens: t.MicroRows * t.SeqLen, Recompute: t.Recompute, Float: t.Float, F32: t.F32}
}

func (t trainer) Save(fsys fsx.FS, path string, meta []gguf.KV) error {
	return t.Model().SaveFS(fsys, path, meta...)
}

func (t trainer) Memory() Parts { return memoryParts(t.Trainer.Memory()) }

func memoryParts(m model.TrainMemory) Parts {
	return Parts{
		{"latent weights", m.Weights}, {"gradients", m.Grads}, {"model", m.Model}, {"factors of the backward pass", m.Factors},
		{"activations", m.Tape}, {"keys and values", m.Pages}, {"scratch", m.Scratch},
	}
}

// batchOf is the rows lo to hi of a batch.
func batchOf(b *data.Batch, lo, hi int) *model.TrainBatch {
	n := b.SeqLen
	return &model.TrainBatch{Tokens: b.Tokens[lo*n : hi*n], Targets: b.Targets[lo*n : hi*n], Starts: b.Starts[lo*n : hi*n], Rows: hi - lo, SeqLen: n}
}

// flops is the arithmetic of a step on b: each token attends to its document from
// Starts on.
func flops(m *config.Model, b *data.Batch) float64 {
	var pairs int64
	for i, s := range b.Starts {
		pairs += int64(i%b.SeqLen) - int64(s) + 1
	}
	return m.TrainFLOPs(int64(len(b.Tokens)), pairs)
}
