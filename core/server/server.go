package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/telemetry"
)

// Options shape a server. Only Models is needed.
type Options struct {
	// Models can be named by requests; the first one is meant where none is named.
	Models []ModelSpec
	// Parallel is how many answers one model computes together. The default value is 16.
	Parallel int
	// Queue is how many more answers may wait for a model; beyond that requests get
	// 429. 0 is none.
	Queue int
	// IdleUnload is after how long without a request a model leaves memory. 0 is never.
	IdleUnload time.Duration
	// Limits bound each request.
	Limits Limits
	// Keys are accepted as API keys. Without any no key is asked for.
	Keys []string
	// Hosts are names, besides localhost and addresses, by which requests may call
	// this server; "*" allows all.
	Hosts []string
	// Origins are web origins (https://example.org) whose pages may use this server.
	Origins []string
	// NoPage leaves the chat page out.
	NoPage bool
	// Log gets a line per request (info) and what fails (error). nil is silence.
	Log *slog.Logger
	// Metrics counts what happens and is what /metrics tells. nil counts nothing.
	Metrics *telemetry.Serving
	// Tracer makes a span of each request. nil makes none.
	Tracer *telemetry.Tracer
	// Version is told in the Server header, if it is not empty.
	Version string
}

// Server answers HTTP requests. All methods may be called from any goroutine.
type Server struct {
	o       Options
	limits  Limits
	log     *slog.Logger
	clock   clock.Clock
	started time.Time
	mux     *http.ServeMux
	models  []*entry
	keys    atomic.Pointer[keySet]
	cross   *http.CrossOriginProtection
	origins map[string]bool
	hosts   map[string]bool

	life     context.Context // ends when what still runs has to end
	end      context.CancelCauseFunc
	draining atomic.Bool
	mu       sync.Mutex // guards active.Add against active.Wait
	active   sync.WaitGroup
	requests atomic.Int64 // in progress
	janitor  chan struct{}
	bodies   *bodies

	// fail is called at named places; tests make it panic.
	fail func(place string)
}

