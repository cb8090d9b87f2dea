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

//export ncgoSet
func ncgoSet(key, value *C.char, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if key == nil {
			return invalid("key is NULL", "")
		}
		var v *string
		if value != nil {
			s := C.GoString(value)
			v = &s
		}
		return process.set(C.GoString(key), v)
	})
}

//export ncgoGet
func ncgoGet(key, buffer *C.char, capacity C.size_t, length *C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if key == nil {
			return invalid("key is NULL", "")
		}
		value, err := process.get(C.GoString(key), getenv)
		if err != nil {
			return err
		}
		return put("buffer", []byte(value), (*byte)(unsafe.Pointer(buffer)), capacity, length)
	})
}

func goZooOptions(c *C.nanochat_zoo_options) zooOptions {
	return zooOptions{
		flags: uint32(c.flags), cache: orEmpty(c.cache), endpoint: orEmpty(c.endpoint), token: orEmpty(c.token),
		url: orEmpty(c.url), sha256: orEmpty(c.sha256),
	}
}

func orEmpty(p *C.char) string {
	if p == nil {
		return ""
	}
	return C.GoString(p)
}

//export ncgoZooList
func ncgoZooList(options *C.nanochat_zoo_options, buffer *C.char, capacity C.size_t, length *C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		text, err := listZoo(goZooOptions(options), process.over(getenv), libraryPath())
		if err != nil {
			return err
		}
		return put("buffer", text, (*byte)(unsafe.Pointer(buffer)), capacity, length)
	})
}

//export ncgoZooResolve
func ncgoZooResolve(name *C.char, options *C.nanochat_zoo_options, buffer *C.char, capacity C.size_t, length *C.size_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if name == nil {
			return invalid("name is NULL", "")
		}
		found, err := resolve(C.GoString(name), goZooOptions(options), process.over(getenv), libraryPath())
		if err != nil {
			return err
		}
		text, err := line(found)
		if err != nil {
			return err
		}
		return put("buffer", text, (*byte)(unsafe.Pointer(buffer)), capacity, length)
	})
}

//export ncgoZooRemove
func ncgoZooRemove(name *C.char, options *C.nanochat_zoo_options, freed *C.uint64_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if name == nil {
			return invalid("name is NULL", "")
		}
		n, err := removeModel(C.GoString(name), goZooOptions(options), process.over(getenv), libraryPath())
		if freed != nil {
			*freed = C.uint64_t(n)
		}
		return err
	})
}

//export ncgoDownloadOpen
func ncgoDownloadOpen(name *C.char, options *C.nanochat_zoo_options, job *C.uintptr_t, out *C.uintptr_t) C.int32_t {
	return openNamed(name, options, job, out, openDownload)
}

//export ncgoVerifyOpen
func ncgoVerifyOpen(name *C.char, options *C.nanochat_zoo_options, job *C.uintptr_t, out *C.uintptr_t) C.int32_t {
	return openNamed(name, options, job, out, openVerify)
}

func openNamed(name *C.char, options *C.nanochat_zoo_options, job, out *C.uintptr_t, open func(string, zooOptions, environment, string) (uintptr, error)) C.int32_t {
	return call(out, func() error {
		if err := clear("job", job); err != nil {
			return err
		}
		if name == nil {
			return invalid("name is NULL", "")
		}
		h, err := open(C.GoString(name), goZooOptions(options), process.over(getenv), libraryPath())
		*job = C.uintptr_t(h)
		return err
	})
}

//export ncgoTrainOpen
func ncgoTrainOpen(path *C.char, overrides **C.char, count C.size_t, resume *C.char, job *C.uintptr_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if err := clear("job", job); err != nil {
			return err
		}
		if path == nil {
			return invalid("config is NULL", "name a .toml file")
		}
		list, err := goTexts("overrides", overrides, nil, count, maxOverrides, maxConfig)
		if err != nil {
			return err
		}
		h, err := openTraining(C.GoString(path), list, orEmpty(resume), process.over(getenv), version)
		*job = C.uintptr_t(h)
		return err
	})
}

//export ncgoLogOpen
func ncgoLogOpen(level *C.char, job *C.uintptr_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		if err := clear("job", job); err != nil {
			return err
		}
		h, err := openLog(orEmpty(level), process.over(getenv))
		*job = C.uintptr_t(h)
		return err
	})
}

//export ncgoJobNext
func ncgoJobNext(job C.uintptr_t, timeout C.uint32_t, buffer *C.char, capacity C.size_t, length *C.size_t, finish *C.int32_t, out *C.uintptr_t) C.int32_t {
	return call(out, func() error {
		e, j, err := useJob(uintptr(job))
		if err != nil {
			return err
		}
		defer e.release()
		switch {
		case length == nil || finish == nil:
			return invalid("length or finish is NULL", "")
		case buffer == nil && capacity > 0:
			return invalid("buffer is NULL and capacity is not 0", "")
		}
		n, f, err := j.next(uint32(timeout), goSlice((*byte)(unsafe.Pointer(buffer)), capacity))
		*length, *finish = C.size_t(n), C.int32_t(f)
		return err
	})
}

//export ncgoJobCancel
func ncgoJobCancel(job C.uintptr_t) C.int32_t {
	return call(nil, func() error { return cancelJob(uintptr(job)) })
}

//export ncgoJobClose
func ncgoJobClose(job C.uintptr_t) C.int32_t {
	return call(nil, func() error { return closeHandle(kindJob, uintptr(job)) })
}

// goTexts copies texts of C: those of the given lengths, or, without lengths, what
// stands before a NUL. There are at most most of them, of at most limit bytes together.
func goTexts(name string, list **C.char, lengths *C.size_t, count C.size_t, most, limit int) ([]string, error) {
	switch {
	case count == 0:
		return nil, nil
	case uint64(count) > uint64(most):
		return nil, invalid(fmt.Sprintf("%d %s, at most %d are accepted", uint64(count), name, most), "")
	case list == nil:
		return nil, invalid(name+" is NULL and its count is not 0", "")
	}
	out := make([]string, int(count))
	left := limit
	for i, p := range unsafe.Slice(list, int(count)) {
		size := C.size_t(0)
		if lengths != nil {
			size = unsafe.Slice(lengths, int(count))[i]
		} else if p != nil {
			size = C.strnlen(p, C.size_t(left)+1)
		}
		switch {
		case uint64(size) > uint64(left):
			return nil, invalid(fmt.Sprintf("%s have more than %d bytes", name, limit), "")
		case p == nil && (lengths == nil || size > 0):
			return nil, invalid(fmt.Sprintf("%s[%d] is NULL", name, i), "")
		case size > 0:
			out[i] = C.GoStringN(p, C.int(size))
		}
		left -= int(size)
	}
	return out, nil
}
