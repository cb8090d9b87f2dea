package eval

import (
	"context"
	"fmt"
	"iter"

	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/tokenizer"
)

// Windows says how documents are cut.
type Windows struct {
	// Window is the number of inputs that the model sees at once. The default value is
	// the model's context.
	Window int
	// Overlap is the number of inputs that a window repeats of the one before it.
	Overlap int
	// Special reads the texts of special tokens as those tokens.
	Special bool
}

// Progress is how far an evaluation is. Total is the tokens there are, 0 where that is
// not known.
type Progress struct {
	Sums
	Total int64
}

// Documents evaluates whole documents. each, if not nil, is called in their order with
// every document and its sums; progress, if not nil, after every document.
func (e *Evaluator) Documents(ctx context.Context, docs iter.Seq2[data.Document, error], o Windows, each func(data.Document, Sums), progress func(Progress)) (Sums, error) {
	most := e.m.Config().Context
	if o.Window == 0 {
		o.Window = most
	}
	if o.Window < 1 || o.Window > most {
		return Sums{}, &Error{What: fmt.Sprintf("a window of %d tokens; the model's context is %d", o.Window, most), Hint: "choose 1 to the context"}
	}
	if o.Overlap < 0 || o.Overlap >= o.Window {
		return Sums{}, &Error{What: fmt.Sprintf("an overlap of %d tokens in windows of %d", o.Overlap, o.Window), Hint: "half a window is a good choice"}
	}
	var total Sums
	type waiting struct {
		doc  data.Document
		sums Sums
	}
	var open []waiting // documents from number first on, not yet given to each
	first := 0
	give := func(all bool) {
		for len(open) > 0 && (all || len(e.parts) == 0 || e.parts[0].document > first) {
			if each != nil {
				each(open[0].doc, open[0].sums)
			}
			open = open[1:]
			first++
		}
	}
	e.reset(func(document int, nats float64) {
		open[document-first].sums.Nats += nats
		total.Nats += nats
	})
	defer e.reset(nil)

	var stream []int32
	sizes := data.NewVocabulary(e.tok)
	bos, hasBOS := e.tok.Special(tokenizer.BOS)
	eos, hasEOS := e.tok.Special(tokenizer.EOS)
	for d, err := range docs {
		if err != nil {
			return total, err
		}
		stream = stream[:0]
		if hasBOS {
			stream = append(stream, bos)
		}
		begin := len(stream)
		stream = e.tok.Encode(stream, d.Text, tokenizer.EncodeOptions{ParseSpecial: o.Special})
		s := Sums{Documents: 1, Bytes: int64(len(d.Text))}
		if begin == 0 && len(stream) > 0 {
			s.Bytes -= int64(sizes.Bytes[stream[0]])
		}
		if hasEOS {
			stream = append(stream, eos)
		}
		s.Tokens = max(len(stream)-1, 0)
		total.Documents++
		total.Tokens += s.Tokens
		total.Bytes += s.Bytes
		if each == nil {
			d.Text = "" // not kept until the document is computed
		}
		open = append(open, waiting{d, s})
		if err := e.windows(ctx, stream, first+len(open)-1, o); err != nil {
			return total, err
		}
		give(false)
		if progress != nil {
			progress(Progress{Sums: total})
		}
	}
	if err := e.flush(ctx); err != nil {
		return total, err
	}
	give(true)
	if total.Tokens == 0 || total.Bytes == 0 {
		return total, errNothing
	}
	return total, nil
}

// windows adds a document: its tokens with what stands around them.
func (e *Evaluator) windows(ctx context.Context, stream []int32, document int, o Windows) error {
	targets := make([]int32, o.Window)
	for next := 0; next < len(stream)-1; {
		from := max(0, next-o.Overlap)
		to := min(from+o.Window, len(stream)-1)
		t := targets[:to-from]
		for i := range t {
			t[i] = -1
			if from+i >= next {
				t[i] = stream[from+i+1]
			}
		}
		if err := e.sequence(ctx, stream[from:to], t, document); err != nil {
			return err
		}
		next = to
	}
	return nil
}
