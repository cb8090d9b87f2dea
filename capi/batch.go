package capi

import (
	"context"
	"sync/atomic"
	"time"
)

// maxStreams bounds the streams of one call.
const maxStreams = 1 << 12

// openStreams opens a stream for every prompt, or none.
func openStreams(model uintptr, prompts []string, o generateOptions) ([]uintptr, error) {
	out := make([]uintptr, 0, len(prompts))
	for _, p := range prompts {
		h, err := openStream(model, p, o)
		if err != nil {
			for _, h := range out {
				_ = closeHandle(kindStream, h) // nobody else knows it
			}
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

// turn is where waitStreams begins to look, so that none of many is always last.
var turn atomic.Uint64

// waitStreams waits until one of the streams has something to read, and returns its
// index: len(hs) where the end of all was read. 0 is no stream.
func waitStreams(hs []uintptr, timeout uint32) (int, error) {
	streams := make([]*stream, len(hs))
	some := false
	for i, h := range hs {
		if h == 0 {
			continue
		}
		e, s, err := useStream(h)
		if err != nil {
			return 0, err
		}
		defer e.release()
		if !s.reader.TryLock() {
			return 0, errBusy
		}
		defer s.reader.Unlock()
		streams[i], some = s, true
	}
	if !some {
		return 0, invalid("there is no stream to wait for", "every handle is NULL")
	}
	var pending []int
	first := int(turn.Add(1) % uint64(len(hs)))
	for i := range hs {
		i = (i + first) % len(hs)
		s := streams[i]
		switch {
		case s == nil || s.over.Load():
		case s.ready(over):
			return i, nil
		default:
			pending = append(pending, i)
		}
	}
	switch {
	case len(pending) == 0:
		return len(hs), nil
	case timeout == 0:
		return 0, errTimeout
	}
	ctx, stop := context.WithCancel(context.Background())
	if timeout != forever {
		ctx, stop = context.WithTimeout(ctx, time.Duration(timeout)*time.Millisecond)
	}
	defer stop()
	found := make(chan int, len(pending))
	for _, i := range pending {
		go func() {
			n := -1
			defer func() {
				if r := recover(); r != nil { // the reader of this stream is told
					streams[i].err, n = panicked(r), i
				}
				found <- n
			}()
			if streams[i].ready(ctx) {
				n = i
			}
		}()
	}
	best := -1
	for range pending {
		if i := <-found; i >= 0 && best < 0 {
			best = i
			stop() // what others have read meanwhile they keep
		}
	}
	if best < 0 {
		return 0, errTimeout
	}
	return best, nil
}

// ready waits until next would not wait, or ctx is over. The caller holds s.reader.
func (s *stream) ready(ctx context.Context) bool {
	if s.kept != nil || s.err != nil || s.ctx.Err() != nil {
		return true
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(s.ctx, stop)()
	return s.read(ctx) != errTimeout
}
