package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// training writes a configuration of a small run of steps and returns its name. Its
// data is made once.
func training(t *testing.T, name string, steps string) string {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "shards")); err != nil {
		ok(t, "", "data", "prepare", corpus(t, "some.jsonl", 12, 3000, 500), "--val", corpus(t, "someval.jsonl", 2, 3000, 600),
			"--tokenizer", vocabulary(t), "-o", "shards")
	}
	text := "name = \"" + name + "\"\n" + `[model]
dim = 64
layers = 2
heads = 2
ffn = 128
vocab = 400
context = 64
[data]
path = "shards"
[train]
steps = ` + steps + `
rows = 4
micro_rows = 2
log_every = 5
eval_every = 10
eval_tokens = 256
[schedule]
warmup = 2
`
	if err := os.WriteFile(filepath.Join(dir, name+".toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name + ".toml"
}

// metricLines is the lines of metrics of a run, without what depends on time.
func metricLines(t *testing.T, run string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, run, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		m := decode(t, line)
		for _, key := range []string{"tok_s", "mfu", "data_wait_ms", "step_ms", "val"} {
			delete(m, key)
		}
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(text))
	}
	return out
}

// TestInterruptedTraining: an interrupt saves, says so and exits with the code of the
// signal; the same command goes on, and ends as if nothing had happened.
func TestInterruptedTraining(t *testing.T) {
	config := training(t, "cutrun", "60")
	ok(t, "", "train", config, "--out", "whole")
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		if err := os.RemoveAll(filepath.Join(dir, "cut")); err != nil {
			t.Fatal(err)
		}
		cmd := command("train", config, "--out", "cut", "--set", "train.log_every=1")
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stderr)
		if !lines.Scan() { // the first step is done
			t.Fatal("no line")
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		last := lines.Text()
		for lines.Scan() {
			last = lines.Text()
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 128+int(signal) {
			t.Errorf("%v: exit code %d", signal, code)
		}
		if !regexp.MustCompile(`^interrupted after step \d+; the same command goes on from here$`).MatchString(last) {
			t.Errorf("%v: last line %q", signal, last)
		}
	}
	r := ok(t, "", "train", config, "--out", "cut", "--threads", "1")
	if !regexp.MustCompile(`resumed cut/checkpoints/step-\d+ after step \d+ of 60\n`).MatchString(r.stderr) {
		t.Errorf("no word about the resume:\n%s", r.stderr)
	}
	a, b := metricLines(t, "whole"), metricLines(t, "cut")
	if len(a) != 60 || len(b) != 60 {
		t.Fatalf("%d and %d lines of metrics, want 60", len(a), len(b))
	}
	for i := range a {
		// Flips and zeros are measured with lines of the log only.
		if decode(t, a[i])["loss"] != decode(t, b[i])["loss"] || decode(t, a[i])["grad_norm"] != decode(t, b[i])["grad_norm"] {
			t.Errorf("step %d: %s\nand %s", i+1, a[i], b[i])
		}
	}
	x, err := os.ReadFile(filepath.Join(dir, "whole/best.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	if ok(t, "", "verify", "cut/model.gguf"); len(x) == 0 {
		t.Error("no best.gguf")
	}
	// No escape sequences and no bar where there is no terminal.
	if strings.ContainsAny(r.stderr, "\x1b\r") {
		t.Errorf("%q", r.stderr)
	}
	line := regexp.MustCompile(`(?m)^step 60/60  loss \d\.\d{4}  ce \d\.\d{4}  bpb \d\.\d{4}  lr \S+  grad \S+  \d+ tok/s  (mfu \d\.\d{3}  )?wait \d+\.\d %  flips \d\.\d{3} %  zeros \d+\.\d %  left 0s$`)
	if !line.MatchString(r.stderr) {
		t.Errorf("no line of the last step:\n%s", r.stderr)
	}
}

func TestTrainDryRun(t *testing.T) {
	config := training(t, "dry", "60")
	r := ok(t, "", "train", config, "--dry-run", "--json")
	var p struct {
		Params    map[string]int64
		Tokens    int64
		Steps     int
		Memory    []struct{ Bytes int64 }
		TokensPer float64 `json:"tok_s"`
		Seconds   float64
	}
	d := json.NewDecoder(strings.NewReader(r.stdout))
	if err := d.Decode(&p); err != nil {
		t.Fatal(err)
	}
	if p.Steps != 60 || p.Tokens != 60*4*64 || p.Params["ternary"] != 2*(4*64*64+3*64*128) || len(p.Memory) == 0 || p.TokensPer <= 0 || p.Seconds <= 0 {
		t.Errorf("%s", r.stdout)
	}
	if _, err := os.Stat(filepath.Join(dir, "runs")); err == nil {
		t.Error("a dry run wrote something")
	}
	text := ok(t, "", "train", config, "--dry-run").stdout
	for _, want := range []string{"weights", "60 of 4 rows of 64 tokens, 2 rows at a time", "memory", "optimizer state", "tokens/s", "time"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestTrainMistakes(t *testing.T) {
	config := training(t, "wrong", "60")
	ok(t, "", "train", training(t, "done", "3"), "--set", "schedule.decay=1")
	for _, c := range []struct {
		args, err, hint string
		code            int
	}{
		{"train nowhere.toml", "configuration nowhere.toml: no such file", "presets", 2},
		{"train nano-5m", "nano-5m is not a .toml file", "begin it with preset", 2},
		{"train broken.toml", "config: broken.toml:2: ", "", 2},
		{"train " + config + " --set train.stesp=3", "--set: train.stesp: unknown key", "did you mean train.steps?", 2},
		{"train " + config + " --set train.rows=0", "--set: train.rows: 0 is outside 1 to 65536", "rows of a step", 2},
		{"train " + config + " --set train.micro_rows=3", "train.micro_rows: 3 does not divide 4 rows", "", 2},
		{"train " + config + " --set data.path=nowhere", "nowhere/manifest.json", "run nanochat data prepare", 1},
		{"train " + config + " --set model.vocab=500", "model.vocab: 500, but the data in shards has a vocabulary of 400", "set it to 400", 2},
		{"train " + config + " --resume nowhere", "nowhere", "--resume PATH", 4},
		{"train done.toml --resume none", "runs/done holds a run of 3 steps", "--resume auto", 1},
		{"train done.toml --set model.dim=32", "model.dim: is 32, but the run began with 64", "--resume none --out DIR", 2},
		{"train " + config + " --threads 2000", "train.threads: 2000 is outside 0 to 256", "", 2},
	} {
		r := run(t, "", strings.Fields(c.args)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.err) || !strings.Contains(r.stderr, c.hint) || r.stdout != "" {
			t.Errorf("%s: exit %d, want %d with %q and %q\n%s", c.args, r.code, c.code, c.err, c.hint, r.stderr)
		}
		if n := strings.Count(r.stderr, "\n"); n > 2 {
			t.Errorf("%s: more than an error and a hint\n%s", c.args, r.stderr)
		}
	}
}

// TestTrainDiverges: exit code 6, with the state kept apart.
func TestTrainDiverges(t *testing.T) {
	config := training(t, "diverge", "200")
	r := run(t, "", "train", config, "--set", "optim.head.lr=10", "--set", "optim.embedding.lr=10", "--set", "optim.scalar.lr=10",
		"--set", "schedule.warmup=30", "--set", "anomaly.patience=4", "--set", "anomaly.loss_sigma=3", "--set", "train.checkpoint_every=5", "--set", "model.logit_softcap=0")
	if r.code != 6 || !strings.Contains(r.stderr, "the training diverged") || !strings.Contains(r.stderr, "hint: resume from the newest checkpoint in runs/diverge/checkpoints with lower learning rates") {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "runs/diverge/diverged/step-*/MANIFEST")); err != nil || len(names) != 1 {
		t.Errorf("%v %v", names, err)
	}
}

// TestSecondInterruptEndsAtOnce: a training that is saving can still be ended.
func TestSecondInterruptEndsAtOnce(t *testing.T) {
	config := training(t, "twice", "5000")
	cmd := command("train", config, "--set", "train.log_every=1")
	var out bytes.Buffer
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	lines.Scan()
	for range 2 {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || time.Since(start) > 5*time.Second {
		t.Errorf("exit %d after %v\n%s", code, time.Since(start), out.String())
	}
}

// TestTrainMemory: what a training takes is what --dry-run says. The pages of mapped
// shards are the operating system's and do not count.
func TestTrainMemory(t *testing.T) {
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("no /proc")
	}
	config := training(t, "memory", "2")
	args := []string{"train", config, "--set", "model.dim=256", "--set", "model.heads=4", "--set", "model.layers=6", "--set", "model.ffn=1024",
		"--set", "model.context=512", "--set", "train.seq_len=512", "--set", "train.rows=4", "--set", "train.micro_rows=4", "--set", "train.checkpoint_every=1",
		"--set", "schedule.warmup=1", "--set", "schedule.decay=1", "--set", "train.eval_every=1"}
	var p struct{ Memory []struct{ Bytes int64 } }
	if err := json.Unmarshal([]byte(ok(t, "", append(args, "--dry-run", "--json")...).stdout), &p); err != nil {
		t.Fatal(err)
	}
	var want, most int64
	for _, part := range p.Memory {
		want += part.Bytes
	}
	cmd := command(args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	anon := regexp.MustCompile(`RssAnon:\s+(\d+) kB`)
	for running := true; running; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		case <-time.After(5 * time.Millisecond):
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
			if m := anon.FindSubmatch(b); err == nil && m != nil {
				n, err := strconv.ParseInt(string(m[1]), 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				most = max(most, n<<10)
			}
		}
	}
	t.Logf("RELIABILITY training_memory_over_dry_run %.3f ratio", float64(most)/float64(want))
	if ratio := float64(most) / float64(want); ratio < 0.9 || ratio > 1.1 {
		t.Errorf("%d MiB at most, --dry-run says %d MiB", most>>20, want>>20)
	}
}

// TestDamagedShard: a shard with another byte than it was written with is damage, with
// its exit code, and nothing is trained.
func TestDamagedShard(t *testing.T) {
	config := training(t, "damagedshard", "4")
	if err := os.CopyFS(filepath.Join(dir, "broken"), os.DirFS(filepath.Join(dir, "shards"))); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "broken", "train-*"))
	if err != nil || len(names) == 0 {
		t.Fatal("no shard", err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(names[0], b, 0o644); err != nil {
		t.Fatal(err)
	}
	r := run(t, "", "train", config, "--out", "fromdamage", "--set", "data.path=broken")
	if r.code != 4 || !strings.Contains(r.stderr, "SHA-256") || !strings.Contains(r.stderr, "hint: delete the directory and run nanochat data prepare again") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "fromdamage")); err == nil {
		t.Error("the directory of the run was made")
	}
}
