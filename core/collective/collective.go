// Package collective joins devices of this process to a group that adds up numbers, for training on
// several of them: each computes its share of a step, and all of them continue with the sum.
package collective

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/architehc/nanochat/kernels/cuda"
)

// Group is devices that work together. Each of them has its goroutine, its rank is its place in the
// list. When one of them is lost, what the others wait for ends with an *Error.
type Group struct {
	devices []*cuda.Device
	mu      sync.Mutex
	members []*cuda.Comm // by rank; nil: it has not begun to join
	aborted error
}

// Error is a group that cannot go on. All devices of a group that failed give it from then on: their
// results are wrong, because sums are missing.
type Error struct {
	// Rank is the member that failed, -1 if somebody else aborted.
	Rank int
	Err  error
	// Hint says what to do about it.
	Hint string
}

func (e *Error) Error() string {
	if e.Rank < 0 {
		return "collective: the devices' common work was aborted: " + e.Err.Error()
	}
	return fmt.Sprintf("collective: device %d of the group failed: %s", e.Rank, e.Err)
}

// Unwrap is Err.
func (e *Error) Unwrap() error { return e.Err }

const hint = "start again from the newest checkpoint, or with fewer devices (train.devices)"

// New makes a group of open devices. It returns when all of them have joined, or none.
func New(devices []*cuda.Device, lib *cuda.NCCL) (*Group, error) {
	if len(devices) == 0 {
		return nil, errors.New("collective: a group of no devices")
	}
	for i, d := range devices {
		for _, other := range devices[:i] {
			if d == other || d.Ordinal == other.Ordinal {
				return nil, fmt.Errorf("collective: device %d is in the group twice", d.Ordinal)
			}
		}
	}
	id, err := lib.NewCommID()
	if err != nil {
		return nil, err
	}
	g := &Group{devices: devices, members: make([]*cuda.Comm, len(devices))}
	err = g.each(func(rank int) error {
		return devices[rank].Do(func(t *cuda.Thread) error {
			return t.Join(lib, id, rank, len(devices), func(c *cuda.Comm) { g.joining(rank, c) })
		})
	})
	if err != nil {
		g.leave((*cuda.Comm).Abort)
		return nil, err
	}
	for rank, d := range devices {
		d.OnLoss(func(err error) { g.fail(rank, err) })
	}
	return g, nil
}

// each calls f for every rank, each in a goroutine of its own, and returns the error that came first. It
// ends the waiting of the others.
func (g *Group) each(f func(rank int) error) error {
	var wait sync.WaitGroup
	var once sync.Once
	var first error
	for rank := range g.devices {
		wait.Add(1)
		go func() {
			defer wait.Done()
			err := guard(rank, f)
			if err == nil {
				return
			}
			once.Do(func() {
				first = err
				g.mu.Lock()
				g.aborted = err
				g.mu.Unlock()
				g.leave((*cuda.Comm).Abort)
			})
		}()
	}
	wait.Wait()
	return first
}

func guard(rank int, f func(int) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("collective: internal error: %v", r)
		}
	}()
	return f(rank)
}

// joining notes a member; if the group has failed already it need not wait.
func (g *Group) joining(rank int, c *cuda.Comm) {
	g.mu.Lock()
	g.members[rank] = c
	failed := g.aborted != nil
	g.mu.Unlock()
	if failed {
		c.Abort()
	}
}

// leave calls f for every member, at the same time: each may wait for the others.
func (g *Group) leave(f func(*cuda.Comm)) {
	g.mu.Lock()
	members := append([]*cuda.Comm{}, g.members...)
	g.mu.Unlock()
	var wait sync.WaitGroup
	for _, c := range members {
		if c != nil {
			wait.Add(1)
			go func() {
				defer wait.Done()
				defer func() { _ = recover() }() // nothing here panics; the others are to end all the same
				f(c)
			}()
		}
	}
	wait.Wait()
}

// Ranks is the number of devices.
func (g *Group) Ranks() int { return len(g.devices) }

// AllReduce queues on the stream of t, the thread of device rank, the sum of all devices' float32 numbers
// at p, in place. Every device has to queue the same sums in the same order. An error aborts the group.
func (g *Group) AllReduce(t *cuda.Thread, rank int, p cuda.Ptr, count int) error {
	return g.sum(t, rank, func(c *cuda.Comm) error { return c.AllReduce(t, p, count) })
}

// AllReduceF64 is AllReduce of float64 numbers.
func (g *Group) AllReduceF64(t *cuda.Thread, rank int, p cuda.Ptr, count int) error {
	return g.sum(t, rank, func(c *cuda.Comm) error { return c.AllReduceF64(t, p, count) })
}

func (g *Group) sum(t *cuda.Thread, rank int, f func(*cuda.Comm) error) error {
	if rank < 0 || rank >= len(g.devices) || t.Device() != g.devices[rank] {
		return fmt.Errorf("collective: device %d is not rank %d of %d", t.Device().Ordinal, rank, len(g.devices))
	}
	g.mu.Lock()
	c, err := g.members[rank], g.aborted
	g.mu.Unlock()
	if err != nil {
		return err
	}
	if err = f(c); err == nil {
		return nil
	}
	g.fail(rank, err)
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.aborted // another member may have been first
}

// Abort ends what devices of the group wait for, with an *Error, and the group: to be called when one
// of them, or what feeds it, has failed. It is for any goroutine. cause may be nil.
func (g *Group) Abort(cause error) {
	if cause == nil {
		cause = cuda.ErrAborted
	}
	g.fail(-1, cause)
}

// fail makes err the error of all devices, once.
func (g *Group) fail(rank int, err error) {
	g.mu.Lock()
	if g.aborted != nil {
		g.mu.Unlock()
		return
	}
	e := &Error{Rank: rank, Err: err, Hint: hint}
	g.aborted = e
	g.mu.Unlock()
	for _, d := range g.devices {
		d.Fail(e) // before their waiting ends
	}
	go g.leave((*cuda.Comm).Abort) // it recovers
}

// Check is the error of a group that was aborted, or whose network has failed; nil: it is well. It waits
// for nothing.
func (g *Group) Check() error {
	g.mu.Lock()
	err, members := g.aborted, append([]*cuda.Comm{}, g.members...)
	g.mu.Unlock()
	if err != nil {
		return err
	}
	for rank, c := range members {
		if err := c.Err(); err != nil {
			g.fail(rank, err)
			g.mu.Lock()
			defer g.mu.Unlock()
			return g.aborted
		}
	}
	return nil
}

// Close ends the group when all that was queued is done. Its devices stay open.
func (g *Group) Close() error {
	g.mu.Lock()
	aborted := g.aborted
	if aborted == nil {
		g.aborted = &Error{Rank: -1, Err: errors.New("it is closed")}
	}
	g.mu.Unlock()
	if aborted != nil {
		done := make(chan struct{})
		go func() {
			defer close(done)
			g.leave((*cuda.Comm).Abort) // it recovers
		}()
		select { // a GPU that is gone may never answer
		case <-done:
		case <-time.After(5 * time.Second):
		}
		return nil
	}
	var once sync.Once
	var first error
	var wait sync.WaitGroup
	for rank, d := range g.devices {
		wait.Add(1)
		go func() {
			defer wait.Done()
			err := guard(rank, func(int) error {
				return d.Do(func(t *cuda.Thread) error { return errors.Join(t.Wait(), g.members[rank].Close()) })
			})
			if err != nil {
				once.Do(func() { first = err })
				g.members[rank].Abort()
			}
		}()
	}
	wait.Wait()
	return first
}
