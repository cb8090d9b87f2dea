package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestKeys(t *testing.T) {
	keys, err := ParseKeys("keys", []byte("# two\none\n\n  two \n"))
	require.NoError(t, err)
	require.Equal(t, []string{"one", "two"}, keys)
	for _, bad := range []string{"", "# none\n", "a b\n", "ü\n", strings.Repeat("a", 600)} {
		_, err := ParseKeys("keys", []byte(bad))
		require.ErrorContains(t, err, "keys")
	}
	f := serve(t, Options{Keys: keys}, nil)
	for _, c := range []struct {
		header, value string
		status        int
	}{
		{"Authorization", "Bearer one", 200}, {"Authorization", "bearer  two", 200}, {"X-Api-Key", "two", 200},
		{"Authorization", "Bearer onE", 401}, {"Authorization", "Bearer ", 401}, {"Authorization", "Basic one", 401}, {"X", "one", 401},
	} {
		r := f.get(t, "GET", "/v1/models", c.header, c.value)
		require.Equal(t, c.status, r.StatusCode, c.value)
		if c.status == 401 {
			require.Equal(t, "Bearer", r.Header.Get("WWW-Authenticate"))
			b, _ := io.ReadAll(r.Body)
			require.Equal(t, "authentication_error", errorIn(t, b).Type)
		}
	}
	require.Equal(t, 401, f.get(t, "GET", "/metrics").StatusCode)
	require.Equal(t, 200, f.get(t, "GET", "/healthz").StatusCode)
	require.Equal(t, 200, f.get(t, "GET", "/").StatusCode)
	require.NoError(t, f.SetKeys([]string{"three"}))
	require.Equal(t, 401, f.get(t, "GET", "/v1/models", "Authorization", "Bearer one").StatusCode)
	require.Equal(t, 200, f.get(t, "GET", "/v1/models", "Authorization", "Bearer three").StatusCode)
}

func TestHosts(t *testing.T) {
	f := serve(t, Options{Hosts: []string{"Api.Example.org"}}, nil)
	for host, status := range map[string]int{
		"localhost": 200, "localhost:8080": 200, "127.0.0.1": 200, "[::1]:80": 200, "10.2.3.4:80": 200, "a.localhost": 200,
		"api.example.org": 200, "API.example.org.:443": 200,
		"evil.example": 403, "evil.example:8080": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example": 403, "example.org": 403,
	} {
		require.Equal(t, status, f.get(t, "GET", "/v1/models", "Host", host).StatusCode, host)
	}
	require.Equal(t, 200, serve(t, Options{Hosts: []string{"*"}}, nil).get(t, "GET", "/healthz", "Host", "evil.example").StatusCode)
}

func TestOrigins(t *testing.T) {
	f := serve(t, Options{Origins: []string{"https://good.example"}}, nil)
	send := func(method string, headers ...string) *http.Response {
		req, err := http.NewRequest(method, f.url+"/v1/completions", strings.NewReader(`{"prompt":"a","max_tokens":1}`))
		require.NoError(t, err)
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		r, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		r.Body.Close()
		return r
	}
	require.Equal(t, 403, send("POST", "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site").StatusCode)
	require.Equal(t, 403, send("POST", "Origin", "https://evil.example").StatusCode)
	require.Equal(t, 200, send("POST", "Origin", f.url, "Sec-Fetch-Site", "same-origin").StatusCode)
	require.Equal(t, 200, send("POST").StatusCode)
	r := send("POST", "Origin", "https://good.example", "Sec-Fetch-Site", "cross-site")
	require.Equal(t, 200, r.StatusCode)
	require.Equal(t, "https://good.example", r.Header.Get("Access-Control-Allow-Origin"))
	r = send("OPTIONS", "Origin", "https://good.example", "Access-Control-Request-Method", "POST")
	require.Equal(t, 204, r.StatusCode)
	require.Contains(t, r.Header.Get("Access-Control-Allow-Headers"), "Authorization")
	r = send("OPTIONS", "Origin", "https://evil.example", "Access-Control-Request-Method", "POST")
	require.Equal(t, 405, r.StatusCode)
	require.Empty(t, r.Header.Get("Access-Control-Allow-Origin"))
	for _, bad := range []string{"good.example", "https://good.example/", "ftp://a", "null", "*"} {
		_, err := New(Options{Models: []ModelSpec{spec(t, "m")}, Origins: []string{bad}})
		require.Error(t, err, bad)
	}
}

func TestRequestIDs(t *testing.T) {
	f := serve(t, Options{}, nil)
	require.Equal(t, "mine-1", f.get(t, "GET", "/healthz", "X-Request-Id", "mine-1").Header.Get("X-Request-Id"))
	for _, bad := range []string{"", "a b", strings.Repeat("a", 200), "ü"} {
		id := f.get(t, "GET", "/healthz", "X-Request-Id", bad).Header.Get("X-Request-Id")
		require.True(t, strings.HasPrefix(id, "req_"), "%q gave %q", bad, id)
	}
	require.Contains(t, f.log.String(), "mine-1")
}

