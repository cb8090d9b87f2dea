package checkpoint_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/internal/fsx"
)

// aRun is a disk with the directory of a run: checkpoints of steps 1 to n, with rows rows a
// tensor, its configuration and its metrics.
func aRun(t testing.TB, n, rows int) *fsx.Crash {
	c := fsx.NewCrash(1)
	require.NoError(t, c.MkdirAll("a", 0o777))
	require.NoError(t, c.SyncDir("."))
	for step := 1; step <= n; step++ {
		_, err := checkpoint.Save(c, "a/checkpoints", step, state(step, rows), checkpoint.Options{Score: float64(step)})
		require.NoError(t, err)
	}
	put(t, c, "a/config.toml", "name = \"a\"\n")
	put(t, c, "a/metrics.jsonl", strings.Repeat("{\"step\":1}\n", 900))
	put(t, c, "a/best.gguf", "the best")
	return c
}

// put writes a file that survives.
func put(t testing.TB, fsys fsx.FS, name, text string) {
	require.NoError(t, fsx.Replace(fsys, name, func(f fsx.File) error {
		_, err := f.Write([]byte(text))
		return err
	}))
}

func contents(t testing.TB, fsys fsx.FS, name string) string {
	b, err := fsx.ReadFile(fsys, name, 1<<30)
	require.NoError(t, err)
	return string(b)
}

const small = checkpoint.MinPart

func TestSplitAndJoin(t *testing.T) {
	c := aRun(t, 3, 700)
	for _, models := range []bool{false, true} {
		out := fmt.Sprint("parts", models)
		p, err := checkpoint.Split(c, "a", out, checkpoint.SplitOptions{Size: small, Models: models})
		require.NoError(t, err)
		require.Equal(t, 3, p.Step)
		require.Greater(t, len(p.Parts), 8)
		for _, name := range names(t, c, out) {
			require.LessOrEqual(t, len(contents(t, c, filepath.Join(out, name))), small, name)
		}
		again, err := checkpoint.ReadParts(c, out)
		require.NoError(t, err)
		require.Equal(t, p, again)

		to := fmt.Sprint("b", models)
		q, at, err := checkpoint.Join(c, out, to)
		require.NoError(t, err)
		require.Equal(t, p, q)
		require.Equal(t, to+"/checkpoints/step-00000003", at)
		for _, f := range p.Files {
			require.Equal(t, contents(t, c, filepath.Join("a", f.Name)), contents(t, c, filepath.Join(to, f.Name)), f.Name)
		}
		s, err := checkpoint.Load(c, at)
		require.NoError(t, err)
		require.Equal(t, state(3, 700), s)
		_, err = c.Stat(to + "/best.gguf")
		require.Equal(t, models, err == nil)
		require.Equal(t, "step-00000003\n", contents(t, c, to+"/checkpoints/LATEST"))
		// It is there: nothing changes, not even what the run has written since.
		put(t, c, to+"/metrics.jsonl", "more")
		_, same, err := checkpoint.Join(c, out, to)
		require.NoError(t, err)
		require.Equal(t, at, same)
		require.Equal(t, "more", contents(t, c, to+"/metrics.jsonl"))
	}
	// One checkpoint, of any step; and a directory of checkpoints.
	for from, step := range map[string]int{"a/checkpoints/step-00000002": 2, "a/checkpoints": 3} {
		p, err := checkpoint.Split(c, from, "one", checkpoint.SplitOptions{Size: 1 << 20})
		require.NoError(t, err)
		require.Equal(t, step, p.Step)
		require.Len(t, p.Parts, 1)
		require.Equal(t, []string{"PARTS", "part-0001"}, names(t, c, "one"), "parts of an earlier split are gone")
	}
}

