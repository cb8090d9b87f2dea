package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
)

// together is the time within which events are sent in one piece. It delays only
// tokens that come faster: each of those would cost a system call here and a wake-up at
// the client, which on a small model is a good part of the time of a token.
const together = 2500 * time.Microsecond

// recorder is a response that remembers what was sent, and sends events.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
	events bool // it is a stream of events
	rc     *http.ResponseController
	buf    bytes.Buffer
	enc    *json.Encoder
	limit  time.Duration // for the client to take what is sent

	mu      sync.Mutex // guards what follows, and the ResponseWriter once events are sent
	flushed time.Time  // the last time
	pending bool       // something was written since
	later   *time.Timer
	failed  error // of a flush by later
	over    bool
}

func newRecorder(w http.ResponseWriter, limit time.Duration) *recorder {
	return &recorder{ResponseWriter: w, rc: http.NewResponseController(w), limit: limit}
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// allow gives the client time to take what is sent next. Everything that is sent goes
// through it: net/http keeps a deadline for the next request of the connection.
func (w *recorder) allow() {
	// A writer without deadlines, as in tests without a connection, cannot wait either.
	w.rc.SetWriteDeadline(deadline(w.limit)) //nolint:errcheck
}

// WriteHeader begins the response.
func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.allow()
	w.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the body.
func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.allow()
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// event sends v as one server-sent event, now or within the time of together, and
// waits at most w.limit for the client to take what came before.
func (w *recorder) event(v any) error {
	if w.enc == nil {
		w.enc = json.NewEncoder(&w.buf)
		w.enc.SetEscapeHTML(false)
	}
	w.buf.Reset()
	w.buf.WriteString("data: ")
	if err := w.enc.Encode(v); err != nil {
		return fmt.Errorf("server: event: %w", err)
	}
	w.buf.WriteByte('\n') // Encode has written the first
	return w.send(false)
}

// done sends the event that ends a stream.
func (w *recorder) done() error {
	w.buf.Reset()
	w.buf.WriteString("data: [DONE]\n\n")
	return w.send(true)
}

func (w *recorder) send(now bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil {
		return w.failed
	}
	if !w.events {
		w.events = true
		h := w.Header()
		h.Set("Content-Type", "text/event-stream; charset=utf-8")
		h.Set("Cache-Control", "no-cache")
		h.Set("X-Accel-Buffering", "no") // nginx would collect events
		w.WriteHeader(http.StatusOK)
	}
	if _, err := w.Write(w.buf.Bytes()); err != nil {
		return errGone
	}
	wait := together - clock.System().Now().Sub(w.flushed)
	switch {
	case now || wait <= 0:
		return w.flush()
	case w.pending: // later is set
	case w.later == nil:
		w.later = time.AfterFunc(wait, w.flushLater)
	default:
		w.later.Reset(wait)
	}
	w.pending = true
	return nil
}

// flush sends what was written; w.mu is held.
func (w *recorder) flush() error {
	w.pending = false
	w.flushed = clock.System().Now()
	if err := w.rc.Flush(); err != nil {
		w.failed = errGone
		return errGone
	}
	return nil
}

func (w *recorder) flushLater() {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() {
		if recover() != nil { // a ResponseWriter that is used after its end
			w.failed = errGone
		}
	}()
	if w.pending && !w.over {
		w.allow()
		w.flush() //nolint:errcheck // the next event returns it
	}
}

// close sends what waits. Nothing is sent after it.
func (w *recorder) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	if w.later != nil {
		w.later.Stop()
	}
	if w.pending && w.failed == nil {
		w.allow()
		w.flush() //nolint:errcheck // the client may be gone
	}
}

// deadline is limit from now.
func deadline(limit time.Duration) time.Time { return clock.System().Now().Add(limit) }
