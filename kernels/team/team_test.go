package team

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// sizes are teams smaller than, as large as and larger than most machines.
var sizes = []int{1, 2, 3, 4, 7, 16, 33}

func each(t *testing.T, f func(t *testing.T, tm *Team)) {
	t.Helper()
	for _, n := range sizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			tm := New(n, Options{})
			defer tm.Close()
			require.Equal(t, n, tm.Size())
			f(t, tm)
		})
	}
}

func TestRunCallsEveryWorkerOnce(t *testing.T) {
	each(t, func(t *testing.T, tm *Team) {
		calls := make([]int, tm.Size())
		for range 200 {
			require.NoError(t, tm.Run(func(w *Worker) {
				if w.N != tm.Size() {
					panic("wrong N")
				}
				calls[w.ID]++
			}))
		}
		for id, n := range calls {
			require.Equal(t, 200, n, "worker %d", id)
		}
	})
}

// A worker's plain writes before a barrier are seen by all after it: every worker
// sums what all wrote in the step before.
func TestBarrierOrdersWrites(t *testing.T) {
	each(t, func(t *testing.T, tm *Team) {
		n := tm.Size()
		var cells [2][64]int
		var wrong atomic.Int64
		require.NoError(t, tm.Run(func(w *Worker) {
			for step := range 300 {
				cur := &cells[step%2]
				cur[w.ID] = step*100 + w.ID
				w.Barrier()
				sum := 0
				for id := range n {
					sum += cur[id]
				}
				if sum != step*100*n+n*(n-1)/2 {
					wrong.Add(1)
				}
			}
		}))
		require.Zero(t, wrong.Load())
	})
}

func TestOneProcessorMakesProgress(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, n := range []int{2, 5} {
		tm := New(n, Options{})
		total := 0
		start := time.Now()
		for range 20 {
			require.NoError(t, tm.Run(func(w *Worker) {
				for range 20 {
					w.Barrier()
					if w.ID == 0 {
						total++
					}
				}
			}))
		}
		tm.Close()
		require.Equal(t, 400, total)
		require.Less(t, time.Since(start), 10*time.Second)
	}
}

// The team was made for two processors and then has one.
func TestProcessorTakenAway(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	tm := New(2, Options{})
	defer tm.Close()
	runtime.GOMAXPROCS(1)
	for range 20 {
		require.NoError(t, tm.Run(func(w *Worker) { w.Barrier() }))
	}
}

func TestSleepAndWake(t *testing.T) {
	each(t, func(t *testing.T, tm *Team) {
		for range 5 {
			require.Eventually(t, func() bool { return tm.parked.Load() == int64(tm.Size()-1) },
				5*time.Second, time.Millisecond, "idle workers sleep")
			ran := new(atomic.Int64)
			require.NoError(t, tm.Run(func(w *Worker) {
				if w.ID == 0 { // the others fall asleep at the barrier
					for tm.parked.Load() < int64(w.N-1) {
						runtime.Gosched()
					}
				}
				w.Barrier()
				if w.ID == w.N-1 { // and now at the end, worker 0 too
					for tm.parked.Load() < int64(w.N-1) {
						runtime.Gosched()
					}
				}
				ran.Add(1)
			}))
			require.EqualValues(t, tm.Size(), ran.Load())
		}
	})
}

func TestPanicIsAnErrorAndReleasesTheOthers(t *testing.T) {
	each(t, func(t *testing.T, tm *Team) {
		for bad := range tm.Size() {
			boom := fmt.Errorf("boom %d", bad)
			err := tm.Run(func(w *Worker) {
				w.Barrier()
				if w.ID == bad {
					panicHere(boom)
				}
				w.Barrier()
				w.Barrier()
			})
			var p *PanicError
			require.ErrorAs(t, err, &p)
			require.Equal(t, bad, p.Worker)
			require.ErrorIs(t, err, boom)
			require.Contains(t, string(p.Stack), "panicHere")
			require.NoError(t, tm.Run(func(w *Worker) { w.Barrier() }), "usable afterwards")
		}
	})
}

//go:noinline
func panicHere(v any) { panic(v) }

