package train

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/tokenizer"
)

// copyData copies the prepared data to a directory that a test may damage.
func copyData(t testing.TB) string {
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(prepared(t))))
	return dir
}

// Every input that a training cannot start from is an error that names the thing, says
// what was expected, and what to do.
func TestBadInput(t *testing.T) {
	for _, c := range []struct {
		name   string
		sets   []string
		damage func(t *testing.T, dir string)
		want   string
		hint   string
	}{
		{name: "no length", sets: []string{"train.steps=0"}, want: "config: --set: train.steps: the run has no length", hint: "give train.steps or train.tokens"},
		{name: "no data", sets: []string{"data.path="}, want: "data.path: is required", hint: "nanochat data prepare"},
		{name: "data that is not there", sets: []string{"data.path=/nothing/here"}, want: "/nothing/here/manifest.json", hint: "run nanochat data prepare"},
		{name: "vocabulary", sets: []string{"model.vocab=300"}, want: "model.vocab: 300, but the data in", hint: "set it to 272"},
		{name: "no tokenizer", damage: func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, "tokenizer.json"))) },
			want: "data.tokenizer: there is no file", hint: "name the tokenizer that prepared the data"},
		{name: "damaged tokenizer", damage: func(t *testing.T, dir string) {
			require.NoError(t, os.Truncate(filepath.Join(dir, "tokenizer.json"), 100))
		}, want: "tokenizer.json"},
		{name: "another tokenizer", damage: func(t *testing.T, dir string) {
			other, err := tokenizer.NewByteLevel(300)
			require.NoError(t, err)
			f, err := os.Create(filepath.Join(dir, "tokenizer.json"))
			require.NoError(t, err)
			require.NoError(t, other.WriteHF(f))
			require.NoError(t, f.Close())
		}, want: "is not the tokenizer that prepared the data", hint: "prepare the data again"},
		{name: "damaged shard", damage: func(t *testing.T, dir string) {
			m, err := data.ReadManifest(dir)
			require.NoError(t, err)
			name := filepath.Join(dir, m.Splits[data.Train].Shards[0].File)
			b, err := os.ReadFile(name)
			require.NoError(t, err)
			b[len(b)-3] ^= 4
			require.NoError(t, os.WriteFile(name, b, 0o666))
		}, want: ".shard", hint: "data prepare"},
		{name: "no room for a network", sets: []string{"model.context=64k", "train.seq_len=64k", "train.rows=2", "train.micro_rows=2"}, want: "131072 tokens"},
		{name: "weights that are not there", sets: []string{"train.init_from=/nothing.gguf"}, want: "/nothing.gguf"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := prepared(t)
			if c.damage != nil {
				dir = copyData(t)
				c.damage(t, dir)
			}
			fsys := fsx.NewCrash(1)
			_, err := train(t, settings(t, dir, c.sets...), fsys, func(o *Options) { o.hooks.network = newNetwork })
			require.ErrorContains(t, err, c.want)
			if c.hint != "" {
				require.Contains(t, hintOf(err), c.hint)
			}
			_, err = fsys.Stat("run/metrics.jsonl")
			require.Error(t, err, "a run that cannot start writes nothing")
		})
	}
}

// hintOf is the hint that the command line shows for an error.
func hintOf(err error) string {
	for ; err != nil; err = unwrap(err) {
		switch e := err.(type) {
		case *Error:
			return e.Hint
		case *config.Error:
			return e.Hint
		case *data.Error:
			return e.Hint
		case *tokenizer.Error:
			return e.Hint
		}
	}
	return ""
}

func unwrap(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok {
		return u.Unwrap()
	}
	return nil
}

