package tokenizer

import "fmt"

// Error reports a vocabulary that cannot be used: which file, where in it, what
// was expected and what to do.
type Error struct {
	// Path is the name of the file as the caller gave it; may be empty.
	Path string
	// Key is the metadata key or the JSON path, such as "model.merges[12]".
	Key string
	// What says what was found and what was expected.
	What string
	// Hint says what to do about it; may be empty.
	Hint string
}

// Error returns "tokenizer: PATH: KEY: WHAT; HINT" without the empty parts.
func (e *Error) Error() string {
	s := "tokenizer: "
	if e.Path != "" {
		s += e.Path + ": "
	}
	if e.Key != "" {
		s += e.Key + ": "
	}
	s += e.What
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// errf returns an *Error without a path; the loader that knows the path adds it.
func errf(key, format string, args ...any) *Error {
	return &Error{Key: key, What: fmt.Sprintf(format, args...)}
}

// hint sets the hint and returns e.
func (e *Error) hint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// withPath names the file of an *Error that has none.
func withPath(err error, path string) error {
	if e, ok := err.(*Error); ok && e.Path == "" {
		e.Path = path
	}
	return err
}
