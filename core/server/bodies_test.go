package server

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestLargeBodies: however many come at a time, a bounded number is held, and small
// requests are answered meanwhile.
func TestLargeBodies(t *testing.T) {
	f := serve(t, Options{}, nil)
	body := `{"prompt":[` + strings.Repeat("1,", 2*smallBody) + `1]}`
	head := fmt.Sprintf("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", len(body))
	for range largeBodies { // all but the last byte
		f.dial(t, head+body[:len(body)-1])
	}
	require.Eventually(t, func() bool { return len(f.bodies.held) == largeBodies }, 5*time.Second, time.Millisecond)
	status, b := f.post(t, "/v1/completions", body)
	require.Equal(t, http.StatusTooManyRequests, status, "%s", b)
	require.Equal(t, "large_bodies", errorIn(t, b).Code)
	f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":1}`)
}

// TestLargeBodiesLeave: the places are free again after every end of a request, and
// memory is bounded by those that are parsed at a time.
func TestLargeBodiesLeave(t *testing.T) {
	f := serve(t, Options{}, nil)
	ids := `{"prompt":[` + strings.Repeat("1,", smallBody) + `1]}`
	var wg sync.WaitGroup
	for i, body := range []string{ids, ids[:len(ids)-1], `{"x":` + ids + `}`, `"` + ids, ids, ids} {
		wg.Go(func() {
			r, err := http.Post(f.url+"/v1/completions", "", strings.NewReader(body))
			if err != nil {
				t.Errorf("request %d: %v", i, err)
				return
			}
			io.Copy(io.Discard, r.Body)
			r.Body.Close()
			if r.StatusCode != 400 {
				t.Errorf("request %d: status %d", i, r.StatusCode)
			}
		})
	}
	wg.Wait()
	c := f.dial(t, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n"+ids)
	require.Eventually(t, func() bool { return len(f.bodies.held) == 1 }, 5*time.Second, time.Millisecond)
	c.Close()
	require.Eventually(t, func() bool { return len(f.bodies.held)+len(f.bodies.parsed) == 0 }, 5*time.Second, time.Millisecond)
}

// TestPatienceThatComesLate: an event's timer that runs while a later event is on its
// way lends no place for longer than that event.
func TestPatienceThatComesLate(t *testing.T) {
	g := newGate(1, 0)
	tickets, err := g.reserve("a", 1)
	require.Nil(t, err)
	o := &events{q: &query{tickets: tickets}}
	require.NoError(t, o.write(func() error { o.park(); return nil }))
	require.False(t, tickets[0].parked)
	require.False(t, tickets[0].slow)
	require.Equal(t, 1, g.entered)
	require.Zero(t, g.parked)
}
