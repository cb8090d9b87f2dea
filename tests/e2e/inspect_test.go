package e2e

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// inspection is what `inspect --json` prints, as far as the tests read it.
type inspection struct {
	Path        string
	Step        *int
	Tokens      int
	Projections []struct {
		Name              string
		Rows, Cols        int
		Minus, Zero, Plus float64
		ScaleMin          float64  `json:"scale_min"`
		ScaleMax          float64  `json:"scale_max"`
		Dead              *int     `json:"dead_rows"`
		NearThreshold     *float64 `json:"near_threshold"`
	}
	Dense []struct {
		Name string
		Rows int
		Max  float64 `json:"rms_max"`
	}
	Streams []struct {
		Layer      int
		Part       string
		RMS        float64
		Similarity float64
		Rank       float64 `json:"effective_rank"`
		Mixing     *struct {
			Pre, Post []float64
			Res       [][]float64
		}
	}
}

func inspect(t *testing.T, args ...string) (v inspection) {
	t.Helper()
	text := ok(t, "", append([]string{"inspect", "--json"}, args...)...).stdout
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}

func TestInspectModel(t *testing.T) {
	v := inspect(t, "tiny.gguf")
	if v.Step != nil || len(v.Projections) != 2*7 || v.Tokens != 96 || len(v.Streams) != 2*2+1 {
		t.Errorf("step %v, %d projections, %d tokens, %d places", v.Step, len(v.Projections), v.Tokens, len(v.Streams))
	}
	for _, p := range v.Projections {
		// Random weights that are spread evenly: a third of each.
		if math.Abs(p.Minus+p.Zero+p.Plus-1) > 1e-9 || math.Abs(p.Zero-1./3) > 0.05 || p.ScaleMin <= 0 || p.ScaleMax < p.ScaleMin || p.Dead == nil || *p.Dead != 0 {
			t.Errorf("%+v", p)
		}
		if p.NearThreshold != nil {
			t.Errorf("%s: latents of a model file", p.Name)
		}
	}
	if v.Dense[0].Name != "token_embd.weight" || v.Dense[0].Rows != 300 || v.Dense[0].Max <= 0 {
		t.Errorf("%+v", v.Dense)
	}
	if got := v.Streams[4]; got.Part != "output" || got.Layer != 1 || got.RMS <= 0 {
		t.Errorf("%+v", got)
	}
	if a, b := inspect(t, "tiny.gguf", "--threads", "1"), v; a.Streams[4].RMS != b.Streams[4].RMS {
		t.Error("another number of threads, other numbers")
	}
	if a := inspect(t, "tiny.gguf", "--seed", "1", "--length", "7"); a.Tokens != 7 || a.Streams[4].RMS == v.Streams[4].RMS {
		t.Errorf("%d tokens, rms %v as with another seed", a.Tokens, a.Streams[4].RMS)
	}

	text := ok(t, "", "inspect", "tiny.gguf").stdout
	for _, want := range []string{"tiny.gguf: 2 layers of 64", "layer 0 ", "layer 1 ", "token_embd.weight", "96 random tokens", "output"} {
		if !strings.Contains(words(text), words(want)) {
			t.Errorf("inspect does not say %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "blk.0.attn_q.weight") || !strings.Contains(ok(t, "", "inspect", "tiny.gguf", "--tensors").stdout, "blk.0.attn_q.weight") {
		t.Error("--tensors does not decide about the list of projections")
	}
}

// A run of a few steps with two streams: its checkpoint and the model file it wrote are
// the same network, and only the checkpoint has latent weights.
func TestInspectCheckpoint(t *testing.T) {
	vocab := vocabulary(t)
	ok(t, "", "data", "prepare", corpus(t, "look.jsonl", 12, 3000, 300), "--val", corpus(t, "lookval.jsonl", 2, 3000, 400), "--tokenizer", vocab, "-o", "look")
	config := `[model]
dim = 64
layers = 2
heads = 2
ffn = 128
ffn_kind = "relu2"
vocab = 400
context = 64
streams = 2
[data]
path = "look"
[train]
out = "lookrun"
steps = 4
rows = 4
eval_every = 4
eval_tokens = 0
checkpoint_every = 4
[schedule]
warmup = 2
[optim.mhc]
lr = 0.1
`
	if err := os.WriteFile(filepath.Join(dir, "look.toml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	ok(t, "", "train", "look.toml")
	if err := os.WriteFile(filepath.Join(dir, "look.rs"), []byte(strings.Repeat("pub fn look(x: u32) -> u32 { x + 1 }\n", 40)), 0o644); err != nil {
		t.Fatal(err)
	}
	run, file := inspect(t, "lookrun", "--text", "look.rs"), inspect(t, "lookrun/model.gguf", "--text", "look.rs")
	if run.Step == nil || *run.Step != 4 || run.Tokens != 64 || !strings.Contains(run.Path, "step-00000004") {
		t.Errorf("step %v, %d tokens, %s", run.Step, run.Tokens, run.Path)
	}
	for i, p := range run.Projections {
		f := file.Projections[i]
		if p.NearThreshold == nil || *p.NearThreshold <= 0 || *p.NearThreshold > 0.2 || f.Zero != p.Zero || f.ScaleMax != p.ScaleMax {
			t.Errorf("%+v, in the file %+v", p, f)
		}
	}
	for i, s := range run.Streams {
		if f := file.Streams[i]; f.RMS != s.RMS || f.Similarity != s.Similarity || f.Rank != s.Rank {
			t.Errorf("%+v, in the file %+v", s, f)
		}
		if s.Part == "output" {
			if s.Mixing != nil || s.Similarity >= 1-1e-9 || s.Rank <= 1 {
				t.Errorf("the streams have not parted: %+v", s)
			}
		} else if m := s.Mixing; len(m.Pre) != 2 || len(m.Res) != 2 || math.Abs(m.Res[0][0]+m.Res[0][1]-1) > 1e-6 {
			t.Errorf("%+v", m)
		}
	}
	for _, want := range []string{"step 4", "2 streams", "near threshold", "similarity", "64 tokens of look.rs"} {
		if text := ok(t, "", "inspect", "lookrun", "--text", "look.rs").stdout; !strings.Contains(text, want) {
			t.Errorf("inspect does not say %q:\n%s", want, text)
		}
	}

	// Without its data the run has no tokenizer.
	if err := os.Rename(filepath.Join(dir, "look"), filepath.Join(dir, "look-gone")); err != nil {
		t.Fatal(err)
	}
	if v := inspect(t, run.Path); v.Tokens != 64 || *v.Step != 4 {
		t.Errorf("%d tokens of step %d", v.Tokens, *v.Step)
	}
	inspect(t, "lookrun", "--text", "look.rs", "--tokenizer", vocab)
	mistake(t, []string{"inspect", "lookrun", "--text", "look.rs"}, 1, "tokenizer of the run is not where it was", "--tokenizer FILE")
}

func TestInspectMistakes(t *testing.T) {
	for _, c := range []struct {
		args      string
		code      int
		err, hint string
	}{
		{"nowhere.gguf", 3, "nowhere.gguf: no such file", "nanochat init"},
		{"folder", 1, "no checkpoint in folder", "directory of a run"},
		{"text.gguf", 4, "text.gguf", ""},
		{"tiny.gguf --length 0", 2, "--length 0", "at least 1"},
		{"tiny.gguf --text nowhere.rs", 1, "text nowhere.rs: no such file", ""},
		{"tiny.gguf --text empty.gguf", 2, "empty.gguf is empty", "leave out --text"},
		{"tiny.gguf --tokenizer tiny.gguf", 2, "--tokenizer is for checkpoints", "has its own"},
		{"tiny.gguf --kernel none", 2, "none", "best"},
	} {
		mistake(t, append([]string{"inspect"}, strings.Fields(c.args)...), c.code, c.err, c.hint)
	}
}

// mistake runs nanochat and expects an exit code, an error and a hint.
func mistake(t *testing.T, args []string, code int, text, hint string) {
	t.Helper()
	r := run(t, "", args...)
	if r.code != code || !strings.Contains(r.stderr, text) || !strings.Contains(r.stderr, hint) || r.stdout != "" {
		t.Errorf("%s: exit %d, want %d; %q, want %q and %q", strings.Join(args, " "), r.code, code, r.stderr, text, hint)
	}
}
