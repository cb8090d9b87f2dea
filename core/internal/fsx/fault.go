package fsx

import (
	"io/fs"
	"math"
	"slices"
	"sync"
	"syscall"
)

// FaultOptions says what goes wrong.
type FaultOptions struct {
	// FailAt is the number, from 1, of the operation that fails. 0: none.
	FailAt int
	// Err is what it fails with. The default value is syscall.EIO.
	Err error
	// Short lets a failing write write the first half of its bytes.
	Short bool
	// Space is the number of bytes that can be written before the disk is full
	// (syscall.ENOSPC, after writing what fits). 0 or less: no limit.
	Space int64
	// Only, if not nil, says which operations count for FailAt.
	Only func(Op) bool
}

// Fault is a file system on which a chosen operation fails. Every operation
// counts, reads and closes too, so that a test can fail each in turn:
//
//	for n := 1; ; n++ {
//		f := fsx.NewFault(inner, fsx.FaultOptions{FailAt: n})
//		err := save(f)
//		if !f.Failed() { break }
//		…
//	}
type Fault struct {
	inner FS
	o     FaultOptions

	mu     sync.Mutex
	ops    []Op
	count  int
	space  int64
	failed bool
}

var _ FS = (*Fault)(nil)

// NewFault wraps inner.
func NewFault(inner FS, o FaultOptions) *Fault {
	if o.Err == nil {
		o.Err = syscall.EIO
	}
	f := &Fault{inner: inner, o: o, space: o.Space}
	if o.Space <= 0 {
		f.space = math.MaxInt64
	}
	return f
}

// Failed reports whether the chosen operation was reached, or the disk filled.
func (f *Fault) Failed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

// Ops is every operation that was tried.
func (f *Fault) Ops() []Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ops)
}

// do counts an operation and returns its error if it is the chosen one.
func (f *Fault) do(kind, path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	op := Op{kind, path}
	f.ops = append(f.ops, op)
	if f.o.Only != nil && !f.o.Only(op) {
		return nil
	}
	if f.count++; f.count == f.o.FailAt {
		f.failed = true
		return &fs.PathError{Op: kind, Path: path, Err: f.o.Err}
	}
	return nil
}

// room takes up to n bytes of what is left of the disk.
func (f *Fault) room(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if int64(n) > f.space {
		n = int(f.space)
		f.failed = true
	}
	f.space -= int64(n)
	return n
}

// Open opens a file for reading.
func (f *Fault) Open(name string) (File, error) {
	if err := f.do("open", name); err != nil {
		return nil, err
	}
	return f.wrap(f.inner.Open(name))
}

// OpenFile opens a file.
func (f *Fault) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if err := f.do("open", name); err != nil {
		return nil, err
	}
	return f.wrap(f.inner.OpenFile(name, flag, perm))
}

func (f *Fault) wrap(file File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &faultFile{File: file, fs: f}, nil
}

// Rename moves a file or a directory.
func (f *Fault) Rename(oldName, newName string) error {
	if err := f.do("rename", newName); err != nil {
		return err
	}
	return f.inner.Rename(oldName, newName)
}

// Remove deletes a file or an empty directory.
func (f *Fault) Remove(name string) error {
	if err := f.do("remove", name); err != nil {
		return err
	}
	return f.inner.Remove(name)
}

// MkdirAll makes a directory and its parents.
func (f *Fault) MkdirAll(name string, perm fs.FileMode) error {
	if err := f.do("mkdir", name); err != nil {
		return err
	}
	return f.inner.MkdirAll(name, perm)
}

// ReadDir lists a directory.
func (f *Fault) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := f.do("readdir", name); err != nil {
		return nil, err
	}
	return f.inner.ReadDir(name)
}

// Stat describes a file or directory.
func (f *Fault) Stat(name string) (fs.FileInfo, error) {
	if err := f.do("stat", name); err != nil {
		return nil, err
	}
	return f.inner.Stat(name)
}

// SyncDir makes the names in a directory survive.
func (f *Fault) SyncDir(name string) error {
	if err := f.do("syncdir", name); err != nil {
		return err
	}
	return f.inner.SyncDir(name)
}

// faultFile is an open file of a Fault.
type faultFile struct {
	File
	fs *Fault
}

func (f *faultFile) Read(b []byte) (int, error) {
	if err := f.fs.do("read", f.Name()); err != nil {
		return 0, err
	}
	return f.File.Read(b)
}

func (f *faultFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.fs.do("read", f.Name()); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}

func (f *faultFile) Write(b []byte) (int, error) { return f.write(b, f.File.Write) }

func (f *faultFile) WriteAt(b []byte, off int64) (int, error) {
	return f.write(b, func(b []byte) (int, error) { return f.File.WriteAt(b, off) })
}

func (f *faultFile) write(b []byte, inner func([]byte) (int, error)) (int, error) {
	if err := f.fs.do("write", f.Name()); err != nil {
		if !f.fs.o.Short {
			return 0, err
		}
		n, e := inner(b[:len(b)/2])
		if e != nil {
			err = e
		}
		return n, err
	}
	fits := f.fs.room(len(b))
	n, err := inner(b[:fits])
	if err == nil && fits < len(b) {
		err = &fs.PathError{Op: "write", Path: f.Name(), Err: syscall.ENOSPC}
	}
	return n, err
}

func (f *faultFile) Sync() error {
	if err := f.fs.do("sync", f.Name()); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *faultFile) Truncate(size int64) error {
	if err := f.fs.do("truncate", f.Name()); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *faultFile) Stat() (fs.FileInfo, error) {
	if err := f.fs.do("stat", f.Name()); err != nil {
		return nil, err
	}
	return f.File.Stat()
}

// Close closes the file in any case; a failing close reports its error.
func (f *faultFile) Close() error {
	err := f.fs.do("close", f.Name())
	if e := f.File.Close(); err == nil {
		err = e
	}
	return err
}
