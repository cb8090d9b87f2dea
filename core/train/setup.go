package train

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/numa"
	"github.com/architehc/nanochat/kernels/team"
)

// open opens the data and checks the options, and writes nothing; see build.
func open(cfg *config.Config, o Options) (r *run, err error) {
	if o.Set == nil {
		o.Set = kernels.Best()
	}
	if o.FS == nil {
		o.FS = fsx.OS()
	}
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	if o.Resume == "" {
		o.Resume = ResumeAuto
	}
	r = &run{cfg: cfg, o: o, fs: o.FS, clock: o.Clock, set: o.Set, total: cfg.Train.TotalSteps(), saved: -1, detect: newDetector(cfg.Anomaly)}
	if r.memory = o.memory; r.memory == 0 {
		r.memory = int64(numa.MemoryLimit())
	}
	defer func() {
		if err != nil {
			r.close()
			r = nil
		}
	}()
	if r.total == 0 {
		return r, &config.Error{Source: cfg.Source("train.steps"), Key: "train.steps", What: "the run has no length", Hint: "give train.steps or train.tokens"}
	}
	if cfg.Data.Path == "" {
		return r, &config.Error{Key: "data.path", What: "is required", Hint: "a directory that nanochat data prepare wrote"}
	}
	if err := r.openData(); err != nil {
		return r, err
	}
	r.team = team.New(cfg.Train.Threads, team.Options{})
	return r, nil
}

// build makes the network and its optimizer.
func (r *run) build() (err error) {
	switch make := r.o.hooks.devices; {
	case make != nil:
		r.learn, err = make(r)
	case r.gpus != nil:
		if r.learn, err = newDevices(r); err != nil {
			r.learn = nil
			if err = r.fallBack(err); err == nil {
				if err = r.fits(); err == nil {
					return r.build()
				}
			}
		}
	default:
		r.learn, err = newProcessor(r)
	}
	if err != nil {
		r.learn = nil
		return err
	}
	r.params = r.learn.Params()
	return nil
}

// optimOptions is the configured optimizer, without what computes it.
func optimOptions(r *run) optim.Options {
	schedule := scheduleOf(r.cfg)
	schedule.Total = r.total
	return optim.Options{Rules: rulesOf(r.cfg), Schedule: schedule, Clip: r.cfg.Train.Clip, BF16: !r.cfg.Train.F32}
}

// openData opens the shards and their tokenizer and checks that all belong together.
func (r *run) openData() (err error) {
	d := &r.cfg.Data
	if r.manifest, err = data.ReadManifest(d.Path); err != nil {
		return err
	}
	o := data.OpenOptions{SkipVerify: !d.Verify}
	if r.data, err = data.Open(d.Path, data.Train, o); err != nil {
		return err
	}
	if s := r.manifest.Splits[data.Val]; s != nil && s.Tokens > 0 {
		if r.val, err = data.Open(d.Path, data.Val, o); err != nil {
			return err
		}
	}
	vocab := r.data.Vocabulary()
	if n := len(vocab.Bytes); n != r.cfg.Model.Vocab {
		return &config.Error{Source: r.cfg.Source("model.vocab"), Key: "model.vocab", What: fmt.Sprintf("%d, but the data in %s has a vocabulary of %d", r.cfg.Model.Vocab, d.Path, n),
			Hint: fmt.Sprintf("set it to %d, or prepare the data with another tokenizer", n)}
	}
	path := r.tokenizerPath()
	if r.tok, err = OpenTokenizer(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return &config.Error{Source: r.cfg.Source("data.tokenizer"), Key: "data.tokenizer", What: "there is no file " + path, Hint: "name the tokenizer that prepared the data"}
		}
		return err
	}
	if data.TokenizerHash(r.tok) != vocab.Hash {
		return &config.Error{Source: r.cfg.Source("data.tokenizer"), Key: "data.tokenizer", What: path + " is not the tokenizer that prepared the data in " + d.Path,
			Hint: "name that one, or prepare the data again"}
	}
	return nil
}

// tokenizerPath is the configured tokenizer, or the one beside the data.
func (r *run) tokenizerPath() string {
	d := &r.cfg.Data
	if d.Tokenizer != "" {
		return d.Tokenizer
	}
	path := filepath.Join(d.Path, "tokenizer.gguf")
	if _, err := fsx.OS().Stat(path); errors.Is(err, fs.ErrNotExist) {
		path = filepath.Join(d.Path, "tokenizer.json")
	}
	return path
}

// openLoader starts the loader of training batches at a cursor, nil for the start.
func (r *run) openLoader(at *data.Cursor) (err error) {
	t := &r.cfg.Train
	r.loader, err = data.NewLoader(r.data, data.LoaderOptions{
		Rows: t.Rows, SeqLen: t.SeqLen, Seed: uint64(t.Seed), Workers: r.cfg.Data.Workers, Depth: 2, Cursor: at, Clock: r.clock,
		FIM: data.FIM{Rate: r.cfg.Data.FIMRate, SPM: r.cfg.Data.FIMSPM}, Tokenizer: r.tok,
	})
	return err
}

func (r *run) close() {
	if r.loader != nil {
		r.loader.Close()
	}
	if r.metrics != nil {
		r.metrics.close()
	}
	if r.lock != nil {
		r.lock.Close()
	}
	if r.learn != nil {
		r.learn.Close()
	}
	if r.gpus != nil {
		r.gpus.close()
	}
	if r.team != nil {
		r.team.Close()
	}
	for _, d := range []*data.Dataset{r.data, r.val} {
		if d != nil {
			d.Close()
		}
	}
}

// scheduleOf is the configured schedule, without its length.
func scheduleOf(cfg *config.Config) optim.Schedule {
	s := &cfg.Schedule
	out := optim.Schedule{Warmup: s.Warmup, Final: s.Final}
	switch s.Shape {
	case config.ShapeWSD:
		out.Shape, out.Decay = optim.Stable, s.DecaySteps(cfg.Train.TotalSteps())
	case config.ShapeLinear:
		out.Shape = optim.Linear
	case config.ShapeCosine:
		out.Shape = optim.Cosine
	}
	return out
}

// rulesOf is the configured rule of every class.
func rulesOf(cfg *config.Config) map[optim.Class]optim.Rule {
	rules := map[optim.Class]optim.Rule{}
	for class, c := range map[optim.Class]config.Rule{
		optim.Matrix: cfg.Optim.Matrix, optim.Embedding: cfg.Optim.Embedding, optim.Head: cfg.Optim.Head, optim.Scalar: cfg.Optim.Scalar, optim.MHC: cfg.Optim.MHC,
	} {
		rule := optim.Rule{
			LR: c.LR, WeightDecay: c.WeightDecay, Cautious: c.Cautious, NoClip: !c.Clip, Beta1: c.Beta1, Beta2: c.Beta2, Eps: c.Eps,
			Momentum: c.Momentum, MomentumStart: c.MomentumStart, MomentumWarmup: c.MomentumWarmup, NewtonSchulz: c.NewtonSchulz,
		}
		switch c.Rule {
		case config.RuleMuon:
			rule.Kind = optim.Muon
		case config.RuleLion:
			rule.Kind = optim.Lion
		}
		if c.Scaling == config.ScalingSpectral {
			rule.Scaling = optim.Spectral
		}
		rules[class] = rule
	}
	return rules
}
