package train

import (
	"errors"
	"fmt"

	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/collective"
	"github.com/architehc/nanochat/kernels/cuda"
)

// ErrDiverged is what Run returns, wrapped, when it stopped because too many steps
// in a row went wrong.
var ErrDiverged = errors.New("the training diverged")

// Error is a configuration, directory or checkpoint that a training cannot start
// from or go on with.
type Error struct {
	// What is the fault and Hint what to do about it; Hint may be empty.
	What, Hint string
	// Err is the cause, if there is one.
	Err error
}

// Error returns "train: WHAT: CAUSE".
func (e *Error) Error() string {
	s := "train: " + e.What
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// DeviceError is a GPU that failed in the middle of a run, or had no room for what came.
// What was learned since the newest checkpoint is lost; the checkpoint is good.
type DeviceError struct {
	// Step is the number of steps that were taken.
	Step int
	// Checkpoint is the newest good one, "" if there is none yet.
	Checkpoint string
	// Err is the failure and Hint what to do about it.
	Err  error
	Hint string
}

// Error says what failed, when, and from where the run goes on.
func (e *DeviceError) Error() string {
	s := fmt.Sprintf("train: the GPU failed after step %d: %v", e.Step, e.Err)
	if e.Checkpoint == "" {
		return s + "; there is no checkpoint yet"
	}
	return s + "; the newest checkpoint is " + e.Checkpoint
}

func (e *DeviceError) Unwrap() error { return e.Err }

// deviceFailed makes a *DeviceError of an error that comes from a device, with the newest
// checkpoint that is good.
func (r *run) deviceFailed(err error) error {
	e := &DeviceError{Step: r.meta.Step, Err: err}
	var failed *cuda.Error
	var full *cuda.MemoryError
	var others *collective.Error
	switch {
	case errors.As(err, &full):
		e.Hint = "close what else uses the GPU, lower train.micro_rows or set train.recompute = true; the same command then goes on"
	case errors.As(err, &failed), errors.As(err, &others):
		e.Hint = "the same command goes on from the newest checkpoint; if it fails again, see nvidia-smi and the messages of the kernel (Xid), or use --device cpu"
	default:
		return err
	}
	if path, _, e2 := checkpoint.Latest(r.fs, r.checkpoints()); e2 == nil {
		e.Checkpoint = path
	}
	return e
}
