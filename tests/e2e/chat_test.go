package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
)

// slowModel is a model whose answers take seconds: random weights hardly ever end a text.
var slowModel = sync.OnceValues(func() (string, error) {
	path := filepath.Join(dir, "slow.gguf")
	out, err := exec.Command(bin, "init", "tiny", path, "--seed", "3", "--set", "model.vocab=4096", "--set", "model.context=8192",
		"--set", "model.dim=256", "--set", "model.layers=8").CombinedOutput()
	if err != nil {
		return string(out), err
	}
	return path, nil
})

// roleModel is a copy of tiny.gguf that says it knows the roles of our own template.
var roleModel = sync.OnceValues(func() (string, error) {
	path := filepath.Join(dir, "roles.gguf")
	f, err := gguf.Open(filepath.Join(dir, "tiny.gguf"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	m, err := model.Load(f, model.Options{})
	if err != nil {
		return "", err
	}
	tok, err := tokenizer.FromMetadata(f.Path, f)
	if err != nil {
		return "", err
	}
	meta, err := gguf.Collect(tok.Pairs(tokenizer.MetadataOptions{}))
	if err != nil {
		return "", err
	}
	return path, m.Save(path, append(meta, gguf.KV{Key: "nanochat.chat.template", Value: gguf.V("nanochat")})...)
})

// talk starts `nanochat chat` on a terminal, with a state directory of its own.
func talk(t *testing.T, file string, args ...string) (s *terminal, state string) {
	t.Helper()
	state = t.TempDir()
	return talkIn(t, state, file, args...), state
}

func talkIn(t *testing.T, state, file string, args ...string) *terminal {
	t.Helper()
	cmd := command(append([]string{"chat", file}, args...)...)
	cmd.Env = append(cmd.Env, "XDG_STATE_HOME="+state, "TERM=xterm-256color")
	s := start(t, cmd)
	s.wait("/help lists the commands")
	return s
}

// TestChatAnswers: a message, its answer and the next prompt; the same seed gives the
// same answer as a pipe does, and as `generate` gives.
func TestChatAnswers(t *testing.T) {
	s, _ := talk(t, "tiny.gguf", "-n", "20", "--seed", "5")
	s.wait("does not answer it")
	s.wait("> ")
	s.keys("let x = 1;\r")
	s.wait("let x = 1;\r\n")
	shown := plain(s.wait("\r\n\x1b[2mended after max_tokens, 20; /more goes on"))
	want := ok(t, "", "generate", "tiny.gguf", "let x = 1;", "-n", "20", "--seed", "5", "-t", "0.8", "--repeat-penalty", "1.1", "--no-stream").stdout
	if got, want := printable(shown), printable(want); got != want || want == "" {
		t.Errorf("the terminal shows %q, generate %q", got, want)
	}
	piped := ok(t, "let x = 1;\n", "chat", "tiny.gguf", "-n", "20", "--seed", "5")
	if strings.TrimSuffix(piped.stdout, "\n") != strings.TrimSuffix(want, "\n") {
		t.Errorf("the pipe gives %q, want %q", piped.stdout, want)
	}
	s.keys("\x04") // Ctrl-D
	if code := s.exit(); code != 0 {
		t.Errorf("Ctrl-D: exit %d", code)
	}
	if !s.cooked() {
		t.Error("the terminal was left in raw mode")
	}
}

// printable leaves out what a terminal does not show as it is.
func printable(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0xfffd || r >= 0x2400 && r <= 0x2421 {
			return -1
		}
		return r
	}, s))
}

// TestCtrlC stops the answer, and twice leaves.
func TestCtrlC(t *testing.T) {
	slow, err := slowModel()
	if err != nil {
		t.Fatal(slow, err)
	}
	s, _ := talk(t, slow, "-n", "0", "--no-history")
	s.wait("> ")
	for range 2 {
		s.keys("fn main() {\r")
		s.wait("fn main() {\r\n")
		n := len(s.all())
		for len(s.all()) < n+100 { // it is writing
			time.Sleep(time.Millisecond)
		}
		start := time.Now()
		s.keys("\x03")
		s.wait("stopped; /more goes on")
		if took := time.Since(start); took > time.Second {
			t.Errorf("stopping took %v", took)
		}
		s.wait("> ")
	}
	// A line that has begun is given up; what was stopped goes on.
	s.keys("not this\x03")
	s.wait("^C")
	s.wait("Ctrl-C again, Ctrl-D or /quit leaves")
	s.wait("> ")
	s.keys("/more\r")
	s.wait("/more\r\n")
	n := len(s.all())
	for len(s.all()) < n+50 {
		time.Sleep(time.Millisecond)
	}
	s.keys("\x03\x03")
	if code := s.exit(); code != 0 || !s.cooked() {
		t.Errorf("exit %d, terminal restored: %v", code, s.cooked())
	}
	// At the prompt too.
	s, _ = talk(t, "tiny.gguf")
	s.wait("> ")
	s.keys("\x03")
	s.wait("leaves")
	s.keys("\x03")
	if code := s.exit(); code != 0 || !s.cooked() {
		t.Errorf("exit %d, terminal restored: %v", code, s.cooked())
	}
}

