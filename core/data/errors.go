package data

import (
	"errors"
	"fmt"
	"strings"
)

// OptionsPath stands for the path in errors about options.
const OptionsPath = "options"

// ErrDamaged is a file with other contents than it was written with.
var ErrDamaged = errors.New("the file is damaged")

// Error reports a file that cannot be used: where in it, what was found and
// expected, and what to do about it.
type Error struct {
	// Path is the file or directory.
	Path string
	// Place is where in the file, such as "line 12" or "byte 40"; may be empty.
	Place string
	// What says what was found and what was expected.
	What string
	// Hint says what to do; may be empty.
	Hint string
	// Err is the cause, if there is one.
	Err error
}

// Error returns "data: PATH: PLACE: WHAT; HINT" without the empty parts.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("data: ")
	for i, s := range []string{e.Path, e.Place, e.What} {
		if s == "" {
			continue
		}
		if i > 0 && b.Len() > len("data: ") {
			b.WriteString(": ")
		}
		b.WriteString(s)
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// fileError wraps an error of the file system.
func fileError(path string, err error, hint string) *Error {
	return &Error{Path: path, What: err.Error(), Hint: hint, Err: err}
}

// damaged is the error of a file that is not what data prepare wrote.
func damaged(path, place, format string, args ...any) *Error {
	return &Error{Path: path, Place: place, What: fmt.Sprintf(format, args...), Hint: rewriteHint, Err: ErrDamaged}
}

func optionError(format string, args ...any) *Error {
	return &Error{Path: OptionsPath, What: fmt.Sprintf(format, args...)}
}
