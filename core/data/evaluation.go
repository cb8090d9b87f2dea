package data

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// readEvaluation reads the documents of an evaluation file. Of JSON lines, all
// strings of an object make one document, in their order.
func (p *preparer) readEvaluation(ctx context.Context, in string, yield func(Document) error) error {
	s := p.source(yield)
	s.maxBytes = -1
	s.allStrings = true
	return s.read(ctx, in)
}

// jsonStrings reads an object a line, all its strings being the text.
func (s *source) jsonStrings(ctx context.Context, name string, r io.Reader) error {
	return eachLine(ctx, name, r, func(n int, line []byte) error {
		text := strings.TrimSpace(string(line))
		if text == "" {
			return nil
		}
		all, err := allStrings(json.NewDecoder(strings.NewReader(text)))
		if err != nil {
			return &Error{Path: name, Place: fmt.Sprintf("line %d", n), What: "not JSON: " + err.Error(), Hint: "correct or remove the line", Err: err}
		}
		return s.yield(Document{Text: all, Path: fmt.Sprintf("line %d", n)})
	})
}
