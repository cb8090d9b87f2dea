package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSameSeedSameText: one text for all numbers of threads and kernels, and
// another for another seed.
func TestSameSeedSameText(t *testing.T) {
	args := []string{"generate", "tiny.gguf", "fn main() {", "-n", "24", "-t", "1", "--seed"}
	want := ok(t, "", append(args, "3")...).stdout
	if want == "" {
		t.Fatal("no text")
	}
	kernels, _ := decode(t, ok(t, "", "doctor", "--json").stdout)["kernels"].([]any)
	for _, k := range kernels {
		for _, threads := range []int{1, 2, 3} {
			r := runEnv(t, []string{fmt.Sprint("NANOCHAT_KERNEL=", k), fmt.Sprint("NANOCHAT_THREADS=", threads)}, "", append(args, "3")...)
			if r.stdout != want {
				t.Errorf("%v, %d threads: %q, want %q (%s)", k, threads, r.stdout, want, r.stderr)
			}
		}
	}
	if other := ok(t, "", append(args, "4")...).stdout; other == want {
		t.Error("another seed gives the same text")
	}
}

func TestPromptsFromEverywhere(t *testing.T) {
	want := ok(t, "", "generate", "tiny.gguf", "let x = 1;", "-n", "8").stdout
	for name, r := range map[string]result{
		"pipe":      ok(t, "let x = 1;", "generate", "tiny.gguf", "-n", "8"),
		"dash":      ok(t, "let x = 1;", "generate", "tiny.gguf", "-", "-n", "8"),
		"no stream": ok(t, "", "generate", "tiny.gguf", "let x = 1;", "-n", "8", "--no-stream"),
		"size":      ok(t, "", "generate", "tiny.gguf", "let x = 1;", "-n", "0k", "-n", "8"),
	} {
		if r.stdout != want {
			t.Errorf("%s: %q, want %q", name, r.stdout, want)
		}
		if r.stderr != "" {
			t.Errorf("%s: standard error holds %q", name, r.stderr)
		}
	}
	if r := ok(t, "", "generate", "tiny.gguf", "let x = 1;", "-n", "8", "-u"); !strings.Contains(r.stderr, "tok/s") || strings.HasPrefix(r.stderr, "\n") == strings.HasSuffix(r.stdout, "\n") {
		t.Errorf("-u shows %q after %q", r.stderr, r.stdout)
	}
	if r := ok(t, "", "generate", "tiny.gguf", "let x = 1;", "-n", "8", "-u", "--json"); !strings.HasPrefix(r.stderr, "prompt ") {
		t.Errorf("-u with --json shows %q", r.stderr)
	}
}

func TestGenerateJSON(t *testing.T) {
	r := ok(t, "", "generate", "tiny.gguf", "let x", "-n", "12", "--json", "--seed", "5", "-t", "1")
	v := decode(t, r.stdout)
	usage, _ := v["usage"].(map[string]any)
	tokens, _ := v["tokens"].([]any)
	if usage["prompt_tokens"] != 6.0 || usage["completion_tokens"] != float64(len(tokens)) || len(tokens) == 0 {
		t.Errorf("usage %v, %d tokens", usage, len(tokens)) // 6: five bytes and the token that begins a text
	}
	if v["finish_reason"] != "length" && v["finish_reason"] != "stop" || v["seed"] != 5.0 {
		t.Errorf("finish_reason %v, seed %v", v["finish_reason"], v["seed"])
	}
	if plain := ok(t, "", "generate", "tiny.gguf", "let x", "-n", "12", "--seed", "5", "-t", "1").stdout; strings.TrimSuffix(plain, "\n") != strings.TrimSuffix(v["text"].(string), "\n") {
		t.Errorf("text %q, without --json %q", v["text"], plain)
	}
}

