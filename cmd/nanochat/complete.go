package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/sample"
)

type completeCmd struct {
	Place string `arg:"" name:"file:line:col" help:"Where to write."`
	chatModelArg

	FIM   bool `name:"fim" help:"Fill in the middle: the model sees the text before and after the place. Without it, only what stands before."`
	Stdin bool `help:"Read the text from standard input: editors have unsaved changes. FILE is then only a name."`
	Chars bool `help:"COL counts characters (Unicode code points), not bytes."`

	MaxTokens     size     `short:"n" default:"64" placeholder:"N" help:"Most tokens to generate; 0: as many as the context holds (default: ${default})."`
	Line          bool     `short:"l" help:"Stop at the end of the line."`
	Stop          []string `sep:"none" placeholder:"TEXT" help:"Stop before this text. May be repeated."`
	Temperature   float64  `short:"t" default:"0" placeholder:"T" help:"0 takes the most likely token (default: ${default})."`
	RepeatPenalty float64  `default:"1" placeholder:"X" help:"Divide the logits of tokens seen before; 1: off (default: ${default})."`
	Seed          uint64   `default:"0" placeholder:"N" help:"The same seed gives the same text (default: ${default})."`
	JSON          bool     `name:"json" help:"Print one JSON object at the end."`

	Context size `default:"0" placeholder:"N" help:"Positions to make room for; 0: what the model was made for (default: ${default})."`
	engineFlags
	runFlags
}

// Help is the longer help text.
func (*completeCmd) Help() string {
	return "LINE and COL count from 1; COL 1 is before the first byte of the line, and one more than the length of the line is its end. " +
		"Without COL the end of the line is meant. A file that is longer than the context is cut around the place, never through " +
		"it, and standard error says so. --fim needs a model that has tokens for it."
}

// gap is a text with a place in it.
type gap struct{ before, after string }

// completion is what `complete --json` prints.
type completion struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"` // in bytes
	answer
	// Text that was left out, in bytes, because the context does not hold it.
	OmittedBefore int `json:"omitted_before"`
	OmittedAfter  int `json:"omitted_after"`
}

// Run completes.
func (c *completeCmd) Run(a *app) error {
	file, line, col, err := parsePlace(c.Place)
	if err != nil {
		return err
	}
	if c.MaxTokens < 0 || c.MaxTokens > 1<<31-1 {
		return &usageError{fmt.Sprintf("--max-tokens %d is outside 0 to %d", c.MaxTokens, 1<<31-1), "0 means as many as the context holds"}
	}
	name, err := c.check(a)
	if err != nil {
		return err
	}
	text, err := c.text(a, file)
	if err != nil {
		return err
	}
	g, col, err := split(file, text, line, col, c.Chars)
	if err != nil {
		return err
	}
	o, err := c.alone(&c.engineFlags, c.Context, 0)
	if err != nil {
		return err
	}
	begin := time.Now()
	m, err := a.openModel(c.Model, o)
	if err != nil {
		return err
	}
	defer m.Close()
	out := completion{File: file, Line: line, Column: col}
	out.Timing.LoadMS = ms(time.Since(begin))
	out.Tokens, out.Seed, out.Kernel, out.Threads = []int32{}, c.Seed, m.Kernel(), m.Threads()
	ids, err := c.prompt(m, g, &out)
	if err != nil {
		return fimHint(err)
	}
	switch {
	case c.FIM && untrained(m.Info()):
		fmt.Fprintf(a.stderr, "note: %s was trained without fill-in-the-middle: what it writes into a gap fits by chance\n", name)
	case !c.FIM && strings.TrimSpace(g.after) != "":
		fmt.Fprintln(a.stderr, "note: what stands after the place is not used; --fim makes the model see it")
	}
	if n := out.OmittedBefore + out.OmittedAfter; n > 0 {
		fmt.Fprintf(a.stderr, "note: the context holds %d tokens: %d bytes at the beginning of the text and %d at its end were left out\n",
			positions(m, c.Context), out.OmittedBefore, out.OmittedAfter)
	}
	return c.generate(a, m, ids, &out)
}

// untrained says that the model's own record of its training excludes gaps.
func untrained(in chat.Info) bool {
	for line := range strings.Lines(in.Provenance["nanochat.training.config"]) {
		if key, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(key) == "fim_rate" {
			return strings.TrimSpace(value) == "0"
		}
	}
	return false
}

func fimHint(err error) error {
	if u, ok := errors.AsType[*chat.UnsupportedError](err); ok {
		return &hinted{errors.New(u.What), "leave out --fim to continue what stands before the place"}
	}
	return flagNames(err)
}

func (c *completeCmd) generate(a *app, m *chat.Model, ids []int32, out *completion) error {
	stop := c.Stop
	if c.Line {
		stop = append(stop[:len(stop):len(stop)], "\n")
	}
	s, err := m.Generate(a.ctx, chat.Request{IDs: ids, Stop: stop, MaxTokens: int(c.MaxTokens), Sample: sample.Options{
		Temperature: c.Temperature, RepeatPenalty: c.RepeatPenalty, Seed: c.Seed,
	}})
	if err != nil {
		return flagNames(err)
	}
	defer s.Close()
	g := generateCmd{JSON: c.JSON, Logprobs: -1}
	if err := g.read(a, m, s, &out.answer); err != nil {
		return err
	}
	if !c.JSON {
		return nil
	}
	out.summarise(s.Result())
	return writeJSON(a.stdout, out)
}

