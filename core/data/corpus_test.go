package data

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/tokenizer"
)

// TestCorpus prepares and loads a real corpus and prints its figures:
//
//	NANOCHAT_CORPUS='corpus/*-train-*.jsonl.zst' NANOCHAT_CORPUS_VAL='corpus/*-val.jsonl.zst' \
//	NANOCHAT_EVAL=humaneval_x_rust.jsonl.gz go test ./core/data -run TestCorpus -v -timeout 20m
func TestCorpus(t *testing.T) {
	files := func(name string) []string {
		list, err := filepath.Glob(os.Getenv(name))
		require.NoError(t, err)
		sort.Strings(list)
		return list
	}
	train := files("NANOCHAT_CORPUS")
	if len(train) == 0 {
		t.Skip("set NANOCHAT_CORPUS to files to prepare")
	}
	const learn = 12 << 20 // bytes of text for the vocabulary
	tok, err := tokenizer.Train(t.Context(), func(yield func(string, error) bool) {
		left := learn
		s := &source{fs: fsx.OS(), maxBytes: -1, yield: func(d Document) error {
			if left -= len(d.Text); left < 0 || !yield(d.Text, nil) {
				return context.Canceled
			}
			return nil
		}}
		require.ErrorIs(t, s.read(t.Context(), train[0]), context.Canceled)
	}, tokenizer.TrainOptions{VocabSize: 4096}, nil)
	require.NoError(t, err)

	out := t.TempDir()
	start := time.Now()
	m, err := Prepare(t.Context(), PrepareOptions{Inputs: train, ValInputs: files("NANOCHAT_CORPUS_VAL"), Evaluation: files("NANOCHAT_EVAL"), Out: out, Tokenizer: tok}, nil)
	require.NoError(t, err)
	var read int64
	for _, in := range m.Inputs {
		read += in.Bytes
	}
	took := time.Since(start)
	t.Logf("prepared %.1f MB in %.1f s: %.1f MB/s with %d threads", float64(read)/1e6, took.Seconds(), float64(read)/1e6/took.Seconds(), runtime.GOMAXPROCS(0))
	for name, s := range m.Splits {
		t.Logf("%s: %d documents, %.1f MB, %d tokens, %.3f bytes a token, %d shards", name, s.Documents, float64(s.Bytes)/1e6, s.Tokens, float64(s.Bytes)/float64(s.Tokens), len(s.Shards))
	}
	for reason, c := range m.Dropped {
		t.Logf("left out, %s: %d documents, %.2f MB", reason, c.Documents, float64(c.Bytes)/1e6)
	}
	t.Logf("%d groups; warnings: %s", len(m.Groups), strings.Join(m.Warnings, "; "))

	for _, fim := range []float64{0, 0.25} {
		start = time.Now()
		d, err := Open(out, Train, OpenOptions{})
		require.NoError(t, err)
		opened := time.Since(start)
		l := load(t, d, LoaderOptions{Rows: 64, SeqLen: 256, FIM: FIM{Rate: fim, SPM: 0.5}, Tokenizer: tok})
		var times []float64
		for range 5 {
			start = time.Now()
			for range 200 {
				_, err := l.Next(t.Context())
				require.NoError(t, err)
			}
			times = append(times, 200*64*256/time.Since(start).Seconds()/1e6)
		}
		sort.Float64s(times)
		start = time.Now()
		require.NoError(t, l.Close())
		t.Logf("FIM %g: opened and verified in %v; 64×256 tokens a batch, 1 worker: median %.1f Mtok/s of 5×200 batches (%.1f to %.1f); closed in %v",
			fim, opened.Round(time.Millisecond), times[2], times[0], times[4], time.Since(start).Round(time.Microsecond))
		require.NoError(t, d.Close())
	}
}