// stopped is a disk with a run that was stopped after a step.
func stopped(t testing.TB, c *config.Config, at int) *fsx.Crash {
	fsys := fsx.NewCrash(1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := Run(ctx, c, Options{FS: fsys, Peak: 1e12, hooks: hooks{network: newFake}, Progress: func(p *Progress) {
		if p.Step == at {
			cancel()
		}
	}})
	require.ErrorIs(t, err, context.Canceled)
	return fsys
}

// The schedule, the length and the rates may change at a resume, and are reported.
func TestChangesAtResume(t *testing.T) {
	dir := prepared(t)
	fsys := stopped(t, settings(t, dir), 6)
	var log bytes.Buffer
	res, err := train(t, settings(t, dir, "train.steps=9", "schedule.decay=3", "optim.matrix.lr=0.01", "train.rows=8"), fsys, func(o *Options) { o.Log = &log })
	require.NoError(t, err)
	require.Equal(t, 9, res.Steps)
	require.EqualValues(t, 6*4*32+3*8*32, res.Tokens)
	for _, want := range []string{
		"changed since the checkpoint: train.steps = 9, was 12", "changed since the checkpoint: schedule.decay = 3, was 0.5",
		"changed since the checkpoint: optim.matrix.lr = 0.01, was 0.05", "resumed run/checkpoints/step-00000006 after step 6 of 9",
	} {
		require.Contains(t, log.String(), want)
	}
	all := lines(t, fsys)
	require.Len(t, all, 9)
	require.InDelta(t, 0.05, all[5]["lr"], 1e-9)
	require.InDelta(t, 0.01, all[6]["lr"], 1e-9)
	require.Less(t, all[8]["lr"], all[7]["lr"])
	// The rest of a run that is over is nothing.
	res, err = train(t, settings(t, dir, "train.steps=9"), fsys)
	require.NoError(t, err)
	require.Equal(t, 9, res.Resumed)
	require.Len(t, lines(t, fsys), 9)
}

func TestRefusedAtResume(t *testing.T) {
	dir := prepared(t)
	c := settings(t, dir)
	fsys := stopped(t, c, 6)
	before := readAll(t, fsys, "run/metrics.jsonl")
	other := filepath.Join(t.TempDir(), "other")
	prepareData(t, other, "x != %d")
	for _, c := range []struct {
		name   string
		sets   []string
		resume string
		want   string
	}{
		{"model", []string{"model.ffn=96"}, "", "config: --set: model.ffn: is 96, but the run began with 64"},
		{"seed", []string{"train.seed=4"}, "", "train.seed: is 4, but the run began with 3"},
		{"data", []string{"data.path=" + other}, "", "saved with dataset"},
		{"optimizer", []string{"optim.matrix.rule=lion"}, "", `state tensor "w.v" belongs to no parameter`},
		{"shorter than what was done", []string{"train.steps=5"}, "", "6 steps, more than the 5 of the configuration"},
		{"none over a run", nil, ResumeNone, "run holds a run of 6 steps"},
		{"path that is not there", nil, "run/checkpoints/step-7", "run/checkpoints/step-7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := train(t, settings(t, dir, c.sets...), fsys, func(o *Options) { o.Resume = c.resume })
			require.ErrorContains(t, err, c.want)
			if c.resume != "run/checkpoints/step-7" {
				require.Regexp(t, "resume|--out", hintOf(err))
			}
			require.Equal(t, before, readAll(t, fsys, "run/metrics.jsonl"), "nothing was changed")
		})
	}
}

// A damaged checkpoint is named and the one before it used.
func TestDamagedCheckpoint(t *testing.T) {
	dir := prepared(t)
	fsys := stopped(t, settings(t, dir), 8)
	f, err := fsys.OpenFile("run/checkpoints/step-00000008/weights.safetensors", os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0xff, 0x7f}, 5000)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	var log bytes.Buffer
	res, err := train(t, settings(t, dir), fsys, func(o *Options) { o.Log = &log })
	require.NoError(t, err)
	require.Equal(t, 5, res.Resumed)
	require.Contains(t, log.String(), "warning: checkpoint")
	require.Contains(t, log.String(), "step-00000008")
	// Named by its path it is an error.
	_, err = train(t, settings(t, dir), stoppedAndDamaged(t, dir), func(o *Options) { o.Resume = "run/checkpoints/step-00000006" })
	var ce *checkpoint.Error
	require.ErrorAs(t, err, &ce)
	require.Contains(t, err.Error(), "step-00000006")
}

func stoppedAndDamaged(t testing.TB, dir string) *fsx.Crash {
	fsys := stopped(t, settings(t, dir), 6)
	require.NoError(t, fsys.Remove("run/checkpoints/step-00000006/state.json"))
	return fsys
}

// A checkpoint of an earlier step may be named: later lines of metrics go.
func TestResumeByPath(t *testing.T) {
	dir := prepared(t)
	whole := fsx.NewCrash(1)
	want := map[string][]float32{}
	_, err := train(t, settings(t, dir), whole, keep(want, newFake))
	require.NoError(t, err)
	fsys := stopped(t, settings(t, dir), 8)
	got := map[string][]float32{}
	res, err := train(t, settings(t, dir), fsys, keep(got, newFake), func(o *Options) { o.Resume = "run/checkpoints/step-00000005" })
	require.NoError(t, err)
	require.Equal(t, 5, res.Resumed)
	require.Equal(t, want, got)
	require.Equal(t, lines(t, whole), lines(t, fsys))
}

