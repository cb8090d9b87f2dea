package train

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/internal/rng"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/kernels"
)

const fakeVocab = 272

// fake is a network small enough to watch: the logits of the next token are a row of
// a table. Its steps depend on everything that a real one's depend on.
type fake struct {
	w, g   []float32 // [vocab][vocab]
	bias   []float32
	gb     []float32
	cosine float64
	// onSave is called instead of writing, if not nil.
	onSave func(fsys fsx.FS, path string, meta []gguf.KV) error
}

func newFake(*run) (network, error) {
	n := fakeVocab * fakeVocab
	return &fake{w: make([]float32, n), g: make([]float32, n), bias: make([]float32, fakeVocab), gb: make([]float32, fakeVocab), cosine: -1}, nil
}

func (f *fake) Init(seed uint64) {
	rng.New(seed, 1).FillNormal(f.w, 0.1)
	clear(f.bias)
}

func (f *fake) Params() []optim.Param {
	return []optim.Param{
		{Name: "w", Class: optim.Matrix, Rows: fakeVocab, Cols: fakeVocab, W: f.w, G: f.g},
		{Name: "bias", Class: optim.Scalar, Rows: 1, Cols: fakeVocab, W: f.bias, G: f.gb},
	}
}

func (f *fake) ClearGrads() { clear(f.g); clear(f.gb) }

func (f *fake) Backward(b *model.TrainBatch, l model.LossOptions) (model.LossSum, error) {
	return f.run(b, &l), nil
}
func (f *fake) Evaluate(b *model.TrainBatch) (model.LossSum, error) { return f.run(b, nil), nil }

func (f *fake) run(b *model.TrainBatch, l *model.LossOptions) (s model.LossSum) {
	p := make([]float64, fakeVocab)
	for i, id := range b.Tokens {
		target := b.Targets[i]
		if target < 0 {
			continue
		}
		row := f.w[int(id)*fakeVocab:][:fakeVocab]
		sum := 0.0
		for j, v := range row {
			p[j] = math.Exp(float64(v + f.bias[j]))
			sum += p[j]
		}
		lse := math.Log(sum)
		s.Count++
		nll := lse - float64(row[target]+f.bias[target])
		s.NLL += nll
		s.LSE2 += lse * lse
		s.Objective += nll
		if l == nil {
			continue
		}
		g := f.g[int(id)*fakeVocab:][:fakeVocab]
		for j := range g {
			d := float32(l.Scale * p[j] / sum)
			g[j] += d
			f.gb[j] += d
		}
		g[target] -= float32(l.Scale)
		f.gb[target] -= float32(l.Scale)
	}
	return s
}

func (f *fake) Refresh() error                  { return nil }
func (f *fake) Projections() []*kernels.Ternary { return nil }
func (f *fake) StreamCosine() (float64, bool)   { return f.cosine, f.cosine >= 0 }
func (f *fake) Memory() Parts                   { return Parts{{"all", 4}} }

func (f *fake) Save(fsys fsx.FS, path string, meta []gguf.KV) error {
	if f.onSave != nil {
		return f.onSave(fsys, path, meta)
	}
	return fsx.WriteAtomic(fsys, path, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%d keys", len(meta))
		return err
	})
}

// common is the directory of prepared data that all tests read.
var common string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "train")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	common = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// prepared is a directory of prepared data that is not to be changed.
func prepared(t testing.TB) string {
	dir := filepath.Join(common, "data")
	if _, err := os.Stat(dir); err != nil {
		prepareData(t, dir, "x == %d")
	}
	return dir
}

// prepareData writes a dataset of small functions with that body.
func prepareData(t testing.TB, dir, body string) {
	tok, err := tokenizer.NewByteLevel(fakeVocab)
	require.NoError(t, err)
	var lines strings.Builder
	for i := range 60 {
		r := rng.New(uint64(i), 5)
		var text strings.Builder
		for range 20 {
			fmt.Fprintf(&text, "fn f%c(x: u%d) -> bool {\n    "+body+"\n}\n", 'a'+rune(r.IntN(26)), 8<<r.IntN(4), r.IntN(100))
		}
		b, err := json.Marshal(map[string]any{"text": text.String(), "crate": fmt.Sprint("c", i), "path": "lib.rs"})
		require.NoError(t, err)
		lines.Write(append(b, '\n'))
	}
	in := filepath.Join(t.TempDir(), "in.jsonl")
	require.NoError(t, os.WriteFile(in, []byte(lines.String()), 0o666))
	m, err := data.Prepare(context.Background(), data.PrepareOptions{
		Inputs: []string{in}, Out: dir, Tokenizer: tok, ValFraction: 0.2, Dedup: data.DedupOptions{Off: true},
		Filter: data.FilterOptions{MinLetters: -1, MaxDigits: -1},
	}, nil)
	require.NoError(t, err)
	require.NotNil(t, m.Splits[data.Val])
	require.Positive(t, m.Splits[data.Val].Tokens)
	f, err := os.Create(filepath.Join(dir, "tokenizer.json"))
	require.NoError(t, err)
	require.NoError(t, tok.WriteHF(f))
	require.NoError(t, f.Close())
}

// settings is a run of a few short steps on prepared data, in the directory /run of a
// file system in memory.
func settings(t testing.TB, dir string, sets ...string) *config.Config {
	c, err := config.Parse("test.toml", []byte(`name = "t"
[model]
dim = 32
layers = 1
heads = 2
ffn = 64
vocab = 272
context = 64
[train]
out = "run"
steps = 12
rows = 4
micro_rows = 2
seq_len = 32
seed = 3
threads = 1
eval_every = 5
eval_tokens = 500
checkpoint_every = 5
log_every = 1
[schedule]
warmup = 2
[optim.matrix]
rule = "adamw"
lr = 0.05
[telemetry]
tensorboard = false
`), append([]string{"data.path=" + dir}, sets...)...)
	require.NoError(t, err)
	return c
}

// train runs c on fsys.
func train(t testing.TB, c *config.Config, fsys fsx.FS, change ...func(*Options)) (*Result, error) {
	o := Options{FS: fsys, Set: kernels.Best(), Peak: 1e12, hooks: hooks{network: newFake}}
	for _, f := range change {
		f(&o)
	}
	return Run(context.Background(), c, o)
}
