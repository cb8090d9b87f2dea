package events

import (
	"encoding/binary"
	"hash/crc32"
	"math"
)

// message is a protobuf message being written. Numbers of fields are those of the
// .proto files.
type message []byte

func (m message) tag(field, wire int) message {
	return binary.AppendUvarint(m, uint64(field)<<3|uint64(wire))
}

func (m message) varint(field int, v uint64) message {
	return binary.AppendUvarint(m.tag(field, 0), v)
}

func (m message) double(field int, v float64) message {
	return binary.LittleEndian.AppendUint64(m.tag(field, 1), math.Float64bits(v))
}

func (m message) float(field int, v float32) message {
	return binary.LittleEndian.AppendUint32(m.tag(field, 5), math.Float32bits(v))
}

func (m message) bytes(field int, v []byte) message {
	return append(binary.AppendUvarint(m.tag(field, 2), uint64(len(v))), v...)
}

func (m message) string(field int, v string) message {
	return append(binary.AppendUvarint(m.tag(field, 2), uint64(len(v))), v...)
}

// doubles is a packed repeated field.
func (m message) doubles(field int, v []float64) message {
	m = binary.AppendUvarint(m.tag(field, 2), uint64(8*len(v)))
	for _, x := range v {
		m = binary.LittleEndian.AppendUint64(m, math.Float64bits(x))
	}
	return m
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// masked is the checksum of a TFRecord: CRC-32C, rotated and shifted so that the sum of
// bytes that hold sums is none of them.
func masked(b []byte) uint32 {
	c := crc32.Checksum(b, castagnoli)
	return (c>>15 | c<<17) + 0xa282ead8
}

// record frames a message: its length (uint64), the checksum of that, the message, its
// checksum, all little-endian.
func record(m message) []byte {
	out := binary.LittleEndian.AppendUint64(make([]byte, 0, len(m)+16), uint64(len(m)))
	out = binary.LittleEndian.AppendUint32(out, masked(out))
	out = append(out, m...)
	return binary.LittleEndian.AppendUint32(out, masked(m))
}
