package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/telemetry"
)

// ModelSpec names a model that can be served.
type ModelSpec struct {
	// Name is what requests call it.
	Name string
	// Find gives the path of its file, when it is to be loaded.
	Find func(context.Context) (string, error)
	// Options say how it runs. MaxBatch and MaxQueue of its engine are the server's.
	Options chat.Options
}

// entry is a model of this server, loaded or not.
type entry struct {
	s       *Server
	spec    ModelSpec
	gate    *gate
	metrics *telemetry.ModelServing

	mu      sync.Mutex
	model   *chat.Model
	facts   facts
	loading chan struct{} // closed when the load at hand has ended; nil if there is none
	failed  error         // how the last load ended
	users   int
	unused  time.Time // since when there are no users
}

// facts is what is told about a model; they stay when it is unloaded.
type facts struct {
	known       bool
	context     int
	dim         int
	created     int64
	fingerprint string
	fim         bool
	template    string
}

// use gives the model, loading it if it is not there. done must be called.
func (e *entry) use(ctx context.Context) (m *chat.Model, done func(), err error) {
	for {
		e.mu.Lock()
		if e.s.closed() {
			e.mu.Unlock()
			return nil, nil, errDraining
		}
		if e.model != nil {
			e.users++
			m := e.model
			e.mu.Unlock()
			return m, sync.OnceFunc(e.leave), nil
		}
		if e.loading == nil {
			e.loading = make(chan struct{})
			go e.load(e.loading)
		}
		wait := e.loading
		e.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
		e.mu.Lock()
		err := e.failed
		e.mu.Unlock()
		if err != nil {
			return nil, nil, err
		}
	}
}

func (e *entry) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.users--
	e.unused = e.s.clock.Now()
}

// load opens the model and reports to those who wait.
func (e *entry) load(done chan struct{}) {
	began := e.s.clock.Now()
	m, err := e.open()
	took := e.s.clock.Now().Sub(began)
	e.mu.Lock()
	defer e.mu.Unlock()
	defer close(done)
	e.loading = nil
	if err == nil && e.s.closed() {
		err = errors.Join(errDraining, m.Close())
	}
	if err != nil {
		e.s.log.Error("model not loaded", "model", e.spec.Name, "error", err.Error())
		e.failed = &apiError{status: http.StatusServiceUnavailable, kind: typeServer, code: "model_not_loaded", cause: err,
			message: fmt.Sprintf("the model %s could not be loaded; the log of the server says why", e.spec.Name)}
		if errors.Is(err, errDraining) {
			e.failed = errDraining
		}
		return
	}
	e.failed, e.model, e.unused = nil, m, e.s.clock.Now()
	e.facts = factsOf(m, began.Unix())
	e.metrics.Loaded(took, func() telemetry.Engine {
		st := m.Stats()
		st.Waiting += e.gate.outside()
		return telemetry.Engine(st)
	})
	e.s.log.Info("model loaded", "model", e.spec.Name, "seconds", took.Seconds(), "kernel", m.Kernel(), "threads", m.Threads(), "context", e.facts.context)
}

func (e *entry) open() (m *chat.Model, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("server: load of %s: %v\n%s", e.spec.Name, v, debug.Stack())
		}
	}()
	path, err := e.spec.Find(e.s.life)
	if err != nil {
		return nil, err
	}
	o := e.spec.Options
	o.Engine.MaxBatch = e.gate.parallel
	o.Engine.MaxQueue = 2*e.gate.inside + e.gate.queue // with those that are parked
	return chat.Open(e.s.life, path, o)
}

// unload closes the model if nobody has used it for a while.
func (e *entry) unload(idle time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.model == nil || e.users > 0 || e.s.clock.Now().Sub(e.unused) < idle {
		return
	}
	if err := e.close(); err != nil {
		e.s.log.Error("model not unloaded cleanly", "model", e.spec.Name, "error", err.Error())
		return
	}
	e.s.log.Info("model unloaded", "model", e.spec.Name, "idle_seconds", idle.Seconds())
}

// close ends the model; e.mu is held.
func (e *entry) close() error {
	m := e.model
	e.model = nil
	if m == nil {
		return nil
	}
	e.metrics.Unloaded()
	return m.Close()
}

// loaded says whether the model is in memory.
func (e *entry) loaded() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.model != nil
}

func (e *entry) known() facts {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.facts
}

// find gives the model that a request names; the first one if it names none.
func (s *Server) find(name string) (*entry, *apiError) {
	if name == "" {
		return s.models[0], nil
	}
	for _, e := range s.models {
		if e.spec.Name == name {
			return e, nil
		}
	}
	names := make([]string, len(s.models))
	for i, e := range s.models {
		names[i] = e.spec.Name
	}
	sort.Strings(names)
	return nil, &apiError{status: http.StatusNotFound, kind: typeRequest, param: "model", code: "model_not_found",
		message: fmt.Sprintf("the model %q is not served here: there is %s", short(name), strings.Join(names, ", "))}
}

// modelObject is a model in the answers of /v1/models.
type modelObject struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
	Loaded  bool   `json:"loaded"`
	// Context is 0 as long as the model was never loaded.
	Context     int    `json:"max_model_len,omitempty"`
	Dim         int    `json:"embedding_dim,omitempty"`
	FIM         bool   `json:"fill_in_the_middle,omitempty"`
	Template    string `json:"chat_template,omitempty"`
	Fingerprint string `json:"system_fingerprint,omitempty"`
}

func (e *entry) object() modelObject {
	f := e.known()
	o := modelObject{ID: e.spec.Name, Object: "model", Created: f.created, OwnedBy: "nanochat", Loaded: e.loaded(),
		Context: f.context, Dim: f.dim, FIM: f.fim, Template: f.template, Fingerprint: f.fingerprint}
	if o.Created == 0 {
		o.Created = e.s.started.Unix()
	}
	return o
}

func (s *Server) listModels(w http.ResponseWriter, _ *http.Request) *apiError {
	list := make([]modelObject, len(s.models))
	for i, e := range s.models {
		list[i] = e.object()
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": list})
	return nil
}

func (s *Server) oneModel(w http.ResponseWriter, r *http.Request) *apiError {
	e, err := s.find(r.PathValue("model"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, e.object())
	return nil
}

// factsOf reads what is told about a model. created is seconds since 1970.
func factsOf(m *chat.Model, created int64) facts {
	info := m.Info()
	f := facts{known: true, context: m.Config().Context, dim: m.Config().Dim, created: created, fim: info.FIM, template: info.ChatTemplate}
	// The same weights give the same text whatever computes them.
	f.fingerprint = "fp_" + info.SHA256[:min(12, len(info.SHA256))]
	return f
}