func TestPlan(t *testing.T) {
	fsys := fsx.NewCrash(1)
	p, err := MakePlan(context.Background(), settings(t, prepared(t)), Options{FS: fsys, Peak: 1e12})
	require.NoError(t, err)
	require.Equal(t, 12, p.Steps)
	require.EqualValues(t, 12*4*32, p.Tokens)
	require.Positive(t, p.StepSeconds)
	require.InEpsilon(t, 12*p.StepSeconds, p.Seconds, 1e-9)
	require.Positive(t, p.Memory.Total())
	require.Empty(t, fsys.Ops(), "a plan writes nothing")
	require.False(t, strings.Contains(p.Memory[0].Name, "\n"))
}

// What a run will take is known without taking it; what does not fit is not begun.
func TestMemory(t *testing.T) {
	for _, sets := range [][]string{
		{"model.dim=128", "model.ffn=512", "model.layers=3", "optim.matrix.rule=muon"},
		{"model.dim=128", "model.ffn=512", "model.layers=3", "model.streams=2", "train.recompute=true", "train.f32=true"},
		{"model.dim=128", "model.ffn=512", "train.float=true", "model.tie_embeddings=false"},
	} {
		c := settings(t, prepared(t), sets...)
		p, err := MakePlan(context.Background(), c, Options{FS: fsx.NewCrash(1), Peak: 1e12})
		require.NoError(t, err)
		require.True(t, p.Fits())
		f, err := MakePlan(context.Background(), c, Options{FS: fsx.NewCrash(1), memory: 1000, hooks: hooks{network: func(*run) (network, error) {
			t.Error("a network was made")
			return nil, nil
		}}})
		require.NoError(t, err)
		require.False(t, f.Fits())
		require.Zero(t, f.StepSeconds)
		require.EqualValues(t, 1000, f.MachineMemory)
		require.InEpsilon(t, p.Memory.Total(), f.Memory.Total(), 0.02, "%v\n%v", p.Memory, f.Memory)
		require.Len(t, f.Memory, len(p.Memory))
	}
	fsys := fsx.NewCrash(1)
	_, err := train(t, settings(t, prepared(t)), fsys, func(o *Options) { o.memory = 1000 })
	require.ErrorContains(t, err, " of memory and this machine has 1000 bytes")
	require.Contains(t, hintOf(err), "train.micro_rows")
	require.Empty(t, fsys.Ops())
}

// little is a disk with so much free.
type little struct {
	fsx.FS
	free int64
}

func (l little) Free(string) (int64, bool) { return l.free, true }

// A disk that has no room for a checkpoint is told before the first step, one that has
// no room for all of them is warned of.
func TestRoom(t *testing.T) {
	var log bytes.Buffer
	run := func(free int64) error {
		log.Reset()
		_, err := train(t, settings(t, prepared(t)), little{fsx.NewCrash(1), free}, func(o *Options) {
			o.Log = &log
			o.Progress = func(*Progress) {
				if free < 1e6 {
					t.Error("a step was taken")
				}
			}
		})
		return err
	}
	// A checkpoint has the weights and two moments of 272·273 numbers.
	const one = 272 * 273 * 4 * 3
	err := run(one)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(t, err, "run has 870.2 KiB free, and a checkpoint needs 1.0 MiB")
	require.Contains(t, hintOf(err), "--out")
	require.NoError(t, run(one*2))
	require.Contains(t, log.String(), "warning: run has 1.7 MiB free, and the 3 checkpoints that the run keeps need 3.1 MiB")
	require.NoError(t, run(one*4))
	require.NotContains(t, log.String(), "warning")
}

// Two trainings do not write into one directory.
func TestOneWriter(t *testing.T) {
	out := filepath.Join(t.TempDir(), "run")
	c := settings(t, prepared(t), "train.out="+out, "train.steps=4", "schedule.decay=1")
	var second error
	_, err := train(t, c, fsx.OS(), func(o *Options) {
		o.Progress = func(p *Progress) {
			if p.Step == 2 {
				_, second = train(t, c, fsx.OS())
			}
		}
	})
	require.NoError(t, err)
	require.EqualError(t, second, "train: another training is writing to "+out)
	require.Contains(t, hintOf(second), "--out")
	_, err = train(t, c, fsx.OS()) // the lock is given back
	require.NoError(t, err)
	require.Equal(t, 4, bytes.Count(readAll(t, fsx.OS(), filepath.Join(out, "metrics.jsonl")), []byte("\n")))
}
