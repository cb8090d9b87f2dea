package gguf

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math"
)

// ValueType is the type of a metadata value, numbered as in the file.
type ValueType uint32

// The types of metadata values.
const (
	TypeUint8   ValueType = 0
	TypeInt8    ValueType = 1
	TypeUint16  ValueType = 2
	TypeInt16   ValueType = 3
	TypeUint32  ValueType = 4
	TypeInt32   ValueType = 5
	TypeFloat32 ValueType = 6
	TypeBool    ValueType = 7
	TypeString  ValueType = 8
	TypeArray   ValueType = 9
	TypeUint64  ValueType = 10
	TypeInt64   ValueType = 11
	TypeFloat64 ValueType = 12
)

var valueTypes = [...]struct {
	name string
	size uint64 // bytes of one; 0 if it varies
}{
	TypeUint8: {"uint8", 1}, TypeInt8: {"int8", 1}, TypeUint16: {"uint16", 2}, TypeInt16: {"int16", 2},
	TypeUint32: {"uint32", 4}, TypeInt32: {"int32", 4}, TypeFloat32: {"float32", 4}, TypeBool: {"bool", 1},
	TypeString: {"string", 0}, TypeArray: {"array", 0},
	TypeUint64: {"uint64", 8}, TypeInt64: {"int64", 8}, TypeFloat64: {"float64", 8},
}

// String is the name of t.
func (t ValueType) String() string {
	if int64(t) < int64(len(valueTypes)) {
		return valueTypes[t].name
	}
	return fmt.Sprintf("value type %d", uint32(t))
}

// scalar is the Go types that metadata values and array elements have.
type scalar interface {
	uint8 | int8 | uint16 | int16 | uint32 | int32 | float32 | bool | string | uint64 | int64 | float64
}

// Value is one metadata value: a scalar, a string, an array of one of these, or
// an array of arrays. The zero Value is not valid.
type Value struct {
	v any // a scalar, a slice of scalars, or []Value whose elements are arrays
}

// V is the value v.
func V[T scalar](v T) Value { return Value{v} }

// Array is the array v, which it keeps and which must not change.
func Array[T scalar](v []T) Value {
	if v == nil {
		v = []T{}
	}
	return Value{v}
}

// ArrayOfArrays is an array whose elements are arrays. Write refuses elements
// that are not.
func ArrayOfArrays(v []Value) Value {
	if v == nil {
		v = []Value{}
	}
	return Value{v}
}

// ValueOf is the value v, whose type is one that V or Array takes, or []Value.
func ValueOf(v any) (Value, error) {
	_, isScalar := scalarType(v)
	if _, isArray := (Value{v}).Elem(); !isScalar && !isArray {
		return Value{}, fmt.Errorf("gguf: metadata cannot hold a %T", v)
	}
	return Value{v}, nil
}

// Collect makes metadata of keys with Go values, such as those of tokenizer.Pairs.
func Collect(pairs iter.Seq2[string, any]) ([]KV, error) {
	var kvs []KV
	for key, value := range pairs {
		v, err := ValueOf(value)
		if err != nil {
			return nil, fmt.Errorf("%w (key %q)", err, key)
		}
		kvs = append(kvs, KV{key, v})
	}
	return kvs, nil
}

// Any is the Go value: uint8, …, string, []uint8, …, []string or []Value.
func (v Value) Any() any { return v.v }

// Type is the type of v; for an array it is TypeArray.
func (v Value) Type() ValueType {
	if _, isArray := v.Elem(); isArray {
		return TypeArray
	}
	t, _ := scalarType(v.v)
	return t
}

// Elem is the type of the elements of an array.
func (v Value) Elem() (t ValueType, isArray bool) {
	switch v.v.(type) {
	case []uint8:
		return TypeUint8, true
	case []int8:
		return TypeInt8, true
	case []uint16:
		return TypeUint16, true
	case []int16:
		return TypeInt16, true
	case []uint32:
		return TypeUint32, true
	case []int32:
		return TypeInt32, true
	case []float32:
		return TypeFloat32, true
	case []bool:
		return TypeBool, true
	case []string:
		return TypeString, true
	case []uint64:
		return TypeUint64, true
	case []int64:
		return TypeInt64, true
	case []float64:
		return TypeFloat64, true
	case []Value:
		return TypeArray, true
	}
	return 0, false
}

