package capi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/architehc/nanochat/core/infer"
)

// maxRecords is how many records wait for a reader; what is older is dropped, and
// the reader told.
const maxRecords = 1 << 14

// record is a JSON object on its way to the reader.
type record struct {
	text []byte
	// newest records are replaced by one that comes before they were read.
	newest bool
	finish int32
}

// job is the value of a job's handle: work that goes on in the background and says
// how far it is.
type job struct {
	ctx context.Context
	// cancel ends the work, and the waiting of its reader, for the reason given.
	cancel context.CancelCauseFunc
	// patient jobs have a result even if they are cancelled, and their reader waits for it.
	patient bool
	done    chan struct{} // closed when the work has ended

	// reader is held by the call that reads.
	reader sync.Mutex
	kept   *record // one that did not fit the caller's buffer
	finish int32   // of the result, once it was read

	wake    chan struct{}
	mu      sync.Mutex
	queue   []record
	dropped int
	err     error // what the work ended with
	ended   bool
}

func newJob() *job {
	j := &job{done: make(chan struct{}), wake: make(chan struct{}, 1)}
	j.ctx, j.cancel = context.WithCancelCause(context.Background())
	return j
}

// finished and cancelled are how a result came about.
var (
	finished  = finishOf(infer.ReasonStop)
	cancelled = finishOf(infer.ReasonCancelled)
)

// start runs work in the background and gives its job a handle. What it returns
// without an error is the last record.
func start(name string, patient bool, work func(ctx context.Context, j *job) (result any, finish int32, err error)) uintptr {
	j := newJob()
	j.patient = patient
	logs.write(levelInfo, "job started", "job", name)
	go func() {
		defer close(j.done)
		defer func() {
			if r := recover(); r != nil {
				j.end(nil, 0, panicked(r))
			}
		}()
		result, finish, err := work(j.ctx, j)
		if cause := context.Cause(j.ctx); cause != nil && err != nil && !patient {
			err = cause
		}
		j.end(result, finish, err)
		if err != nil {
			logs.write(levelInfo, "job ended", "job", name, "error", oneLine(err.Error()))
			return
		}
		logs.write(levelInfo, "job ended", "job", name)
	}()
	return handles.add(kindJob, j, nil)
}

// end is the result of the work, or its error.
func (j *job) end(result any, finish int32, err error) {
	if err == nil {
		err = j.push(record{finish: finish}, result)
	}
	j.mu.Lock()
	j.ended, j.err = true, err
	j.mu.Unlock()
	j.signal()
}

// tell queues a record for people and programs.
func (j *job) tell(v any) { _ = j.push(record{}, v) } // what cannot be JSON is lost, and nothing else

// progress queues a record that stands for those before it.
func (j *job) progress(v any) { _ = j.push(record{newest: true}, v) }

// push encodes v on one line.
func (j *job) push(r record, v any) error {
	var err error
	if r.text, err = line(v); err == nil {
		j.add(r)
	}
	return err
}

// line is v as JSON on one line.
func line(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("capi: record: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func (j *job) add(r record) {
	j.mu.Lock()
	switch n := len(j.queue); {
	case n > 0 && r.newest && j.queue[n-1].newest:
		j.queue[n-1] = r
	case n >= maxRecords:
		// A quarter at once: moving the others costs little a record.
		drop := maxRecords / 4
		j.dropped += drop
		j.queue = append(j.queue[:0], j.queue[drop:]...)
		fallthrough
	default:
		j.queue = append(j.queue, r)
	}
	j.mu.Unlock()
	j.signal()
}

func (j *job) signal() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// take is the next record, or the error after the last.
func (j *job) take() (*record, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.dropped > 0 {
		r := &record{text: fmt.Appendf(nil, `{"type":"dropped","records":%d}`, j.dropped)}
		j.dropped = 0
		return r, nil
	}
	if len(j.queue) > 0 {
		r := j.queue[0]
		j.queue[0] = record{}
		j.queue = j.queue[1:]
		return &r, nil
	}
	if j.ended {
		return nil, j.err
	}
	return nil, nil
}

// next reads the next record and copies it to buffer.
func (j *job) next(timeout uint32, buffer []byte) (length int, finish int32, err error) {
	if !j.reader.TryLock() {
		return 0, 0, errBusy
	}
	defer j.reader.Unlock()
	if j.finish != 0 {
		return 0, j.finish, nil
	}
	if j.kept == nil {
		if j.kept, err = j.wait(timeout); err != nil {
			return 0, 0, err
		}
	}
	r := j.kept
	if len(r.text) > len(buffer) {
		return len(r.text), 0, tooSmall(len(buffer), len(r.text))
	}
	copy(buffer, r.text)
	j.kept, j.finish = nil, r.finish
	return len(r.text), r.finish, nil
}

// wait takes a record, or waits for one.
func (j *job) wait(timeout uint32) (*record, error) {
	over := j.ctx.Done()
	var late <-chan time.Time
	for {
		cause := context.Cause(j.ctx)
		if cause != nil && (!j.patient || cause == errClosed) {
			return nil, cause
		}
		if r, err := j.take(); r != nil || err != nil {
			return r, err
		}
		switch {
		case timeout == 0:
			return nil, errTimeout
		case timeout != forever && late == nil:
			t := time.NewTimer(time.Duration(timeout) * time.Millisecond)
			defer t.Stop()
			late = t.C
		case cause != nil:
			over = nil // it is over, and its result still to come
		}
		select {
		case <-j.wake:
		case <-over:
			if context.Cause(j.ctx) != errClosed {
				over = nil
			}
		case <-late:
			return nil, errTimeout
		}
	}
}

// stop ends the work and waits for it.
func (j *job) stop() {
	j.cancel(errClosed)
	j.signal()
	<-j.done
}

// useJob finds the job of a handle; the entry is to be released.
func useJob(h uintptr) (*entry, *job, error) {
	e, err := handles.use(kindJob, h)
	if err != nil {
		return nil, nil, err
	}
	return e, e.value.(*job), nil
}

// cancelJob is nanochat_job_cancel.
func cancelJob(h uintptr) error {
	e, j, err := useJob(h)
	if err != nil {
		return err
	}
	defer e.release()
	j.cancel(errCancelled)
	return nil
}
