package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// FormatError reports a file that breaks the format, or lacks what its reader
// needs.
type FormatError struct {
	// Path is the file.
	Path string
	// Offset is where in the file, in bytes.
	Offset int64
	// What was expected and what is there.
	What string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("safetensors: %s: byte %d: %s", e.Path, e.Offset, e.What)
}

// Tensor is one tensor of a file.
type Tensor struct {
	Name  string
	DType DType
	// Shape is the dimensions, the slowest first; empty for a single number.
	Shape []int
	// Offset is where in the file the data begins, in bytes.
	Offset int64
	// Data is the bytes in the file's order; nil if the file was opened by New. It
	// must not be written to.
	Data []byte

	size int64
	f    *File
}

// Elements is the product of the shape.
func (t *Tensor) Elements() int { return int(t.size) / t.DType.Size() }

// Size is the number of bytes of the tensor, also where Data is nil.
func (t *Tensor) Size() int64 { return t.size }

// Float32s writes the values to dst, which must have Elements elements. F16, BF16
// and F32 are exact, F64 is rounded; other types are an error.
func (t *Tensor) Float32s(dst []float32) error {
	if len(dst) != t.Elements() {
		return t.errorf("has %d elements, not %d", t.Elements(), len(dst))
	}
	switch t.DType {
	case F32, F16, BF16, F64:
	default:
		return t.errorf("is %s, expected F32, F16, BF16 or F64", t.DType)
	}
	if t.Data != nil {
		return fsx.Guard(t.f.Path, func() error {
			decode(dst, t.DType, t.Data)
			return nil
		})
	}
	size := t.DType.Size()
	buf := make([]byte, min(t.size, chunk))
	for at := int64(0); at < t.size; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), t.size-at)]
		if err := t.f.readAt(buf, t.Offset+at); err != nil {
			return err
		}
		n := len(buf) / size
		decode(dst[:n], t.DType, buf)
		dst = dst[n:]
	}
	return nil
}

// chunk is the bytes that are converted at a time: a multiple of all sizes.
const chunk = 1 << 18

// errorf makes the error of a reader that finds the tensor unfit.
func (t *Tensor) errorf(format string, args ...any) *FormatError {
	return &FormatError{t.f.Path, t.Offset, fmt.Sprintf("tensor %q ", t.Name) + fmt.Sprintf(format, args...)}
}

// File is a checked file. Its fields are for reading. It is thread-safe.
type File struct {
	Path string
	// Tensors is in the order of their data.
	Tensors []Tensor
	// Metadata is what stands under "__metadata__"; nil if nothing does.
	Metadata map[string]string

	byName map[string]int
	src    io.ReaderAt
	m      *fsx.Mapping
}

// Open maps a file and checks it. Close unmaps it.
func Open(path string) (*File, error) {
	m, err := fsx.Map(path)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	var f *File
	err = fsx.Guard(path, func() error {
		f, err = Parse(path, m.Bytes())
		return err
	})
	if err != nil {
		m.Close()
		return nil, err
	}
	f.m = m
	return f, nil
}

// Parse checks a whole file held in b. The Data of its tensors are parts of b.
// path is for errors only, which are *FormatError.
func Parse(path string, b []byte) (*File, error) {
	f, err := New(path, bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	for i := range f.Tensors {
		t := &f.Tensors[i]
		t.Data = b[t.Offset : t.Offset+t.size : t.Offset+t.size]
	}
	return f, nil
}

// New checks the header of a file of size bytes. Its tensors have no Data; their
// values are read from r, which has to stay open for that.
func New(path string, r io.ReaderAt, size int64) (*File, error) {
	f := &File{Path: path, src: r}
	if size < prefix {
		return nil, f.errAt(0, "the file has %d bytes, expected at least %d", size, prefix)
	}
	var head [prefix]byte
	if err := f.readAt(head[:], 0); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(head[:])
	if n > maxHeader {
		return nil, f.errAt(0, "the header has %d bytes, expected at most %d; this may be no safetensors file", n, maxHeader)
	}
	if int64(n) > size-prefix {
		return nil, f.errAt(0, "the header has %d bytes, the file has %d left; it was cut short or is no safetensors file", n, size-prefix)
	}
	header := make([]byte, n)
	if err := f.readAt(header, prefix); err != nil {
		return nil, err
	}
	if err := f.parseHeader(header); err != nil {
		return nil, err
	}
	if err := f.place(prefix+int64(n), size); err != nil {
		return nil, err
	}
	return f, nil
}

const (
	prefix = 8
	// maxHeader is the limit of the reference implementation.
	maxHeader = 100_000_000
)

// place checks that the tensors fill the data section, bytes from data to size.
func (f *File) place(data, size int64) error {
	slices.SortStableFunc(f.Tensors, func(a, b Tensor) int {
		if a.Offset != b.Offset {
			return int(min(max(a.Offset-b.Offset, -1), 1))
		}
		return int(min(max(a.size-b.size, -1), 1)) // empty ones first
	})
	f.byName = make(map[string]int, len(f.Tensors))
	end := int64(0)
	for i := range f.Tensors {
		t := &f.Tensors[i]
		t.f = f
		f.byName[t.Name] = i
		switch {
		case t.Offset < end:
			return f.errAt(data, "tensor %q at offset %d overlaps %q, which ends at %d", t.Name, t.Offset, f.Tensors[i-1].Name, end)
		case t.Offset > end:
			return f.errAt(data, "tensor %q is at offset %d, expected %d: bytes between belong to no tensor", t.Name, t.Offset, end)
		case t.size > size-data-t.Offset:
			return f.errAt(data, "tensor %q needs %d bytes at offset %d of the data, the file has %d", t.Name, t.size, t.Offset, size-data)
		}
		end += t.size
		t.Offset += data
	}
	if data+end != size {
		return f.errAt(data+end, "the last tensor ends here, the file has %d bytes more", size-data-end)
	}
	return nil
}

// Tensor returns the tensor of that name, or nil.
func (f *File) Tensor(name string) *Tensor {
	i, ok := f.byName[name]
	if !ok {
		return nil
	}
	return &f.Tensors[i]
}

// Close unmaps a file that Open mapped. No Data may be used afterwards.
func (f *File) Close() error {
	if f.m == nil {
		return nil
	}
	return f.m.Close()
}

func (f *File) readAt(b []byte, off int64) error {
	n, err := f.src.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return f.errAt(off+int64(n), "the file ends here, but was longer when it was opened")
	}
	return fmt.Errorf("safetensors: %s: byte %d: %w", f.Path, off+int64(n), err)
}

func (f *File) errAt(off int64, format string, args ...any) error {
	return &FormatError{f.Path, off, fmt.Sprintf(format, args...)}
}
