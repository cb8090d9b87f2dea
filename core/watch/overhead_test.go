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

// TestOverhead compares trainings of nano-5m's shape, on one thread and a row of 128 tokens
// a step, that show everything to everyone with trainings that show nothing, turn by turn:
// the processor time of a step, of all goroutines and of the collector, which is in this
// process, and the median time from step to step. It runs with NANOCHAT_OVERHEAD=1.
func TestOverhead(t *testing.T) {
	if os.Getenv("NANOCHAT_OVERHEAD") == "" {
		t.Skip("NANOCHAT_OVERHEAD is not set")
	}
	const rounds, steps = 5, 16
	shards, dir := corpus(t), t.TempDir()
	collect := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer collect.Close()
	one := func(name string, on bool) (busy, median float64) {
		cfg, err := config.Parse("overhead.toml", []byte("preset = \"nano-5m\"\n"), "name="+name, "data.path="+shards, "model.vocab=272", "train.out="+filepath.Join(dir, name),
			fmt.Sprint("train.steps=", steps), "train.rows=1", "train.threads=1", "train.seq_len=128", "train.eval_tokens=256", "train.log_every=10", "train.checkpoint_every=0",
			"schedule.warmup=2", fmt.Sprint("telemetry.tensorboard=", on))
		require.NoError(t, err)
		o := train.Options{Resume: train.ResumeNone, Peak: 1e12}
		if on {
			w, err := New(Options{MetricsAddr: "127.0.0.1:0", OTLP: collect.URL, LogFile: filepath.Join(dir, name+".jsonl"), Model: name})
			require.NoError(t, err)
			defer func() {
				w.Close()
				require.Zero(t, w.Dropped())
			}()
			o.Observer = w
		}
		var last time.Time
		var first, end time.Duration
		var times []float64
		o.Progress = func(p *train.Progress) {
			now := time.Now()
			switch { // the first steps warm up, and the last one has the evaluation
			case p.Step == 3:
				first = cpu()
			case p.Step > 3 && p.Step < steps:
				times, end = append(times, now.Sub(last).Seconds()), cpu()
			}
			last = now
		}
		_, err = train.Run(context.Background(), cfg, o)
		require.NoError(t, err)
		slices.Sort(times)
		return (end - first).Seconds() / float64(len(times)), times[len(times)/2]
	}
	one("warm", true)
	var v [6][]float64 // processor and time without, processor and time with, the ratios
	for i := range rounds {
		a, x := one(fmt.Sprint("off", i), false)
		b, y := one(fmt.Sprint("on", i), true)
		for j, f := range []float64{a, x, b, y, b / a, y / x} {
			v[j] = append(v[j], f)
		}
	}
	for _, l := range v {
		slices.Sort(l)
	}
	m := func(i int) float64 { return v[i][rounds/2] }
	t.Logf("medians of %d rounds of %d steps: processor %.2f ms a step without telemetry, %.2f ms with, ratio %.4f; time %.2f ms, %.2f ms, ratio %.4f",
		rounds, steps, m(0)*1e3, m(2)*1e3, m(4), m(1)*1e3, m(3)*1e3, m(5))
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