// A run that went on elsewhere comes back to where it began.
func TestJoinIntoTheRun(t *testing.T) {
	c := aRun(t, 2, 100)
	split := func(from, to string) {
		_, err := checkpoint.Split(c, from, to, checkpoint.SplitOptions{Size: small})
		require.NoError(t, err)
	}
	split("a", "there")
	_, _, err := checkpoint.Join(c, "there", "b")
	require.NoError(t, err)
	_, err = checkpoint.Save(c, "b/checkpoints", 5, state(5, 100), checkpoint.Options{})
	require.NoError(t, err)
	split("b", "back")
	_, at, err := checkpoint.Join(c, "back", "a")
	require.NoError(t, err)
	latest, _, err := checkpoint.Latest(c, "a/checkpoints")
	require.NoError(t, err)
	require.Equal(t, at, latest)
	require.Equal(t, "a/checkpoints/step-00000005", latest)

	// What is older than the run, or another checkpoint of the same name, is refused.
	_, err = checkpoint.Save(c, "a/checkpoints", 6, state(6, 100), checkpoint.Options{})
	require.NoError(t, err)
	_, err = checkpoint.Save(c, "b/checkpoints", 6, state(60, 100), checkpoint.Options{})
	require.NoError(t, err)
	before := contents(t, c, "a/metrics.jsonl")
	split("b", "other")
	_, _, err = checkpoint.Join(c, "other", "a")
	require.ErrorContains(t, err, "a/checkpoints/step-00000006: is another checkpoint")
	require.NoError(t, c.MkdirAll("fresh", 0o777))
	_, _, err = checkpoint.Join(c, "there", "fresh")
	require.NoError(t, err)
	for range 3 {
		_, err = checkpoint.Save(c, "fresh/checkpoints", 9, state(9, 100), checkpoint.Options{})
		require.NoError(t, err)
	}
	_, _, err = checkpoint.Join(c, "back", "fresh")
	require.ErrorContains(t, err, "is newer than the checkpoint to be joined")
	require.Equal(t, before, contents(t, c, "a/metrics.jsonl"))
}

// Parts that are missing, cut short or changed anywhere are named, all of them, and nothing
// is written.
func TestDamagedParts(t *testing.T) {
	c := aRun(t, 1, 300)
	p, err := checkpoint.Split(c, "a", "parts", checkpoint.SplitOptions{Size: small})
	require.NoError(t, err)
	n := len(p.Parts)
	require.Greater(t, n, 4)
	original := map[string]string{}
	for _, name := range names(t, c, "parts") {
		original[name] = contents(t, c, "parts/"+name)
	}
	refused := func() error {
		_, _, err := checkpoint.Join(c, "parts", "b")
		require.Error(t, err)
		_, none := c.Stat("b")
		require.Error(t, none, "something was written")
		return err
	}
	require.NoError(t, c.Remove("parts/part-0002"))
	require.NoError(t, c.Remove("parts/part-0004"))
	put(t, c, "parts/part-0001", original["part-0001"][:100])
	last := fmt.Sprintf("part-%04d", n)
	changed := []byte(original[last])
	changed[len(changed)-1] ^= 1
	put(t, c, "parts/"+last, string(changed))
	err = refused()
	require.EqualError(t, err, fmt.Sprintf("checkpoint: parts: of %d parts 2 missing: part-0002, part-0004; 2 damaged: part-0001, %s", n, last))
	var missing *checkpoint.MissingError
	require.ErrorAs(t, err, &missing)
	require.Equal(t, n-4, missing.Whole)
	// A second split puts right what is wrong, and that only.
	ops := len(c.Ops())
	_, err = checkpoint.Split(c, "a", "parts", checkpoint.SplitOptions{Size: small})
	require.NoError(t, err)
	renamed := 0
	for _, o := range c.Ops()[ops:] {
		if o.Kind == "rename" {
			renamed++
		}
	}
	require.Equal(t, 4+1, renamed, "four parts and PARTS")
	for name, text := range original {
		require.Equal(t, text, contents(t, c, "parts/"+name), name)
	}
	for i := 0; i < len(original["PARTS"]); i += 7 {
		b := []byte(original["PARTS"])
		b[i] ^= 4
		put(t, c, "parts/PARTS", string(b))
		var ce *checkpoint.Error
		require.ErrorAs(t, refused(), &ce, "byte %d", i)
		require.Equal(t, "parts/PARTS", ce.Path)
	}
	require.NoError(t, c.Remove("parts/PARTS"))
	require.ErrorContains(t, refused(), "there are no parts of a checkpoint")
}

