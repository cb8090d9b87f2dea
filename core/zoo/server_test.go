package zoo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
)

const size = 1 << 20

// content is n bytes that repeat nowhere.
func content(n int) []byte {
	b := make([]byte, 0, n+sha256.Size)
	for i := 0; len(b) < n; i++ {
		sum := sha256.Sum256(fmt.Append(nil, i))
		b = append(b, sum[:]...)
	}
	return b[:n]
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// server serves a file, with faults. A behaviour is given the number of the
// request, from 1, and says whether it has answered it.
type server struct {
	*httptest.Server
	data   []byte
	etag   string
	behave func(n int, w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex
	requests []*http.Request
	sent     int64
	writing  int // calls of counting.Write under way
}

func serve(t *testing.T, data []byte, behave func(n int, w http.ResponseWriter, r *http.Request) bool) *server {
	t.Helper()
	s := &server{data: data, etag: `"one"`, behave: behave}
	s.Server = httptest.NewUnstartedServer(s)
	// What lies in buffers when a client is killed was sent in vain: keep it little.
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetWriteBuffer(16 << 10)
		}
		return ctx
	}
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r)
	n, behave := len(s.requests), s.behave
	s.mu.Unlock()
	if behave != nil && behave(n, w, r) {
		return
	}
	s.file(w, r)
}

// file answers as it should be, ranges and If-Range included.
func (s *server) file(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", s.etag)
	http.ServeContent(&counting{w, s}, r, "x.gguf", time.Time{}, bytes.NewReader(s.data))
}

type counting struct {
	http.ResponseWriter
	s *server
}

func (c *counting) Write(b []byte) (int, error) {
	c.s.mu.Lock()
	c.s.writing++
	c.s.mu.Unlock()
	n, err := c.ResponseWriter.Write(b)
	c.s.mu.Lock()
	c.s.sent += int64(n)
	c.s.writing--
	c.s.mu.Unlock()
	return n, err
}

// bytes is what was sent. A client may have all of it before the call that wrote it returns, which is waited
// for, but not for ever: a client that was killed reads no more.
func (s *server) bytes() int64 {
	for until := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		sent, writing := s.sent, s.writing
		s.mu.Unlock()
		if writing == 0 || time.Now().After(until) {
			return sent
		}
	}
}

func (s *server) seen() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*http.Request(nil), s.requests...)
}

// cut answers a request and closes the connection before byte at of the file.
func (s *server) cut(w http.ResponseWriter, r *http.Request, at int) {
	from := 0
	if h := r.Header.Get("Range"); h != "" {
		fmt.Sscanf(h, "bytes=%d-", &from)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(s.data)-1, len(s.data)))
	}
	w.Header().Set("ETag", s.etag)
	w.Header().Set("Content-Length", fmt.Sprint(len(s.data)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	if at > from {
		(&counting{w, s}).Write(s.data[from:at])
	}
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// quick is a clock on which pauses between attempts last a millisecond; what
// waits for longer, as for a server that stalls, waits in earnest.
type quick struct{ clock.Clock }

func (q quick) After(d time.Duration) <-chan time.Time {
	if d <= 10*time.Second {
		d = min(d, time.Millisecond)
	}
	return q.Clock.After(d)
}

// lazy is the disk without syncs, which take most of the time of these tests.
type lazy struct{ fsx.FS }

type lazyFile struct{ *os.File }

func (lazyFile) Sync() error { return nil }

func (lazy) SyncDir(string) error { return nil }

func (l lazy) Open(name string) (fsx.File, error) { return l.OpenFile(name, os.O_RDONLY, 0) }

func (lazy) OpenFile(name string, flag int, perm fs.FileMode) (fsx.File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return lazyFile{f}, nil
}

// entry is a model of the server's file.
func (s *server) entry() Model {
	return Model{Name: "tiny", Revision: "1", Status: Published, File: "tiny.gguf", Size: int64(len(s.data)), SHA256: digestOf(s.data),
		Licence: "MIT", URLs: []string{s.URL + "/tiny.gguf"}}
}

// open makes a zoo of one model in a cache directory.
func open(t *testing.T, dir string, m Model, change ...func(*Options)) *Zoo {
	t.Helper()
	o := Options{Cache: dir, Index: &Index{Updated: "2026-11", Models: []Model{m}}, Clock: quick{clock.System()}, FS: lazy{fsx.OS()}}
	for _, f := range change {
		f(&o)
	}
	z, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// sound fails the test if a corrupt file is visible in a cache.
func sound(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		digest := strings.TrimPrefix(filepath.Base(name), "sha256-")
		if !validDigest(digest) {
			continue // a part or a lock
		}
		b, err := os.ReadFile(name)
		if err != nil || digestOf(b) != digest {
			t.Errorf("%s is visible and corrupt (%d bytes, %v)", name, len(b), err)
			tally.Lock()
			tally.corrupt++
			tally.Unlock()
		}
	}
}

// leftovers are the files of a cache that are neither blobs nor manifests.
func leftovers(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		name := filepath.Base(path)
		if err == nil && !d.IsDir() && !validDigest(strings.TrimPrefix(name, "sha256-")) && !strings.HasSuffix(path, "1.json") {
			out = append(out, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// get downloads and checks that a success is the whole file.
func get(t *testing.T, z *Zoo, data []byte) (Found, error) {
	t.Helper()
	found, err := z.Resolve(context.Background(), "tiny", Fetch{})
	count(err)
	sound(t, z.Cache())
	if err == nil {
		b, e := os.ReadFile(found.Path)
		if e != nil || !bytes.Equal(b, data) {
			t.Errorf("Resolve gave %s: %d bytes, %v", found.Path, len(b), e)
		}
	}
	return found, err
}
