package tune

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

func TestRate(t *testing.T) {
	tm := team.New(2, team.Options{})
	defer tm.Close()
	// 3 operations in each of 2000 iterations, which take at least 2 ms on each worker:
	// at most 2·3·2000 operations in 2 ms.
	var calls atomic.Int64
	p := kernels.Peak{Name: "sleep", Ops: 3, Run: func(n int) {
		calls.Add(1)
		require.Equal(t, 2000, n)
		time.Sleep(2 * time.Millisecond)
	}}
	rate, err := Rate(tm, p, 4, 8*time.Millisecond)
	require.NoError(t, err)
	require.Greater(t, rate, 6e4)
	require.LessOrEqual(t, rate, 6e6)
	// The number of calls doubles until 4 ms are reached: 1 or 1 and 2, and then all
	// tries have at least 1, on both workers.
	require.GreaterOrEqual(t, calls.Load(), int64(8))

	p.Run = func(int) { panic("no") }
	_, err = Rate(tm, p, 1, time.Millisecond)
	require.ErrorContains(t, err, "tune: ")
}

func TestTrainPeak(t *testing.T) {
	limits, ok := kernels.Roofline()
	p, got := TrainPeak(true)
	require.Equal(t, ok, got)
	if !ok {
		return
	}
	require.Equal(t, limits.FMA.Name, p.Name)
	p, _ = TrainPeak(false)
	if limits.DotBF16.Run != nil {
		require.Equal(t, limits.DotBF16.Name, p.Name)
	} else {
		require.Equal(t, limits.FMA.Name, p.Name)
	}
}
