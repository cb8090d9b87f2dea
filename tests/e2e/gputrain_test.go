//go:build cgo

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// emulatedGPU is the environment of a machine with the emulated GPU. Compiled kernels are
// kept below build: they are named after their sources.
func emulatedGPU(t *testing.T) (env []string, libs string) {
	t.Helper()
	if cudatest.OnGPU(os.Getenv) {
		t.Skip("this test is about the emulated GPU; the tests are on the machine's")
	}
	dirs, _, missing, err := cudatest.Setup(os.Getenv)
	if missing != "" {
		t.Skip(missing)
	}
	home, err2 := cudatest.Home()
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(home, "..", "..", "build", "cudatest", "cache")
	return []string{cuda.LibDirVariable + "=" + dirs[0], "XDG_CACHE_HOME=" + cache}, dirs[0]
}

// tensors is the weights and the optimizer's state in a checkpoint of a run.
func tensors(t *testing.T, run, step string) (all [2][]byte) {
	t.Helper()
	for i, name := range []string{"weights.safetensors", "optimizer.safetensors"} {
		b, err := os.ReadFile(filepath.Join(dir, run, "checkpoints", "step-"+step, name))
		if err != nil {
			t.Fatal(err)
		}
		all[i] = b
	}
	return all
}

// TestTrainingOnGPU: the losses of a training on a GPU are those on the processor; a run
// that loses its GPU, or is interrupted, goes on to the very end that it would have had.
func TestTrainingOnGPU(t *testing.T) {
	env, _ := emulatedGPU(t)
	config := training(t, "gpurun", "8")
	args := func(out string, more ...string) []string {
		return append([]string{"train", config, "--out", out, "--set", "train.checkpoint_every=3", "--set", "train.eval_every=4", "--set", "train.log_every=1",
			"--set", "model.ffn_kind=relu2", "--set", "optim.matrix.lr=0.006"}, more...)
	}
	gpu := func(out string, more ...string) []string {
		return args(out, append([]string{"--device", "cuda"}, more...)...)
	}
	ok(t, "", args("gcpu")...)
	r := runEnv(t, env, "", gpu("gwhole")...)
	if r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	out, err := exec.Command("../cuda/losses.sh", "compare", filepath.Join(dir, "gcpu/metrics.jsonl"), filepath.Join(dir, "gwhole/metrics.jsonl")).CombinedOutput()
	if t.Logf("%s", out); err != nil {
		t.Error(err)
	}
	ok(t, "", "verify", "gwhole/model.gguf")
	ok(t, "", "generate", "gwhole/model.gguf", "fn", "-n", "4")
	// What the checkpoint gives is the file that the run wrote.
	ok(t, "", "export", "gwhole", "-o", "gexported.gguf")
	a, err := os.ReadFile(filepath.Join(dir, "gexported.gguf"))
	b, err2 := os.ReadFile(filepath.Join(dir, "gwhole/model.gguf"))
	if err := errors.Join(err, err2); err != nil || !bytes.Equal(a, b) {
		t.Errorf("the exported model is another one: %v", err)
	}
	want := tensors(t, "gwhole", "00000008")

	// The GPU is lost after the checkpoint of step 3.
	r = runEnv(t, append(env, "FAKE_CUDA_FAIL=cuGraphLaunch:719:11"), "", gpu("glost")...)
	if r.code != 7 || !strings.Contains(r.stderr, "CUDA_ERROR_719") || !strings.Contains(r.stderr, "the newest checkpoint is glost/checkpoints/step-00000003") ||
		!strings.Contains(r.stderr, "hint: the same command goes on") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	// It goes on on another machine, where it comes in small files.
	ok(t, "", "checkpoint", "split", "glost", "-o", "gparts", "--size", "256k")
	ok(t, "", "checkpoint", "join", "gparts", "-o", "gslice")
	r = runEnv(t, env, "", gpu("gslice")...)
	if r.code != 0 || !strings.Contains(r.stderr, "resumed gslice/checkpoints/step-00000003 after step 3 of 8") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	if a, b := metricLines(t, "gwhole"), metricLines(t, "gslice"); strings.Join(a, "\n") != strings.Join(b, "\n") {
		t.Errorf("metrics of the run that lost its GPU\n%s\nand of the one that did not\n%s", b, a)
	}
	if !equal(want, tensors(t, "gslice", "00000008")) {
		t.Error("the run that lost its GPU came to another end")
	}

	// An interrupt.
	cmd := command(gpu("gcut")...)
	cmd.Env = append(cmd.Env, env...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	last := ""
	for lines.Scan() {
		if last = lines.Text(); strings.HasPrefix(last, "step 2/8") {
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || !regexp.MustCompile(`^interrupted after step [2-5];`).MatchString(last) {
		t.Errorf("exit %d, %q", code, last)
	}
	// It goes on on the processor, which says so, and then on the GPU again.
	r = run(t, "", args("gcut", "--set", "train.steps=6", "--set", "schedule.decay=2")...)
	if r.code != 0 || !strings.Contains(r.stderr, "the run began with the kernels cuda sm_90a and goes on with") ||
		!strings.Contains(r.stderr, "changed since the checkpoint: train.device = \"cpu\", was \"cuda\"") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	r = runEnv(t, env, "", gpu("gcut")...)
	if r.code != 0 || !strings.Contains(r.stderr, "and goes on with cuda sm_90a") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
}

func equal(a, b [2][]byte) bool { return bytes.Equal(a[0], b[0]) && bytes.Equal(a[1], b[1]) }

// TestTrainingWithoutGPU: what is missing is named, with what to do; auto says why it takes the
// processor; NANOCHAT_DEVICE does not move a training.
func TestTrainingWithoutGPU(t *testing.T) {
	env, libs := emulatedGPU(t)
	if _, err := os.Stat("/dev/nvidiactl"); err == nil {
		t.Skip("this machine has a GPU")
	}
	config := training(t, "nogpu", "2")
	short := []string{"--set", "train.eval_every=0", "--set", "schedule.warmup=1", "--set", "schedule.decay=0", "--set", "train.eval_tokens=64", "--set", "model.ffn_kind=relu2"}
	without := func(name string) string { // the libraries but one
		to := t.TempDir()
		if err := os.CopyFS(to, os.DirFS(libs)); err != nil {
			t.Fatal(err)
		}
		gone, err := filepath.Glob(filepath.Join(to, name))
		if err != nil || len(gone) == 0 {
			t.Fatal("no", name, err)
		}
		for _, f := range gone {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
		return cuda.LibDirVariable + "=" + to
	}
	empty := "XDG_CACHE_HOME=" + t.TempDir()
	for _, c := range []struct {
		env        []string
		want, hint string
	}{
		{[]string{cuda.LibDirVariable + "=" + t.TempDir()}, "the CUDA driver was not found", "hint: "},
		{[]string{"FAKE_CUDA_VERSION=11080"}, "needed is 12.0", "newer driver"},
		{[]string{"FAKE_CUDA_DEVICES=0"}, "CUDA_ERROR_100", "CUDA_VISIBLE_DEVICES"},
		{[]string{"FAKE_CUDA_MAJOR=7"}, "compute capability 7.0", "device"},
		{[]string{without("libnvrtc*"), empty}, "NVRTC was not found", "nvidia-cuda-nvrtc"},
		{[]string{without("libcublasLt*")}, "cuBLASLt was not found", "nvidia-cublas"},
		{[]string{"FAKE_CUDA_FAIL=cuMemAlloc_v2:2:6"}, "no room on the GPU for this training", "train.micro_rows"},
		{[]string{"FAKE_CUDA_MEMORY=20000000"}, "of memory on the GPU, which has 19.1 MiB", "train.micro_rows"},
	} {
		all := append(env[:2:2], c.env...)
		r := runEnv(t, all, "", append([]string{"train", config, "--out", "none", "--device", "cuda"}, short...)...)
		if r.code != 1 || !strings.Contains(r.stderr, c.want) || !strings.Contains(r.stderr, c.hint) {
			t.Errorf("%v: exit %d\n%s", c.env, r.code, r.stderr)
		}
		if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
			t.Fatalf("%v: something was written", c.env)
		}
	}
	// Several GPUs add up their gradients by NCCL.
	two := append(append(env[:2:2], "FAKE_CUDA_DEVICES=2"), without("libnccl*"))
	r := runEnv(t, two, "", append([]string{"train", config, "--out", "none", "--device", "cuda", "--set", "train.devices=2"}, short...)...)
	if r.code != 1 || !strings.Contains(r.stderr, "NCCL was not found") || !strings.Contains(r.stderr, "nvidia-nccl") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	none := []string{cuda.LibDirVariable + "=" + t.TempDir(), "NANOCHAT_DEVICE=cuda"}
	r = runEnv(t, none, "", append([]string{"train", config, "--out", "auto", "--device", "auto"}, short...)...)
	if r.code != 0 || strings.Count(r.stderr, "computing on the processor: the CUDA driver was not found") != 1 {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	r = runEnv(t, none, "", append([]string{"train", config, "--out", "cpu"}, short...)...)
	if r.code != 0 || strings.Contains(r.stderr, "processor") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	r = runEnv(t, none, "", append([]string{"train", config, "--dry-run", "--device", "cuda"}, short...)...)
	if r.code != 0 || !strings.Contains(r.stdout, "gpu memory") || !strings.Contains(r.stdout, "not measured") || !strings.Contains(r.stdout, "the CUDA driver was not found") {
		t.Errorf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	var p struct {
		Device string
		Memory []struct{ Bytes int64 } `json:"device_memory"`
		Peak   int64                   `json:"device_memory_peak"`
		Parts  []struct{ Name string } `json:"step_parts"`
		Step   float64                 `json:"step_s"`
	}
	r = runEnv(t, env, "", append([]string{"train", config, "--dry-run", "--json", "--device", "cuda"}, short...)...)
	if err := json.Unmarshal([]byte(r.stdout), &p); err != nil || p.Device != "Emulated GPU 0" || p.Step <= 0 || len(p.Memory) == 0 || len(p.Parts) == 0 {
		t.Fatalf("%v: exit %d\n%s%s", err, r.code, r.stdout, r.stderr)
	}
	total := int64(0)
	for _, x := range p.Memory {
		total += x.Bytes
	}
	if ratio := float64(p.Peak) / float64(total); ratio < 0.9 || ratio > 1.1 {
		t.Errorf("%d bytes in use at most, foreseen are %d", p.Peak, total)
	}
}
