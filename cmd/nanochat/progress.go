package main

import (
	"fmt"
	"time"
)

// progress is a line on a terminal that is rewritten; elsewhere it is silent.
type progress struct {
	a     *app
	what  string
	last  time.Time
	shown bool
}

func (a *app) progress(what string) *progress { return &progress{a: a, what: what, last: time.Now()} }

// update shows done of total bytes, at most ten times a second and not in the
// first tenth.
func (p *progress) update(done, total int64) {
	if !p.a.stderrTTY || total <= 0 || time.Since(p.last) < 100*time.Millisecond {
		return
	}
	p.last, p.shown = time.Now(), true
	fmt.Fprintf(p.a.stderr, "\r%s %3d %% of %s ", p.what, 100*done/total, bytesText(total))
}

// done removes the line.
func (p *progress) done() {
	if p.shown {
		fmt.Fprint(p.a.stderr, "\r\x1b[K")
	}
}

// note shows on a terminal what is being done; the next note replaces it.
func (a *app) note(what string) {
	if a.stderrTTY {
		fmt.Fprintf(a.stderr, "\r\x1b[K%s", what)
	}
}

// noteDone removes the note.
func (a *app) noteDone() {
	if a.stderrTTY {
		fmt.Fprint(a.stderr, "\r\x1b[K")
	}
}
