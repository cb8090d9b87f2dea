package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// rustFile writes a file whose third line has characters of several bytes.
func rustFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "größe.rs")
	if err := os.WriteFile(path, []byte("fn a() {\n    x\n// größe\r\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCompleteContinuesWhatStandsBefore: the same as `generate` does with that text.
func TestCompleteContinuesWhatStandsBefore(t *testing.T) {
	file := rustFile(t)
	for _, c := range []struct {
		place  string
		flags  []string
		before string
	}{
		{":1:3", nil, "fn"},
		{":2:6", nil, "fn a() {\n    x"},
		{":2", nil, "fn a() {\n    x"},
		{":3", nil, "fn a() {\n    x\n// größe"}, // without \r
		{":3:6", nil, "fn a() {\n    x\n// gr"},
		{":3:8", nil, "fn a() {\n    x\n// grö"}, // ö has two bytes
		{":3:7", []string{"--chars"}, "fn a() {\n    x\n// grö"},
		{":5:1", nil, "fn a() {\n    x\n// größe\r\n}\n"}, // after the last line break
	} {
		args := append([]string{"complete", file + c.place, "tiny.gguf", "-n", "12"}, c.flags...)
		got := ok(t, "", args...)
		want := ok(t, c.before, "generate", "tiny.gguf", "-n", "12").stdout
		if got.stdout != want {
			t.Errorf("%s: %q, want %q", c.place, got.stdout, want)
		}
		if note := strings.Contains(got.stderr, "not used; --fim"); note != !strings.HasPrefix(c.place, ":5") {
			t.Errorf("%s: standard error holds %q", c.place, got.stderr)
		}
	}
	want := ok(t, "fn", "generate", "tiny.gguf", "-n", "12").stdout
	for name, r := range map[string]result{
		"stdin":     ok(t, "fn\n", "complete", "--stdin", "not-there.rs:1:3", "tiny.gguf", "-n", "12"),
		"no column": ok(t, "fn", "complete", "--stdin", "x:1", "tiny.gguf", "-n", "12"),
	} {
		if r.stdout != want || r.stderr != "" {
			t.Errorf("%s: %q, %q", name, r.stdout, r.stderr)
		}
	}
	env := runEnv(t, []string{"NANOCHAT_MODEL=tiny.gguf"}, "fn", "complete", "--stdin", "x:1", "-n", "12")
	if env.stdout != want {
		t.Errorf("NANOCHAT_MODEL: %q, %s", env.stdout, env.stderr)
	}
}

func TestCompleteFillsAGap(t *testing.T) {
	file := rustFile(t)
	r := ok(t, "", "complete", "--fim", file+":2:5", "tiny.gguf", "-n", "12", "--json")
	v := decode(t, r.stdout)
	usage := v["usage"].(map[string]any)
	// The token that begins a text, three marks, and a token for each of 27 bytes.
	if usage["prompt_tokens"] != float64(1+3+len("fn a() {\n    x\n// größe\r\n}\n")) {
		t.Errorf("usage %v", usage)
	}
	if v["line"] != 2.0 || v["column"] != 5.0 || v["file"] != file || v["omitted_before"] != 0.0 || r.stderr != "" {
		t.Errorf("%s, %s", r.stdout, r.stderr)
	}
	plain := ok(t, "", "complete", "--fim", file+":2:5", "tiny.gguf", "-n", "12").stdout
	if strings.TrimSuffix(plain, "\n") != strings.TrimSuffix(v["text"].(string), "\n") {
		t.Errorf("%q, with --json %q", plain, v["text"])
	}
	// --line ends before the first line break.
	for seed := range 5 {
		args := []string{"complete", "--fim", file + ":2:5", "tiny.gguf", "-n", "40", "-t", "2", "--seed", string(rune('0' + seed)), "--json"}
		whole := decode(t, ok(t, "", args...).stdout)["text"].(string)
		line, _, found := strings.Cut(whole, "\n")
		v := decode(t, ok(t, "", append(args, "--line")...).stdout)
		if v["text"] != line || found && v["finish_reason"] != "stop" {
			t.Errorf("seed %d: %q, of %q", seed, v["text"], whole)
		}
	}
	// The shipped model has the tokens, and says that it was not trained with them.
	shipped, err := filepath.Abs("../../models/nano-5m-rust/nano-5m-rust.gguf")
	if err != nil {
		t.Fatal(err)
	}
	r = ok(t, "", "complete", "--fim", file+":2:5", shipped, "-n", "2")
	if !strings.Contains(r.stderr, "nano-5m-rust was trained without fill-in-the-middle") {
		t.Errorf("%q", r.stderr)
	}
}

// TestCompleteLeavesOutWhatDoesNotFit: lines far from the place, and says how much.
func TestCompleteLeavesOutWhatDoesNotFit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "long.rs")
	line := "let größe = 12345;\n" // 20 bytes, as many tokens
	text := strings.Repeat(line, 5000)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"complete", path + ":2500:5"}, {"complete", "--fim", path + ":2500:5"}, {"complete", "--fim", path + ":1:1"}, {"complete", "--fim", path + ":5001:1"},
	} {
		r := ok(t, "", append(args, "tiny.gguf", "-n", "16", "--json")...)
		v := decode(t, r.stdout)
		before, after := int(v["omitted_before"].(float64)), int(v["omitted_after"].(float64))
		used := v["usage"].(map[string]any)["prompt_tokens"].(float64)
		if used > 80 || used < 30 {
			t.Errorf("%q: %v tokens of 96 for the prompt", args, used)
		}
		if before+after == 0 || before%len(line) != 0 || !strings.Contains(r.stderr, "were left out") {
			t.Errorf("%q: left out %d and %d, %s", args, before, after, r.stderr)
		}
		if v["usage"].(map[string]any)["completion_tokens"].(float64) == 0 {
			t.Errorf("%q: no room for the answer", args)
		}
	}
	// One line that is longer than the context is cut between characters.
	r := ok(t, strings.Repeat("ö", 500), "complete", "--stdin", "x:1", "tiny.gguf", "-n", "16", "--json")
	if n := decode(t, r.stdout)["omitted_before"].(float64); int(n)%2 != 0 || n < 800 {
		t.Errorf("left out %v bytes", n)
	}
}

func TestCompleteMistakes(t *testing.T) {
	file := rustFile(t)
	for _, c := range []struct {
		want string
		args []string
	}{
		{"is no FILE:LINE:COL", []string{file}},
		{"is no FILE:LINE:COL", []string{file + ":0:1"}},
		{"is no FILE:LINE:COL", []string{file + ":1:0"}},
		{"is no FILE:LINE:COL", []string{":1:1"}},
		{"has 5 lines, not 6", []string{file + ":6:1"}},
		{"has 8 bytes; column 10 is after its end", []string{file + ":1:10"}},
		{"has 8 characters; column 10 is after its end", []string{file + ":3:10", "--chars"}},
		{"column 7 is within a character", []string{file + ":3:7"}},
		{"no such file", []string{"nowhere.rs:1:1"}},
		{"--max-tokens -1", []string{file + ":1:1", "--max-tokens=-1"}},
	} {
		r := run(t, "", append([]string{"complete"}, append(c.args, "tiny.gguf")...)...)
		if r.code == 0 || !strings.Contains(r.stderr, c.want) || r.stdout != "" || !strings.Contains(r.stderr, "hint:") {
			t.Errorf("%q: exit %d: %s", c.args, r.code, r.stderr)
		}
	}
}
