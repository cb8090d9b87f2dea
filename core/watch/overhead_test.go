package watch

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/core/train"
)

// corpus prepares a little data and returns its directory.
func corpus(t *testing.T) string {
	dir := t.TempDir()
	tok, err := tokenizer.NewByteLevel(272)
	require.NoError(t, err)
	in, err := os.Create(filepath.Join(dir, "in.jsonl"))
	require.NoError(t, err)
	for i := range 400 {
		_, err := fmt.Fprintf(in, "{\"text\": \"fn f%d(x: u32) -> u32 {\\n    x + %d\\n}\\n", i, i*i)
		require.NoError(t, err)
		for j := range 20 {
			_, err := fmt.Fprintf(in, "fn g%d_%d(y: u64) -> bool {\\n    y == %d\\n}\\n", i, j, i*j)
			require.NoError(t, err)
		}
		_, err = fmt.Fprintf(in, "\", \"crate\": \"c%d\", \"path\": \"lib.rs\"}\n", i)
		require.NoError(t, err)
	}
	require.NoError(t, in.Close())
	out := filepath.Join(dir, "data")
	_, err = data.Prepare(context.Background(), data.PrepareOptions{
		Inputs: []string{in.Name()}, Out: out, Tokenizer: tok, ValFraction: 0.2, Dedup: data.DedupOptions{Off: true},
		Filter: data.FilterOptions{MinLetters: -1, MaxDigits: -1},
	}, nil)
	require.NoError(t, err)
	f, err := os.Create(filepath.Join(out, "tokenizer.json"))
	require.NoError(t, err)
	require.NoError(t, tok.WriteHF(f))
	require.NoError(t, f.Close())
	return out
}

// toggle passes on every other block of steps.
type toggle struct {
	*Watch
	block int
}

func (o *toggle) on(step int) bool { return step/o.block%2 == 1 }

func (o *toggle) Stepped(m *train.Metrics, p []train.Phase) {
	if o.on(m.Step) {
		o.Watch.Stepped(m, p)
	}
}

// TestOverhead takes a training of nano-5m's shape, on one thread and a row of 64 tokens a
// step, that shows metrics, spans and a log to everyone in every other block of four steps,
// and compares the times from step to step of each block with those of the one before. It
// runs with NANOCHAT_OVERHEAD=1.
func TestOverhead(t *testing.T) {
	if os.Getenv("NANOCHAT_OVERHEAD") == "" {
		t.Skip("NANOCHAT_OVERHEAD is not set")
	}
	const block, pairs = 4, 30
	const steps = (2*pairs + 3) * block
	shards, dir := corpus(t), t.TempDir()
	collect := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer collect.Close()
	cfg, err := config.Parse("overhead.toml", []byte("preset = \"nano-5m\"\n"), "data.path="+shards, "model.vocab=272", "train.out="+filepath.Join(dir, "run"),
		fmt.Sprint("train.steps=", steps), "train.rows=1", "train.threads=1", "train.seq_len=64", "train.eval_every=0", "train.eval_tokens=64",
		"train.log_every=1", "train.checkpoint_every=0")
	require.NoError(t, err)
	w, err := New(Options{MetricsAddr: "127.0.0.1:0", OTLP: collect.URL, LogFile: filepath.Join(dir, "log.jsonl")})
	require.NoError(t, err)
	o := &toggle{w, block}
	var last time.Time
	times := make([]float64, steps+1)
	_, err = train.Run(context.Background(), cfg, train.Options{Resume: train.ResumeNone, Peak: 1e12, Observer: o, Progress: func(p *train.Progress) {
		now := time.Now()
		times[p.Step], last = now.Sub(last).Seconds(), now
	}})
	require.NoError(t, err)
	w.Close()
	require.Zero(t, w.Dropped())
	median := func(v []float64) float64 {
		v = slices.Clone(v)
		slices.Sort(v)
		return v[len(v)/2]
	}
	var off, on, ratios []float64
	for at := 2 * block; at+2*block < steps; at += 2 * block { // the first blocks warm up
		require.True(t, !o.on(at) && o.on(at+block))
		a, b := median(times[at:at+block]), median(times[at+block:at+2*block])
		off, on, ratios = append(off, a), append(on, b), append(ratios, b/a)
	}
	t.Logf("medians of %d pairs of blocks of %d steps: %.2f ms a step without telemetry, %.2f ms with; ratio %.4f", len(ratios), block, median(off)*1e3, median(on)*1e3, median(ratios))
}

// cpu is the processor time of this process so far.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkStep is what a step costs besides the training when everyone is shown
// everything: spans, metrics and a line of the log at each step. cpu-ns/op counts the
// goroutines that write and send, and the collector, which is in this process.
func BenchmarkStep(b *testing.B) {
	collect := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer collect.Close()
	w, err := New(Options{MetricsAddr: "127.0.0.1:0", OTLP: collect.URL, LogFile: filepath.Join(b.TempDir(), "log"), Model: "m"})
	require.NoError(b, err)
	cfg := &config.Config{}
	cfg.Train.LogEvery = 1
	w.Began(&train.Beginning{Config: cfg, Steps: 1 << 30})
	at, v := time.Now(), train.Number(0.5)
	phases := []train.Phase{{Name: train.PhaseStep, From: at, To: at}, {Name: train.PhaseData, From: at, To: at}}
	for range 4 {
		phases = append(phases, train.Phase{Name: train.PhaseForward, From: at, To: at}, train.Phase{Name: train.PhaseBackward, From: at, To: at})
	}
	phases = append(phases, train.Phase{Name: train.PhaseOptimizer, From: at, To: at})
	m := &train.Metrics{Loss: 3, FlipRate: &v, ZeroFraction: &v, Cosine: &v, Norms: map[string]train.Number{"matrix": 1, "head": 1, "embedding": 1, "scalar": 1, "mhc": 1}}
	before := cpu()
	for b.Loop() {
		m.Step++
		m.Tokens += 1000
		w.Stepped(m, phases)
		if m.Step%200 == 0 { // a training is never so fast that the queue of spans fills
			b.StopTimer()
			time.Sleep(2 * time.Millisecond)
			b.StartTimer()
		}
	}
	w.Close()
	b.ReportMetric(float64((cpu()-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(w.Dropped()), "dropped")
}
