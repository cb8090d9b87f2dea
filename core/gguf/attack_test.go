package gguf

import (
	"encoding/binary"
	"strings"
)

// raw builds files field by field, right or wrong.
type raw struct{ b []byte }

func (r *raw) bytes(s string) *raw { r.b = append(r.b, s...); return r }
func (r *raw) u8(v ...uint8) *raw  { r.b = append(r.b, v...); return r }
func (r *raw) u32(v uint32) *raw   { r.b = binary.LittleEndian.AppendUint32(r.b, v); return r }
func (r *raw) u64(v uint64) *raw   { r.b = binary.LittleEndian.AppendUint64(r.b, v); return r }
func (r *raw) str(s string) *raw   { return r.u64(uint64(len(s))).bytes(s) }

// head is the fixed part: magic, version 3, counts.
func head(tensors, pairs uint64) *raw {
	return new(raw).bytes("GGUF").u32(3).u64(tensors).u64(pairs)
}

// key begins a metadata pair.
func (r *raw) key(k string, t ValueType) *raw { return r.str(k).u32(uint32(t)) }

// list begins an array value.
func (r *raw) list(t ValueType, n uint64) *raw { return r.u32(uint32(t)).u64(n) }

func (r *raw) tensor(name string, t Type, off uint64, dims ...uint64) *raw {
	r.str(name).u32(uint32(len(dims)))
	for _, d := range dims {
		r.u64(d)
	}
	return r.u32(uint32(t)).u64(off)
}

// pad appends zeros to a multiple of n, then extra zeros.
func (r *raw) pad(n, extra int) *raw {
	for len(r.b)%n != 0 {
		r.u8(0)
	}
	r.b = append(r.b, make([]byte, extra)...)
	return r
}

// attack is a bad file and what the reader says about it.
type attack struct {
	name string
	b    []byte
	at   int64
	want string
}

const huge = 1 << 63

