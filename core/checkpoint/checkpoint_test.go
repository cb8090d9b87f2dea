package checkpoint_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/core/safetensors"
)

// meta is like what a trainer keeps.
type meta struct {
	Cursor uint64
	Loss   float64
	Text   string
}

// state is a state of which every part depends on step; rows sets its size.
func state(step, rows int) *checkpoint.State {
	fill := func(name string, k int) optim.Tensor {
		t := optim.Tensor{Name: name, Rows: rows, Cols: 3, Data: make([]float32, 3*rows)}
		for i := range t.Data {
			t.Data[i] = float32(step*1000+k*100+i) / 3
		}
		return t
	}
	s := &checkpoint.State{Step: step,
		Weights:   []optim.Tensor{fill("blk.0.attn_q.weight", 1), fill("output.weight", 2)},
		Optimizer: []optim.Tensor{fill("blk.0.attn_q.weight.m", 3), fill("output.weight.v", 4)}}
	if err := s.SetMeta(meta{1<<63 + uint64(step), float64(step) / 3, strings.Repeat("x", step%7)}); err != nil {
		panic(err)
	}
	return s
}

func save(fsys fsx.FS, step int, o checkpoint.Options) (string, error) {
	return checkpoint.Save(fsys, "run", step, state(step, 4), o)
}

// latest loads the newest checkpoint and compares it with the state of its step.
func latest(t testing.TB, fsys fsx.FS) (step int, skipped []error) {
	path, skipped, err := checkpoint.Latest(fsys, "run")
	require.NoError(t, err)
	return load(t, fsys, path), skipped
}

func load(t testing.TB, fsys fsx.FS, path string) int {
	s, err := checkpoint.Load(fsys, path)
	require.NoError(t, err)
	require.Equal(t, state(s.Step, 4), s)
	return s.Step
}

func steps(t testing.TB, fsys fsx.FS) (list []int) {
	infos, err := checkpoint.List(fsys, "run")
	require.NoError(t, err)
	for _, i := range infos {
		list = append(list, i.Step)
	}
	return list
}

func names(t testing.TB, fsys fsx.FS, dir string) (list []string) {
	entries, err := fsys.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestSaveAndLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "run")
	_, _, err := checkpoint.Latest(nil, dir)
	require.ErrorIs(t, err, checkpoint.ErrNone)
	path, err := checkpoint.Save(nil, dir, 1234, state(1234, 4), checkpoint.Options{Score: 1.25})
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "step-00001234"), path)
	require.Equal(t, []string{"LATEST", "step-00001234"}, names(t, fsx.OS(), dir))
	require.Equal(t, []string{"MANIFEST", "optimizer.safetensors", "state.json", "weights.safetensors"}, names(t, fsx.OS(), path))
	b, err := os.ReadFile(filepath.Join(dir, "LATEST"))
	require.NoError(t, err)
	require.Equal(t, "step-00001234\n", string(b))
	got, skipped, err := checkpoint.Latest(nil, dir)
	require.NoError(t, err)
	require.Empty(t, skipped)
	require.Equal(t, path, got)
	require.Equal(t, 1234, load(t, nil, path))
	s, err := checkpoint.Load(nil, path)
	require.NoError(t, err)
	var m meta
	require.NoError(t, s.GetMeta(&m))
	require.Equal(t, meta{1<<63 + 1234, 1234.0 / 3, "xx"}, m)
	infos, err := checkpoint.List(nil, dir)
	require.NoError(t, err)
	require.Len(t, infos, 1)
	require.Equal(t, 1.25, infos[0].Score)
	require.Positive(t, infos[0].Bytes)
	f, err := safetensors.Open(filepath.Join(path, "weights.safetensors"))
	require.NoError(t, err)
	require.Equal(t, []int{4, 3}, f.Tensor("output.weight").Shape)
	require.NoError(t, f.Close())
	// Equal states give equal bytes.
	again, err := checkpoint.Save(nil, dir+"2", 1234, state(1234, 4), checkpoint.Options{Score: 1.25})
	require.NoError(t, err)
	for _, name := range names(t, fsx.OS(), path) {
		a, err := os.ReadFile(filepath.Join(path, name))
		require.NoError(t, err)
		b, err := os.ReadFile(filepath.Join(again, name))
		require.NoError(t, err)
		require.Equal(t, a, b, name)
	}
}

