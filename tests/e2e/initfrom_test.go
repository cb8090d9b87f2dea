package e2e

import (
	"strings"
	"testing"
)

// TestInitFrom starts a training from a llama in GGUF: the first loss is that of its
// weights, and a resume does not start from them again.
func TestInitFrom(t *testing.T) {
	config := training(t, "initfrom", "4")
	shape := []string{"--set", "model.streams=1", "--set", "model.sub_norm=false", "--set", "model.tie_embeddings=false", "--set", "model.vocab=400",
		"--set", "model.dim=64", "--set", "model.ffn=128", "--set", "model.layers=2", "--set", "model.heads=2", "--set", "model.kv_heads=2", "--set", "model.head_dim=32"}
	ok(t, "", append([]string{"init", "tiny", "from-seed.gguf", "--seed", "3"}, shape...)...)
	ok(t, "", "convert", "from-seed.gguf", "from-llama.gguf", "--to", "f16")
	ok(t, "", "train", config, "--out", "anew")
	ok(t, "", "train", config, "--out", "from", "--set", "train.init_from=from-llama.gguf")
	first := func(run string) any { return decode(t, metricLines(t, run)[0])["loss"] }
	if first("anew") == first("from") {
		t.Errorf("the loss of the first step is %v with and without weights to start from", first("from"))
	}
	r := run(t, "", "train", config, "--out", "from2", "--set", "train.init_from=from-llama.gguf", "--set", "model.ffn=192")
	if r.code != 2 || !strings.Contains(r.stderr, "train.init_from") || !strings.Contains(r.stderr, "model.ffn is 192 in the configuration and 128 there; set model.ffn = 128") {
		t.Errorf("code %d: %s", r.code, r.stderr)
	}
	r = run(t, "", "train", config, "--out", "from3", "--set", "train.init_from=from-seed.gguf")
	if r.code != 2 || !strings.Contains(r.stderr, "its float weights are in the checkpoints of its training") || !strings.Contains(r.stderr, "hint: go on with that training") {
		t.Errorf("code %d: %s", r.code, r.stderr)
	}
	r = ok(t, "", "train", config, "--out", "from", "--set", "train.init_from=from-llama.gguf")
	if !strings.Contains(r.stderr, "resumed from/checkpoints/step-00000004") {
		t.Errorf("%s", r.stderr)
	}
}
