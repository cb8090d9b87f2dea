package capi

/*
#include <stdlib.h>
#include <string.h>
#include "nanochat.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// withOptions opens a stream of what open makes of the options.
func withOptions(options *C.nanochat_generate_options, stream, out *C.uintptr_t, open func(o generateOptions) (uintptr, error)) C.int32_t {
	return call(out, func() error {
		if err := clear("stream", stream); err != nil {
			return err
		}
		o, err := goOptions(options)
		if err != nil {
			return err
		}
		h, err := open(o)
		*stream = C.uintptr_t(h)
		return err
	})
}

//export ncgoStreamOpenTokens
func ncgoStreamOpenTokens(model C.uintptr_t, ids *C.int32_t, count C.size_t, options *C.nanochat_generate_options, stream *C.uintptr_t, out *C.uintptr_t) C.int32_t {
	return withOptions(options, stream, out, func(o generateOptions) (uintptr, error) {
		switch {
		case ids == nil && count > 0:
			return 0, invalid("ids is NULL", "")
		case count > maxText:
			return 0, invalid(fmt.Sprintf("%d ids, at most %d are accepted", uint64(count), maxText), "")
		}
		return openTokens(uintptr(model), append([]int32{}, unsafe.Slice((*int32)(ids), int(count))...), o)
	})
}

//export ncgoFIMOpen
func ncgoFIMOpen(model C.uintptr_t, prefix *C.char, prefixLength C.size_t, suffix *C.char, suffixLength C.size_t, options *C.nanochat_generate_options, stream *C.uintptr_t, out *C.uintptr_t) C.int32_t {
	return withOptions(options, stream, out, func(o generateOptions) (uintptr, error) {
		before, err := goText("prefix", prefix, prefixLength)
		if err != nil {
			return 0, err
		}
		after, err := goText("suffix", suffix, suffixLength)
		if err != nil {
			return 0, err
		}
		return openFIM(uintptr(model), before, after, o)
	})
}

// maxMessages bounds a conversation.
const maxMessages = 1 << 16

// goMessages copies a conversation.
func goMessages(roles, contents **C.char, lengths *C.size_t, count C.size_t) (who, what []string, err error) {
	if who, err = goTexts("roles", roles, nil, count, maxMessages, maxText); err != nil {
		return nil, nil, err
	}
	what, err = goTexts("contents", contents, lengths, count, maxMessages, maxText)
	return who, what, err
}

//export ncgoChatOpen
func ncgoChatOpen(model, session C.uintptr_t, roles, contents **C.char, lengths *C.size_t, count C.size_t, template *C.char, options *C.nanochat_generate_options, stream *C.uintptr_t, out *C.uintptr_t) C.int32_t {
	return withOptions(options, stream, out, func(o generateOptions) (uintptr, error) {
		who, what, err := goMessages(roles, contents, lengths, count)
		if err != nil {
			return 0, err
		}
		return openChat(uintptr(model), uintptr(session), who, what, orEmpty(template), o)
	})
}

//export ncgoChatTokens
func ncgoChatTokens(model C.uintptr_t, roles, contents **C.char, lengths *C.size_t, count C.size_t, template *C.char, ids *C.int32_t, capacity C.size_t, idCount *C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		who, what, err := goMessages(roles, contents, lengths, count)
		if err != nil {
			return err
		}
		all, err := chatIDs(uintptr(model), who, what, orEmpty(template))
		if err != nil {
			return err
		}
		return put("ids", all, (*int32)(unsafe.Pointer(ids)), capacity, idCount)
	})
}

//export ncgoSessionOpen
func ncgoSessionOpen(model C.uintptr_t, session, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if err := clear("session", session); err != nil {
			return err
		}
		h, err := openSession(uintptr(model))
		*session = C.uintptr_t(h)
		return err
	})
}

//export ncgoSessionStream
func ncgoSessionStream(session C.uintptr_t, text *C.char, length C.size_t, options *C.nanochat_generate_options, stream *C.uintptr_t, out *C.uintptr_t) C.int32_t {
	return withOptions(options, stream, out, func(o generateOptions) (uintptr, error) {
		s, err := goText("text", text, length)
		if err != nil {
			return 0, err
		}
		return continueSession(uintptr(session), s, o)
	})
}

//export ncgoSessionTokens
func ncgoSessionTokens(session C.uintptr_t, ids *C.int32_t, capacity C.size_t, count *C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		all, err := sessionIDs(uintptr(session))
		if err != nil {
			return err
		}
		return put("ids", all, (*int32)(unsafe.Pointer(ids)), capacity, count)
	})
}

//export ncgoSessionTruncate
func ncgoSessionTruncate(session C.uintptr_t, keep C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error { return truncateSession(uintptr(session), int(min(keep, maxText))) })
}

//export ncgoSessionClose
func ncgoSessionClose(session C.uintptr_t) C.int32_t {
	return call(nil, func() error { return closeHandle(kindSession, uintptr(session)) })
}

//export ncgoStreamsOpen
func ncgoStreamsOpen(model C.uintptr_t, prompts **C.char, lengths *C.size_t, count C.size_t, options *C.nanochat_generate_options, streams, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if streams == nil {
			return invalid("streams is NULL", "pass an array for the handles")
		}
		if count == 0 || count > maxStreams {
			return invalid(fmt.Sprintf("%d prompts, accepted are 1 to %d", uint64(count), maxStreams), "")
		}
		to := unsafe.Slice(streams, int(count))
		for i := range to {
			to[i] = 0
		}
		texts, err := goTexts("prompts", prompts, lengths, count, maxStreams, maxText)
		if err != nil {
			return err
		}
		o, err := goOptions(options)
		if err != nil {
			return err
		}
		hs, err := openStreams(uintptr(model), texts, o)
		for i, h := range hs {
			to[i] = C.uintptr_t(h)
		}
		return err
	})
}

//export ncgoStreamsWait
func ncgoStreamsWait(streams *C.uintptr_t, count C.size_t, timeout C.uint32_t, index *C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		switch {
		case index == nil:
			return invalid("index is NULL", "")
		case count == 0 || count > maxStreams:
			return invalid(fmt.Sprintf("%d streams, accepted are 1 to %d", uint64(count), maxStreams), "")
		case streams == nil:
			return invalid("streams is NULL", "")
		}
		hs := make([]uintptr, int(count))
		for i, h := range unsafe.Slice(streams, int(count)) {
			hs[i] = uintptr(h)
		}
		i, err := waitStreams(hs, uint32(timeout))
		*index = C.size_t(i)
		return err
	})
}

//export ncgoStreamLogits
func ncgoStreamLogits(h C.uintptr_t, logits *C.float, capacity C.size_t, count *C.size_t, out *C.uintptr_t) C.int32_t {
	return putFloats(h, "logits", (*stream).row, logits, capacity, count, out)
}

//export ncgoStreamEmbedding
func ncgoStreamEmbedding(h C.uintptr_t, values *C.float, capacity C.size_t, count *C.size_t, out *C.uintptr_t) C.int32_t {
	return putFloats(h, "values", (*stream).embedding, values, capacity, count, out)
}

func putFloats(h C.uintptr_t, name string, get func(*stream) ([]float32, error), buffer *C.float, capacity C.size_t, count *C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		e, s, err := useStream(uintptr(h))
		if err != nil {
			return err
		}
		defer e.release()
		values, err := get(s)
		if err != nil {
			return err
		}
		return put(name, values, (*float32)(unsafe.Pointer(buffer)), capacity, count)
	})
}
