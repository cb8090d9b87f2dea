package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"
)

// errInterrupt is Ctrl-C while a line is being typed.
var errInterrupt = errors.New("interrupted")

// Keys and marks that the console itself understands; golang.org/x/term does the rest.
const (
	ctrlC      = 3
	ctrlZ      = 26
	pasteBegin = "\x1b[200~"
	pasteEnd   = "\x1b[201~"
	pasteOn    = "\x1b[?2004h"
	pasteOff   = "\x1b[?2004l"
	// lineLimit is how many characters golang.org/x/term lets one type into a line;
	// it ignores what comes after them.
	lineLimit = 4096
	// pasteShort is how long a pasted text of one line is put into the line itself.
	pasteShort = 200
)

// console is a terminal in raw mode, from open to close: lines are edited on it
// and keys are read while an answer runs.
type console struct {
	in  *os.File
	out io.Writer // the screen

	mu    sync.Mutex // of raw and line, which signals change too
	raw   *term.State
	line  *term.Terminal
	stops []chan os.Signal

	chunks  chan []byte // what is typed, as it comes; closed when the terminal is gone
	gone    bool
	typed   []byte // read from chunks, not looked at yet
	ready   []byte // for the line editor
	pasting []byte // what came of a paste that has not ended
	inPaste bool
	pastes  []string // texts that stand in lines as marks

	history *history
	// interrupts counts Ctrl-C without anything else in between.
	interrupts int
}

// openConsole puts the terminal of in into raw mode.
func openConsole(in *os.File, out io.Writer, h *history) (*console, error) {
	c := &console{in: in, out: out, history: h, chunks: make(chan []byte)}
	if err := c.enter(); err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	c.fresh()
	io.WriteString(c.out, pasteOn)
	go c.pump()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	c.stops = append(c.stops, resized)
	go func() {
		for range resized {
			c.mu.Lock()
			c.fit()
			c.mu.Unlock()
		}
	}()
	return c, nil
}

func (c *console) enter() (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.raw == nil {
		c.raw, err = term.MakeRaw(int(c.in.Fd()))
	}
	return err
}

// close gives the terminal back as it was. It may be called from any goroutine, twice.
func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.stops {
		signal.Stop(s)
	}
	c.leave()
}

// leave ends raw mode; c.mu is held.
func (c *console) leave() {
	if c.raw != nil {
		io.WriteString(c.out, pasteOff)
		term.Restore(int(c.in.Fd()), c.raw)
		c.raw = nil
	}
}

// suspend stops the program as Ctrl-Z does, and goes on when the shell says so.
func (c *console) suspend() {
	c.mu.Lock()
	c.leave()
	c.mu.Unlock()
	// The signal stops this goroutine some time after Kill; without a shell that could
	// let it go on, the system ignores it.
	goes := make(chan os.Signal, 1)
	signal.Notify(goes, syscall.SIGCONT)
	syscall.Kill(0, syscall.SIGTSTP)
	select {
	case <-goes:
	case <-time.After(300 * time.Millisecond):
	}
	signal.Stop(goes)
	if c.enter() == nil {
		io.WriteString(c.out, pasteOn)
		c.mu.Lock()
		c.line.Write(nil) // draws the line again
		c.mu.Unlock()
	}
}

// fresh makes a line editor without a line. One that has returned an error keeps
// the key that led to it, and would return it again.
func (c *console) fresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.line = term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{c, c.out}, "")
	if c.history != nil {
		c.line.History = c.history
	}
	c.fit()
}

// fit tells the editor how wide the terminal is; c.mu is held.
func (c *console) fit() {
	w, h, err := term.GetSize(int(c.in.Fd()))
	if err != nil || w <= 0 || h <= 0 {
		w, h = 80, 24
	}
	c.line.SetSize(w, h)
}

// pump reads the terminal for ever.
func (c *console) pump() {
	defer close(c.chunks)
	for {
		b := make([]byte, 4096)
		n, err := c.in.Read(b)
		if b = b[:n]; bytes.IndexByte(b, ctrlZ) >= 0 {
			b = bytes.ReplaceAll(b, []byte{ctrlZ}, nil)
			c.suspend()
		}
		if len(b) > 0 {
			c.chunks <- b
		}
		if err != nil {
			return
		}
	}
}

// Read gives the line editor what is typed, without Ctrl-C, which is
// errInterrupt, and with marks for pasted texts.
func (c *console) Read(p []byte) (int, error) {
	for len(c.ready) == 0 {
		if len(c.typed) > 0 && !c.inPaste && c.typed[0] == ctrlC {
			c.typed = c.typed[1:]
			return 0, errInterrupt
		}
		if len(c.typed) > 0 && c.take() {
			continue
		}
		b, ok := <-c.chunks
		if !ok {
			c.gone = true
			return 0, io.EOF
		}
		c.typed = append(c.typed, b...)
	}
	n := copy(p, c.ready)
	c.ready = c.ready[n:]
	c.interrupts = 0
	return n, nil
}

