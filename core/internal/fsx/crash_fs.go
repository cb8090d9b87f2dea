package fsx

import (
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

var _ FS = (*Crash)(nil)

// Open opens a file for reading.
func (c *Crash) Open(name string) (File, error) { return c.OpenFile(name, os.O_RDONLY, 0) }

// OpenFile opens a file; permissions are not kept.
func (c *Crash) OpenFile(name string, flag int, _ fs.FileMode) (File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.alive("open", name); err != nil {
		return nil, err
	}
	dir, base, err := c.parent("open", name)
	if err != nil {
		return nil, err
	}
	n := dir.names[base]
	writable := flag&(os.O_WRONLY|os.O_RDWR) != 0
	switch {
	case n != nil && flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrExist}
	case n != nil && n.dir && writable:
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	case n == nil && flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case n == nil:
		if err := c.change("create", name); err != nil {
			return nil, err
		}
		n = &node{}
		dir.names[base] = n
		c.pending = append(c.pending, nameChange{to: dir, toName: base, what: n})
	case flag&os.O_TRUNC != 0 && len(n.data) > 0:
		if err := c.change("truncate", name); err != nil {
			return nil, err
		}
		n.data = nil
	}
	return &crashFile{fs: c, n: n, name: name, writable: writable, add: flag&os.O_APPEND != 0}, nil
}

// Rename moves a file or a directory.
func (c *Crash) Rename(oldName, newName string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	from, fromBase, err := c.parent("rename", oldName)
	if err != nil {
		return err
	}
	to, toBase, err := c.parent("rename", newName)
	if err != nil {
		return err
	}
	what := from.names[fromBase]
	if what == nil {
		return &fs.PathError{Op: "rename", Path: oldName, Err: fs.ErrNotExist}
	}
	if old := to.names[toBase]; old != nil && old != what {
		switch {
		case old.dir && !what.dir: // as os.Rename
			return &fs.PathError{Op: "rename", Path: newName, Err: fs.ErrExist}
		case !old.dir && what.dir:
			return &fs.PathError{Op: "rename", Path: newName, Err: syscall.ENOTDIR}
		case old.dir && len(old.names) > 0:
			return &fs.PathError{Op: "rename", Path: newName, Err: syscall.ENOTEMPTY}
		}
	}
	if err := c.change("rename", newName); err != nil {
		return err
	}
	delete(from.names, fromBase)
	to.names[toBase] = what
	c.pending = append(c.pending, nameChange{from: from, fromName: fromBase, to: to, toName: toBase, what: what})
	return nil
}

// Remove deletes a file or an empty directory.
func (c *Crash) Remove(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	dir, base, err := c.parent("remove", name)
	if err != nil {
		return err
	}
	n := dir.names[base]
	if n == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if n.dir && len(n.names) > 0 {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	if err := c.change("remove", name); err != nil {
		return err
	}
	delete(dir.names, base)
	c.pending = append(c.pending, nameChange{from: dir, fromName: base, what: n})
	return nil
}

// MkdirAll makes a directory and its parents.
func (c *Crash) MkdirAll(name string, _ fs.FileMode) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.alive("mkdir", name); err != nil {
		return err
	}
	dir := c.root
	for _, base := range split(name) {
		n := dir.names[base]
		if n == nil {
			if err := c.change("mkdir", name); err != nil {
				return err
			}
			n = newDir()
			dir.names[base] = n
			c.pending = append(c.pending, nameChange{to: dir, toName: base, what: n})
		}
		if !n.dir {
			return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
		}
		dir = n
	}
	return nil
}

// ReadDir lists a directory, sorted by name.
func (c *Crash) ReadDir(name string) ([]fs.DirEntry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.alive("readdir", name); err != nil {
		return nil, err
	}
	n, err := c.find("readdir", name)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	var list []fs.DirEntry
	for _, base := range slices.Sorted(maps.Keys(n.names)) {
		list = append(list, fs.FileInfoToDirEntry(infoOf(base, n.names[base])))
	}
	return list, nil
}

// Stat describes a file or directory.
func (c *Crash) Stat(name string) (fs.FileInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.alive("stat", name); err != nil {
		return nil, err
	}
	n, err := c.find("stat", name)
	if err != nil {
		return nil, err
	}
	return infoOf(filepath.Base(name), n), nil
}

