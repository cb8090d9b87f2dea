package load

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/internal/clock"
)

// script is a server whose answers take exact times on a clock that stands still
// otherwise: whoever reads the next piece moves it.
type script struct {
	clock  *clock.Manual
	first  time.Duration // before the first piece
	gap    time.Duration // before each other one
	pieces int
	usage  int
	end    string // instead of [DONE]
	status int
	bodies []map[string]any
	header http.Header
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	s.header = r.Header
	res := &http.Response{StatusCode: 200, Header: http.Header{}, Request: r}
	if r.Method == http.MethodGet {
		res.Body = io.NopCloser(strings.NewReader(`{"data":[{"id":"m"},{"id":"n"}]}`))
		return res, nil
	}
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return nil, err
	}
	s.bodies = append(s.bodies, body)
	if s.status != 0 {
		res.StatusCode = s.status
		res.Body = io.NopCloser(strings.NewReader(`{"error":{"message":"no room"}}`))
		return res, nil
	}
	res.Body = &scripted{s: s, left: s.pieces}
	return res, nil
}

type scripted struct {
	s    *script
	left int
	buf  []byte
	over bool
}

func (b *scripted) Close() error { return nil }

func (b *scripted) Read(p []byte) (int, error) {
	if len(b.buf) == 0 {
		switch {
		case b.over:
			return 0, io.EOF
		case b.left == b.s.pieces:
			b.s.clock.Advance(b.s.first)
		default:
			b.s.clock.Advance(b.s.gap)
		}
		if b.left--; b.left >= 0 {
			b.buf = []byte("data: {\"choices\":[{\"text\":\"x\",\"delta\":{\"content\":\"\"}}]}\r\n\r\n")
		} else {
			b.over = true
			b.buf = []byte(b.s.end)
			if b.s.end == "" {
				b.buf = fmt.Appendf(nil, ": a comment\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":%d}}\n\ndata: [DONE]\n\n", b.s.usage)
			}
		}
	}
	n := copy(p, b.buf)
	b.buf = b.buf[n:]
	return n, nil
}

func scriptedRun(t *testing.T, s *script, change func(*Options)) *Report {
	t.Helper()
	s.clock = clock.NewManual(time.Unix(0, 0))
	o := Options{URL: "http://server/v1/", Requests: 10, Client: &http.Client{Transport: s}, clock: s.clock}
	if change != nil {
		change(&o)
	}
	r, err := Run(t.Context(), o)
	require.NoError(t, err)
	return r
}

func TestTimesAreExact(t *testing.T) {
	s := &script{first: 40 * time.Millisecond, gap: 5 * time.Millisecond, pieces: 11, usage: 21}
	r := scriptedRun(t, s, func(o *Options) { o.Key = "k"; o.Seed = 3; o.MaxTokens = 9 })
	all := func(v float64, n int) Distribution { return Distribution{n, v, v, v, v, v, v} }
	require.Equal(t, all(40, 10), r.FirstToken)
	require.Equal(t, all(5, 100), r.InterToken)
	require.Equal(t, all(40+10*5+5, 10), r.EndToEnd)
	require.InDelta(t, 20/0.050, r.StreamTokens.P50, 1e-6)
	require.Equal(t, 10, r.Answered)
	require.Equal(t, 210, r.CompletionTokens)
	require.Equal(t, 50, r.PromptTokens)
	require.InDelta(t, 0.95, r.Seconds, 1e-9)
	require.InDelta(t, 210/0.95, r.TokensPerSecond, 1e-6)
	require.Empty(t, r.Faults)
	require.Equal(t, "m", r.Model)
	require.Equal(t, "Bearer k", s.header.Get("Authorization"))
	require.Equal(t, "http://server", r.URL)

	require.Len(t, s.bodies, 10)
	require.Equal(t, "m", s.bodies[0]["model"])
	require.Equal(t, 9.0, s.bodies[0]["max_tokens"])
	require.Equal(t, []any{3.0, 4.0}, []any{s.bodies[0]["seed"], s.bodies[1]["seed"]})
	require.NotEqual(t, s.bodies[0]["prompt"], s.bodies[1]["prompt"])
}