// New returns a server that has loaded no model yet.
func New(o Options) (*Server, error) {
	limits, err := o.Limits.withDefaults()
	if err != nil {
		return nil, err
	}
	if o.Parallel == 0 {
		o.Parallel = 16
	}
	switch {
	case len(o.Models) == 0:
		return nil, errors.New("server: no model to serve")
	case o.Parallel < 0 || o.Parallel > 1024:
		return nil, fmt.Errorf("server: parallel is %d, must be 1 to 1024", o.Parallel)
	case o.Queue < 0 || o.Queue > 1<<20:
		return nil, fmt.Errorf("server: queue is %d, must be 0 to %d", o.Queue, 1<<20)
	case o.IdleUnload < 0:
		return nil, fmt.Errorf("server: idle unload is %v, must be 0 (never) or more", o.IdleUnload)
	}
	s := &Server{
		o: o, limits: limits, log: o.Log, clock: clock.System(), cross: http.NewCrossOriginProtection(),
		origins: map[string]bool{}, hosts: map[string]bool{}, janitor: make(chan struct{}), bodies: newBodies(), fail: func(string) {},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.started = s.clock.Now()
	s.life, s.end = context.WithCancelCause(context.Background())
	if err := s.SetKeys(o.Keys); err != nil {
		return nil, err
	}
	for _, h := range o.Hosts {
		s.hosts[strings.ToLower(strings.TrimSuffix(h, "."))] = true
	}
	for _, origin := range o.Origins {
		if err := s.trust(origin); err != nil {
			return nil, err
		}
	}
	names := map[string]bool{}
	for _, spec := range o.Models {
		if spec.Name == "" || spec.Find == nil || names[spec.Name] {
			return nil, fmt.Errorf("server: the model name %q is empty or given twice", spec.Name)
		}
		names[spec.Name] = true
		s.models = append(s.models, &entry{s: s, spec: spec, gate: newGate(o.Parallel, o.Queue), metrics: o.Metrics.Model(spec.Name)})
	}
	o.Metrics.QueueCapacity(o.Queue)
	s.routes()
	go s.clean()
	return s, nil
}

// trust lets the pages of an origin use this server.
func (s *Server) trust(origin string) error {
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.Path != "" || u.RawQuery != "" || u.User != nil {
		return fmt.Errorf("server: the origin %q is not like https://example.org, with a port where it is not the usual one", origin)
	}
	if err := s.cross.AddTrustedOrigin(origin); err != nil {
		return fmt.Errorf("server: the origin %q: %w", origin, err)
	}
	s.origins[origin] = true
	return nil
}

// Load puts a model into memory, the first one if name is empty. Its error is
// that of opening the file.
func (s *Server) Load(ctx context.Context, name string) error {
	e, missing := s.find(name)
	if missing != nil {
		return missing
	}
	_, done, err := e.use(ctx)
	var api *apiError
	if errors.As(err, &api) && api.cause != nil {
		return api.cause
	}
	if err != nil {
		return err
	}
	done()
	return nil
}

// closed says that everything has to end now.
func (s *Server) closed() bool { return s.life.Err() != nil }

// clean unloads models that are not used, and gives memory back after a burst.
func (s *Server) clean() {
	defer close(s.janitor)
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("unloading ended", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	const pause = 250 * time.Millisecond
	const burst = 64 // requests at a time that are worth a collection
	peak := int64(0)
	for {
		select {
		case <-s.life.Done():
			return
		case <-s.clock.After(pause):
		}
		now := s.requests.Load()
		peak = max(peak, now)
		if now == 0 && peak >= burst {
			debug.FreeOSMemory()
			peak = 0
		}
		if s.o.IdleUnload == 0 {
			continue
		}
		for _, e := range s.models {
			e.unload(s.o.IdleUnload)
		}
	}
}

// Serve answers what comes over ln until ctx is done. Then it accepts nothing
// more, lets what runs go on for at most Limits.Drain and returns nil. Another
// error is one of the listener. The server is closed when Serve returns.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: s.limits.ReadHeader,
		ReadTimeout:       s.limits.Read,
		IdleTimeout:       s.limits.Idle,
		MaxHeaderBytes:    max(s.limits.Header-headerSlack, 1),
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		Protocols:         new(http.Protocols),
	}
	h.Protocols.SetHTTP1(true)
	failed := make(chan error, 1)
	go func() {
		defer func() {
			if v := recover(); v != nil {
				failed <- fmt.Errorf("server: %v\n%s", v, debug.Stack())
			}
		}()
		failed <- h.Serve(ln)
	}()
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		s.draining.Store(true)
		s.log.Info("shutting down", "requests", s.requests.Load())
		err = s.drain(h)
	}
	h.Close() //nolint:errcheck // what is left has had its time
	return errors.Join(err, s.Close())
}

// headerSlack is what net/http accepts beyond MaxHeaderBytes.
const headerSlack = 4096

// drain waits for the requests at hand, and ends them when their time is over.
func (s *Server) drain(h *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.limits.Drain)
	defer cancel()
	err := h.Shutdown(ctx)
	if err == nil {
		return nil
	}
	s.log.Warn("ending requests that took too long", "requests", s.requests.Load())
	s.end(errDraining)
	last, cancel := context.WithTimeout(context.Background(), s.limits.Write)
	defer cancel()
	if err := h.Shutdown(last); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("server: shut down: %w", err)
	}
	return nil
}

// Close ends all requests and unloads the models. It may be called twice.
func (s *Server) Close() error {
	s.draining.Store(true)
	s.mu.Lock()
	s.end(errDraining) // nobody enters any more
	s.mu.Unlock()
	s.active.Wait()
	<-s.janitor
	var errs []error
	for _, e := range s.models {
		e.mu.Lock()
		wait := e.loading
		e.mu.Unlock()
		if wait != nil {
			<-wait
		}
		e.mu.Lock()
		errs = append(errs, e.close())
		e.mu.Unlock()
	}
	return errors.Join(errs...)
}

// TLS wraps a listener for HTTPS with a certificate and its key in PEM.
func TLS(ln net.Listener, certificate, key []byte) (net.Listener, error) {
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, fmt.Errorf("server: certificate: %w", err)
	}
	return tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}), nil
}
