package server

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// model is the model that comes with nanochat.
const model = "../../models/nano-5m-rust/nano-5m-rust.gguf"

var bin string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "nanochat-server-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "nanochat")
	if out, err := exec.Command("go", "build", "-o", bin, "../../cmd/nanochat").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// A process is a running `nanochat serve`.
type process struct {
	*exec.Cmd
	url    string
	stderr *bytes.Buffer
	exited chan error
}

// serve starts a server on a free port and waits until it is ready.
func serve(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(bin, append([]string{"serve", model, "--addr", "127.0.0.1:0"}, args...)...), stderr: &bytes.Buffer{}, exited: make(chan error, 1)}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "NANOCHAT_") && !strings.HasPrefix(v, "OTEL_") {
			p.Env = append(p.Env, v)
		}
	}
	pipe, err := p.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	t.Cleanup(func() { p.Process.Kill() })
	lines := bufio.NewScanner(pipe)
	for lines.Scan() {
		if where, ok := strings.CutPrefix(lines.Text(), "listening on "); ok {
			p.url = where
			break
		}
		p.stderr.WriteString(lines.Text() + "\n")
	}
	require.NotEmpty(t, p.url, "it did not start: %s", p.stderr)
	go func() {
		for lines.Scan() {
			p.stderr.WriteString(lines.Text() + "\n")
		}
		p.exited <- p.Wait()
	}()
	return p
}

// stop ends the server in an orderly way and returns what it wrote.
func (p *process) stop(t *testing.T) string {
	t.Helper()
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-p.exited:
		require.NoError(t, err, "%s", p.stderr)
	case <-time.After(40 * time.Second):
		t.Fatal("it did not end")
	}
	return p.stderr.String()
}

// run executes a client and fails the test if it does.
func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

func TestOpenAIPackage(t *testing.T) {
	python := os.Getenv("NANOCHAT_PYTHON")
	if python == "" {
		t.Skip("NANOCHAT_PYTHON is not set: want a Python with the packages of requirements-dev.txt; `make test` sets it")
	}
	keys := filepath.Join(t.TempDir(), "keys")
	require.NoError(t, os.WriteFile(keys, []byte("# for the test\nother\nsecret\n"), 0o600))
	all := serve(t)
	guarded := serve(t, "--api-key-file", keys)
	narrow := serve(t, "--parallel", "1", "--queue", "0")
	run(t, ".", python, "openai_client.py", all.url, guarded.url, narrow.url)
	for _, p := range []*process{all, guarded, narrow} {
		require.Empty(t, p.stop(t))
	}
}

func TestGoClient(t *testing.T) {
	p := serve(t)
	run(t, "testdata/goopenai", "go", "run", ".", p.url)
	p.stop(t)
}

// TestCurl reads a stream as curl -N gives it out.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	p := serve(t)
	out := run(t, ".", curl, "-sSN", "-D", "-", p.url+"/v1/completions",
		"-d", `{"model":"nano-5m-rust","prompt":"fn main() {","max_tokens":3,"temperature":0,"stream":true}`)
	head, body, _ := strings.Cut(out, "\r\n\r\n")
	require.Contains(t, head, "200 OK")
	require.Contains(t, head, "Content-Type: text/event-stream")
	events := strings.Split(strings.TrimSuffix(body, "\n\n"), "\n\n")
	last := len(events) - 1 // the end, and in front of it the reason; of three tokens some may come together
	require.True(t, last >= 2 && last <= 4, "%s", body)
	for _, e := range events {
		require.True(t, strings.HasPrefix(e, "data: "), "%q", e)
	}
	require.Contains(t, events[last-1], `"finish_reason":"length"`)
	require.Equal(t, "data: [DONE]", events[last])
	p.stop(t)
}

