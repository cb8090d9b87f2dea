package data

import (
	"context"
	"errors"
	"iter"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// ReadOptions says what Read takes from its inputs.
type ReadOptions struct {
	// Extensions are the ends of the names of files wanted from directories. The
	// default value is .rs.
	Extensions []string
	// FS is the disk that is read. The default value is the real one.
	FS fsx.FS
}

// errStopped ends reading when nobody wants more documents.
var errStopped = errors.New("data: reading was stopped")

// Read gives the documents of inputs, which are what PrepareOptions.Inputs may be,
// in their order and as they are: nothing is filtered or cut. An error is the last
// element; it is of type *Error or that of ctx.
func Read(ctx context.Context, inputs []string, o ReadOptions) iter.Seq2[Document, error] {
	if len(o.Extensions) == 0 {
		o.Extensions = []string{".rs"}
	}
	if o.FS == nil {
		o.FS = fsx.OS()
	}
	return func(yield func(Document, error) bool) {
		s := &source{fs: o.FS, extensions: o.Extensions, groupBy: ByRepository, maxBytes: -1, yield: func(d Document) error {
			if !yield(d, nil) {
				return errStopped
			}
			return ctx.Err()
		}}
		for _, in := range inputs {
			if err := s.read(ctx, in); err != nil {
				if !errors.Is(err, errStopped) {
					yield(Document{}, err)
				}
				return
			}
		}
	}
}
