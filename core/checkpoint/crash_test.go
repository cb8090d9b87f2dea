package checkpoint_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/internal/fsx"
)

// prepared is a disk with checkpoints of steps 1 to n and one half removed.
func prepared(t *testing.T, seed uint64, n int) *fsx.Crash {
	c := fsx.NewCrash(seed)
	require.NoError(t, c.MkdirAll("run", 0o777))
	require.NoError(t, c.SyncDir("."))
	for step := 1; step <= n; step++ {
		_, err := save(c, step, checkpoint.Options{Score: float64(step)})
		require.NoError(t, err)
	}
	if n > 0 {
		require.NoError(t, c.MkdirAll("run/step-00000009.tmp", 0o777))
		write(t, c, "run/step-00000009.tmp/weights.safetensors", []byte("half"))
		require.NoError(t, c.SyncDir("run"))
		require.NoError(t, c.SyncDir("run/step-00000009.tmp"))
	}
	return c
}

// clean says that nothing but checkpoints and LATEST is in run.
func clean(t *testing.T, fsys fsx.FS) {
	for _, name := range names(t, fsys, "run") {
		require.True(t, name == "LATEST" || !strings.Contains(name, "tmp"), name)
	}
}

// TestPowerLoss cuts the power after every change of the disk, with all, some or
// nothing surviving of what was not synced. What is found is the last checkpoint
// or the one before it, whole, and the training goes on.
func TestPowerLoss(t *testing.T) {
	points := 0
	for _, first := range []int{0, 1, 3} {
		for n := 0; ; n++ {
			var c *fsx.Crash
			done := false
			for _, survive := range [][2]int{{0, 0}, {100, 0}, {0, 100}, {50, 50}, {50, 100}, {100, 100}} {
				c = prepared(t, uint64(n+1), first)
				var path string
				var err error
				done = c.StopAfter(n, func() { path, err = save(c, first+1, checkpoint.Options{KeepLast: 2}) })
				require.Equal(t, done, err == nil)
				after := c.AfterPowerLoss(survive[0], survive[1])
				points++
				found, skipped, latestErr := checkpoint.Latest(after, "run")
				switch {
				case first == 0 && path == "" && errors.Is(latestErr, checkpoint.ErrNone):
				default:
					require.NoError(t, latestErr, "after %d changes, %v", n, c.LastOp())
					step := load(t, after, found)
					require.True(t, step == first+1 || path == "" && step == first,
						"after %d changes, %v: step %d, Save returned %q", n, c.LastOp(), step, path)
				}
				require.Empty(t, skipped, "after %d changes, %v", n, c.LastOp())
				// The training goes on.
				_, err = save(after, first+2, checkpoint.Options{KeepLast: 2})
				require.NoError(t, err)
				step, skipped := latest(t, after)
				require.Equal(t, first+2, step)
				require.Empty(t, skipped)
				clean(t, after)
				require.LessOrEqual(t, len(steps(t, after)), 2)
			}
			if done {
				clean(t, c)
				break
			}
		}
	}
	t.Logf("RELIABILITY | loss of power after each change of the disk of a save, with none, some or all of what was not synced surviving: the last checkpoint or the one before it, whole | %d of %d restarts | `core/checkpoint TestPowerLoss` |", points, points)
}

// TestEveryOperationFails fails each operation of a save in turn, in several ways.
func TestEveryOperationFails(t *testing.T) {
	points := 0
	for _, o := range []fsx.FaultOptions{{}, {Short: true}, {Err: syscall.ENOSPC, Short: true}, {Err: syscall.EACCES}} {
		for n := 1; ; n++ {
			c := prepared(t, 1, 3)
			o.FailAt = n
			f := fsx.NewFault(c, o)
			path, err := save(f, 4, checkpoint.Options{KeepLast: 2, Score: 5})
			if !f.Failed() {
				require.NoError(t, err)
				break
			}
			points++
			ops := f.Ops()
			step, skipped := latest(t, c)
			require.Empty(t, skipped, "operation %d, %v", n, ops[n-1])
			require.True(t, step == 4 || path == "" && step == 3, "operation %d, %v: step %d, path %q", n, ops[n-1], step, path)
			require.GreaterOrEqual(t, len(steps(t, c)), 2)
			if err == nil { // such as the close of a file that was only read
				require.Equal(t, 4, step)
			}
			// The next save works and cleans up.
			_, err = save(c, 5, checkpoint.Options{KeepLast: 2})
			require.NoError(t, err)
			step, _ = latest(t, c)
			require.Equal(t, 5, step)
			clean(t, c)
		}
	}
	t.Logf("RELIABILITY | each operation of a save fails with EIO, ENOSPC, EACCES or half a write: earlier checkpoints are whole, the next save works | %d of %d | `core/checkpoint TestEveryOperationFails` |", points, points)
}

