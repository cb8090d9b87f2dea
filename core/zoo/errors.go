package zoo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"syscall"
)

// Kind is what went wrong, for errors.Is.
type Kind string

// The kinds of errors.
const (
	// ErrName is text that cannot be the name of a model.
	ErrName Kind = "not the name of a model"
	// ErrNotFound is a model that is in no place that was searched.
	ErrNotFound Kind = "model not found"
	// ErrPlanned is a model that is announced and not published yet.
	ErrPlanned Kind = "model not published yet"
	// ErrOffline is a model that only the network has, while the network is switched off.
	ErrOffline Kind = "offline"
	// ErrNetwork is a server that cannot be reached or does not answer as it should.
	ErrNetwork Kind = "network failure"
	// ErrDenied is a server that wants a token, or another one.
	ErrDenied Kind = "access denied"
	// ErrChecksum is contents that are not the ones that were promised.
	ErrChecksum Kind = "checksum mismatch"
	// ErrNoHash is a file for which nobody gives a SHA-256.
	ErrNoHash Kind = "no SHA-256 known"
	// ErrCache is a cache that cannot be read or written.
	ErrCache Kind = "cache failure"
	// ErrBusy is a model that another process is downloading.
	ErrBusy Kind = "model in use"
	// ErrSetting is an option, environment variable or index that makes no sense.
	ErrSetting Kind = "wrong setting"
)

// Error returns the kind in words.
func (k Kind) Error() string { return string(k) }

// Error is a model that cannot be had, with the reason.
type Error struct {
	// Kind is what errors.Is finds.
	Kind Kind
	// Model is what was asked for; it may be empty.
	Model string
	// What is the fault and Hint what to do about it; Hint may be empty.
	What, Hint string
	// Err is the cause, if there is one.
	Err error
}

// Error returns "zoo: MODEL: WHAT: CAUSE".
func (e *Error) Error() string {
	s := "zoo: "
	if e.Model != "" {
		s += e.Model + ": "
	}
	s += e.What
	if e.Err != nil {
		s += ": " + reason(e.Err)
	}
	return s
}

// Unwrap gives the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// reason is err without the operation and path that a *fs.PathError repeats.
func reason(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err.Error()
	}
	return err.Error()
}

// cacheError is a failing operation in the cache.
func cacheError(model, what, path string, err error) error {
	e := &Error{Kind: ErrCache, Model: model, What: what + " " + path, Err: err}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Hint = "free some space, or set NANOCHAT_CACHE to a directory on another disk; what was downloaded is kept"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		e.Hint = "set NANOCHAT_CACHE to a directory you may write to"
	}
	return e
}

// networkError is a request that failed. The text of an error of net/http holds the
// address, whose query may be a signature: only the cause is kept.
func networkError(model, where string, err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return &Error{Kind: ErrNetwork, Model: model, What: where, Err: err,
		Hint: "check the connection and the proxy, and run it again: it goes on where it stopped"}
}

// stopped is the error of a caller who gave up.
func stopped(ctx context.Context, model string) error {
	return fmt.Errorf("zoo: %s: %w", model, ctx.Err())
}

// plainURL is an address without user, password and query, which may be secret.
func plainURL(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
