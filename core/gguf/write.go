package gguf

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// zeroDigits stands for a checksum that is not known yet.
var zeroDigits = strings.Repeat("0", 2*sha256.Size)

// Source is a tensor to write.
type Source struct {
	Name string
	Type Type
	// Dims is in ggml's order: Dims[0] is contiguous.
	Dims []uint64
	// Write writes the tensor's data: exactly Size(Type, Dims) bytes.
	Write func(w io.Writer) error
}

// FromBytes is a Source whose data is in memory.
func FromBytes(name string, t Type, dims []uint64, data []byte) Source {
	return Source{name, t, dims, func(w io.Writer) error { _, err := w.Write(data); return err }}
}

// WriteOptions are the choices of Write.
type WriteOptions struct {
	// Alignment of the data section and every tensor: a power of two of 8 or more.
	// The default value is 64.
	Alignment int
	// Progress, if not nil, is called after every tensor with the bytes of the
	// data section done and to do.
	Progress func(done, total int64)
}

// Write writes a GGUF version 3 file to path, in the order given and atomically:
// at any error or crash path is as it was before. The same arguments give the
// same bytes. Tensors are streamed, one after the other.
//
// A nil fsys is the real disk.
//
// Write owns the keys general.alignment, nanochat.sha256 (of the data section)
// and nanochat.sha256.header: it leaves them out of meta and adds its own.
func Write(fsys fsx.FS, path string, meta []KV, tensors []Source, o WriteOptions) error {
	if o.Alignment == 0 {
		o.Alignment = 64
	}
	p, err := planFile(meta, tensors, uint64(max(o.Alignment, 0)))
	if err != nil {
		return fmt.Errorf("gguf: write %s: %w", path, err)
	}
	if fsys == nil {
		fsys = fsx.OS()
	}
	err = fsx.Replace(fsys, path, func(f fsx.File) error { return p.write(f, tensors, o.Progress) })
	if err != nil {
		return fmt.Errorf("gguf: write %s: %w", path, err)
	}
	return nil
}

// plan is everything of a file that is known before the data.
type plan struct {
	header        []byte // up to the data section, with zeros for the checksums
	align         uint64
	sizes         []uint64 // of each tensor
	total         uint64   // bytes of the data section
	sumAt, headAt int      // where the digits of the checksums stand
}

func planFile(meta []KV, tensors []Source, align uint64) (*plan, error) {
	if err := checkAlignment(align); err != nil {
		return nil, err
	}
	p := &plan{align: align}
	kept := make([]KV, 0, len(meta)+3)
	for _, kv := range meta {
		if kv.Key != alignKey && kv.Key != sumKey && kv.Key != headSumKey {
			kept = append(kept, kv)
		}
	}
	kept = append(kept, KV{alignKey, V(uint32(align))}, KV{sumKey, V(zeroDigits)}, KV{headSumKey, V(zeroDigits)})
	if len(tensors) > maxCount || len(kept) > maxCount {
		return nil, fmt.Errorf("%d tensors and %d metadata pairs, at most %d each", len(tensors), len(kept), maxCount)
	}
	le := binary.LittleEndian
	p.header = le.AppendUint32([]byte(magic), 3)
	p.header = le.AppendUint64(p.header, uint64(len(tensors)))
	p.header = le.AppendUint64(p.header, uint64(len(kept)))
	if err := p.addMeta(kept); err != nil {
		return nil, err
	}
	p.headAt = len(p.header) - len(zeroDigits)
	p.sumAt = p.headAt - (8 + len(headSumKey) + 4 + 8) - len(zeroDigits)
	if err := p.addTensors(tensors); err != nil {
		return nil, err
	}
	if len(p.header) > maxHeader {
		return nil, fmt.Errorf("the header has %d bytes, at most %d", len(p.header), maxHeader)
	}
	p.header = append(p.header, make([]byte, alignUp(uint64(len(p.header)), align)-uint64(len(p.header)))...)
	return p, nil
}

