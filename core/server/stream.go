package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
)

// recorder is a response that remembers what was sent, and sends events.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
	events bool // it is a stream of events
	rc     *http.ResponseController
	buf    bytes.Buffer
	enc    *json.Encoder
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader begins the response.
func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the body.
func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// event sends v as one server-sent event and waits at most limit for the client to take it.
func (w *recorder) event(limit time.Duration, v any) error {
	if w.enc == nil {
		w.enc = json.NewEncoder(&w.buf)
		w.enc.SetEscapeHTML(false)
		w.rc = http.NewResponseController(w.ResponseWriter)
	}
	w.buf.Reset()
	w.buf.WriteString("data: ")
	if err := w.enc.Encode(v); err != nil {
		return fmt.Errorf("server: event: %w", err)
	}
	w.buf.WriteByte('\n') // Encode has written the first
	return w.send(limit)
}

// done sends the event that ends a stream.
func (w *recorder) done(limit time.Duration) error {
	w.buf.Reset()
	w.buf.WriteString("data: [DONE]\n\n")
	return w.send(limit)
}

func (w *recorder) send(limit time.Duration) error {
	if !w.events {
		w.events = true
		h := w.Header()
		h.Set("Content-Type", "text/event-stream; charset=utf-8")
		h.Set("Cache-Control", "no-cache")
		h.Set("X-Accel-Buffering", "no") // nginx would collect events
		w.WriteHeader(http.StatusOK)
	}
	// A writer without deadlines, as in tests without a connection, cannot wait either.
	w.rc.SetWriteDeadline(deadline(limit)) //nolint:errcheck
	if _, err := w.Write(w.buf.Bytes()); err != nil {
		return errGone
	}
	if err := w.rc.Flush(); err != nil {
		return errGone
	}
	return nil
}

// deadline is limit from now.
func deadline(limit time.Duration) time.Time { return clock.System().Now().Add(limit) }
