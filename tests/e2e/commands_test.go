package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// decode reads one JSON document, and nothing else, from a run's output.
func decode(t *testing.T, text string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}

// words is text with its columns closed up.
func words(s string) string { return strings.Join(strings.Fields(s), " ") }

func TestHelpIsFastAndComplete(t *testing.T) {
	r := ok(t, "", "--help")
	if plain := ok(t, ""); plain.stdout != r.stdout {
		t.Error("no arguments do not give the help")
	}
	if r.stderr != "" {
		t.Errorf("help wrote to standard error: %q", r.stderr)
	}
	best := time.Hour
	for range 5 {
		best = min(best, ok(t, "", "--help").took)
	}
	if best > 100*time.Millisecond {
		t.Errorf("--help takes %v; the limit is 100 ms", best)
	}
	for _, verb := range []string{"generate", "download", "list", "rm", "info", "inspect", "verify", "publish", "init", "convert", "tokenizer", "data", "train", "checkpoint", "export", "eval", "benchmark", "doctor", "version", "completion"} {
		if !strings.Contains(r.stdout, "  "+verb+" ") {
			t.Errorf("the help does not list %s", verb)
		}
		h := ok(t, "", verb, "--help")
		if !strings.HasPrefix(h.stdout, "Usage: nanochat "+verb) {
			t.Errorf("%s --help begins %.60q", verb, h.stdout)
		}
		for line := range strings.Lines(h.stdout) {
			if strings.HasPrefix(strings.TrimSpace(line), "-") && len(strings.Fields(line)) < 3 && !strings.Contains(line, "=") {
				t.Errorf("%s --help: no text for %q", verb, line)
			}
		}
	}
}

func TestVersion(t *testing.T) {
	if r := ok(t, "", "version"); !strings.HasPrefix(r.stdout, "nanochat 0.") || strings.Count(r.stdout, "\n") != 1 {
		t.Errorf("version prints %q", r.stdout)
	}
	if v := decode(t, ok(t, "", "version", "--json").stdout); v["version"] == "" || v["go"] == "" {
		t.Errorf("version --json prints %v", v)
	}
}

func TestDoctor(t *testing.T) {
	v := decode(t, ok(t, "", "doctor", "--json").stdout)
	kernels, _ := v["kernels"].([]any)
	if len(kernels) == 0 || kernels[len(kernels)-1] != "go" || v["kernel"] != kernels[0] {
		t.Errorf("kernels %v, in use %v", kernels, v["kernel"])
	}
	r := runEnv(t, []string{"NANOCHAT_KERNEL=go", "NANOCHAT_THREADS=1"}, "", "doctor")
	for _, want := range []string{"in use go, 1 thread", "NANOCHAT_KERNEL=go"} {
		if !strings.Contains(words(r.stdout), want) {
			t.Errorf("doctor does not say %q:\n%s", want, r.stdout)
		}
	}
	r = ok(t, "", "doctor", "--config", "nano-125m", "--set", "model.context=1k")
	for _, want := range []string{"1024 ", "--set", "preset nano-125m:5", "derived from model.heads", "default"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("doctor --config does not say %q:\n%s", want, r.stdout)
		}
	}
}

