package sink

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
)

// A Sink is a writer that never blocks and never fails: whole writes wait in a
// bounded queue for a goroutine that passes them on. What does not fit into the
// queue, and what the writer behind it does not take, is dropped and counted.
type Sink struct {
	w       io.Writer
	end     func()       // after the last write; may be nil
	mu      sync.RWMutex // held for reading while something is put into the queue
	closed  bool
	queue   chan []byte
	done    chan struct{}
	clock   clock.Clock
	free    sync.Pool
	dropped atomic.Int64
}

// Depth is the number of writes that wait at most.
const Depth = 4096

// CloseWait is how long Close waits for a writer that does not take what is left.
const CloseWait = time.Second

// New returns a sink in front of w, which is used by one goroutine until Close
// returns and, if it blocks for good, after that.
func New(w io.Writer) *Sink { return newSink(w, nil, Depth, clock.System()) }

// NewFile returns a sink in front of f, which it closes.
func NewFile(f *File) *Sink { return newSink(f, f.close, Depth, f.clock) }

func newSink(w io.Writer, end func(), depth int, c clock.Clock) *Sink {
	s := &Sink{w: w, end: end, queue: make(chan []byte, depth), done: make(chan struct{}), clock: c}
	s.free.New = func() any { return new([]byte) }
	go s.run()
	return s
}

func (s *Sink) run() {
	defer close(s.done)
	for b := range s.queue {
		s.pass(b)
		b = b[:0]
		s.free.Put(&b)
	}
	if s.end != nil {
		defer func() { recover() }()
		s.end()
	}
}

// pass writes b; a writer that panics is one that fails.
func (s *Sink) pass(b []byte) {
	defer func() {
		if recover() != nil {
			s.dropped.Add(1)
		}
	}()
	if n, err := s.w.Write(b); err != nil || n < len(b) {
		s.dropped.Add(1)
	}
}

// Write takes a copy of b. It returns len(b) and nil, always.
func (s *Sink) Write(b []byte) (int, error) {
	if s == nil {
		return len(b), nil
	}
	p := s.free.Get().(*[]byte)
	c := append((*p)[:0], b...)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		s.dropped.Add(1)
		return len(b), nil
	}
	select {
	case s.queue <- c:
	default:
		s.dropped.Add(1)
	}
	return len(b), nil
}

// Dropped is the number of writes that were lost.
func (s *Sink) Dropped() int64 {
	if s == nil {
		return 0
	}
	return s.dropped.Load()
}

// Close passes on what waits, for a second at most, and counts the rest as dropped.
// Later writes are dropped.
func (s *Sink) Close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	first := !s.closed
	if s.closed = true; first {
		close(s.queue)
	}
	s.mu.Unlock()
	select {
	case <-s.done:
	case <-s.clock.After(CloseWait):
		if first {
			s.dropped.Add(int64(len(s.queue)))
		}
	}
}
