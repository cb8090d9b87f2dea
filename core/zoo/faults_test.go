package zoo

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
)

// TestCut cuts the connection at every 64 KiB, the first and the last byte, once
// within a run and once so that another run has to go on.
func TestCut(t *testing.T) {
	data := content(size)
	cuts := []int{1, size - 1}
	for at := 0; at <= size; at += 64 << 10 {
		cuts = append(cuts, at)
	}
	for _, at := range cuts {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			var s *server
			s = serve(t, data, func(n int, w http.ResponseWriter, r *http.Request) bool {
				if n == 1 {
					s.cut(w, r, at)
				}
				return false
			})
			if _, err := get(t, open(t, t.TempDir(), s.entry()), data); err != nil {
				t.Errorf("cut once: %v", err)
			}
			if got := s.bytes(); got != size {
				t.Errorf("cut once: %d bytes were sent for a file of %d", got, size)
			}

			var broken atomic.Bool
			broken.Store(true)
			s = serve(t, data, func(n int, w http.ResponseWriter, r *http.Request) bool {
				if broken.Load() {
					s.cut(w, r, at)
				}
				return false
			})
			dir := t.TempDir()
			_, err := get(t, open(t, dir, s.entry()), data)
			if at < size && (!errors.Is(err, ErrNetwork) || len(s.seen()) != 5) {
				t.Errorf("cut always: %v after %d requests", err, len(s.seen()))
			}
			broken.Store(false)
			found, err := get(t, open(t, dir, s.entry()), data)
			if err != nil {
				t.Fatalf("the next run: %v", err)
			}
			if got := s.bytes(); got != size {
				t.Errorf("%d bytes were sent in two runs for a file of %d", got, size)
			}
			if left := leftovers(t, dir); left != nil {
				t.Errorf("left behind: %v", left)
			}
			if found.Source == FromNetwork && at > 0 && s.seen()[len(s.seen())-1].Header.Get("If-Range") != `"one"` {
				t.Error("the next run asked without If-Range")
			}
		})
	}
}

