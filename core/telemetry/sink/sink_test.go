package sink

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
)

// stuck is a writer that blocks until it is released.
type stuck struct {
	release chan struct{}
	once    sync.Once
	in      chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	s.once.Do(func() { close(s.in) })
	<-s.release
	return len(b), nil
}

func TestSinkNeverBlocks(t *testing.T) {
	w := &stuck{release: make(chan struct{}), in: make(chan struct{})}
	s := New(w)
	s.Write([]byte("x"))
	<-w.in
	began := time.Now()
	for range 2 * Depth {
		if n, err := s.Write([]byte("line\n")); n != 5 || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("%d writes took %v", 2*Depth, d)
	}
	if got := s.Dropped(); got != Depth {
		t.Errorf("dropped %d, want %d", got, Depth)
	}
	began = time.Now()
	s.Close()
	if d := time.Since(began); d > 2*CloseWait {
		t.Errorf("Close took %v with a writer that blocks", d)
	}
	if got := s.Dropped(); got != 2*Depth {
		t.Errorf("dropped %d after Close, want %d", got, 2*Depth)
	}
	close(w.release)
}

// failing writers, one of which panics.
type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestSinkCountsFailures(t *testing.T) {
	_, pipe := io.Pipe()
	pipe.CloseWithError(io.ErrClosedPipe)
	for name, w := range map[string]io.Writer{
		"full disk":   writerFunc(func(b []byte) (int, error) { return 0, errors.New("no space left on device") }),
		"half a line": writerFunc(func(b []byte) (int, error) { return len(b) / 2, nil }),
		"panic":       writerFunc(func(b []byte) (int, error) { panic("writer") }),
		"closed pipe": pipe,
	} {
		l := New(w)
		for range 100 {
			l.Write([]byte("line\n"))
		}
		l.Close()
		if got := l.Dropped(); got != 100 {
			t.Errorf("%s: %d of 100 lines counted as dropped", name, got)
		}
	}
}

func TestSinkKeepsOrderAndAll(t *testing.T) {
	var out strings.Builder
	s := New(&out)
	var want strings.Builder
	for i := range 1000 {
		line := strings.Repeat("x", i%50) + "\n"
		s.Write([]byte(line))
		want.WriteString(line)
	}
	s.Close()
	if out.String() != want.String() || s.Dropped() != 0 {
		t.Errorf("lines were lost or changed; dropped %d", s.Dropped())
	}
}

// A file that is removed with its directory is made again; one that cannot be is counted.
func TestFileComesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	path := filepath.Join(dir, "x.log")
	c := clock.NewManual(time.Unix(1, 0))
	f := OpenFile(fsx.OS(), path, func() []byte { return []byte("head ") }, c)
	write := func(s string) error {
		c.Advance(2 * lookEvery)
		_, err := f.Write([]byte(s))
		return err
	}
	if err := write("a"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := write("b"); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); string(b) != "head b" {
		t.Errorf("the file came back with %q", b)
	}
	// Renamed away, as by logrotate.
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := write("c"); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); string(b) != "head c" {
		t.Errorf("after the rename the file is %q", b)
	}
	// A file stands where the directory was.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := write("d"); err == nil {
		t.Error("written into a directory that is a file")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := write("e"); err != nil {
		t.Fatal(err)
	}
	f.close()
	g := OpenFile(fsx.OS(), path, func() []byte { return []byte("head ") }, c)
	if _, err := g.Write([]byte("f")); err != nil {
		t.Fatal(err)
	}
	g.close()
	if b, _ := os.ReadFile(path); string(b) != "head ef" {
		t.Errorf("appended to, the file is %q", b)
	}
}

// However full the disk, what stands in the file is whole records, and the disk has room
// again later.
func TestFileOnFullDisk(t *testing.T) {
	const record = "12345678\n"
	disks := 0
	for room := int64(1); room < 60; room++ {
		disk := fsx.NewCrash(1)
		full := fsx.NewFault(disk, fsx.FaultOptions{Space: room})
		f := OpenFile(full, "d/x", nil, clock.NewManual(time.Unix(1, 0)))
		lost := 0
		for range 10 {
			if _, err := f.Write([]byte(record)); err != nil {
				lost++
			}
		}
		f.close()
		b, err := fsx.ReadFile(disk, "d/x", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.Repeat(record, 10-lost); string(b) != want {
			t.Fatalf("room for %d bytes: %q, want %q", room, b, want)
		}
		if lost == 0 {
			t.Fatalf("10 records of %d bytes fit into %d", len(record), room)
		}
		disks++
	}
	t.Logf("RELIABILITY | the disk of a log or event file fills at each byte: what stands in it is whole records, the rest is counted | %d of 59 | `core/telemetry/sink TestFileOnFullDisk` |", disks)
}