func TestRotation(t *testing.T) {
	c := fsx.NewCrash(1)
	scores := []float64{5, 3, 4, 0, 6, 7, math.NaN(), 2.5, 8, 9}
	for i, score := range scores {
		_, err := save(c, i+1, checkpoint.Options{KeepLast: 2, KeepBest: 2, Score: score})
		require.NoError(t, err)
		if i == 4 {
			require.NoError(t, checkpoint.Keep(c, "run/step-00000004"))
		}
	}
	require.Equal(t, []int{10, 9, 8, 4, 2}, steps(t, c))
	infos, err := checkpoint.List(c, "run")
	require.NoError(t, err)
	require.True(t, infos[3].Kept)
	require.True(t, math.IsNaN(infos[3].Score))
	// All stay without a limit; a limit of one leaves the newest and the kept one.
	_, err = save(c, 11, checkpoint.Options{})
	require.NoError(t, err)
	require.Equal(t, []int{11, 10, 9, 8, 4, 2}, steps(t, c))
	_, err = save(c, 12, checkpoint.Options{KeepLast: 1})
	require.NoError(t, err)
	require.Equal(t, []int{12, 4}, steps(t, c))
	require.Equal(t, []string{"LATEST", "step-00000004", "step-00000012"}, names(t, c, "run"))
	require.ErrorContains(t, checkpoint.Keep(c, "run/step-00000099"), "MANIFEST")
}

// TestAgain goes back to an earlier step: what is saved later is newer.
func TestAgain(t *testing.T) {
	c := fsx.NewCrash(1)
	for _, step := range []int{10, 20, 15, 20, 20} {
		_, err := save(c, step, checkpoint.Options{})
		require.NoError(t, err)
	}
	require.Equal(t, []int{20, 20, 15, 20, 10}, steps(t, c))
	path, _, err := checkpoint.Latest(c, "run")
	require.NoError(t, err)
	require.Equal(t, "run/step-00000020.2", path)
	_, err = save(c, 16, checkpoint.Options{KeepLast: 2})
	require.NoError(t, err)
	require.Equal(t, []int{16, 20}, steps(t, c))
	step, _ := latest(t, c)
	require.Equal(t, 16, step)
}

