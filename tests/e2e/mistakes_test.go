package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMistakes is what newcomers do wrong, and the one line and the hint they
// get. Standard output stays empty, and the exit code says which kind it is.
func TestMistakes(t *testing.T) {
	long := strings.Repeat("fn main() {} ", 40) // 520 bytes and the token that begins a text; the model has 96 positions
	for _, c := range []struct {
		name  string
		args  string
		stdin string
		code  int
		err   string // part of the error line
		hint  string // part of the hint line
	}{
		{"unknown command", "genrate tiny.gguf", "", 2, "unexpected argument genrate", "did you mean generate"},
		{"unknown flag", "generate tiny.gguf x --sede 3", "", 2, "unknown flag --sede", "did you mean --seed"},
		{"unknown flag unlike any", "generate tiny.gguf x --frobnicate", "", 2, "unknown flag --frobnicate", "nanochat generate --help"},
		{"flag without value", "generate tiny.gguf x --seed", "", 2, "--seed", "nanochat generate --help"},
		{"text for a number", "generate tiny.gguf x -n many", "", 2, `"many" is not a whole number`, "nanochat generate --help"},
		{"no arguments", "generate", "", 2, "expected", "nanochat generate --help"},
		{"missing file", "generate nowhere.gguf x", "", 3, "nowhere.gguf: no such file or directory", "nanochat init"},
		{"missing file, info", "info nowhere.gguf", "", 3, "nowhere.gguf: no such file or directory", "nanochat init"},
		{"missing file, verify", "verify nowhere.gguf", "", 3, "nowhere.gguf", "nanochat init"},
		{"missing file, benchmark", "benchmark nowhere.gguf", "", 3, "nowhere.gguf", "nanochat init"},
		{"missing file, convert", "convert nowhere.gguf out.gguf", "", 3, "nowhere.gguf", "nanochat init"},
		{"preset as a model", "generate nano-125m x", "", 3, "nano-125m", "nanochat init nano-125m"},
		{"directory as a model", "generate folder x", "", 3, "folder: is a directory", ".gguf"},
		{"directory, info", "info folder", "", 3, "folder: is a directory", ".gguf"},
		{"text as a model", "generate text.gguf x", "", 4, "text.gguf: byte 0", "not a model"},
		{"empty file as a model", "info empty.gguf", "", 4, "empty.gguf", "not a model"},
		{"truncated model", "generate truncated.gguf x", "", 4, "truncated.gguf: byte", "damaged"},
		{"truncated model, verify", "verify truncated.gguf", "", 4, "truncated.gguf: byte", "damaged"},
		{"flipped bit", "verify flipped.gguf", "", 4, "flipped.gguf", "damaged"},
		{"prompt too long", "generate tiny.gguf -", long, 1, "521 tokens", "shorten"},
		{"prompt too long, the other count", "generate tiny.gguf -", long, 1, "holds 96", "shorten"},
		{"empty prompt from a pipe", "generate tiny.gguf", "", 2, "prompt is empty", "nanochat generate"},
		{"temperature out of range", "generate tiny.gguf x --temperature=-1", "", 2, "temperature", ""},
		{"top-p out of range", "generate tiny.gguf x --top-p 1.5", "", 2, "top_p", ""},
		{"negative length", "generate tiny.gguf x --max-tokens=-5", "", 2, "-5", ""},
		{"negative length, apart", "generate tiny.gguf x -n -5", "", 2, "-5", "--max-tokens=-5"},
		{"too few repetitions", "benchmark tiny.gguf --repeats 2", "", 2, "--repeats 2", ""},
		{"measured prompt beyond the context", "benchmark tiny.gguf --prompt 96", "", 2, "prompt of 96 tokens: the model's context of 96 holds at most 95", "--prompt 95"},
		{"measured answer beyond the context", "benchmark tiny.gguf --tokens 200", "", 2, "200 tokens: the model's context of 96", "--tokens 95"},
		{"measured prompt of nothing", "benchmark tiny.gguf --prompt 0", "", 2, "--prompt 0", ""},
		{"missing document", "benchmark tiny.gguf --markdown absent.md", "", 1, "absent.md: no such file", "<!-- begin"},
		{"too many guesses", "generate tiny.gguf x --speculate 1000", "", 2, "speculate is 1000", "--speculate"},
		{"context beyond the model", "generate tiny.gguf x --context 5000", "", 2, "made for 96: ask for at most that", "--context 96"},
		{"bias of no token", "generate tiny.gguf x --logit-bias 9999=1", "", 2, "9999", ""},
		{"malformed bias", "generate tiny.gguf x --logit-bias hello", "", 2, "hello", "TOKEN=BIAS"},
		{"unknown kernel", "generate tiny.gguf x --kernel cuda", "", 2, "cuda", "--kernel"},
		{"too many threads", "generate tiny.gguf x --threads 100000", "", 2, "100000", ""},
		{"unknown preset", "init nano-125 x.gguf", "", 2, `no preset "nano-125"`, "did you mean nano-125m?"},
		{"missing configuration", "init absent.toml x.gguf", "", 2, "absent.toml: no such file", "nano-125m"},
		{"configuration that is not TOML", "init broken.toml x.gguf", "", 2, "broken.toml:2: expected '=' after key", "key = value"},
		{"unknown key", "init tiny x.gguf --set model.vocba=300", "", 2, "--set: model.vocba: unknown key", "did you mean model.vocab?"},
		{"key out of range", "init tiny x.gguf --set model.layers=0", "", 2, "model.layers: 0 is outside 1 to 1024", ""},
		{"set without value", "init tiny x.gguf --set model.layers", "", 2, "model.layers: has no value", "key=value"},
		{"vocabulary without bytes", "init tiny x.gguf --set model.vocab=100", "", 2, "100", "272"},
		{"existing output", "init tiny tiny.gguf", "", 1, "tiny.gguf exists", "--force"},
		{"output in a missing directory", "init tiny no/where/x.gguf", "", 1, "no such file or directory", "create the directory"},
		{"output is a directory", "init tiny folder", "", 1, "folder is a directory", ""},
		{"unknown format", "convert tiny.gguf out.gguf --to q3", "", 2, "q3", "nanochat convert --help"},
		{"input is output", "convert tiny.gguf tiny.gguf", "", 1, "tiny.gguf exists", "--force"},
		{"context beyond the model's", "generate tiny.gguf x --context 97", "", 2, "97", "--context 96"},
		{"log probabilities without JSON", "generate tiny.gguf x --logprobs 2", "", 2, "--logprobs", "--json"},
		{"missing report", "benchmark tiny.gguf --compare none.json", "", 1, "none.json", ""},
		{"model as a report", "benchmark tiny.gguf --compare tiny.gguf", "", 1, "tiny.gguf", "benchmark --json"},
		{"shell", "completion tcsh", "", 2, "tcsh", "nanochat completion --help"},
		{"benchmark of nothing", "benchmark", "", 2, "MODEL", "--roofline"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := run(t, c.stdin, strings.Fields(c.args)...)
			if r.code != c.code {
				t.Errorf("exit code %d, want %d", r.code, c.code)
			}
			if r.stdout != "" {
				t.Errorf("standard output holds %q", r.stdout)
			}
			lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
			if len(lines) > 2 || !strings.HasPrefix(lines[0], "error: ") || len(lines) == 2 && !strings.HasPrefix(lines[1], "hint: ") {
				t.Errorf("not one error line and at most one hint:\n%s", r.stderr)
			}
			if !strings.Contains(lines[0], c.err) {
				t.Errorf("error line %q does not hold %q", lines[0], c.err)
			}
			if hint := lines[len(lines)-1]; c.hint != "" && (len(lines) < 2 || !strings.Contains(hint, c.hint)) {
				t.Errorf("hint %q does not hold %q", hint, c.hint)
			}
			if strings.Contains(r.stderr, "goroutine ") {
				t.Errorf("a panic reached the user:\n%s", r.stderr)
			}
		})
	}
}

