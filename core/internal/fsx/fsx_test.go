package fsx_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// contents is n bytes that tell where they were cut or mixed.
func contents(tag byte, n int) []byte {
	b := bytes.Repeat([]byte{tag}, n)
	for i := 0; i+4 <= n; i += 4 {
		b[i], b[i+1], b[i+2] = byte(i), byte(i>>8), byte(i>>16)
	}
	return b
}

func save(fsys fsx.FS, path string, b []byte) error {
	return fsx.WriteAtomic(fsys, path, func(w io.Writer) error {
		for len(b) > 0 { // in pieces, so that there is something between the writes
			n := min(700, len(b))
			if _, err := w.Write(b[:n]); err != nil {
				return err
			}
			b = b[n:]
		}
		return nil
	})
}

// TestWriteAtomicSurvivesPowerLoss cuts the power before every change of the
// disk, and lets none, some or all of the unsynced state survive.
func TestWriteAtomicSurvivesPowerLoss(t *testing.T) {
	old, next := contents('o', 3000), contents('n', 300_000)
	percents := []int{0, 50, 100}
	points := 0
	for seed := range uint64(8) {
		for n := 0; ; n++ {
			c := fsx.NewCrash(seed)
			require.NoError(t, c.MkdirAll("d", 0o777))
			require.NoError(t, c.SyncDir("/"))
			require.NoError(t, save(c, "d/model", old))
			var err error
			done := c.StopAfter(n, func() { err = save(c, "d/model", next) })
			for _, data := range percents {
				for _, names := range percents {
					points++
					after := c.AfterPowerLoss(data, names)
					got, readErr := fsx.ReadFile(after, "d/model", 1<<20)
					require.NoError(t, readErr, "seed %d, op %d (%s)", seed, n, c.LastOp())
					isOld, isNext := bytes.Equal(got, old), bytes.Equal(got, next)
					if !isOld && !isNext {
						t.Fatalf("seed %d, op %d (%s), %d/%d%% survive: mixed contents", seed, n, c.LastOp(), data, names)
					}
					if err == nil && !isNext {
						t.Fatalf("seed %d, op %d, %d/%d%% survive: saved without error, but lost", seed, n, data, names)
					}
				}
			}
			if done {
				require.NoError(t, err)
				break
			}
			require.ErrorIs(t, err, fsx.ErrPowerLoss)
		}
	}
	t.Logf("%d crash points", points)
}

// TestCrashShowsMissingSyncs checks the instrument: savers that forget one of
// the two syncs, or the temporary name, must be caught.
func TestCrashShowsMissingSyncs(t *testing.T) {
	write := func(c *fsx.Crash, name string, b []byte, sync bool) error {
		f, err := fsx.Create(c, name)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(b); err != nil {
			return err
		}
		if sync {
			return f.Sync()
		}
		return nil
	}
	savers := map[string]func(c *fsx.Crash, b []byte) error{
		"in place": func(c *fsx.Crash, b []byte) error { return write(c, "m", b, true) },
		"no file sync": func(c *fsx.Crash, b []byte) error {
			return errors.Join(write(c, "t", b, false), c.Rename("t", "m"), c.SyncDir("."))
		},
		"no directory sync": func(c *fsx.Crash, b []byte) error {
			return errors.Join(write(c, "t", b, true), c.Rename("t", "m"))
		},
	}
	for name, saver := range savers {
		t.Run(name, func(t *testing.T) {
			old, next := contents('o', 2000), contents('n', 2000)
			caught := false
			for n := 0; ; n++ {
				c := fsx.NewCrash(1)
				require.NoError(t, save(c, "m", old))
				var err error
				done := c.StopAfter(n, func() { err = saver(c, next) })
				for _, data := range []int{0, 50, 100} {
					for _, names := range []int{0, 100} {
						got, _ := fsx.ReadFile(c.AfterPowerLoss(data, names), "m", 1<<20)
						whole := bytes.Equal(got, old) || bytes.Equal(got, next)
						lost := err == nil && !bytes.Equal(got, next)
						caught = caught || !whole || lost
					}
				}
				if done {
					break
				}
			}
			require.True(t, caught)
		})
	}
}

