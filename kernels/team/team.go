package team

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/architehc/nanochat/kernels/numa"
)

// MaxSize is the largest number of workers in a team.
const MaxSize = 1024

// Errors of Run that are no worker's fault.
var (
	// ErrBusy says that Run was called inside Run, or by two goroutines at once.
	ErrBusy = errors.New("team: Run called while the team is running; calls cannot nest and a team serves one goroutine at a time")
	// ErrClosed says that the team was closed.
	ErrClosed = errors.New("team: Run called on a closed team")
)

// PanicError reports a worker that did not return from the function of Run.
type PanicError struct {
	// Worker is the ID of the first worker that failed.
	Worker int
	// Value is what it panicked with.
	Value any
	// Stack is its stack at that moment.
	Stack []byte
}

// Error gives the worker, the value and the stack.
func (e *PanicError) Error() string {
	return fmt.Sprintf("team: worker %d panicked: %v\n%s", e.Worker, e.Value, e.Stack)
}

// Unwrap is the value panicked with, if that was an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// Options says where the workers of a team run. The zero value leaves that to
// the system.
type Options struct {
	// Pin binds worker i to the thread and CPU of CPUs[i]. The caller of Run is
	// bound for the time of Run.
	Pin bool
	// CPUs lists one CPU per worker; it is used again from the start if too
	// short. Empty means the CPUs this process may use, node by node.
	CPUs []int
}

// States of a team.
const (
	idle int32 = iota
	running
	closing // running, and Close was called
	closed
)

// poisoned is the bit of Team.gen that says a worker failed.
const poisoned = 1 << 63

// A Team is a fixed number of workers. Worker 0 is the goroutine that calls Run.
//
// The words that workers wait for stand each on a cache line of its own (128
// bytes: two lines are fetched together on x86).
type Team struct {
	n       int
	hot     uint32 // rounds of spinning before the scheduler is asked to run others
	pin     []int  // CPU of each worker; nil if not pinned
	pinErr  error
	workers []Worker
	exited  sync.WaitGroup

	fn       func(*Worker)
	base     uint32 // number of the first dynamic loop of this Run
	state    atomic.Int32
	failOnce atomic.Bool
	fail     *PanicError

	_      pad
	epoch  atomic.Uint64 // moves when a Run starts or the team closes
	_      pad
	done   atomic.Uint64 // workers that have finished this Run
	gone   atomic.Uint64 // workers that pass no more barrier in this Run; moves before done
	_      pad
	count  atomic.Uint64 // workers that wait at the barrier
	_      pad
	gen    atomic.Uint64 // moves when a barrier opens; see poisoned
	_      pad
	parked atomic.Int64 // workers asleep or falling asleep
	_      pad
	chunk  atomic.Uint64 // dynamic loop: number<<32 | next block
	_      pad
}

type pad [128]byte

// New makes a team of n workers, at most MaxSize; n ≤ 0 means DefaultSize().
// Close ends its goroutines.
func New(n int, o Options) *Team {
	if n <= 0 {
		n = DefaultSize()
	}
	n = min(n, MaxSize)
	t := &Team{n: n, workers: make([]Worker, n)}
	if n <= min(runtime.GOMAXPROCS(0), numa.CPUs()) {
		t.hot = hotRounds
	}
	if o.Pin {
		t.pin = make([]int, n)
		cpus := o.CPUs
		if len(cpus) == 0 {
			cpus = numa.Read().Order()
		}
		for i := range t.pin {
			t.pin[i] = cpus[i%len(cpus)]
		}
	}
	for i := range t.workers {
		w := &t.workers[i]
		w.ID, w.N, w.team = i, n, t
		w.bell = make(chan struct{}, 1)
	}
	started := make(chan error, n)
	for i := 1; i < n; i++ {
		t.exited.Add(1)
		go t.workers[i].loop(0, started)
	}
	for i := 1; i < n; i++ {
		t.pinErr = errors.Join(t.pinErr, <-started)
	}
	return t
}

// DefaultSize is the number of cores this process may use: the smallest of
// GOMAXPROCS, the affinity mask and the cgroup's CPU quota.
func DefaultSize() int {
	n := min(runtime.GOMAXPROCS(0), numa.CPUs())
	if q := numa.Quota(); q > 0 {
		n = min(n, max(1, int(q)))
	}
	return max(1, n)
}

// Size is the number of workers.
func (t *Team) Size() int { return t.n }

// PinError says why workers could not be bound to their CPUs; they work
// unbound then.
func (t *Team) PinError() error { return t.pinErr }

// Run calls fn once per worker, all at the same time, and returns when every
// call has returned. All workers pass the same barriers in the same order.
//
// If a call panics, ends its goroutine, or returns while others wait at a
// barrier, then the barriers open, workers waiting there or arriving later
// unwind, and Run returns a *PanicError. The team can be used again after that.
func (t *Team) Run(fn func(w *Worker)) error {
	if !t.state.CompareAndSwap(idle, running) {
		if t.state.Load() == closed {
			return ErrClosed
		}
		return ErrBusy
	}
	defer t.finish()
	if t.pin != nil {
		if old, err := numa.Bind(t.pin[0]); err == nil {
			defer numa.Unbind(old)
		}
	}
	t.fn = fn
	t.fail = nil
	t.failOnce.Store(false)
	t.gen.Store(t.gen.Load() &^ poisoned)
	t.count.Store(0)
	t.base = uint32(t.chunk.Load()>>32) + 1
	t.gone.Store(0)
	t.done.Store(0)
	t.epoch.Add(1)
	t.wakeAll()
	t.workers[0].call()
	t.join()
	if t.fail != nil {
		return t.fail
	}
	return nil
}

// join waits until every worker has left the function.
func (t *Team) join() {
	for {
		d := t.done.Load()
		if d == uint64(t.n) {
			return
		}
		t.workers[0].wait(&t.done, d)
	}
}

// finish makes the team idle again, also when the caller's goroutine is ending.
func (t *Team) finish() {
	t.join()
	t.fn = nil
	if !t.state.CompareAndSwap(running, idle) {
		t.state.Store(closed)
		t.stop()
	}
}

// Close ends the workers. During a Run it takes effect when that returns. It may
// be called more than once and from any goroutine.
func (t *Team) Close() {
	for {
		switch t.state.Load() {
		case idle:
			if t.state.CompareAndSwap(idle, closed) {
				t.stop()
				return
			}
		case running:
			if t.state.CompareAndSwap(running, closing) {
				return
			}
		default:
			return
		}
	}
}

func (t *Team) stop() {
	t.epoch.Add(1)
	t.wakeAll()
	t.exited.Wait()
}

// failed records the first failure and opens the barriers.
func (t *Team) failed(id int, value any) {
	if t.failOnce.CompareAndSwap(false, true) {
		t.fail = &PanicError{Worker: id, Value: value, Stack: debug.Stack()}
	}
	t.gen.Or(poisoned)
	t.wakeAll()
}

// wakeAll wakes the workers that sleep. A worker that slept for something else
// looks again and sleeps on.
func (t *Team) wakeAll() {
	if t.parked.Load() == 0 {
		return
	}
	for i := range t.workers {
		t.workers[i].wake()
	}
}