// A list that someone made up leads nowhere else.
func TestPartsThatAreNotOurs(t *testing.T) {
	c := aRun(t, 1, 10)
	_, err := checkpoint.Split(c, "a", "parts", checkpoint.SplitOptions{Size: small})
	require.NoError(t, err)
	text := contents(t, c, "parts/PARTS")
	body := text[:strings.LastIndex(strings.TrimSpace(text), "\n")+1]
	for name, change := range map[string][2]string{
		"another place": {"file config.toml", "file ../config.toml"}, "an absolute one": {"file config.toml", "file /etc/config.toml"},
		"another file": {"file config.toml", "file run.sh"}, "twice": {"file metrics.jsonl", "file config.toml"}, "another checkpoint": {"/MANIFEST", "/../step-00000009/MANIFEST"},
		"another step's": {"file checkpoints/step-00000001/state.json", "file checkpoints/step-00000009/state.json"}, "a part": {"part part-0001", "part ../part-0001"},
	} {
		bad := strings.Replace(body, change[0], change[1], 1)
		require.NotEqual(t, body, bad, name)
		put(t, c, "parts/PARTS", bad+fmt.Sprintf("sha256 %x\n", sha256.Sum256([]byte(bad))))
		_, _, err := checkpoint.Join(c, "parts", "b")
		var ce *checkpoint.Error
		require.ErrorAs(t, err, &ce, name)
	}
}

// A split and a join that are cut off anywhere leave nothing that is taken for whole, and
// can be repeated.
func TestPowerLossInSplitAndJoin(t *testing.T) {
	for n := 0; ; n++ {
		c := aRun(t, 1, 200)
		done := c.StopAfter(n, func() { _, _ = checkpoint.Split(c, "a", "parts", checkpoint.SplitOptions{Size: small}) })
		c = c.AfterPowerLoss(n%3*50, n%2*100)
		if _, _, err := checkpoint.Join(c, "parts", "b"); err == nil {
			s, err := checkpoint.Load(c, "b/checkpoints/step-00000001")
			require.NoError(t, err)
			require.Equal(t, state(1, 200), s)
		}
		_, err := checkpoint.Split(c, "a", "parts", checkpoint.SplitOptions{Size: small})
		require.NoError(t, err)
		_, _, err = checkpoint.Join(c, "parts", "d")
		require.NoError(t, err)
		if done {
			break
		}
	}
	for n := 0; ; n++ {
		c := aRun(t, 1, 200)
		_, err := checkpoint.Split(c, "a", "parts", checkpoint.SplitOptions{Size: small})
		require.NoError(t, err)
		require.NoError(t, c.SyncDir("."))
		done := c.StopAfter(n, func() { _, _, _ = checkpoint.Join(c, "parts", "b") })
		c = c.AfterPowerLoss(n%3*50, n%2*100)
		path, skipped, err := checkpoint.Latest(c, "b/checkpoints")
		require.Empty(t, skipped)
		if err != nil {
			require.ErrorIs(t, err, checkpoint.ErrNone, "after %d changes, %v", n, c.LastOp())
			_, path, err = checkpoint.Join(c, "parts", "b")
			require.NoError(t, err)
		}
		s, err := checkpoint.Load(c, path)
		require.NoError(t, err)
		require.Equal(t, state(1, 200), s)
		require.Equal(t, contents(t, c, "a/metrics.jsonl"), contents(t, c, "b/metrics.jsonl"))
		if done {
			break
		}
	}
}