// write replaces the contents of a file.
func write(t testing.TB, fsys fsx.FS, path string, b []byte) {
	f, err := fsx.Create(fsys, path)
	require.NoError(t, err)
	_, err = f.Write(b)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func read(t testing.TB, fsys fsx.FS, path string) []byte {
	b, err := fsx.ReadFile(fsys, path, 1<<30)
	require.NoError(t, err)
	return b
}

var files = []string{"MANIFEST", "weights.safetensors", "optimizer.safetensors", "state.json"}

// TestDamage changes each byte of each file of the newest checkpoint, and cuts
// each file short: the one before is used, and the bad file named.
func TestDamage(t *testing.T) {
	c := fsx.NewCrash(1)
	for _, step := range []int{1, 2} {
		_, err := save(c, step, checkpoint.Options{})
		require.NoError(t, err)
	}
	found := 0
	check := func(name, want string) {
		found++
		step, skipped := latest(t, c)
		require.Equal(t, 1, step)
		require.Len(t, skipped, 1)
		var e *checkpoint.Error
		require.ErrorAs(t, skipped[0], &e)
		require.Equal(t, "run/step-00000002/"+name, e.Path)
		require.ErrorContains(t, e, want)
		_, err := checkpoint.Load(c, "run/step-00000002")
		require.ErrorAs(t, err, &e)
		require.Equal(t, "run/step-00000002/"+name, e.Path)
	}
	for _, name := range files {
		path := "run/step-00000002/" + name
		good := read(t, c, path)
		for i := range good {
			bad := slices.Clone(good)
			bad[i] ^= 1 << (i % 8)
			write(t, c, path, bad)
			check(name, "expected")
		}
		for _, n := range []int{0, 1, len(good) / 2, len(good) - 1} {
			write(t, c, path, good[:n])
			check(name, "expected")
		}
		write(t, c, path, append(slices.Clone(good), 0))
		check(name, "expected")
		require.NoError(t, c.Remove(path))
		check(name, "")
		write(t, c, path, good)
		step, skipped := latest(t, c)
		require.Equal(t, 2, step)
		require.Empty(t, skipped)
	}
	t.Logf("RELIABILITY | a bit of each byte of the newest checkpoint flipped, or its files cut short: found, the file named, the checkpoint before it used | %d of %d | `core/checkpoint TestDamage` |", found, found)
	// No checkpoint is good: this is not the same as none.
	for _, dir := range []string{"run/step-00000001/", "run/step-00000002/"} {
		write(t, c, dir+"state.json", []byte("{}"))
	}
	_, skipped, err := checkpoint.Latest(c, "run")
	require.ErrorContains(t, err, "run: none of 2 checkpoints is good")
	require.ErrorContains(t, err, "checkpoint: run/step-00000002/state.json: has 2 bytes, expected")
	require.NotErrorIs(t, err, checkpoint.ErrNone)
	require.Len(t, skipped, 2)
	// Rotation counts neither, and removes neither.
	_, err = save(c, 3, checkpoint.Options{KeepLast: 1})
	require.NoError(t, err)
	require.Equal(t, []int{3, 2, 1}, steps(t, c))
}

// TestReadBack saves to a disk that loses what it says it wrote: nothing older is
// removed.
func TestReadBack(t *testing.T) {
	c := fsx.NewCrash(1)
	_, err := save(c, 1, checkpoint.Options{KeepLast: 1})
	require.NoError(t, err)
	path, err := save(forgetful{c}, 2, checkpoint.Options{KeepLast: 1})
	require.ErrorContains(t, err, "older ones were not removed")
	require.ErrorContains(t, err, "step-00000002/weights.safetensors")
	require.Empty(t, path)
	step, skipped := latest(t, c)
	require.Equal(t, 1, step)
	require.Len(t, skipped, 1)
}

// forgetful is a disk that writes zeros at the end of weights.
type forgetful struct{ fsx.FS }

func (f forgetful) OpenFile(name string, flag int, perm fs.FileMode) (fsx.File, error) {
	file, err := f.FS.OpenFile(name, flag, perm)
	if err == nil && strings.HasSuffix(name, "weights.safetensors") {
		return forgetfulFile{file}, nil
	}
	return file, err
}

type forgetfulFile struct{ fsx.File }

func (f forgetfulFile) Write(b []byte) (int, error) {
	return f.File.Write(append(slices.Clone(b[:len(b)-1]), b[len(b)-1]^0x80))
}

func TestSaveErrors(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	good := func() *checkpoint.State { return state(1, 4) }
	for _, c := range []struct {
		want string
		step int
		f    func(s *checkpoint.State)
	}{
		{"step is -1", -1, func(s *checkpoint.State) {}},
		{"is not JSON", 1, func(s *checkpoint.State) { s.Meta = []byte("{") }},
		{"has 12 values, expected [4 4]", 1, func(s *checkpoint.State) { s.Weights[0].Cols = 4 }},
		{`optimizer.safetensors: safetensors: tensor "output.weight.v" stands twice`, 1, func(s *checkpoint.State) { s.Optimizer[0].Name = s.Optimizer[1].Name }},
	} {
		s := good()
		c.f(s)
		path, err := checkpoint.Save(nil, dir, c.step, s, checkpoint.Options{})
		require.ErrorContains(t, err, c.want)
		require.Empty(t, path)
		_, err = os.Stat(dir)
		require.ErrorIs(t, err, fs.ErrNotExist, "nothing is written")
	}
	s := good()
	require.ErrorContains(t, s.SetMeta(math.NaN()), "NaN")
	require.ErrorContains(t, s.GetMeta(new(int)), "state")
	require.NoError(t, os.WriteFile(dir, nil, 0o666))
	_, err := checkpoint.Save(nil, dir, 1, s, checkpoint.Options{})
	require.ErrorContains(t, err, "directory cannot be")
	_, _, err = checkpoint.Latest(nil, dir)
	require.ErrorContains(t, err, "directory cannot be read")
	require.NotErrorIs(t, err, checkpoint.ErrNone)
}

func TestWeights(t *testing.T) {
	params := func() []optim.Param {
		var list []optim.Param
		for _, x := range state(1, 4).Weights {
			list = append(list, optim.Param{Name: x.Name, Rows: x.Rows, Cols: x.Cols, W: make([]float32, len(x.Data))})
		}
		return list
	}
	p, s := params(), state(1, 4)
	require.NoError(t, s.CopyWeights(p))
	require.Equal(t, s.Weights, checkpoint.Weights(p))
	p = params()
	p[1].Rows, p[1].Cols = 3, 4
	require.ErrorContains(t, s.CopyWeights(p), `"output.weight" are [4 3] there and [3 4] here`)
	p = params()
	p[1].Name = "other"
	require.ErrorContains(t, s.CopyWeights(p), `no weights "other"`)
	require.ErrorContains(t, s.CopyWeights(params()[:1]), `["output.weight"] are not in this model`)
	require.Zero(t, p[0].W[0], "nothing was changed")
}

// TestSpeed is about gross mistakes: it takes about 0.15 s besides the syncs.
func TestSpeed(t *testing.T) {
	s := &checkpoint.State{Weights: []optim.Tensor{{Name: "w", Rows: 1, Cols: 15e6, Data: make([]float32, 15e6)}}}
	dir := t.TempDir()
	start := time.Now()
	for step := range 2 {
		_, err := checkpoint.Save(unsynced{fsx.OS()}, dir, step, s, checkpoint.Options{KeepLast: 1})
		require.NoError(t, err)
	}
	took := time.Since(start) / 2
	t.Logf("60 MB in %v without syncs", took)
	require.Less(t, took, 10*time.Second)
}

// unsynced leaves out the syncs of files.
type unsynced struct{ fsx.FS }

func (f unsynced) OpenFile(name string, flag int, perm fs.FileMode) (fsx.File, error) {
	file, err := f.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return unsyncedFile{file}, nil
}

type unsyncedFile struct{ fsx.File }

func (unsyncedFile) Sync() error { return nil }

func ExampleLatest() {
	path, skipped, err := checkpoint.Latest(nil, "no/such/run")
	for _, bad := range skipped {
		fmt.Println("warning:", bad)
	}
	switch {
	case errors.Is(err, checkpoint.ErrNone):
		fmt.Println("starting anew")
	case err != nil:
		fmt.Println(err)
	default:
		fmt.Println("continuing from", path)
	}
	// Output: starting anew
}