// TestDrain ends a server with streams that take longer than it waits: each is
// whole or ends with an event that says why, and the exit code is 0. Ten at least have begun.
func TestDrain(t *testing.T) {
	p := serve(t, "--drain", "300ms")
	const streams = 50
	const late = "came when the server was closing" // its connection was, too: HTTP has no answer for it
	began, done := make(chan struct{}, streams), make(chan string, streams)
	for range streams {
		go func() {
			r, err := http.Post(p.url+"/v1/completions", "application/json",
				strings.NewReader(`{"prompt":"fn main() {","max_tokens":500,"ignore_eos":true,"stream":true}`))
			began <- struct{}{}
			if err != nil {
				done <- late
				return
			}
			defer r.Body.Close()
			last := ""
			lines := bufio.NewScanner(r.Body)
			for lines.Scan() {
				if lines.Text() != "" {
					last = lines.Text()
				}
			}
			if err := lines.Err(); err != nil {
				last = err.Error()
			}
			done <- last
		}()
	}
	for range 10 {
		<-began
	}
	start := time.Now()
	p.stop(t)
	require.Less(t, time.Since(start), 5*time.Second)
	whole, told, missed := 0, 0, 0
	for range streams {
		switch last := <-done; {
		case last == "data: [DONE]":
			whole++
		case strings.Contains(last, "shutting down"):
			told++
		case last == late:
			missed++
		default:
			t.Errorf("a stream ended with %q", last)
		}
	}
	t.Logf("%d whole, %d told, %d late", whole, told, missed)
	require.Positive(t, told)
	require.LessOrEqual(t, missed, streams-10)
}

func TestStartsThatFail(t *testing.T) {
	p := serve(t)
	bad := filepath.Join(t.TempDir(), "bad.gguf")
	require.NoError(t, os.WriteFile(bad, []byte("no model"), 0o644))
	for _, c := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"serve", model, "--addr", strings.TrimPrefix(p.url, "http://")}, 1, []string{"another program listens on", "--addr 127.0.0.1:8081"}},
		{[]string{"serve", bad, "--addr", "127.0.0.1:0"}, 4, []string{"error:", "hint:"}},
		{[]string{"serve", "none.gguf", "--addr", "127.0.0.1:0"}, 3, []string{"none.gguf"}},
		{[]string{"serve", model, "--addr", "nowhere"}, 1, []string{"HOST:PORT"}},
		{[]string{"serve", model, "--tls-cert", "x"}, 2, []string{"belong together"}},
		{[]string{"serve", model, "--api-key-file", bad + "none"}, 1, []string{"API keys"}},
		{[]string{"serve", model, "--uds", bad}, 1, []string{bad + " exists and is no socket"}},
		{[]string{"serve", model, "--trace-ratio", "7"}, 2, []string{"--trace-ratio 7 is outside 0 to 1"}},
		{[]string{"serve", model, "--parallel", "9999"}, 2, []string{"parallel is 9999"}},
		{[]string{"serve", model, model}, 2, []string{"given twice"}},
		{[]string{"serve", model, "--cors-origin", "example.org"}, 2, []string{"https://example.org"}},
	} {
		cmd := exec.Command(bin, c.args...)
		out, _ := cmd.CombinedOutput()
		require.Equal(t, c.code, cmd.ProcessState.ExitCode(), "%v: %s", c.args, out)
		for _, w := range c.want {
			require.Contains(t, string(out), w)
		}
	}
	p.stop(t)
}

// TestUnixSocket serves on a socket, replaces one that was left behind, and reads
// its keys again when it is told to.
func TestUnixSocket(t *testing.T) {
	dir := t.TempDir()
	socket, keys := filepath.Join(dir, "s"), filepath.Join(dir, "keys")
	old, err := net.Listen("unix", socket)
	require.NoError(t, err)
	old.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, old.Close())
	require.NoError(t, os.WriteFile(keys, []byte("one\n"), 0o600))
	p := serve(t, "--uds", socket, "--api-key-file", keys)
	require.Equal(t, "unix:"+socket, p.url)
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
	status := func(key string) int {
		req, err := http.NewRequest("GET", "http://here/v1/models", nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+key)
		r, err := client.Do(req)
		require.NoError(t, err)
		r.Body.Close()
		return r.StatusCode
	}
	require.Equal(t, 200, status("one"))
	require.Equal(t, 401, status("two"))
	out, err := exec.Command(bin, "serve", model, "--uds", socket).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "another program listens")
	require.NoError(t, os.WriteFile(keys, []byte("two\nthree\n"), 0o600))
	require.NoError(t, p.Process.Signal(syscall.SIGHUP))
	for end := time.Now().Add(5 * time.Second); status("two") != 200; {
		require.True(t, time.Now().Before(end), "the keys were not read again")
		time.Sleep(10 * time.Millisecond)
	}
	require.Equal(t, 401, status("one"))
	require.NoError(t, os.WriteFile(keys, nil, 0o600))
	require.NoError(t, p.Process.Signal(syscall.SIGHUP))
	time.Sleep(100 * time.Millisecond)
	require.Equal(t, 200, status("three"), "a file without keys opens nothing")
	said := p.stop(t)
	require.Contains(t, said, "2 keys read")
	require.Contains(t, said, "the keys stay as they were")
	require.NoFileExists(t, socket)
}
