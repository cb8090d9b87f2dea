package soak

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const model = "../../models/nano-5m-rust/nano-5m-rust.gguf"

// A sample is what the process holds at a moment.
type sample struct {
	hours             float64 // since the start
	mib               float64 // resident
	files, goroutines int
}

// A work is one kind of request. It returns what the answer says, which must be
// the same each time, or an error.
type work struct {
	name string
	do   func(url string) (string, error)
}

// TestSoak asks for the same mix of answers over and over: streams, several
// answers at once, vectors, mistakes, and clients that leave in the middle. Every answer
// must be the one of the first round; memory, files and goroutines must not grow.
//
// It takes 10 seconds; NANOCHAT_SOAK=1h is how long otherwise, and
// NANOCHAT_SOAK_PAUSE=100ms the pause between two requests. scripts/soak does that.
func TestSoak(t *testing.T) {
	length, pause := duration(t, "NANOCHAT_SOAK", 10*time.Second), duration(t, "NANOCHAT_SOAK_PAUSE", 2*time.Millisecond)
	url, pid := start(t)

	fill(t, url)
	var samples []sample
	first := map[string]string{}
	begin := time.Now()
	every := max(length/200, 50*time.Millisecond)
	next, requests := begin, 0
	for time.Since(begin) < length {
		for _, w := range mix {
			got, err := w.do(url)
			require.NoError(t, err, w.name)
			if _, ok := first[w.name]; !ok {
				first[w.name] = got
			}
			require.Equal(t, first[w.name], got, w.name)
			requests++
			time.Sleep(pause)
		}
		if time.Now().After(next) {
			next = time.Now().Add(every)
			samples = append(samples, look(t, url, pid, time.Since(begin).Hours()))
		}
	}
	warm := samples[len(samples)/4:]
	require.Greater(t, len(warm), 10)
	slope, spread := trend(warm)
	a, z := warm[0], warm[len(warm)-1]
	t.Logf("%d requests in %v; resident %.1f MiB, then %.1f; slope %+.2f ± %.2f MiB an hour; files %d, then %d; goroutines %d, then %d",
		requests, time.Since(begin).Round(time.Second), a.mib, z.mib, slope, spread, a.files, z.files, a.goroutines, z.goroutines)
	t.Logf("RELIABILITY | %v of mixed requests, one at a time, clients that leave among them: each answer that of the first round, nothing grows | %d requests, 0 errors; resident %.1f MiB, slope %+.2f ± %.2f MiB/h; files and goroutines %+d, %+d | `tests/soak` |",
		length, requests, z.mib, slope, spread, z.files-a.files, z.goroutines-a.goroutines)
	require.LessOrEqual(t, z.files, a.files+2)
	require.LessOrEqual(t, z.goroutines, a.goroutines+4)
	require.LessOrEqual(t, z.mib, a.mib+8, "resident memory grows")
	if length >= time.Hour {
		require.LessOrEqual(t, slope, 1+2*spread, "resident memory grows by so many MiB an hour")
	}
}

func duration(t *testing.T, name string, def time.Duration) time.Duration {
	if v := os.Getenv(name); v != "" {
		d, err := time.ParseDuration(v)
		require.NoError(t, err)
		return d
	}
	return def
}

// start runs a server until the end of the test.
func start(t *testing.T) (url string, pid int) {
	bin := os.Getenv("NANOCHAT_BIN")
	if bin == "" {
		bin = filepath.Join(t.TempDir(), "nanochat")
		out, err := exec.Command("go", "build", "-o", bin, "../../cmd/nanochat").CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	cmd := exec.Command(bin, "serve", model, "--addr", "127.0.0.1:0", "--log-level", "error")
	pipe, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(pipe)
	require.True(t, lines.Scan())
	url, ok := strings.CutPrefix(lines.Text(), "listening on ")
	require.True(t, ok, lines.Text())
	var said bytes.Buffer
	done := make(chan error, 1)
	go func() {
		for lines.Scan() {
			said.WriteString(lines.Text() + "\n")
		}
		done <- cmd.Wait()
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		require.NoError(t, <-done)
		require.Empty(t, said.String(), "errors in the log")
	})
	return url, cmd.Process.Pid
}

