// Package readme runs the examples of README.md; its tests are the only users of
// it.
//
// A fenced block is run if the line before it is a comment that says so, which
// nobody sees on the rendered page:
//
//	<!-- run -->                            has to succeed
//	<!-- run; prints: fn main.*\{ -->       and its standard output to match
//	<!-- run; file: hello.c -->             is not run but saved, for the blocks after it
//	<!-- run; until: listening on -->       goes on in the background: the next block waits for this output
//	<!-- not run: it takes an hour -->      says why not; Python and C need the one or the other
//
// Expressions are of Go's package regexp; "." matches line breaks too, and \x3b
// stands for the semicolon. Python blocks are cells of a notebook, run after the
// other blocks of their section: each sees what those before it made, and prints
// includes what a notebook shows, as text and as HTML. sh blocks are run by bash -eu.
//
// The blocks of a section (## or ###) run in order, in one directory that looks like
// the repository after make build, with the program and the Python package at hand.
// Where a section has a block in the background, every 127.0.0.1:PORT and
// localhost:PORT in it becomes a free port, the default of nanochat serve too; the
// background ends, by SIGINT, with the section.
package readme

import (
	"fmt"
	"regexp"
	"strings"
)

// A Block is one fenced block of the file.
type Block struct {
	// Section is the heading above it, Line the number of its first line.
	Section string
	Line    int
	// Language is what stands behind the fence.
	Language, Text string
	// Run says that it is run, or saved as File; Why is the reason why it is not.
	Run       bool
	File, Why string
	// Prints is what its output matches; Until is output of a block in the
	// background.
	Prints, Until *regexp.Regexp
}

var marker = regexp.MustCompile(`^<!--\s*(run|not run)\b(.*?)\s*-->$`)

// Parse finds the blocks of a Markdown file.
func Parse(markdown string) ([]Block, error) {
	var blocks []Block
	var section, comment string // comment: a marker on the line before
	var open *Block
	for i, line := range strings.Split(markdown, "\n") {
		switch {
		case open != nil && line == "```":
			blocks, open = append(blocks, *open), nil
		case open != nil:
			open.Text += line + "\n"
		case strings.HasPrefix(line, "```"):
			open = &Block{Section: section, Line: i + 2, Language: strings.TrimPrefix(line, "```")}
			if err := open.mark(comment); err != nil {
				return nil, fmt.Errorf("line %d: %w", i, err)
			}
			comment = ""
		case comment != "":
			return nil, fmt.Errorf("line %d: no block follows %q", i+1, comment)
		case marker.MatchString(line):
			comment = line
		case strings.HasPrefix(line, "## "), strings.HasPrefix(line, "### "):
			section = strings.TrimLeft(line, "# ")
		}
	}
	if open != nil {
		return nil, fmt.Errorf("line %d: the block is not closed", open.Line)
	}
	return blocks, nil
}

// mark reads the marker before a block.
func (b *Block) mark(comment string) error {
	if comment == "" {
		return nil
	}
	m := marker.FindStringSubmatch(comment)
	if m[1] == "not run" {
		if b.Why = strings.TrimSpace(strings.TrimPrefix(m[2], ":")); b.Why == "" {
			return fmt.Errorf("%q gives no reason", comment)
		}
		return nil
	}
	b.Run = true
	for option := range strings.SplitSeq(strings.TrimPrefix(m[2], ";"), ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(option), ":")
		value = strings.TrimSpace(value)
		var err error
		switch name {
		case "":
		case "file":
			b.File = value
		case "prints":
			b.Prints, err = regexp.Compile("(?s)" + value)
		case "until":
			b.Until, err = regexp.Compile("(?s)" + value)
		default:
			err = fmt.Errorf("unknown option %q", name)
		}
		if err != nil || name != "" && value == "" {
			return fmt.Errorf("%q: %v", comment, err)
		}
	}
	return nil
}
