// Package clock is the only door to the time of day, so that tests can own it.
package clock

import (
	"sort"
	"sync"
	"time"
)

// Clock tells the time. Both implementations are safe for concurrent use.
type Clock interface {
	// Now is the present moment; differences of two are monotonic.
	Now() time.Time
	// After sends the time once, d from now; at once if d ≤ 0.
	After(d time.Duration) <-chan time.Time
}

// System returns the clock of the machine.
func System() Clock { return system{} }

type system struct{}

func (system) Now() time.Time                         { return time.Now() }
func (system) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Manual is a clock that moves only when told to.
type Manual struct {
	mu      sync.Mutex
	now     time.Time
	waiting []wait
}

type wait struct {
	at time.Time
	c  chan time.Time
}

// NewManual returns a clock that stands at t.
func NewManual(t time.Time) *Manual { return &Manual{now: t} }

// Now is the time the clock stands at.
func (m *Manual) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// After sends once Advance has passed d.
func (m *Manual) After(d time.Duration) <-chan time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := make(chan time.Time, 1)
	if d <= 0 {
		c <- m.now
		return c
	}
	m.waiting = append(m.waiting, wait{m.now.Add(d), c})
	return c
}

// Advance moves the clock by d and sends to everyone whose time has come, the
// earliest first.
func (m *Manual) Advance(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.Add(d)
	sort.SliceStable(m.waiting, func(i, j int) bool { return m.waiting[i].at.Before(m.waiting[j].at) })
	for len(m.waiting) > 0 && !m.waiting[0].at.After(m.now) {
		m.waiting[0].c <- m.waiting[0].at
		m.waiting = m.waiting[1:]
	}
}

// Waiting is the number of After channels that have not been sent to.
func (m *Manual) Waiting() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.waiting)
}
