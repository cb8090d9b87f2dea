package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHistoryFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "nanochat", "history")
	h, err := readHistory(path)
	require.NoError(t, err)
	for _, line := range []string{"one", "one", " ", "two [paste 1: 2 lines]", "three"} {
		h.Add(line)
	}
	require.Equal(t, []string{"one", "two [paste 1: 2 lines]", "three"}, h.lines)
	require.Equal(t, "three", h.At(0))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "one\nthree\n", string(b)) // a paste's name means nothing to the next program
	next, err := readHistory(path)
	require.NoError(t, err)
	require.Equal(t, []string{"one", "three"}, next.lines)
}

func TestHistoryIsShortened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	var lines []string
	for i := range 2*historyLines + 1 {
		lines = append(lines, fmt.Sprint("line ", i))
	}
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	h, err := readHistory(path)
	require.NoError(t, err)
	require.Equal(t, historyLines, h.Len())
	require.Equal(t, lines[len(lines)-1], h.At(0))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, strings.Join(lines[len(lines)-historyLines:], "\n")+"\n", string(b))
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
}

// TestHistoryOfSeveralPrograms: lines stay whole.
func TestHistoryOfSeveralPrograms(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	var wg sync.WaitGroup
	for p := range 8 {
		h, err := readHistory(path)
		require.NoError(t, err)
		wg.Go(func() {
			for i := range 50 {
				h.Add(fmt.Sprintf("program %d line %d %s", p, i, strings.Repeat("x", 100)))
			}
		})
	}
	wg.Wait()
	all, err := readHistory(path)
	require.NoError(t, err)
	require.Equal(t, 400, all.Len())
	for _, line := range all.lines {
		require.Regexp(t, `^program \d line \d+ x{100}$`, line)
	}
}

// TestHistoryThatCannotBeKept is a history of this run.
func TestHistoryThatCannotBeKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	h, err := readHistory(filepath.Join(file, "history"))
	require.Error(t, err)
	h.Add("one")
	require.Equal(t, 1, h.Len())
	h, err = readHistory("")
	require.NoError(t, err)
	h.Add("one")
	require.Equal(t, "one", h.At(0))
}
