package train

import (
	"errors"
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/model"
)

// fillFrom replaces first weights by those of a model file.
func (r *run) fillFrom(path string) error {
	p, err := model.OpenPretrained(path)
	if errors.Is(err, model.ErrTernaryOnly) {
		return &config.Error{Source: r.cfg.Source("train.init_from"), Key: "train.init_from", What: path + ": " + model.ErrTernaryOnly.Error(),
			Hint: "go on with that training (--resume CHECKPOINT), or start from a llama model in GGUF or safetensors"}
	}
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
