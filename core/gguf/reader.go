package gguf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"
)

// Limits of what Parse accepts, beyond what the format says.
const (
	maxDims    = 4        // ggml's GGML_MAX_DIMS
	maxName    = 63       // bytes of a tensor's name: GGML_MAX_NAME less the NUL
	maxKey     = 65535    // bytes of a metadata key, as the format says
	maxCount   = 65536    // tensors, and metadata pairs
	maxValue   = 64 << 20 // bytes of one metadata value
	maxDepth   = 4        // arrays in arrays
	maxHeader  = 512 << 20
	maxAlign   = 1 << 20
	minAlign   = 8
	defAlign   = 32
	minPair    = 8 + 1 + 4 + 1            // bytes of the smallest metadata pair
	minTensor  = 8 + 1 + 4 + 8 + 4 + 8    // bytes of the smallest tensor description
	firstRead  = 64 << 10                 // bytes read at first by readHeader
	headerSize = 4 + 4 + 8 + 8            // magic, version and two counts
	alignKey   = "general.alignment"      // uint32
	sumKey     = "nanochat.sha256"        // string, 64 hex digits
	headSumKey = "nanochat.sha256.header" // string, 64 hex digits
)

// reader walks through a header. All lengths in a file come through take.
type reader struct {
	path string
	buf  []byte // the file as far as it was read
	size int64  // of the file
	off  int
	src  io.ReaderAt // reads what buf lacks; nil if buf is the whole file
}

// errAt makes the error of something at byte off.
func (r *reader) errAt(off int, format string, args ...any) error {
	return &FormatError{Path: r.path, Offset: int64(off), What: fmt.Sprintf(format, args...)}
}

// take returns the next n bytes.
func (r *reader) take(n uint64, what string) ([]byte, error) {
	if left := r.size - int64(r.off); n > uint64(left) {
		return nil, r.errAt(r.off, "%s needs %d bytes, the file has %d left", what, n, left)
	}
	end := r.off + int(n)
	if end > maxHeader {
		return nil, r.errAt(r.off, "%s: the header is larger than %d bytes", what, maxHeader)
	}
	if end > len(r.buf) {
		if err := r.fill(end); err != nil {
			return nil, err
		}
	}
	b := r.buf[r.off:end:end]
	r.off = end
	return b, nil
}

// fill reads on until buf holds at least end bytes.
func (r *reader) fill(end int) error {
	have := len(r.buf)
	want := int(min(int64(max(end, 2*have, firstRead)), r.size))
	buf := make([]byte, want)
	copy(buf, r.buf)
	n, err := r.src.ReadAt(buf[have:], int64(have))
	if have+n < end {
		if err == nil || errors.Is(err, io.EOF) {
			return r.errAt(have+n, "the file ends here, but had %d bytes when it was opened", r.size)
		}
		return fmt.Errorf("gguf: %s: byte %d: %w", r.path, have+n, err)
	}
	r.buf = buf[:have+n]
	return nil
}

