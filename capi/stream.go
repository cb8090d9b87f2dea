package capi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/sample"
)

const (
	flagIgnoreEnd   = 1
	flagSpecialText = 2
	flagLogprobs    = 4
	flagEcho        = 8
	flagLogits      = 16
	flagEmbedding   = 32
	flagPromptOnly  = 64
	generateFlags   = flagIgnoreEnd | flagSpecialText | flagLogprobs | flagEcho | flagLogits | flagEmbedding | flagPromptOnly

	// pieceEcho is NANOCHAT_PIECE_ECHO.
	pieceEcho = 1

	// forever is NANOCHAT_FOREVER.
	forever = math.MaxUint32
	// maxBias bounds the biases of a request; no vocabulary is larger.
	maxBias = 1 << 24
)

// finishOf is the NANOCHAT_FINISH_* number of a reason.
func finishOf(r infer.Reason) int32 {
	switch r {
	case infer.ReasonStop:
		return 1
	case infer.ReasonLength:
		return 2
	case infer.ReasonCancelled:
		return 3
	case infer.ReasonError:
		return 4
	}
	return 0
}

// generateOptions is nanochat_generate_options.
type generateOptions struct {
	flags, maxTokens uint32
	stops            []string
	sample           sample.Options
}

// request is what the options ask for; the prompt is left open.
func (o *generateOptions) request() (chat.Request, error) {
	if err := checkFlags(o.flags, generateFlags); err != nil {
		return chat.Request{}, err
	}
	if o.maxTokens > math.MaxInt32 {
		return chat.Request{}, invalid(fmt.Sprintf("max_tokens is %d, at most %d is accepted", o.maxTokens, math.MaxInt32), "0 is as many as the context holds")
	}
	r := chat.Request{
		ParseSpecial: o.flags&flagSpecialText != 0, MaxTokens: int(o.maxTokens), Stop: o.stops, IgnoreEnd: o.flags&flagIgnoreEnd != 0,
		Sample: o.sample, Echo: o.flags&flagEcho != 0, Logits: o.flags&flagLogits != 0, Embed: o.flags&flagEmbedding != 0,
	}
	r.Sample.Logprobs = o.flags&flagLogprobs != 0
	if o.flags&flagPromptOnly != 0 {
		r.MaxTokens = -1
	}
	return r, nil
}

// stream is the value of a stream's handle.
type stream struct {
	owner *entry // of the model or session; kept as long as the stream
	ctx   context.Context
	// cancel ends the request and the waiting of its reader, for the reason given.
	cancel context.CancelCauseFunc
	embeds bool // the embedding was asked for

	// reader is held by the call that reads.
	reader sync.Mutex
	s      *chat.Stream
	// kept is a piece that was not given out yet, with slices of its own.
	kept *chat.Piece
	// top and logits are those of the piece that was given out last.
	top    []sample.Candidate
	logits []float32
	err    error // io.EOF or what ended the stream
	// over says that the end was given out, or the handle closed.
	over atomic.Bool
}

// generator is chat.Model.Generate or chat.Session.Generate.
type generator func(ctx context.Context, r chat.Request) (*chat.Stream, error)

// newStream queues a request; the stream keeps owner.
func newStream(owner *entry, generate generator, r chat.Request) (*stream, error) {
	s := &stream{owner: owner, embeds: r.Embed}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	var err error
	if s.s, err = generate(s.ctx, r); err != nil {
		s.cancel(nil)
		return nil, err
	}
	owner.retain()
	logs.write(levelDebug, "stream opened")
	return s, nil
}

// openStream is nanochat_stream_open.
func openStream(h uintptr, prompt string, o generateOptions) (uintptr, error) {
	return openOn(h, o, func(_ *openedModel, r *chat.Request) error {
		r.Prompt = prompt
		return nil
	})
}

// openOn starts a stream of a model after prompt has completed its request.
func openOn(h uintptr, o generateOptions, prompt func(m *openedModel, r *chat.Request) error) (uintptr, error) {
	e, m, err := useModel(h)
	if err != nil {
		return 0, err
	}
	defer e.release()
	r, err := o.request()
	if err != nil {
		return 0, err
	}
	if err := prompt(m, &r); err != nil {
		return 0, err
	}
	s, err := newStream(e, m.Generate, r)
	if err != nil {
		return 0, err
	}
	return handles.add(kindStream, s, s.free), nil
}

// free ends the request; nobody reads the stream any more.
func (s *stream) free() {
	s.cancel(errClosed)
	s.s.Close()
	r := s.s.Result()
	s.owner.release()
	logs.write(levelDebug, "stream closed", "finish", string(r.Reason), "prompt_tokens", r.PromptTokens, "cached_tokens", r.CachedTokens,
		"generated_tokens", r.Generated, "prefill_ms", r.Prefill.Milliseconds(), "decode_ms", r.Decode.Milliseconds())
}

