package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// zooServer serves tiny.gguf as /tiny.gguf and, changed, as /wrong.gguf, counts its
// requests, and writes an index that names both.
func zooServer(t *testing.T) (address string, requests *atomic.Int64, env []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "tiny.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	wrong := bytes.Clone(b)
	wrong[len(wrong)/2] ^= 1
	requests = &atomic.Int64{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		body, ok := map[string][]byte{"/tiny.gguf": b, "/wrong.gguf": wrong}[r.URL.Path]
		switch {
		case r.URL.Path == "/stall.gguf":
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			w.Write(b[:len(b)/2])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case ok:
			http.ServeContent(w, r, "x.gguf", time.Time{}, bytes.NewReader(body))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	sum := sha256.Sum256(b)
	entry := func(name, file string) map[string]any {
		return map[string]any{"name": name, "revision": "1", "status": "published", "file": "x.gguf", "size": len(b),
			"sha256": hex.EncodeToString(sum[:]), "licence": "MIT", "description": "random weights", "urls": []string{s.URL + file}}
	}
	index, err := json.Marshal(map[string]any{"updated": "2026-11", "models": []any{
		entry("tiny-zoo", "/tiny.gguf"), entry("wrong-zoo", "/wrong.gguf"), entry("absent-zoo", "/absent.gguf"), entry("stall-zoo", "/stall.gguf")}})
	if err != nil {
		t.Fatal(err)
	}
	own := t.TempDir()
	if err := os.WriteFile(filepath.Join(own, "index.json"), index, 0o644); err != nil {
		t.Fatal(err)
	}
	return s.URL, requests, []string{"NANOCHAT_INDEX=file://" + filepath.ToSlash(filepath.Join(own, "index.json")), "NANOCHAT_CACHE=" + filepath.Join(own, "cache")}
}

// TestZoo downloads by name, generates, verifies and removes, and needs the network once.
func TestZoo(t *testing.T) {
	address, requests, env := zooServer(t)
	good := func(args ...string) result {
		t.Helper()
		r := runEnv(t, env, "", args...)
		if r.code != 0 {
			t.Fatalf("nanochat %s: exit %d\n%s", strings.Join(args, " "), r.code, r.stderr)
		}
		return r
	}
	if r := good("list"); !strings.Contains(r.stdout, "tiny-zoo@1") || !strings.Contains(r.stdout, "available") {
		t.Errorf("list: %s", r.stdout)
	}
	direct := good("generate", "tiny.gguf", "fn main", "-n", "8")
	first := good("generate", "tiny-zoo", "fn main", "-n", "8")
	if first.stdout != direct.stdout || !strings.Contains(first.stderr, "downloading tiny-zoo") {
		t.Errorf("by name %q, by path %q; %s", first.stdout, direct.stdout, first.stderr)
	}
	path := strings.TrimSpace(good("download", "tiny-zoo@1").stdout)
	a, errA := os.ReadFile(path)
	b, errB := os.ReadFile(filepath.Join(dir, "tiny.gguf"))
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("downloaded to %s: %v, %v", path, errA, errB)
	}
	env = append(env, "NANOCHAT_OFFLINE=1")
	for _, args := range [][]string{{"info", "tiny-zoo"}, {"verify", "tiny-zoo"}, {"inspect", "tiny-zoo"}, {"generate", "tiny-zoo", "x", "-n", "1"},
		{"convert", "tiny-zoo", filepath.Join(t.TempDir(), "out.gguf")}} {
		if r := good(args...); strings.Contains(r.stderr, "downloading") {
			t.Errorf("%v: %s", args, r.stderr)
		}
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
	var l struct {
		Index, Cache string
		Models       []struct {
			Name, State, Path, SHA256 string
			Size                      int64
		}
	}
	if err := json.Unmarshal([]byte(good("list", "--json").stdout), &l); err != nil || len(l.Models) != 4 || l.Models[0].State != "cached" || l.Models[0].Path != path {
		t.Errorf("list --json: %+v, %v", l, err)
	}

	// A cached file that was changed is found, and can be had again.
	a[len(a)/2] ^= 1
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, a, 0o644); err != nil {
		t.Fatal(err)
	}
	if r := runEnv(t, env, "", "verify", "tiny-zoo"); r.code != 4 || !strings.Contains(r.stderr, "SHA-256") || !strings.Contains(r.stderr, "hint: nanochat download tiny-zoo --force") {
		t.Errorf("verify of a damaged file: exit %d\n%s", r.code, r.stderr)
	}
	env = env[:len(env)-1]
	good("download", "tiny-zoo", "--force", "--quiet")
	good("verify", "tiny-zoo")

	// Another name for the same file, from an address.
	r := good("download", "mine", "--url", address+"/tiny.gguf", "--sha256", l.Models[0].SHA256, "--json")
	var found struct{ Name, Path, Source string }
	if err := json.Unmarshal([]byte(r.stdout), &found); err != nil || found.Name != "mine" || found.Path != path {
		t.Errorf("download --url: %s, %v", r.stdout, err)
	}
	good("info", "mine")
	good("rm", "mine", "tiny-zoo")
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("rm: %v", err)
	}
}

