package e2e

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTrainToText is the whole way of a model: text, vocabulary, shards, training, file,
// evaluation and text again.
func TestTrainToText(t *testing.T) {
	vocab := vocabulary(t)
	ok(t, "", "data", "prepare", corpus(t, "way.jsonl", 12, 3000, 300), "--val", corpus(t, "wayval.jsonl", 2, 3000, 400), "--tokenizer", vocab, "-o", "way")
	config := `name = "way"
[model]
dim = 64
layers = 2
heads = 2
ffn = 128
ffn_kind = "relu2"
vocab = 400
context = 64
streams = 1
embedding = "q8_0"
[data]
path = "way"
licence = "made up"
[train]
out = "wayrun"
steps = 12
rows = 4
eval_every = 6
eval_tokens = 0
checkpoint_every = 6
[schedule]
warmup = 2
`
	if err := os.WriteFile(filepath.Join(dir, "way.toml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	var res struct {
		Val        struct{ BPB, Nats float64 }
		Model      string
		Checkpoint string
	}
	if err := json.Unmarshal([]byte(ok(t, "", "train", "way.toml", "--json").stdout), &res); err != nil {
		t.Fatal(err)
	}

	var e struct {
		Checkpoint string
		Step       int
		Params     struct{ Ternary int }
		Val        struct{ BPB float64 }
	}
	if err := json.Unmarshal([]byte(ok(t, "", "export", "wayrun", "-o", "way.gguf", "--json").stdout), &e); err != nil {
		t.Fatal(err)
	}
	if e.Step != 12 || e.Checkpoint != res.Checkpoint || e.Params.Ternary != 2*(4*64*64+2*64*128) {
		t.Errorf("%+v", e)
	}
	same := func(a, b string) bool {
		x, err := os.ReadFile(filepath.Join(dir, a))
		if err != nil {
			t.Fatal(err)
		}
		y, err := os.ReadFile(filepath.Join(dir, b))
		if err != nil {
			t.Fatal(err)
		}
		return string(x) == string(y)
	}
	if !same("way.gguf", res.Model) {
		t.Error("the export is not the file that the run wrote")
	}
	ok(t, "", "verify", "way.gguf")
	meta := decode(t, ok(t, "", "info", "way.gguf", "--json", "--meta").stdout)["metadata"].(map[string]any)
	if meta["nanochat.data.licence"] != "made up" || fmt.Sprint(meta["nanochat.training.steps"]) != "12" {
		t.Errorf("metadata: %v", meta)
	}
	rows := evalBPB(t, "way.gguf", "--shards", "way")
	if math.Abs(rows.BPB-res.Val.BPB) > 1e-5*rows.BPB {
		t.Errorf("%v bits per byte, the training says %v", rows.BPB, res.Val.BPB)
	}
	// The untrained model of the first step is worse by far: it has learned.
	if rows.NatsPerToken > 0.95*math.Log(400) {
		t.Errorf("%v nats per token after training", rows.NatsPerToken)
	}
	if text := ok(t, "", "generate", "way.gguf", "pub fn", "-n", "16", "--ignore-end").stdout; text == "" {
		t.Error("no text")
	}

	modelCard(t, rows)

	// The vocabulary may come from the model file when the data is gone.
	if err := os.Rename(filepath.Join(dir, "way"), filepath.Join(dir, "way-gone")); err != nil {
		t.Fatal(err)
	}
	if r := run(t, "", "export", "wayrun", "-o", "way-again.gguf"); r.code != 1 || !strings.Contains(r.stderr, "hint: name it with --tokenizer FILE") {
		t.Errorf("exit %d, %s", r.code, r.stderr)
	}
	ok(t, "", "export", res.Checkpoint, "-o", "way-again.gguf", "--tokenizer", "way.gguf")
	if !same("way-again.gguf", "way.gguf") {
		t.Error("another tokenizer file makes another model")
	}

	for _, c := range []struct {
		args, err, hint string
		code            int
	}{
		{"export nowhere -o x.gguf", "run nowhere: no such file", "nanochat train", 1},
		{"export folder -o x.gguf", "no checkpoint in folder", "directory of a run", 1},
		{"export tiny.gguf -o x.gguf", "tiny.gguf is a file", "directory of a run", 1},
		{"export wayrun -o way.gguf", "output way.gguf exists", "--force", 1},
		{"export wayrun -o nowhere/x.gguf --tokenizer way.gguf", "output nowhere/x.gguf", "create the directory", 1},
		{"export wayrun", "missing flags: --out", "nanochat export --help", 2},
		{"export wayrun -o x.gguf --tokenizer tiny.gguf", "tiny.gguf has 300 tokens, the model 400", "", 1},
	} {
		r := run(t, "", strings.Fields(c.args)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.err) || !strings.Contains(r.stderr, c.hint) || r.stdout != "" {
			t.Errorf("%s: exit %d, want %d with %q and %q\n%s", c.args, r.code, c.code, c.err, c.hint, r.stderr)
		}
	}
}

// modelCard has scripts/model-card write the card of way.gguf.
func modelCard(t *testing.T, rows bpb) {
	t.Helper()
	python := os.Getenv("NANOCHAT_PYTHON")
	if python == "" {
		python = "python3"
	}
	if _, err := exec.LookPath(python); err != nil {
		t.Log("no Python: the model card is not tried")
		return
	}
	template, err := os.ReadFile("../../models/nano-5m-rust/README.md.in")
	if err != nil {
		t.Fatal(err)
	}
	model, err := os.ReadFile(filepath.Join(dir, "way.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "cards/way"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"way.gguf": model, "README.md.in": template, "notes.md": []byte("A note.\n"), "samples.sh": []byte("#!/bin/sh\necho \"a sample of $1\"\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, "cards/way", name), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script, err := filepath.Abs("../../scripts/model-card")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, script, "cards/way", "--run", "wayrun", "--nanochat", bin)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	card, err := os.ReadFile(filepath.Join(dir, "cards/way/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"**held-out bits per byte** | **" + fmt.Sprintf("%.4f", rows.BPB), "a sample of cards/way/way.gguf", "A note.", "| `train.rows` | 4 |",
		"| `way.jsonl` | train | 12 |", "| MIT | 7 |", "2 files of 2 crates",
	} {
		if !strings.Contains(string(card), want) {
			t.Errorf("the card has no %q", want)
		}
	}
	if strings.Contains(string(card), "{{") {
		t.Error("a field of the card is not filled")
	}
	svg, err := os.ReadFile(filepath.Join(dir, "cards/way/loss.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal(svg, new(struct {
		XMLName xml.Name `xml:"svg"`
	})); err != nil || !strings.Contains(string(svg), "<polyline") {
		t.Errorf("the curve is no picture: %v", err)
	}
}
