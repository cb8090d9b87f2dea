package server

import (
	"context"
	"fmt"
	"net/http"
	"runtime/pprof"
	"runtime/trace"
	"strconv"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
)

// Debug answers what `go tool pprof` and `go tool trace` ask. It belongs on an
// address of its own that only the operator reaches.
//
//	/debug/pprof/          the names of the profiles
//	/debug/pprof/profile   processor time of ?seconds=N (30)
//	/debug/pprof/trace     what the scheduler does for ?seconds=N (1)
//	/debug/pprof/NAME      heap, goroutine, ...; ?debug=1 is for people
func Debug() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/{$}", func(w http.ResponseWriter, _ *http.Request) {
		for _, p := range pprof.Profiles() {
			fmt.Fprintf(w, "%6d %s\n", p.Count(), p.Name())
		}
		fmt.Fprintln(w, "       profile?seconds=30\n       trace?seconds=1")
	})
	mux.HandleFunc("GET /debug/pprof/profile", func(w http.ResponseWriter, r *http.Request) {
		if err := pprof.StartCPUProfile(w); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		pause(r.Context(), r.FormValue("seconds"), 30)
		pprof.StopCPUProfile()
	})
	mux.HandleFunc("GET /debug/pprof/trace", func(w http.ResponseWriter, r *http.Request) {
		if err := trace.Start(w); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		pause(r.Context(), r.FormValue("seconds"), 1)
		trace.Stop()
	})
	mux.HandleFunc("GET /debug/pprof/{name}", func(w http.ResponseWriter, r *http.Request) {
		p := pprof.Lookup(r.PathValue("name"))
		if p == nil {
			http.Error(w, "there is no such profile; /debug/pprof/ lists them", http.StatusNotFound)
			return
		}
		level, _ := strconv.Atoi(r.FormValue("debug")) // 0, the form for programs, if it is no number
		p.WriteTo(w, min(max(level, 0), 2))            //nolint:errcheck // the client may be gone
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !localName(r.Host) {
			http.Error(w, "call this address by its number", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// pause waits for so many seconds, at most a few minutes.
func pause(ctx context.Context, seconds string, def float64) {
	s, err := strconv.ParseFloat(seconds, 64)
	if err != nil || !(s > 0 && s <= 300) {
		s = def
	}
	select {
	case <-ctx.Done():
	case <-clock.System().After(time.Duration(s * float64(time.Second))):
	}
}
