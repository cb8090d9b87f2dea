package e2e

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestBenchmarkServer: against our own server, in both kinds of loop.
func TestBenchmarkServer(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("key-for-the-load-test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := command("serve", "tiny.gguf", "--addr", "127.0.0.1:0", "--api-key-file", keys)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}()
	url := ""
	lines := bufio.NewScanner(stderr)
	for url == "" && lines.Scan() {
		_, url, _ = strings.Cut(lines.Text(), "listening on ")
	}
	go func() {
		for lines.Scan() {
		}
	}()
	if url == "" {
		t.Fatal("the server does not say where it listens")
	}
	bench := func(args ...string) result {
		return runEnv(t, []string{"NANOCHAT_API_KEY=key-for-the-load-test"}, "", append([]string{"benchmark", "--server", url}, args...)...)
	}
	r := bench("--concurrency", "3", "--requests", "20", "--max-tokens", "5", "--json")
	v := decode(t, r.stdout)
	if r.code != 0 || v["answered"] != 20.0 || v["sent"] != 20.0 || v["concurrency"] != 3.0 || v["model"] != "tiny" {
		t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	first, _ := v["time_to_first_token_ms"].(map[string]any)
	end, _ := v["end_to_end_ms"].(map[string]any)
	if first["p99"].(float64) < first["p50"].(float64) || first["p50"].(float64) <= 0 || end["p50"].(float64) < first["p50"].(float64) {
		t.Errorf("first %v, end %v", first, end)
	}
	if n := v["completion_tokens"].(float64); n < 20 || n > 100 {
		t.Errorf("%v tokens in 20 answers of 5", n)
	}
	r = bench("--rate", "100", "--duration", "300ms", "--chat", "--max-tokens", "3")
	if r.code != 0 || !strings.Contains(r.stdout, "chat/completions") || !strings.Contains(r.stdout, "100 requests a second, at random times") || strings.Contains(r.stdout, "failed") {
		t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	prompts := filepath.Join(t.TempDir(), "p.jsonl")
	os.WriteFile(prompts, []byte("{\"prompt\": \"fn main() {\\n\"}\n\n{\"prompt\": \""+strings.Repeat("x", 200)+"\"}\n"), 0o644)
	r = bench("--prompts", prompts, "--requests", "4", "--json")
	v = decode(t, r.stdout)
	if faults, _ := v["faults"].(map[string]any); r.code != 0 || v["answered"] != 2.0 || faults["400"] != 2.0 {
		t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	os.WriteFile(prompts, []byte("{\"text\": 1}\n"), 0o644)

	for want, r := range map[string]result{
		"401":                              run(t, "", "benchmark", "--server", url),
		"first request failed: 404":        bench("--model", "nobody"),
		"no JSON object with a \"prompt\"": bench("--prompts", prompts),
		"refused":                          run(t, "", "benchmark", "--server", "http://127.0.0.1:1"),
		"not a URL":                        run(t, "", "benchmark", "--server", "127.0.0.1:1"),
		"exclude each other":               bench("--rate", "1", "--concurrency", "1"),
		"--rate is about --server":         run(t, "", "benchmark", "--rate", "1"),
		"--server excludes a MODEL":        bench("tiny.gguf"),
	} {
		if r.code == 0 || !strings.Contains(r.stderr, want) || !strings.Contains(r.stderr, "hint:") || r.stdout != "" {
			t.Errorf("want %q: exit %d: %s%s", want, r.code, r.stderr, r.stdout)
		}
	}

	// An interrupt shows what was measured until then.
	long := command("benchmark", "--server", url, "--rate", "50", "--duration", "1h", "--max-tokens", "2", "--api-key", "key-for-the-load-test")
	var out strings.Builder
	long.Stdout = &out
	if err := long.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	long.Process.Signal(syscall.SIGINT)
	long.Wait()
	if code := long.ProcessState.ExitCode(); code != 130 || !strings.Contains(out.String(), "answered") {
		t.Errorf("exit %d: %s", code, out.String())
	}
}
