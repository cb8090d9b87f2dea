package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/core/train"
	"github.com/architehc/nanochat/core/zoo"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/dl"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNoModel     = 3
	exitFormat      = 4
	exitNetwork     = 5
	exitDiverged    = 6
	exitDevice      = 7
	exitInterrupted = 130
)

// usageError is a command line that cannot be carried out as written.
type usageError struct{ what, hint string }

func (e *usageError) Error() string { return e.what }

// modelError is a model that cannot be opened at all.
type modelError struct {
	path string
	err  error
	hint string
}

func (e *modelError) Error() string { return fmt.Sprintf("model %s: %s", e.path, reason(e.err)) }
func (e *modelError) Unwrap() error { return e.err }

// hinted adds a hint to an error of a library that has none.
type hinted struct {
	err  error
	hint string
}

func (e *hinted) Error() string { return e.err.Error() }
func (e *hinted) Unwrap() error { return e.err }

// reason is err without the operation and path that a *fs.PathError repeats.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// fail reports err on stderr, one line and a hint, and returns its exit code.
func (a *app) fail(err error, verbose bool) int {
	if err == nil {
		return exitOK
	}
	code, hint := classify(err)
	text := err.Error()
	// The hint goes on its own line.
	if c, ok := errors.AsType[*config.Error](err); ok {
		bare := *c
		bare.Hint = ""
		text = bare.Error()
	}
	if t, ok := errors.AsType[*tokenizer.Error](err); ok {
		bare := *t
		bare.Hint = ""
		text = bare.Error()
	}
	if d, ok := errors.AsType[*data.Error](err); ok {
		bare := *d
		bare.Hint = ""
		text = bare.Error()
	}
	if z, ok := errors.AsType[*zoo.Error](err); ok && z.Model != "" {
		text = "model " + strings.TrimPrefix(z.Error(), "zoo: ")
	}
	if code == exitInterrupted {
		return code
	}
	red, bold, off := "", "", ""
	if a.colour {
		red, bold, off = "\x1b[31m", "\x1b[1m", "\x1b[0m"
	}
	fmt.Fprintf(a.stderr, "%serror:%s %s\n", red, off, oneLine(text))
	if hint != "" {
		fmt.Fprintf(a.stderr, "%shint:%s %s\n", bold, off, oneLine(hint))
	}
	if verbose {
		a.causes(err)
	}
	return code
}

// causes lists err and everything it wraps, one a line.
func (a *app) causes(err error) {
	switch e := err.(type) {
	case nil:
	case interface{ Unwrap() []error }:
		for _, sub := range e.Unwrap() {
			a.causes(sub)
		}
	default:
		fmt.Fprintf(a.stderr, "cause: %T: %s\n", err, oneLine(err.Error()))
		a.causes(errors.Unwrap(err))
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// classify gives the exit code of an error and what to do about it.
func classify(err error) (code int, hint string) {
	var (
		usage  *usageError
		model  *modelError
		named  *zoo.Error
		conf   *config.Error
		format *gguf.FormatError
		vocab  *tokenizer.Error
		input  *data.Error
		saved  *checkpoint.Error
		parts  *checkpoint.MissingError
		with   *hinted
	)
	if errors.As(err, &with) {
		hint = with.hint
	}
	if d, ok := errors.AsType[*train.DeviceError](err); ok {
		return exitDevice, d.Hint
	}
	if d, ok := errors.AsType[*dl.Error](err); ok {
		return exitFailure, d.Hint
	}
	if g, ok := errors.AsType[*cuda.Error](err); ok {
		return exitFailure, g.Hint
	}
	if fault, ok := errors.AsType[*train.Error](err); ok && hint == "" {
		hint = fault.Hint
	}
	if _, ok := errors.AsType[*cuda.MemoryError](err); ok && hint == "" {
		return exitFailure, "close what else uses the GPU, take a smaller --context, --kv int8, or --device cpu"
	}
	if many, ok := errors.AsType[*failures](err); ok {
		code, _ = classify(many.first)
		return code, ""
	}
	switch {
	case errors.Is(err, context.Canceled):
		return exitInterrupted, ""
	case errors.Is(err, train.ErrDiverged):
		return exitDiverged, hint
	case errors.As(err, &usage):
		return exitUsage, usage.hint
	case errors.As(err, &conf):
		return exitUsage, conf.Hint
	case errors.As(err, &named):
		return zooCode(named), named.Hint
	case errors.As(err, &model):
		return exitNoModel, model.hint
	case errors.As(err, &format):
		if hint == "" {
			hint = "the file is damaged or not a model that nanochat reads; fetch or make it again"
		}
		return exitFormat, hint
	case errors.As(err, &vocab):
		if hint = vocab.Hint; hint == "" {
			hint = "the vocabulary is not one that nanochat reads; convert the model again with its tokenizer"
		}
		return exitFormat, hint
	case errors.As(err, &parts):
		return exitFormat, "write them again: nanochat checkpoint split makes those that are missing or damaged"
	case errors.Is(err, checkpoint.ErrNone):
		return exitFailure, "name the directory of a run, or a checkpoint in it"
	case errors.As(err, &saved) && !errors.Is(err, syscall.ENOSPC):
		if hint == "" {
			hint = "resume from another checkpoint with --resume PATH, or start anew with --resume none --out DIR"
		}
		return exitFormat, hint
	case errors.As(err, &input) && !errors.Is(err, syscall.ENOSPC):
		return dataCode(input), input.Hint
	case errors.Is(err, syscall.ENOSPC) && hint == "":
		return exitFailure, "free some space, or write to another disk"
	case (errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)) && hint == "":
		return exitFailure, "choose a place you may write to, or change its permissions"
	case errors.Is(err, fs.ErrNotExist) && hint == "":
		return exitFailure, "create the directory first, or choose another path"
	}
	return exitFailure, hint
}

// zooCode tells models that do not exist from those that do not come through.
func zooCode(e *zoo.Error) int {
	switch e.Kind {
	case zoo.ErrName, zoo.ErrNotFound, zoo.ErrPlanned:
		return exitNoModel
	case zoo.ErrChecksum, zoo.ErrNoHash:
		return exitFormat
	case zoo.ErrOffline, zoo.ErrNetwork, zoo.ErrDenied:
		return exitNetwork
	case zoo.ErrSetting:
		return exitUsage
	}
	return exitFailure
}

// dataCode tells options that make no sense and files that cannot be read from
// files that are damaged.
func dataCode(e *data.Error) int {
	var p *fs.PathError
	switch {
	case e.Path == data.OptionsPath:
		return exitUsage
	case e.Err == nil || errors.As(e.Err, &p):
		return exitFailure
	}
	return exitFormat
}
