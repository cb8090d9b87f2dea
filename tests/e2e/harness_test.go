package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bin is the program under test and dir a directory of its own with:
//
//	tiny.gguf       a model with random weights
//	truncated.gguf  its first half
//	flipped.gguf    the same with one bit of a weight changed
//	text.gguf       no GGUF file
//	empty.gguf      no bytes
//	broken.toml     a configuration with a fault of syntax
var bin, dir string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	var err error
	if dir, err = os.MkdirTemp("", "nanochat-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "nanochat")
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func prepare() error {
	build := exec.Command("go", "build", "-o", bin, "../../cmd/nanochat")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	tiny := filepath.Join(dir, "tiny.gguf")
	init := exec.Command(bin, "init", "tiny", tiny, "--seed", "7", "--set", "model.vocab=300", "--set", "model.context=96",
		"--set", "model.dim=64", "--set", "model.ffn=128", "--set", "model.layers=2")
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("init: %w: %s", err, out)
	}
	b, err := os.ReadFile(tiny)
	if err != nil {
		return err
	}
	flipped := bytes.Clone(b)
	flipped[len(b)-100] ^= 1
	for name, content := range map[string][]byte{
		"truncated.gguf": b[:len(b)/2], "flipped.gguf": flipped, "text.gguf": []byte("this is no model\n"), "empty.gguf": nil,
		"broken.toml": []byte("[model]\ndim: 64\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return os.Mkdir(filepath.Join(dir, "folder"), 0o755)
}

// A result is what a run left behind.
type result struct {
	stdout, stderr string
	code           int
	took           time.Duration
}

// run executes nanochat in dir with stdin and no terminal.
func run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return runEnv(t, nil, stdin, args...)
}

func runEnv(t *testing.T, env []string, stdin string, args ...string) result {
	t.Helper()
	cmd := command(args...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	r := result{stdout.String(), stderr.String(), 0, time.Since(start)}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		r.code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return r
}

// command is nanochat with a clean environment, not yet started.
func command(args ...string) *exec.Cmd {
	cmd := exec.Command(bin, args...)
	cmd.Dir = dir
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "NANOCHAT_") && !strings.HasPrefix(v, "NO_COLOR=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "XDG_CACHE_HOME="+filepath.Join(dir, "cache"))
	return cmd
}

// ok runs nanochat and fails the test unless it exits with 0.
func ok(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	r := run(t, stdin, args...)
	if r.code != 0 {
		t.Fatalf("nanochat %s: exit %d\n%s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r
}
