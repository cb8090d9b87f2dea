package main

import (
	"fmt"
	"time"

	"github.com/architehc/nanochat/kernels/team"
)

// counter is a line on a terminal for work whose end is not known; elsewhere it is
// silent.
type counter struct {
	a     *app
	last  time.Time
	shown bool
}

func (a *app) counter() *counter { return &counter{a: a, last: time.Now()} }

// show replaces the line, at most ten times a second and not in the first tenth.
func (c *counter) show(format string, args ...any) {
	if !c.a.stderrTTY || time.Since(c.last) < 100*time.Millisecond {
		return
	}
	c.last, c.shown = time.Now(), true
	fmt.Fprintf(c.a.stderr, "\r\x1b[K"+format, args...)
}

// done removes the line.
func (c *counter) done() {
	if c.shown {
		fmt.Fprint(c.a.stderr, "\r\x1b[K")
	}
}

// workers is the number of threads for work whose result does not depend on it; 0
// is all cores this process may use.
func workers(flag int) (int, error) {
	if flag < 0 || flag > team.MaxSize {
		return 0, &usageError{fmt.Sprintf("--threads %d is outside 1 to %d", flag, team.MaxSize), "leave it out to use every core this process may use"}
	}
	if flag == 0 {
		return team.DefaultSize(), nil
	}
	return flag, nil
}