func TestInfo(t *testing.T) {
	v := decode(t, ok(t, "", "info", "tiny.gguf", "--json", "--tensors", "--meta").stdout)
	conf, _ := v["config"].(map[string]any)
	if conf["dim"] != 64.0 || conf["vocab"] != 300.0 || v["architecture"] != "nanochat" || v["name"] != "tiny" {
		t.Errorf("config %v, architecture %v, name %v", conf, v["architecture"], v["name"])
	}
	var bytes float64
	for _, tr := range v["tensors"].([]any) {
		bytes += tr.(map[string]any)["bytes"].(float64)
	}
	st, err := os.Stat(filepath.Join(dir, "tiny.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	if size := v["bytes"].(float64); size != float64(st.Size()) || bytes > size-v["data_offset"].(float64) {
		t.Errorf("file of %d bytes; info says %v, of it %v in tensors", st.Size(), size, bytes)
	}
	r := ok(t, "", "info", "tiny.gguf")
	for _, want := range []string{"architecture nanochat", "2 layers of 64", "vocabulary 300 tokens", "sha256"} {
		if !strings.Contains(words(r.stdout), want) {
			t.Errorf("info does not say %q:\n%s", want, r.stdout)
		}
	}
}

// Weights are not looked at: that is verify's part.
func TestInfoReadsTheHeaderOnly(t *testing.T) {
	if v := decode(t, ok(t, "", "info", "--json", "flipped.gguf").stdout); v["problem"] != nil || v["architecture"] != "nanochat" {
		t.Errorf("problem %v, architecture %v", v["problem"], v["architecture"])
	}
	b, err := os.ReadFile(filepath.Join(dir, "tiny.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	v := decode(t, ok(t, "", "info", "--json", "tiny.gguf").stdout)
	for i := int(v["data_offset"].(float64)); i < len(b); i++ {
		b[i] = 0xff // no trit code, no finite scale
	}
	if err := os.WriteFile(filepath.Join(dir, "ruined.gguf"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	w := decode(t, ok(t, "", "info", "--json", "ruined.gguf").stdout)
	w["path"] = v["path"]
	if !reflect.DeepEqual(v, w) {
		t.Errorf("info says %v of ruined weights, before %v", w, v)
	}
	if r := run(t, "", "verify", "ruined.gguf"); r.code != 4 {
		t.Errorf("verify of ruined weights: exit %d", r.code)
	}
}

func TestVerify(t *testing.T) {
	if r := ok(t, "", "verify", "tiny.gguf"); !strings.Contains(r.stdout, "are right") {
		t.Errorf("verify prints %q", r.stdout)
	}
	if v := decode(t, ok(t, "", "verify", "--json", "tiny.gguf").stdout); v["ok"] != true || v["checksum"] != true {
		t.Errorf("verify --json prints %v", v)
	}
}

func TestInitIsDeterministicAndAtomic(t *testing.T) {
	small := []string{"--set", "model.vocab=272", "--set", "model.layers=1", "--set", "model.dim=64", "--set", "model.ffn=64"}
	read := func(name string, seed string, extra ...string) string {
		t.Helper()
		args := append([]string{"init", "tiny", name, "--seed", seed}, append(slices.Clone(small), extra...)...)
		if r := ok(t, "", args...); r.stdout != "" || !strings.Contains(r.stderr, "wrote "+name) {
			t.Errorf("init prints %q and %q", r.stdout, r.stderr)
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	a := read("a.gguf", "1")
	if b := read("b.gguf", "1"); a != b {
		t.Error("the same seed makes different files")
	}
	if b := read("b.gguf", "2", "--force"); a == b {
		t.Error("different seeds make the same file")
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("files left behind: %v, %v", left, err)
	}
	ours := filepath.Join(dir, "mine.toml")
	if err := os.WriteFile(ours, []byte("name = \"mine\"\n[model]\ndim = 64\nlayers = 1\nheads = 2\nffn = 96\nvocab = 280\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ok(t, "", "init", "mine.toml", "mine.gguf")
	if v := decode(t, ok(t, "", "info", "--json", "mine.gguf").stdout); v["name"] != "mine" {
		t.Errorf("a model of mine.toml is called %v", v["name"])
	}
}

// TestBashCompletes asks the script what it would offer.
func TestBashCompletes(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	script := ok(t, "", "completion", "bash").stdout
	for line, want := range map[string]string{
		"nanochat tok":                "tokenizer",
		"nanochat tokenizer ''":       "train encode decode",
		"nanochat data pre":           "prepare",
		"nanochat tokenizer tr":       "train",
		"nanochat eval bpb --sh":      "--shards",
		"nanochat generate --max-tok": "--max-tokens",
	} {
		cmd := exec.Command(bash, "-s")
		cmd.Stdin = strings.NewReader(script + "COMP_WORDS=(" + line + ")\nCOMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n_nanochat\necho ${COMPREPLY[*]}\n")
		out, err := cmd.Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s: %q, want %q (%v)", line, got, want, err)
		}
	}
}

func TestCompletionScriptsParse(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script := ok(t, "", "completion", shell).stdout
		for _, want := range []string{"generate", "seed"} {
			if !strings.Contains(script, want) {
				t.Errorf("%s: no %s", shell, want)
			}
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			continue // a shell that is not here cannot check its script
		}
		cmd := exec.Command(path, "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v: %s", shell, err, out)
		}
	}
}
