package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"github.com/architehc/nanochat/core/telemetry"
)

// Limits of keys.
const (
	maxKeyBytes = 512
	maxKeyCount = 1 << 16
)

// keySet holds digests, so that a comparison takes the same time for every key.
type keySet struct{ sums [][sha256.Size]byte }

// ParseKeys reads a file of API keys: one a line; empty lines and those that
// begin with # are comments. A file without a key is an error.
func ParseKeys(name string, content []byte) ([]string, error) {
	var keys []string
	sc := bufio.NewScanner(bytes.NewReader(content))
	for line := 1; sc.Scan(); line++ {
		key := strings.TrimSpace(sc.Text())
		if key == "" || key[0] == '#' {
			continue
		}
		if len(key) > maxKeyBytes || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, fmt.Errorf("server: %s:%d: a key is up to %d visible ASCII characters without spaces", name, line, maxKeyBytes)
		}
		keys = append(keys, key)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("server: %s: %w", name, err)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("server: %s has no key: write one a line", name)
	}
	return keys, nil
}

// SetKeys replaces the accepted keys, for requests from now on.
func (s *Server) SetKeys(keys []string) error {
	if len(keys) > maxKeyCount {
		return fmt.Errorf("server: %d keys, at most %d are accepted", len(keys), maxKeyCount)
	}
	set := &keySet{}
	for _, k := range keys {
		if k == "" {
			return errors.New("server: an API key is empty")
		}
		set.sums = append(set.sums, sha256.Sum256([]byte(k)))
	}
	s.keys.Store(set)
	return nil
}

// keyOf is the key that a request carries.
func keyOf(r *http.Request) string {
	if scheme, key, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(key)
	}
	return r.Header.Get("X-Api-Key")
}

// authorised checks the key of a request; all keys are compared, whichever is right.
func (s *Server) authorised(r *http.Request) *apiError {
	set := s.keys.Load()
	if len(set.sums) == 0 {
		return nil
	}
	key := keyOf(r)
	if key == "" {
		return &apiError{status: http.StatusUnauthorized, kind: typeAuth, code: "missing_api_key",
			message: "no API key: send the header Authorization: Bearer KEY"}
	}
	sum := sha256.Sum256([]byte(key))
	found := 0
	for i := range set.sums {
		found |= subtle.ConstantTimeCompare(sum[:], set.sums[i][:])
	}
	if found == 0 {
		return &apiError{status: http.StatusUnauthorized, kind: typeAuth, code: "invalid_api_key", message: "the API key is not one of this server's"}
	}
	return nil
}

