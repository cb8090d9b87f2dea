package train

import (
	"fmt"
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

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

func (t trainer) Backward(b *batch, l lossOptions) (lossSum, error) {
	s, err := t.Trainer.Backward((*model.TrainBatch)(b), model.LossOptions(l))
	return lossSum(s), err
}

func (t trainer) Evaluate(b *batch) (lossSum, error) {
	s, err := t.Trainer.Evaluate((*model.TrainBatch)(b))
	return lossSum(s), err
}

func (t trainer) Save(fsys fsx.FS, path string, meta []gguf.KV) error {
	return t.Model().SaveFS(fsys, path, meta...)
}

func (t trainer) Ternary() []*kernels.Ternary {
	return t.Projections()
}

func (t trainer) Memory() Parts {
	m := t.Trainer.Memory()
	return Parts{
		{"latent weights", m.Weights}, {"gradients", m.Grads}, {"model", m.Model}, {"factors of the backward pass", m.Factors},
		{"activations", m.Tape}, {"keys and values", m.Pages}, {"scratch", m.Scratch},
	}
}

func (t trainer) Cosine() (float64, bool) {
	return t.StreamCosine()
}

func (t trainer) Close() error {
	if c, ok := any(t.Trainer).(interface{ Close() error }); ok {
		return c.Close()
	}
	return nil
}

// fillFrom replaces first weights by those of a model file.
func (r *run) fillFrom(path string) error {
	p, err := model.OpenPretrained(path)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Fits(r.cfg.Model); err != nil {
		return &config.Error{Source: r.cfg.Source("train.init_from"), Key: "train.init_from", What: err.Error(), Hint: "set the keys of [model] to the shape of that model"}
	}
	kept, err := p.Fill(r.params)
	if len(kept) > 0 {
		r.logf("%s has no %s: they begin as in a new model", path, strings.Join(kept, ", "))
	}
	return err
}
