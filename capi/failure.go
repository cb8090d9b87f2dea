package capi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/kernels/team"
)

// status is a NANOCHAT_* number of the header.
type status int32

const (
	statusOK             status = 0
	statusInvalid        status = 1
	statusNotFound       status = 2
	statusFormat         status = 3
	statusIO             status = 5
	statusNoMemory       status = 6
	statusCancelled      status = 7
	statusTimeout        status = 8
	statusBusy           status = 9
	statusClosed         status = 10
	statusBufferTooSmall status = 11
	statusContextFull    status = 12
	statusInternal       status = 99
)

// failure is an error as C sees it.
type failure struct {
	status  status
	message string
	hint    string
}

func (f *failure) Error() string { return f.message }

func invalid(message, hint string) *failure { return &failure{statusInvalid, message, hint} }

var (
	errCancelled = &failure{status: statusCancelled, message: "the stream was cancelled"}
	errClosed    = &failure{status: statusClosed, message: "the stream was closed during the call"}
	errBusy      = &failure{statusBusy, "another call is reading the stream", "read a stream in one thread, or one call after the other"}
	errTimeout   = &failure{status: statusTimeout, message: "nothing came within the time given"}
)

func tooSmall(have, need int) *failure {
	return &failure{statusBufferTooSmall, fmt.Sprintf("the buffer has room for %d, needed are %d", have, need), "call again with more room; nothing was lost"}
}

const (
	hintReport = "this is a defect of nanochat: please report it"
	hintFormat = "the file is damaged or not a model that nanochat reads; fetch or make it again"
)

// panicked is the failure of a call that ended in a panic.
func panicked(value any) *failure {
	return &failure{statusInternal, fmt.Sprintf("internal error: %v; %s", value, debug.Stack()), hintReport}
}

// failureOf classes an error.
func failureOf(err error) *failure {
	var (
		own     *failure
		request *infer.RequestError
		option  *sample.OptionError
		full    *infer.ContextError
		queue   *infer.QueueError
		limit   *model.LimitError
		format  *gguf.FormatError
		vocab   *tokenizer.Error
		conf    *config.Error
		logit   *sample.LogitError
		stepped *infer.PanicError
		worked  *team.PanicError
		errno   syscall.Errno
	)
	text := err.Error()
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &stepped), errors.As(err, &worked):
		return &failure{statusInternal, text, hintReport}
	case errors.As(err, &request), errors.As(err, &option):
		return invalid(text, "the name is that of a field of the options")
	case errors.As(err, &full):
		return &failure{statusContextFull, text, "shorten the prompt, or use a model with a longer context"}
	case errors.As(err, &queue):
		return &failure{statusBusy, text, "read or close other streams first"}
	case errors.As(err, &limit):
		return invalid(text, "a context of 0 takes as many positions as the model has")
	case errors.As(err, &vocab):
		bare := *vocab
		bare.Hint = ""
		hint := vocab.Hint
		if hint == "" {
			hint = "the vocabulary is not one that nanochat reads; convert the model again with its tokenizer"
		}
		return &failure{statusFormat, bare.Error(), hint}
	case errors.As(err, &format), errors.As(err, &conf):
		return &failure{statusFormat, text, hintFormat}
	case errors.As(err, &logit):
		return &failure{statusFormat, text, "the weights are damaged or the training diverged; check the file: nanochat verify"}
	case errors.Is(err, sample.ErrNoToken):
		return invalid(text, "the biases ban every token")
	case errors.Is(err, infer.ErrClosed):
		return &failure{status: statusClosed, message: text}
	case errors.Is(err, context.Canceled):
		return errCancelled
	case errors.Is(err, context.DeadlineExceeded):
		return errTimeout
	case errors.Is(err, syscall.ENOMEM):
		return &failure{statusNoMemory, text, "close other models or programs, or use a smaller model or context"}
	case errors.Is(err, fs.ErrNotExist):
		return &failure{statusNotFound, text, "check the path; relative paths start at the working directory of the process"}
	case errors.Is(err, fs.ErrPermission):
		return &failure{statusIO, text, "make the file readable for this user"}
	case errors.As(err, &errno):
		return &failure{statusIO, text, ""}
	}
	return &failure{statusInternal, text, hintReport}
}

// oneLine is s without line breaks and NUL, which the message of an error cannot have.
func oneLine(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "\x00", "\ufffd")
}
