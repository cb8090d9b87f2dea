package gopurego

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"runtime"
	"unsafe"
)

// Set changes a setting of the library, as nanochat_set.
func (l *Library) Set(key, value string) error {
	var pins runtime.Pinner
	defer pins.Unpin()
	var err uintptr
	status := l.c.set(key, unsafe.Pointer(text(&pins, value)), &err)
	return l.check(status, err)
}

// Unset takes a setting back: that of the environment counts again.
func (l *Library) Unset(key string) error {
	var err uintptr
	status := l.c.set(key, nil, &err)
	return l.check(status, err)
}

// Get is the value of a setting that counts.
func (l *Library) Get(key string) (string, error) {
	b, err := read[byte](l, func(p unsafe.Pointer, n uint64, length *uint64, err *uintptr) Status {
		return l.c.get(key, p, n, length, err)
	})
	return string(b), err
}

// Models is a JSON object about the models that have names, as nanochat_zoo_list.
func (l *Library) Models() (json.RawMessage, error) {
	return read[byte](l, func(p unsafe.Pointer, n uint64, length *uint64, err *uintptr) Status {
		return l.c.zooList(0, p, n, length, err)
	})
}

// Find is a JSON object about the file of a model on this machine, as
// nanochat_zoo_resolve.
func (l *Library) Find(name string) (json.RawMessage, error) {
	return read[byte](l, func(p unsafe.Pointer, n uint64, length *uint64, err *uintptr) Status {
		return l.c.zooResolve(name, 0, p, n, length, err)
	})
}

// Remove deletes a downloaded model and returns the bytes that were freed.
func (l *Library) Remove(name string) (uint64, error) {
	var freed uint64
	var err uintptr
	status := l.c.zooRemove(name, 0, &freed, &err)
	return freed, l.check(status, err)
}

// Job is work in the background that says how far it is. It is for one goroutine;
// Cancel and Close may be called from any.
type Job struct {
	l      *Library
	h      uintptr
	buffer []byte
	over   bool
}

func (l *Library) job(open func(job, err *uintptr) Status) (*Job, error) {
	j := &Job{l: l, buffer: make([]byte, 4096)}
	var err uintptr
	if e := l.check(open(&j.h, &err), err); e != nil {
		return nil, e
	}
	return j, nil
}

// Download starts to download a model, as nanochat_download_open.
func (l *Library) Download(name string) (*Job, error) {
	return l.job(func(job, err *uintptr) Status { return l.c.downloadOpen(name, 0, job, err) })
}

// Verify starts to check the file of a model, as nanochat_verify_open.
func (l *Library) Verify(name string) (*Job, error) {
	return l.job(func(job, err *uintptr) Status { return l.c.verifyOpen(name, 0, job, err) })
}

// Train starts a training, as nanochat_train_open; resume is auto, none or a path.
func (l *Library) Train(config, resume string, overrides ...string) (*Job, error) {
	var pins runtime.Pinner
	defer pins.Unpin()
	list := make([]*byte, len(overrides)+1)
	for i, s := range overrides {
		list[i] = text(&pins, s)
	}
	pins.Pin(&list[0])
	return l.job(func(job, err *uintptr) Status {
		return l.c.trainOpen(config, &list[0], uint64(len(overrides)), resume, job, err)
	})
}

// Log starts to collect what the library does, as nanochat_log_open; level is debug,
// info, warn or error.
func (l *Library) Log(level string) (*Job, error) {
	return l.job(func(job, err *uintptr) Status { return l.c.logOpen(level, job, err) })
}

// Next waits for the next record, a JSON object. The last one is the result; after it
// Next returns io.EOF. If ctx is done first it returns ctx.Err(); the job goes on and Next
// may be called again.
func (j *Job) Next(ctx context.Context) (json.RawMessage, error) {
	for !j.over {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var length uint64
		var finish int32
		var e uintptr
		status := j.l.c.jobNext(j.h, slice, unsafe.Pointer(unsafe.SliceData(j.buffer)), uint64(len(j.buffer)), &length, &finish, &e)
		err := j.l.check(status, e)
		switch {
		case status == timeout:
		case status == bufferTooSmall:
			j.buffer = make([]byte, length)
		case err != nil:
			return nil, err
		default:
			j.over = finish != 0
			if length > 0 {
				return append(json.RawMessage{}, j.buffer[:length]...), nil
			}
		}
	}
	return nil, io.EOF
}

// All gives the records that are left. An error is the last thing it gives.
func (j *Job) All(ctx context.Context) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		for {
			r, err := j.Next(ctx)
			if errors.Is(err, io.EOF) || !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// Cancel ends the job and returns at once: a training saves a checkpoint and has a
// result, for others Next fails with Cancelled.
func (j *Job) Cancel() error { return j.l.check(j.l.c.jobCancel(j.h), 0) }

// Close ends the job and waits for its end.
func (j *Job) Close() error { return j.l.check(j.l.c.jobClose(j.h), 0) }
