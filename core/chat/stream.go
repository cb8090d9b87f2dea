package chat

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/core/tokenizer"
)

// Limits of a Request.
const (
	MaxStops     = 16
	MaxStopBytes = 1 << 10
)

// Request asks for the continuation of a text.
type Request struct {
	// Prompt is the text. It is never cut: one that does not fit is a
	// *infer.ContextError with both counts.
	Prompt string
	// IDs are the prompt as tokens, in place of Prompt.
	IDs []int32
	// ParseSpecial turns the texts of control tokens in the prompt into those tokens.
	ParseSpecial bool
	// MaxTokens is the most tokens to generate; 0 means as many as the context holds and
	// -1 none.
	MaxTokens int
	// Stop are texts that end the answer without being part of it.
	Stop []string
	// IgnoreEnd goes on after the tokens that end a text.
	IgnoreEnd bool
	// Sample chooses the tokens. The zero value is greedy.
	Sample sample.Options
	// Echo, Logits and Embed are as in infer.Request. Stop does not look at what is echoed.
	Echo, Logits, Embed bool
}

// Piece is one token and the text that it completed.
type Piece struct {
	// ID is the token, or -1 for text that was held back until the end.
	ID int32
	// Text is whole characters; it may be empty.
	Text string
	// Echo says that the token is of the prompt; Logprob, Top and Logits are as in
	// infer.Token.
	Echo    bool
	Logprob float32
	Top     []sample.Candidate
	Logits  []float32
}

// Stream gives the pieces of an answer. One goroutine reads it; Close may be
// called from any.
type Stream struct {
	s      *infer.Stream
	tok    *tokenizer.Tokenizer
	dec    *tokenizer.StreamDecoder
	cut    cutter
	buf    []byte
	echoed bool // the first text of the prompt was given out
	reason infer.Reason
	ended  bool
}

// Generate queues a request and returns its stream. Besides the errors of
// infer.Engine.Generate it returns a *infer.RequestError for stop texts.
func (m *Model) Generate(ctx context.Context, r Request) (*Stream, error) {
	return m.generate(ctx, r, m.engine.Generate, func() []int32 { return m.Prompt(r.Prompt, r.ParseSpecial) })
}

// generate checks a request and gives it to start, with the ids of its prompt text.
func (m *Model) generate(ctx context.Context, r Request, start func(context.Context, infer.Request) (*infer.Stream, error), prompt func() []int32) (*Stream, error) {
	if r.IDs != nil && r.Prompt != "" {
		return nil, &infer.RequestError{Field: "prompt", What: "is given as text and as ids, must be one of them"}
	}
	if len(r.Stop) > MaxStops {
		return nil, &infer.RequestError{Field: "stop", What: fmt.Sprintf("has %d texts, at most %d are accepted", len(r.Stop), MaxStops)}
	}
	for _, s := range r.Stop {
		if len(s) == 0 || len(s) > MaxStopBytes {
			return nil, &infer.RequestError{Field: "stop", What: fmt.Sprintf("has a text of %d bytes, accepted are 1 to %d", len(s), MaxStopBytes)}
		}
	}
	req := infer.Request{
		Prompt: r.IDs, MaxTokens: r.MaxTokens, Sample: r.Sample,
		Echo: r.Echo, Logits: r.Logits, Embed: r.Embed,
	}
	if r.IDs == nil {
		req.Prompt = prompt()
	}
	if !r.IgnoreEnd {
		req.Stop = m.tok.Stops()
	}
	s, err := start(ctx, req)
	if err != nil {
		return nil, err
	}
	return &Stream{s: s, tok: m.tok, dec: m.tok.NewStreamDecoder(tokenizer.DecodeOptions{SkipSpecial: true}), cut: cutter{stops: r.Stop}}, nil
}

// Next waits for the next piece. It returns io.EOF after the last one of an
// answer that is complete, and otherwise the errors of infer.Stream.Next; when
// the request was cancelled, text held back is lost.
func (s *Stream) Next(ctx context.Context) (Piece, error) {
	if s.ended {
		return Piece{}, io.EOF
	}
	t, err := s.s.Next(ctx)
	if errors.Is(err, io.EOF) {
		s.ended = true
		s.buf = s.dec.Flush(s.buf[:0])
		text, found := s.cut.add(string(s.buf))
		if found {
			s.reason = infer.ReasonStop
		} else {
			text += s.cut.rest()
		}
		if text != "" {
			return Piece{ID: -1, Text: text}, nil
		}
		return Piece{}, io.EOF
	}
	if err != nil {
		return Piece{}, err
	}
	s.buf = s.dec.Next(s.buf[:0], t.ID)
	p := Piece{ID: t.ID, Echo: t.Echo, Logprob: t.Logprob, Top: t.Top, Logits: t.Logits}
	if t.Echo {
		if !s.echoed && len(s.buf) > 0 { // as Decode: without the space that some tokenizers put first
			s.echoed = true
			if one := s.tok.Decode(nil, []int32{t.ID}, tokenizer.DecodeOptions{SkipSpecial: true}); len(one) == len(s.buf)-1 && s.buf[0] == ' ' {
				s.buf = s.buf[1:]
			}
		}
		p.Text = string(s.buf)
		return p, nil
	}
	text, found := s.cut.add(string(s.buf))
	if found {
		s.ended, s.reason = true, infer.ReasonStop
		s.s.Close()
	}
	p.Text = text
	return p, nil
}

// Result says how the stream went so far. A stop text gives the reason
// infer.ReasonStop.
func (s *Stream) Result() infer.Result {
	r := s.s.Result()
	if s.reason != infer.ReasonNone {
		r.Reason = s.reason
	}
	return r
}

// Close ends the stream.
func (s *Stream) Close() { s.s.Close() }
