package server

import (
	"context"
	"math"
	"sync"
)

// gate lets so many answers into the engine and keeps a bounded queue of others.
//
// Places go to clients in turn, so one that asks for a hundred answers at once
// delays others by one answer each, not by a hundred. Within a client the
// oldest comes first.
type gate struct {
	// inside answers may be in the engine at a time; queue more may wait.
	inside, queue int
	// parallel of those inside are computed together.
	parallel int

	mu      sync.Mutex
	entered int // and not parked
	parked  int
	waiting int
	lines   map[string]*line
	ring    []*line // those with somebody waiting, the next to serve first
	service float64 // seconds that an answer takes, a running average
}

type line struct {
	client  string
	tickets []*ticket
}

// ticket is the right to one place, now or later.
type ticket struct {
	g      *gate
	client string
	open   chan struct{} // closed when the place is there
	// Guarded by g.mu.
	state  ticketState
	slow   bool // its client does not read
	parked bool // inside, and its place is lent
}

type ticketState uint8

const (
	ticketWaits ticketState = iota
	ticketInside
	ticketDone
)

// newGate is for an engine that computes parallel answers together, with queue
// more waiting. The engine itself is given some that wait, so that it always has
// one to go on with and can pass over those whose readers are slow.
func newGate(parallel, queue int) *gate {
	ahead := min(parallel, queue)
	return &gate{inside: parallel + ahead, queue: queue - ahead, parallel: parallel, lines: map[string]*line{}}
}

// reserve takes n tickets for a client, all or none.
func (g *gate) reserve(client string, n int) ([]*ticket, *apiError) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if most := g.inside + g.queue; n > most {
		return nil, bad("n", "the request asks for %d answers at once: at most %d find room in the queue of this server", n, most)
	}
	if n > max(0, g.inside-g.entered)+g.queue-g.waiting {
		return nil, busy(g.waiting+max(0, g.entered-g.parallel), g.retryAfter())
	}
	l := g.lines[client]
	if l == nil {
		l = &line{client: client}
		g.lines[client] = l
		g.ring = append(g.ring, l)
	}
	tickets := make([]*ticket, n)
	for i := range tickets {
		tickets[i] = &ticket{g: g, client: client, open: make(chan struct{})}
	}
	l.tickets = append(l.tickets, tickets...)
	g.waiting += n
	g.dispatch()
	return tickets, nil
}

// dispatch gives free places away. g.mu is held.
func (g *gate) dispatch() {
	for g.entered < g.inside && len(g.ring) > 0 {
		l := g.ring[0]
		g.ring = g.ring[1:]
		t := l.tickets[0]
		l.tickets = l.tickets[1:]
		if len(l.tickets) > 0 {
			g.ring = append(g.ring, l)
		} else {
			delete(g.lines, l.client)
		}
		g.waiting--
		g.entered++
		t.state = ticketInside
		t.lend()
		close(t.open)
	}
}

// wait returns when the place is there, or the cause for which ctx is done.
func (t *ticket) wait(ctx context.Context) error {
	select {
	case <-t.open:
		return nil
	default:
	}
	select {
	case <-t.open:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// release gives the place, or the wait for it, up. It may be called twice. took
// is how long the answer took in seconds; 0 teaches nothing.
func (t *ticket) release(took float64) {
	g := t.g
	g.mu.Lock()
	defer g.mu.Unlock()
	switch t.state {
	case ticketInside:
		if t.parked {
			g.parked--
		} else {
			g.entered--
		}
		if took > 0 {
			if g.service == 0 {
				g.service = took
			}
			g.service += (took - g.service) / 8
		}
	case ticketWaits:
		g.leave(t)
	case ticketDone:
		return
	}
	t.state = ticketDone
	g.dispatch()
}

// park lends the place of an answer whose client does not read: the engine passes
// over it, so another can be computed. Not more are parked than may be inside or wait.
func (t *ticket) park() {
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	t.slow = true
	if t.state == ticketInside {
		t.lend()
		t.g.dispatch()
	}
}

// lend parks t if that is allowed. g.mu is held.
func (t *ticket) lend() {
	if g := t.g; t.slow && !t.parked && g.parked < g.inside+g.queue {
		t.parked = true
		g.parked++
		g.entered--
	}
}

// resume takes the place of a parked answer back, even if there is none free.
func (t *ticket) resume() {
	g := t.g
	g.mu.Lock()
	defer g.mu.Unlock()
	t.slow = false
	if t.state == ticketInside && t.parked {
		t.parked = false
		g.parked--
		g.entered++
	}
}

// leave takes a waiting ticket out of its line.
func (g *gate) leave(t *ticket) {
	l := g.lines[t.client]
	for i, q := range l.tickets {
		if q == t {
			l.tickets = append(l.tickets[:i:i], l.tickets[i+1:]...)
			g.waiting--
			break
		}
	}
	if len(l.tickets) > 0 {
		return
	}
	delete(g.lines, l.client)
	for i, q := range g.ring {
		if q == l {
			g.ring = append(g.ring[:i:i], g.ring[i+1:]...)
			return
		}
	}
}

// retryAfter estimates the seconds until a place in the queue is free.
func (g *gate) retryAfter() int {
	return int(min(max(math.Ceil(g.service/float64(g.parallel)), 1), 60))
}

// full says whether a request for one answer would be refused.
func (g *gate) full() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.entered >= g.inside && g.waiting >= g.queue
}

// outside is how many answers wait that the engine does not know of yet.
func (g *gate) outside() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting
}