func (r *reader) u32(what string) (uint32, error) {
	b, err := r.take(4, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (r *reader) u64(what string) (uint64, error) {
	b, err := r.take(8, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// count reads a number of things of at least size bytes each.
func (r *reader) count(what string, size uint64) (int, error) {
	at := r.off
	n, err := r.u64(what)
	if err != nil {
		return 0, err
	}
	if n > maxCount {
		return 0, r.errAt(at, "%s is %d, expected at most %d", what, n, maxCount)
	}
	if left := uint64(r.size - int64(r.off)); n*size > left {
		return 0, r.errAt(at, "%s is %d, which needs %d bytes, the file has %d left", what, n, n*size, left)
	}
	return int(n), nil
}

// text reads a string of at most limit bytes.
func (r *reader) text(what string, limit uint64) (string, error) {
	at := r.off
	n, err := r.u64(what)
	if err != nil {
		return "", err
	}
	if n > limit {
		return "", r.errAt(at, "length of %s is %d, expected at most %d", what, n, limit)
	}
	b, err := r.take(n, what)
	return string(b), err
}

// name reads a key or a tensor's name.
func (r *reader) name(what string, limit uint64) (string, error) {
	at := r.off
	s, err := r.text(what, limit)
	if err != nil {
		return "", err
	}
	if err := checkName(s, limit); err != nil {
		return "", r.errAt(at, "%s: %v", what, err)
	}
	return s, nil
}

// checkName is the rule for keys and tensor names, for reading and writing.
func checkName(s string, limit uint64) error {
	switch {
	case s == "":
		return errors.New("the name is empty")
	case uint64(len(s)) > limit:
		return fmt.Errorf("the name has %d bytes, expected at most %d", len(s), limit)
	case !utf8.ValidString(s):
		return fmt.Errorf("the name %q is not UTF-8", s)
	case strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f }):
		return fmt.Errorf("the name %q has control characters", s)
	}
	return nil
}

// value reads a metadata value of type t; depth counts the arrays around it.
func (r *reader) value(t ValueType, key string, depth int) (Value, error) {
	if t == TypeString {
		s, err := r.text(fmt.Sprintf("value of %q", key), maxValue)
		return Value{s}, err
	}
	if t == TypeArray {
		return r.array(key, depth+1)
	}
	if int64(t) >= int64(len(valueTypes)) {
		return Value{}, r.errAt(r.off-4, "key %q has value type %d, expected 0 to %d", key, uint32(t), len(valueTypes)-1)
	}
	at := r.off
	b, err := r.take(valueTypes[t].size, "value of key \""+key+"\"")
	if err != nil {
		return Value{}, err
	}
	le := binary.LittleEndian
	switch t {
	case TypeUint8:
		return Value{b[0]}, nil
	case TypeInt8:
		return Value{int8(b[0])}, nil
	case TypeUint16:
		return Value{le.Uint16(b)}, nil
	case TypeInt16:
		return Value{int16(le.Uint16(b))}, nil
	case TypeUint32:
		return Value{le.Uint32(b)}, nil
	case TypeInt32:
		return Value{int32(le.Uint32(b))}, nil
	case TypeFloat32:
		return Value{math.Float32frombits(le.Uint32(b))}, nil
	case TypeUint64:
		return Value{le.Uint64(b)}, nil
	case TypeInt64:
		return Value{int64(le.Uint64(b))}, nil
	case TypeFloat64:
		return Value{math.Float64frombits(le.Uint64(b))}, nil
	}
	if b[0] > 1 {
		return Value{}, r.errAt(at, "key %q: a bool is %d, expected 0 or 1", key, b[0])
	}
	return Value{b[0] == 1}, nil
}

// array reads an array; depth counts it and the arrays around it.
func (r *reader) array(key string, depth int) (Value, error) {
	start := r.off
	if depth > maxDepth {
		return Value{}, r.errAt(start, "key %q: arrays nested deeper than %d", key, maxDepth)
	}
	et, err := r.u32("element type of \"" + key + "\"")
	if err != nil {
		return Value{}, err
	}
	t := ValueType(et)
	if int64(t) >= int64(len(valueTypes)) {
		return Value{}, r.errAt(start, "key %q has elements of value type %d, expected 0 to %d", key, et, len(valueTypes)-1)
	}
	n, err := r.u64("length of \"" + key + "\"")
	if err != nil {
		return Value{}, err
	}
	size := valueTypes[t].size // of one element, at least
	switch t {
	case TypeString:
		size = 8
	case TypeArray:
		size = 12
	}
	left := uint64(r.size - int64(r.off))
	if n > maxValue/size || n*size > left {
		return Value{}, r.errAt(start+4, "key %q: array of %d %s needs at least %d bytes each, the file has %d left and a value may have %d",
			key, n, t, size, left, maxValue)
	}
	switch t {
	case TypeString:
		return r.strings(key, int(n))
	case TypeArray:
		v := make([]Value, 0, n)
		for range n {
			e, err := r.array(key, depth+1)
			if err != nil {
				return Value{}, err
			}
			v = append(v, e)
		}
		return Value{v}, nil
	}
	at := r.off
	b, err := r.take(n*size, "value of \""+key+"\"")
	if err != nil {
		return Value{}, err
	}
	le := binary.LittleEndian
	switch t {
	case TypeUint8:
		return Value{append([]uint8{}, b...)}, nil
	case TypeInt8:
		return Value{elements(b, 1, func(b []byte) int8 { return int8(b[0]) })}, nil
	case TypeUint16:
		return Value{elements(b, 2, le.Uint16)}, nil
	case TypeInt16:
		return Value{elements(b, 2, func(b []byte) int16 { return int16(le.Uint16(b)) })}, nil
	case TypeUint32:
		return Value{elements(b, 4, le.Uint32)}, nil
	case TypeInt32:
		return Value{elements(b, 4, func(b []byte) int32 { return int32(le.Uint32(b)) })}, nil
	case TypeFloat32:
		return Value{elements(b, 4, func(b []byte) float32 { return math.Float32frombits(le.Uint32(b)) })}, nil
	case TypeUint64:
		return Value{elements(b, 8, le.Uint64)}, nil
	case TypeInt64:
		return Value{elements(b, 8, func(b []byte) int64 { return int64(le.Uint64(b)) })}, nil
	case TypeFloat64:
		return Value{elements(b, 8, func(b []byte) float64 { return math.Float64frombits(le.Uint64(b)) })}, nil
	}
	for i, x := range b {
		if x > 1 {
			return Value{}, r.errAt(at+i, "key %q: a bool is %d, expected 0 or 1", key, x)
		}
	}
	return Value{elements(b, 1, func(b []byte) bool { return b[0] == 1 })}, nil
}

// elements decodes b, size bytes an element.
func elements[T scalar](b []byte, size int, get func([]byte) T) []T {
	v := make([]T, len(b)/size)
	for i := range v {
		v[i] = get(b[i*size : i*size+size])
	}
	return v
}

// strings reads n strings. They share one copy of the bytes: a vocabulary has
// 10⁵ of them.
func (r *reader) strings(key string, n int) (Value, error) {
	start := r.off
	what := "an element of \"" + key + "\""
	for range n {
		if _, err := r.skipText(what, start); err != nil {
			return Value{}, err
		}
	}
	all := string(r.buf[start:r.off])
	v := make([]string, n)
	for i, at := 0, 0; i < n; i++ {
		size := int(binary.LittleEndian.Uint64(r.buf[start+at:]))
		v[i] = all[at+8 : at+8+size]
		at += 8 + size
	}
	return Value{v}, nil
}

// skipText passes over a string of an array that began at start.
func (r *reader) skipText(what string, start int) (int, error) {
	at := r.off
	n, err := r.u64(what)
	if err != nil {
		return 0, err
	}
	if n > maxValue || uint64(r.off-start)+n > maxValue {
		return 0, r.errAt(at, "%s has %d bytes, an array may have %d", what, n, maxValue)
	}
	_, err = r.take(n, what)
	return int(n), err
}