func TestGoexitIsAnErrorAndTheWorkerComesBack(t *testing.T) {
	tm := New(3, Options{})
	defer tm.Close()
	for range 3 {
		err := tm.Run(func(w *Worker) {
			if w.ID == 1 {
				runtime.Goexit()
			}
			w.Barrier()
		})
		require.ErrorContains(t, err, "Goexit")
		require.NoError(t, tm.Run(func(w *Worker) { w.Barrier() }))
	}
	ended := make(chan struct{})
	go func() { // the caller's own goroutine ends inside the function
		defer close(ended)
		_ = tm.Run(func(w *Worker) {
			if w.ID == 0 {
				runtime.Goexit()
			}
			w.Barrier()
		})
	}()
	<-ended
	require.NoError(t, tm.Run(func(w *Worker) { w.Barrier() }))
}

func TestUnequalBarriersAreAnError(t *testing.T) {
	for _, n := range sizes[1:] {
		tm := New(n, Options{})
		for range 50 {
			err := tm.Run(func(w *Worker) {
				w.Barrier()
				if w.ID != w.N-1 {
					w.Barrier()
				}
			})
			var p *PanicError
			require.ErrorAs(t, err, &p)
			require.ErrorContains(t, err, "return")
		}
		require.NoError(t, tm.Run(func(w *Worker) { w.Barrier() }))
		tm.Close()
	}
}

func TestNestedRunIsAnError(t *testing.T) {
	each(t, func(t *testing.T, tm *Team) {
		errs := make([]error, tm.Size())
		require.NoError(t, tm.Run(func(w *Worker) {
			errs[w.ID] = tm.Run(func(*Worker) {})
		}))
		for _, err := range errs {
			require.ErrorIs(t, err, ErrBusy)
		}
	})
}

func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, n := range sizes {
		tm := New(n, Options{})
		require.NoError(t, tm.Run(func(w *Worker) {
			tm.Close() // takes effect when Run returns
			w.Barrier()
		}))
		tm.Close()
		tm.Close()
		require.ErrorIs(t, tm.Run(func(*Worker) {}), ErrClosed)
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "goroutines left behind")
	}
}

func TestNothingIsAllocated(t *testing.T) {
	for _, n := range []int{1, 2, 3} {
		tm := New(n, Options{})
		total := make([]int, n)
		fn := func(w *Worker) {
			lo, hi := w.Range(100, 16)
			w.Barrier()
			c := w.Counter(100, 16, 0)
			for w.Next(&c) {
				total[w.ID] += c.Hi - c.Lo
			}
			total[w.ID] += hi - lo
		}
		require.Zero(t, testing.AllocsPerRun(100, func() { _ = tm.Run(fn) }))
		tm.Close()
	}
}

func TestPinned(t *testing.T) {
	tm := New(2, Options{Pin: true})
	defer tm.Close()
	if tm.PinError() != nil {
		t.Skip(tm.PinError())
	}
	wrong := make([]string, 2)
	require.NoError(t, tm.Run(func(w *Worker) {
		for range 100 {
			w.Barrier()
			if cpu := currentCPU(); cpu >= 0 && cpu != tm.pin[w.ID] {
				wrong[w.ID] = fmt.Sprintf("on CPU %d, bound to %d", cpu, tm.pin[w.ID])
			}
		}
	}))
	require.Equal(t, make([]string, 2), wrong)
	bad := New(2, Options{Pin: true, CPUs: []int{1 << 20}})
	defer bad.Close()
	require.ErrorContains(t, bad.PinError(), "CPU 1048576")
	require.NoError(t, bad.Run(func(w *Worker) { w.Barrier() }))
}

func TestDefaultSize(t *testing.T) {
	n := DefaultSize()
	require.GreaterOrEqual(t, n, 1)
	require.LessOrEqual(t, n, runtime.GOMAXPROCS(0))
	tm := New(0, Options{})
	defer tm.Close()
	require.Equal(t, n, tm.Size())
	big := New(MaxSize+1, Options{})
	defer big.Close()
	require.Equal(t, MaxSize, big.Size())
}

func TestErrorText(t *testing.T) {
	err := &PanicError{Worker: 3, Value: "v", Stack: []byte("stack")}
	require.Equal(t, "team: worker 3 panicked: v\nstack", err.Error())
	require.NoError(t, errors.Unwrap(err))
	require.True(t, strings.HasPrefix(ErrBusy.Error(), "team: "))
}