// take moves what is typed to ready: up to the next Ctrl-C or paste, or to the end
// of a paste. It returns false if it has to see more first.
func (c *console) take() bool {
	if c.inPaste {
		from := max(len(c.pasting)-len(pasteEnd), 0) // the mark may come in pieces
		c.pasting = append(c.pasting, c.typed...)
		c.typed = nil
		i := bytes.Index(c.pasting[from:], []byte(pasteEnd))
		if i < 0 {
			return false
		}
		c.ready = append(c.ready, c.mark(string(c.pasting[:from+i]))...)
		c.typed = c.pasting[from+i+len(pasteEnd):]
		c.pasting, c.inPaste = nil, false
		return true
	}
	if rest, ok := bytes.CutPrefix(c.typed, []byte(pasteBegin)); ok {
		c.typed, c.inPaste = rest, true
		return true
	}
	end := len(c.typed)
	if i := bytes.IndexByte(c.typed, ctrlC); i >= 0 {
		end = i
	}
	if i := bytes.Index(c.typed[:end], []byte(pasteBegin)); i >= 0 {
		end = i
	}
	for n := len(pasteBegin) - 1; n > 0 && end == len(c.typed); n-- {
		if bytes.HasSuffix(c.typed, []byte(pasteBegin[:n])) {
			end -= n
		}
	}
	c.ready = append(c.ready, c.typed[:end]...)
	c.typed = c.typed[end:]
	return end > 0
}

// mark is what stands in the line for a pasted text: itself if it is short and
// one line, otherwise a name that expand replaces.
func (c *console) mark(text string) string {
	text = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text)
	if len(text) <= pasteShort && strings.IndexFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0 {
		return text
	}
	c.pastes = append(c.pastes, text)
	return pasteName(len(c.pastes), text)
}

func pasteName(n int, text string) string {
	return fmt.Sprintf("[paste %d: %s]", n, plural(strings.Count(strings.TrimSuffix(text, "\n"), "\n")+1, "line"))
}

// expand replaces the names of pasted texts by those texts.
func (c *console) expand(line string) string {
	for i, text := range c.pastes {
		line = strings.ReplaceAll(line, pasteName(i+1, text), text)
	}
	return line
}

// readLine lets a line be edited after prompt. Ctrl-C is errInterrupt, Ctrl-D at
// the beginning and a terminal that is gone are io.EOF.
func (c *console) readLine(prompt string) (string, error) {
	if c.gone {
		return "", io.EOF
	}
	c.mu.Lock()
	c.fit()
	c.mu.Unlock()
	c.line.SetPrompt(prompt)
	line, err := c.line.ReadLine()
	if err != nil {
		if errors.Is(err, errInterrupt) {
			c.interrupts++
			io.WriteString(c.out, "^C\r\n")
		} else {
			io.WriteString(c.out, "\r\n")
		}
		c.fresh()
		return "", err
	}
	c.interrupts = 0
	if n := len([]rune(line)); n >= lineLimit {
		return "", &usageError{fmt.Sprintf("the line has reached %d characters, the most that can be typed into one; nothing was sent", n),
			`give long texts in several lines between """ and """, or through a pipe`}
	}
	return c.expand(line), nil
}

// during runs f; Ctrl-C meanwhile calls stop. What else is typed is kept for the
// next line.
func (c *console) during(stop, f func()) {
	quit, over := make(chan struct{}), make(chan struct{})
	c.interrupts = 0
	go func() {
		defer close(over)
		for !c.gone {
			select {
			case <-quit:
				return
			case b, ok := <-c.chunks:
				if !ok {
					c.gone = true
					stop()
					return
				}
				if i := bytes.LastIndexByte(b, ctrlC); i >= 0 {
					c.interrupts += bytes.Count(b, []byte{ctrlC})
					c.typed, b = nil, b[i+1:]
					stop()
				}
				c.typed = append(c.typed, b...)
			}
		}
	}()
	f()
	close(quit)
	<-over
}

// crlf writes to a terminal in raw mode, which does not begin a new line at \n
// by itself.
type crlf struct{ w io.Writer }

// Write returns the length of b, as if it had been written as it is.
func (c crlf) Write(b []byte) (int, error) {
	if _, err := c.w.Write(bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// visible replaces the control characters of an answer, with which a text could
// change the terminal, by a sign for each.
func visible(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r < ' ':
			return 0x2400 + r // the Unicode pictures of control characters
		case r == 0x7f:
			return 0x2421
		case r >= 0x80 && r < 0xa0:
			return 0xfffd
		}
		return r
	}, text)
}