// TestChatIsEnded by a signal: the terminal is as it was.
func TestChatIsEnded(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		s, _ := talk(t, "tiny.gguf")
		s.wait("> ")
		s.cmd.Process.Signal(sig)
		if code := s.exit(); code != 128+int(sig) || !s.cooked() {
			t.Errorf("%v: exit %d, terminal restored: %v", sig, code, s.cooked())
		}
	}
}

// TestHistory: the arrow keys bring lines back, in the next program too.
func TestHistory(t *testing.T) {
	s, state := talk(t, "tiny.gguf", "-n", "2")
	for _, line := range []string{"/set top_k 7", "/set seed 9"} {
		s.wait("> ")
		s.keys(line + "\r")
		s.wait(line + "\r\n")
	}
	s.wait("> ")
	s.keys("/quit\r")
	s.exit()
	file := filepath.Join(state, "nanochat", "history")
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	s = talkIn(t, state, "tiny.gguf")
	s.wait("> ")
	s.keys("\x1b[A\x1b[A\x1b[A\x1b[A") // beyond the oldest
	s.wait("/set top_k 7")
	s.keys("\x7f8\r/set\r") // 8 for 7
	s.wait("top_k              8")
	s.wait("> ")
	s.keys("/quit\r")
	s.exit()
	// One that cannot be written does not stop anybody.
	if os.Geteuid() != 0 {
		os.Chmod(filepath.Join(state, "nanochat"), 0o500)
		talkIn(t, state, "tiny.gguf").wait("> ")
	}
	s = talkIn(t, filepath.Join(dir, "tiny.gguf"), "tiny.gguf") // a file is no directory
	s.wait("> ")
	s.keys("/quit\r")
	if code := s.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// TestSeveralLines: quotes, /multi and a paste give one message each.
func TestSeveralLines(t *testing.T) {
	want := ok(t, "\"\"\"\na\n\n\tb\n\"\"\"\n", "chat", "tiny.gguf", "-n", "3", "--json").stdout
	prompt := func(stdout string) any {
		return decode(t, stdout)["usage"].(map[string]any)["prompt_tokens"]
	}
	if prompt(want) != 6.0 { // the token that begins a text, and a, two line breaks, a tab, b
		t.Errorf("%s", want)
	}
	for name, input := range map[string]string{
		"multi": "/multi\na\n\n\tb\n/end\n", "one line": "\"\"\"a\n\n\tb\"\"\"\n",
	} {
		if got := ok(t, input, "chat", "tiny.gguf", "-n", "3", "--json").stdout; decode(t, got)["text"] != decode(t, want)["text"] || prompt(got) != 6.0 {
			t.Errorf("%s: %s", name, got)
		}
	}
	s, _ := talk(t, "tiny.gguf", "-n", "3", "-u")
	s.wait("> ")
	for _, input := range []string{
		"\x1b[200~a\r\r\tb\x1b[201~\r", // a terminal's paste
		"\"\"\"a\r\r\x1b[200~\tb\x1b[201~\"\"\"\r",
		"/multi\ra\r\r\x1b[200~\tb\x1b[201~\r\x04",
	} {
		s.keys(input)
		s.wait("\x1b[2m")
		s.wait("/more goes on")
		if got := s.wait(" in the context"); !strings.Contains(got, "; 9 of 96") {
			t.Errorf("%q: %q", input, got)
		}
		s.wait("> ")
	}
}

// TestChatCommands: what they say, and that mistakes do not end a conversation.
func TestChatCommands(t *testing.T) {
	s, _ := talk(t, "tiny.gguf", "-n", "4", "--seed", "1")
	file := filepath.Join(t.TempDir(), "talk.json")
	for _, step := range []struct{ keys, want string }{
		{"/help", "/retry"},
		{"/bogus", "there is no command /bogus"},
		{"/retry", "there is no answer yet"},
		{"/more", "no answer that was cut short"},
		{"/set temperature 0.7", "> "},
		{"/set", "temperature        0.7"},
		{"/set temperature warm", `temperature cannot be "warm"`},
		{"/set top_p 3", "top_p is 3, must be 0 (off) to 1"},
		{"/set colour 1", "there is no setting"},
		{"/seed", "needs a name and a value"},
		{"/seed -1", "cannot be"},
		{"/system Be brief.", "has no chat template, so nobody reads a system message"},
		{"// this is text", "/more goes on"},
		{"/more", "/more goes on"},
		{"/retry", "/more goes on"},
		{"/set", "seed               2"}, // one more
		{"/stats", "> "},
		{"fn", "tokens/s"},
		{"/save " + file, "4 messages in"},
		{"/save " + filepath.Join(dir, "tiny.gguf"), "exists and is no conversation"},
		{"/save " + file, "4 messages in"}, // again
		{"/save", "needs the name of a file"},
		{"/reset", "> "},
		{"/retry", "there is no answer yet"},
		{"/load " + file, "4 messages from"},
		{"/load nowhere.json", "no such file"},
		{"/load " + filepath.Join(dir, "tiny.gguf"), "is no conversation"},
		{"/retry", "tokens/s"},
		{strings.Repeat("long ", 60), "the message has 301 tokens, and the context holds 96"},
	} {
		s.keys(step.keys + "\r")
		s.wait("\r\n")
		s.wait(step.want)
	}
	s.keys("/quit\r")
	if code := s.exit(); code != 0 {
		t.Errorf("exit %d", code)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var saved struct {
		Settings map[string]string
		Messages []struct{ Role, Content string }
	}
	if err := json.Unmarshal(b, &saved); err != nil || len(saved.Messages) != 4 || saved.Messages[2].Content != "fn" || saved.Settings["temperature"] != "0.7" {
		t.Errorf("%v: %s", err, b)
	}
}

// TestRoles: a model with a template gets the whole conversation; a full context is said
// with its counts.
func TestRoles(t *testing.T) {
	roles, err := roleModel()
	if err != nil {
		t.Fatal(err)
	}
	r := ok(t, "one\ntwo\n/reset\none\n", "chat", roles, "-n", "3", "--json", "-t", "0")
	if r.stderr != "" {
		t.Errorf("standard error holds %q", r.stderr)
	}
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d answers: %s", len(lines), r.stdout)
	}
	tokens := func(line string) float64 {
		return decode(t, line)["usage"].(map[string]any)["prompt_tokens"].(float64)
	}
	if a, b, c := tokens(lines[0]), tokens(lines[1]), tokens(lines[2]); b < a+3+3 || c != a {
		t.Errorf("prompts of %v, %v and %v tokens", a, b, c)
	}
	if decode(t, lines[0])["text"] != decode(t, lines[2])["text"] {
		t.Error("/reset leaves something behind")
	}
	if with := ok(t, "one\n", "chat", roles, "-n", "3", "--json", "-s", "Be brief."); tokens(with.stdout) < tokens(lines[0])+9 {
		t.Error("the system message is not read")
	}
	long := strings.Repeat("0123456789", 4)
	r = run(t, long+"\n"+long+"\n", "chat", roles, "-n", "20")
	if r.code != 1 || !strings.Contains(r.stderr, "the context holds 96; nothing was sent") || !strings.Contains(r.stderr, "/reset begins a new conversation") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	r = ok(t, long+"\n", "chat", roles, "-n", "0")
	if !strings.Contains(r.stderr, "of 96 tokens; the answer ends here") && !strings.Contains(r.stdout, "\n") {
		t.Errorf("%q, %q", r.stdout, r.stderr)
	}
}

func TestChatMistakes(t *testing.T) {
	for want, r := range map[string]result{
		"has no special token":             run(t, "", "chat", "tiny.gguf", "--template", "chatml"),
		"template is \"x\"":                run(t, "", "chat", "tiny.gguf", "--template", "x"),
		"nobody reads a system message":    run(t, "", "chat", "tiny.gguf", "-s", "Be brief."),
		"temperature is -1":                run(t, "", "chat", "tiny.gguf", "--temperature=-1"),
		"the last message has no end":      run(t, "\"\"\"a\nb\n", "chat", "tiny.gguf"),
		"nothing was sent":                 run(t, strings.Repeat("a ", 5000), "chat", "tiny.gguf"),
		"there is no command /x":           run(t, "/x\n", "chat", "tiny.gguf"),
		"no such file":                     run(t, "/load x.json\n", "chat", "tiny.gguf"),
		"--max-tokens -1 is outside":       run(t, "", "chat", "tiny.gguf", "--max-tokens=-1"),
		"model nowhere.gguf: no such file": run(t, "", "chat", "nowhere.gguf"),
	} {
		if r.code == 0 || !strings.Contains(r.stderr, want) || r.stdout != "" {
			t.Errorf("want %q: exit %d: %s", want, r.code, r.stderr)
		}
	}
	// An empty input is an empty conversation.
	if r := ok(t, "", "chat", "tiny.gguf"); r.stdout != "" {
		t.Errorf("%q", r.stdout)
	}
}

// TestChatEndlessLine: a line that does not end is refused as soon as it is too long,
// here while its writer still has the pipe open.
func TestChatEndlessLine(t *testing.T) {
	cmd := command("chat", "tiny.gguf")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(time.Minute, func() { cmd.Process.Kill() }).Stop()
	go in.Write(bytes.Repeat([]byte("a"), 64<<20+1<<16))
	cmd.Wait()
	if !strings.Contains(stderr.String(), "line 1 has more than 64.0 MiB") {
		t.Errorf("%s", &stderr)
	}
}

// TestColour only on a terminal, and not with NO_COLOR.
func TestColour(t *testing.T) {
	cmd := command("chat", "tiny.gguf", "-n", "2", "--no-history")
	cmd.Env = append(cmd.Env, "TERM=xterm", "NO_COLOR=1")
	s := start(t, cmd)
	s.wait("> ")
	s.keys("x\r")
	s.wait("goes on")
	s.wait("> ")
	s.keys("/quit\r")
	s.exit()
	if all := s.all(); strings.Contains(all, "\x1b[1m") || strings.Contains(all, "\x1b[2m") {
		t.Errorf("with NO_COLOR: %q", all)
	}
	if r := ok(t, "x\n", "chat", "tiny.gguf", "-n", "2", "-u"); strings.Contains(r.stdout+r.stderr, "\x1b") {
		t.Errorf("a pipe gets %q, %q", r.stdout, r.stderr)
	}
}

// TestAnswerToAFile: with standard output elsewhere, lines are still edited, and nothing
// but answers goes there.
func TestAnswerToAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := command("chat", "tiny.gguf", "-n", "20", "--seed", "5", "--no-history")
	cmd.Env = append(cmd.Env, "TERM=xterm")
	cmd.Stdout = f
	s := start(t, cmd)
	s.wait("> ")
	s.keys("let x = 1;\r")
	s.wait("goes on")
	s.wait("> ")
	s.keys("\x04")
	s.exit()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := ok(t, "let x = 1;\n", "chat", "tiny.gguf", "-n", "20", "--seed", "5").stdout
	if strings.TrimSuffix(string(b), "\n") != strings.TrimSuffix(want, "\n") {
		t.Errorf("the file holds %q, want %q", b, want)
	}
}

// TestCtrlZ gives the terminal back to the shell, and fg the line to the chat.
func TestCtrlZ(t *testing.T) {
	shell := exec.Command("bash", "--norc", "--noprofile", "-i")
	shell.Dir = dir
	shell.Env = append(command().Env, "TERM=xterm", "PS1=ready$ ", "HISTFILE=")
	s := start(t, shell)
	s.wait("ready$ ")
	s.keys(bin + " chat tiny.gguf -n 4 --no-history\r")
	s.wait("does not answer it")
	s.wait("> ")
	s.keys("let x")
	s.wait("let x")
	s.keys("\x1a")
	s.wait("Stopped")
	s.wait("ready$ ")
	s.keys("echo in the sh''ell\r")
	s.wait("in the shell")
	s.wait("ready$ ")
	s.keys("fg\r")
	s.wait("> ")
	s.wait("let x")
	s.keys(" = 1;\r")
	s.wait("ended after max_tokens, 4")
	s.wait("> ")
	s.keys("/quit\r")
	s.wait("ready$ ")
	s.keys("exit\r")
	s.exit()
}