func TestChatAndPrompts(t *testing.T) {
	s := &script{pieces: 1}
	r := scriptedRun(t, s, func(o *Options) {
		o.Chat, o.Model, o.Prompts, o.Requests, o.Warmup = true, "n", []string{"a", "b"}, 3, 1
	})
	require.Equal(t, "chat/completions", r.Endpoint)
	require.Equal(t, 3, r.Sent) // not the warm-up
	var said []any
	for _, b := range s.bodies {
		said = append(said, b["messages"].([]any)[0].(map[string]any)["content"])
	}
	require.Equal(t, []any{"// warm-up 0\n", "a", "b", "a"}, said)
	require.Equal(t, "n", s.bodies[0]["model"])
	require.Equal(t, 3, r.CompletionTokens) // the server does not say: as many as pieces
}

func TestFailuresByKind(t *testing.T) {
	for want, s := range map[string]*script{
		"429":                 {status: 429},
		"503":                 {status: 503},
		"stream cut":          {pieces: 2, end: "data: {}\n\n"},
		"error in the stream": {pieces: 2, end: "data: {\"error\":{\"message\":\"no room\"}}\n\n"},
		"malformed stream":    {pieces: 2, end: "data: {\n\n"},
	} {
		r := scriptedRun(t, s, nil)
		require.Equal(t, map[string]int{want: 10}, r.Faults)
		require.Zero(t, r.Answered)
		require.Zero(t, r.FirstToken.Count)
		if want == "429" || want == "error in the stream" {
			require.Equal(t, map[string]string{want: "no room"}, r.Said)
		}
		var b bytes.Buffer
		require.NoError(t, r.Text(&b))
		require.Contains(t, b.String(), "10: "+want)
	}
	s := &script{status: 404, clock: clock.NewManual(time.Unix(0, 0))}
	_, err := Run(t.Context(), Options{URL: "http://server", Warmup: 1, Client: &http.Client{Transport: s}, clock: s.clock})
	require.ErrorContains(t, err, "404: no room")
	_, err = Run(t.Context(), Options{URL: "http://127.0.0.1:1"})
	require.ErrorContains(t, err, "refused")
}

// TestLatencyCountsFromWhenARequestWasDue: one that is sent late has waited.
func TestLatencyCountsFromWhenARequestWasDue(t *testing.T) {
	s := &script{first: 10 * time.Millisecond, pieces: 1, clock: clock.NewManual(time.Unix(100, 0))}
	o, err := Options{URL: "http://server", Rate: 1, Client: &http.Client{Transport: s}, clock: s.clock}.withDefaults()
	require.NoError(t, err)
	r := &run{o: o, c: &client{o: o}, begin: s.clock.Now().Add(-time.Second)}
	r.send(t.Context(), 0, s.clock.Now().Add(-300*time.Millisecond))
	got := r.samples[0]
	require.Equal(t, 700*time.Millisecond, got.due)
	require.Equal(t, time.Second, got.sent)
	require.Equal(t, 310*time.Millisecond, got.first)
	rep := r.report("m", time.Second)
	require.Equal(t, 310.0, rep.FirstToken.P50)
	require.Equal(t, 300.0, rep.SenderLate.P50)
}

// TestOpenLoopDoesNotWait: a server that stalls sees all requests that arrive
// meanwhile, and each of them is charged with its own wait.
func TestOpenLoopDoesNotWait(t *testing.T) {
	const n, stall = 60, 400 * time.Millisecond
	var running, most atomic.Int32
	release := make(chan struct{})
	var once sync.Once
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			io.WriteString(w, `{"data":[{"id":"m"}]}`)
			return
		}
		now := running.Add(1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		once.Do(func() { time.AfterFunc(stall, func() { close(release) }) })
		<-release
		running.Add(-1)
		io.WriteString(w, "data: {\"choices\":[{\"text\":\"x\"}]}\n\ndata: [DONE]\n\n")
	}))
	defer server.Close()
	r, err := Run(t.Context(), Options{URL: server.URL, Rate: 300, Requests: n, Seed: 1})
	require.NoError(t, err)
	require.Equal(t, n, r.Answered)
	require.Greater(t, int(most.Load()), n/2, "requests waited for those before")
	// They were due evenly over 0.2 s, so on average they waited 0.3 s of the 0.4.
	require.Greater(t, r.FirstToken.Mean, 200.0)
	require.GreaterOrEqual(t, r.FirstToken.Max, 390.0)
}