// TestFaults is servers that misbehave. Each ends in the whole file or in an error
// of the right kind with a hint, and no part is left that cannot be gone on with.
func TestFaults(t *testing.T) {
	data := content(size)
	half := size / 2
	status := func(code int) func(*server, int, http.ResponseWriter, *http.Request) bool {
		return func(_ *server, _ int, w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	send := func(b []byte, chunked bool) func(*server, int, http.ResponseWriter, *http.Request) bool {
		return func(_ *server, _ int, w http.ResponseWriter, _ *http.Request) bool {
			if chunked {
				w.(http.Flusher).Flush()
			} else {
				w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			}
			w.Write(b)
			return true
		}
	}
	wrong := content(size)
	wrong[half] ^= 1
	for _, c := range []struct {
		name string
		// cut halfway: the first request is, so that the next one asks for a range.
		cut    bool
		behave func(s *server, n int, w http.ResponseWriter, r *http.Request) bool
		want   Kind // "": the file
		text   string
	}{
		{"wrong bytes", false, send(wrong, false), ErrChecksum, digestOf(wrong)},
		{"wrong bytes, chunked", false, send(wrong, true), ErrChecksum, digestOf(data)},
		{"wrong file", false, send(make([]byte, size), false), ErrChecksum, ""},
		{"short", false, send(data[:half], false), ErrChecksum, "has 524288 bytes, not 1048576"},
		{"short, chunked", false, send(data[:half], true), ErrNetwork, "ends at byte 524288"},
		{"long", false, send(append(content(size), 1), false), ErrChecksum, "has 1048577 bytes"},
		{"long, chunked", false, send(append(content(size), 1), true), ErrChecksum, ""},
		{"nothing", false, send(nil, false), ErrChecksum, "has 0 bytes"},
		{"a page instead", false, send([]byte("<html>Please log in</html>"), true), ErrNetwork, ""},
		{"404", false, status(404), ErrNotFound, "404"},
		{"401", false, status(401), ErrDenied, ""},
		{"403", false, status(403), ErrDenied, ""},
		{"400", false, status(400), ErrNetwork, "400"},
		{"204", false, status(204), ErrNetwork, "204"},
		{"500", false, status(500), ErrNetwork, "500"},
		{"416 for the whole file", false, status(416), ErrNetwork, ""},
		{"416 for a range", true, func(_ *server, _ int, w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") == "" {
				return false
			}
			w.WriteHeader(416)
			return true
		}, "", ""},
		{"416 and another size", true, func(_ *server, _ int, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Range", "bytes */77")
			w.WriteHeader(416)
			return true
		}, ErrChecksum, "has 77 bytes"},
		{"500 three times", false, func(_ *server, n int, w http.ResponseWriter, _ *http.Request) bool {
			if n <= 3 {
				w.WriteHeader(500)
			}
			return n <= 3
		}, "", ""},
		{"429 with Retry-After", false, func(_ *server, n int, w http.ResponseWriter, _ *http.Request) bool {
			if n == 1 {
				w.Header().Set("Retry-After", "3")
				w.WriteHeader(429)
			}
			return n == 1
		}, "", ""},
		{"200 for a range", true, send(data, false), "", ""},
		{"changed in between", true, func(s *server, n int, w http.ResponseWriter, r *http.Request) bool {
			s.etag = `"two"`
			return false
		}, "", ""},
		{"changed, If-Range ignored", true, func(s *server, n int, w http.ResponseWriter, r *http.Request) bool {
			s.etag = `"two"`
			r.Header.Del("If-Range")
			return false
		}, "", ""},
		{"wrong Content-Range", true, func(s *server, n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 2 {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", size-1, size))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(data)
			return true
		}, "", ""},
		{"no Content-Range", true, func(s *server, n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				w.WriteHeader(http.StatusPartialContent)
				w.Write(data[half:])
			}
			return n == 2
		}, "", ""},
		{"one redirect", false, func(_ *server, n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				http.Redirect(w, r, "/elsewhere?signature=secret", http.StatusFound)
			}
			return n == 1
		}, "", ""},
		{"redirect loop", false, func(_ *server, n int, w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, fmt.Sprint("/", n), http.StatusFound)
			return true
		}, ErrNetwork, "more than 5 redirects"},
		{"redirect to a file", false, func(_ *server, n int, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusFound)
			return true
		}, ErrNetwork, "redirect"},
		{"gzip", false, func(_ *server, n int, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Encoding", "gzip")
			g := gzip.NewWriter(w)
			g.Write(data)
			g.Close()
			return true
		}, ErrNetwork, "encoded"},
		{"no HTTP", false, func(_ *server, n int, w http.ResponseWriter, r *http.Request) bool {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Write([]byte("220 smtp ready\r\n"))
				conn.Close()
			}
			return true
		}, ErrNetwork, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var s *server
			s = serve(t, data, func(n int, w http.ResponseWriter, r *http.Request) bool {
				if c.cut && n == 1 {
					s.cut(w, r, half)
				}
				return c.behave(s, n, w, r)
			})
			dir := t.TempDir()
			_, err := get(t, open(t, dir, s.entry()), data)
			checkKind(t, err, c.want, c.text)
			if c.want == "" || c.want == ErrChecksum {
				if left := leftovers(t, dir); left != nil {
					t.Errorf("left behind: %v", left)
				}
			}
			if n := len(s.seen()); n > 7 {
				t.Errorf("%d requests", n)
			}
			// With a server that is right the same cache ends well.
			m := s.entry()
			m.URLs = []string{serve(t, data, nil).URL + "/x.gguf"}
			if _, err := get(t, open(t, dir, m), data); err != nil {
				t.Errorf("afterwards, from a server that is right: %v", err)
			}
		})
	}
}

// checkKind checks an error's kind, text and hint.
func checkKind(t *testing.T, err error, want Kind, text string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("got %v", err)
		}
		return
	}
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Kind != want || !errors.Is(err, want) || e.Hint == "" || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want kind %q, %q and a hint", err, want, text)
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the error tells a secret: %v", err)
	}
}

