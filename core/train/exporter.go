package train

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/kernels"
)

// ExportOptions says what Export takes and how.
type ExportOptions struct {
	// Best takes the checkpoint of a run with the lowest bits per byte, not the newest.
	Best bool
	// Tokenizer is the file of the tokenizer; empty: that of the run's configuration.
	Tokenizer string
	// Version goes into the model file.
	Version string
	// Set computes. The default is kernels.Best(). Quantised weights do not depend on it.
	Set *kernels.Set
	// FS is the disk with the checkpoint and the model file; the default is the real
	// one.
	FS fsx.FS
	// Warn is told about checkpoints that are passed over. It may be nil.
	Warn func(err error)
}

// Exported is a model file made of a checkpoint.
type Exported struct {
	Checkpoint string  `json:"checkpoint"`
	Step       int     `json:"step"`
	Tokens     int64   `json:"tokens"`
	Seconds    float64 `json:"seconds"`
	// Val is the evaluation at that step, nil if there was none.
	Val *Eval `json:"val,omitempty"`
	// Config is the configuration of the run.
	Config *config.Config `json:"-"`
}

// Export makes the model file out of a checkpoint: the weights that the forward pass
// of the training used at that step, the tokenizer and where they came from; the very
// bytes that the run itself would write. path is a checkpoint or a directory of a run.
func Export(path, out string, o ExportOptions) (*Exported, error) {
	o.defaults()
	r, state, at, err := o.read(path)
	if err != nil {
		return nil, err
	}
	if r.cfg.Train.Float {
		return nil, &Error{What: "checkpoint " + at, Err: errors.New("its projections are floating point"),
			Hint: "only ternary models have a file of this form: train without train.float"}
	}
	if err := r.exportTokenizer(o.Tokenizer); err != nil {
		return nil, err
	}
	net, err := restore(r, state, at)
	if err != nil {
		return nil, err
	}
	kvs, err := r.provenance()
	if err != nil {
		return nil, err
	}
	if err := net.Model().SaveFS(o.FS, out, kvs...); err != nil {
		return nil, &Error{What: "output " + out, Err: plain(err)}
	}
	e := &Exported{Checkpoint: at, Step: r.meta.Step, Tokens: r.meta.Tokens, Seconds: r.meta.Seconds, Config: r.cfg}
	if r.meta.ValStep == r.meta.Step {
		e.Val = r.meta.Val
	}
	return e, nil
}

func (o *ExportOptions) defaults() {
	if o.FS == nil {
		o.FS = fsx.OS()
	}
	if o.Set == nil {
		o.Set = kernels.Best()
	}
}

// read is the run whose checkpoint path stands for, with its state and configuration
// and nothing else, the state, and where it was.
func (o *ExportOptions) read(path string) (r *run, state *checkpoint.State, at string, err error) {
	if at, err = o.find(path); err != nil {
		return nil, nil, "", err
	}
	if state, err = checkpoint.Load(o.FS, at); err != nil {
		return nil, nil, "", err
	}
	r = &run{o: Options{Version: o.Version}, fs: o.FS, set: o.Set}
	if err = state.GetMeta(&r.meta); err == nil && r.meta.Version != metaVersion {
		err = fmt.Errorf("state of version %d, this program reads %d", r.meta.Version, metaVersion)
	}
	if err == nil {
		r.cfg, err = config.Parse("config of "+at, []byte(r.meta.Config))
	}
	if err != nil {
		return nil, nil, "", &Error{What: "checkpoint " + at, Err: err, Hint: otherVersion}
	}
	return r, state, at, nil
}

const otherVersion = "it was made by another version of the program; use that one"

// restore makes the network of a checkpoint, ready to compute.
func restore(r *run, state *checkpoint.State, at string) (*model.Trainer, error) {
	bad := func(err error, hint string) error { return &Error{What: "checkpoint " + at, Err: err, Hint: hint} }
	net, err := model.NewTrainer(r.cfg.Model, model.TrainOptions{Set: r.set, Tokens: 1, Float: r.cfg.Train.Float})
	if err != nil {
		return nil, bad(err, "")
	}
	if err := state.CopyWeights(net.Params()); err != nil {
		return nil, bad(err, otherVersion)
	}
	if err := net.Refresh(); err != nil {
		return nil, bad(err, "its weights cannot be quantised; take an earlier checkpoint")
	}
	return net, nil
}

