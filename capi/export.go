package capi

/*
#cgo CFLAGS: -std=c11 -D_POSIX_C_SOURCE=200809L -O2 -Wall -Wextra -I${SRCDIR}/../include
#include <stdlib.h>
#include <string.h>
#include "nanochat.h"
const char *ncLibraryPath(void);
char *ncText(const char *text, size_t length);
uintptr_t ncNoMemory(void);
*/
import "C"

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/sample"
)

// The exports are called by shim.c only. Handles are numbers. out, where not
// NULL, takes the handle of an error object.

// call runs f and reports its error, or its panic: nothing unwinds into C.
func call(out *C.uintptr_t, f func() error) (s C.int32_t) {
	if out != nil {
		*out = 0
	}
	defer func() {
		if r := recover(); r != nil {
			s = report(out, panicked(r))
		}
	}()
	if err := f(); err != nil {
		return report(out, failureOf(err))
	}
	return C.NANOCHAT_OK
}

// cError is the value of an error object's handle, with texts of C.
type cError struct {
	status        status
	message, hint *C.char
}

func report(out *C.uintptr_t, f *failure) C.int32_t {
	if f.status == statusInternal {
		logs.write(levelError, "internal error", "error", oneLine(f.message))
	}
	if out == nil || f.status == statusTimeout {
		return C.int32_t(f.status)
	}
	e := &cError{f.status, cText(oneLine(f.message)), cText(oneLine(f.hint))}
	free := func() {
		C.free(unsafe.Pointer(e.message))
		C.free(unsafe.Pointer(e.hint))
	}
	if e.message == nil || e.hint == nil {
		free()
		*out = C.ncNoMemory()
		return C.NANOCHAT_E_NOMEM
	}
	*out = C.uintptr_t(handles.add(kindError, e, free))
	return C.int32_t(f.status)
}

// cText copies s for C, or is nil where there is no memory; C.CString would end the
// process.
func cText(s string) *C.char {
	return C.ncText((*C.char)(unsafe.Pointer(unsafe.StringData(s))), C.size_t(len(s)))
}

// onError calls f with the error object of a handle. Its texts stand until it is freed.
func onError(h C.uintptr_t, f func(*cError)) C.int32_t {
	return call(nil, func() error {
		e, err := handles.use(kindError, uintptr(h))
		if err != nil {
			return err
		}
		defer e.release()
		f(e.value.(*cError))
		return nil
	})
}

//export ncgoErrorStatus
func ncgoErrorStatus(h C.uintptr_t) (s C.int32_t) {
	if wrong := onError(h, func(e *cError) { s = C.int32_t(e.status) }); wrong != C.NANOCHAT_OK {
		return wrong
	}
	return s
}

//export ncgoErrorMessage
func ncgoErrorMessage(h C.uintptr_t) (text *C.char) {
	onError(h, func(e *cError) { text = e.message })
	return text
}

//export ncgoErrorHint
func ncgoErrorHint(h C.uintptr_t) (text *C.char) {
	onError(h, func(e *cError) { text = e.hint })
	return text
}

//export ncgoErrorFree
func ncgoErrorFree(h C.uintptr_t) {
	call(nil, func() error { return closeHandle(kindError, uintptr(h)) })
}

// ncgoInvalid reports a wrong argument that shim.c has found.
//
//export ncgoInvalid
func ncgoInvalid(message, hint *C.char, out *C.uintptr_t) C.int32_t {
	return call(out, func() error { return invalid(C.GoString(message), C.GoString(hint)) })
}

//export ncgoSystemInfo
func ncgoSystemInfo(buffer *C.char, capacity C.size_t, length *C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		info, err := systemInfo(C.NANOCHAT_VERSION_STRING, C.NANOCHAT_ABI_VERSION)
		if err != nil {
			return err
		}
		return put("buffer", info, (*byte)(unsafe.Pointer(buffer)), capacity, length)
	})
}

//export ncgoModelOpen
func ncgoModelOpen(path *C.char, options *C.nanochat_model_options, model *C.uintptr_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if err := clear("model", model); err != nil {
			return err
		}
		if path == nil {
			return invalid("path is NULL", "")
		}
		o := modelOptions{
			flags: uint32(options.flags), threads: uint32(options.threads), context: uint32(options.context),
			batch: uint32(options.batch), speculate: uint32(options.speculate),
		}
		o.kernel, o.device = orEmpty(options.kernel), orEmpty(options.device)
		h, err := openModel(C.GoString(path), o, process.over(getenv))
		*model = C.uintptr_t(h)
		return err
	})
}

// getenv is the environment of the process as C sees it.
func getenv(name string) string {
	c := append([]byte(name), 0)
	if v := C.getenv((*C.char)(unsafe.Pointer(&c[0]))); v != nil {
		return C.GoString(v)
	}
	return ""
}

