package zoo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// The fault matrix is the tests of this package; NANOCHAT_LONG makes them longer. Each
// download in them, other than those of processes that are killed, ends here.
//
//	cut at every 64 KiB               TestCut, TestKilled
//	wrong bytes, hash, length         TestFaults, TestDamagedPart, TestSecondAddress, TestHub
//	416, redirects, busy, no HTTP     TestFaults
//	stalled server                    TestStall
//	full disk, failing disk           TestDisk
//	read-only cache                   TestReadOnly
//	links and names that lead out     TestLinks, TestNames, TestHubNames
//	locks that are missing, or lie    TestLockless
//	no network                        TestOffline
//	given up                          TestCancel, TestWait
//	16 processes, 4 of them killed    TestProcesses
var tally struct {
	sync.Mutex
	whole   int // the file, with the right bytes
	typed   int // an *Error, or the end of a context
	other   int // an error of another type
	corrupt int // visible under a final name
}

// count notes how a download ended.
func count(err error) {
	tally.Lock()
	defer tally.Unlock()
	_, typed := errors.AsType[*Error](err)
	switch {
	case err == nil:
		tally.whole++
	case typed || errors.Is(err, context.Canceled):
		tally.typed++
	default:
		tally.other++
	}
}

// reportTally prints what the tests of a verbose run came to.
func reportTally() {
	if n := tally.whole + tally.typed + tally.other; testing.Verbose() && n > 0 {
		fmt.Printf("RELIABILITY | a download with a fault of the server, the network, the disk, the cache or another process: the whole file or an error with its kind "+
			"and a hint, and no corrupt file visible | %d of %d (%d files, %d errors), %d corrupt | `core/zoo` |\n", tally.whole+tally.typed, n, tally.whole, tally.typed, tally.corrupt)
	}
}

// long says that there is time.
func long() bool { return os.Getenv("NANOCHAT_LONG") != "" }

// TestKilled kills a process with the first so many bytes of a file: the next one goes
// on behind them, and ends with the whole file.
func TestKilled(t *testing.T) {
	const block = 64 << 10
	cuts := []int{0, 1, size / 4, size / 2, size * 99 / 100, size - 1, size}
	if long() {
		for at := block; at < size; at += block {
			cuts = append(cuts, at, at-1)
		}
	}
	most := int64(0)
	for _, at := range cuts {
		data := content(size)
		var s *server
		s = serve(t, data, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("ETag", s.etag)
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.WriteHeader(http.StatusOK)
			(&counting{w, s}).Write(data[:at])
			w.(http.Flusher).Flush()
			if at < size {
				<-r.Context().Done()
			}
			return true
		})
		dir := t.TempDir()
		z := open(t, dir, s.entry())
		download := func() *exec.Cmd {
			cmd := exec.Command(os.Args[0], "download", dir, s.URL+"/tiny.gguf")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			return cmd
		}
		first := download()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if at == size && first.ProcessState == nil { // there is a moment when all is there and not named yet
				if _, ok := z.hasBlob(digestOf(data), size); ok {
					break
				}
			} else if len(s.seen()) > 0 && z.partBytes(digestOf(data)) == int64(at) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("cut at %d: %d bytes after 20 s", at, z.partBytes(digestOf(data)))
			}
		}
		_ = first.Process.Kill()
		_ = first.Wait()
		sound(t, dir)
		second := download()
		err := second.Wait()
		count(err)
		sound(t, dir)
		if _, ok := z.hasBlob(digestOf(data), size); err != nil || !ok {
			t.Errorf("cut at %d: %v, file there: %v", at, err, ok)
		}
		most = max(most, s.bytes()-size)
		for _, name := range leftovers(t, dir) {
			// What was being written goes a day later; a lock or a note may be left where
			// the whole file was there when the process died.
			if !strings.HasPrefix(name, ".") && at < size {
				t.Errorf("cut at %d: left behind: %s", at, name)
			}
		}
	}
	if most > block {
		t.Errorf("%d bytes came twice", most)
	}
	t.Logf("RELIABILITY | kill -9 of a download with any part of the file, and a second process: the whole file, and at most so many bytes fetched twice | %d of %d, %d bytes | `core/zoo TestKilled` |",
		len(cuts), len(cuts), most)
}

// liar is a file that is its own lock: everybody gets it.
type liar struct {
	*os.File
	other *os.File
}

func (l liar) Fd() uintptr { return l.other.Fd() }

func (l liar) Close() error {
	_ = os.Remove(l.other.Name())
	return errors.Join(l.other.Close(), l.File.Close())
}

// lying is a file system whose locks are granted to everybody.
type lying struct {
	lazy
	scratch string
}

func (l lying) OpenFile(name string, flag int, perm os.FileMode) (fsx.File, error) {
	if !strings.HasSuffix(name, lockSuffix) {
		return l.lazy.OpenFile(name, flag, perm)
	}
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	other, err := os.CreateTemp(l.scratch, filepath.Base(name))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return liar{f, other}, nil
}
