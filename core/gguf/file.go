package gguf

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// KV is one metadata pair.
type KV struct {
	Key   string
	Value Value
}

// Tensor describes one tensor of a file.
type Tensor struct {
	Name string
	Type Type
	// Dims is in ggml's order: Dims[0] is contiguous. A matrix of rows by cols
	// has Dims {cols, rows}.
	Dims []uint64
	// Offset is from the start of the data section, in bytes.
	Offset uint64
	// Data is the tensor's bytes, in the file's byte order (little-endian); nil
	// after ReadInfo. It must not be written to.
	Data []byte

	size uint64
}

// Size is the number of bytes of the tensor, also where Data is nil.
func (t *Tensor) Size() uint64 { return t.size }

// Elements is the product of the dimensions.
func (t *Tensor) Elements() uint64 {
	n := uint64(1)
	for _, d := range t.Dims {
		n *= d // Size checked that it does not overflow
	}
	return n
}

// Is reports whether the tensor has this type and exactly these dimensions.
func (t *Tensor) Is(typ Type, dims ...uint64) bool {
	if t.Type != typ || len(t.Dims) != len(dims) {
		return false
	}
	for i, d := range dims {
		if t.Dims[i] != d {
			return false
		}
	}
	return true
}

// File is a checked GGUF file. Its fields are for reading.
type File struct {
	Path      string
	Version   uint32
	Alignment uint64
	// Meta is the metadata in file order, the three keys that Write adds included.
	Meta []KV
	// Tensors is in file order.
	Tensors []Tensor
	// Size is the length of the file; HeaderSize that of everything before the
	// padding that ends at DataOffset, where the data section starts.
	Size, HeaderSize, DataOffset int64

	byKey, byName map[string]int
	metaAt        []int // where each metadata value stands
	mapping       *fsx.Mapping
	whole         []byte // the file, where it is mapped or was parsed from memory
}

// Open maps the file and checks its header. Close unmaps it.
func Open(path string) (*File, error) {
	f, err := ReadInfo(path)
	if err != nil {
		return nil, err
	}
	m, err := fsx.Map(path)
	if err != nil {
		return nil, fmt.Errorf("gguf: %w", err)
	}
	if int64(len(m.Bytes())) != f.Size {
		size := int64(len(m.Bytes()))
		return nil, errors.Join(&FormatError{path, min(size, f.Size), fmt.Sprintf("the file changed from %d to %d bytes while it was opened", f.Size, size)}, m.Close())
	}
	f.mapping = m
	f.attach(m.Bytes())
	return f, nil
}

// ReadInfo reads and checks the header only: the tensors have no Data. There is
// nothing to close.
func ReadInfo(path string) (*File, error) {
	file, err := fsx.OS().Open(path)
	if err != nil {
		return nil, fmt.Errorf("gguf: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("gguf: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("gguf: %s is not a regular file", path)
	}
	return parse(&reader{path: path, src: file, size: info.Size()})
}

// attach gives the tensors their Data, parts of the whole file b, for which
// place has checked that they lie in it.
func (f *File) attach(b []byte) {
	f.whole = b
	for i := range f.Tensors {
		t := &f.Tensors[i]
		lo := uint64(f.DataOffset) + t.Offset
		t.Data = b[lo : lo+t.size : lo+t.size]
	}
}

// Release gives back the memory that holds tensor data of a mapped file: for a
// caller that has copied what it uses. Data stays valid and is read from the file
// again.
func (f *File) Release() error {
	if f.mapping == nil {
		return nil
	}
	return f.mapping.Release()
}

// Close unmaps the file. No Data may be used afterwards.
func (f *File) Close() error {
	if f.mapping == nil {
		return nil
	}
	for i := range f.Tensors {
		f.Tensors[i].Data = nil
	}
	f.whole = nil
	return f.mapping.Close()
}

// Tensor returns the tensor of that name, or nil.
func (f *File) Tensor(name string) *Tensor {
	if i, ok := f.byName[name]; ok {
		return &f.Tensors[i]
	}
	return nil
}

// Errorf makes the error of a reader that finds tensor t, or with nil the
// metadata, unfit.
func (f *File) Errorf(t *Tensor, format string, args ...any) *FormatError {
	at := f.HeaderSize
	if t != nil {
		at = f.DataOffset + int64(t.Offset)
		format, args = "tensor %q: "+format, append([]any{t.Name}, args...)
	}
	return &FormatError{f.Path, at, fmt.Sprintf(format, args...)}
}

// ErrNoChecksum is returned by VerifyChecksum for files without checksums, such
// as those of other programs.
var ErrNoChecksum = errors.New("gguf: the file has no checksum")

// VerifyChecksum reads the whole file and compares it with the checksums that
// Write stored in it. A difference is a *FormatError. progress, if not nil, is
// called now and then with the bytes done and to do.
func (f *File) VerifyChecksum(ctx context.Context, progress func(done, total int64)) error {
	_, data := f.Get(sumKey)
	if _, header := f.Get(headSumKey); !data && !header {
		return fmt.Errorf("%w: %s lacks the keys %s and %s", ErrNoChecksum, f.Path, sumKey, headSumKey)
	}
	if f.whole == nil {
		return fmt.Errorf("gguf: %s: VerifyChecksum needs a file from Open or Parse", f.Path)
	}
	return fsx.Guard(f.Path, func() error {
		if err := f.verifyHeader(); err != nil {
			return err
		}
		return f.verifyData(ctx, progress)
	})
}

// digest returns the hex digits of a checksum key and where they stand.
func (f *File) digest(key string) (string, int, error) {
	s, err := f.String(key)
	if err != nil {
		return "", 0, err
	}
	at := f.metaAt[f.byKey[key]] + 8
	if b, err := hex.DecodeString(s); err != nil || len(b) != sha256.Size {
		return "", 0, &FormatError{f.Path, int64(at), fmt.Sprintf("%s is %q, expected %d hex digits", key, s, 2*sha256.Size)}
	}
	return s, at, nil
}

func (f *File) verifyHeader() error {
	want, at, err := f.digest(headSumKey)
	if err != nil {
		return err
	}
	header := append([]byte{}, f.whole[:min(f.DataOffset, f.Size)]...)
	copy(header[at:], zeroDigits)
	if got := hexSum(header); got != want {
		return &FormatError{f.Path, int64(at), fmt.Sprintf("%s is %s, but the header has %s: the header was changed", headSumKey, want, got)}
	}
	return nil
}

func (f *File) verifyData(ctx context.Context, progress func(done, total int64)) error {
	want, at, err := f.digest(sumKey)
	if err != nil {
		return err
	}
	data := f.whole[min(f.DataOffset, f.Size):]
	h := sha256.New()
	const chunk = 4 << 20
	for lo := 0; ; lo += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		hi := min(lo+chunk, len(data))
		h.Write(data[lo:hi])
		if progress != nil {
			progress(int64(hi), int64(len(data)))
		}
		if hi == len(data) {
			break
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return &FormatError{f.Path, int64(at), fmt.Sprintf("%s is %s, but the data has %s: the data was changed", sumKey, want, got)}
	}
	return nil
}

func hexSum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}
