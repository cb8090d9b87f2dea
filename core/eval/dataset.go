package eval

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/architehc/nanochat/core/data"
)

// Rows says how a split of prepared data is evaluated.
type Rows struct {
	// SeqLen is the length of a row. The default value is the model's context.
	SeqLen int
	// Rows ends the evaluation after so many; 0: all.
	Rows int
}

// Dataset evaluates a split of prepared data as training does. The shards must have
// been made with the evaluator's vocabulary. progress may be nil.
func (e *Evaluator) Dataset(ctx context.Context, d *data.Dataset, o Rows, progress func(Progress)) (sums Sums, err error) {
	most := e.m.Config().Context
	if o.SeqLen == 0 {
		o.SeqLen = most
	}
	if o.SeqLen < 1 || o.SeqLen > most {
		return sums, &Error{What: fmt.Sprintf("rows of %d tokens; the model's context is %d", o.SeqLen, most), Hint: "choose 1 to the context"}
	}
	if d.Vocabulary().Hash != data.TokenizerHash(e.tok) {
		return sums, &Error{What: "the data was made with another vocabulary than the model's", Hint: "prepare it again with --tokenizer MODEL"}
	}
	// One row at a time: the evaluator makes its own steps of them.
	l, err := data.NewLoader(d, data.LoaderOptions{Rows: 1, SeqLen: o.SeqLen, Ordered: true, Epochs: 1, Depth: 16})
	if err != nil {
		return sums, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	e.reset(func(_ int, nats float64) { sums.Nats += nats })
	defer e.reset(nil)
	total := d.Tokens()
	for row := 0; o.Rows == 0 || row < o.Rows; row++ {
		b, err := l.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return sums, err
		}
		sums.Tokens += b.Count
		sums.Bytes += b.TextBytes
		for lo := 0; lo < b.SeqLen; {
			hi := lo + 1
			for hi < b.SeqLen && int(b.Starts[hi]) == lo {
				hi++
			}
			if err := e.sequence(ctx, b.Tokens[lo:hi], b.Targets[lo:hi], 0); err != nil {
				return sums, err
			}
			lo = hi
		}
		if progress != nil {
			progress(Progress{Sums: sums, Total: total})
		}
	}
	sums.Documents = d.Docs()
	if err := e.flush(ctx); err != nil {
		return sums, err
	}
	if sums.Tokens == 0 || sums.Bytes == 0 {
		return sums, errNothing
	}
	return sums, nil
}