// SyncDir makes the names in a directory survive.
func (c *Crash) SyncDir(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	dir, err := c.find("syncdir", name)
	if err != nil {
		return err
	}
	if err := c.change("syncdir", name); err != nil {
		return err
	}
	// A move between two directories reaches the disk as one: syncing either
	// end brings it, and what happened to its names before it.
	rest := c.pending[:0]
	for _, p := range c.pending {
		if p.from != dir && p.to != dir {
			rest = append(rest, p)
			continue
		}
		if p.from != nil && p.from.stable[p.fromName] == p.what {
			delete(p.from.stable, p.fromName)
		}
		if p.to != nil {
			p.to.stable[p.toName] = p.what
		}
	}
	clear(c.pending[len(rest):])
	c.pending = rest
	return nil
}

// crashFile is an open file of a Crash.
type crashFile struct {
	fs            *Crash
	n             *node
	name          string
	pos           int64
	writable, add bool
	closed        bool
}

// use locks the file system and checks that the file can be used. The caller
// unlocks also after an error.
func (f *crashFile) use(kind string) error {
	f.fs.mu.Lock()
	if f.closed {
		return &fs.PathError{Op: kind, Path: f.name, Err: fs.ErrClosed}
	}
	return f.fs.alive(kind, f.name)
}

func (f *crashFile) Name() string { return f.name }

func (f *crashFile) Read(b []byte) (int, error) {
	err := f.use("read")
	defer f.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if len(b) == 0 {
		return 0, nil
	}
	if f.pos >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.data[f.pos:])
	f.pos += int64(n)
	return n, nil
}

func (f *crashFile) ReadAt(b []byte, off int64) (int, error) {
	err := f.use("read")
	defer f.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, &fs.PathError{Op: "read", Path: f.name, Err: fs.ErrInvalid}
	}
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *crashFile) Write(b []byte) (int, error) {
	err := f.use("write")
	defer f.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if f.add {
		f.pos = int64(len(f.n.data))
	}
	n, err := f.writeAt(b, f.pos)
	f.pos += int64(n)
	return n, err
}

func (f *crashFile) WriteAt(b []byte, off int64) (int, error) {
	err := f.use("write")
	defer f.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return f.writeAt(b, off)
}

// writeAt writes with the lock held.
func (f *crashFile) writeAt(b []byte, off int64) (int, error) {
	if !f.writable || off < 0 {
		return 0, &fs.PathError{Op: "write", Path: f.name, Err: fs.ErrInvalid}
	}
	if err := f.fs.change("write", f.name); err != nil {
		return 0, err
	}
	end := int(off) + len(b)
	if end > len(f.n.data) {
		f.n.data = append(f.n.data, make([]byte, end-len(f.n.data))...)
	}
	copy(f.n.data[off:], b)
	return len(b), nil
}

func (f *crashFile) Truncate(size int64) error {
	err := f.use("truncate")
	defer f.fs.mu.Unlock()
	if err != nil {
		return err
	}
	if !f.writable || size < 0 {
		return &fs.PathError{Op: "truncate", Path: f.name, Err: fs.ErrInvalid}
	}
	if err := f.fs.change("truncate", f.name); err != nil {
		return err
	}
	if n := int(size); n <= len(f.n.data) {
		clear(f.n.data[n:]) // a later extension reads zeros
		f.n.data = f.n.data[:n]
	} else {
		f.n.data = append(f.n.data, make([]byte, n-len(f.n.data))...)
	}
	return nil
}

func (f *crashFile) Sync() error {
	err := f.use("sync")
	defer f.fs.mu.Unlock()
	if err != nil {
		return err
	}
	if err := f.fs.change("sync", f.name); err != nil {
		return err
	}
	f.n.synced = slices.Clone(f.n.data)
	return nil
}

func (f *crashFile) Stat() (fs.FileInfo, error) {
	err := f.use("stat")
	defer f.fs.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return infoOf(filepath.Base(f.name), f.n), nil
}

// Close closes the file, also after a loss of power: nothing reaches the disk.
func (f *crashFile) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return &fs.PathError{Op: "close", Path: f.name, Err: fs.ErrClosed}
	}
	f.closed = true
	return nil
}

// info is the fs.FileInfo of a node.
type info struct {
	name string
	size int64
	dir  bool
}

func infoOf(name string, n *node) info { return info{name, int64(len(n.data)), n.dir} }

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.dir }
func (i info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o777
	}
	return 0o666
}
