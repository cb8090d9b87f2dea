package gguf

import "fmt"

// Get returns the metadata value of a key.
func (f *File) Get(key string) (Value, bool) {
	if i, ok := f.byKey[key]; ok {
		return f.Meta[i].Value, true
	}
	return Value{}, false
}

// Lookup is Get with the Go value: a scalar, a string, or a slice of these. A
// *File so is a source of metadata for packages that do not know this one.
func (f *File) Lookup(key string) (value any, ok bool) {
	v, ok := f.Get(key)
	return v.v, ok
}

// lookup returns the value of key converted by as, whose second result says
// whether v is what it wants.
func lookup[T any](f *File, key, want string, as func(v any) (T, bool)) (T, error) {
	var zero T
	i, ok := f.byKey[key]
	if !ok {
		return zero, &FormatError{f.Path, f.HeaderSize, fmt.Sprintf("metadata key %q is missing, expected %s", key, want)}
	}
	v := f.Meta[i].Value
	if t, ok := as(v.v); ok {
		return t, nil
	}
	what := v.describe()
	if n, ok := asInt(v.v); ok { // a number that does not fit
		what += fmt.Sprintf(" %d", n)
	}
	return zero, &FormatError{f.Path, int64(f.metaAt[i]), fmt.Sprintf("metadata key %q is %s, expected %s", key, what, want)}
}

// or returns def for a missing key; a value of the wrong type stays an error.
func or[T any](f *File, key string, def T, get func(string) (T, error)) (T, error) {
	if _, ok := f.byKey[key]; !ok {
		return def, nil
	}
	return get(key)
}

func as[T any](v any) (T, bool) { t, ok := v.(T); return t, ok }

func asUint(v any) (uint64, bool) {
	if u, ok := v.(uint64); ok {
		return u, true
	}
	n, ok := asInt(v)
	return uint64(n), ok && n >= 0
}

func asInt(v any) (int64, bool) {
	switch x := v.(type) {
	case uint8:
		return int64(x), true
	case int8:
		return int64(x), true
	case uint16:
		return int64(x), true
	case int16:
		return int64(x), true
	case uint32:
		return int64(x), true
	case int32:
		return int64(x), true
	case uint64:
		return int64(x), x < 1<<63
	case int64:
		return x, true
	}
	return 0, false
}

func asFloat(v any) (float64, bool) {
	switch x := v.(type) {
	case float32:
		return float64(x), true
	case float64:
		return x, true
	}
	return 0, false
}

// convert applies one to the elements of a slice.
func convert[T, U any](a []T, one func(any) (U, bool)) ([]U, bool) {
	out := make([]U, len(a))
	for i, x := range a {
		u, ok := one(x)
		if !ok {
			return nil, false
		}
		out[i] = u
	}
	return out, true
}

func asInts(v any) ([]int64, bool) {
	switch a := v.(type) {
	case []uint8:
		return convert(a, asInt)
	case []int8:
		return convert(a, asInt)
	case []uint16:
		return convert(a, asInt)
	case []int16:
		return convert(a, asInt)
	case []uint32:
		return convert(a, asInt)
	case []int32:
		return convert(a, asInt)
	case []uint64:
		return convert(a, asInt)
	case []int64:
		return a, true
	}
	return nil, false
}

func asFloats(v any) ([]float64, bool) {
	switch a := v.(type) {
	case []float32:
		return convert(a, asFloat)
	case []float64:
		return a, true
	}
	return nil, false
}

// String returns a string. As for all typed getters, an error is a *FormatError
// that names the key, what it holds and what was expected; a slice must not be
// changed.
func (f *File) String(key string) (string, error) {
	return lookup(f, key, "a string", as[string])
}

// Bool returns a bool.
func (f *File) Bool(key string) (bool, error) { return lookup(f, key, "a bool", as[bool]) }

// Uint returns an integer of any type that is not negative.
func (f *File) Uint(key string) (uint64, error) {
	return lookup(f, key, "an integer of 0 or more", asUint)
}

// Int returns an integer of any type.
func (f *File) Int(key string) (int64, error) {
	return lookup(f, key, "a signed 64-bit integer", asInt)
}

// Float returns a float32 or float64.
func (f *File) Float(key string) (float64, error) { return lookup(f, key, "a float", asFloat) }

// Strings returns an array of strings.
func (f *File) Strings(key string) ([]string, error) {
	return lookup(f, key, "an array of strings", as[[]string])
}

// Bools returns an array of bools.
func (f *File) Bools(key string) ([]bool, error) {
	return lookup(f, key, "an array of bools", as[[]bool])
}

// Ints returns an array of integers of any type.
func (f *File) Ints(key string) ([]int64, error) {
	return lookup(f, key, "an array of integers", asInts)
}

// Floats returns an array of float32 or float64.
func (f *File) Floats(key string) ([]float64, error) {
	return lookup(f, key, "an array of floats", asFloats)
}

// StringOr is String, with def for a missing key.
func (f *File) StringOr(key, def string) (string, error) { return or(f, key, def, f.String) }

// BoolOr is Bool, with def for a missing key.
func (f *File) BoolOr(key string, def bool) (bool, error) { return or(f, key, def, f.Bool) }

// UintOr is Uint, with def for a missing key.
func (f *File) UintOr(key string, def uint64) (uint64, error) { return or(f, key, def, f.Uint) }

// IntOr is Int, with def for a missing key.
func (f *File) IntOr(key string, def int64) (int64, error) { return or(f, key, def, f.Int) }

// FloatOr is Float, with def for a missing key.
func (f *File) FloatOr(key string, def float64) (float64, error) { return or(f, key, def, f.Float) }