func TestMethodsAndPaths(t *testing.T) {
	f := serve(t, Options{}, nil)
	r := f.get(t, "GET", "/v1/completions")
	require.Equal(t, 405, r.StatusCode)
	require.Equal(t, "POST", r.Header.Get("Allow"))
	b, _ := io.ReadAll(r.Body)
	require.Equal(t, "method_not_allowed", errorIn(t, b).Code)
	r = f.get(t, "GET", "/v2/x")
	require.Equal(t, 404, r.StatusCode)
	b, _ = io.ReadAll(r.Body)
	require.Contains(t, errorIn(t, b).Message, "/v1/chat/completions")
	require.Equal(t, 200, f.get(t, "HEAD", "/healthz").StatusCode)
	require.Equal(t, 404, f.get(t, "GET", "/debug/pprof/").StatusCode, "profiles are not on the public address")
}

func TestLoading(t *testing.T) {
	hold := make(chan struct{})
	slow := spec(t, "slow")
	find := slow.Find
	slow.Find = func(ctx context.Context) (string, error) { <-hold; return find(ctx) }
	s, err := New(Options{Models: []ModelSpec{slow}})
	require.NoError(t, err)
	defer s.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, ln) }()
	f := &fixture{Server: s, url: "http://" + ln.Addr().String()}
	require.Equal(t, 503, f.get(t, "GET", "/readyz").StatusCode)
	require.Equal(t, 200, f.get(t, "GET", "/healthz").StatusCode)
	answer := make(chan int)
	go func() {
		r, err := http.Post(f.url+"/v1/completions", "", strings.NewReader(`{"prompt":"a","max_tokens":1}`))
		if err != nil {
			answer <- 0
			return
		}
		r.Body.Close()
		answer <- r.StatusCode
	}()
	close(hold)
	require.Equal(t, 200, <-answer, "it waits for the model")
	require.Equal(t, 200, f.get(t, "GET", "/readyz").StatusCode)
	cancel()
	require.NoError(t, <-done)

	broken := spec(t, "broken")
	broken.Find = func(context.Context) (string, error) { return "", errors.New("made up") }
	g := serve(t, Options{Models: []ModelSpec{spec(t, "m"), broken}}, nil)
	status, b := g.post(t, "/v1/completions", `{"model":"broken","prompt":"a"}`)
	require.Equal(t, 503, status)
	require.Equal(t, "model_not_loaded", errorIn(t, b).Code)
	require.NotContains(t, string(b), "made up")
	require.ErrorContains(t, g.Load(t.Context(), "broken"), "made up")
	g.ok(t, "/v1/completions", `{"model":"m","prompt":"a","max_tokens":1}`)
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for want, o := range map[string]Options{
		"no model": {}, "parallel": {Models: []ModelSpec{spec(t, "m")}, Parallel: -1}, "queue": {Models: []ModelSpec{spec(t, "m")}, Queue: -1},
		"twice": {Models: []ModelSpec{spec(t, "m"), spec(t, "m")}}, "idle": {Models: []ModelSpec{spec(t, "m")}, IdleUnload: -1},
		"limit n": {Models: []ModelSpec{spec(t, "m")}, Limits: Limits{N: -1}}, "limit read": {Models: []ModelSpec{spec(t, "m")}, Limits: Limits{Read: -1}},
		"key": {Models: []ModelSpec{spec(t, "m")}, Keys: []string{""}},
	} {
		_, err := New(o)
		require.ErrorContains(t, err, want)
	}
}

// TestSockets serves over TLS and over a Unix socket.
func TestSockets(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(certificate))

	run := func(ln net.Listener, client *http.Client, url string) {
		s, err := New(Options{Models: []ModelSpec{spec(t, "m")}})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Serve(ctx, ln) }()
		r, err := client.Get(url + "/healthz")
		require.NoError(t, err)
		require.Equal(t, 200, r.StatusCode)
		r.Body.Close()
		cancel()
		require.NoError(t, <-done)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, err = TLS(ln, certificate, certificate)
	require.Error(t, err)
	secure, err := TLS(ln, certificate, private)
	require.NoError(t, err)
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	run(secure, &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}, "https://localhost:"+port)

	path := filepath.Join(t.TempDir(), "s")
	ln, err = net.Listen("unix", path)
	require.NoError(t, err)
	run(ln, &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}}, "http://any.name.at.all")
}

func TestDebug(t *testing.T) {
	h := Debug()
	for path, status := range map[string]int{
		"/debug/pprof/": 200, "/debug/pprof/heap": 200, "/debug/pprof/goroutine?debug=1": 200, "/debug/pprof/none": 404, "/": 404,
		"/debug/pprof/profile?seconds=0.01": 200, "/debug/pprof/trace?seconds=0.01": 200,
	} {
		r := newRequest("GET", path, "127.0.0.1:1")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		require.Equal(t, status, w.Code, path)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, newRequest("GET", "/debug/pprof/", "evil.example"))
	require.Equal(t, 403, w.Code)
}
