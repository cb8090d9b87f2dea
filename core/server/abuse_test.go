package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/telemetry"
	"github.com/architehc/nanochat/kernels"
)

// pick is a figure of the short tests, or with NANOCHAT_LONG of those whose figures are
// in docs/RELIABILITY.md.
func pick[T any](short, full T) T {
	if os.Getenv("NANOCHAT_LONG") != "" {
		return full
	}
	return short
}

// fewer is n, or a quarter of it under the race detector and on the Go kernels.
func fewer(n int) int {
	if race || kernels.Best().Name == "go" {
		return n / 4
	}
	return n
}

// resident is the memory of this process in MiB, after a collection.
func resident(t testing.TB) float64 {
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip("no /proc to read the memory of a process from")
	}
	var size, pages float64
	fmt.Sscan(string(b), &size, &pages)
	return pages * float64(os.Getpagesize()) / (1 << 20)
}

// free waits until no answer is computed and the goroutines are as many as before.
func (f *fixture) free(t testing.TB, goroutines int, within time.Duration) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		http.DefaultClient.CloseIdleConnections()
		f.models[0].mu.Lock()
		m := f.models[0].model
		f.models[0].mu.Unlock()
		st := m.Stats()
		n := runtime.NumGoroutine()
		if st.Running+st.Waiting == 0 && n <= goroutines && f.requests.Load() == 0 {
			return time.Since(begin)
		}
		if time.Since(begin) > within {
			buf := make([]byte, 1<<20)
			t.Fatalf("after %v: %d run, %d wait, %d requests, %d goroutines instead of %d\n%s", within, st.Running, st.Waiting, f.requests.Load(), n, goroutines, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

// baseline is the goroutines of an idle server.
func (f *fixture) baseline(t testing.TB) int {
	f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":1}`)
	http.DefaultClient.CloseIdleConnections()
	time.Sleep(50 * time.Millisecond)
	return runtime.NumGoroutine()
}

// dial opens a connection and sends something.
func (f *fixture) dial(t testing.TB, first string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", f.addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	_, err = io.WriteString(c, first)
	require.NoError(t, err)
	return c
}

func request(path, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
}

// TestSlowHeaders: clients that send their header a byte at a time are closed in
// time, and others are served meanwhile.
func TestSlowHeaders(t *testing.T) {
	limit := pick(300*time.Millisecond, 5*time.Second)
	f := serve(t, Options{Limits: Limits{ReadHeader: limit}}, nil)
	n := pick(100, 500)
	normal := f.baseline(t)
	begin := time.Now()
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = f.dial(t, "POST /v1/completions HTTP/1.1\r\n")
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { // a byte at a time
		defer wg.Done()
		for {
			for _, c := range conns {
				c.Write([]byte("x"))
			}
			select {
			case <-stop:
				return
			case <-time.After(limit / 5):
			}
		}
	}()
	worst := time.Duration(0)
	for range 20 {
		at := time.Now()
		f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":4}`)
		worst = max(worst, time.Since(at))
	}
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(limit + 2*time.Second))
		_, err := io.Copy(io.Discard, c)
		require.False(t, errors.Is(err, os.ErrDeadlineExceeded), "a slow connection is still open")
	}
	took := time.Since(begin)
	close(stop)
	wg.Wait()
	require.Less(t, took, limit+time.Second)
	f.free(t, normal+2, 2*time.Second)
	t.Logf("RELIABILITY | %d connections that send their header a byte at a time: closed; others are served | after %.1f s; slowest other answer %d ms | `core/server TestSlowHeaders` |", n, took.Seconds(), worst.Milliseconds())
}

// TestSlowReaders: clients that stop reading lend their places to others, are closed
// in time and free what they held.
func TestSlowReaders(t *testing.T) {
	limit := pick(300*time.Millisecond, 10*time.Second)
	n := fewer(pick(20, 100))
	f := serve(t, Options{Parallel: 8, Queue: 8 * n, Limits: Limits{Write: limit}}, nil)
	f.ln.small.Store(true)
	normal := f.baseline(t)
	// Log probabilities make answers larger than what the sockets hold.
	body := `{"prompt":"a","max_tokens":120,"ignore_eos":true,"stream":true,"n":8,"logprobs":20}`
	begin := time.Now()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}} // other clients than the one below
	for range n {
		c, err := from.Dial("tcp", f.addr)
		if err != nil {
			t.Skip("127.0.0.2 is not of this machine")
		}
		t.Cleanup(func() { c.Close() })
		require.NoError(t, c.(*net.TCPConn).SetReadBuffer(2048))
		_, err = io.WriteString(c, request("/v1/completions", body))
		require.NoError(t, err)
	}
	eventually(t, func() bool { return f.requests.Load() == int64(n) }, "they arrived")
	at := time.Now()
	f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":4}`)
	other := time.Since(at)
	f.free(t, normal+2, 4*limit+time.Duration(n)*time.Second)
	took := time.Since(begin)
	t.Logf("RELIABILITY | %d clients that ask for 8 answers each and never read, %v for a write: others are served, places free | another answer in %d ms; all closed after %.1f s | `core/server TestSlowReaders` |", n, limit, other.Milliseconds(), took.Seconds())
}

