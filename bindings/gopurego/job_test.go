package gopurego

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func ids(t testing.TB, s *Stream) []int32 {
	t.Helper()
	_, ids := readAll(t, s)
	require.NoError(t, s.Close())
	return ids
}

func TestSessionsAndChats(t *testing.T) {
	m := open(t)
	o := DefaultGenerateOptions()
	o.MaxTokens, o.IgnoreEnd = 5, true
	s, err := m.NewSession()
	require.NoError(t, err)
	first, err := s.Generate("fn", o)
	require.NoError(t, err)
	_, err = s.Generate("x", o)
	require.Equal(t, Busy, StatusOf(err))
	answer := ids(t, first)
	all, err := s.Tokens()
	require.NoError(t, err)
	prompt, err := m.Tokenize("fn")
	require.NoError(t, err)
	require.Equal(t, append(prompt, answer...), all)
	require.NoError(t, s.Truncate(len(prompt)))
	again, err := s.Generate("", o)
	require.NoError(t, err)
	require.Equal(t, answer, ids(t, again))

	conversation := []Message{{"system", "brief"}, {"user", "größe\x00"}}
	alone, err := m.Chat(nil, conversation, "phi3", o)
	require.NoError(t, err)
	in, err := m.Chat(s, conversation, "phi3", o)
	require.NoError(t, err)
	require.Equal(t, ids(t, alone), ids(t, in))
	_, err = m.Chat(nil, conversation, "llama3", o)
	require.Equal(t, Unsupported, StatusOf(err))
	_, err = m.Chat(nil, nil, "", o)
	require.Equal(t, Invalid, StatusOf(err))
	require.NoError(t, s.Close())
	require.Equal(t, Closed, StatusOf(s.Close()))

	byIDs, err := m.GenerateTokens(prompt, o)
	require.NoError(t, err)
	require.Equal(t, answer, ids(t, byIDs))
	gap, err := m.Fill("fn a() {", "}", o)
	require.NoError(t, err)
	require.Len(t, ids(t, gap), 5)
}

func TestEchoLogitsAndEmbedding(t *testing.T) {
	o := DefaultGenerateOptions()
	o.Echo, o.Logits, o.Embedding, o.PromptOnly = true, true, true, true
	s, err := open(t).Generate("fn", o)
	require.NoError(t, err)
	n := 0
	for p, err := range s.All(t.Context()) {
		require.NoError(t, err)
		require.True(t, p.Echo)
		row, err := s.Logits()
		require.NoError(t, err)
		require.Len(t, row, map[bool]int{true: 300}[n > 0])
		n++
	}
	require.Equal(t, 3, n)
	values, err := s.Embedding()
	require.NoError(t, err)
	require.Len(t, values, 64)
	require.NoError(t, s.Close())
}

// results reads a job to its end.
func results(t testing.TB, j *Job) (last map[string]any, types map[string]int) {
	t.Helper()
	types = map[string]int{}
	for r, err := range j.All(t.Context()) {
		require.NoError(t, err)
		last = nil
		require.NoError(t, json.Unmarshal(r, &last), "%s", r)
		types[last["type"].(string)]++
	}
	require.NoError(t, j.Close())
	return last, types
}

func TestZooAndSettings(t *testing.T) {
	require.NoError(t, library.Set("offline", "1"))
	require.NoError(t, library.Set("cache", t.TempDir()))
	defer library.Unset("offline")
	defer library.Unset("cache")
	v, err := library.Get("offline")
	require.NoError(t, err)
	require.Equal(t, "1", v)
	require.Equal(t, Invalid, StatusOf(library.Set("colour", "red")))
	list, err := library.Models()
	require.NoError(t, err)
	require.Contains(t, string(list), "nano-125m-rust")
	_, err = library.Find("nano-125m-rust")
	require.Equal(t, Planned, StatusOf(err))
	_, err = library.Remove("nothing-here")
	require.Equal(t, NotFound, StatusOf(err))
	j, err := library.Download("nothing-here")
	require.NoError(t, err)
	_, err = j.Next(t.Context())
	require.Equal(t, NotFound, StatusOf(err))
	require.NoError(t, j.Close())
	found, err := library.Find(small)
	require.NoError(t, err)
	require.Contains(t, string(found), `"source":"path"`)
	j, err = library.Verify(small)
	require.NoError(t, err)
	last, _ := results(t, j)
	require.Equal(t, "tensors", last["verified"])
}

func TestTrainAndLog(t *testing.T) {
	log, err := library.Log("info")
	require.NoError(t, err)
	dir := t.TempDir()
	for _, split := range []string{"train", "val"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, split, "src"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, split, "Cargo.toml"), []byte("[package]\nname = \""+split+"\"\n"), 0o600))
		for i := range 20 {
			text := strings.Repeat(fmt.Sprintf("/// Number %d of %s.\npub fn read_%d(index: usize) -> usize {\n    index + %d\n}\n\n", i, split, i, i), 8)
			require.NoError(t, os.WriteFile(filepath.Join(dir, split, "src", fmt.Sprintf("file%d.rs", i)), []byte(text), 0o600))
		}
	}
	out, err := exec.Command(command, "data", "prepare", filepath.Join(dir, "train"), "--val", filepath.Join(dir, "val"), "--tokenizer", small, "--no-dedup", "-o", filepath.Join(dir, "data")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	config := filepath.Join(dir, "train.toml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, "[model]\ndim = 64\nlayers = 1\nheads = 2\nffn = 64\nvocab = 300\ncontext = 32\ngroup = 64\n[data]\npath = %q\n[train]\nout = %q\nsteps = 40\nrows = 4\nseq_len = 32\neval_every = 0\n[schedule]\nwarmup = 5\ndecay = 10\n",
		filepath.Join(dir, "data"), filepath.Join(dir, "run")), 0o600))
	_, err = library.Train(config, "auto", "train.stepz=1")
	require.Equal(t, Invalid, StatusOf(err))
	j, err := library.Train(config, "auto", "train.steps=40")
	require.NoError(t, err)
	last, types := results(t, j)
	require.Equal(t, 40, types["step"])
	require.Equal(t, "result", last["type"])
	require.FileExists(t, last["model"].(string))

	j, err = library.Train(config, "auto", "train.out='"+filepath.Join(dir, "other")+"'", "train.steps=100000")
	require.NoError(t, err)
	for {
		r, err := j.Next(t.Context())
		require.NoError(t, err)
		if strings.Contains(string(r), `"step"`) {
			break
		}
	}
	require.NoError(t, j.Cancel())
	last, _ = results(t, j)
	require.NotEmpty(t, last["checkpoint"])

	r, err := log.Next(t.Context())
	require.NoError(t, err)
	require.Contains(t, string(r), "job started")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = log.Next(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, log.Cancel())
	for err = nil; err == nil; {
		_, err = log.Next(t.Context())
	}
	require.Equal(t, Cancelled, StatusOf(err))
	require.NoError(t, log.Close())
}
