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
	// ParseSpecial turns the texts of control tokens in the prompt into those tokens.
	ParseSpecial bool
	// MaxTokens is the most tokens to generate; 0 means as many as the context holds.
	MaxTokens int
	// Stop are texts that end the answer without being part of it.
	Stop []string
	// IgnoreEnd goes on after the tokens that end a text.
	IgnoreEnd bool
	// Sample chooses the tokens. The zero value is greedy.
	Sample sample.Options
}

// Piece is one token and the text that it completed.
type Piece struct {
	// ID is the token, or -1 for text that was held back until the end.
	ID int32
	// Text is whole characters; it may be empty.
	Text string
	// Logprob and Top are as in infer.Token.
	Logprob float32
	Top     []sample.Candidate
}

// Stream gives the pieces of an answer. One goroutine reads it; Close may be
// called from any.
type Stream struct {
	s      *infer.Stream
	dec    *tokenizer.StreamDecoder
	cut    cutter
	buf    []byte
	reason infer.Reason
	ended  bool
}

// Generate queues a request and returns its stream. Besides the errors of
// infer.Engine.Generate it returns a *infer.RequestError for stop texts.
func (m *Model) Generate(ctx context.Context, r Request) (*Stream, error) {
	if len(r.Stop) > MaxStops {
		return nil, &infer.RequestError{Field: "stop", What: fmt.Sprintf("has %d texts, at most %d are accepted", len(r.Stop), MaxStops)}
	}
	for _, s := range r.Stop {
		if len(s) == 0 || len(s) > MaxStopBytes {
			return nil, &infer.RequestError{Field: "stop", What: fmt.Sprintf("has a text of %d bytes, accepted are 1 to %d", len(s), MaxStopBytes)}
		}
	}
	req := infer.Request{
		Prompt:    m.tok.Encode(nil, r.Prompt, tokenizer.EncodeOptions{AddBOS: m.tok.AddsBOS(), ParseSpecial: r.ParseSpecial}),
		MaxTokens: r.MaxTokens,
		Sample:    r.Sample,
	}
	if !r.IgnoreEnd {
		req.Stop = m.tok.Stops()
	}
	s, err := m.engine.Generate(ctx, req)
	if err != nil {
		return nil, err
	}
	return &Stream{s: s, dec: m.tok.NewStreamDecoder(tokenizer.DecodeOptions{SkipSpecial: true}), cut: cutter{stops: r.Stop}}, nil
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
	text, found := s.cut.add(string(s.buf))
	if found {
		s.ended, s.reason = true, infer.ReasonStop
		s.s.Close()
	}
	return Piece{ID: t.ID, Text: text, Logprob: t.Logprob, Top: t.Top}, nil
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
