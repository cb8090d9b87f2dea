package gguf

import (
	"encoding/binary"
	"fmt"
	"slices"
)

const magic = "GGUF"

// Parse checks a whole file held in b and returns what it says. The Data of its
// tensors are parts of b; nothing else of the File refers to b. path is for
// errors only, which are *FormatError.
func Parse(path string, b []byte) (*File, error) {
	f, err := parse(&reader{path: path, buf: b, size: int64(len(b))})
	if err != nil {
		return nil, err
	}
	f.attach(b)
	return f, nil
}

// parse is the one reader of headers.
func parse(r *reader) (*File, error) {
	f := &File{Path: r.path, Size: r.size, Alignment: defAlign}
	if err := f.parseVersion(r); err != nil {
		return nil, err
	}
	tensors, err := r.count("number of tensors", minTensor)
	if err != nil {
		return nil, err
	}
	pairs, err := r.count("number of metadata pairs", minPair)
	if err != nil {
		return nil, err
	}
	if err := f.parseMeta(r, pairs); err != nil {
		return nil, err
	}
	if err := f.parseAlignment(r); err != nil {
		return nil, err
	}
	offsets, err := f.parseTensors(r, tensors)
	if err != nil {
		return nil, err
	}
	return f, f.place(r, offsets)
}

func (f *File) parseVersion(r *reader) error {
	m, err := r.take(4, "magic")
	if err != nil {
		return err
	}
	switch string(m) {
	case magic:
	case "FUGG":
		return r.errAt(0, "magic is \"FUGG\": this is a big-endian file; only little-endian files are read")
	default:
		return r.errAt(0, "magic is %q, expected %q: this is no GGUF file", m, magic)
	}
	v, err := r.u32("version")
	if err != nil {
		return err
	}
	switch v {
	case 2, 3:
		f.Version = v
		return nil
	case 1:
		return r.errAt(4, "version is 1, expected 2 or 3: convert the file with a current tool")
	case 2 << 24, 3 << 24:
		return r.errAt(4, "version is %d in big-endian order; only little-endian files are read", v>>24)
	}
	return r.errAt(4, "version is %d, expected 2 or 3", v)
}

func (f *File) parseMeta(r *reader, n int) error {
	f.Meta = make([]KV, 0, n)
	f.metaAt = make([]int, 0, n)
	f.byKey = make(map[string]int, n)
	for i := range n {
		at := r.off
		key, err := r.name(fmt.Sprintf("metadata key %d", i), maxKey)
		if err != nil {
			return err
		}
		if _, dup := f.byKey[key]; dup {
			return r.errAt(at, "metadata key %q stands twice", key)
		}
		t, err := r.u32("value type of \"" + key + "\"")
		if err != nil {
			return err
		}
		f.metaAt = append(f.metaAt, r.off)
		v, err := r.value(ValueType(t), key, 0)
		if err != nil {
			return err
		}
		f.byKey[key] = i
		f.Meta = append(f.Meta, KV{key, v})
	}
	return nil
}

func (f *File) parseAlignment(r *reader) error {
	i, ok := f.byKey[alignKey]
	if !ok {
		return nil
	}
	v, ok := f.Meta[i].Value.v.(uint32)
	if !ok {
		return r.errAt(f.metaAt[i], "%s is a %s, expected uint32", alignKey, f.Meta[i].Value.describe())
	}
	if err := checkAlignment(uint64(v)); err != nil {
		return r.errAt(f.metaAt[i], "%v", err)
	}
	f.Alignment = uint64(v)
	return nil
}

// checkAlignment is the rule for alignments, for reading and writing.
func checkAlignment(n uint64) error {
	if n < minAlign || n > maxAlign || n&(n-1) != 0 {
		return fmt.Errorf("%s is %d, expected a power of two from %d to %d", alignKey, n, minAlign, maxAlign)
	}
	return nil
}

// parseTensors reads the descriptions and returns where each one stands.
func (f *File) parseTensors(r *reader, n int) ([]int, error) {
	f.Tensors = make([]Tensor, 0, n)
	f.byName = make(map[string]int, n)
	dims := make([]uint64, 0, n*2)
	offsets := make([]int, 0, n)
	for i := range n {
		at := r.off
		offsets = append(offsets, at)
		name, err := r.name(fmt.Sprintf("name of tensor %d", i), maxName)
		if err != nil {
			return nil, err
		}
		if _, dup := f.byName[name]; dup {
			return nil, r.errAt(at, "tensor %q stands twice", name)
		}
		at = r.off
		nd, err := r.u32("number of dimensions of \"" + name + "\"")
		if err != nil {
			return nil, err
		}
		if nd < 1 || nd > maxDims {
			return nil, r.errAt(at, "tensor %q has %d dimensions, expected 1 to %d", name, nd, maxDims)
		}
		b, err := r.take(uint64(nd)*8+4+8, "dimensions, type and offset of \""+name+"\"")
		if err != nil {
			return nil, err
		}
		le := binary.LittleEndian
		first := len(dims)
		for d := range int(nd) {
			dims = append(dims, le.Uint64(b[8*d:]))
		}
		b = b[8*nd:]
		t := Tensor{
			Name: name, Type: Type(le.Uint32(b)), Offset: le.Uint64(b[4:]),
			Dims: dims[first:len(dims):len(dims)],
		}
		if t.size, err = Size(t.Type, t.Dims); err != nil {
			return nil, r.errAt(at, "tensor %q: %v", name, err)
		}
		f.byName[name] = i
		f.Tensors = append(f.Tensors, t)
	}
	return offsets, nil
}

// place finds the data section and checks that every tensor lies in it, aligned
// and apart from the others. offsets[i] is where tensor i is described.
func (f *File) place(r *reader, offsets []int) error {
	f.HeaderSize = int64(r.off)
	start := alignUp(uint64(r.off), f.Alignment) // r.off ≤ maxHeader: no overflow
	f.DataOffset = int64(start)
	var room uint64
	if uint64(r.size) > start {
		room = uint64(r.size) - start
	}
	order := make([]int, len(f.Tensors))
	for i, t := range f.Tensors {
		order[i] = i
		if t.Offset%f.Alignment != 0 {
			return r.errAt(offsets[i], "tensor %q has offset %d, expected a multiple of the alignment %d", t.Name, t.Offset, f.Alignment)
		}
		if t.Offset > room || t.size > room-t.Offset {
			return r.errAt(offsets[i], "tensor %q needs %d bytes at offset %d of the data, the file has %d", t.Name, t.size, t.Offset, room)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		switch x, y := f.Tensors[a].Offset, f.Tensors[b].Offset; {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return a - b
	})
	for k := 1; k < len(order); k++ {
		p, t := &f.Tensors[order[k-1]], &f.Tensors[order[k]]
		if p.Offset+p.size > t.Offset {
			return r.errAt(offsets[order[k]], "tensor %q at offset %d overlaps %q, which ends at %d", t.Name, t.Offset, p.Name, p.Offset+p.size)
		}
	}
	return nil
}

// alignUp rounds n up to a multiple of a, a power of two.
func alignUp(n, a uint64) uint64 { return (n + a - 1) &^ (a - 1) }