// Every operation fails in turn: an error, or all is well.
func TestEveryOperationFailsInSplitAndJoin(t *testing.T) {
	for n := 1; ; n++ {
		c := aRun(t, 1, 200)
		f := fsx.NewFault(c, fsx.FaultOptions{FailAt: n, Short: true})
		_, err := checkpoint.Split(f, "a", "parts", checkpoint.SplitOptions{Size: small})
		if err == nil {
			_, _, err = checkpoint.Join(f, "parts", "b")
		}
		if err == nil {
			s, e := checkpoint.Load(c, "b/checkpoints/step-00000001")
			require.NoError(t, e)
			require.Equal(t, state(1, 200), s)
		}
		if !f.Failed() {
			require.NoError(t, err)
			break
		}
	}
}

func TestSplitRefuses(t *testing.T) {
	c := aRun(t, 1, 10)
	_, err := checkpoint.Split(c, "a", "parts", checkpoint.SplitOptions{Size: small - 1})
	require.ErrorContains(t, err, "want 4096 or more")
	for _, dir := range []string{"a", "a/"} {
		_, err = checkpoint.Split(c, "a", dir, checkpoint.SplitOptions{Size: small})
		require.ErrorContains(t, err, "parts need one of their own")
	}
	_, err = checkpoint.Split(c, "nowhere", "parts", checkpoint.SplitOptions{Size: small})
	require.ErrorIs(t, err, checkpoint.ErrNone)
	require.NoError(t, c.Remove("a/checkpoints/step-00000001/state.json"))
	_, err = checkpoint.Split(c, "a", "parts", checkpoint.SplitOptions{Size: small})
	var ce *checkpoint.Error
	require.ErrorAs(t, err, &ce)
	_, err = c.Stat("parts")
	require.Error(t, err)
}

// On the real disk, and with a run that is being written to.
func TestJoinWhileTraining(t *testing.T) {
	dir := t.TempDir()
	_, err := checkpoint.Save(nil, filepath.Join(dir, "a", "checkpoints"), 1, state(1, 10), checkpoint.Options{})
	require.NoError(t, err)
	parts, run := filepath.Join(dir, "parts"), filepath.Join(dir, "b")
	_, err = checkpoint.Split(nil, filepath.Join(dir, "a"), parts, checkpoint.SplitOptions{Size: 1 << 20})
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(run, 0o755))
	lock, err := os.Create(filepath.Join(run, ".lock"))
	require.NoError(t, err)
	held, err := fsx.OS().OpenFile(lock.Name(), os.O_RDWR, 0)
	require.NoError(t, err)
	if ok, err := fsx.TryLock(held); !ok || err != nil {
		t.Skip("no locks here", err)
	}
	_, _, err = checkpoint.Join(nil, parts, run)
	require.ErrorContains(t, err, "a training is writing to it")
	require.NoError(t, errors.Join(held.Close(), lock.Close()))
	_, at, err := checkpoint.Join(nil, parts, run)
	require.NoError(t, err)
	s, err := checkpoint.Load(nil, at)
	require.NoError(t, err)
	require.Equal(t, state(1, 10), s)
	list, err := checkpoint.List(nil, filepath.Join(run, "checkpoints"))
	require.NoError(t, err)
	require.True(t, math.IsNaN(list[0].Score))
}

// FuzzParts: no list makes Join write outside the run or panic.
func FuzzParts(f *testing.F) {
	c := aRun(f, 1, 10)
	_, err := checkpoint.Split(c, "a", "parts", checkpoint.SplitOptions{Size: small})
	require.NoError(f, err)
	f.Add([]byte(contents(f, c, "parts/PARTS")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if i := bytes.LastIndex(bytes.TrimSpace(b), []byte("\n")); i > 0 {
			b = append(b[:i+1:i+1], fmt.Sprintf("sha256 %x\n", sha256.Sum256(b[:i+1]))...)
		}
		c := fsx.NewCrash(1)
		require.NoError(t, c.MkdirAll("parts", 0o777))
		put(t, c, "parts/PARTS", string(b))
		p, err := checkpoint.ReadParts(c, "parts")
		if err != nil {
			return
		}
		for _, f := range p.Files {
			require.NotContains(t, f.Name, "..")
			require.False(t, filepath.IsAbs(f.Name))
		}
	})
}