// TestWriteAtomicEveryOperationFails fails each operation in turn.
func TestWriteAtomicEveryOperationFails(t *testing.T) {
	old, next := contents('o', 3000), contents('n', 300_000)
	for _, o := range []fsx.FaultOptions{{}, {Short: true}, {Err: syscall.EACCES}} {
		for n := 1; ; n++ {
			c := fsx.NewCrash(1)
			require.NoError(t, save(c, "model", old))
			o.FailAt = n
			f := fsx.NewFault(c, o)
			err := save(f, "model", next)
			got, readErr := fsx.ReadFile(c, "model", 1<<20)
			require.NoError(t, readErr)
			if !f.Failed() {
				require.NoError(t, err)
				require.Equal(t, next, got)
				break
			}
			ops := f.Ops()
			require.Error(t, err, "operation %d failed unnoticed: %v", n, ops)
			if !bytes.Equal(got, old) && !bytes.Equal(got, next) {
				t.Fatalf("operation %d: mixed contents", n)
			}
			list, _ := c.ReadDir(".")
			require.Len(t, list, 1, "operation %d (%v): a hidden file was left behind", n, ops[n-1])
		}
	}
}

func TestWriteAtomicDiskFull(t *testing.T) {
	old, next := contents('o', 3000), contents('n', 10_000)
	for _, space := range []int64{1, 512, 9_999} {
		c := fsx.NewCrash(1)
		require.NoError(t, save(c, "model", old))
		err := save(fsx.NewFault(c, fsx.FaultOptions{Space: space}), "model", next)
		require.ErrorIs(t, err, syscall.ENOSPC)
		got, _ := fsx.ReadFile(c, "model", 1<<20)
		require.Equal(t, old, got)
		list, _ := c.ReadDir(".")
		require.Len(t, list, 1)
	}
	c := fsx.NewCrash(1)
	require.NoError(t, save(fsx.NewFault(c, fsx.FaultOptions{Space: 10_000}), "model", next))
}

// TestFileSystemsAgree runs one script on the real disk and on the one in memory.
func TestFileSystemsAgree(t *testing.T) {
	script := func(fsys fsx.FS, dir string) (log []string) {
		at := func(name string) string { return filepath.Join(dir, name) }
		say := func(what string, err error) {
			for _, known := range []error{fs.ErrExist, fs.ErrNotExist, fs.ErrClosed, syscall.ENOTDIR, syscall.EISDIR, syscall.ENOTEMPTY} {
				if errors.Is(err, known) {
					err = known
				}
			}
			log = append(log, fmt.Sprintf("%s: %v", what, err))
		}
		say("mkdir", fsys.MkdirAll(at("a/b"), 0o777))
		say("mkdir again", fsys.MkdirAll(at("a/b"), 0o777))
		f, err := fsx.Create(fsys, at("a/f"))
		say("create", err)
		_, err = f.Write([]byte("hello world"))
		say("write", err)
		_, err = f.WriteAt([]byte("J"), 0)
		say("writeat", err)
		say("truncate", f.Truncate(5))
		say("extend", f.Truncate(8))
		say("sync", f.Sync())
		b := make([]byte, 9)
		n, err := f.ReadAt(b, 2)
		say(fmt.Sprintf("readat %d %q", n, b[:n]), err)
		say("close", f.Close())
		say("close twice", f.Close())
		b, err = fsx.ReadFile(fsys, at("a/f"), 8)
		say(fmt.Sprintf("readfile %q", b), err)
		_, err = fsx.ReadFile(fsys, at("a/f"), 7)
		log = append(log, fmt.Sprint("limit refused: ", err != nil))
		_, err = fsys.OpenFile(at("a/f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		say("exclusive", err)
		f, err = fsys.OpenFile(at("a/f"), os.O_WRONLY|os.O_APPEND, 0o666)
		say("append", err)
		_, err = f.Write([]byte("!"))
		say("append write", err)
		say("close", f.Close())
		_, err = fsys.Open(at("a/none"))
		say("open missing", err)
		_, err = fsys.Open(at("a/f/x"))
		say("open below a file", err)
		_, err = fsx.Create(fsys, at("a/b"))
		say("create over a directory", err)
		say("remove full", fsys.Remove(at("a")))
		say("rename dir", fsys.Rename(at("a/b"), at("c")))
		say("rename file over dir", fsys.Rename(at("a/f"), at("c")))
		say("rename file", fsys.Rename(at("a/f"), at("c/g")))
		say("rename missing", fsys.Rename(at("a/f"), at("c/g")))
		say("syncdir", fsys.SyncDir(at("c")))
		list, err := fsys.ReadDir(dir)
		for _, e := range list {
			log = append(log, fmt.Sprint(e.Name(), " ", e.IsDir()))
		}
		say("readdir", err)
		info, err := fsys.Stat(at("c/g"))
		say(fmt.Sprint("stat ", info.Name(), info.Size(), info.IsDir()), err)
		say("remove", fsys.Remove(at("c/g")))
		say("remove twice", fsys.Remove(at("c/g")))
		say("atomic to a directory", fsx.WriteAtomic(fsys, at("c"), func(io.Writer) error { return nil }))
		say("atomic to a missing directory", fsx.WriteAtomic(fsys, at("no/f"), func(io.Writer) error { return nil }))
		return log
	}
	crash := fsx.NewCrash(1)
	require.NoError(t, crash.MkdirAll("/x", 0o777))
	want := script(fsx.OS(), t.TempDir())
	require.Equal(t, want, script(crash, "/x"))
	require.Equal(t, want, script(fsx.NewFault(fsx.OS(), fsx.FaultOptions{}), t.TempDir()))
}

func TestWriteAtomicNames(t *testing.T) {
	for _, bad := range []string{"", ".", "..", "a/", "a/.."} {
		require.Error(t, fsx.WriteAtomic(fsx.NewCrash(1), bad, func(io.Writer) error { return nil }), "%q", bad)
	}
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("x", 255))
	require.NoError(t, save(fsx.OS(), long, contents('l', 10)))
	// A write that fails leaves neither the file nor a hidden one.
	err := fsx.WriteAtomic(fsx.OS(), filepath.Join(dir, "f"), func(w io.Writer) error {
		fmt.Fprint(w, "half")
		return io.ErrUnexpectedEOF
	})
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, list, 1)
}

