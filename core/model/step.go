package model

import (
	"fmt"

	"github.com/architehc/nanochat/kernels"
)

// Logits says for which tokens of a sequence a step computes logits.
type Logits uint8

// The choices of Logits.
const (
	LogitsNone Logits = iota
	LogitsLast        // for the sequence's last token in the step
	LogitsAll         // for each of its tokens
)

// SeqStep is one sequence's part of a Step.
type SeqStep struct {
	Seq *Seq
	// N is how many of the step's tokens belong to Seq, at least 1; they stand at
	// positions Seq.Len to Seq.Len+N-1.
	N      int
	Logits Logits
	// Hidden asks for what stands in front of the head for each of the N tokens: see
	// Work.Hidden.
	Hidden bool
}

// Step is what one Forward computes: the tokens of Seqs[0], then those of
// Seqs[1], and so on. A sequence may stand in it once.
type Step struct {
	Tokens []int32
	Seqs   []SeqStep
}

// ContextError reports a step that does not fit the model's context.
type ContextError struct {
	Len, N  int // positions in use and tokens to add
	Context int
}

func (e *ContextError) Error() string {
	return fmt.Sprintf("model: %d tokens after %d do not fit the context of %d", e.N, e.Len, e.Context)
}

// span is one sequence in the step at hand.
type span struct {
	first, n int // its tokens first ≤ t < first+n
	pos      int // position of the first
	want     int // the last want tokens go through the whole network
	out      int // row of the first of these
	pages    []int32
}

// block is n rows in front of the head from first on whose logits are wanted.
type block struct{ first, n int }

// Forward computes s: it appends the keys and values of every token to its
// sequence, whose pages must be there (Pool.Grow) and not be shared where they
// are written, and leaves the wanted logits in w, in the order of the tokens.
//
// Once w has seen a step of a size it allocates nothing. At an error no sequence
// has grown.
func (m *Model) Forward(w *Work, p *Pool, s *Step) error {
	if w.m != m {
		return fmt.Errorf("model: the Work belongs to another model")
	}
	if p.pageBytes != PageBytes(m, p.kind) || p.layerBytes*m.cfg.Layers != p.pageBytes {
		return fmt.Errorf("model: the KV pool was made for another model")
	}
	if (w.gpu == nil) != (p.gpu == nil) || w.gpu != nil && w.gpu.g != p.gpu.g {
		return fmt.Errorf("model: the Work and the KV pool are not on the same device")
	}
	if err := w.plan(p, s); err != nil {
		return err
	}
	var err error
	if w.gpu != nil {
		err = w.gpu.run(w)
	} else {
		err = w.team.Run(w.body)
	}
	w.pool = nil
	if err != nil {
		w.want, w.logitRows, w.seqs = 0, 0, w.seqs[:0]
		return fmt.Errorf("model: forward: %w", err)
	}
	for _, q := range s.Seqs {
		q.Seq.Len += q.N
	}
	return nil
}

// plan checks s and lays out the step.
func (w *Work) plan(p *Pool, s *Step) error {
	c := &w.m.cfg
	w.tokens, w.seqs, w.want, w.logitRows, w.blocks = 0, w.seqs[:0], 0, 0, w.blocks[:0]
	w.hidden = false
	if len(s.Tokens) < 1 || len(s.Tokens) > w.maxTokens {
		return fmt.Errorf("model: a step of %d tokens: this Work takes 1 to %d", len(s.Tokens), w.maxTokens)
	}
	first, reach, want, logits := 0, 0, 0, 0
	for i, q := range s.Seqs {
		if q.Seq == nil || q.N < 1 || q.N > len(s.Tokens)-first {
			return fmt.Errorf("model: sequence %d of the step has %d tokens, %d are left", i, q.N, len(s.Tokens)-first)
		}
		if err := p.check(q, c.Context); err != nil {
			return err
		}
		for _, o := range s.Seqs[:i] {
			if o.Seq == q.Seq {
				return fmt.Errorf("model: sequence %d stands in the step twice", i)
			}
		}
		sp := span{first: first, n: q.N, pos: q.Seq.Len, out: want, pages: q.Seq.Pages}
		switch q.Logits {
		case LogitsLast:
			sp.want = 1
		case LogitsAll:
			sp.want = q.N
		}
		rows := sp.want
		if q.Hidden {
			sp.want, w.hidden = q.N, true
		}
		if b := (block{want + sp.want - rows, rows}); rows == 0 {
		} else if last := len(w.blocks) - 1; last >= 0 && w.blocks[last].first+w.blocks[last].n == b.first {
			w.blocks[last].n += rows
		} else {
			w.blocks = append(w.blocks, b)
		}
		logits += rows
		w.seqs = append(w.seqs, sp)
		for t := range q.N {
			w.pos[first+t] = int32(q.Seq.Len + t)
		}
		first += q.N
		want += sp.want
		reach = max(reach, q.Seq.Len+q.N)
	}
	if first != len(s.Tokens) {
		return fmt.Errorf("model: the step has %d tokens, its sequences %d", len(s.Tokens), first)
	}
	for i, id := range s.Tokens {
		if id < 0 || int(id) >= c.Vocab {
			return fmt.Errorf("model: token %d is %d, the vocabulary has 0 to %d", i, id, c.Vocab-1)
		}
	}
	copy(w.ids, s.Tokens)
	for _, sp := range w.seqs {
		for i := range sp.want {
			w.rows[sp.out+i] = int32(sp.first + sp.n - sp.want + i)
		}
	}
	if need := logits * c.Vocab; len(w.logits) < need && w.tape == nil {
		w.logits = make([]float32, need)
	}
	w.tokens, w.want, w.logitRows, w.pool = len(s.Tokens), want, logits, p
	w.rope = w.m.rope.upTo(reach)
	return nil
}

// check checks that s fits the context and that its pages are there and its own.
func (p *Pool) check(s SeqStep, context int) error {
	q := s.Seq
	if q.Len < 0 || s.N > context-q.Len {
		return &ContextError{q.Len, s.N, context}
	}
	if have := len(q.Pages) * kernels.PageLen; q.Len+s.N > have {
		return fmt.Errorf("model: %d tokens after %d need more than the sequence's %d pages; call Pool.Grow", s.N, q.Len, len(q.Pages))
	}
	for i, id := range q.Pages {
		if id < 0 || int(id) >= len(p.refs) || p.refs[id] < 1 {
			return fmt.Errorf("model: page %d of the sequence, %d, is not in use in this pool", i, id)
		}
		if p.refs[id] > 1 && (i+1)*kernels.PageLen > q.Len && i*kernels.PageLen < q.Len+s.N {
			return fmt.Errorf("model: page %d of the sequence is shared and would be written", i)
		}
	}
	return nil
}
