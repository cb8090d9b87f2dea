package team

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/architehc/nanochat/kernels/numa"
)

// How long a worker spins. hotRounds × pausesPerRound pauses are some
// microseconds; after them the Go scheduler may run other goroutines, and after
// idleTime the thread sleeps until it is woken, which costs some microseconds.
const (
	pausesPerRound = 4
	hotRounds      = 64
	idleTime       = 80 * time.Microsecond
)

// errReleased unwinds a worker from a barrier that cannot open any more.
var errReleased = errors.New("team: barrier released because another worker failed")

// A Worker is one copy of the function that runs. It is valid only inside it.
type Worker struct {
	// ID is 0 ≤ ID < N; worker 0 is the goroutine that called Run.
	ID int
	// N is the number of workers.
	N int

	team   *Team
	loops  uint32        // number of the next dynamic loop
	asleep atomic.Uint32 // 1 from before the last look at the awaited word to the wake-up
	bell   chan struct{}
	_      [128 - 40]byte
}

// loop is the life of workers 1 to N-1.
func (w *Worker) loop(seen uint64, started chan<- error) {
	t := w.team
	var err error
	if t.pin != nil {
		err = numa.PinThread(t.pin[w.ID]) // never unlocked: the thread ends with the goroutine
	}
	if started != nil {
		started <- err
	}
	clean := false
	defer func() {
		if !clean { // the function called runtime.Goexit: go on in a new goroutine
			go w.loop(seen, nil)
			return
		}
		t.exited.Done()
	}()
	for {
		w.wait(&t.epoch, seen)
		seen = t.epoch.Load()
		if t.state.Load() == closed {
			clean = true
			return
		}
		w.call()
	}
}

// call runs the team's function once and reports its end, however it ends.
func (w *Worker) call() {
	returned := false
	defer w.left(&returned)
	w.loops = w.team.base
	w.team.fn(w)
	returned = true
}

// left is deferred by call.
func (w *Worker) left(returned *bool) {
	t := w.team
	if !*returned {
		switch v := recover(); v {
		case errReleased:
		case nil:
			t.failed(w.ID, errors.New("team: the function ended its goroutine (runtime.Goexit)"))
		default:
			t.failed(w.ID, v)
		}
	}
	t.gone.Add(1)
	if t.count.Load() != 0 && t.gen.Load()&poisoned == 0 {
		// The others wait for a worker that will never come. One that comes to the
		// barrier after this look sees gone.
		t.failed(w.ID, fmt.Errorf("team: worker %d returned while others wait at a barrier", w.ID))
	}
	if t.done.Add(1) == uint64(t.n) {
		t.workers[0].wake()
	}
}

// Barrier waits until all workers have called it. What a worker wrote before is
// visible to all after.
func (w *Worker) Barrier() {
	t := w.team
	if t.n == 1 {
		return
	}
	g := t.gen.Load()
	if g&poisoned != 0 {
		panic(errReleased)
	}
	if t.count.Add(1) == uint64(t.n) {
		t.count.Store(0)
		g = t.gen.Add(1)
		t.wakeAll()
	} else {
		if t.gone.Load() != 0 && t.gen.Load() == g { // gone before this barrier opened
			panic(fmt.Errorf("team: worker %d is at a barrier that another worker returned without passing", w.ID))
		}
		w.wait(&t.gen, g)
		g = t.gen.Load()
	}
	if g&poisoned != 0 {
		panic(errReleased)
	}
}

// wait returns when *word is not old: at once if it moves within microseconds,
// after a wake-up if that takes longer.
func (w *Worker) wait(word *atomic.Uint64, old uint64) {
	for range w.team.hot {
		if word.Load() != old {
			return
		}
		pause(pausesPerRound)
	}
	for until := time.Now().Add(idleTime); ; {
		for range 16 {
			if word.Load() != old {
				return
			}
			runtime.Gosched()
			if w.team.hot != 0 {
				pause(8 * pausesPerRound)
			}
		}
		if !time.Now().Before(until) {
			break
		}
	}
	w.sleep(word, old)
}

// sleep parks the goroutine until *word is not old.
func (w *Worker) sleep(word *atomic.Uint64, old uint64) {
	t := w.team
	t.parked.Add(1)
	for {
		w.asleep.Store(1)
		if word.Load() != old {
			if !w.asleep.CompareAndSwap(1, 0) {
				<-w.bell // a waker has claimed this sleeper: take its token
			}
			break
		}
		<-w.bell
		if word.Load() != old {
			break
		}
	}
	t.parked.Add(-1)
}

// wake rings for w if it sleeps. Whoever moves a word calls it afterwards:
// either the sleeper sees the new value or the waker sees the sleeper.
func (w *Worker) wake() {
	if w.asleep.Load() == 1 && w.asleep.CompareAndSwap(1, 0) {
		w.bell <- struct{}{}
	}
}
