package server

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// noDeadline takes a deadline away.
var noDeadline time.Time

//go:embed page
var pages embed.FS

// routes fills the mux.
func (s *Server) routes() {
	get, post := []string{http.MethodGet}, []string{http.MethodPost}
	list := []route{
		{path: "/v1/chat/completions", methods: post, traced: true, serve: s.chatCompletions},
		{path: "/v1/completions", methods: post, traced: true, serve: s.completions},
		{path: "/v1/embeddings", methods: post, traced: true, serve: s.embeddings},
		{path: "/v1/models", methods: get, serve: s.listModels},
		{path: "/v1/models/{model...}", methods: get, serve: s.oneModel},
		{path: "/tokenize", methods: post, serve: s.tokenize},
		{path: "/detokenize", methods: post, serve: s.detokenize},
		{path: "/metrics", methods: get, serve: s.scrape},
		{path: "/healthz", methods: get, access: accessOpen, serve: s.alive},
		{path: "/readyz", methods: get, access: accessOpen, serve: s.ready},
		{path: "/{$}", methods: get, access: accessOpen, serve: s.page},
	}
	s.mux = http.NewServeMux()
	var names []string
	for _, rt := range list {
		rt.name = strings.TrimSuffix(rt.path, "{$}")
		names = append(names, rt.name)
		s.mux.Handle(rt.path, s.handle(rt))
	}
	there := strings.Join(names, " ")
	s.mux.Handle("/", s.handle(route{name: "other", access: accessOpen, serve: func(_ http.ResponseWriter, r *http.Request) *apiError {
		return &apiError{status: http.StatusNotFound, kind: typeRequest, code: "not_found",
			message: fmt.Sprintf("there is no %q here; there is %s", short(r.URL.Path), there)}
	}}))
}

// alive is /healthz: the process answers.
func (s *Server) alive(w http.ResponseWriter, _ *http.Request) *apiError {
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	return nil
}

// ready is /readyz: a request would be served now.
func (s *Server) ready(w http.ResponseWriter, _ *http.Request) *apiError {
	not := func(code, why string) *apiError {
		return &apiError{status: http.StatusServiceUnavailable, kind: typeServer, code: code, message: why, retry: 1}
	}
	e := s.models[0]
	switch {
	case s.draining.Load():
		return not("shutting_down", errDraining.Error())
	case !e.known().known:
		return not("loading", fmt.Sprintf("the model %s is not loaded yet", e.spec.Name))
	case e.gate.full():
		return not("queue_full", "the queue is full")
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
	return nil
}

// scrape is /metrics.
func (s *Server) scrape(w http.ResponseWriter, r *http.Request) *apiError {
	s.o.Metrics.Handler().ServeHTTP(w, r)
	return nil
}

// page is /: the chat page. It may run its own scripts and ask this server, and
// nothing else.
func (s *Server) page(w http.ResponseWriter, _ *http.Request) *apiError {
	b, err := pages.ReadFile("page/index.html")
	if err != nil || s.o.NoPage {
		return &apiError{status: http.StatusNotFound, kind: typeRequest, code: "not_found", message: "this server has no page"}
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; script-src "+hashes(b, "script")+"; style-src "+hashes(b, "style")+"; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-cache")
	w.Write(b) //nolint:errcheck // the client may be gone
	return nil
}

// hashes names the elements of a page with this tag by their content, so that
// browsers accept no others.
func hashes(page []byte, tag string) string {
	var names []string
	for {
		_, rest, found := bytes.Cut(page, []byte("<"+tag+">"))
		if !found {
			break
		}
		content, after, _ := bytes.Cut(rest, []byte("</"+tag+">"))
		sum := sha256.Sum256(content)
		names = append(names, "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
		page = after
	}
	if names == nil {
		return "'none'"
	}
	return strings.Join(names, " ")
}