// fill writes to every page of the cache of keys and values, which takes memory when
// it is first used: a context of 512 for each of 16 answers.
func fill(t *testing.T, url string) {
	for i := range 40 {
		_, err := text(url+"/v1/completions", fmt.Sprintf(`{"prompt":%q,"max_tokens":1}`, strings.Repeat(fmt.Sprintf("%d x ", i), 120)), math.MaxInt)
		require.NoError(t, err)
	}
}

var mix = []work{
	{"stream", func(url string) (string, error) {
		return text(url+"/v1/chat/completions", `{"messages":[{"role":"user","content":"fn main() {"}],"max_tokens":24,"seed":1,"stream":true}`, math.MaxInt)
	}},
	{"answers", func(url string) (string, error) {
		return text(url+"/v1/completions", `{"prompt":["fn a(","struct B"],"max_tokens":12,"n":2,"seed":2,"logprobs":2}`, math.MaxInt)
	}},
	{"leave", func(url string) (string, error) {
		_, err := text(url+"/v1/completions", `{"prompt":"fn main() {","max_tokens":400,"ignore_eos":true,"stream":true}`, 5)
		return "", err
	}},
	{"long prompt", func(url string) (string, error) {
		return text(url+"/v1/completions", fmt.Sprintf(`{"prompt":%q,"max_tokens":4,"temperature":0}`, strings.Repeat("let x = 1; ", 60)), math.MaxInt)
	}},
	{"vector", func(url string) (string, error) {
		return text(url+"/v1/embeddings", `{"input":["fn main() {}","struct A;"],"encoding_format":"base64"}`, math.MaxInt)
	}},
	{"tokens", func(url string) (string, error) {
		return text(url+"/tokenize", `{"content":"fn main() {}"}`, math.MaxInt)
	}},
	{"mistake", func(url string) (string, error) {
		return text(url+"/v1/completions", `{"prompt":"x","max_tokens":99999}`, math.MaxInt)
	}},
	{"broken", func(url string) (string, error) {
		return text(url+"/v1/completions", strings.Repeat("[", 1000), math.MaxInt)
	}},
}

// changing is what differs between two answers to the same request.
var changing = regexp.MustCompile(`"(id|created|cached_tokens)":("[^"]*"|\d+)`)

// text is the body of an answer, of at most so many lines, without what changes.
func text(url, body string, lines int) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	if lines < math.MaxInt {
		in := bufio.NewReader(r.Body)
		for range lines {
			if _, err := in.ReadString('\n'); err != nil {
				return "", err
			}
		}
		return "", nil
	}
	b, err := io.ReadAll(r.Body)
	if err == nil && !strings.HasPrefix(r.Header.Get("Content-Type"), "text/event-stream") && !json.Valid(b) {
		err = fmt.Errorf("no JSON: %q", b)
	}
	if r.StatusCode >= 500 {
		err = fmt.Errorf("%s: %s", r.Status, b)
	}
	return changing.ReplaceAllString(string(b), `"$1":0`), err
}

// look samples the process.
func look(t *testing.T, url string, pid int, hours float64) sample {
	s := sample{hours: hours}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Skip("no /proc to read the memory of a process from")
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			require.NoError(t, err)
			s.mib = kib / 1024
		}
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	require.NoError(t, err)
	s.files = len(files)
	r, err := http.Get(url + "/metrics")
	require.NoError(t, err)
	defer r.Body.Close()
	in := bufio.NewScanner(r.Body)
	for in.Scan() {
		if n, ok := strings.CutPrefix(in.Text(), "go_goroutines "); ok {
			s.goroutines, err = strconv.Atoi(n)
			require.NoError(t, err)
		}
	}
	require.NoError(t, in.Err())
	require.Positive(t, s.goroutines)
	return s
}

// trend is the slope of the resident memory in MiB an hour by least squares, and its
// standard error.
func trend(list []sample) (slope, spread float64) {
	n := float64(len(list))
	mx, my := 0.0, 0.0
	for _, s := range list {
		mx += s.hours / n
		my += s.mib / n
	}
	xx, xy := 0.0, 0.0
	for _, s := range list {
		xx += (s.hours - mx) * (s.hours - mx)
		xy += (s.hours - mx) * (s.mib - my)
	}
	slope = xy / xx
	rest := 0.0
	for _, s := range list {
		d := s.mib - my - slope*(s.hours-mx)
		rest += d * d
	}
	return slope, math.Sqrt(rest / (n - 2) / xx)
}
