package infer

import (
	"errors"
	"fmt"
)

var (
	// ErrClosed is returned by everything that is used after its Close.
	ErrClosed = errors.New("infer: the engine or session is closed")
	// ErrBusy says that a session already has a stream that has not ended; close
	// that stream first.
	ErrBusy = errors.New("infer: the session is busy with another stream; read it to its end or close it")
)

// ContextError reports a prompt that does not fit. Nothing was computed.
type ContextError struct {
	// Prompt is the number of tokens in the prompt.
	Prompt int
	// Context is the number of positions there are. At least one is for the answer.
	Context int
	// Model is the context of the model; it is more than Context if memory limits it.
	Model int
	// PromptOnly says that no answer was asked for, and no position has to be left.
	PromptOnly bool
}

func (e *ContextError) Error() string {
	left, over := " and one must be left for the answer", e.Prompt-e.Context+1
	if e.PromptOnly {
		left, over = "", over-1
	}
	s := fmt.Sprintf("infer: prompt has %d tokens, the context holds %d%s: shorten the prompt by at least %d",
		e.Prompt, e.Context, left, over)
	if e.Model > e.Context {
		s += fmt.Sprintf(", or give the cache more memory (the model allows %d)", e.Model)
	}
	return s
}

// RequestError reports a request that cannot be served.
type RequestError struct {
	// Field is the name in the form of requests and flags, such as "max_tokens".
	Field string
	// What says what was found and what is accepted.
	What string
}

func (e *RequestError) Error() string { return "infer: " + e.Field + " " + e.What }

// QueueError says that too many requests wait already. Try again later.
type QueueError struct {
	// Waiting is the number of waiting requests, which is the limit.
	Waiting int
}

func (e *QueueError) Error() string {
	return fmt.Sprintf("infer: %d requests are waiting already, which is the limit: try again later", e.Waiting)
}

// CancelError is what a stream ends with when its context is done or it, its
// session or the engine is closed. It wraps the cause.
type CancelError struct{ Cause error }

func (e *CancelError) Error() string { return "infer: cancelled: " + e.Cause.Error() }

// Unwrap is the cause, such as context.Canceled or ErrClosed.
func (e *CancelError) Unwrap() error { return e.Cause }

// PanicError reports a defect in this library that was caught. The requests of
// the step fail with it; the engine goes on.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string {
	return fmt.Sprintf("infer: internal error: %v\n%s", e.Value, e.Stack)
}
