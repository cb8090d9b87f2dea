package e2e

import "testing"

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
}
