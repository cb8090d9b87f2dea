package train

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/optim"
)

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

// A gradient that is no number changes nothing: not the weights, not the optimizer.
func TestNonFiniteIsSkipped(t *testing.T) {
	dir := prepared(t)
	for _, v := range []float64{math.NaN(), math.Inf(1)} {
		fsys := fsx.NewCrash(1)
		var log bytes.Buffer
		var before []float32
		weights := map[string][]float32{}
		res, err := train(t, settings(t, dir), fsys, keep(weights, newFake), func(o *Options) {
			o.Log = &log
			o.hooks.gradients = func(step int, params []optim.Param) {
				switch step {
				case 4:
					before = append(before, weights["w"]...)
					params[1].G[7] = float32(v)
				case 5:
					require.Equal(t, before, weights["w"])
				}
			}
		})
		require.NoError(t, err)
		require.Equal(t, 1, res.Skipped)
		require.Equal(t, map[Kind]int{NonFinite: 1}, res.Events)
		m := lines(t, fsys)[3]
		require.Equal(t, true, m["skipped"])
		require.Equal(t, "the gradient of bias", m["non_finite"])
		require.Contains(t, fmt.Sprint(m["events"]), "the gradient of bias is not finite; the step was skipped")
		require.Contains(t, log.String(), "warning: step 4: the gradient of bias is not finite")
		require.NotEqual(t, before, weights["w"])
	}
}

// A loss that is no number stops the update even where the gradients are numbers.
func TestNonFiniteLossIsSkipped(t *testing.T) {
	fsys := fsx.NewCrash(1)
	res, err := train(t, settings(t, prepared(t)), fsys, func(o *Options) {
		o.hooks.network = func(r *run) (network, error) {
			n, err := newFake(r)
			return &sick{network: n}, err
		}
	})
	require.NoError(t, err)
	require.Equal(t, 1, res.Skipped)
	m := lines(t, fsys)[2]
	require.Equal(t, "the loss", m["non_finite"])
	require.Nil(t, m["loss"])
}

// sick gives a loss that is no number in its fifth pass: the first of step 3.
type sick struct {
	network
	passes int
}

func (s *sick) Backward(b *model.TrainBatch, l model.LossOptions) (model.LossSum, error) {
	sum, err := s.network.Backward(b, l)
	if s.passes++; s.passes == 5 {
		sum.Objective = math.NaN()
	}
	return sum, err
}

func TestDivergenceStops(t *testing.T) {
	dir, fsys := prepared(t), fsx.NewCrash(1)
	c := settings(t, dir, "anomaly.patience=3", "train.keep_last=1")
	res, err := train(t, c, fsys, func(o *Options) {
		o.hooks.gradients = func(step int, params []optim.Param) {
			if step >= 7 {
				params[0].G[0] = float32(math.Inf(-1))
			}
		}
	})
	require.ErrorIs(t, err, ErrDiverged)
	require.EqualError(t, err, "train: stopped: train: step 9: the training diverged: 3 bad steps in a row")
	require.Equal(t, 9, res.Steps)
	require.True(t, strings.HasPrefix(res.Checkpoint, "run/diverged/"), res.Checkpoint)
	s, err := checkpoint.Load(fsys, res.Checkpoint)
	require.NoError(t, err)
	require.Equal(t, 9, s.Step)
	list, err := checkpoint.List(fsys, "run/checkpoints")
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, 5, list[0].Step)
	require.True(t, list[0].Kept)
	// Once the cause is gone the run goes on from before.
	res, err = train(t, c, fsys)
	require.NoError(t, err)
	require.Equal(t, 5, res.Resumed)
	require.Len(t, lines(t, fsys), 12)
}

func TestCollapseIsReported(t *testing.T) {
	fsys := fsx.NewCrash(1)
	res, err := train(t, settings(t, prepared(t), "anomaly.window=8"), fsys, func(o *Options) {
		o.hooks.network = func(r *run) (network, error) {
			n, err := newFake(r)
			n.(*fake).cosine = 0.99999
			return n, err
		}
	})
	require.NoError(t, err)
	require.Equal(t, map[Kind]int{Collapse: 4}, res.Events)
	require.Contains(t, fmt.Sprint(lines(t, fsys)[8]["events"]), "the mean cosine between residual streams")
}

