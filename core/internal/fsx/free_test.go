package fsx_test

import (
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/internal/fsx"
)

func TestFree(t *testing.T) {
	dir := t.TempDir()
	n, ok := fsx.Free(fsx.OS(), dir)
	if runtime.GOOS == "linux" {
		require.True(t, ok)
		require.Positive(t, n)
	}
	_, ok = fsx.Free(fsx.OS(), filepath.Join(dir, "none"))
	require.False(t, ok)
	_, ok = fsx.Free(fsx.NewCrash(1), dir)
	require.False(t, ok)
}