// TestZooMistakes is what goes wrong with names, and the line and the hint that say so.
func TestZooMistakes(t *testing.T) {
	address, _, env := zooServer(t)
	for _, c := range []struct {
		args string
		env  string
		code int
		err  string
		hint string
	}{
		{"generate tiny-zo x", "", 3, "model tiny-zo: no such model", "did you mean tiny-zoo?"},
		{"info nowhere", "", 3, "model nowhere: no such model", "nanochat list"},
		{"download ../x", "", 3, "is not the name of a model", "nano-5m-rust"},
		{"download tiny.gguf", "", 3, "tiny.gguf", ""},
		{"download nano-125m-rust", "NANOCHAT_INDEX=", 3, "model nano-125m-rust: not published yet; use nano-5m-rust", ""},
		{"generate nano-7b-rust x", "NANOCHAT_INDEX=", 3, "model nano-7b-rust: not published yet; use nano-5m-rust", ""},
		{"download wrong-zoo", "", 4, "the download has SHA-256", "mirror"},
		{"download absent-zoo", "", 3, "404", ""},
		{"download tiny-zoo", "NANOCHAT_OFFLINE=1", 5, "network is switched off", "NANOCHAT_OFFLINE"},
		{"download tiny-zoo", "HTTP_PROXY=http://127.0.0.1:1", 0, "", ""}, // never for this machine itself
		{"download hub:a/b/c.gguf", "NANOCHAT_ENDPOINT=" + address, 3, "404", ""},
		{"download tiny-zoo", "NANOCHAT_OFFLINE=perhaps", 2, "NANOCHAT_OFFLINE is perhaps", "1 or 0"},
		{"list", "NANOCHAT_INDEX=absent.json", 2, "absent.json", "NANOCHAT_INDEX"},
		{"list", "NANOCHAT_ENDPOINT=nonsense", 2, "endpoint", "NANOCHAT_ENDPOINT"},
		{"download x --url http://127.0.0.1:1/x", "", 2, "--url without --sha256", ""},
		{"download tiny-zoo --sha256 00", "", 2, "--sha256 without --url", ""},
		{"download x --sha256 00 --url http://127.0.0.1:1/x", "", 4, "SHA-256", ""},
		{"rm nowhere", "", 3, "not in the cache", "nanochat list"},
	} {
		e := env
		if c.env != "" {
			e = append(e[:len(e):len(e)], c.env)
		}
		r := runEnv(t, e, "", strings.Fields(c.args)...)
		report := r.stderr[max(strings.Index(r.stderr, "error: "), 0):]
		line, hint, _ := strings.Cut(report, "\n")
		if r.code != c.code || c.code != 0 && (!strings.HasPrefix(line, "error: ") || r.stdout != "") || !strings.Contains(line, c.err) || !strings.Contains(hint, c.hint) {
			t.Errorf("nanochat %s (%s): exit %d, want %d\n%s", c.args, c.env, r.code, c.code, r.stderr)
		}
	}
	// Nothing that was refused is in the cache.
	blobs, _ := filepath.Glob(filepath.Join(strings.TrimPrefix(env[1], "NANOCHAT_CACHE="), "blobs", "*"))
	if len(blobs) != 1 {
		t.Errorf("in the cache: %v", blobs)
	}
}

// TestZooBundled finds the shipped model in a directory of models: the file whose size
// and digest stand in the index.
func TestZooBundled(t *testing.T) {
	own := t.TempDir()
	b, err := os.ReadFile(filepath.Join("..", "..", "models", "nano-5m-rust", "nano-5m-rust.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(own, "nano-5m-rust"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(own, "nano-5m-rust", "nano-5m-rust.gguf"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	env := []string{"NANOCHAT_OFFLINE=1", "NANOCHAT_MODELS=" + own}
	if r := runEnv(t, env, "", "generate", "nano-5m-rust", "x", "-n", "1"); r.code != 0 {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	if r := runEnv(t, env, "", "rm", "nano-5m-rust"); r.code != 3 || !strings.Contains(r.stderr, "comes with nanochat") {
		t.Errorf("rm: exit %d\n%s", r.code, r.stderr)
	}
	if r := runEnv(t, nil, "", "generate", "nano-5m-rust", "x"); r.code != 3 || !strings.Contains(r.stderr, "NANOCHAT_MODELS") {
		t.Errorf("not there: exit %d\n%s", r.code, r.stderr)
	}
}

// TestZooInterrupt stops a download that a server does not go on with.
func TestZooInterrupt(t *testing.T) {
	_, requests, env := zooServer(t)
	cmd := command("download", "stall-zoo")
	cmd.Env = append(cmd.Env, env...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if requests.Load() > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	begin := time.Now()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code, took := cmd.ProcessState.ExitCode(), time.Since(begin); code != 130 || took > time.Second {
		t.Errorf("exit %d after %v", code, took)
	}
	if r := runEnv(t, env, "", "list"); !strings.Contains(r.stdout, "partial") {
		t.Errorf("list: %s", r.stdout)
	}
}
