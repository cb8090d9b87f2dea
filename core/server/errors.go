package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/sample"
)

// Causes of the end of a request that are not the client's doing.
var (
	errDraining = errors.New("the server is shutting down")
	errTimeout  = errors.New("the request took longer than the server allows")
	errGone     = errors.New("the client is gone")
)

// Types of errors, as OpenAI's servers name them.
const (
	typeRequest = "invalid_request_error"
	typeAuth    = "authentication_error"
	typeDenied  = "permission_error"
	typeRate    = "rate_limit_error"
	typeServer  = "server_error"
)

// apiError is an error in the form of OpenAI's responses.
type apiError struct {
	status  int
	message string
	kind    string
	param   string // the field at fault; empty if there is none
	code    string
	// retry is the number of seconds after which to try again; 0 says nothing.
	retry int
	cause error // for the log, never for the client
}

func (e *apiError) Error() string { return e.message }
func (e *apiError) Unwrap() error { return e.cause }

// MarshalJSON writes the whole body of the response.
func (e *apiError) MarshalJSON() ([]byte, error) {
	type inner struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    *string `json:"code"`
	}
	orNull := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	return json.Marshal(struct {
		Error inner `json:"error"`
	}{inner{e.message, e.kind, orNull(e.param), orNull(e.code)}})
}

// reason is the error in one word, for the metrics.
func (e *apiError) reason() string {
	switch {
	case e.code != "":
		return e.code
	case e.param != "":
		return "bad_value"
	}
	return "bad_request"
}

// bad is a request that will never be served as it is.
func bad(param, format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, kind: typeRequest, param: param, message: fmt.Sprintf(format, args...)}
}

// unsupported is a request for something that nanochat does not do.
func unsupported(param, format string, args ...any) *apiError {
	e := bad(param, format, args...)
	e.code = "unsupported_parameter"
	return e
}

// errorOf is err as a response; nil if the client has gone and nobody reads it.
// param is the field that holds the prompt.
func errorOf(err error, param string) *apiError {
	var (
		api    *apiError
		full   *infer.ContextError
		field  *infer.RequestError
		option *sample.OptionError
		queue  *infer.QueueError
		cannot *chat.UnsupportedError
	)
	switch {
	case errors.As(err, &api):
		return api
	case errors.Is(err, errDraining), errors.Is(err, infer.ErrClosed):
		return &apiError{status: http.StatusServiceUnavailable, kind: typeServer, code: "shutting_down", message: errDraining.Error() + "; try again", retry: 5, cause: err}
	case errors.Is(err, errTimeout), errors.Is(err, context.DeadlineExceeded):
		return &apiError{status: http.StatusServiceUnavailable, kind: typeServer, code: "timeout", message: errTimeout.Error(), cause: err}
	case errors.Is(err, errGone), errors.Is(err, context.Canceled):
		return nil
	case errors.As(err, &full):
		e := bad(param, "the prompt has %d tokens; the context holds %d and one must be left for the answer: shorten it by at least %d tokens",
			full.Prompt, full.Context, full.Prompt-full.Context+1)
		e.code = "context_length_exceeded"
		return e
	case errors.As(err, &field):
		name := field.Field
		switch name {
		case "prompt":
			name = param
		case "template":
			name = "chat_template"
		}
		return bad(name, "%s %s", name, field.What)
	case errors.As(err, &option):
		return bad(option.Option, "%s is %v, must be %s", option.Option, option.Value, option.Want)
	case errors.As(err, &cannot):
		return unsupported(param, "%s", cannot.Error())
	case errors.As(err, &queue):
		return busy(queue.Waiting, 1)
	}
	return &apiError{status: http.StatusInternalServerError, kind: typeServer, code: "internal_error",
		message: "an internal error; the log of the server says more under this request's X-Request-Id", cause: err}
}

// busy is a full queue.
func busy(waiting, retry int) *apiError {
	return &apiError{status: http.StatusTooManyRequests, kind: typeRate, code: "queue_full", retry: retry,
		message: fmt.Sprintf("the queue is full: %d requests wait already; try again in %d s", waiting, retry)}
}

// writeError sends e as the whole response.
func writeError(w http.ResponseWriter, e *apiError) {
	if e.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(e.retry))
	}
	if e.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	writeJSON(w, e.status, e)
}

// writeJSON sends v as the whole response.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // a value of this package that JSON cannot express
		status, b = http.StatusInternalServerError, []byte(`{"error":{"message":"an internal error","type":"server_error","param":null,"code":"internal_error"}}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	w.Write(append(b, '\n')) //nolint:errcheck // the client may be gone; its context ends the request
}
