package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConvertKeepsTheText: a model converted for llama.cpp and back says the same.
func TestConvertKeepsTheText(t *testing.T) {
	ok(t, "", "init", "tiny", "plain.gguf", "--seed", "3", "--set", "model.vocab=300", "--set", "model.dim=256", "--set", "model.ffn=256",
		"--set", "model.layers=2", "--set", "model.streams=1", "--set", "model.group=256", "--set", "model.sub_norm=false")
	say := func(file string) string {
		return ok(t, "", "generate", file, "fn main() {", "-n", "24", "-t", "1", "--seed", "1", "--ignore-end").stdout
	}
	want := say("plain.gguf")
	for _, to := range []string{"f16", "q4_0", "tq2_0"} {
		ok(t, "", "convert", "plain.gguf", to+".gguf", "--to", to)
		v := decode(t, ok(t, "", "info", "--json", to+".gguf").stdout)
		if v["architecture"] != "llama" || v["problem"] != nil {
			t.Errorf("%s: architecture %v, problem %v", to, v["architecture"], v["problem"])
		}
		ok(t, "", "convert", to+".gguf", "back.gguf", "--force")
		if v := decode(t, ok(t, "", "info", "--json", "back.gguf").stdout); v["architecture"] != "nanochat" {
			t.Errorf("%s and back: architecture %v", to, v["architecture"])
		}
		ok(t, "", "verify", "back.gguf")
		if got := say("back.gguf"); got != want {
			t.Errorf("%s and back: %q, want %q", to, got, want)
		}
	}
	if r := run(t, "", "convert", "tiny.gguf", "streams.gguf", "--to", "f16"); r.code != 1 {
		t.Errorf("a model with two streams went to llama.cpp: exit %d, %s", r.code, r.stderr)
	}
}

// TestConvertEmbedding: embedding and head in 8 bits are half the bytes, and the
// rest of the file is what it was.
func TestConvertEmbedding(t *testing.T) {
	ok(t, "", "init", "tiny", "wide.gguf", "--seed", "3", "--set", "model.vocab=1k", "--set", "model.dim=128", "--set", "model.ffn=128",
		"--set", "model.layers=1", "--set", "model.streams=1", "--set", "model.sub_norm=false", "--set", "model.embedding=f16", "--set", "model.head=f16", "--set", "model.tie_embeddings=false")
	types := func(file string) map[string]float64 {
		bytes := map[string]float64{}
		for _, x := range decode(t, ok(t, "", "info", "--json", file).stdout)["tensor_types"].([]any) {
			bytes[x.(map[string]any)["type"].(string)] = x.(map[string]any)["bytes"].(float64)
		}
		return bytes
	}
	wide := types("wide.gguf")
	ok(t, "", "convert", "wide.gguf", "narrow.gguf", "--embedding", "q8_0")
	narrow := types("narrow.gguf")
	const weights = 2 * 1024 * 128
	if narrow["Q8_0"] != weights*34/32 || wide["F16"]-narrow["F16"] != 2*weights || narrow["I8"] != wide["I8"] {
		t.Errorf("types %v became %v", wide, narrow)
	}
	ok(t, "", "convert", "narrow.gguf", "again.gguf", "--embedding", "f16")
	if again := types("again.gguf"); again["F16"] != wide["F16"] || again["Q8_0"] != 0 {
		t.Errorf("types %v became %v", narrow, again)
	}
	ok(t, "", "convert", "wide.gguf", "llama.gguf", "--to", "f16", "--embedding", "q8_0")
	if llama := types("llama.gguf"); llama["Q8_0"] != narrow["Q8_0"] {
		t.Errorf("exported types %v", llama)
	}
	for _, file := range []string{"narrow.gguf", "again.gguf", "llama.gguf"} {
		if text := ok(t, "", "generate", file, "fn main() {", "-n", "8", "--ignore-end").stdout; text == "" {
			t.Errorf("%s generates nothing", file)
		}
	}
	if r := run(t, "", "convert", "wide.gguf", "x.gguf", "--embedding", "q4_0"); r.code != 2 || !strings.Contains(r.stderr, "q4_0") {
		t.Errorf("embedding of q4_0: exit %d, %s", r.code, r.stderr)
	}
}

func TestRunOptionsChangeNoText(t *testing.T) {
	args := []string{"generate", "tiny.gguf", "fn main() { fn main() { fn", "-n", "24"}
	want := ok(t, "", args...).stdout
	for _, extra := range [][]string{
		{"--speculate", "4"}, {"--pin"}, {"--huge-pages"}, {"--tune", "refresh"}, {"--tune", "auto"}, {"--context", "96"},
	} {
		if got := ok(t, "", append(args, extra...)...).stdout; got != want {
			t.Errorf("%v: %q, want %q", extra, got, want)
		}
	}
	if r := ok(t, "", append(args, "--kv", "int8")...); r.stdout == "" {
		t.Error("no text with an int8 cache")
	}
}

func TestBenchmark(t *testing.T) {
	v := decode(t, ok(t, "", "benchmark", "tiny.gguf", "--json", "--prompt", "16", "--tokens", "8").stdout)
	for _, key := range []string{"prefill", "decode", "ttft_ms", "load_ms", "rss_bytes", "model_bytes", "kernel", "threads"} {
		if v[key] == nil {
			t.Errorf("the report has no %s", key)
		}
	}
	decodeRate, _ := v["decode"].(map[string]any)
	if rate, _ := decodeRate["tok_s"].(float64); rate <= 0 {
		t.Errorf("decode.tok_s is %v", decodeRate["tok_s"])
	}
	// A model that was once three times as fast, in measurements that say little.
	decodeRate["tok_s"] = 3 * decodeRate["tok_s"].(float64)
	decodeRate["min_tok_s"], decodeRate["max_tok_s"] = 1.0, 1e9
	old, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "old.json"), old, 0o644); err != nil {
		t.Fatal(err)
	}
	r := ok(t, "", "benchmark", "tiny.gguf", "--prompt", "16", "--tokens", "8", "--compare", "old.json")
	if !strings.Contains(r.stderr, "warning: ") || !strings.Contains(r.stderr, "noise") || !strings.Contains(r.stdout, "noise") {
		t.Errorf("no word about noise in %q and %q", r.stdout, r.stderr)
	}
}
