package server

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"context"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/core/telemetry"
)

// TestOverhead compares the time of an answer over HTTP, as a stream, with that of
// the same answer from the engine, turn by turn on one model. It runs with
// NANOCHAT_PROFILE=model.gguf.
func TestOverhead(t *testing.T) {
	path := os.Getenv("NANOCHAT_PROFILE")
	if path == "" {
		t.Skip("NANOCHAT_PROFILE names no model to measure")
	}
	const tokens = 128
	s := ModelSpec{Name: "m", Find: func(context.Context) (string, error) { return path, nil }, Options: chat.Options{HugePages: true}}
	f := serve(t, Options{Models: []ModelSpec{s}, Metrics: telemetry.NewServing(telemetry.ServingOptions{Process: true})}, nil)
	m := f.models[0].model
	engine := func() time.Duration {
		at := time.Now()
		st, err := m.Generate(t.Context(), chat.Request{Prompt: "fn main() {", MaxTokens: tokens, IgnoreEnd: true, Sample: sample.Options{Temperature: 1, Seed: 1}})
		require.NoError(t, err)
		defer st.Close()
		for err == nil {
			_, err = st.Next(t.Context())
		}
		require.True(t, errors.Is(err, io.EOF))
		return time.Since(at)
	}
	over := func() time.Duration {
		at := time.Now()
		r, err := http.Post(f.url+"/v1/completions", "application/json",
			strings.NewReader(`{"prompt":"fn main() {","max_tokens":128,"ignore_eos":true,"temperature":1,"seed":1,"stream":true}`))
		require.NoError(t, err)
		defer r.Body.Close()
		n := 0
		for in := bufio.NewScanner(r.Body); in.Scan(); {
			n += len(in.Bytes())
		}
		require.Greater(t, n, 2000)
		return time.Since(at)
	}
	engine()
	over()
	const rounds = 12
	var a, b, ratios []float64
	for range rounds {
		x, y := engine().Seconds(), over().Seconds()
		a, b, ratios = append(a, x), append(b, y), append(ratios, y/x)
	}
	for _, l := range [][]float64{a, b, ratios} {
		slices.Sort(l)
	}
	median := func(l []float64) float64 { return (l[len(l)/2-1] + l[len(l)/2]) / 2 }
	t.Logf("%d tokens: engine %.1f ms (best %.1f), over HTTP %.1f ms (best %.1f); median of ratios %.4f, of the best %.4f; %d threads",
		tokens, median(a)*1e3, a[0]*1e3, median(b)*1e3, b[0]*1e3, median(ratios), b[0]/a[0], m.Threads())
}