// TestDisconnects: clients that leave in the middle of an answer free their place at once.
func TestDisconnects(t *testing.T) {
	f := serve(t, Options{Parallel: 16, Queue: 2000}, nil)
	normal := f.baseline(t)
	n := fewer(pick(200, 1000))
	var wg sync.WaitGroup
	lost := atomic.Int64{}
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, err := net.Dial("tcp", f.addr)
			if err != nil {
				lost.Add(1)
				return
			}
			defer c.Close()
			io.WriteString(c, request("/v1/completions", `{"prompt":"a","max_tokens":120,"ignore_eos":true,"stream":true}`))
			in := bufio.NewReader(c)
			for range i % 7 * 4 { // none, or a few events
				if _, err := in.ReadString('\n'); err != nil {
					lost.Add(1)
					return
				}
			}
			c.(*net.TCPConn).SetLinger(0) // a reset, not a farewell
		}()
	}
	wg.Wait()
	took := f.free(t, normal+2, 10*time.Second)
	if !race {
		require.Less(t, took, time.Second, "places and goroutines are free within a second")
	}
	require.Zero(t, lost.Load())
	f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":4}`)
	t.Logf("RELIABILITY | %d clients that leave in the middle of a stream: places free, goroutines as before | after %d ms | `core/server TestDisconnects` |", n, took.Milliseconds())
}

// TestManyStreams: every one of many streams at a time is the answer that its seed
// gives alone, or 429; nothing is lost and no memory kept.
func TestManyStreams(t *testing.T) {
	n := fewer(pick(250, 1000))
	f := serve(t, Options{Parallel: 16, Queue: n * 3 / 4}, nil)
	alone := make([]string, 16)
	for i := range alone {
		alone[i] = textOf(t, f.ok(t, "/v1/completions", fmt.Sprintf(`{"prompt":"p%d","seed":%d,"max_tokens":24,"ignore_eos":true}`, i, i)))
	}
	normal := f.baseline(t)
	load := func() (whole, refused int64) {
		var right, busy atomic.Int64
		var wg sync.WaitGroup
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		wrong := make(chan error, n)
		for i := range n {
			wg.Add(1)
			go func() {
				defer wg.Done()
				body := fmt.Sprintf(`{"prompt":"p%d","seed":%d,"max_tokens":24,"ignore_eos":true,"stream":true}`, i%16, i%16)
				r, err := client.Post(f.url+"/v1/completions", "application/json", strings.NewReader(body))
				if err != nil {
					wrong <- err
					return
				}
				defer r.Body.Close()
				if r.StatusCode == 429 && r.Header.Get("Retry-After") != "" {
					busy.Add(1)
					return
				}
				events, err := eventsOf(r.Body)
				text := ""
				if err == nil {
					text, err = streamed(events)
				}
				if err == nil && text != alone[i%16] {
					err = fmt.Errorf("%q instead of %q", text, alone[i%16])
				}
				if err != nil {
					wrong <- err
					return
				}
				right.Add(1)
			}()
		}
		wg.Wait()
		close(wrong)
		for err := range wrong {
			t.Error(err)
		}
		return right.Load(), busy.Load()
	}
	load() // the first time takes memory for good: the cache's pages, the heap's own tables
	before := resident(t)
	right, busy := load()
	f.free(t, normal+2, 2*time.Second)
	grown := resident(t) - before
	require.EqualValues(t, n, right+busy)
	require.GreaterOrEqual(t, right, int64(n*3/4))
	if !race {
		require.Less(t, grown, 32.0, "MiB")
	}
	t.Logf("RELIABILITY | %d streams at a time: each is its seed's answer alone, or 429 with Retry-After; none lost | %d right, %d times 429; resident %+.1f MiB after | `core/server TestManyStreams` |", n, right, busy, grown)
}

