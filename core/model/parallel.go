package model

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// parallel is parallelUntil without an end.
func parallel(n int, f func(i int) error) error {
	return parallelUntil(context.Background(), n, f)
}

// parallelUntil calls f for 0 ≤ i < n on as many goroutines as the process has
// cores, and returns the error of the lowest i that failed. When ctx ends it begins
// no further call, waits for those that run, and returns ctx's error.
func parallelUntil(ctx context.Context, n int, f func(i int) error) error {
	var (
		next  atomic.Int64
		group sync.WaitGroup
		mu    sync.Mutex
		first = n
		err   error
	)
	for range min(n, runtime.GOMAXPROCS(0)) {
		group.Go(func() {
			for i := int(next.Add(1) - 1); i < n && ctx.Err() == nil; i = int(next.Add(1) - 1) {
				if e := contain(f, i); e != nil {
					mu.Lock()
					if i < first {
						first, err = i, e
					}
					mu.Unlock()
					return
				}
			}
		})
	}
	group.Wait()
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// contain calls f and makes a panic an error: in a goroutine of a library it would
// end the program around it.
func contain(f func(i int) error, i int) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("model: internal error: %v\n%s", v, debug.Stack())
		}
	}()
	return f(i)
}
