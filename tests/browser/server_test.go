package browser

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const shipped = "../../models/nano-5m-rust/nano-5m-rust.gguf"

// program builds nanochat once.
var program = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(dir, "nanochat")
	if out, err := exec.Command("go", "build", "-o", bin, "../../cmd/nanochat").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

// serve runs `nanochat serve` with the shipped model and returns its URL.
func serve(t *testing.T, args ...string) string {
	t.Helper()
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, append([]string{"serve", shipped, "--addr", "127.0.0.1:0"}, args...)...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "NANOCHAT_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			t.Error("the server did not end within 10 s")
		}
	})
	url := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			if _, after, ok := strings.Cut(lines.Text(), "listening on "); ok {
				url <- strings.TrimRight(after, "/")
			}
		}
		ended <- cmd.Wait()
	}()
	select {
	case u := <-url:
		return u
	case <-time.After(30 * time.Second):
		t.Fatal("the server did not start within 30 s")
		return ""
	}
}

// TestRealServer uses the page as a person would, with the server and the model that are
// shipped.
func TestRealServer(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("key-for-the-page-test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := open(t, serve(t, "--api-key-file", keys))
	p.see("#status", "API key")
	p.fill("#key", "key-for-the-page-test")
	p.see("#model option", "nano-5m-rust")
	p.console() // the refusal without a key
	p.until("the mode of a base model", `return document.getElementById("mode-complete").getAttribute("aria-pressed") == "true"`)
	p.fill("#seed", "1") // the settings have opened themselves for the key
	p.fill("#max_tokens", "60")
	p.click("#toggle-settings")

	p.keys("#input", "fn main() {"+enter)
	p.see("article.text .tools", "60 tokens")
	first := p.text("article.text .body")
	if len(first) < 60 || !strings.HasPrefix(first, "fn main() {") {
		t.Errorf("the text is %q", first)
	}
	p.shot("real-complete")
	// The same seed writes the same text.
	p.eval(`[...document.querySelectorAll(".tools button")].find(b => b.textContent == "Retry").click()`)
	p.see("article.text .tools", "60 tokens")
	if again := p.text("article.text .body"); again != first {
		t.Errorf("with the same seed: %q, then %q", first, again)
	}
	p.do("POST", "/refresh", nil, nil)
	p.see("article.text .body", "fn main() {")
	if again := p.text("article.text .body"); again != first {
		t.Errorf("after a reload: %q", again)
	}

	// Chat works with any model; errors of the server are shown as it says them.
	p.see("#model option", "nano-5m-rust")
	p.click("#new")
	p.click("#mode-chat")
	p.see("#empty", "has not learnt to answer")
	p.keys("#input", injection+enter)
	p.see("article.assistant .tools", "tokens")
	if got := p.text("article.user .body"); got != injection {
		t.Errorf("the message is shown as %q", got)
	}
	p.quiet()
	p.eval(`document.getElementById("input").value = "word ".repeat(900)`)
	p.click("#send")
	p.see("article:last-child .error", "512")
	p.shot("real-error")
}

// TestRealStop: the button ends an answer at the server, which then answers again.
func TestRealStop(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	p := open(t, serve(t, "--parallel", "1"))
	p.see("#model option", "nano-5m-rust")
	p.click("#toggle-settings")
	p.fill("#max_tokens", "500")
	p.click("#toggle-settings")
	for range 3 {
		p.keys("#input", "pub struct A {"+enter)
		p.until("a word of the answer", `const e = document.querySelector("article:last-child .new"); return e && e.textContent.length > 3 || document.getElementById("stop").hidden`)
		p.eval(`document.getElementById("stop").click()`)
		p.idle()
	}
	p.quiet()
}