// TestSameTextInAnyBatch: an answer does not depend on those computed beside it.
func TestSameTextInAnyBatch(t *testing.T) {
	f := serve(t, Options{Parallel: 8, Queue: 64}, nil)
	body := `{"prompt":"the same","seed":11,"max_tokens":40,"ignore_eos":true,"temperature":1.2}`
	want := textOf(t, f.ok(t, "/v1/completions", body))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 6 { // company that comes and goes
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := 0; ; j++ {
				select {
				case <-stop:
					return
				default:
				}
				body := fmt.Sprintf(`{"prompt":%q,"seed":%d,"max_tokens":%d,"temperature":%d}`, strings.Repeat("w", 1+(i*31+j*17)%90), j, 1+(i+j)%30, j%3)
				if r, err := http.Post(f.url+"/v1/completions", "", strings.NewReader(body)); err == nil {
					io.Copy(io.Discard, r.Body)
					r.Body.Close()
				}
			}
		}()
	}
	n, same := fewer(pick(60, 500)), 0
	for range n {
		if textOf(t, f.ok(t, "/v1/completions", body)) == want {
			same++
		}
	}
	close(stop)
	wg.Wait()
	require.Equal(t, n, same)
	t.Logf("RELIABILITY | the same request alone and among six others: the same bytes | %d of %d | `core/server TestSameTextInAnyBatch` |", same, n)
}

// TestBurst: ten times what finds room: the rest is refused at once.
func TestBurst(t *testing.T) {
	f := serve(t, Options{Parallel: 2, Queue: 8}, nil)
	hold := make(chan struct{})
	f.fail = func(place string) {
		if place == "answer" {
			<-hold
		}
	}
	var wg sync.WaitGroup
	var worst, refused atomic.Int64
	for range 100 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			at := time.Now()
			r, err := http.Post(f.url+"/v1/completions", "", strings.NewReader(`{"prompt":"a","max_tokens":1}`))
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Body.Close()
			if r.StatusCode == 429 {
				refused.Add(1)
				if d := int64(time.Since(at)); d > worst.Load() {
					worst.Store(d)
				}
			} else if r.StatusCode != 200 {
				t.Errorf("status %d", r.StatusCode)
			}
		}()
	}
	eventually(t, func() bool { return refused.Load() == 90 }, "90 of 100 are refused")
	require.Equal(t, 503, f.get(t, "GET", "/readyz").StatusCode)
	close(hold)
	wg.Wait()
	slowest := time.Duration(worst.Load())
	if !race {
		require.Less(t, slowest, time.Second)
	}
	t.Logf("RELIABILITY | ten times as many requests at once as find room: the rest gets 429 | 90 of 90, the slowest after %d ms | `core/server TestBurst` |", slowest.Milliseconds())
}

// TestPanics: a defect ends one request and no other.
func TestPanics(t *testing.T) {
	var place atomic.Value
	place.Store("")
	f := serve(t, Options{}, func(s *Server) {
		s.fail = func(p string) {
			if place.Load() == p {
				panic("made up")
			}
		}
	})
	for _, p := range []string{"handler", "answer"} {
		place.Store(p)
		for _, n := range []int{1, 2} {
			status, b := f.post(t, "/v1/completions", fmt.Sprintf(`{"prompt":"a","max_tokens":1,"n":%d}`, n))
			require.Equal(t, 500, status, "%s", b)
			e := errorIn(t, b)
			require.Equal(t, "server_error", e.Type)
			require.NotContains(t, e.Message, "made up")
		}
		place.Store("")
		require.Contains(t, f.log.String(), "made up")
		f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":1}`)
		require.Zero(t, f.models[0].gate.outside())
		require.Zero(t, f.models[0].gate.entered, "the place of the failed request is free")
	}
}

