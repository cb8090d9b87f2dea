package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
)

// testModel is the path of a model with random weights: a context of 128 and a
// token a byte, with those for fill-in-the-middle.
var testModel = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "nanochat-server-")
	if err != nil {
		return "", err
	}
	c, err := config.Preset("tiny", "model.dim=64", "model.ffn=64", "model.layers=1", "model.context=128", "model.vocab=300")
	if err != nil {
		return "", err
	}
	m, err := model.Init(context.Background(), c.Model, 3, model.Options{})
	if err != nil {
		return "", err
	}
	tok, err := tokenizer.NewByteLevel(300)
	if err != nil {
		return "", err
	}
	meta, err := gguf.Collect(tok.Pairs(tokenizer.MetadataOptions{}))
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "m.gguf")
	return path, m.Save(path, meta...)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := testModel(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func spec(t testing.TB, name string) ModelSpec {
	t.Helper()
	path, err := testModel()
	require.NoError(t, err)
	return ModelSpec{Name: name, Find: func(context.Context) (string, error) { return path, nil },
		Options: chat.Options{Engine: infer.Options{Threads: 1}}}
}

// A fixture is a server on a socket of its own.
type fixture struct {
	*Server
	url  string
	addr string
	ln   *listener
	log  *buffer
	stop context.CancelFunc
	done chan error
}

// listener can give its connections small buffers.
type listener struct {
	net.Listener
	small atomic.Bool
}

// Accept waits for a connection.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil && l.small.Load() {
		err = c.(*net.TCPConn).SetWriteBuffer(4096)
	}
	return c, err
}

// buffer is a log for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// serve starts a server; change, if not nil, may alter it before.
func serve(t testing.TB, o Options, change func(*Server)) *fixture {
	t.Helper()
	if o.Models == nil {
		o.Models = []ModelSpec{spec(t, "m")}
	}
	f := &fixture{log: &buffer{}, done: make(chan error, 1)}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(f.log, nil))
	}
	var err error
	f.Server, err = New(o)
	require.NoError(t, err)
	if change != nil {
		change(f.Server)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ln := &listener{Listener: tcp}
	f.ln = ln
	f.addr = ln.Addr().String()
	f.url = "http://" + f.addr
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	go func() { f.done <- f.Serve(ctx, ln) }()
	require.NoError(t, f.Load(t.Context(), ""))
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-f.done:
			require.NoError(t, err)
		case <-time.After(20 * time.Second):
			t.Error("the server did not end")
		}
	})
	return f
}

// wait ends the server and waits for it.
func (f *fixture) wait(t testing.TB) {
	t.Helper()
	f.stop()
	err := <-f.done
	f.done <- err
	require.NoError(t, err)
}

// post sends a body and returns the status and the body of the answer.
func (f *fixture) post(t testing.TB, path, body string) (int, []byte) {
	t.Helper()
	r, err := http.Post(f.url+path, "application/json", strings.NewReader(body))
	require.NoError(t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return r.StatusCode, b
}

// ok is post of what must succeed, decoded.
func (f *fixture) ok(t testing.TB, path, body string) map[string]any {
	t.Helper()
	status, b := f.post(t, path, body)
	require.Equal(t, 200, status, "%s", b)
	var v map[string]any
	require.NoError(t, json.Unmarshal(b, &v))
	return v
}

// wrong is the error of an answer.
type wrong struct {
	Message, Type, Param, Code string
}

func errorIn(t testing.TB, b []byte) wrong {
	t.Helper()
	var v struct{ Error wrong }
	require.NoError(t, json.Unmarshal(b, &v), "%s", b)
	require.NotEmpty(t, v.Error.Message, "%s", b)
	require.NotEmpty(t, v.Error.Type, "%s", b)
	return v.Error
}

// get sends a GET with headers, the name Host among them.
func (f *fixture) get(t testing.TB, method, path string, headers ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, f.url+path, nil)
	require.NoError(t, err)
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	r, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	t.Cleanup(func() { r.Body.Close() })
	return r
}

// textOf is the first answer of a response.
func textOf(t testing.TB, v map[string]any) string {
	t.Helper()
	choice := v["choices"].([]any)[0].(map[string]any)
	if m, ok := choice["message"].(map[string]any); ok {
		return m["content"].(string)
	}
	return choice["text"].(string)
}

// eventsOf reads a stream to its end.
func eventsOf(in io.Reader) (events []string, err error) {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if line == "" {
			continue
		}
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			return events, fmt.Errorf("no event: %q", line)
		}
		events = append(events, data)
	}
	return events, lines.Err()
}

// streamed joins the texts of a stream of completions.
func streamed(events []string) (text string, err error) {
	for i, e := range events {
		if i == len(events)-1 {
			if e != "[DONE]" {
				return text, fmt.Errorf("the last event is %s", e)
			}
			break
		}
		var v struct {
			Choices []struct{ Text string }
			Error   *wrong
		}
		if err := json.Unmarshal([]byte(e), &v); err != nil {
			return text, fmt.Errorf("%q: %w", e, err)
		}
		if v.Error != nil {
			return text, fmt.Errorf("error: %s", v.Error.Message)
		}
		for _, c := range v.Choices {
			text += c.Text
		}
	}
	return text, nil
}

// info is get of what must succeed, decoded.
func (f *fixture) info(t testing.TB, path string) map[string]any {
	t.Helper()
	r := f.get(t, "GET", path)
	require.Equal(t, 200, r.StatusCode)
	var v map[string]any
	require.NoError(t, json.NewDecoder(r.Body).Decode(&v))
	return v
}

// eventually waits up to 5 seconds for something.
func eventually(t testing.TB, f func() bool, what string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("it did not happen: %s", what)
}

func newRequest(method, path, host string) *http.Request {
	r := httptest.NewRequest(method, path, nil)
	r.Host = host
	return r
}
