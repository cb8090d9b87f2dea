package gguf

import "fmt"

// FormatError reports a GGUF file that breaks the format, or lacks what its
// reader needs.
type FormatError struct {
	// Path is the file.
	Path string
	// Offset is where in the file, in bytes.
	Offset int64
	// What was expected and what is there.
	What string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("gguf: %s: byte %d: %s", e.Path, e.Offset, e.What)
}