func (p *plan) addMeta(meta []KV) error {
	le := binary.LittleEndian
	seen := make(map[string]bool, len(meta))
	for _, kv := range meta {
		if err := checkName(kv.Key, maxKey); err != nil {
			return fmt.Errorf("metadata key: %w", err)
		}
		if seen[kv.Key] {
			return fmt.Errorf("metadata key %q is given twice", kv.Key)
		}
		seen[kv.Key] = true
		p.header = append(le.AppendUint64(p.header, uint64(len(kv.Key))), kv.Key...)
		p.header = le.AppendUint32(p.header, uint32(kv.Value.Type()))
		start := len(p.header)
		b, err := appendValue(p.header, kv.Value.v, 0)
		if err != nil {
			return fmt.Errorf("metadata key %q: %w", kv.Key, err)
		}
		if len(b)-start > maxValue {
			return fmt.Errorf("metadata key %q has %d bytes, at most %d", kv.Key, len(b)-start, maxValue)
		}
		p.header = b
	}
	return nil
}

func (p *plan) addTensors(tensors []Source) error {
	le := binary.LittleEndian
	seen := make(map[string]bool, len(tensors))
	for _, t := range tensors {
		if err := checkName(t.Name, maxName); err != nil {
			return fmt.Errorf("tensor: %w", err)
		}
		if seen[t.Name] {
			return fmt.Errorf("tensor %q is given twice", t.Name)
		}
		seen[t.Name] = true
		size, err := Size(t.Type, t.Dims)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		p.header = append(le.AppendUint64(p.header, uint64(len(t.Name))), t.Name...)
		p.header = le.AppendUint32(p.header, uint32(len(t.Dims)))
		for _, d := range t.Dims {
			p.header = le.AppendUint64(p.header, d)
		}
		p.header = le.AppendUint32(p.header, uint32(t.Type))
		p.header = le.AppendUint64(p.header, p.total)
		p.sizes = append(p.sizes, size)
		if p.total = alignUp(p.total+size, p.align); p.total > 1<<62 {
			return fmt.Errorf("tensor %q: the file is too large", t.Name)
		}
	}
	return nil
}

// write writes the file and then goes back to fill in the checksums.
func (p *plan) write(f fsx.File, tensors []Source, progress func(done, total int64)) error {
	w := bufio.NewWriterSize(f, int(min(1<<20, uint64(len(p.header))+p.total)))
	if _, err := w.Write(p.header); err != nil {
		return err
	}
	d := &dataWriter{w: w, h: sha256.New()}
	padding := make([]byte, p.align)
	var done uint64
	for i, t := range tensors {
		d.left = p.sizes[i]
		if err := t.Write(d); err != nil {
			return fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		if d.left != 0 {
			return fmt.Errorf("tensor %q: %d of %d bytes were given", t.Name, p.sizes[i]-d.left, p.sizes[i])
		}
		done += p.sizes[i]
		d.left = alignUp(done, p.align) - done
		done += d.left
		if _, err := d.Write(padding[:d.left]); err != nil {
			return err
		}
		if progress != nil {
			progress(int64(done), int64(p.total))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	copy(p.header[p.sumAt:], hex.EncodeToString(d.h.Sum(nil)))
	copy(p.header[p.headAt:], hexSum(p.header))
	if _, err := f.WriteAt(p.header[p.sumAt:p.sumAt+len(zeroDigits)], int64(p.sumAt)); err != nil {
		return err
	}
	_, err := f.WriteAt(p.header[p.headAt:p.headAt+len(zeroDigits)], int64(p.headAt))
	return err
}

// dataWriter counts and hashes the data section.
type dataWriter struct {
	w    io.Writer
	h    hash.Hash
	left uint64 // bytes this tensor may still write
}

func (d *dataWriter) Write(b []byte) (int, error) {
	if uint64(len(b)) > d.left {
		return 0, fmt.Errorf("%d bytes too many", uint64(len(b))-d.left)
	}
	d.left -= uint64(len(b))
	d.h.Write(b)
	return d.w.Write(b)
}
