package chat

import (
	"context"
	"errors"
	"fmt"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
	"github.com/architehc/nanochat/kernels/tune"
)

// Options say how a model is run. None of them changes a token.
type Options struct {
	// Set computes. The default value is kernels.Best().
	Set *kernels.Set
	// Engine shapes the engine. Its team is made here. A Context beyond the
	// model's is an error.
	Engine infer.Options
	// Tune says how to choose kernels by shape. The default is not to.
	Tune tune.Options
}

// Model is an open model file with a running engine.
type Model struct {
	file   *gguf.File
	model  *model.Model
	tok    *tokenizer.Tokenizer
	team   *team.Team
	engine *infer.Engine
	tuned  *tune.Plan
}

// Open maps the file, loads the model and starts its engine. ctx ends tuning
// only. A file that is no valid model is a *gguf.FormatError or a
// *tokenizer.Error.
func Open(ctx context.Context, path string, o Options) (*Model, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	m := &Model{file: f}
	if err := m.start(ctx, o); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Model) start(ctx context.Context, o Options) (err error) {
	if m.tok, err = tokenizer.FromMetadata(m.file.Path, m.file); err != nil {
		return err
	}
	if m.model, err = model.Load(m.file, model.Options{Set: o.Set, Context: o.Engine.Context}); err != nil {
		return err
	}
	if n, most := m.tok.Vocab(), m.model.Config().Vocab; n > most {
		return m.file.Errorf(nil, "the vocabulary has %d tokens, the model %d", n, most)
	}
	m.team = team.New(o.Engine.Threads, team.Options{Pin: o.Engine.Pin})
	if o.Tune.Mode != "" && o.Tune.Mode != tune.Off {
		if err := m.tune(ctx, o); err != nil {
			return err
		}
	}
	o.Engine.Team = m.team
	m.engine, err = infer.New(m.model, o.Engine)
	return err
}

// tune loads the model once more, with the fastest kernel for each shape.
func (m *Model) tune(ctx context.Context, o Options) error {
	o.Tune.Team, o.Tune.Fallback = m.team, m.model.Set()
	o.Tune.WorkingSet = int(m.model.Memory().Total())
	plan, err := tune.Tune(ctx, shapes(m.model.Config(), o.Engine.MaxTokensPerStep), o.Tune)
	if err != nil {
		return err
	}
	m.tuned = plan
	m.model, err = model.Load(m.file, model.Options{Set: plan.Set, Context: o.Engine.Context})
	return err
}

// shapes lists the products that a model of this shape computes when it decodes
// one sequence and when it reads a prompt in steps of chunk tokens.
func shapes(c config.Model, chunk int) []tune.Shape {
	if chunk <= 0 {
		chunk = 256
	}
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	sizes := [][2]int{{q, c.Dim}, {kv, c.Dim}, {c.Dim, q}, {c.FFN, c.Dim}, {c.Dim, c.FFN}}
	seen := map[tune.Shape]bool{}
	var out []tune.Shape
	add := func(s tune.Shape) {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	for _, s := range sizes {
		group := c.Group
		if group == 0 || group > s[1] {
			group = s[1]
		}
		add(tune.Shape{Op: tune.TernaryGEMV, M: s[0], K: s[1], Group: group, Batch: 1})
		add(tune.Shape{Op: tune.TernaryGEMM, M: s[0], K: s[1], Group: group, Batch: chunk})
	}
	head := c.Head
	if c.TieEmbeddings {
		head = c.Embedding
	}
	t := kernels.F16
	if head == config.TypeQ8_0 {
		t = kernels.Q8_0
	}
	add(tune.Shape{Op: tune.DenseGEMV, M: c.Vocab, K: c.Dim, Type: t, Batch: 1})
	return out
}

// Config is the shape of the network.
func (m *Model) Config() config.Model { return m.model.Config() }

// Kernel is the name of the kernel set in use.
func (m *Model) Kernel() string { return m.model.Set().Name }

// Tokenizer is the vocabulary.
func (m *Model) Tokenizer() *tokenizer.Tokenizer { return m.tok }

// Threads is the number of workers.
func (m *Model) Threads() int { return m.team.Size() }

// Tuned is the result of tuning, nil if there was none.
func (m *Model) Tuned() *tune.Plan { return m.tuned }

// Close ends all streams and unmaps the file. It may be called twice.
func (m *Model) Close() error {
	if m.engine != nil {
		m.engine.Close()
	}
	if m.team != nil {
		m.team.Close()
	}
	f := m.file
	m.engine, m.team, m.file = nil, nil, nil
	if f == nil {
		return nil
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("chat: close: %w", err)
	}
	return nil
}