// prompt is what the model sees of g: all of it, or as much around the gap as
// leaves room for the answer.
func (c *completeCmd) prompt(m *chat.Model, g gap, out *completion) ([]int32, error) {
	if !c.FIM {
		g.after = ""
	}
	context := positions(m, c.Context)
	room := context - min(int(c.MaxTokens), context/2)
	if c.MaxTokens == 0 {
		room = context * 3 / 4
	}
	whole := g
	// No need to turn megabytes into tokens: hardly any has 64 bytes.
	g = g.shorten(len(g.before)-64*context, len(g.after)-64*context)
	for {
		ids, err := m.Prompt(g.before, false), error(nil)
		if c.FIM {
			ids, err = m.FIMPrompt(g.before, g.after)
		}
		if err != nil {
			return nil, err
		}
		over := len(ids) - room
		if over <= 0 || g.before+g.after == "" {
			out.OmittedBefore, out.OmittedAfter = len(whole.before)-len(g.before), len(whole.after)-len(g.after)
			return ids, nil
		}
		drop := over*(len(g.before)+len(g.after))/len(ids) + 1
		if 3*len(g.after) > len(g.before) { // what stands before tells more
			g = g.shorten(0, min(drop, len(g.after)))
		} else {
			g = g.shorten(drop, 0)
		}
	}
}

// shorten leaves out at least this many bytes at the beginning and the end,
// at line breaks where there are any.
func (g gap) shorten(before, after int) gap {
	if before > 0 {
		rest := g.before[min(before, len(g.before)):]
		if _, line, ok := strings.Cut(rest, "\n"); ok {
			rest = line
		}
		for rest != "" && !utf8.RuneStart(rest[0]) {
			rest = rest[1:]
		}
		g.before = rest
	}
	if after > 0 {
		rest := g.after[:max(len(g.after)-after, 0)]
		if i := strings.LastIndexByte(rest, '\n'); i >= 0 {
			rest = rest[:i+1]
		}
		for rest != "" && len(rest) < len(g.after) && !utf8.RuneStart(g.after[len(rest)]) {
			rest = rest[:len(rest)-1]
		}
		g.after = rest
	}
	return g
}

// parsePlace reads FILE:LINE:COL or FILE:LINE; col is 0 if it is not given.
func parsePlace(s string) (file string, line, col int, err error) {
	bad := &usageError{fmt.Sprintf("%q is no FILE:LINE:COL", s), "as in src/main.rs:12:5; lines and columns count from 1"}
	file, last, ok := cutLast(s)
	if !ok {
		return "", 0, 0, bad
	}
	f, middle, two := cutLast(file)
	if n, err := strconv.Atoi(middle); two && err == nil {
		file, line = f, n
		if col, err = strconv.Atoi(last); err != nil || col < 1 {
			return "", 0, 0, bad
		}
	} else if line, err = strconv.Atoi(last); err != nil {
		return "", 0, 0, bad
	}
	if line < 1 || file == "" {
		return "", 0, 0, bad
	}
	return file, line, col, nil
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// text is the file, or standard input.
func (c *completeCmd) text(a *app, file string) (string, error) {
	if c.Stdin {
		b, err := a.readStdin(maxPrompt)
		return string(b), err
	}
	f, err := os.Open(file)
	if err != nil {
		return "", &hinted{fmt.Errorf("file %s: %s", file, reason(err)), "give text that is in no file with --stdin"}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPrompt+1))
	if err != nil {
		return "", fmt.Errorf("file %s: %s", file, reason(err))
	}
	if len(b) > maxPrompt {
		return "", &usageError{fmt.Sprintf("file %s has more than %s", file, bytesText(maxPrompt)), "no context is as long"}
	}
	return string(b), nil
}

// split cuts text at a line and a column, and returns the column in bytes.
func split(file, text string, line, col int, chars bool) (gap, int, error) {
	start := 0
	for n := 1; n < line; n++ {
		i := strings.IndexByte(text[start:], '\n')
		if i < 0 {
			return gap{}, 0, &usageError{fmt.Sprintf("%s has %s, not %d", file, plural(n, "line"), line), "lines count from 1; the line after the last line break is one too"}
		}
		start += i + 1
	}
	end := len(text)
	if i := strings.IndexByte(text[start:], '\n'); i >= 0 {
		end = start + i
	}
	if strings.HasSuffix(text[start:end], "\r") {
		end--
	}
	content, at := text[start:end], col-1
	unit, size := "byte", len(content)
	if chars {
		unit, size = "character", utf8.RuneCountInString(content)
	}
	switch {
	case col == 0:
		at = len(content)
	case at > size:
		return gap{}, 0, &usageError{fmt.Sprintf("%s:%d has %s; column %d is after its end", file, line, plural(size, unit), col),
			fmt.Sprintf("columns are 1 to %d, counted in %ss", size+1, unit)}
	case chars:
		n := 0
		for range at {
			_, width := utf8.DecodeRuneInString(content[n:])
			n += width
		}
		at = n
	}
	if at < len(content) && !utf8.RuneStart(content[at]) {
		return gap{}, 0, &usageError{fmt.Sprintf("%s:%d: column %d is within a character", file, line, col), "columns count bytes; --chars counts characters"}
	}
	return gap{text[:start+at], text[start+at:]}, at + 1, nil
}
