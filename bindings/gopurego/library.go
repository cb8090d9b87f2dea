package gopurego

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/ebitengine/purego"
)

// ABIVersion is the version of the C interface that this package is written for.
const ABIVersion = 1

// Status is a NANOCHAT_* number.
type Status int32

// What can go wrong; include/nanochat.h says when.
const (
	Invalid        Status = 1
	NotFound       Status = 2
	Format         Status = 3
	Checksum       Status = 4
	IO             Status = 5
	NoMemory       Status = 6
	Cancelled      Status = 7
	timeout        Status = 8
	Busy           Status = 9
	Closed         Status = 10
	bufferTooSmall Status = 11
	ContextFull    Status = 12
	Forked         Status = 13
	Unsupported    Status = 14
	Offline        Status = 15
	Diverged       Status = 16
	Network        Status = 17
	Planned        Status = 18
	Internal       Status = 99
)

// Error is what a call of the library failed with.
type Error struct {
	Status  Status
	Message string
	// Hint says what to do about it; may be empty.
	Hint string
}

func (e *Error) Error() string { return "nanochat: " + e.Message }

// StatusOf is the status of an error of this package, 0 for others.
func StatusOf(err error) Status {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return 0
}

// Library is the loaded libnanochat.so. It cannot be unloaded.
type Library struct {
	c functions
}

// functions are those of the header. Handles are numbers.
type functions struct {
	abiVersion   func() uint32
	version      func() string
	errorStatus  func(err uintptr) Status
	errorMessage func(err uintptr) string
	errorHint    func(err uintptr) string
	errorFree    func(err uintptr)
	systemInfo   func(buffer unsafe.Pointer, capacity uint64, length *uint64, err *uintptr) Status

	modelOpen  func(path string, o *modelOptions, model, err *uintptr) Status
	modelInfo  func(model uintptr, buffer unsafe.Pointer, capacity uint64, length *uint64, err *uintptr) Status
	modelClose func(model uintptr) Status
	tokenize   func(model uintptr, text unsafe.Pointer, length uint64, flags uint32, ids unsafe.Pointer, capacity uint64, count *uint64, err *uintptr) Status
	detokenize func(model uintptr, ids unsafe.Pointer, count uint64, flags uint32, buffer unsafe.Pointer, capacity uint64, length *uint64, err *uintptr) Status

	streamOpen   func(model uintptr, prompt unsafe.Pointer, length uint64, o *generateOptions, stream, err *uintptr) Status
	streamNext   func(stream uintptr, timeoutMS uint32, buffer unsafe.Pointer, capacity uint64, p *piece, err *uintptr) Status
	streamTop    func(stream uintptr, ids, logprobs unsafe.Pointer, capacity uint64, count *uint64, err *uintptr) Status
	streamStats  func(stream uintptr, s *stats, err *uintptr) Status
	streamCancel func(stream uintptr) Status
	streamClose  func(stream uintptr) Status

	streamOpenTokens func(model uintptr, ids unsafe.Pointer, count uint64, o *generateOptions, stream, err *uintptr) Status
	fimOpen          func(model uintptr, prefix unsafe.Pointer, prefixLength uint64, suffix unsafe.Pointer, suffixLength uint64, o *generateOptions, stream, err *uintptr) Status
	chatOpen         func(model, session uintptr, roles, contents **byte, lengths *uint64, count uint64, template unsafe.Pointer, o *generateOptions, stream, err *uintptr) Status
	streamLogits     func(stream uintptr, values unsafe.Pointer, capacity uint64, count *uint64, err *uintptr) Status
	streamEmbedding  func(stream uintptr, values unsafe.Pointer, capacity uint64, count *uint64, err *uintptr) Status

	sessionOpen     func(model uintptr, session, err *uintptr) Status
	sessionStream   func(session uintptr, text unsafe.Pointer, length uint64, o *generateOptions, stream, err *uintptr) Status
	sessionTokens   func(session uintptr, ids unsafe.Pointer, capacity uint64, count *uint64, err *uintptr) Status
	sessionTruncate func(session uintptr, keep uint64, err *uintptr) Status
	sessionClose    func(session uintptr) Status

	set        func(key string, value unsafe.Pointer, err *uintptr) Status
	get        func(key string, buffer unsafe.Pointer, capacity uint64, length *uint64, err *uintptr) Status
	zooList    func(o uintptr, buffer unsafe.Pointer, capacity uint64, length *uint64, err *uintptr) Status
	zooResolve func(name string, o uintptr, buffer unsafe.Pointer, capacity uint64, length *uint64, err *uintptr) Status
	zooRemove  func(name string, o uintptr, freed *uint64, err *uintptr) Status

	downloadOpen func(name string, o uintptr, job, err *uintptr) Status
	verifyOpen   func(name string, o uintptr, job, err *uintptr) Status
	trainOpen    func(config string, overrides **byte, count uint64, resume string, job, err *uintptr) Status
	logOpen      func(level string, job, err *uintptr) Status
	jobNext      func(job uintptr, timeoutMS uint32, buffer unsafe.Pointer, capacity uint64, length *uint64, finish *int32, err *uintptr) Status
	jobCancel    func(job uintptr) Status
	jobClose     func(job uintptr) Status
}

