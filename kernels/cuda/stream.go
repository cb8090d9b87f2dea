package cuda

import (
	"runtime"
	"unsafe"
)

// This file is about what goes on beside the computation: copies on a stream of their own, and events.

// Event marks a place in the stream.
type Event struct {
	handle handle
	timed  bool
}

// event is one that was released, or a new one.
func (t *Thread) event(timed bool) (*Event, error) {
	list, flags := &t.marks, uint32(2) // CU_EVENT_DISABLE_TIMING
	if timed {
		list, flags = &t.timers, 0
	}
	if n := len(*list); n > 0 {
		e := (*list)[n-1]
		*list = (*list)[:n-1]
		return e, nil
	}
	e := &Event{timed: timed}
	return e, t.check("cuEventCreate", t.api.EventCreate(&e.handle, flags))
}

// Release lets events be used again; nil does nothing. They must not be used by their old name.
func (t *Thread) Release(events ...*Event) {
	for _, e := range events {
		if e == nil || e.handle == 0 {
			continue
		}
		again := &Event{e.handle, e.timed}
		e.handle = 0
		if again.timed {
			t.timers = append(t.timers, again)
		} else {
			t.marks = append(t.marks, again)
		}
	}
}

// Record marks the place that the stream has reached, and its time.
func (t *Thread) Record() (*Event, error) {
	e, err := t.event(true)
	if err == nil {
		err = t.check("cuEventRecord", t.api.EventRecord(e.handle, t.stream))
	}
	return e, err
}

// Elapsed waits for the later event and returns the seconds between them. They can be used
// with others then.
func (t *Thread) Elapsed(from, to *Event) (float64, error) {
	var ms float32
	err := t.check("cuEventSynchronize", t.api.EventSync(to.handle))
	if err == nil {
		err = t.check("cuEventElapsedTime", t.api.EventElapsed(&ms, from.handle, to.handle))
	}
	return float64(ms) / 1e3, err
}

// Between is Elapsed and Release.
func (t *Thread) Between(from, to *Event) (float64, error) {
	s, err := t.Elapsed(from, to)
	t.Release(from, to)
	return s, err
}

// DownloadAsync queues a copy to memory of Pinned, which is there after Wait.
func DownloadAsync[T Element](t *Thread, dst []T, src Ptr) error {
	if len(dst) == 0 {
		return nil
	}
	bytes := uint64(len(dst)) * uint64(unsafe.Sizeof(dst[0]))
	return t.check("cuMemcpyDtoHAsync", t.api.CopyToHost(unsafe.Pointer(unsafe.SliceData(dst)), src, bytes, t.stream))
}

// Prefetch copies memory of Pinned to dst beside what the stream does: it waits for nothing
// but earlier prefetches and HoldPrefetch. src must stay as it is until SyncPrefetch, and nothing
// may use dst until AwaitPrefetch.
func Prefetch[T Element](t *Thread, dst Ptr, src []T) error {
	if len(src) == 0 {
		return nil
	}
	if err := t.copying(); err != nil {
		return err
	}
	bytes := uint64(len(src)) * uint64(unsafe.Sizeof(src[0]))
	err := t.check("cuMemcpyHtoDAsync", t.api.CopyToDevice(dst, unsafe.Pointer(unsafe.SliceData(src)), bytes, t.copies))
	runtime.KeepAlive(src)
	return err
}

// copying makes the stream of Prefetch.
func (t *Thread) copying() error {
	if t.copies != 0 {
		return nil
	}
	return t.check("cuStreamCreate", t.api.StreamCreate(&t.copies, 1))
}

// HoldPrefetch lets prefetches from now on wait for what has been queued on the stream so far: for the
// last use of what they overwrite.
func (t *Thread) HoldPrefetch() error {
	if err := t.copying(); err != nil {
		return err
	}
	return t.order(t.stream, t.copies)
}

// AwaitPrefetch lets what is queued from now on wait for the prefetches so far. The host does not wait.
// It cannot be part of a graph.
func (t *Thread) AwaitPrefetch() error {
	if t.copies == 0 {
		return nil
	}
	return t.order(t.copies, t.stream)
}

// order lets a stream wait for what has been queued on another. The event can be used again at
// once: the wait is for its state of now.
func (t *Thread) order(before, after handle) error {
	e, err := t.event(false)
	if err == nil {
		err = t.check("cuEventRecord", t.api.EventRecord(e.handle, before))
	}
	if err == nil {
		err = t.check("cuStreamWaitEvent", t.api.StreamWait(after, e.handle, 0))
	}
	t.Release(e)
	return err
}

// SyncPrefetch waits until the prefetches are done: the host's memory can be written again.
func (t *Thread) SyncPrefetch() error {
	if t.copies == 0 {
		return nil
	}
	return t.check("cuStreamSynchronize", t.api.StreamSync(t.copies))
}