// TestDeadlines: a request that takes too long ends with an error.
func TestDeadlines(t *testing.T) {
	f := serve(t, Options{Limits: Limits{Request: 50 * time.Millisecond}}, func(s *Server) {
		s.fail = func(p string) {
			if p == "answer" {
				time.Sleep(100 * time.Millisecond)
			}
		}
	})
	status, b := f.post(t, "/v1/completions", `{"prompt":"a","max_tokens":100,"ignore_eos":true}`)
	require.Equal(t, 503, status)
	require.Equal(t, "timeout", errorIn(t, b).Code)

	g := serve(t, Options{Limits: Limits{Read: 100 * time.Millisecond}}, nil)
	c := g.dial(t, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
	c.SetReadDeadline(time.Now().Add(3 * time.Second))
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	require.Equal(t, 408, r.StatusCode)
}

// TestConnectionsAreUsedAgain: the deadline of one answer does not end the next one.
func TestConnectionsAreUsedAgain(t *testing.T) {
	f := serve(t, Options{Limits: Limits{Write: 50 * time.Millisecond, Read: 60 * time.Millisecond}}, nil)
	c := f.dial(t, "")
	in := bufio.NewReader(c)
	for range 3 {
		for _, ask := range []string{
			request("/v1/completions", `{"prompt":"a","max_tokens":3,"stream":true}`), request("/v1/completions", `{"prompt":"a","max_tokens":3}`),
			"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", request("/v1/completions", `{`),
		} {
			_, err := io.WriteString(c, ask)
			require.NoError(t, err)
			method := http.MethodPost
			if strings.HasPrefix(ask, "HEAD") {
				method = http.MethodHead
			}
			r, err := http.ReadResponse(in, &http.Request{Method: method})
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, r.Body)
			require.NoError(t, err)
			time.Sleep(70 * time.Millisecond)
		}
	}
}

// TestLongAnswers: an answer may take longer than its request was allowed to.
func TestLongAnswers(t *testing.T) {
	f := serve(t, Options{Limits: Limits{Read: 50 * time.Millisecond, Write: 50 * time.Millisecond}}, nil)
	f.fail = func(p string) {
		if p == "answer" {
			time.Sleep(200 * time.Millisecond)
		}
	}
	require.NotEmpty(t, textOf(t, f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":20,"ignore_eos":true,"seed":1}`)))
}

// TestDrain: what runs is answered, what comes later is not, and Serve returns.
func TestDrain(t *testing.T) {
	f := serve(t, Options{}, nil)
	hold := make(chan struct{})
	f.fail = func(p string) {
		if p == "answer" {
			<-hold
		}
	}
	answer := make(chan int)
	go func() {
		r, err := http.Post(f.url+"/v1/completions", "", strings.NewReader(`{"prompt":"a","max_tokens":1}`))
		if err != nil {
			answer <- 0
			return
		}
		r.Body.Close()
		answer <- r.StatusCode
	}()
	keep := f.dial(t, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
	in := bufio.NewReader(keep)
	r, err := http.ReadResponse(in, nil)
	require.NoError(t, err)
	io.Copy(io.Discard, r.Body)
	eventually(t, func() bool { return f.requests.Load() == 1 }, "the request runs")
	f.stop()
	eventually(t, func() bool { return f.draining.Load() }, "it drains")
	close(hold)
	require.Equal(t, 200, <-answer)
	f.wait(t)
	_, err = net.Dial("tcp", f.addr)
	require.Error(t, err)
}

// TestScrape: the metrics are quick to read while many streams are open.
func TestScrape(t *testing.T) {
	n := fewer(pick(200, 1000))
	hold := make(chan struct{})
	f := serve(t, Options{Metrics: telemetry.NewServing(telemetry.ServingOptions{Process: true}), Parallel: 512, Queue: 2000}, nil)
	f.fail = func(p string) {
		if p == "answer" {
			<-hold
		}
	}
	var wg sync.WaitGroup
	for range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if r, err := http.Post(f.url+"/v1/completions", "", strings.NewReader(`{"prompt":"a","max_tokens":2,"stream":true}`)); err == nil {
				io.Copy(io.Discard, r.Body)
				r.Body.Close()
			}
		}()
	}
	eventually(t, func() bool { return f.requests.Load() >= int64(n) }, "all are there")
	best := time.Hour
	for range 20 {
		at := time.Now()
		r := f.get(t, "GET", "/metrics")
		b, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		best = min(best, time.Since(at))
		require.Contains(t, string(b), fmt.Sprintf("nanochat_active_requests %d", n+1))
	}
	close(hold)
	wg.Wait()
	if !race {
		require.Less(t, best, 5*time.Millisecond*time.Duration(pick(4, 1)), "a scrape")
	}
	t.Logf("RELIABILITY | a scrape of /metrics with %d streams open | %.2f ms | `core/server TestScrape` |", n, best.Seconds()*1e3)
}

// TestClosedServer answers 503, and is closed twice.
func TestClosedServer(t *testing.T) {
	s, err := New(Options{Models: []ModelSpec{spec(t, "m")}})
	require.NoError(t, err)
	require.NoError(t, s.Load(context.Background(), "m"))
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Load(context.Background(), "m"), errDraining)
}
