package zoo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
)

// TestMain lets the test program be a process that downloads: one argument is a
// cache, the next the address of a server of content(size).
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "download" {
		os.Exit(child(os.Args[2], os.Args[3]))
	}
	code := m.Run()
	reportTally()
	os.Exit(code)
}

func child(dir, address string) int {
	s := &server{Server: &httptest.Server{}, data: content(size)}
	e := s.entry()
	e.URLs = []string{address}
	z, err := New(Options{Cache: dir, Index: &Index{Models: []Model{e}}})
	if err == nil {
		said := false
		_, err = z.Resolve(context.Background(), "tiny", Fetch{Progress: func(p Progress) {
			if !said && p.State == Downloading && p.Done > 0 {
				said = true
				fmt.Println("downloading")
			}
		}})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("done")
	return 0
}

// TestProcesses lets 16 processes want one file in one empty cache, and kills the
// first four that download it. Twelve get it, and together they ask for less than
// two files.
func TestProcesses(t *testing.T) {
	s := serve(t, content(size), nil)
	s.mu.Lock() // the requests of other processes come after nothing that the race detector knows
	s.behave = func(n int, w http.ResponseWriter, r *http.Request) bool {
		s.file(slow{w}, r)
		return true
	}
	s.mu.Unlock()
	dir := t.TempDir()
	var mu sync.Mutex
	killed, good := 0, 0
	var wg sync.WaitGroup
	for range 16 {
		cmd := exec.Command(os.Args[0], "download", dir, s.URL+"/tiny.gguf")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			died, finished := false, false
			for lines := bufio.NewScanner(out); lines.Scan(); {
				finished = finished || lines.Text() == "done"
				mu.Lock()
				if lines.Text() == "downloading" && killed < 4 {
					killed++
					died = cmd.Process.Kill() == nil
				}
				mu.Unlock()
			}
			err := cmd.Wait()
			mu.Lock()
			defer mu.Unlock()
			if died {
				return
			}
			if err != nil || !finished {
				t.Errorf("a process that was not killed: %v\n%s", err, stderr.String())
				return
			}
			good++
			count(nil)
		})
	}
	wg.Wait()
	sound(t, dir)
	z := open(t, dir, s.entry())
	if _, ok := z.cached(wanted{name: "tiny", revision: "1", digest: digestOf(s.data), size: size}); !ok || killed != 4 || good != 12 {
		t.Errorf("in the cache: %v, killed %d, good %d", ok, killed, good)
	}
	if got := s.bytes(); got > 2*size {
		t.Errorf("%d bytes were sent for a file of %d", got, size)
	} else {
		t.Logf("RELIABILITY | 16 processes want one file in one empty cache, and the first 4 that download are killed: the others get it, and so much is sent for them all | "+
			"%d of 12, %.2f files | `core/zoo TestProcesses` |", good, float64(got)/size)
	}
	if left := leftovers(t, dir); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

// slow sends 32 KiB in 10 ms, so that processes can be killed in the middle.
type slow struct{ http.ResponseWriter }

func (s slow) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = s.ResponseWriter.Write(b[n:min(len(b), n+32<<10)])
		n += k
		s.ResponseWriter.(http.Flusher).Flush()
		time.Sleep(10 * time.Millisecond)
	}
	return n, err
}

// lockless is a file system without locks.
type lockless struct{ fsx.FS }

type locklessFile struct{ fsx.File }

func (l lockless) OpenFile(name string, flag int, perm fs.FileMode) (fsx.File, error) {
	f, err := l.FS.OpenFile(name, flag, perm)
	return locklessFile{f}, err
}

// TestLockless downloads one file many times at once where locks do not work, or are
// granted to everybody.
func TestLockless(t *testing.T) {
	data := content(size)
	for _, fsys := range []fsx.FS{lockless{fsx.OS()}, lying{lazy{fsx.OS()}, t.TempDir()}} {
		s := serve(t, data, nil)
		dir := t.TempDir()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				z := open(t, dir, s.entry(), func(o *Options) { o.FS = fsys })
				if _, err := get(t, z, data); err != nil {
					t.Errorf("%T: %v", fsys, err)
				}
			})
		}
		wg.Wait()
		for _, name := range leftovers(t, dir) {
			if !strings.HasSuffix(name, lockSuffix) { // nobody holds it, so nobody removes it
				t.Errorf("%T: left behind: %s", fsys, name)
			}
		}
	}
}

// TestGoroutines lets goroutines of one process want one file.
func TestGoroutines(t *testing.T) {
	data := content(size)
	s := serve(t, data, nil)
	z := open(t, t.TempDir(), s.entry())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := get(t, z, data); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := s.bytes(); got != size {
		t.Errorf("%d bytes were sent for a file of %d", got, size)
	}
}

// TestWait gives up waiting for another process, and says that it waits.
func TestWait(t *testing.T) {
	s := serve(t, content(size), nil)
	z := open(t, t.TempDir(), s.entry(), func(o *Options) { o.Clock = clock.System() })
	if err := os.MkdirAll(z.blobs(), 0o755); err != nil {
		t.Fatal(err)
	}
	l, held, err := z.lock("tiny", digestOf(s.data))
	if err != nil || held || l == nil {
		t.Skipf("no locks here: %v", err)
	}
	defer z.unlock(l)
	if _, err := z.Remove("tiny"); !errors.Is(err, ErrBusy) {
		t.Errorf("Remove of what is being downloaded: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	state := ""
	_, err = z.Resolve(ctx, "tiny", Fetch{Progress: func(p Progress) { state = p.State; cancel() }})
	if !errors.Is(err, context.Canceled) || state != Waiting || s.bytes() != 0 {
		t.Errorf("%v, %q, %d bytes", err, state, s.bytes())
	}
}
