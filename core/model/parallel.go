package model

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// parallel calls f for 0 ≤ i < n on as many goroutines as the process has cores,
// and returns the error of the lowest i that failed.
func parallel(n int, f func(i int) error) error {
	var (
		next  atomic.Int64
		group sync.WaitGroup
		mu    sync.Mutex
		first = n
		err   error
	)
	for range min(n, runtime.GOMAXPROCS(0)) {
		group.Go(func() {
			for i := int(next.Add(1) - 1); i < n; i = int(next.Add(1) - 1) {
				if e := f(i); e != nil {
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
	return err
}