func TestUnwritableDirectory(t *testing.T) {
	if os.Getuid() == 0 {
		// Permissions do not bind root; a read-only file system does the same to everyone.
		r := run(t, "", "init", "tiny", "/proc/x.gguf")
		if r.code != 1 || !strings.Contains(r.stderr, "/proc") {
			t.Errorf("exit %d: %s", r.code, r.stderr)
		}
		return
	}
	locked := filepath.Join(dir, "locked")
	if err := os.MkdirAll(locked, 0o555); err != nil {
		t.Fatal(err)
	}
	r := run(t, "", "init", "tiny", filepath.Join(locked, "x.gguf"))
	if r.code != 1 || !strings.Contains(r.stderr, "permission denied") || !strings.Contains(r.stderr, "hint: choose a place") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
}

// Output that cannot be written is a failure, also that of the help.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	for _, args := range [][]string{{}, {"--help"}, {"generate", "--help"}, {"version"}, {"info", "tiny.gguf"}} {
		cmd := command(args...)
		var stderr strings.Builder
		cmd.Stdout, cmd.Stderr = full, &stderr
		if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "no space left") || !strings.Contains(stderr.String(), "hint: free some space") {
			t.Errorf("%v: %v: %s", args, err, stderr.String())
		}
	}
}

func TestVerboseShowsTheChain(t *testing.T) {
	r := run(t, "", "--verbose", "info", "nowhere.gguf")
	if r.code != 3 || strings.Count(r.stderr, "cause: ") < 2 {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
}
