package model

import (
	"context"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
)

// counted is a context that ends when it has been asked often enough, and counts
// how often.
type counted struct {
	context.Context
	end   int64
	asked atomic.Int64
}

func (c *counted) Err() error {
	if n := c.asked.Add(1); n > c.end {
		return context.Canceled
	}
	return nil
}

// Init and Convert look at their context at least once for so many rows of a
// tensor, and stop at once when it has ended.
func TestCancel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f16.gguf")
	c := wide()
	require.NoError(t, initModel(t, c, 7, nil).Export(path, gguf.F16))
	foreign, err := Load(open(t, path), Options{})
	require.NoError(t, err)
	for name, x := range map[string]struct {
		rows int
		do   func(ctx context.Context) error
	}{
		"init": {initRows, func(ctx context.Context) error {
			_, err := Init(ctx, c, 1, Options{})
			return err
		}},
		"exact": {16, func(ctx context.Context) error {
			_, err := foreign.Convert(ctx, ConvertOptions{})
			return err
		}},
		"quantize": {16, func(ctx context.Context) error {
			_, err := foreign.Convert(ctx, ConvertOptions{Quantize: true, Group: 64, Embedding: config.TypeQ8_0})
			return err
		}},
	} {
		whole := &counted{Context: t.Context(), end: 1 << 60}
		require.NoError(t, x.do(whole), name)
		asked, rows := whole.asked.Load(), 0
		for _, s := range foreign.slots() {
			if s.vec == nil {
				rows += s.rows / x.rows
			}
		}
		require.GreaterOrEqual(t, asked, int64(rows), name)
		for _, end := range []int64{0, asked / 3, asked - 1} {
			part := &counted{Context: t.Context(), end: end}
			require.ErrorIs(t, x.do(part), context.Canceled, "%s ended at %d of %d", name, end, asked)
			// Every worker may ask once more, and once more for a tensor that it begins.
			require.LessOrEqual(t, part.asked.Load(), end+2*int64(runtime.GOMAXPROCS(0))+1, "%s ended at %d of %d", name, end, asked)
		}
	}
}
