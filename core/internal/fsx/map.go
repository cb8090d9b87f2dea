package fsx

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"sync"
)

// Mapping is a file mapped read-only into memory. Reading it is thread-safe.
//
// The operating system kills a process that reads pages of a mapping whose file
// was cut short meanwhile; Guard turns this into an error.
type Mapping struct {
	path string
	once sync.Once
	b    []byte
	err  error
}

// Map maps the regular file path. An empty file gives an empty mapping.
func Map(path string) (*Mapping, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the mapping outlives the descriptor
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "mmap", Path: path, Err: errors.New("is not a regular file")}
	}
	size := info.Size()
	if size > math.MaxInt {
		return nil, &fs.PathError{Op: "mmap", Path: path, Err: errors.New("is larger than the address space")}
	}
	m := &Mapping{path: path}
	if size > 0 {
		if m.b, err = mapFile(f, int(size)); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Bytes is the contents. They must not be written to, nor used after Close.
func (m *Mapping) Bytes() []byte { return m.b }

// Release gives back the memory that holds pages of the file. It changes nothing
// but that: a page that is read again comes back from the file.
func (m *Mapping) Release() error {
	if m.b == nil {
		return nil
	}
	return releaseFile(m.b)
}

// Close unmaps the file. Later calls do nothing and return the same error.
func (m *Mapping) Close() error {
	m.once.Do(func() {
		if m.b != nil {
			m.err = unmapFile(m.b)
			m.b = nil
		}
	})
	return m.err
}
