// Package fsx is the only door to the disk for the engine.
//
// An FS is the few operations that atomic saves need. OS is the real disk;
// Crash is a disk in memory that can lose power between any two operations;
// Fault fails a chosen operation of another FS. Code that saves something takes
// an FS, so that a test can cut it short everywhere.
package fsx

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// File is an open file. It is for one goroutine, except that ReadAt is
// thread-safe.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Closer
	// Name is the path the file was opened with.
	Name() string
	// Stat describes the file as it is now.
	Stat() (fs.FileInfo, error)
	// Sync returns when the contents would survive a loss of power. The name
	// of a new file survives only after SyncDir. After an error the contents
	// are unknown: do not call Sync again, write a new file.
	Sync() error
	// Truncate sets the length.
	Truncate(size int64) error
}

// FS is a file system. It is thread-safe.
type FS interface {
	// Open opens a file for reading.
	Open(name string) (File, error)
	// OpenFile opens a file with the flags of package os.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Rename moves a file or directory, replacing a file at newName in one step.
	Rename(oldName, newName string) error
	// Remove deletes a file or an empty directory.
	Remove(name string) error
	// MkdirAll makes a directory and its parents; existing ones are no error.
	MkdirAll(name string, perm fs.FileMode) error
	// ReadDir lists a directory, sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Stat describes a file or directory.
	Stat(name string) (fs.FileInfo, error)
	// SyncDir returns when the names in a directory would survive a loss of power.
	SyncDir(name string) error
}

// Create makes an empty file for reading and writing, emptying an existing one.
func Create(fsys FS, name string) (File, error) {
	return fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o666)
}

// ReadFile returns the contents of a file of at most limit bytes. A larger file
// is an error and is not read.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("is a directory")}
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("fsx: %s: %d bytes, at most %d expected", name, info.Size(), limit)
	}
	// A file may grow, and files of /proc have size 0: the limit holds for what is read.
	b := make([]byte, 0, info.Size()+1)
	for {
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if int64(len(b)) > limit {
			return nil, fmt.Errorf("fsx: %s: more than the %d bytes expected", name, limit)
		}
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
	}
}

// WriteAtomic replaces the contents of path: after a crash or an error at any
// moment path holds the old contents or the new ones, complete.
//
// The contents go to a hidden file in the same directory, which is synced and
// renamed; then the directory is synced. An error leaves no hidden file behind
// where it can be removed; a crash may. If path is a symbolic link, the link is
// replaced.
func WriteAtomic(fsys FS, path string, write func(io.Writer) error) error {
	return Replace(fsys, path, func(f File) error {
		w := bufio.NewWriterSize(f, 1<<18)
		if err := write(w); err != nil {
			return err
		}
		return w.Flush()
	})
}

// Replace is WriteAtomic for writers that go back in the file: write receives
// the hidden file itself, empty. Replace syncs and closes it.
func Replace(fsys FS, path string, write func(File) error) error {
	f, err := createTemp(fsys, path)
	if err != nil {
		return err
	}
	err = Finish(f, write(f))
	if err == nil {
		err = fsys.Rename(f.Name(), path)
	}
	if err != nil {
		if e := fsys.Remove(f.Name()); e != nil && !errors.Is(e, fs.ErrNotExist) {
			return fmt.Errorf("%w (and %s could not be removed: %v)", err, f.Name(), e)
		}
		return err
	}
	return fsys.SyncDir(filepath.Dir(path))
}

// Finish syncs f, unless err says that writing it failed, and closes it. It returns the
// first error.
func Finish(f File, err error) error {
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// createTemp makes a new file beside path. The process number and a counter
// keep writers apart; O_EXCL settles what they leave open.
func createTemp(fsys FS, path string) (File, error) {
	dir, base := filepath.Split(path)
	if base == "" || base == "." || base == ".." {
		return nil, &fs.PathError{Op: "write", Path: path, Err: errors.New("is not a file name")}
	}
	if len(base) > 200 { // leave room below the usual limit of 255 bytes
		base = base[:200]
	}
	for n := 0; ; n++ {
		name := fmt.Sprintf("%s.%s.tmp-%d-%d", dir, base, os.Getpid(), n)
		f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		if err == nil || !errors.Is(err, fs.ErrExist) || n >= 10000 {
			return f, err
		}
	}
}
