package capi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/sample"
)

const (
	flagIgnoreEnd   = 1
	flagSpecialText = 2
	flagLogprobs    = 4
	generateFlags   = flagIgnoreEnd | flagSpecialText | flagLogprobs

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

// stream is the value of a stream's handle.
type stream struct {
	model *entry // kept as long as the stream
	ctx   context.Context
	// cancel ends the request and the waiting of its reader, for the reason given.
	cancel context.CancelCauseFunc

	// reader is held by the call that reads.
	reader sync.Mutex
	s      *chat.Stream
	// kept is a piece that did not fit the caller's buffer.
	kept *chat.Piece
	top  []sample.Candidate
	err  error // io.EOF or what ended the stream
}

// openStream queues a request and gives its stream a handle.
func openStream(h uintptr, prompt string, o generateOptions) (uintptr, error) {
	e, m, err := useModel(h)
	if err != nil {
		return 0, err
	}
	defer e.release()
	if err := checkFlags(o.flags, generateFlags); err != nil {
		return 0, err
	}
	if o.maxTokens > math.MaxInt32 {
		return 0, invalid(fmt.Sprintf("max_tokens is %d, at most %d is accepted", o.maxTokens, math.MaxInt32), "0 is as many as the context holds")
	}
	o.sample.Logprobs = o.flags&flagLogprobs != 0
	s := &stream{model: e}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.s, err = m.Generate(s.ctx, chat.Request{
		Prompt: prompt, ParseSpecial: o.flags&flagSpecialText != 0, MaxTokens: int(o.maxTokens),
		Stop: o.stops, IgnoreEnd: o.flags&flagIgnoreEnd != 0, Sample: o.sample,
	})
	if err != nil {
		s.cancel(nil)
		return 0, err
	}
	e.retain()
	return handles.add(kindStream, s, s.free), nil
}

// free ends the request; nobody reads the stream any more.
func (s *stream) free() {
	s.cancel(errClosed)
	s.s.Close()
	s.model.release()
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
}

// next reads the next piece and copies its text to buffer.
func (s *stream) next(timeout uint32, buffer []byte) (piece, error) {
	if !s.reader.TryLock() {
		return piece{}, errBusy
	}
	defer s.reader.Unlock()
	if errors.Is(s.err, io.EOF) {
		return piece{token: -1, finish: finishOf(s.s.Result().Reason)}, nil
	}
	if cause := context.Cause(s.ctx); cause != nil {
		return piece{}, cause
	}
	if s.err != nil {
		return piece{}, s.err
	}
	if s.kept == nil {
		p, err := s.read(timeout)
		switch {
		case errors.Is(err, io.EOF):
			s.err, s.top = err, nil
			return piece{token: -1, finish: finishOf(s.s.Result().Reason)}, nil
		case errors.Is(err, errTimeout):
			return piece{}, err
		case err != nil:
			s.err = err
			return piece{}, err
		}
		s.kept = &p
		s.top = append(s.top[:0], p.Top...) // it stands only until the next piece is read
	}
	p := s.kept
	if len(p.Text) > len(buffer) {
		return piece{token: p.ID, length: len(p.Text)}, tooSmall(len(buffer), len(p.Text))
	}
	copy(buffer, p.Text)
	s.kept = nil
	return piece{token: p.ID, logprob: p.Logprob, length: len(p.Text)}, nil
}

// read waits for the next piece. A cancelled stream ends with the reason given
// to cancel.
func (s *stream) read(timeout uint32) (chat.Piece, error) {
	ctx := s.ctx
	if timeout != forever {
		// What is there already needs no timer.
		p, err := s.s.Next(over)
		if err != context.Canceled { // a cancelled stream wraps it, a wait that is over does not
			return p, s.reason(err)
		}
		if timeout == 0 {
			return p, s.reason(context.DeadlineExceeded)
		}
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, time.Duration(timeout)*time.Millisecond)
		defer stop()
	}
	p, err := s.s.Next(ctx)
	return p, s.reason(err)
}

// over is a context that is done.
var over = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// reason is what the caller of read is told in place of err.
func (s *stream) reason(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	if cause := context.Cause(s.ctx); cause != nil {
		return cause
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errTimeout
	}
	return err
}

// candidates is what nanochat_stream_top gives.
func (s *stream) candidates() ([]sample.Candidate, error) {
	if !s.reader.TryLock() {
		return nil, errBusy
	}
	defer s.reader.Unlock()
	return slices.Clone(s.top), nil
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
