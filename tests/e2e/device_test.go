//go:build cgo

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// TestDevice: the emulated GPU gives the text and the measures of the processor; its kernels are compiled
// once and kept.
func TestDevice(t *testing.T) {
	if cudatest.OnGPU(os.Getenv) {
		t.Skip("this test is about the emulated GPU; the tests are on the machine's")
	}
	dirs, _, missing, err := cudatest.Setup(os.Getenv)
	if missing != "" {
		t.Skip(missing)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cudatest.Clean)
	libs := dirs[0]
	cache := t.TempDir()
	env := []string{cuda.LibDirVariable + "=" + libs, "XDG_CACHE_HOME=" + cache}
	args := []string{"generate", "tiny.gguf", "fn main() {", "-n", "6", "-t", "1", "-u", "--device"}
	want := ok(t, "", append(args, "cpu")...)
	for range 2 {
		r := runEnv(t, env, "", append(args, "cuda")...)
		if r.code != 0 || r.stdout != want.stdout || !strings.Contains(r.stderr, "cuda") {
			t.Fatalf("exit %d, %q, want %q\n%s", r.code, r.stdout, want.stdout, r.stderr)
		}
		env = append(env, "PATH=") // no compiler: from the cache
	}
	text := corpus(t, "device.jsonl", 2, 60, 20)
	bpb := []string{"eval", "bpb", "tiny.gguf", text, "--json", "--window", "24", "--device"}
	onCPU, onGPU := runEnv(t, env, "", append(bpb, "cpu")...), runEnv(t, env, "", append(bpb, "cuda")...)
	numbers, _, _ := strings.Cut(onCPU.stdout, `"seconds"`) // before it stands what was measured
	if onCPU.code != 0 || onGPU.code != 0 || !strings.Contains(numbers, `"bpb"`) || !strings.HasPrefix(onGPU.stdout, numbers) ||
		!strings.Contains(onGPU.stdout, `"kernel": "cuda"`) || !strings.Contains(onGPU.stdout, "Emulated GPU 0") {
		t.Errorf("exit %d and %d: %s%s%s", onCPU.code, onGPU.code, onCPU.stdout, onGPU.stdout, onGPU.stderr)
	}
	if r := runEnv(t, env, "", "benchmark", "tiny.gguf", "--device", "cuda", "--prompt", "5", "--tokens", "3", "--json"); r.code != 0 ||
		!strings.Contains(r.stdout, `"device": "Emulated GPU 0"`) || !strings.Contains(r.stdout, `"kernel": "cuda"`) {
		t.Errorf("exit %d, %s%s", r.code, r.stdout, r.stderr)
	}
	// What was compiled elsewhere needs neither.
	ready := append(env[:1:1], "XDG_CACHE_HOME="+t.TempDir(), "PATH=", cuda.KernelsVariable+"="+filepath.Join(cache, "nanochat", "cuda"))
	if r := runEnv(t, ready, "", append(args, "cuda")...); r.code != 0 || r.stdout != want.stdout {
		t.Errorf("exit %d, %q, want %q\n%s", r.code, r.stdout, want.stdout, r.stderr)
	}
	if r := runEnv(t, env, "", "doctor"); !strings.Contains(r.stdout, "Emulated GPU 0") || !strings.Contains(r.stdout, "NVRTC 13.0, cuBLASLt 13.1.0, NCCL 2.23.4") {
		t.Errorf("doctor says %q", r.stdout)
	}
	if r := runEnv(t, env[:2], "", "doctor", "--compile-kernels", filepath.Join(cache, "new"), "--arch", "compute_90"); r.code != 1 || !strings.Contains(r.stderr, "compute_90") {
		t.Errorf("exit %d, %s", r.code, r.stderr)
	}

	none := append(env, cuda.LibDirVariable+"="+t.TempDir())
	if _, err := os.Stat("/dev/nvidiactl"); err == nil {
		t.Skip("this machine has a GPU: what follows is about one without")
	}
	r := runEnv(t, none, "", append(args, "cuda")...)
	if r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, "the CUDA driver was not found") || !strings.Contains(r.stderr, "hint: ") {
		t.Errorf("exit %d, %s", r.code, r.stderr)
	}
	r = runEnv(t, none, "", append(args, "auto")...)
	if r.code != 0 || r.stdout != want.stdout || !strings.Contains(r.stderr, "computing on the processor: the CUDA driver was not found") {
		t.Errorf("exit %d, %q, %s", r.code, r.stdout, r.stderr)
	}
	r = runEnv(t, none, "", append(bpb, "auto")...)
	if r.code != 0 || !strings.HasPrefix(r.stdout, numbers) || !strings.Contains(r.stderr, "computing on the processor: the CUDA driver was not found") {
		t.Errorf("exit %d, %q, %s", r.code, r.stdout, r.stderr)
	}
	noMemory := append(env, "FAKE_CUDA_MEMORY=50000")
	r = runEnv(t, noMemory, "", append(args, "cuda")...)
	if r.code != 1 || !strings.Contains(r.stderr, "no room for") || !strings.Contains(r.stderr, "--device cpu") {
		t.Errorf("exit %d, %s", r.code, r.stderr)
	}
	if left, err := filepath.Glob("/tmp/nvrtc??????"); err == nil && len(left) > 0 {
		t.Errorf("the compiler left %v", left)
	}
}