func TestMap(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	want := contents('m', 100_000)
	require.NoError(t, save(fsx.OS(), path, want))
	m, err := fsx.Map(path)
	require.NoError(t, err)
	require.Equal(t, want, m.Bytes())
	// The mapping keeps the old file when the path is replaced.
	require.NoError(t, save(fsx.OS(), path, contents('x', 10)))
	require.Equal(t, want, m.Bytes())
	require.NoError(t, m.Release())
	require.Equal(t, want, m.Bytes(), "pages come back from the file")
	require.NoError(t, m.Close())
	require.NoError(t, m.Close())
	require.NoError(t, m.Release())

	require.NoError(t, os.WriteFile(path, nil, 0o666))
	m, err = fsx.Map(path)
	require.NoError(t, err)
	require.Empty(t, m.Bytes())
	require.NoError(t, m.Close())

	_, err = fsx.Map(dir)
	require.ErrorContains(t, err, "not a regular file")
	_, err = fsx.Map(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// TestGuard reads a mapping whose file was cut short.
func TestGuard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(path, contents('g', 1<<16), 0o666))
	m, err := fsx.Map(path)
	require.NoError(t, err)
	defer m.Close()
	sum := func() error {
		s := 0
		for _, b := range m.Bytes() {
			s += int(b)
		}
		if s == 0 {
			return errors.New("all zero")
		}
		return nil
	}
	require.NoError(t, fsx.Guard(path, sum))
	require.ErrorIs(t, fsx.Guard(path, func() error { return io.EOF }), io.EOF)
	require.Panics(t, func() { _ = fsx.Guard(path, func() error { panic("other") }) })
	require.NoError(t, os.Truncate(path, 10))
	require.ErrorContains(t, fsx.Guard(path, sum), "cut short")
}

func ExampleWriteAtomic() {
	disk := fsx.NewCrash(1) // fsx.OS() for the real one
	err := fsx.WriteAtomic(disk, "notes.txt", func(w io.Writer) error {
		_, err := io.WriteString(w, "all or nothing")
		return err
	})
	b, _ := fsx.ReadFile(disk.AfterPowerLoss(0, 0), "notes.txt", 1<<10)
	fmt.Printf("%v %s\n", err, b)
	// Output: <nil> all or nothing
}