// TestArrivalsArePoisson: the gaps have the mean and the spread of an exponential
// distribution, and are those of the seed.
func TestArrivalsArePoisson(t *testing.T) {
	due := func(seed uint64) (gaps []float64) {
		s := &script{pieces: 1}
		s.clock = clock.NewManual(time.Unix(0, 0))
		o, err := Options{URL: "http://server", Rate: 100, Requests: 2000, Seed: seed, Client: &http.Client{Transport: failing{}}, clock: s.clock}.withDefaults()
		require.NoError(t, err)
		r := &run{o: o, c: &client{o: o}, begin: s.clock.Now()}
		done := make(chan struct{})
		go func() { defer close(done); r.open(context.Background()) }()
		for {
			select {
			case <-done:
				at := make([]float64, len(r.samples))
				for i, x := range r.samples {
					at[i] = x.due.Seconds()
				}
				d := summarise(at)
				require.Equal(t, 2000, d.Count)
				for i := 1; i < len(at); i++ {
					gaps = append(gaps, at[i]-at[i-1])
				}
				return gaps
			default:
				s.clock.Advance(5 * time.Millisecond)
			}
		}
	}
	gaps := due(7)
	sum, squares := 0.0, 0.0
	for _, g := range gaps {
		sum, squares = sum+g, squares+g*g
	}
	n := float64(len(gaps))
	mean := sum / n
	require.InDelta(t, 0.010, mean, 0.001)
	require.InDelta(t, 2*mean*mean, squares/n, 0.3*mean*mean) // the second moment of that distribution
	require.Equal(t, gaps, due(7))
	require.NotEqual(t, gaps, due(8))
}

type failing struct{}

func (failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }

func TestClosedLoopKeepsItsClients(t *testing.T) {
	var running, most atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			io.WriteString(w, `{"data":[{"id":"m"}]}`)
			return
		}
		now := running.Add(1)
		defer running.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		time.Sleep(10 * time.Millisecond)
		io.WriteString(w, "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\ndata: [DONE]\n\n")
	}))
	defer server.Close()
	seen := 0
	r, err := Run(t.Context(), Options{URL: server.URL, Concurrency: 4, Requests: 40, Progress: func(n int) { seen = n }})
	require.NoError(t, err)
	require.Equal(t, 40, r.Answered)
	require.EqualValues(t, 4, most.Load())
	require.Equal(t, 40, seen)
	require.GreaterOrEqual(t, r.FirstToken.P50, 10.0)
}

func TestTimeoutAndInterrupt(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			io.WriteString(w, `{"data":[{"id":"m"}]}`)
			return
		}
		io.Copy(io.Discard, r.Body)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	defer server.Close()
	r, err := Run(t.Context(), Options{URL: server.URL, Requests: 2, Timeout: 50 * time.Millisecond})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"timeout": 2}, r.Faults)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	r, err = Run(ctx, Options{URL: server.URL, Concurrency: 3, Duration: time.Hour})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotNil(t, r)
	require.Zero(t, r.Sent)
}

func TestOptions(t *testing.T) {
	for want, o := range map[string]Options{
		"server":      {URL: "localhost:8080"},
		"rate":        {URL: "http://x", Rate: -1},
		"concurrency": {URL: "http://x", Concurrency: maxConcurrency + 1},
		"requests":    {URL: "http://x", Requests: -1},
		"duration":    {URL: "http://x", Duration: -1},
		"max_tokens":  {URL: "http://x", MaxTokens: -1},
	} {
		_, err := Run(t.Context(), o)
		var oe *OptionError
		require.ErrorAs(t, err, &oe)
		require.Equal(t, want, oe.Option)
	}
	_, err := Run(t.Context(), Options{URL: "http://x", Rate: 1, Concurrency: 1})
	require.ErrorContains(t, err, "exclude")
}

func TestSummary(t *testing.T) {
	v := make([]float64, 200)
	for i := range v {
		v[i] = float64(200 - i)
	}
	require.Equal(t, Distribution{200, 100.5, 100, 180, 190, 198, 200}, summarise(v))
	require.Equal(t, Distribution{1, 3, 3, 3, 3, 3, 3}, summarise([]float64{3}))
	require.Equal(t, Distribution{}, summarise(nil))
}
