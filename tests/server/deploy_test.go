package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
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

// nginx starts the configuration of deploy/nginx over the given replicas and
// returns its address.
func nginx(t *testing.T, replicas ...string) string {
	t.Helper()
	bin, err := exec.LookPath("nginx")
	if err != nil {
		bin = "/usr/sbin/nginx"
	}
	if _, err := os.Stat(bin); err != nil {
		t.Skip("nginx is not installed: scripts/setup nginx")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := ln.Addr().String()
	require.NoError(t, ln.Close())
	conf, err := os.ReadFile("../../deploy/nginx/nanochat.conf")
	require.NoError(t, err)
	for i, r := range replicas {
		was := fmt.Sprintf("127.0.0.1:808%d", i+1)
		require.Contains(t, string(conf), was)
		conf = bytes.ReplaceAll(conf, []byte(was), []byte(strings.TrimPrefix(r, "http://")))
	}
	conf = bytes.ReplaceAll(conf, []byte("127.0.0.1:8080"), []byte(addr))
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "nanochat.conf"), conf, 0o644))
	var temp strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "%s_temp_path %s;\n", kind, filepath.Join(dir, kind))
	}
	main := fmt.Sprintf("daemon off;\nmaster_process off;\npid %s/pid;\nerror_log stderr warn;\nevents {}\nhttp {\naccess_log off;\n%sinclude %s/nanochat.conf;\n}\n", dir, temp.String(), dir)
	file := filepath.Join(dir, "nginx.conf")
	require.NoError(t, os.WriteFile(file, []byte(main), 0o644))
	cmd := exec.Command(bin, "-p", dir, "-e", "stderr", "-c", file)
	var said bytes.Buffer
	cmd.Stderr = &said
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	for end := time.Now().Add(5 * time.Second); ; {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return "http://" + addr
		}
		require.True(t, time.Now().Before(end), "nginx did not start: %s", &said)
		time.Sleep(10 * time.Millisecond)
	}
}

// asked is how many completions a replica has answered.
func asked(t *testing.T, url string) int {
	t.Helper()
	r, err := http.Get(url + "/metrics")
	require.NoError(t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	n := 0
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "nanochat_inference_requests_total{") && strings.Contains(line, `"/v1/`) && strings.Contains(line, `code="200"`) {
			var v int
			_, err := fmt.Sscan(line[strings.LastIndex(line, " ")+1:], &v)
			require.NoError(t, err)
			n += v
		}
	}
	return n
}

// TestNginx balances over two replicas: requests with the same beginning meet the
// same replica, which has computed it already; others spread; a replica that ends
// is replaced by the other.
func TestNginx(t *testing.T) {
	one, two := serve(t), serve(t)
	url := nginx(t, one.url, two.url)
	post := func(path, body string, headers ...string) (cached int) {
		t.Helper()
		req, err := http.NewRequest("POST", url+path, strings.NewReader(body))
		require.NoError(t, err)
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		r, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.Equal(t, 200, r.StatusCode, "%s", b)
		var v struct {
			Usage struct {
				Details struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			}
		}
		require.NoError(t, json.Unmarshal(b, &v), "%s", b)
		return v.Usage.Details.Cached
	}
	counts := func() [2]int { return [2]int{asked(t, one.url), asked(t, two.url)} }
	const beginnings = 24
	begin := func(i int) string {
		return fmt.Sprintf("// program %d\\n", i) + strings.Repeat("fn f() { let x = 1; }\\n", 16)
	}
	spread := [2]int{}
	for i := range beginnings {
		before := counts()
		for turn := range 3 {
			body := fmt.Sprintf(`{"model":"nano-5m-rust","max_tokens":2,"prompt":"%s// turn %d"}`, begin(i), turn)
			cached := post("/v1/completions", body)
			require.Equal(t, turn > 0, cached > 64, "%d tokens of turn %d were computed before", cached, turn)
		}
		after := counts()
		got := [2]int{after[0] - before[0], after[1] - before[1]}
		require.True(t, got == [2]int{3, 0} || got == [2]int{0, 3}, "the turns went to %v", got)
		spread[0], spread[1] = spread[0]+got[0], spread[1]+got[1]
	}
	require.Positive(t, spread[0])
	require.Positive(t, spread[1])
	t.Logf("%d beginnings, 3 turns each: %d and %d requests, each beginning at one replica", beginnings, spread[0], spread[1])

	// A conversation: the first message stays, in any order of the fields.
	talk := `{"role":"user","content":"` + begin(99) + `"}`
	require.Zero(t, post("/v1/chat/completions", `{"messages":[`+talk+`],"max_tokens":2,"stream":false}`))
	require.Greater(t, post("/v1/chat/completions", `{"temperature":0,"max_tokens":2,"messages":[`+talk+`,{"role":"assistant","content":"fn"},{"role":"user","content":"go on"}]}`), 64)
	// A session by name.
	before := counts()
	for i := range 6 {
		post("/v1/completions", fmt.Sprintf(`{"prompt":"%d","max_tokens":1}`, i), "X-Session-Id", "mine")
	}
	after := counts()
	require.Equal(t, 6, max(after[0]-before[0], after[1]-before[1]))

	// A stream comes through as it is made.
	r, err := http.Post(url+"/v1/completions", "", strings.NewReader(`{"prompt":"fn","max_tokens":8,"ignore_eos":true,"stream":true}`))
	require.NoError(t, err)
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	r.Body.Close()
	events := strings.Count(string(b), "data: ") // eight tokens, of which some may come together, the reason, the end
	require.True(t, events >= 3 && events <= 10, "%d events: %s", events, b)
	require.True(t, strings.HasSuffix(string(b), "data: [DONE]\n\n"), "%s", b)

	one.stop(t)
	for i := range beginnings {
		post("/v1/completions", fmt.Sprintf(`{"prompt":"%s","max_tokens":1}`, begin(i)))
	}
	two.stop(t)
}

func TestUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	b, err := os.ReadFile("../../deploy/systemd/nanochat.service")
	require.NoError(t, err)
	line := ""
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, "ExecStart=/usr/local/bin/nanochat "); ok {
			line = strings.TrimSpace(rest)
		}
	}
	require.NotEmpty(t, line)
	help := run(t, ".", bin, "serve", "--help")
	for _, arg := range strings.Fields(line) {
		if strings.HasPrefix(arg, "--") {
			require.Contains(t, help, arg)
		}
	}
	file := filepath.Join(t.TempDir(), "nanochat.service")
	require.NoError(t, os.WriteFile(file, bytes.ReplaceAll(b, []byte("/usr/local/bin/nanochat"), []byte(bin)), 0o644))
	out := run(t, ".", analyze, "verify", file)
	require.NotContains(t, out, "nanochat.service:", "a line that systemd does not understand")
}

func TestKubernetes(t *testing.T) {
	python := os.Getenv("NANOCHAT_PYTHON")
	if python == "" {
		t.Skip("NANOCHAT_PYTHON is not set: want a Python with the packages of requirements-dev.txt; `make test` sets it")
	}
	run(t, ".", python, "deploy_check.py", bin, "../../deploy/kubernetes/nanochat.yaml", "../../deploy/kubernetes/monitoring.yaml")
}