// TestDamagedPart goes on from a part that was changed on the disk, or is too long.
func TestDamagedPart(t *testing.T) {
	data := content(size)
	for name, change := range map[string]func([]byte) []byte{
		"changed":  func(b []byte) []byte { b[100] ^= 1; return b },
		"too long": func(b []byte) []byte { return append(b, content(size)...) },
		"complete": func([]byte) []byte { return content(size) },
		"whole, and wrong": func([]byte) []byte {
			b := content(size)
			b[9] ^= 1
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, data, nil)
			dir := t.TempDir()
			z := open(t, dir, s.entry())
			if err := os.MkdirAll(z.blobs(), 0o755); err != nil {
				t.Fatal(err)
			}
			part := z.blob(digestOf(data)) + "." + host() + partSuffix
			if err := os.WriteFile(part, change(content(size/2)), 0o644); err != nil {
				t.Fatal(err)
			}
			if got := z.List()[0].State; got != StatePartial {
				t.Errorf("listed as %s", got)
			}
			if _, err := get(t, z, data); err != nil {
				t.Error(err)
			}
			if got := s.bytes(); name == "complete" && got != 0 {
				t.Errorf("%d bytes were sent for a file that is complete", got)
			}
			if left := leftovers(t, dir); left != nil {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestSecondAddress finds the file where the first address has another one.
func TestSecondAddress(t *testing.T) {
	data := content(size)
	for name, first := range map[string][]byte{"another file": content(size - 1), "wrong bytes": append([]byte("wrong"), data[5:]...)} {
		s := serve(t, data, nil)
		m := s.entry()
		m.URLs = append([]string{serve(t, first, nil).URL}, m.URLs...)
		if _, err := get(t, open(t, t.TempDir(), m), data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStall lets a server stop in the middle, once and for ever.
func TestStall(t *testing.T) {
	data := content(size)
	for _, stalls := range []int{1, 1000} {
		c := clock.NewManual(time.Unix(0, 0))
		quit, done := make(chan struct{}), make(chan struct{})
		stalled := make(chan struct{}, 1000)
		s := serve(t, data, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > stalls {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.Write(data[:size/2])
			w.(http.Flusher).Flush()
			stalled <- struct{}{}
			select {
			case <-r.Context().Done():
			case <-quit:
			}
			return true
		})
		// Time passes only while a server stalls or a pause between attempts is waited for.
		go func() {
			for {
				select {
				case <-done:
					return
				case <-stalled:
					c.Advance(31 * time.Second)
				case <-time.After(20 * time.Millisecond):
					c.Advance(3 * time.Second)
				}
			}
		}()
		_, err := get(t, open(t, t.TempDir(), s.entry(), func(o *Options) { o.Clock = c }), data)
		close(quit)
		close(done)
		if stalls == 1 {
			checkKind(t, err, "", "")
		} else {
			checkKind(t, err, ErrNetwork, "sends nothing for 30s")
		}
	}
}

// TestDisk fills the disk, and fails every operation on it in turn.
func TestDisk(t *testing.T) {
	data := content(size)
	s := serve(t, data, nil)
	dir := t.TempDir()
	full := fsx.NewFault(lazy{fsx.OS()}, fsx.FaultOptions{Space: size / 2})
	_, err := get(t, open(t, dir, s.entry(), func(o *Options) { o.FS = full }), data)
	checkKind(t, err, ErrCache, "no space left")
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v is no ENOSPC", err)
	}
	if _, err := get(t, open(t, dir, s.entry()), data); err != nil {
		t.Error(err)
	}
	if got := s.seen()[1].Header.Get("Range"); !strings.HasPrefix(got, "bytes=5") && !strings.HasPrefix(got, "bytes=4") {
		t.Errorf("after some space was freed: Range %q", got)
	}

	for _, fault := range []error{syscall.EIO, syscall.ENOSPC, syscall.EACCES} {
		failEach(t, fault)
	}
}

// failEach fails each operation of a download in turn.
func failEach(t *testing.T, fault error) {
	small := content(40_000)
	s := serve(t, small, nil)
	for n := 1; ; n++ {
		dir := t.TempDir()
		f := fsx.NewFault(lazy{fsx.OS()}, fsx.FaultOptions{FailAt: n, Err: fault, Short: true})
		_, err := get(t, open(t, dir, s.entry(), func(o *Options) { o.FS = f }), small)
		if !f.Failed() {
			if n < 15 {
				t.Errorf("only %d operations", n)
			}
			break
		}
		if err != nil && !errors.Is(err, ErrCache) {
			t.Errorf("operation %d of %v: %v", n, f.Ops()[n-1], err)
		}
		if _, err := get(t, open(t, dir, s.entry()), small); err != nil {
			t.Errorf("after operation %d failed: %v", n, err)
		}
	}
}

// readOnly is a file system that cannot be written to.
type readOnly struct{ fsx.FS }

func (r readOnly) OpenFile(name string, flag int, perm fs.FileMode) (fsx.File, error) {
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE) != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EROFS}
	}
	return r.FS.OpenFile(name, flag, perm)
}

func (r readOnly) MkdirAll(name string, perm fs.FileMode) error {
	if _, err := r.Stat(name); err == nil {
		return nil
	}
	return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.EROFS}
}

func (r readOnly) Remove(name string) error {
	return &fs.PathError{Op: "remove", Path: name, Err: syscall.EROFS}
}

func (r readOnly) Rename(_, name string) error {
	return &fs.PathError{Op: "rename", Path: name, Err: syscall.EROFS}
}

// TestReadOnly uses a cache that cannot be written to.
func TestReadOnly(t *testing.T) {
	data := content(size)
	s := serve(t, data, nil)
	dir := t.TempDir()
	locked := func(o *Options) { o.FS = readOnly{lazy{fsx.OS()}} }
	_, err := get(t, open(t, dir, s.entry(), locked), data)
	checkKind(t, err, ErrCache, "read-only")
	if _, err := get(t, open(t, dir, s.entry()), data); err != nil {
		t.Fatal(err)
	}
	found, err := get(t, open(t, dir, s.entry(), locked), data)
	if err != nil || found.Source != FromCache || len(s.seen()) != 1 {
		t.Errorf("%+v, %v, %d requests", found, err, len(s.seen()))
	}
	// The same contents by a name that this cache does not know.
	other := s.entry()
	other.Name = "other"
	if found, err = open(t, dir, other, locked).Resolve(context.Background(), "other", Fetch{}); err != nil || found.Source != FromCache {
		t.Errorf("by another name: %+v, %v", found, err)
	}
	hub := serve(t, data, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("X-Linked-Etag", `"`+digestOf(data)+`"`)
		return false
	})
	if found, err = open(t, dir, other, locked, func(o *Options) { o.Endpoint = hub.URL }).Resolve(context.Background(), "hub:a/b/c.gguf", Fetch{}); err != nil ||
		found.Source != FromCache || hub.bytes() != 0 {
		t.Errorf("by a name of the hub: %+v, %v, %d bytes", found, err, hub.bytes())
	}
	_, err = open(t, dir, s.entry(), locked).Remove("tiny")
	checkKind(t, err, ErrCache, "read-only")
}

