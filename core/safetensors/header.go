package safetensors

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/bits"
	"strconv"
	"unicode/utf8"
)

const (
	metadataKey = "__metadata__"
	maxDims     = 16
	maxTensors  = 1 << 20
)

// headerReader walks through the JSON of a header.
type headerReader struct {
	*json.Decoder
	f *File
}

// parseHeader reads the JSON; the offsets of the tensors count from the data
// section and are not checked against each other nor against the file.
func (f *File) parseHeader(header []byte) error {
	r := headerReader{json.NewDecoder(bytes.NewReader(header)), f}
	if len(header) == 0 || header[0] != '{' {
		return f.errAt(prefix, "the header does not begin with \"{\"; this is no safetensors file")
	}
	if !utf8.Valid(header) {
		return f.errAt(prefix, "the header is not UTF-8")
	}
	r.UseNumber()
	seen := map[string]bool{}
	err := r.object("the header", func(name string) error {
		if seen[name] {
			return r.errorf("tensor %q stands twice", name)
		}
		seen[name] = true
		if name == metadataKey {
			return r.metadata()
		}
		if len(f.Tensors) == maxTensors {
			return r.errorf("more than %d tensors", maxTensors)
		}
		t, err := r.tensor(name)
		f.Tensors = append(f.Tensors, t)
		return err
	})
	if err != nil {
		return err
	}
	if _, err := r.Token(); err != io.EOF {
		return r.errorf("the header goes on after its last \"}\"")
	}
	return nil
}

func (r headerReader) errorf(format string, args ...any) error {
	return r.f.errAt(prefix+r.InputOffset(), format, args...)
}

// token returns the next token, which what describes in errors.
func (r headerReader) token(what string) (json.Token, error) {
	t, err := r.Token()
	if err != nil {
		return nil, r.errorf("%s: %v", what, jsonError(err))
	}
	return t, nil
}

func jsonError(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// object reads an object and calls each for every key, which reads its value.
func (r headerReader) object(what string, each func(key string) error) error {
	if err := r.delim('{', what); err != nil {
		return err
	}
	for r.More() {
		key, err := r.text("a key of " + what)
		if err != nil {
			return err
		}
		if err := each(key); err != nil {
			return err
		}
	}
	return r.delim('}', what)
}

func (r headerReader) delim(want json.Delim, what string) error {
	t, err := r.token(what)
	if err == nil && t != want {
		return r.errorf("%s: found %v, expected %q", what, show(t), want.String())
	}
	return err
}

func (r headerReader) text(what string) (string, error) {
	t, err := r.token(what)
	if err != nil {
		return "", err
	}
	s, ok := t.(string)
	if !ok {
		return "", r.errorf("%s is %v, expected a string", what, show(t))
	}
	return s, nil
}

// numbers reads an array of at most limit integers from 0.
func (r headerReader) numbers(what string, limit int) ([]int, error) {
	if err := r.delim('[', what); err != nil {
		return nil, err
	}
	list := []int{}
	for r.More() {
		t, err := r.token(what)
		if err != nil {
			return nil, err
		}
		if len(list) == limit {
			return nil, r.errorf("%s has more than %d numbers", what, limit)
		}
		n, ok := t.(json.Number)
		v, err := strconv.ParseUint(n.String(), 10, strconv.IntSize-1)
		if !ok || err != nil {
			return nil, r.errorf("%s holds %v, expected integers from 0 on", what, show(t))
		}
		list = append(list, int(v))
	}
	return list, r.delim(']', what)
}

// show is a token in an error.
func show(t json.Token) string {
	switch v := t.(type) {
	case string:
		if len(v) > 60 {
			v = v[:60] + "…"
		}
		return strconv.Quote(v)
	case nil:
		return "null"
	}
	return fmt.Sprint(t)
}

func (r headerReader) metadata() error {
	r.f.Metadata = map[string]string{}
	return r.object(metadataKey, func(key string) error {
		if _, twice := r.f.Metadata[key]; twice {
			return r.errorf("key %q of %s stands twice", key, metadataKey)
		}
		v, err := r.text(fmt.Sprintf("key %q of %s", key, metadataKey))
		r.f.Metadata[key] = v
		return err
	})
}

// tensor reads the description of a tensor.
func (r headerReader) tensor(name string) (t Tensor, err error) {
	t.Name = name
	what := "tensor " + show(name)
	var offsets []int
	const hasType, hasShape, hasOffsets = 1, 2, 4
	seen := 0
	once := func(bit int, key string) error {
		if seen&bit != 0 {
			return r.errorf("%s: %q stands twice", what, key)
		}
		seen |= bit
		return nil
	}
	err = r.object(what, func(key string) error {
		switch key {
		case "dtype":
			if err := once(hasType, key); err != nil {
				return err
			}
			s, err := r.text(what + ": dtype")
			if err != nil {
				return err
			}
			var ok bool
			if t.DType, ok = dtypeOf(s); !ok {
				return r.errorf("%s: dtype %s is unknown", what, show(s))
			}
			return nil
		case "shape":
			if err := once(hasShape, key); err != nil {
				return err
			}
			t.Shape, err = r.numbers(what+": shape", maxDims)
			return err
		case "data_offsets":
			if err := once(hasOffsets, key); err != nil {
				return err
			}
			offsets, err = r.numbers(what+": data_offsets", 2)
			return err
		}
		return r.errorf("%s has the key %s, expected dtype, shape and data_offsets", what, show(key))
	})
	switch {
	case err != nil:
		return t, err
	case seen != hasType|hasShape|hasOffsets:
		return t, r.errorf("%s lacks one of dtype, shape and data_offsets", what)
	case len(offsets) != 2:
		return t, r.errorf("%s: data_offsets has %d numbers, expected 2", what, len(offsets))
	case offsets[0] > offsets[1]:
		return t, r.errorf("%s: data ends at %d before it begins at %d", what, offsets[1], offsets[0])
	}
	size, ok := byteSize(t.DType, t.Shape)
	if !ok {
		return t, r.errorf("%s: the size of shape %v overflows", what, t.Shape)
	}
	if size != int64(offsets[1]-offsets[0]) {
		return t, r.errorf("%s: %s %v needs %d bytes, its data has %d", what, t.DType, t.Shape, size, offsets[1]-offsets[0])
	}
	t.Offset, t.size = int64(offsets[0]), size
	return t, nil
}

// byteSize is the bytes of a tensor. Shapes whose product overflows are refused
// even if another dimension is 0, as the reference implementation does.
func byteSize(t DType, shape []int) (int64, bool) {
	n := uint64(t.Size())
	for _, d := range shape {
		hi, lo := bits.Mul64(n, uint64(d))
		if d < 0 || hi != 0 {
			return 0, false
		}
		n = lo
	}
	return int64(n), n <= 1<<63-1
}
