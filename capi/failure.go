package capi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/core/train"
	"github.com/architehc/nanochat/core/zoo"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/dl"
	"github.com/architehc/nanochat/kernels/team"
)

// status is a NANOCHAT_* number of the header.
type status int32

const (
	statusOK             status = 0
	statusInvalid        status = 1
	statusNotFound       status = 2
	statusFormat         status = 3
	statusChecksum       status = 4
	statusIO             status = 5
	statusNoMemory       status = 6
	statusCancelled      status = 7
	statusTimeout        status = 8
	statusBusy           status = 9
	statusClosed         status = 10
	statusBufferTooSmall status = 11
	statusContextFull    status = 12
	statusUnsupported    status = 14
	statusOffline        status = 15
	statusDiverged       status = 16
	statusNetwork        status = 17
	statusPlanned        status = 18
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
	errCancelled = &failure{status: statusCancelled, message: "it was cancelled"}
	errClosed    = &failure{status: statusClosed, message: "the handle was closed during the call"}
	errBusy      = &failure{statusBusy, "another call is reading it", "read in one thread, or one call after the other"}
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
		named   *zoo.Error
		input   *data.Error
		saved   *checkpoint.Error
		trained *train.Error
		lacking *chat.UnsupportedError
		device  *train.DeviceError
		gpu     *cuda.Error
		gpuRAM  *cuda.MemoryError
		library *dl.Error
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
	case errors.As(err, &lacking):
		return &failure{statusUnsupported, "chat: " + lacking.What, lacking.Hint}
	case errors.As(err, &device):
		f := failureOf(device.Err)
		return &failure{f.status, text, device.Hint}
	case errors.As(err, &gpuRAM):
		return &failure{statusNoMemory, text, "close other programs that use the GPU, or use a smaller model or context"}
	case errors.As(err, &gpu):
		return &failure{statusUnsupported, text, gpu.Hint}
	case errors.As(err, &library):
		return &failure{statusUnsupported, text, library.Hint}
	case errors.Is(err, infer.ErrBusy):
		return &failure{statusBusy, "the session has a stream that has not ended", "read that stream to its end, or close it"}
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
	case errors.As(err, &named) && !errors.Is(err, context.Canceled):
		return &failure{zooStatus(named.Kind), text, named.Hint}
	case errors.Is(err, train.ErrDiverged):
		return &failure{statusDiverged, text, hintOf(trained, err)}
	case errors.As(err, &input):
		bare := *input
		bare.Hint = ""
		return &failure{dataStatus(input, err), bare.Error(), input.Hint}
	case errors.As(err, &saved):
		return &failure{diskStatus(err, statusFormat), text, "resume from another checkpoint, or start anew in another directory"}
	case errors.As(err, &trained):
		return &failure{diskStatus(err, statusInvalid), text, trained.Hint}
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

// zooStatus classes what core/zoo says.
func zooStatus(k zoo.Kind) status {
	switch k {
	case zoo.ErrNotFound:
		return statusNotFound
	case zoo.ErrPlanned:
		return statusPlanned
	case zoo.ErrOffline:
		return statusOffline
	case zoo.ErrNetwork, zoo.ErrDenied:
		return statusNetwork
	case zoo.ErrChecksum, zoo.ErrNoHash:
		return statusChecksum
	case zoo.ErrCache:
		return statusIO
	case zoo.ErrBusy:
		return statusBusy
	}
	return statusInvalid // ErrName, ErrSetting
}

// dataStatus tells options that make no sense from files that cannot be read, and
// those from files that are damaged.
func dataStatus(e *data.Error, err error) status {
	if e.Path == data.OptionsPath {
		return statusInvalid
	}
	return diskStatus(err, statusFormat)
}

// diskStatus is the status of what the system said, or another one where it said nothing.
func diskStatus(err error, other status) status {
	var path *fs.PathError
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.ENOMEM):
		return statusNoMemory
	case errors.Is(err, fs.ErrNotExist):
		return statusNotFound
	case errors.As(err, &path), errors.As(err, &errno):
		return statusIO
	}
	return other
}

// hintOf is the hint of a *train.Error in err.
func hintOf(e *train.Error, err error) string {
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

// oneLine is s without line breaks and NUL, which the message of an error cannot have.
func oneLine(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "\x00", "\ufffd")
}