// TestCancel gives up in the middle; what is there is used by the next run.
func TestCancel(t *testing.T) {
	data := content(size)
	quit := make(chan struct{})
	s := serve(t, data, func(n int, w http.ResponseWriter, r *http.Request) bool {
		if n == 1 {
			w.Header().Set("ETag", `"one"`)
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.Write(data[:size/2])
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
			case <-quit:
			}
		}
		return n == 1
	})
	defer close(quit)
	dir := t.TempDir()
	z := open(t, dir, s.entry())
	ctx, cancel := context.WithCancel(context.Background())
	var at time.Time
	_, err := z.Resolve(ctx, "tiny", Fetch{Progress: func(p Progress) {
		if p.Done == size/2 {
			at = time.Now()
			cancel()
		}
	}})
	// 200 ms is promised; a machine that does ten other things gets more.
	if took := time.Since(at); !errors.Is(err, context.Canceled) || took > time.Second {
		t.Errorf("%v after %v", err, took)
	}
	last := int64(-1)
	_, err = z.Resolve(context.Background(), "tiny", Fetch{Progress: func(p Progress) {
		if p.State == Downloading && (p.Done < last || p.Total != size || p.Model != "tiny") {
			t.Errorf("progress %+v after %d", p, last)
		}
		last = p.Done
	}})
	if err != nil || last != size || s.bytes() != size/2 {
		t.Errorf("%v, %d bytes reported, %d sent", err, last, s.bytes())
	}
}