// Network is a checkpoint with its weights as the training had them.
type Network struct {
	*model.Trainer
	Checkpoint string
	Step       int
	Tokens     int64
	Config     *config.Config
	// Tokenizer is nil if that of the run is not where it was.
	Tokenizer *tokenizer.Tokenizer
}

// Open makes the network of a checkpoint, to look at. path is as for Export.
func Open(path string, o ExportOptions) (*Network, error) {
	o.defaults()
	r, state, at, err := o.read(path)
	if err != nil {
		return nil, err
	}
	net, err := restore(r, state, at)
	if err != nil {
		return nil, err
	}
	n := &Network{Trainer: net, Checkpoint: at, Step: r.meta.Step, Tokens: r.meta.Tokens, Config: r.cfg}
	if o.Tokenizer != "" {
		n.Tokenizer, err = OpenTokenizer(o.Tokenizer)
		return n, err
	}
	if t, err := OpenTokenizer(r.tokenizerPath()); err == nil && t.Vocab() == n.Config.Model.Vocab {
		n.Tokenizer = t
	}
	return n, nil
}

// find is the checkpoint that path stands for.
func (o *ExportOptions) find(path string) (string, error) {
	has := func(name string) bool {
		_, err := o.FS.Stat(filepath.Join(path, name))
		return err == nil
	}
	info, err := o.FS.Stat(path)
	switch {
	case err != nil:
		return "", &Error{What: "checkpoint " + path, Err: plain(err), Hint: "name the directory of a run, or a checkpoint in it"}
	case !info.IsDir():
		return "", &Error{What: path + " is a file", Hint: "name the directory of a run, or a checkpoint in it"}
	case has("MANIFEST"):
		if o.Best {
			return "", &Error{What: path + " is one checkpoint, of which none is the best", Hint: "name the directory of the run"}
		}
		return path, nil
	}
	dir := path
	if has("checkpoints") {
		dir = filepath.Join(path, "checkpoints")
	}
	if o.Best {
		return o.best(dir)
	}
	at, skipped, err := checkpoint.Latest(o.FS, dir)
	for _, e := range skipped {
		if o.Warn != nil {
			o.Warn(e)
		}
	}
	if errors.Is(err, checkpoint.ErrNone) {
		return "", &Error{What: "no checkpoint in " + path, Hint: "name the directory of a run, or a checkpoint in it"}
	}
	return at, err
}

// best is the checkpoint in dir with the lowest score.
func (o *ExportOptions) best(dir string) (string, error) {
	list, err := checkpoint.List(o.FS, dir)
	if err != nil {
		return "", err
	}
	best := -1
	for i := range list {
		if list[i].Score > 0 && (best < 0 || list[i].Score < list[best].Score) {
			best = i
		}
	}
	if best < 0 {
		return "", &Error{What: "no checkpoint in " + dir + " was evaluated", Hint: "export the newest, or evaluate more often: train.eval_every"}
	}
	return list[best].Path, nil
}

// exportTokenizer opens the tokenizer of the run and checks what can be checked where
// the data may be gone.
func (r *run) exportTokenizer(path string) (err error) {
	d := &r.cfg.Data
	if path == "" {
		path = r.tokenizerPath()
	}
	if r.tok, err = OpenTokenizer(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return &Error{What: "the tokenizer of the run, " + path + ", is not there", Hint: "name it with --tokenizer FILE"}
		}
		return err
	}
	if r.manifest, err = data.ReadManifest(d.Path); err != nil {
		r.manifest = nil
		if r.tok.Vocab() != r.cfg.Model.Vocab {
			return &Error{What: fmt.Sprintf("%s has %d tokens, the model %d", path, r.tok.Vocab(), r.cfg.Model.Vocab), Hint: "name the tokenizer of the run with --tokenizer FILE"}
		}
		return nil
	}
	if fmt.Sprintf("%x", data.TokenizerHash(r.tok)) != r.manifest.Tokenizer.SHA256 {
		return &Error{What: path + " is not the tokenizer that prepared " + d.Path, Hint: "name that one with --tokenizer FILE"}
	}
	return nil
}

// plain is an error of the file system without the operation and the path.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
