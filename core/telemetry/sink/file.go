package sink

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
)

// File appends records to a file. What it wrote is whole records, whatever happens: half
// a record is cut off again, a file that cannot be written is opened anew at the next
// record, and one that was removed or renamed is made again, with its directory.
// It is for one goroutine.
type File struct {
	fs     fsx.FS
	path   string
	header func() []byte // the first record of a new file; nil: none
	clock  clock.Clock

	f     fsx.File
	at    int64 // where the next record goes
	until time.Time
}

// lookEvery is how long a file is written before it is looked for again.
const lookEvery = time.Second

// OpenFile returns a file that is opened at the first record, after what stands in it.
// header gives what a new file begins with; it may be nil.
func OpenFile(fsys fsx.FS, path string, header func() []byte, c clock.Clock) *File {
	return &File{fs: fsys, path: path, header: header, clock: c}
}

// Write appends b, or nothing of it.
func (f *File) Write(b []byte) (int, error) {
	if f.f != nil && f.clock.Now().After(f.until) {
		if f.until = f.clock.Now().Add(lookEvery); f.gone() {
			f.close()
		}
	}
	if f.f == nil {
		if err := f.open(); err != nil {
			return 0, err
		}
	}
	return f.append(b)
}

func (f *File) append(b []byte) (int, error) {
	n, err := f.f.WriteAt(b, f.at)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		f.f.Truncate(f.at)
		f.close()
		return 0, err
	}
	f.at += int64(n)
	return n, nil
}

func (f *File) open() error {
	if err := f.fs.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
		return err
	}
	file, err := f.fs.OpenFile(f.path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	f.f, f.at, f.until = file, info.Size(), f.clock.Now().Add(lookEvery)
	if f.at == 0 && f.header != nil {
		_, err = f.append(f.header())
	}
	return err
}

// gone reports whether the path no longer leads to the open file.
func (f *File) gone() bool {
	there, err := f.fs.Stat(f.path)
	if err != nil {
		return true
	}
	open, err := f.f.Stat()
	if err != nil {
		return true
	}
	// File systems without identities are never the same, not even as themselves.
	return os.SameFile(open, open) && !os.SameFile(open, there)
}

func (f *File) close() {
	if f.f != nil {
		f.f.Close()
		f.f = nil
	}
}
