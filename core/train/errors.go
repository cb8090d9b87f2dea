package train

import "errors"

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
