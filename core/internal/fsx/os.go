package fsx

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"syscall"
)

// OS returns the real file system.
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) Open(name string) (File, error) { return osOpen(name, os.O_RDONLY, 0) }

func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	return osOpen(name, flag, perm)
}

// osOpen exists because a nil *os.File in a File would not be nil.
func osOpen(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (osFS) Rename(oldName, newName string) error         { return os.Rename(oldName, newName) }
func (osFS) Remove(name string) error                     { return os.Remove(name) }
func (osFS) MkdirAll(name string, perm fs.FileMode) error { return os.MkdirAll(name, perm) }
func (osFS) ReadDir(name string) ([]fs.DirEntry, error)   { return os.ReadDir(name) }
func (osFS) Stat(name string) (fs.FileInfo, error)        { return os.Stat(name) }

// MakeReadOnly takes the right to write to a file away, where that does not keep it
// from being removed and can be done.
func MakeReadOnly(fsys FS, name string) {
	if _, real := fsys.(osFS); !real || runtime.GOOS == "windows" {
		return
	}
	if st, err := os.Stat(name); err == nil {
		_ = os.Chmod(name, st.Mode().Perm()&^0o222) // a precaution that some file systems do not have
	}
}

func (osFS) SyncDir(name string) error {
	if runtime.GOOS == "windows" { // a directory cannot be opened for syncing there
		return nil
	}
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	// Some network and FUSE file systems cannot sync directories and say so
	// with these two; nothing more can be done on them.
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		return nil
	}
	return err
}
