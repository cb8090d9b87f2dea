package capi

import (
	"sync"
)

// kind says what a handle stands for.
type kind uint8

const (
	kindModel kind = 1 + iota
	kindStream
	kindError
	kindSession
	kindJob
)

func (k kind) String() string {
	return [...]string{"", "model", "stream", "error", "session", "job"}[k]
}

// A handle is number<<4 | kind<<1 | 1 with numbers from 1, each given out once. It
// is odd, so that it can be no pointer to an object.
const (
	kindShift   = 1
	kindMask    = 7
	numberShift = 4
)

// entry is a value with the number of its users: the table while its handle is
// open, other entries, and calls in progress.
type entry struct {
	value any
	// free is called once, when the last user has gone.
	free  func()
	table *table
	users int // guarded by table.mu
}

// table maps handles to values. The zero value is empty.
type table struct {
	mu   sync.Mutex
	next uintptr // number of the last handle
	open map[uintptr]*entry
}

// add gives value a handle. free may be nil.
func (t *table) add(k kind, value any, free func()) uintptr {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[uintptr]*entry{}
	}
	t.next++
	h := t.next<<numberShift | uintptr(k)<<kindShift | 1
	t.open[h] = &entry{value: value, free: free, table: t, users: 1}
	return h
}

// use finds the value of a handle and keeps it until release.
func (t *table) use(k kind, h uintptr) (*entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, err := t.find(k, h)
	if err != nil {
		return nil, err
	}
	e.users++
	return e, nil
}

// remove ends a handle. The caller is a user of the entry in place of the table
// and has to release it.
func (t *table) remove(k kind, h uintptr) (*entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, err := t.find(k, h)
	if err != nil {
		return nil, err
	}
	delete(t.open, h)
	return e, nil
}

func (t *table) find(k kind, h uintptr) (*entry, error) {
	number, other := h>>numberShift, kind(h>>kindShift&kindMask)
	switch {
	case h == 0:
		return nil, invalid("the "+k.String()+" is NULL", "")
	case h&1 == 0 || number == 0 || number > t.next || other < kindModel || other > kindJob:
		return nil, invalid("the "+k.String()+" is no handle of this library", "pass what the open function has returned, unchanged")
	case other != k:
		return nil, invalid("the handle is a "+other.String()+", not a "+k.String(), "")
	}
	e := t.open[h]
	if e == nil {
		return nil, &failure{status: statusClosed, message: "the " + k.String() + " was closed already"}
	}
	return e, nil
}

// len is the number of open handles.
func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open)
}

// retain makes the caller, who is a user, responsible for one more.
func (e *entry) retain() *entry {
	e.table.mu.Lock()
	defer e.table.mu.Unlock()
	e.users++
	return e
}

// release ends one use.
func (e *entry) release() {
	e.table.mu.Lock()
	e.users--
	last := e.users == 0
	e.table.mu.Unlock()
	if last && e.free != nil {
		e.free()
	}
}
