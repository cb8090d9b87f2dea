package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// Source is a tensor to write.
type Source struct {
	Name  string
	DType DType
	// Shape is the dimensions, the slowest first.
	Shape []int
	// Write writes the data, little-endian: exactly the bytes that DType and Shape
	// need.
	Write func(w io.Writer) error
}

// FromFloat32s is an F32 Source of values in memory.
func FromFloat32s(name string, shape []int, values []float32) Source {
	return Source{Name: name, DType: F32, Shape: shape, Write: func(w io.Writer) error {
		buf := make([]byte, min(4*len(values), chunk))
		for len(values) > 0 {
			n := min(len(values), chunk/4)
			for i, v := range values[:n] {
				binary.LittleEndian.PutUint32(buf[4*i:], math.Float32bits(v))
			}
			if _, err := w.Write(buf[:4*n]); err != nil {
				return err
			}
			values = values[n:]
		}
		return nil
	}}
}

// FromBytes is a Source whose data is in memory.
func FromBytes(name string, t DType, shape []int, data []byte) Source {
	return Source{Name: name, DType: t, Shape: shape, Write: func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}}
}

// Write writes a file to w. Tensors are streamed in the order given; readers that
// want aligned data find it where the sizes of tensors of wider types come first,
// or all types are equal. The same arguments give the same bytes. metadata may be
// nil.
func Write(w io.Writer, metadata map[string]string, tensors []Source) error {
	header, err := makeHeader(metadata, tensors)
	if err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return err
	}
	for i := range tensors {
		s := &tensors[i]
		size, _ := byteSize(s.DType, s.Shape)
		c := counter{w: w, left: size}
		if err := s.Write(&c); err != nil {
			return err
		}
		if c.left != 0 {
			return fmt.Errorf("safetensors: tensor %q: %d bytes were written, %s %v needs %d", s.Name, size-c.left, s.DType, s.Shape, size)
		}
	}
	return nil
}

// WriteFile writes a file atomically: at any error or crash path is as it was
// before. A nil fsys is the real disk.
func WriteFile(fsys fsx.FS, path string, metadata map[string]string, tensors []Source) error {
	if fsys == nil {
		fsys = fsx.OS()
	}
	return fsx.WriteAtomic(fsys, path, func(w io.Writer) error { return Write(w, metadata, tensors) })
}

// Size is the number of bytes that Write writes, or the error that it would
// return for these arguments.
func Size(metadata map[string]string, tensors []Source) (int64, error) {
	header, err := makeHeader(metadata, tensors)
	if err != nil {
		return 0, err
	}
	n := int64(len(header))
	for i := range tensors {
		size, _ := byteSize(tensors[i].DType, tensors[i].Shape)
		n += size
	}
	return n, nil
}

// makeHeader is everything before the data.
func makeHeader(metadata map[string]string, tensors []Source) ([]byte, error) {
	var b bytes.Buffer
	b.Write(make([]byte, prefix))
	b.WriteByte('{')
	if metadata != nil {
		text(&b, metadataKey)
		b.WriteString(":{")
		for i, key := range slices.Sorted(maps.Keys(metadata)) {
			if !utf8.ValidString(key) || !utf8.ValidString(metadata[key]) {
				return nil, fmt.Errorf("safetensors: metadata %q is not UTF-8", key)
			}
			if i > 0 {
				b.WriteByte(',')
			}
			text(&b, key)
			b.WriteByte(':')
			text(&b, metadata[key])
		}
		b.WriteByte('}')
	}
	names := make(map[string]bool, len(tensors))
	at := int64(0)
	for i := range tensors {
		s := &tensors[i]
		size, ok := byteSize(s.DType, s.Shape)
		switch {
		case s.Name == metadataKey || !utf8.ValidString(s.Name):
			return nil, fmt.Errorf("safetensors: %q cannot be the name of a tensor", s.Name)
		case names[s.Name]:
			return nil, fmt.Errorf("safetensors: tensor %q stands twice", s.Name)
		case s.DType.Size() == 0:
			return nil, fmt.Errorf("safetensors: tensor %q has unknown %s", s.Name, s.DType)
		case len(s.Shape) > maxDims:
			return nil, fmt.Errorf("safetensors: tensor %q has %d dimensions, expected at most %d", s.Name, len(s.Shape), maxDims)
		case !ok || size > math.MaxInt64-at:
			return nil, fmt.Errorf("safetensors: tensor %q: the size of shape %v overflows", s.Name, s.Shape)
		}
		names[s.Name] = true
		if i > 0 || metadata != nil {
			b.WriteByte(',')
		}
		text(&b, s.Name)
		fmt.Fprintf(&b, `:{"dtype":"%s","shape":[`, s.DType)
		for i, d := range s.Shape {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprint(&b, d)
		}
		fmt.Fprintf(&b, `],"data_offsets":[%d,%d]}`, at, at+size)
		at += size
	}
	b.WriteByte('}')
	for b.Len()%64 != 0 { // data begins at a cache line
		b.WriteByte(' ')
	}
	header := b.Bytes()
	if len(header)-prefix > maxHeader {
		return nil, fmt.Errorf("safetensors: the header has %d bytes, at most %d are allowed", len(header)-prefix, maxHeader)
	}
	binary.LittleEndian.PutUint64(header, uint64(len(header)-prefix))
	return header, nil
}

// text writes s, which is UTF-8, as a JSON string.
func text(b *bytes.Buffer, s string) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s)         // a string cannot fail, nor a Buffer
	b.Truncate(b.Len() - 1) // the newline that Encode adds
}

// counter lets left bytes through.
type counter struct {
	w    io.Writer
	left int64
}

func (c *counter) Write(b []byte) (int, error) {
	if int64(len(b)) > c.left {
		return 0, fmt.Errorf("safetensors: %d bytes more than the tensor has", int64(len(b))-c.left)
	}
	n, err := c.w.Write(b)
	c.left -= int64(n)
	return n, err
}