// A disk that is full while a checkpoint is saved: training goes on, the failure is
// told, counted, and leaves nothing that looks like a checkpoint.
func TestDiskFullWhileSaving(t *testing.T) {
	dir := prepared(t)
	whole := fsx.NewCrash(1)
	want := map[string][]float32{}
	_, err := train(t, settings(t, dir), whole, keep(want, newFake))
	require.NoError(t, err)

	inner := fsx.NewCrash(1)
	fault := fsx.NewFault(inner, fsx.FaultOptions{FailAt: 1, Err: syscall.ENOSPC, Short: true, Only: func(o fsx.Op) bool {
		return o.Kind == "write" && strings.Contains(o.Path, "checkpoints/") && strings.Contains(o.Path, "00000005")
	}})
	var log bytes.Buffer
	got := map[string][]float32{}
	res, err := train(t, settings(t, dir), fault, keep(got, newFake), func(o *Options) { o.Log = &log })
	require.NoError(t, err)
	require.True(t, fault.Failed())
	require.Equal(t, want, got)
	require.Equal(t, 1, res.Failed)
	require.Contains(t, log.String(), "warning: step 5: checkpoint not saved")
	require.Contains(t, log.String(), syscall.ENOSPC.Error())
	next := lines(t, inner)[5]
	require.Contains(t, fmt.Sprint(next["events"]), "checkpoint not saved")
	require.EqualValues(t, 1, next["write_failures"])
	list, err := checkpoint.List(inner, "run/checkpoints")
	require.NoError(t, err)
	require.Len(t, list, 2) // of steps 10 and 12
}

// A disk that is full for good: the run ends with an error that says so, for its
// weights are nowhere.
func TestDiskFullForGood(t *testing.T) {
	inner := fsx.NewCrash(1)
	fault := fsx.NewFault(inner, fsx.FaultOptions{Space: 20000})
	res, err := train(t, settings(t, prepared(t)), fault)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Equal(t, 12, res.Steps)
	require.Greater(t, res.Failed, 2)
	_, _, err = checkpoint.Latest(inner, "run/checkpoints")
	require.ErrorIs(t, err, checkpoint.ErrNone)
}

// A line of metrics that cannot be written is counted; the next ones are whole.
func TestMetricsFailure(t *testing.T) {
	inner := fsx.NewCrash(1)
	fault := fsx.NewFault(inner, fsx.FaultOptions{FailAt: 4, Short: true, Only: func(o fsx.Op) bool {
		return o.Kind == "write" && strings.HasSuffix(o.Path, "metrics.jsonl")
	}})
	res, err := train(t, settings(t, prepared(t)), fault)
	require.NoError(t, err)
	require.Equal(t, 1, res.Failed)
	var steps []int
	for _, m := range lines(t, inner) {
		steps = append(steps, int(m["step"].(float64)))
	}
	require.Equal(t, []int{1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12}, steps)
}

// Power is lost after any change of the disk, inside saves too, with any part of what
// was not synced: the resumed run comes to the same weights.
func TestPowerLoss(t *testing.T) {
	dir := prepared(t)
	whole := fsx.NewCrash(1)
	want := map[string][]float32{}
	_, err := train(t, settings(t, dir), whole, keep(want, newFake))
	require.NoError(t, err)
	ops := len(whole.Ops())
	const points = 15
	for i := range points {
		n := i*ops/points + i%3
		for _, survive := range [][2]int{{0, 0}, {50, 50}, {100, 100}}[i%3 : i%3+1] {
			disk := fsx.NewCrash(uint64(i))
			disk.StopAfter(n, func() { train(t, settings(t, dir), disk) })
			at := disk.LastOp()
			disk = disk.AfterPowerLoss(survive[0], survive[1])
			got := map[string][]float32{}
			res, err := train(t, settings(t, dir), disk, keep(got, newFake))
			require.NoError(t, err, "after %d of %d changes, at %v", n, ops, at)
			require.Equal(t, want, got, "after %d of %d changes, at %v, resumed from step %d", n, ops, at, res.Resumed)
			checkMetrics(t, disk)
		}
	}
}

// checkMetrics checks that no step stands twice and that steps rise: after a loss of
// power lines may be missing, but those before a checkpoint were synced with it.
func checkMetrics(t *testing.T, fsys fsx.FS) {
	last := 0
	for _, l := range bytes.Split(bytes.TrimSpace(readAll(t, fsys, "run/metrics.jsonl")), []byte("\n")) {
		var m struct{ Step int }
		require.NoError(t, json.Unmarshal(l, &m), "%q", l)
		require.Equal(t, last+1, m.Step)
		last = m.Step
	}
	require.Equal(t, 12, last)
}