func scalarType(v any) (ValueType, bool) {
	switch v.(type) {
	case uint8:
		return TypeUint8, true
	case int8:
		return TypeInt8, true
	case uint16:
		return TypeUint16, true
	case int16:
		return TypeInt16, true
	case uint32:
		return TypeUint32, true
	case int32:
		return TypeInt32, true
	case float32:
		return TypeFloat32, true
	case bool:
		return TypeBool, true
	case string:
		return TypeString, true
	case uint64:
		return TypeUint64, true
	case int64:
		return TypeInt64, true
	case float64:
		return TypeFloat64, true
	}
	return math.MaxUint32, false
}

// describe names the type of v for an error: "array of float32".
func (v Value) describe() string {
	if e, ok := v.Elem(); ok {
		return "array of " + e.String()
	}
	return v.Type().String()
}

// Len is the number of elements of an array, 1 for anything else.
func (v Value) Len() int {
	switch a := v.v.(type) {
	case []uint8:
		return len(a)
	case []int8:
		return len(a)
	case []uint16:
		return len(a)
	case []int16:
		return len(a)
	case []uint32:
		return len(a)
	case []int32:
		return len(a)
	case []float32:
		return len(a)
	case []bool:
		return len(a)
	case []string:
		return len(a)
	case []uint64:
		return len(a)
	case []int64:
		return len(a)
	case []float64:
		return len(a)
	case []Value:
		return len(a)
	}
	return 1
}

// appendValue appends v as it stands in a file, without its type. depth counts
// the arrays around it.
func appendValue(b []byte, v any, depth int) ([]byte, error) {
	le := binary.LittleEndian
	switch x := v.(type) {
	case uint8:
		return append(b, x), nil
	case int8:
		return append(b, uint8(x)), nil
	case uint16:
		return le.AppendUint16(b, x), nil
	case int16:
		return le.AppendUint16(b, uint16(x)), nil
	case uint32:
		return le.AppendUint32(b, x), nil
	case int32:
		return le.AppendUint32(b, uint32(x)), nil
	case float32:
		return le.AppendUint32(b, math.Float32bits(x)), nil
	case bool:
		if x {
			return append(b, 1), nil
		}
		return append(b, 0), nil
	case string:
		return append(le.AppendUint64(b, uint64(len(x))), x...), nil
	case uint64:
		return le.AppendUint64(b, x), nil
	case int64:
		return le.AppendUint64(b, uint64(x)), nil
	case float64:
		return le.AppendUint64(b, math.Float64bits(x)), nil
	}
	elem, ok := Value{v}.Elem()
	if !ok {
		return nil, fmt.Errorf("metadata cannot hold a %T", v)
	}
	if depth++; depth > maxDepth {
		return nil, fmt.Errorf("arrays nested deeper than %d", maxDepth)
	}
	b = le.AppendUint32(b, uint32(elem))
	b = le.AppendUint64(b, uint64(Value{v}.Len()))
	switch a := v.(type) {
	case []uint8:
		return append(b, a...), nil
	case []int8:
		return appendAll(b, a, depth)
	case []uint16:
		return appendAll(b, a, depth)
	case []int16:
		return appendAll(b, a, depth)
	case []uint32:
		return appendAll(b, a, depth)
	case []int32:
		return appendAll(b, a, depth)
	case []float32:
		return appendAll(b, a, depth)
	case []bool:
		return appendAll(b, a, depth)
	case []string:
		for _, s := range a {
			b = append(le.AppendUint64(b, uint64(len(s))), s...)
		}
		return b, nil
	case []uint64:
		return appendAll(b, a, depth)
	case []int64:
		return appendAll(b, a, depth)
	case []float64:
		return appendAll(b, a, depth)
	case []Value:
		for i, e := range a {
			if _, isArray := e.Elem(); !isArray {
				return nil, fmt.Errorf("element %d of an array of arrays is a %s", i, e.describe())
			}
			var err error
			if b, err = appendValue(b, e.v, depth); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

func appendAll[T scalar](b []byte, a []T, depth int) ([]byte, error) {
	var err error
	for _, x := range a {
		if b, err = appendValue(b, x, depth); err != nil {
			return nil, err
		}
	}
	return b, nil
}
