package model

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/optim"
)

// Pretrained is the float weights of a model of the llama architecture, to start
// a training from.
type Pretrained struct {
	path    string
	cfg     config.Model
	weights map[string]pretrainedTensor // by the names of Trainer.Params
	closers []func() error
}

// pretrainedTensor is one tensor of a source.
type pretrainedTensor struct {
	rows, cols int
	read       func(dst []float32) error
	// rowOf, if not nil, says which row of the source is row r here.
	rowOf func(r int) int
}

// OpenPretrained opens a GGUF file of the architecture "llama", or a directory with
// config.json and model.safetensors, or with the shards that
// model.safetensors.index.json lists, as the Python package transformers writes
// them; a .safetensors file stands for its directory. Close it after use.
//
// Weights are float32, float16 or bfloat16, in GGUF also any type that
// gguf.Dequantize knows. Scaled rotary positions and biases are an error: the
// trainer has none.
func OpenPretrained(path string) (*Pretrained, error) {
	p := &Pretrained{path: path, weights: map[string]pretrainedTensor{}}
	info, err := fsx.OS().Stat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("model: weights to start from: %w", err)
	case info.IsDir():
		err = p.openDir(path)
	case strings.HasSuffix(path, ".safetensors"):
		err = p.openDir(filepath.Dir(path))
	default:
		err = p.openGGUF(path)
	}
	if err == nil {
		err = p.check()
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// ErrTernaryOnly is a file of nanochat as weights to start from.
var ErrTernaryOnly = errors.New("a file of nanochat has ternary weights only; its float weights are in the checkpoints of its training")

// Close closes the files.
func (p *Pretrained) Close() error {
	var errs []error
	for _, c := range p.closers {
		errs = append(errs, c())
	}
	p.closers = nil
	return errors.Join(errs...)
}

// Config is the shape of the source; what it does not say is as in
// config.DefaultModel.
func (p *Pretrained) Config() config.Model { return p.cfg }

// Fits says what of c differs from the source so that its weights are of no use
// there. A training may add to the source what leaves its weights their meaning:
// norms, residual streams, residual scalars, a soft cap on logits, a head of its
// own, another context.
func (p *Pretrained) Fits(c config.Model) error {
	s := p.cfg
	if c.TieEmbeddings && !s.TieEmbeddings {
		return p.errorf("has a head of its own, the configuration none; set model.tie_embeddings = false")
	}
	for _, x := range []struct {
		key        string
		have, want any
	}{
		{"dim", c.Dim, s.Dim}, {"layers", c.Layers, s.Layers}, {"heads", c.Heads, s.Heads}, {"kv_heads", c.KVHeads, s.KVHeads},
		{"head_dim", c.HeadDim, s.HeadDim}, {"ffn", c.FFN, s.FFN}, {"ffn_kind", c.FFNKind, s.FFNKind}, {"vocab", c.Vocab, s.Vocab},
		{"rope_theta", float32(c.RopeTheta), float32(s.RopeTheta)}, {"norm_eps", float32(c.NormEps), float32(s.NormEps)},
	} {
		if x.have != x.want {
			return p.errorf("model.%s is %v in the configuration and %v there; set model.%s = %[3]v", x.key, x.have, x.want, x.key)
		}
	}
	return nil
}

// Fill sets the weights of params to those of the source, by name, and returns the
// names of those that the source does not have, and that it left alone: they are
// parts that Fits lets a training add. A head that is not in the source is its
// embedding. On an error some weights may have been set.
func (p *Pretrained) Fill(params []optim.Param) (left []string, err error) {
	jobs := make([]func() error, 0, len(params))
	for i := range params {
		x := &params[i]
		t, ok := p.weights[x.Name]
		if !ok && x.Name == headName {
			t, ok = p.weights[embedName]
		}
		switch {
		case !ok && addable(x.Name):
			left = append(left, x.Name)
		case !ok:
			return nil, p.errorf("has no tensor for %q", x.Name)
		case t.rows != x.Rows || t.cols != x.Cols || len(x.W) != x.Rows*x.Cols:
			return nil, p.errorf("%q is [%d %d] there and [%d %d] here", x.Name, t.rows, t.cols, x.Rows, x.Cols)
		default:
			jobs = append(jobs, func() error { return p.fill(x, &t) })
		}
	}
	return left, parallel(len(jobs), func(i int) error { return jobs[i]() })
}

func (p *Pretrained) fill(x *optim.Param, t *pretrainedTensor) error {
	if err := t.read(x.W); err != nil {
		return err
	}
	for i, v := range x.W {
		if v-v != 0 {
			return p.errorf("value %d of %q is %v", i, x.Name, v)
		}
	}
	if t.rowOf != nil {
		from := slices.Clone(x.W)
		for r := range x.Rows {
			copy(x.W[r*x.Cols:(r+1)*x.Cols], from[t.rowOf(r)*x.Cols:])
		}
	}
	return nil
}

const (
	embedName = "token_embd.weight"
	headName  = "output.weight"
)

// addable reports whether a parameter of that name may be missing in a source.
func addable(name string) bool {
	_, rest, layer := strings.Cut(strings.TrimPrefix(name, "blk."), ".")
	if !layer {
		return false
	}
	switch rest {
	case "attn_sub_norm.weight", "ffn_sub_norm.weight", "attn_q_norm.weight", "attn_k_norm.weight", "residual_scalars":
		return true
	}
	return strings.HasPrefix(rest, "mhc_")
}

// check compares the tensors of a source with its configuration.
func (p *Pretrained) check() error {
	if err := checkConfig(p.cfg); err != nil {
		return p.errorf("%s", strings.TrimPrefix(err.Error(), "model: "))
	}
	// Every layer has tensors, so what was read bounds their number.
	if p.cfg.Layers > len(p.weights) {
		return p.errorf("%d layers, but only %d tensors", p.cfg.Layers, len(p.weights))
	}
	m, err := newModel(p.cfg, arch, Options{})
	if err != nil {
		return p.errorf("%v", err)
	}
	want := map[string]bool{}
	for _, s := range m.slots() {
		if s.optional {
			continue
		}
		rows, cols := s.rows, s.cols
		if s.vec != nil {
			rows, cols = 1, s.dims[0]
		}
		want[s.name] = true
		t, ok := p.weights[s.name]
		if !ok {
			return p.errorf("has no tensor for %q", s.name)
		}
		if t.rows != rows || t.cols != cols {
			return p.errorf("the tensor for %q is [%d %d], expected [%d %d]", s.name, t.rows, t.cols, rows, cols)
		}
	}
	for name := range p.weights {
		if !want[name] {
			return p.errorf("has a tensor for %q, which no part of the model wants", name)
		}
	}
	return nil
}

func (p *Pretrained) errorf(format string, args ...any) error {
	return fmt.Errorf("model: weights to start from: %s: %s", p.path, fmt.Sprintf(format, args...))
}

// openGGUF reads a GGUF file.
func (p *Pretrained) openGGUF(path string) error {
	f, err := gguf.Open(path)
	if err != nil {
		return err
	}
	p.closers = append(p.closers, f.Close)
	name, err := f.String(archKey)
	if err != nil {
		return err
	}
	if name != archLlama {
		if name == arch {
			return fmt.Errorf("model: weights to start from: %s: %w", path, ErrTernaryOnly)
		}
		return f.Errorf(nil, "architecture is %q, expected %q", name, archLlama)
	}
	l := &loader{f: f, m: &Model{}, headerOnly: true}
	if err := l.structure(); err != nil {
		return err
	}
	if l.m.ropeFactors != nil || l.used["rope_freqs.weight"] || l.m.rope.scale != 1 || l.m.rope.rotary != l.m.cfg.HeadDim {
		return f.Errorf(nil, "rotary positions are scaled or partial: a training cannot continue from it")
	}
	p.cfg = l.m.cfg
	d := config.DefaultModel()
	p.cfg.Group, p.cfg.Embedding, p.cfg.Head = d.Group, d.Embedding, d.Head
	p.cfg.RopeTheta, p.cfg.NormEps = shortest(p.cfg.RopeTheta), shortest(p.cfg.NormEps)
	for i := range f.Tensors {
		t := &f.Tensors[i]
		x := pretrainedTensor{rows: 1, cols: int(t.Dims[0])}
		if len(t.Dims) > 1 {
			x.rows = int(t.Dims[1])
		}
		x.read = func(dst []float32) error {
			err := fsx.Guard(path, func() error { return gguf.Dequantize(dst, t.Type, t.Data) })
			if err != nil {
				return f.Errorf(t, "%v", err)
			}
			return nil
		}
		if strings.HasSuffix(t.Name, ".attn_q.weight") || strings.HasSuffix(t.Name, ".attn_k.weight") {
			x.rowOf = splitPairs(p.cfg.HeadDim, p.cfg.HeadDim)
		}
		p.weights[t.Name] = x
	}
	return nil
}

// shortest is the number with the fewest digits that is v in float32: what stood
// in the configuration from which a float32 of a file was made.
func shortest(v float64) float64 {
	s, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', -1, 32), 64)
	if err != nil {
		return v
	}
	return s
}

// isMissing reports whether a file does not exist.
func isMissing(path string) bool {
	_, err := fsx.OS().Stat(path)
	return errors.Is(err, os.ErrNotExist)
}
