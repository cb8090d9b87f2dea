package data

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReadGivesDocumentsAsTheyAre(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o777))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o666))
		return path
	}
	write("src/a.rs", "x")
	write("src/b.py", "not asked for")
	lines := write("docs.jsonl", `{"text":"first"}`+"\n"+`{"text":""}`+"\n"+`{"content":"third"}`+"\n")
	plain := write("plain.txt", "one\ntwo\n")

	var got []string
	for d, err := range Read(t.Context(), []string{plain, filepath.Join(dir, "src"), lines}, ReadOptions{}) {
		require.NoError(t, err)
		got = append(got, d.Text)
	}
	require.Equal(t, []string{"one\ntwo\n", "x", "first", "", "third"}, got)

	for range Read(t.Context(), []string{lines}, ReadOptions{}) {
		break // must not go on, nor panic
	}

	n := 0
	var last error
	for _, err := range Read(t.Context(), []string{plain, filepath.Join(dir, "missing"), lines}, ReadOptions{}) {
		n, last = n+1, err
	}
	require.Equal(t, 2, n)
	var e *Error
	require.ErrorAs(t, last, &e)
	require.Equal(t, filepath.Join(dir, "missing"), e.Path)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n = 0
	for _, err := range Read(ctx, []string{lines}, ReadOptions{}) {
		cancel()
		n, last = n+1, err
	}
	require.Equal(t, 2, n)
	require.ErrorIs(t, last, context.Canceled)
}
