package crash

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// steps is the length of the trainings.
const steps = 60

// configuration is that of a training so small that a step takes a few
// milliseconds: most moments are inside a save or an evaluation, or near one. It has
// all that a resume must bring back: Muon and AdamW, two streams, shuffled rows with
// fill in the middle, evaluations, rotation.
const configuration = `
name = "crash"
[model]
dim = 64
layers = 1
heads = 2
ffn = 64
vocab = 400
context = 32
streams = 2
sub_norm = true
group = 64
[data]
path = "data"
fim_rate = 0.3
[train]
steps = %d
rows = 4
micro_rows = 2
seq_len = 32
eval_every = 15
eval_tokens = 512
checkpoint_every = 3
keep_last = 2
keep_best = 1
log_every = 5
[schedule]
warmup = 10
decay = 20
`

// bin is the program under test. dir is a directory with configuration as
// crash.toml, with data, and with a run that nobody disturbed, whole, which took
// wholeTime.
var (
	bin, dir  string
	wholeTime time.Duration
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	var err error
	if dir, err = os.MkdirTemp("", "nanochat-crash-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// prepare makes all that the tests share.
func prepare() error {
	bin = filepath.Join(dir, "nanochat")
	if out, err := exec.Command("go", "build", "-o", bin, "../../cmd/nanochat").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, crate := range []string{"train", "val"} {
		if err := writeSource(filepath.Join(dir, crate), crate); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "crash.toml"), fmt.Appendf(nil, configuration, steps), 0o666); err != nil {
		return err
	}
	start := time.Now()
	for _, args := range [][]string{
		{"tokenizer", "train", "train", "--vocab", "400", "-o", "tokenizer.json"},
		{"data", "prepare", "train", "--val", "val", "--tokenizer", "tokenizer.json", "--no-dedup", "-o", "data"},
		trainArgs("whole", 1),
	} {
		start = time.Now()
		if out, err := command(args...).CombinedOutput(); err != nil {
			return fmt.Errorf("nanochat %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	wholeTime = time.Since(start)
	return nil
}

// writeSource writes a crate of Rust files that chance made.
func writeSource(path, seed string) error {
	if err := os.MkdirAll(filepath.Join(path, "src"), 0o777); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(path, "Cargo.toml"), []byte("[package]\nname = \""+seed+"\"\n"), 0o666); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(uint64(len(seed)), 1))
	words := strings.Fields("read write token buffer index length value count node parse next check state error result")
	word := func() string { return words[r.IntN(len(words))] }
	for file := range 40 {
		var b strings.Builder
		for range 8 {
			a, c := word(), word()
			fmt.Fprintf(&b, "/// The %s of a %s.\npub fn %s_%s(%s: usize, %s: &mut Vec<%s>) -> Option<usize> {\n", a, c, a, c, a, word(), word())
			for range 1 + r.IntN(5) {
				fmt.Fprintf(&b, "    let %s = %s.%s(%d)?;\n    if %s > %s { return None; }\n", word(), word(), word(), r.IntN(100), word(), word())
			}
			fmt.Fprintf(&b, "    Some(%s + %d)\n}\n\n", a, r.IntN(10))
		}
		if err := os.WriteFile(filepath.Join(path, "src", fmt.Sprintf("file%d.rs", file)), []byte(b.String()), 0o666); err != nil {
			return err
		}
	}
	return nil
}

// command is nanochat in dir, not yet started.
func command(args ...string) *exec.Cmd {
	cmd := exec.Command(bin, args...)
	cmd.Dir = dir
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "NANOCHAT_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "XDG_CACHE_HOME="+filepath.Join(dir, "cache"))
	return cmd
}

// trainArgs trains to the end in a directory of its own, from where it stands.
func trainArgs(out string, threads int) []string {
	return []string{"train", "crash.toml", "--resume", "auto", "--out", out, "--threads", fmt.Sprint(threads)}
}

// train runs to the end and returns what was said and the exit code.
func train(t *testing.T, out string, threads int, args ...string) (stderr string, code int) {
	t.Helper()
	return runCommand(t, command(append(trainArgs(out, threads), args...)...))
}

func runCommand(t *testing.T, cmd *exec.Cmd) (stderr string, code int) {
	t.Helper()
	var text bytes.Buffer
	cmd.Stderr = &text
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return text.String(), cmd.ProcessState.ExitCode()
}

// newRun is the name of a run that does not exist yet.
func newRun(t *testing.T) string {
	path, err := os.MkdirTemp(dir, "run-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(path) })
	return filepath.Base(path)
}

// saved is the names in the directory of checkpoints of a run.
func saved(t *testing.T, out string) (list []string) {
	entries, err := os.ReadDir(filepath.Join(dir, out, "checkpoints"))
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
	}
	for _, e := range entries {
		if e.Name() != "LATEST" {
			list = append(list, e.Name())
		}
	}
	return list
}

// halfSaved reports whether a save was cut off.
func halfSaved(t *testing.T, out string) bool {
	return slices.ContainsFunc(saved(t, out), func(name string) bool { return strings.HasSuffix(name, ".tmp") })
}

// sameEnd compares the end of a run with that of the undisturbed one: weights,
// optimizer state, cursors, counters and detectors, and the metrics of every step,
// times left out.
func sameEnd(t *testing.T, out string) {
	t.Helper()
	last := fmt.Sprintf("step-%08d", steps)
	require.Contains(t, saved(t, out), last)
	require.False(t, halfSaved(t, out))
	for _, name := range []string{"weights.safetensors", "optimizer.safetensors"} {
		a, b := read(t, "whole", "checkpoints", last, name), read(t, out, "checkpoints", last, name)
		require.True(t, bytes.Equal(a, b), "%s differs", name)
	}
	require.Equal(t, untimed(t, read(t, "whole", "checkpoints", last, "state.json")), untimed(t, read(t, out, "checkpoints", last, "state.json")))
	a, b := lines(t, "whole"), lines(t, out)
	require.Len(t, b, steps)
	require.Equal(t, a, b)
}

func read(t *testing.T, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{dir}, elem...)...))
	require.NoError(t, err)
	return b
}

// untimed is JSON without what depends on time, or names the run.
func untimed(t *testing.T, b []byte) map[string]any {
	t.Helper()
	var v map[string]any
	require.NoError(t, json.Unmarshal(b, &v), "%s", b)
	strip(v)
	return v
}

func strip(v map[string]any) {
	for _, key := range []string{"seconds", "tok_s", "mfu", "data_wait_ms", "step_ms", "config"} {
		delete(v, key)
	}
	for _, x := range v {
		if m, ok := x.(map[string]any); ok {
			strip(m)
		}
	}
}

// lines is the metrics of a run.
func lines(t *testing.T, out string) (list []map[string]any) {
	t.Helper()
	for line := range bytes.Lines(read(t, out, "metrics.jsonl")) {
		list = append(list, untimed(t, line))
	}
	return list
}

// damage changes one bit in the middle of a file.
func damage(t *testing.T, path ...string) {
	t.Helper()
	b := read(t, path...)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(filepath.Join(append([]string{dir}, path...)...), b, 0o666))
}