// Open loads the library: a path, or a name that the system's loader finds, such as
// "libnanochat.so.1".
func Open(name string) (*Library, error) {
	handle, err := purego.Dlopen(name, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("nanochat: %w", err)
	}
	l := &Library{}
	for symbol, function := range map[string]any{
		"abi_version": &l.c.abiVersion, "version": &l.c.version,
		"error_status": &l.c.errorStatus, "error_message": &l.c.errorMessage, "error_hint": &l.c.errorHint, "error_free": &l.c.errorFree,
		"system_info": &l.c.systemInfo, "model_open": &l.c.modelOpen, "model_info": &l.c.modelInfo, "model_close": &l.c.modelClose,
		"tokenize": &l.c.tokenize, "detokenize": &l.c.detokenize,
		"stream_open": &l.c.streamOpen, "stream_next": &l.c.streamNext, "stream_top": &l.c.streamTop, "stream_stats": &l.c.streamStats,
		"stream_cancel": &l.c.streamCancel, "stream_close": &l.c.streamClose,
		"stream_open_tokens": &l.c.streamOpenTokens, "fim_open": &l.c.fimOpen, "chat_open": &l.c.chatOpen,
		"stream_logits": &l.c.streamLogits, "stream_embedding": &l.c.streamEmbedding,
		"session_open": &l.c.sessionOpen, "session_stream": &l.c.sessionStream, "session_tokens": &l.c.sessionTokens,
		"session_truncate": &l.c.sessionTruncate, "session_close": &l.c.sessionClose,
		"set": &l.c.set, "get": &l.c.get, "zoo_list": &l.c.zooList, "zoo_resolve": &l.c.zooResolve, "zoo_remove": &l.c.zooRemove,
		"download_open": &l.c.downloadOpen, "verify_open": &l.c.verifyOpen, "train_open": &l.c.trainOpen, "log_open": &l.c.logOpen,
		"job_next": &l.c.jobNext, "job_cancel": &l.c.jobCancel, "job_close": &l.c.jobClose,
	} {
		address, err := purego.Dlsym(handle, "nanochat_"+symbol)
		if err != nil {
			return nil, fmt.Errorf("nanochat: %s is not libnanochat: %w", name, err)
		}
		purego.RegisterFunc(function, address)
	}
	if v := l.c.abiVersion(); v != ABIVersion {
		return nil, fmt.Errorf("nanochat: %s has version %d of the interface, this program needs %d", name, v, ABIVersion)
	}
	return l, nil
}

// Version is the version of the library.
func (l *Library) Version() string { return l.c.version() }

// SystemInfo is a JSON object about the library and this machine.
func (l *Library) SystemInfo() ([]byte, error) {
	return read[byte](l, func(p unsafe.Pointer, n uint64, length *uint64, err *uintptr) Status {
		return l.c.systemInfo(p, n, length, err)
	})
}

// check makes an error of a status and an error object, which it frees.
func (l *Library) check(s Status, err uintptr) error {
	if s == 0 {
		return nil
	}
	e := &Error{Status: s, Message: fmt.Sprintf("status %d", s)}
	if err != 0 {
		e.Message, e.Hint = l.c.errorMessage(err), l.c.errorHint(err)
		l.c.errorFree(err)
	}
	return e
}

// read calls a function that returns elements to a buffer: first with a guess, and
// once more where that is too small.
func read[T byte | int32 | float32](l *Library, f func(buffer unsafe.Pointer, capacity uint64, length *uint64, err *uintptr) Status) ([]T, error) {
	buffer := make([]T, 1024)
	for {
		var length uint64
		var err uintptr
		s := f(unsafe.Pointer(unsafe.SliceData(buffer)), uint64(len(buffer)), &length, &err)
		if e := l.check(s, err); s != bufferTooSmall {
			return buffer[:length], e
		}
		buffer = make([]T, length)
	}
}
