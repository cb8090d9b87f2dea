package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What TensorBoard shows of a run that was interrupted and resumed is what metrics.jsonl
// says, step by step, with histograms, texts and samples.
func TestTensorBoardOfARun(t *testing.T) {
	py := os.Getenv("NANOCHAT_PYTHON")
	if py == "" {
		t.Skip("NANOCHAT_PYTHON is not set: want a Python with the packages of requirements-dev.txt; `make test` sets it")
	}
	config := training(t, "board", "20")
	args := []string{"train", config, "--out", "board", "--set", "model.streams=2", "--set", "train.checkpoint_every=10"}
	cmd := command(append(args, "--set", "train.log_every=1")...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "step 13/20") { // after the checkpoint of step 10
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait()
	if r := ok(t, "", args...); !strings.Contains(r.stderr, "after step 10 of 20") {
		t.Fatalf("not resumed from step 10:\n%s", r.stderr)
	}
	read := exec.Command(py, "../interop/events_reference.py", filepath.Join(dir, "board/tensorboard"))
	read.Stderr = os.Stderr
	out, err := read.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Scalars    map[string][][3]float64
		Histograms map[string][][4]any
		Texts      map[string][][2]any
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	lines := metricLines(t, "board")
	for tag, key := range map[string]string{"loss/total": "loss", "loss/bpb": "bpb", "loss/entropy": "entropy", "optim/lr": "lr", "optim/grad_norm": "grad_norm"} {
		if len(got.Scalars[tag]) != 20 {
			t.Fatalf("%s has %d points, want 20", tag, len(got.Scalars[tag]))
		}
		for i, line := range lines {
			want, p := decode(t, line)[key].(float64), got.Scalars[tag][i]
			if p[0] != float64(i+1) || p[2] < want*0.99999 || p[2] > want*1.00001 {
				t.Errorf("%s: step %g is %g, metrics.jsonl says %g at step %d", tag, p[0], p[2], want, i+1)
			}
		}
	}
	for _, tag := range []string{"val/bpb", "mhc/gain", "mhc/kept/layer00/attention", "mhc/similarity/layer01/ffn"} {
		if n := len(got.Scalars[tag]); n != 2 {
			t.Errorf("%s has %d points, want those of the evaluations at 10 and 20", tag, n)
		}
	}
	if h := got.Histograms["trits/blk.0.ffn_down.weight"]; len(h) != 2 || len(h[0][3].([]any)) != 3 {
		t.Errorf("trits: %v", h)
	}
	weights := 0
	for tag := range got.Histograms {
		if strings.HasPrefix(tag, "weights/") {
			weights++
		}
	}
	if weights < 10 {
		t.Errorf("histograms of %d tensors", weights)
	}
	if s := got.Texts["sample"]; len(s) < 2 || !strings.Contains(s[0][1].([]any)[0].(string), "fn main() {") {
		t.Errorf("samples: %v", s)
	}
	if s := got.Texts["config"]; len(s) != 2 || !strings.Contains(s[0][1].([]any)[0].(string), "[model]") {
		t.Errorf("configurations: %v", s)
	}
}

// Prometheus can scrape a training while it runs.
func TestTrainingMetrics(t *testing.T) {
	cmd := command("train", training(t, "scraped", "100000"), "--out", "scraped", "--metrics-addr", "127.0.0.1:0", "--tensorboard", "off", "--log-json", "scraped.jsonl")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(stderr)
	var url string
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "step ") {
		if m := regexp.MustCompile(`^metrics at (http://127\.0\.0\.1:\d+/metrics)$`).FindStringSubmatch(lines.Text()); m != nil {
			url = m[1]
		}
	}
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	found := false
	for s := bufio.NewScanner(res.Body); s.Scan(); {
		found = found || regexp.MustCompile(`^nanochat_train_loss \d\.\d+$`).MatchString(s.Text())
	}
	if !found {
		t.Error("no loss in the metrics")
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	_ = cmd.Wait()
	b, err := os.ReadFile(filepath.Join(dir, "scraped.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	log := strings.Split(strings.TrimSpace(string(b)), "\n")
	if first, last := decode(t, log[0]), decode(t, log[len(log)-1]); first["msg"] != "training began" || last["msg"] != "training ended" || last["error"] == nil {
		t.Errorf("log from\n%v\nto\n%v", first, last)
	}
	if _, err := os.Stat(filepath.Join(dir, "scraped/tensorboard")); !os.IsNotExist(err) {
		t.Errorf("--tensorboard off: %v", err)
	}
}

// Nothing that happens to what a training tells of itself stops it, or changes it: the log
// directory is removed, the disks are full, the pipes are closed, the collector is gone.
func TestTelemetryFaults(t *testing.T) {
	config := training(t, "faults", "30")
	ok(t, "", "train", config, "--out", "undisturbed", "--tensorboard", "off")
	cmd := command("train", config, "--out", "disturbed", "--tensorboard", "events", "--log-json", "/dev/full", "--otlp", "http://127.0.0.1:1",
		"--metrics-addr", "127.0.0.1:0", "--set", "train.log_every=1", "--json")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	result, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for lines := bufio.NewScanner(stderr); lines.Scan() && !strings.HasPrefix(lines.Text(), "step  3/30"); {
	}
	stderr.Close() // who read the log left
	if err := os.RemoveAll(filepath.Join(dir, "events")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "events"), nil, 0o644); err != nil { // and it cannot come back
		t.Fatal(err)
	}
	var r struct {
		Steps                int
		Dropped_observations int64
	}
	if err := json.NewDecoder(result).Decode(&r); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("after %v: %v", time.Since(began), err)
	}
	// 30 steps of 6 spans, two checkpoints, lines of the log.
	if r.Steps != 30 || r.Dropped_observations < 100 {
		t.Errorf("%+v", r)
	}
	for _, name := range []string{"weights.safetensors", "optimizer.safetensors"} {
		var files [2][]byte
		for i, run := range []string{"undisturbed", "disturbed"} {
			if files[i], err = os.ReadFile(filepath.Join(dir, run, "checkpoints/step-00000030", name)); err != nil {
				t.Fatal(err)
			}
		}
		if string(files[0]) != string(files[1]) {
			t.Errorf("%s differs", name)
		}
	}
	t.Logf("RELIABILITY | a training whose log is read no more, whose event directory is replaced by a file, whose JSON log is on a full disk and whose collector is gone: weights and optimizer are those of an undisturbed one, bit for bit, and what was lost is counted | %d observations lost | `tests/e2e TestTelemetryFaults` |",
		r.Dropped_observations)
}

// A pipe that is full because nobody reads the log holds up nothing.
func TestNobodyReadsTheLog(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	const setPipeSize = 1031 // F_SETPIPE_SZ
	if _, _, e := syscall.Syscall(syscall.SYS_FCNTL, write.Fd(), setPipeSize, 4096); e != 0 {
		t.Skip(e)
	}
	cmd := command("train", training(t, "unread", "60"), "--out", "unread", "--set", "train.log_every=1", "--json") // 60 lines of 100 bytes
	cmd.Stderr = write
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	stuck := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer stuck.Stop()
	var r struct{ Steps int }
	if err := json.NewDecoder(out).Decode(&r); err != nil || r.Steps != 60 {
		t.Errorf("%v, %+v", err, r)
	}
	_, _ = io.Copy(io.Discard, read)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestTelemetryFlagsAreChecked(t *testing.T) {
	config := training(t, "flags", "5")
	for flag, want := range map[string]string{"--otlp=localhost:4318": "as in http://localhost:4318", "--metrics-addr=256.1.1.1:1": "choose another address"} {
		if r := run(t, "", "train", config, "--out", "flags", flag); r.code == 0 || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: exit code %d: %s", flag, r.code, r.stderr)
		}
	}
}
