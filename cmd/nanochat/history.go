package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// historyLines is how many lines the history file keeps.
const historyLines = 1000

// history is what was typed, for the arrow keys, and kept in a file that only
// this user can read. It implements the History of golang.org/x/term.
type history struct {
	path  string   // empty: not kept
	lines []string // oldest first
}

// historyPath is where the XDG base directories say that the history belongs.
func historyPath() string {
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "nanochat", "history")
}

// readHistory reads the file at path, if there is one, and shortens it when it has
// become twice as long as it should be.
func readHistory(path string) (*history, error) {
	h := &history{path: path}
	if path == "" {
		return h, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return h, os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err != nil {
		return h, err
	}
	for line := range bytes.Lines(b) {
		h.remember(string(bytes.TrimSuffix(line, []byte("\n"))))
	}
	if bytes.Count(b, []byte("\n")) <= 2*historyLines {
		return h, nil
	}
	// Several programs may write to it: the new file is complete before it is there.
	f, err := os.CreateTemp(filepath.Dir(path), "history-*")
	if err != nil {
		return h, err
	}
	_, err = f.WriteString(strings.Join(h.lines, "\n") + "\n")
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return h, err
}

func (h *history) remember(line string) bool {
	if strings.TrimSpace(line) == "" || len(h.lines) > 0 && h.lines[len(h.lines)-1] == line {
		return false
	}
	h.lines = append(h.lines, line)
	if over := len(h.lines) - historyLines; over > 0 {
		h.lines = h.lines[over:]
	}
	return true
}

// Add takes a line that was typed. Names of pasted texts mean nothing to the next
// program, so lines with one are not kept.
func (h *history) Add(line string) {
	if !h.remember(line) || h.path == "" || strings.Contains(line, "[paste ") {
		return
	}
	f, err := os.OpenFile(h.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		_, err = f.WriteString(line + "\n") // one write: other programs' lines stay whole
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		h.path = "" // the history of this run goes on without the file
	}
}

// Len is the number of lines.
func (h *history) Len() int { return len(h.lines) }

// At is a line, the newest at 0.
func (h *history) At(i int) string { return h.lines[len(h.lines)-1-i] }
