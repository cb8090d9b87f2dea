package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// copyRun copies the undisturbed run.
func copyRun(t *testing.T) string {
	out := newRun(t)
	require.NoError(t, os.CopyFS(filepath.Join(dir, out), os.DirFS(filepath.Join(dir, "whole"))))
	return out
}

// TestDamagedCheckpoint changes a bit of the newest checkpoint: the one before is
// used, and the file named.
func TestDamagedCheckpoint(t *testing.T) {
	for _, name := range []string{"MANIFEST", "weights.safetensors", "optimizer.safetensors", "state.json"} {
		out := copyRun(t)
		last := filepath.Join("checkpoints", fmt.Sprintf("step-%08d", steps))
		damage(t, out, last, name)
		text, code := train(t, out, 1)
		require.Zero(t, code, text)
		require.Contains(t, text, "warning: checkpoint: "+filepath.Join(out, last, name)+": ")
		require.Contains(t, text, ", expected ")
		require.Contains(t, text, fmt.Sprintf("resumed %s after step %d", filepath.Join(out, "checkpoints", fmt.Sprintf("step-%08d", steps-3)), steps-3))
		// The new checkpoint of the last step stands beside the damaged one.
		require.NoError(t, os.RemoveAll(filepath.Join(dir, out, last)))
		require.NoError(t, os.Rename(filepath.Join(dir, out, last+".1"), filepath.Join(dir, out, last)))
		sameEnd(t, out)
	}
}

// TestAllDamaged: a run without a good checkpoint does not begin anew by itself.
func TestAllDamaged(t *testing.T) {
	out := copyRun(t)
	for _, name := range saved(t, out) {
		damage(t, out, "checkpoints", name, "optimizer.safetensors")
	}
	before := saved(t, out)
	text, code := train(t, out, 1)
	require.Equal(t, 4, code, text)
	require.Contains(t, text, "none of "+fmt.Sprint(len(before))+" checkpoints is good")
	require.Contains(t, text, "optimizer.safetensors: its SHA-256 is")
	require.Equal(t, before, saved(t, out))
}

// TestDamagedData: a shard or a tokenizer that was changed is named before anything
// is trained.
func TestDamagedData(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, path string)
		want   []string
	}{
		{"train-00000.shard", flip, []string{"train-00000.shard", "SHA-256"}},
		{"train-00000.shard", cut, []string{"train-00000.shard", "bytes"}},
		{"train-00000.shard", remove, []string{"train-00000.shard"}},
		{"val-00000.shard", flip, []string{"val-00000.shard", "SHA-256"}},
		{"manifest.json", cut, []string{"manifest.json"}},
		{"manifest.json", remove, []string{"manifest.json"}},
		{"tokenizer.json", cut, []string{"tokenizer.json"}},
		{"tokenizer.json", other, []string{"tokenizer.json", "is not the tokenizer that prepared the data"}},
		{"tokenizer.json", remove, []string{"tokenizer.json"}},
	} {
		data, err := os.MkdirTemp(dir, "data-")
		require.NoError(t, err)
		defer os.RemoveAll(data)
		require.NoError(t, os.CopyFS(data, os.DirFS(filepath.Join(dir, "data"))))
		c.change(t, filepath.Join(data, c.name))
		out := filepath.Base(data) + "-run"
		text, code := train(t, out, 1, "--set", "data.path="+data)
		require.NotZero(t, code, text)
		for _, want := range c.want {
			require.Contains(t, text, want)
		}
		require.Contains(t, text, "hint: ", "%s: %s", c.name, text)
		_, err = os.Stat(filepath.Join(dir, out))
		require.ErrorIs(t, err, os.ErrNotExist, "nothing is written")
	}
}

func flip(t *testing.T, path string) {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	b[len(b)-9] ^= 4
	require.NoError(t, os.WriteFile(path, b, 0o666))
}

func cut(t *testing.T, path string) {
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(path, info.Size()/2))
}

func remove(t *testing.T, path string) { require.NoError(t, os.Remove(path)) }

// other puts another tokenizer with as many tokens in its place.
func other(t *testing.T, path string) {
	text, code := runCommand(t, command("tokenizer", "train", "val", "--vocab", "400", "-o", path, "--force"))
	require.Zero(t, code, text)
}