// clientOf says whom a request is from, for the fairness of the queue.
func (s *Server) clientOf(r *http.Request) string {
	if len(s.keys.Load().sums) > 0 {
		sum := sha256.Sum256([]byte(keyOf(r)))
		return string(sum[:8])
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

// allowedHost refuses names that are not known to be this server's: a page of
// another site can make a browser send requests here under the page's own name,
// which it made point at this address. It cannot do so under an address.
func (s *Server) allowedHost(r *http.Request) *apiError {
	if s.hosts["*"] {
		return nil
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && local.Network() == "unix" {
		return nil // no browser comes this way
	}
	if localName(r.Host) || s.hosts[bareHost(r.Host)] {
		return nil
	}
	return &apiError{status: http.StatusForbidden, kind: typeDenied, code: "host_not_allowed",
		message: fmt.Sprintf("this server is not known as %q; its operator can allow the name with --allow-host", short(bareHost(r.Host)))}
}

// bareHost is the name in a Host header, without a port.
func bareHost(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// localName says whether a Host header is an address, localhost or absent.
func localName(host string) bool {
	host = bareHost(host)
	if host == "" { // HTTP/1.0, which no browser speaks
		return true
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// crossOrigin refuses requests that pages of other sites made a browser send,
// and tells browsers which sites may.
func (s *Server) crossOrigin(w http.ResponseWriter, r *http.Request) (preflight bool, refused *apiError) {
	if origin := r.Header.Get("Origin"); s.origins[origin] {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", origin)
		h.Add("Vary", "Origin")
		h.Set("Access-Control-Expose-Headers", "X-Request-Id, Retry-After")
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			h.Set("Access-Control-Allow-Methods", "GET, POST")
			h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Api-Key, X-Request-Id, Traceparent")
			h.Set("Access-Control-Max-Age", "600")
			w.WriteHeader(http.StatusNoContent)
			return true, nil
		}
	}
	if err := s.cross.Check(r); err != nil {
		return false, &apiError{status: http.StatusForbidden, kind: typeDenied, code: "cross_origin",
			message: "a page of another site may not use this server; its operator can allow the site with --cors-origin"}
	}
	return false, nil
}

// requestID is the client's, if it is a sensible one, or a new one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > 128 || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "req_" + rand.Text()
	}
	return id
}

// access is who may use a path.
type access uint8

const (
	accessKey  access = iota // those with a key, if keys are asked for
	accessOpen               // everybody
)

// route is one path.
type route struct {
	path    string
	name    string // the path in metrics and logs
	methods []string
	access  access
	traced  bool
	serve   func(http.ResponseWriter, *http.Request) *apiError
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// handle is what every request goes through.
func (s *Server) handle(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if s.closed() {
			s.mu.Unlock()
			writeError(w, errorOf(errDraining, ""))
			return
		}
		s.active.Add(1)
		s.mu.Unlock()
		defer s.active.Done()
		s.requests.Add(1)
		defer s.requests.Add(-1)

		id := requestID(r)
		began := s.clock.Now()
		rec := newRecorder(w, s.limits.Write)
		h := rec.Header()
		h.Set("X-Request-Id", id)
		h.Set("X-Content-Type-Options", "nosniff")
		if s.o.Version != "" {
			h.Set("Server", "nanochat/"+s.o.Version)
		}
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		defer context.AfterFunc(s.life, func() { cancel(context.Cause(s.life)) })()
		ctx, stop := context.WithTimeoutCause(ctx, s.limits.Request, errTimeout)
		defer stop()
		v := &visit{id: id, path: rt.name, began: began}
		s.o.Metrics.RequestStarted()
		ctx = s.o.Tracer.Extract(context.WithValue(ctx, visitKey{}, v), r.Header)
		if rt.traced {
			ctx, v.span = s.o.Tracer.StartRequest(ctx, r.Method+" "+rt.name, slog.String("request_id", id))
		}
		r = r.WithContext(ctx)
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				s.log.Error("panic", "request_id", id, "path", rt.name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				s.answer(rec, v, &apiError{status: http.StatusInternalServerError, kind: typeServer, code: "internal_error",
					message: "an internal error; the log of the server says more under this request's X-Request-Id"})
			}
			v.dropBody()
			rec.close()
			s.finish(rec, r, v)
			if rec.status == statusGone {
				panic(http.ErrAbortHandler) // or net/http would send an empty 200
			}
		}()
		if err := s.serve(rec, r, rt); err != nil {
			s.answer(rec, v, err)
		}
	}
}

// serve checks who asks and how, and answers.
func (s *Server) serve(w *recorder, r *http.Request, rt route) *apiError {
	if err := s.allowedHost(r); err != nil {
		return err
	}
	if done, err := s.crossOrigin(w, r); done || err != nil {
		return err
	}
	if rt.access == accessKey {
		if err := s.authorised(r); err != nil {
			return err
		}
	}
	allowed := false
	for _, m := range rt.methods {
		allowed = allowed || r.Method == m || (m == http.MethodGet && r.Method == http.MethodHead)
	}
	if !allowed && rt.methods != nil {
		w.Header().Set("Allow", strings.Join(rt.methods, ", "))
		return &apiError{status: http.StatusMethodNotAllowed, kind: typeRequest, code: "method_not_allowed",
			message: fmt.Sprintf("%s takes %s, not %s", rt.name, strings.Join(rt.methods, " or "), short(r.Method))}
	}
	if s.draining.Load() && rt.access == accessKey {
		return errorOf(errDraining, "")
	}
	s.fail("handler")
	return rt.serve(w, r)
}

// answer sends an error: as the response, or as an event of the stream that has begun.
func (s *Server) answer(w *recorder, v *visit, e *apiError) {
	v.err = e
	switch {
	case w.status == 0:
		writeError(w, e)
	case w.events:
		w.event(e) //nolint:errcheck // the client may be gone
	}
}

// finish accounts for a request.
func (s *Server) finish(w *recorder, r *http.Request, v *visit) {
	gone := w.status == 0 // nobody was there to answer
	if gone {
		w.status = statusGone
	}
	took := s.clock.Now().Sub(v.began)
	s.o.Metrics.RequestFinished(v.path, v.model, w.status, took)
	switch cause := context.Cause(r.Context()); {
	case errors.Is(cause, errDraining):
		s.o.Metrics.Cancelled("shutdown")
	case errors.Is(cause, errTimeout):
		s.o.Metrics.Cancelled("timeout")
	case cause != nil || gone:
		s.o.Metrics.Cancelled("client_gone")
	case v.err != nil && w.status >= 400 && w.status < 500:
		s.o.Metrics.Rejected(v.err.reason())
	}
	v.span.Set(slog.Int("http.response.status_code", w.status), slog.Int("prompt_tokens", v.promptTokens), slog.Int("completion_tokens", v.completionTokens))
	if v.err != nil {
		v.span.Fail(v.err)
	}
	v.span.End()
	attrs := []any{"request_id", v.id, "method", r.Method, "path", v.path, "status", w.status, "seconds", took.Seconds(), "bytes", w.bytes}
	if v.model != "" {
		attrs = append(attrs, "model", v.model, "prompt_tokens", v.promptTokens, "completion_tokens", v.completionTokens)
	}
	if v.unknown > 0 {
		attrs = append(attrs, "ignored_fields", v.unknown)
	}
	if v.err != nil {
		attrs = append(attrs, "error", v.err.message)
		if v.err.cause != nil && w.status >= 500 {
			s.log.ErrorContext(r.Context(), "request failed", append(attrs, "cause", v.err.cause.Error())...)
			return
		}
	}
	s.log.InfoContext(r.Context(), "request", attrs...)
}

// statusGone is the status of requests whose client left before the answer.
const statusGone = 499

// visit is what becomes known about a request on its way.
type visit struct {
	id, path string
	began    time.Time
	model    string
	// tokens of prompts and of all answers
	promptTokens, completionTokens int
	unknown                        int    // fields that were ignored
	drop                           func() // gives the places of a large body up; nil if there are none
	err                            *apiError
	span                           *telemetry.Span
}

type visitKey struct{}

func visitOf(ctx context.Context) *visit {
	v, _ := ctx.Value(visitKey{}).(*visit)
	if v == nil {
		v = &visit{}
	}
	return v
}