// version is that of the library.
const version = C.NANOCHAT_VERSION_STRING

// libraryPath is the file that this code was loaded from, or "" where the system
// does not say.
func libraryPath() string {
	if p := C.ncLibraryPath(); p != nil {
		if path := C.GoString(p); filepath.IsAbs(path) {
			return path
		}
	}
	path, err := os.Executable() // linked statically
	if err != nil {
		return ""
	}
	return path
}

//export ncgoModelInfo
func ncgoModelInfo(model C.uintptr_t, buffer *C.char, capacity C.size_t, length *C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		e, m, err := useModel(uintptr(model))
		if err != nil {
			return err
		}
		defer e.release()
		return put("buffer", m.info, (*byte)(unsafe.Pointer(buffer)), capacity, length)
	})
}

//export ncgoModelClose
func ncgoModelClose(model C.uintptr_t) C.int32_t {
	return call(nil, func() error { return closeHandle(kindModel, uintptr(model)) })
}

//export ncgoTokenize
func ncgoTokenize(model C.uintptr_t, text *C.char, length C.size_t, flags C.uint32_t, ids *C.int32_t, capacity C.size_t, count *C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if count != nil {
			*count = 0
		}
		s, err := goText("text", text, length)
		if err != nil {
			return err
		}
		all, err := tokenize(uintptr(model), s, uint32(flags))
		if err != nil {
			return err
		}
		return put("ids", all, (*int32)(unsafe.Pointer(ids)), capacity, count)
	})
}

//export ncgoDetokenize
func ncgoDetokenize(model C.uintptr_t, ids *C.int32_t, count C.size_t, flags C.uint32_t, buffer *C.char, capacity C.size_t, length *C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if length != nil {
			*length = 0
		}
		if ids == nil && count > 0 {
			return invalid("ids is NULL", "")
		}
		if count > maxText {
			return invalid(fmt.Sprintf("%d ids, at most %d are accepted", uint64(count), maxText), "")
		}
		text, err := detokenize(uintptr(model), unsafe.Slice((*int32)(ids), int(count)), uint32(flags))
		if err != nil {
			return err
		}
		return put("buffer", text, (*byte)(unsafe.Pointer(buffer)), capacity, length)
	})
}

//export ncgoStreamOpen
func ncgoStreamOpen(model C.uintptr_t, prompt *C.char, length C.size_t, options *C.nanochat_generate_options, stream *C.uintptr_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if err := clear("stream", stream); err != nil {
			return err
		}
		text, err := goText("prompt", prompt, length)
		if err != nil {
			return err
		}
		o, err := goOptions(options)
		if err != nil {
			return err
		}
		h, err := openStream(uintptr(model), text, o)
		*stream = C.uintptr_t(h)
		return err
	})
}

func goOptions(c *C.nanochat_generate_options) (generateOptions, error) {
	o := generateOptions{flags: uint32(c.flags), maxTokens: uint32(c.max_tokens), sample: sample.Options{
		Temperature: float64(c.temperature), TopK: int(c.top_k), TopP: float64(c.top_p), MinP: float64(c.min_p), Seed: uint64(c.seed),
		RepeatPenalty: float64(c.repeat_penalty), PresencePenalty: float64(c.presence_penalty), FrequencyPenalty: float64(c.frequency_penalty),
		PenaltyWindow: int(c.penalty_window), TopLogprobs: int(c.top_logprobs),
	}}
	if n := c.stop_count; n > 0 {
		if n > chat.MaxStops {
			return o, invalid(fmt.Sprintf("stop_count is %d, at most %d are accepted", uint64(n), chat.MaxStops), "")
		}
		if c.stops == nil {
			return o, invalid("stops is NULL and stop_count is not 0", "")
		}
		stops := unsafe.Slice(c.stops, int(n))
		for i, p := range stops {
			if p == nil {
				return o, invalid(fmt.Sprintf("stops[%d] is NULL", i), "")
			}
			var size C.size_t
			if c.stop_lengths != nil {
				size = unsafe.Slice(c.stop_lengths, int(n))[i]
			} else {
				size = C.strnlen(p, chat.MaxStopBytes+1)
			}
			if size == 0 || size > chat.MaxStopBytes {
				return o, invalid(fmt.Sprintf("stops[%d] has %d bytes, accepted are 1 to %d", i, uint64(size), chat.MaxStopBytes), "")
			}
			o.stops = append(o.stops, C.GoStringN(p, C.int(size)))
		}
	}
	if n := c.bias_count; n > 0 {
		if n > maxBias {
			return o, invalid(fmt.Sprintf("bias_count is %d, at most %d are accepted", uint64(n), maxBias), "")
		}
		if c.bias_ids == nil || c.bias_values == nil {
			return o, invalid("bias_ids or bias_values is NULL and bias_count is not 0", "")
		}
		values := unsafe.Slice((*float32)(c.bias_values), int(n))
		o.sample.LogitBias = make(map[int32]float32, int(n))
		for i, id := range unsafe.Slice((*int32)(c.bias_ids), int(n)) {
			o.sample.LogitBias[id] = values[i]
		}
	}
	return o, nil
}