// TestLoadFails fails each operation of Latest and Load: an error or the right
// state.
func TestLoadFails(t *testing.T) {
	c := prepared(t, 1, 2)
	for n := 1; ; n++ {
		f := fsx.NewFault(c, fsx.FaultOptions{FailAt: n})
		path, skipped, err := checkpoint.Latest(f, "run")
		if err == nil {
			step := load(t, c, path)
			require.True(t, step == 2 || len(skipped) == 1 && step == 1)
		} else {
			require.NotErrorIs(t, err, checkpoint.ErrNone)
		}
		if !f.Failed() {
			break
		}
	}
	for n := 1; ; n++ {
		f := fsx.NewFault(c, fsx.FaultOptions{FailAt: n})
		s, err := checkpoint.Load(f, "run/step-00000002")
		if err == nil {
			require.Equal(t, state(2, 4), s)
		} else {
			require.Nil(t, s)
			var e *checkpoint.Error
			require.ErrorAs(t, err, &e)
		}
		if !f.Failed() {
			break
		}
	}
}

// TestDiskFull lets the disk fill at every byte of a save.
func TestDiskFull(t *testing.T) {
	full := 0
	for space := int64(1); ; space++ {
		c := prepared(t, 1, 2)
		f := fsx.NewFault(c, fsx.FaultOptions{Space: space})
		path, err := save(f, 3, checkpoint.Options{KeepLast: 1})
		if err == nil {
			require.Equal(t, []int{3}, steps(t, c))
			break
		}
		full++
		require.ErrorIs(t, err, syscall.ENOSPC)
		step, skipped := latest(t, c)
		require.Empty(t, skipped)
		clean(t, c)
		if path != "" { // only LATEST had no room
			require.Equal(t, 3, step)
			continue
		}
		require.Equal(t, 2, step)
		require.Equal(t, []int{2, 1}, steps(t, c))
		require.ErrorContains(t, err, "run/step-00000003: not saved, it needs")
		require.ErrorContains(t, err, "earlier checkpoints are as they were")
	}
	t.Logf("RELIABILITY | the disk fills at each byte of a save: nothing half-written is taken for a checkpoint, earlier ones stay | %d of %d | `core/checkpoint TestDiskFull` |", full, full)
	require.Greater(t, full, 1000)
}

// little is a disk with so much free.
type little struct {
	fsx.FS
	free int64
}

func (l little) Free(string) (int64, bool) { return l.free, true }

// TestNoRoom: a save that the disk has no room for, with a fifth to spare, writes
// nothing and says what it needs and what there is.
func TestNoRoom(t *testing.T) {
	c := prepared(t, 1, 2)
	before := len(c.Ops())
	need, err := checkpoint.Room(state(3, 4))
	require.NoError(t, err)
	require.Greater(t, need, int64(4*4*3*4)) // four tensors of 4 rows and 3 columns
	_, err = save(little{c, need - 1}, 3, checkpoint.Options{})
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.EqualError(t, err, fmt.Sprintf("checkpoint: run/step-00000003: not saved, it needs %d bytes and %d are free; earlier checkpoints are as they were: %v", need, need-1, syscall.ENOSPC))
	require.NotContains(t, fmt.Sprint(c.Ops()[before:]), "create")
	step, _ := latest(t, c)
	require.Equal(t, 2, step)
	_, err = save(little{c, need}, 3, checkpoint.Options{})
	require.NoError(t, err)
}