// attacks is the table of bad files, in the order of the header.
func attacks() []attack {
	file := func(r *raw) []byte { return r.b }
	// one is a file of one tensor and 4 KiB of data.
	one := func(name string, t Type, off uint64, dims ...uint64) []byte {
		return head(1, 0).tensor(name, t, off, dims...).pad(32, 4096).b
	}
	nested := func(depth int) []byte {
		r := head(0, 1).key("k", TypeArray)
		for range depth - 1 {
			r.list(TypeArray, 1)
		}
		return r.list(TypeUint8, 1).u8(1).b
	}
	return []attack{
		{"empty", nil, 0, "magic needs 4 bytes"},
		{"magic short", []byte("GGU"), 0, "magic needs 4 bytes, the file has 3 left"},
		{"magic wrong", []byte("GGML\x03\x00\x00\x00"), 0, `expected "GGUF"`},
		{"magic zip", []byte("PK\x03\x04aaaaaaaaaaaaaaaaaaaa"), 0, "this is no GGUF file"},
		{"magic reversed", []byte("FUGG\x00\x00\x00\x03"), 0, "big-endian"},
		{"version missing", []byte("GGUF\x03"), 4, "version needs 4 bytes"},
		{"version 0", file(new(raw).bytes("GGUF").u32(0)), 4, "version is 0, expected 2 or 3"},
		{"version 1", file(new(raw).bytes("GGUF").u32(1)), 4, "version is 1, expected 2 or 3"},
		{"version 4", file(new(raw).bytes("GGUF").u32(4)), 4, "version is 4, expected 2 or 3"},
		{"version big-endian", file(new(raw).bytes("GGUF").u32(3 << 24)), 4, "big-endian"},
		{"version 2 big-endian", file(new(raw).bytes("GGUF").u32(2 << 24)), 4, "version is 2 in big-endian order"},
		{"tensor count missing", file(new(raw).bytes("GGUF").u32(3).u32(1)), 8, "number of tensors needs 8 bytes"},
		{"tensor count 2^32", head(1<<32, 0).pad(32, 4096).b, 8, "at most 65536"},
		{"tensor count 2^64-1", head(1<<64-1, 0).b, 8, "at most 65536"},
		{"tensor count beyond the file", head(200, 0).pad(32, 512).b, 8, "number of tensors is 200, which needs 6600 bytes"},
		{"pair count 2^63", head(0, huge).b, 16, "at most 65536"},
		{"pair count beyond the file", head(0, 65536).b, 16, "number of metadata pairs is 65536, which needs"},

		{"key empty", head(0, 1).key("", TypeUint8).u8(1, 1).b, 24, "the name is empty"},
		{"key length 2^63", head(0, 1).u64(huge).pad(32, 64).b, 24, "length of metadata key 0 is 9223372036854775808"},
		{"key length 2^64-1", head(0, 1).u64(1<<64-1).pad(32, 64).b, 24, "expected at most 65535"},
		{"key too long", head(0, 1).str(strings.Repeat("k", 65536)).u32(0).u8(0).b, 24, "expected at most 65535"},
		{"key beyond the file", head(0, 1).u64(100).bytes("abcdefghij").b, 32, "metadata key 0 needs 100 bytes, the file has 10 left"},
		{"key not UTF-8", head(0, 1).key("a\xffb", TypeUint8).u8(1).b, 24, "not UTF-8"},
		{"key with NUL", head(0, 1).key("a\x00b", TypeUint8).u8(1).b, 24, "control characters"},
		{"key twice", head(0, 2).key("k", TypeUint8).u8(1).key("k", TypeBool).u8(1).b, 38, `"k" stands twice`},
		{"value type 13", head(0, 1).key("k", 13).u64(0).b, 33, "value type 13, expected 0 to 12"},
		{"value type 2^32-1", head(0, 1).key("k", 1<<32-1).u64(0).b, 33, "value type 4294967295"},
		{"value missing", head(0, 1).key("k", TypeUint64).u32(0).b, 37, "needs 8 bytes, the file has 4 left"},
		{"bool 2", head(0, 1).key("k", TypeBool).u8(2).b, 37, "a bool is 2, expected 0 or 1"},
		{"string length 2^62", head(0, 1).key("k", TypeString).u64(1 << 62).b, 37, "length of value of \"k\" is 4611686018427387904"},
		{"string length 2^64-8", head(0, 1).key("k", TypeString).u64(1<<64 - 8).b, 37, "expected at most 67108864"},
		{"string beyond the file", head(0, 1).key("k", TypeString).u64(5).bytes("1234").b, 45, "needs 5 bytes, the file has 4 left"},

		{"array type 13", head(0, 1).key("k", TypeArray).list(13, 0).b, 37, "elements of value type 13"},
		{"array length missing", head(0, 1).key("k", TypeArray).u32(0).b, 41, "length of \"k\" needs 8 bytes"},
		{"array length 2^61 of uint64", head(0, 1).key("k", TypeArray).list(TypeUint64, 1<<61).u64(0).b, 41, "array of 2305843009213693952 uint64"},
		{"array length 2^64-1 of bytes", head(0, 1).key("k", TypeArray).list(TypeUint8, 1<<64-1).b, 41, "array of 18446744073709551615 uint8"},
		{"array beyond the file", head(0, 1).key("k", TypeArray).list(TypeFloat32, 3).u64(0).b, 41, "array of 3 float32 needs"},
		{"array of strings, length 2^40", head(0, 1).key("k", TypeArray).list(TypeString, 1<<40).pad(32, 256).b, 41, "array of 1099511627776 string"},
		{"array of strings, one 2^64-1 long", head(0, 1).key("k", TypeArray).list(TypeString, 1).u64(1<<64 - 1).b, 49, "an array may have 67108864"},
		{"array of strings, one beyond the file", head(0, 1).key("k", TypeArray).list(TypeString, 2).str("a").u64(9).b, 66, "needs 9 bytes, the file has 0 left"},
		{"array of bool 7", head(0, 1).key("k", TypeArray).list(TypeBool, 2).u8(1, 7).b, 50, "a bool is 7"},
		{"arrays nested 5 deep", nested(5), 85, "nested deeper than 4"},
		{"arrays nested 10000 deep", nested(10000), 85, "nested deeper than 4"},
		{"array of arrays, length 2^60", head(0, 1).key("k", TypeArray).list(TypeArray, 1<<60).pad(32, 64).b, 41, "array of 1152921504606846976 array"},

		{"alignment of the wrong type", head(0, 1).key(alignKey, TypeUint64).u64(32).b, 53, "general.alignment is a uint64, expected uint32"},
		{"alignment a string", head(0, 1).key(alignKey, TypeString).str("32").b, 53, "general.alignment is a string, expected uint32"},
		{"alignment 0", head(0, 1).key(alignKey, TypeUint32).u32(0).b, 53, "expected a power of two"},
		{"alignment 4", head(0, 1).key(alignKey, TypeUint32).u32(4).b, 53, "expected a power of two from 8"},
		{"alignment 48", head(0, 1).key(alignKey, TypeUint32).u32(48).b, 53, "expected a power of two"},
		{"alignment 2^31", head(0, 1).key(alignKey, TypeUint32).u32(1 << 31).b, 53, "expected a power of two"},

		{"tensor without a name", one("", F32, 0, 4), 24, "the name is empty"},
		{"tensor name of 64 bytes", one(strings.Repeat("n", 64), F32, 0, 4), 24, "expected at most 63"},
		{"tensor name length 2^63", head(1, 0).u64(huge).pad(32, 64).b, 24, "length of name of tensor 0 is 9223372036854775808"},
		{"tensor name beyond the file", head(1, 0).u64(60).pad(32, 32).b, 32, "needs 60 bytes"},
		{"tensor twice", head(2, 0).tensor("a", F32, 0, 4).tensor("a", F32, 32, 4).pad(32, 4096).b, 57, `tensor "a" stands twice`},
		{"0 dimensions", one("a", F32, 0), 33, "0 dimensions, expected 1 to 4"},
		{"5 dimensions", one("a", F32, 0, 1, 1, 1, 1, 1), 33, "5 dimensions"},
		{"2^32-1 dimensions", head(1, 0).str("a").u32(1<<32-1).pad(32, 64).b, 33, "4294967295 dimensions"},
		{"dimensions beyond the file", head(1, 0).str("abcdefgh").u32(4).u64(1).b, 44, "needs 44 bytes, the file has 8 left"},
		{"dimension 0", one("a", F32, 0, 4, 0), 33, "dimension 1 is 0"},
		{"dimensions 2^32 x 2^32", one("a", F32, 0, 1<<32, 1<<32), 33, "overflow"},
		{"dimensions 2^31 x 2^31 x 4 x 1", one("a", F32, 0, 1<<31, 1<<31, 4), 33, "overflow"},
		{"size overflows", one("a", F64, 0, 1<<62), 33, "overflows"},
		{"dimension 2^63", one("a", I8, 0, huge), 33, "overflow"},
		{"storage type 4", one("a", 4, 0, 32), 33, "storage type 4 is unknown"},
		{"storage type 37", one("a", 37, 0, 32), 33, "storage type 37 is unknown"},
		{"storage type 2^32-1", one("a", 1<<32-1, 0, 32), 33, "storage type 4294967295 is unknown"},
		{"Q8_0 row of 33", one("a", Q8_0, 0, 33, 32), 33, "multiple of the block of 32 of Q8_0"},
		{"TQ2_0 row of 128", one("a", TQ2_0, 0, 128, 2), 33, "multiple of the block of 256 of TQ2_0"},
		{"I2_S of 64", one("a", I2_S, 0, 64), 33, "multiple of 128 for I2_S"},

		{"data beyond the file", one("a", F32, 0, 1025), 24, "needs 4100 bytes at offset 0 of the data, the file has 4096"},
		{"no data", head(1, 0).tensor("a", F32, 0, 1).b, 24, "the file has 0"},
		{"offset beyond the file", one("a", F32, 8192, 1), 24, "at offset 8192 of the data, the file has 4096"},
		{"offset at the end", one("a", F32, 4096, 1), 24, "needs 4 bytes at offset 4096"},
		{"offset 2^64-32", one("a", F32, 1<<64-32, 16), 24, "at offset 18446744073709551584"},
		{"offset 16", one("a", F32, 16, 1), 24, "expected a multiple of the alignment 32"},
		{"I2_S without its scale", one("a", I2_S, 0, 128*128), 24, "needs 4128 bytes"},
		{"same data twice", head(2, 0).tensor("a", F32, 0, 4).tensor("b", F32, 0, 4).pad(32, 4096).b, 57, `"b" at offset 0 overlaps "a"`},
		{"data overlaps", head(2, 0).tensor("a", F32, 32, 4).tensor("b", F32, 0, 9).pad(32, 4096).b, 24, `"a" at offset 32 overlaps "b", which ends at 36`},
	}
}