//export ncgoStreamNext
func ncgoStreamNext(stream C.uintptr_t, timeout C.uint32_t, buffer *C.char, capacity C.size_t, to *C.nanochat_piece, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		e, s, err := useStream(uintptr(stream))
		if err != nil {
			return err
		}
		defer e.release()
		if buffer == nil && capacity > 0 {
			return invalid("buffer is NULL and capacity is not 0", "")
		}
		p, err := s.next(uint32(timeout), goSlice((*byte)(unsafe.Pointer(buffer)), capacity))
		to.token, to.finish = C.int32_t(p.token), C.int32_t(p.finish)
		to.logprob, to.length, to.flags = C.float(p.logprob), C.uint64_t(p.length), C.uint32_t(p.flags)
		return err
	})
}

//export ncgoStreamTop
func ncgoStreamTop(stream C.uintptr_t, ids *C.int32_t, logprobs *C.float, capacity C.size_t, count *C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if count != nil {
			*count = 0
		}
		e, s, err := useStream(uintptr(stream))
		if err != nil {
			return err
		}
		defer e.release()
		top, err := s.candidates()
		if err != nil {
			return err
		}
		all, values := make([]int32, len(top)), make([]float32, len(top))
		for i, c := range top {
			all[i], values[i] = c.ID, c.Logprob
		}
		if err := put("ids", all, (*int32)(unsafe.Pointer(ids)), capacity, count); err != nil {
			return err
		}
		if ids != nil && logprobs != nil {
			copy(unsafe.Slice((*float32)(logprobs), len(values)), values)
		}
		return nil
	})
}

//export ncgoStreamStats
func ncgoStreamStats(stream C.uintptr_t, to *C.nanochat_stats, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		e, s, err := useStream(uintptr(stream))
		if err != nil {
			return err
		}
		defer e.release()
		r, err := s.result()
		if err != nil {
			return err
		}
		to.finish = C.int32_t(finishOf(r.Reason))
		to.prompt_tokens, to.cached_tokens = C.uint64_t(r.PromptTokens), C.uint64_t(r.CachedTokens)
		to.generated_tokens = C.uint64_t(r.Generated)
		to.drafted_tokens, to.accepted_tokens = C.uint64_t(r.Drafted), C.uint64_t(r.Accepted)
		to.queued_ns, to.prefill_ns, to.decode_ns = C.uint64_t(r.Queued), C.uint64_t(r.Prefill), C.uint64_t(r.Decode)
		return nil
	})
}

//export ncgoStreamCancel
func ncgoStreamCancel(stream C.uintptr_t) C.int32_t {
	return call(nil, func() error { return cancelStream(uintptr(stream)) })
}

//export ncgoStreamClose
func ncgoStreamClose(stream C.uintptr_t) C.int32_t {
	return call(nil, func() error { return closeHandle(kindStream, uintptr(stream)) })
}

// clear makes the handle to be returned NULL.
func clear(name string, to *C.uintptr_t) error {
	if to == nil {
		return invalid(name+" is NULL", "pass the address of a variable for the handle")
	}
	*to = 0
	return nil
}

// goText copies a text of C.
func goText(name string, p *C.char, n C.size_t) (string, error) {
	switch {
	case n > maxText:
		return "", invalid(fmt.Sprintf("%s has %d bytes, at most %d are accepted", name, uint64(n), maxText), "")
	case n == 0:
		return "", nil
	case p == nil:
		return "", invalid(name+" is NULL and its length is not 0", "")
	}
	return C.GoStringN(p, C.int(n)), nil
}

// goSlice is n elements of a caller's buffer; none of the library's results has
// more than 2^31.
func goSlice[T any](p *T, n C.size_t) []T {
	if p == nil {
		return nil
	}
	return unsafe.Slice(p, int(min(n, math.MaxInt32)))
}

// put returns v to a caller who gave a buffer and wants the count of elements.
func put[T any](name string, v []T, buffer *T, capacity C.size_t, count *C.size_t) error {
	if count == nil {
		return invalid("the pointer to the count is NULL", "")
	}
	if buffer == nil && capacity > 0 {
		*count = 0
		return invalid(name+" is NULL and capacity is not 0", "")
	}
	*count = C.size_t(len(v))
	to := goSlice(buffer, capacity)
	switch {
	case buffer == nil:
		return nil
	case len(to) < len(v):
		return tooSmall(len(to), len(v))
	}
	copy(to, v)
	return nil
}
