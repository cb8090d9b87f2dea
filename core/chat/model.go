package chat

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/team"
)

// Options say how a model is run. None of them changes a token.
type Options struct {
	// Set computes. The default value is kernels.Best().
	Set *kernels.Set
	// Engine shapes the engine. Its team is made here. A Context beyond the
	// model's is an error.
	Engine infer.Options
	// HugePages copies the matrices into memory with huge pages.
	HugePages bool
	// Device is where it is computed: one of the Device names; "" is DeviceCPU. CUDA is
	// where the libraries of a GPU are.
	Device string
	CUDA   cuda.Setup
	// Choose, if not nil, is asked for the set once the model and the team are there.
	Choose Chooser
}

// Model is an open model file with a running engine.
type Model struct {
	file   *gguf.File
	model  *model.Model
	tok    *tokenizer.Tokenizer
	team   *team.Team
	device *cuda.Device // nil if the processor computes
	note   error        // why it does, where a GPU was preferred
	engine *infer.Engine
	info   fileInfo

	closing sync.Mutex
	closed  bool
}

// Open maps the file, loads the model and starts its engine. ctx is
// for Choose. A file that is no valid model is a *gguf.FormatError or a
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
	load := model.Options{Set: o.Set, Context: o.Engine.Context, HugePages: o.HugePages}
	if m.model, err = model.Load(m.file, load); err != nil {
		return err
	}
	if m.tok, err = tokenizer.FromMetadata(m.file.Path, m.file); err != nil {
		return err
	}
	if n, most := m.tok.Vocab(), m.model.Config().Vocab; n > most {
		return m.file.Errorf(nil, "the vocabulary has %d tokens, the model %d", n, most)
	}
	m.info = describe(m.file, m.model.Config(), m.tok)
	m.team = team.New(o.Engine.Threads, team.Options{Pin: o.Engine.Pin})
	if o.Choose != nil {
		set, err := o.Choose(ctx, m.model.Config(), m.team)
		if err != nil {
			return err
		}
		m.model = m.model.WithSet(set)
	}
	if o.Engine.GPU, err = m.openGPU(o); err != nil {
		return err
	}
	o.Engine.Team = m.team
	m.engine, err = infer.New(m.model, o.Engine)
	return err
}

// Config is the shape of the network.
func (m *Model) Config() config.Model { return m.model.Config() }

// Kernel is the name of the kernel set in use: "cuda" on a GPU.
func (m *Model) Kernel() string {
	if m.device != nil {
		return DeviceCUDA
	}
	return m.model.Set().Name
}

// Tokenizer is the vocabulary.
func (m *Model) Tokenizer() *tokenizer.Tokenizer { return m.tok }

// Threads is the number of workers.
func (m *Model) Threads() int { return m.team.Size() }

// Close ends all streams and unmaps the file. It may be called twice.
func (m *Model) Close() error {
	m.closing.Lock()
	defer m.closing.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	if m.engine != nil {
		m.engine.Close()
	}
	if m.team != nil {
		m.team.Close()
	}
	if m.device != nil {
		m.device.Close()
	}
	if err := m.file.Close(); err != nil {
		return fmt.Errorf("chat: close: %w", err)
	}
	return nil
}