// useStream finds the stream of a handle; the entry is to be released.
func useStream(h uintptr) (*entry, *stream, error) {
	e, err := handles.use(kindStream, h)
	if err != nil {
		return nil, nil, err
	}
	return e, e.value.(*stream), nil
}

// piece is nanochat_piece.
type piece struct {
	token, finish int32
	logprob       float32
	length        int
	flags         uint32
}

// next reads the next piece and copies its text to buffer.
func (s *stream) next(timeout uint32, buffer []byte) (piece, error) {
	if !s.reader.TryLock() {
		return piece{}, errBusy
	}
	defer s.reader.Unlock()
	if errors.Is(s.err, io.EOF) && s.kept == nil {
		return s.end(), nil
	}
	if cause := context.Cause(s.ctx); cause != nil {
		s.over.Store(true)
		return piece{}, cause
	}
	if s.kept == nil && s.err == nil {
		err := s.fetch(timeout)
		if errors.Is(err, errTimeout) {
			return piece{}, err
		}
	}
	switch {
	case s.kept != nil:
	case errors.Is(s.err, io.EOF):
		return s.end(), nil
	default:
		s.over.Store(true)
		return piece{}, s.err
	}
	p := s.kept
	if len(p.Text) > len(buffer) {
		return piece{token: p.ID, length: len(p.Text)}, tooSmall(len(buffer), len(p.Text))
	}
	copy(buffer, p.Text)
	s.kept, s.top, s.logits = nil, p.Top, p.Logits
	out := piece{token: p.ID, logprob: p.Logprob, length: len(p.Text)}
	if p.Echo {
		out.flags = pieceEcho
	}
	return out, nil
}

// end is the last piece.
func (s *stream) end() piece {
	s.over.Store(true)
	s.top, s.logits = nil, nil
	return piece{token: -1, finish: finishOf(s.s.Result().Reason)}
}

// fetch waits for the next piece and keeps it, or what ended the stream.
func (s *stream) fetch(timeout uint32) error {
	if timeout != forever {
		// What is there already needs no timer.
		switch err := s.read(over); {
		case !errors.Is(err, errTimeout):
			return err
		case timeout == 0:
			return errTimeout
		}
		ctx, stop := context.WithTimeout(s.ctx, time.Duration(timeout)*time.Millisecond)
		defer stop()
		return s.read(ctx)
	}
	return s.read(s.ctx)
}

// read waits for the next piece until ctx is over, which gives errTimeout. A cancelled
// stream ends with the reason given to cancel.
func (s *stream) read(ctx context.Context) error {
	p, err := s.s.Next(ctx)
	switch cause := context.Cause(s.ctx); {
	case err == nil:
		// Slices of a piece stand only until the next one is read.
		p.Top, p.Logits = slices.Clone(p.Top), slices.Clone(p.Logits)
		s.kept = &p
		return nil
	case errors.Is(err, io.EOF):
	case cause != nil:
		err = cause
	case ctx.Err() != nil && errors.Is(err, ctx.Err()) && !errors.As(err, new(*infer.CancelError)):
		return errTimeout
	}
	s.err = err
	return err
}

// over is a context that is done.
var over = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// candidates is what nanochat_stream_top gives.
func (s *stream) candidates() ([]sample.Candidate, error) {
	if !s.reader.TryLock() {
		return nil, errBusy
	}
	defer s.reader.Unlock()
	return slices.Clone(s.top), nil
}

// row is what nanochat_stream_logits gives.
func (s *stream) row() ([]float32, error) {
	if !s.reader.TryLock() {
		return nil, errBusy
	}
	defer s.reader.Unlock()
	return s.logits, nil // nobody changes it
}

// embedding is what nanochat_stream_embedding gives.
func (s *stream) embedding() ([]float32, error) {
	if !s.embeds {
		return nil, invalid("no embedding was asked for", "open the stream with NANOCHAT_GENERATE_EMBEDDING")
	}
	r, err := s.result()
	return r.Embedding, err
}

// result is what nanochat_stream_stats gives.
func (s *stream) result() (infer.Result, error) {
	if !s.reader.TryLock() {
		return infer.Result{}, errBusy
	}
	defer s.reader.Unlock()
	return s.s.Result(), nil
}

// cancelStream is nanochat_stream_cancel.
func cancelStream(h uintptr) error {
	e, s, err := useStream(h)
	if err != nil {
		return err
	}
	defer e.release()
	s.cancel(errCancelled)
	return nil
}