func TestStopStringsAreNotPrinted(t *testing.T) {
	args := []string{"generate", "tiny.gguf", "let x", "-n", "24", "--seed", "5", "-t", "1", "--no-stream", "--json"}
	text := decode(t, ok(t, "", args...).stdout)["text"].(string)
	runes := []rune(text)
	if len(runes) < 8 {
		t.Skipf("too short a text to cut: %q", text)
	}
	stop := string(runes[4:6])
	before, _, _ := strings.Cut(text, stop)
	v := decode(t, ok(t, "", append(args, "--stop", stop)...).stdout)
	if v["text"] != before || v["finish_reason"] != "stop" {
		t.Errorf("with --stop %q: %q (%v), want %q", stop, v["text"], v["finish_reason"], before)
	}
}

// endless starts a generation that takes seconds and waits for its first byte.
func endless(t *testing.T, args ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := command(append([]string{"generate", "big.gguf", "fn", "-n", "4k", "-t", "1", "--threads", "1", "--logit-bias", "256=-100"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/big.gguf"); err != nil {
		ok(t, "", "init", "nano-5m", "big.gguf", "--set", "model.context=8k")
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	r := bufio.NewReader(out)
	if _, err := r.ReadByte(); err != nil {
		t.Fatal(err)
	}
	return cmd, r
}

func TestInterruptStopsWithin200ms(t *testing.T) {
	for sig, code := range map[os.Signal]int{os.Interrupt: 130, syscall.SIGTERM: 143} {
		best := time.Hour // of several: other programs may hold the processors
		for range 4 {
			cmd, r := endless(t)
			start := time.Now()
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Fatal(err)
			}
			err := cmd.Wait()
			best = min(best, time.Since(start))
			if cmd.ProcessState.ExitCode() != code {
				t.Errorf("%v: exit code %d (%v), want %d", sig, cmd.ProcessState.ExitCode(), err, code)
			}
			if best < 200*time.Millisecond {
				break
			}
		}
		if best > 200*time.Millisecond {
			t.Errorf("%v: stopped after %v", sig, best)
		}
	}
}

func TestInterruptedInitLeavesNothing(t *testing.T) {
	cmd := command("init", "small-560m", "interrupted.gguf")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	hidden := func() []string {
		names, err := filepath.Glob(filepath.Join(dir, ".interrupted.gguf*"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	for begun := time.Now(); len(hidden()) == 0 && time.Since(begun) < time.Minute; {
		time.Sleep(time.Millisecond) // until the file is being written
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d", code)
	}
	if names := hidden(); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
	if _, err := os.Stat(filepath.Join(dir, "interrupted.gguf")); err == nil {
		t.Error("an interrupted file is there")
	}
}

func TestClosedPipeEndsQuietly(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("no bash")
	}
	endlessArgs := "generate big.gguf fn -n 4k -t 1 --logit-bias 256=-100"
	if _, err := os.Stat(dir + "/big.gguf"); err != nil {
		ok(t, "", "init", "nano-5m", "big.gguf", "--set", "model.context=8k")
	}
	cmd := exec.Command("bash", "-c", bin+" "+endlessArgs+" | head -c 4 >/dev/null")
	cmd.Dir = dir
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a closed pipe was noticed after %v", took)
	}
}

// No escape sequence may reach a file or a pipe.
func TestNoColourWithoutTerminal(t *testing.T) {
	for _, r := range []result{run(t, "", "info", "nowhere.gguf"), ok(t, "", "generate", "tiny.gguf", "x", "-n", "2", "-u")} {
		if strings.Contains(r.stdout+r.stderr, "\x1b") {
			t.Errorf("escape sequence in %q %q", r.stdout, r.stderr)
		}
	}
}

func TestProgressDoesNotDisturbOutput(t *testing.T) {
	r := ok(t, "", "verify", "--json", "tiny.gguf")
	if r.stderr != "" || !strings.HasPrefix(r.stdout, "{") {
		t.Errorf("%q %q", r.stdout, r.stderr)
	}
}
