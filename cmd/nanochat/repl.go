package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/architehc/nanochat/core/infer"
)

// errLeave ends a conversation.
var errLeave = errors.New("left")

// repl reads messages and commands and shows answers, on a terminal (con) or from
// a pipe.
type repl struct {
	a     *app
	talk  *conversation
	con   *console // nil: a pipe
	usage bool
	json  bool

	next func() (string, error) // the next line within a message of several
}

// A command is what a line that begins with / does.
type command struct {
	name, args, help string
	run              func(r *repl, arg string) error
}

func commands() []command {
	return []command{
		{"help", "", "this list", (*repl).help},
		{"reset", "", "begin a new conversation", func(r *repl, _ string) error { return r.talk.reset() }},
		{"retry", "", "answer the last message again, with the next seed", (*repl).retry},
		{"more", "", "go on with an answer that was cut short", func(r *repl, _ string) error { return r.answer(r.talk.more) }},
		{"system", "[TEXT]", "what the model is told before the first message; without TEXT: nothing", (*repl).system},
		{"set", "[NAME VALUE]", "change a setting, as in /set temperature 0.7; alone: show all", (*repl).set},
		{"seed", "N", "the same as /set seed N", func(r *repl, arg string) error { return r.set(strings.TrimSpace("seed " + arg)) }},
		{"stats", "", "show counts and speed after every answer, or no more", (*repl).stats},
		{"multi", "", `a message of several lines, up to a line /end; the same as """ … """`, (*repl).multi},
		{"save", "FILE", "write the conversation to a file", (*repl).save},
		{"load", "FILE", "go on with a conversation from a file", (*repl).load},
		{"quit", "", "leave; so do Ctrl-D and twice Ctrl-C", func(*repl, string) error { return errLeave }},
	}
}

const (
	quotes = `"""`
	dim    = "\x1b[2m"
	bold   = "\x1b[1m"
	plain  = "\x1b[0m"
)

// paint colours text if the terminal and NO_COLOR allow it.
func (r *repl) paint(style, text string) string {
	if r.con == nil || !r.a.colour {
		return text
	}
	return style + text + plain
}

func (r *repl) note(format string, args ...any) {
	fmt.Fprintln(r.a.stderr, r.paint(dim, fmt.Sprintf(format, args...)))
}

func (r *repl) greet() {
	m := r.talk.model
	r.note("%s, %s weights, context %d, %s on %s; /help lists the commands", r.talk.name,
		countText(m.Info().Params.Total()), r.talk.positions, m.Kernel(), plural(m.Threads(), "thread"))
}

// warnBase says what to expect of a model that has not learnt to answer.
func (r *repl) warnBase() {
	if r.talk.base {
		r.note("note: %s has no chat template: it continues the text you type and does not answer it", r.talk.name)
	}
}

// interactive reads lines from the terminal until the user leaves.
func (r *repl) interactive() error {
	r.greet()
	r.warnBase()
	prompt := func(p string) string { // the editor counts no escape sequences
		if r.a.colour {
			return bold + p + plain
		}
		return p
	}
	r.next = func() (string, error) { return r.con.readLine(prompt("… ")) }
	for {
		line, err := r.con.readLine(prompt("> "))
		switch {
		case errors.Is(err, errInterrupt):
			if r.con.interrupts >= 2 {
				return errLeave
			}
			r.note("Ctrl-C again, Ctrl-D or /quit leaves")
			continue
		case errors.Is(err, io.EOF):
			return errLeave
		case err == nil:
			err = r.message(line)
		}
		switch {
		case err == nil:
		case errors.Is(err, errLeave), errors.Is(err, errOutput):
			return err
		case errors.Is(err, errInterrupt): // within a message of several lines
			r.note("nothing was sent; Ctrl-C again leaves")
		case errors.Is(err, context.Canceled) && r.a.ctx.Err() == nil:
			if r.con.interrupts >= 2 {
				return errLeave
			}
			r.note("stopped; /more goes on, Ctrl-C again leaves")
		case r.a.ctx.Err() != nil:
			return err
		default:
			r.a.fail(r.explain(err), false) // shown; the conversation goes on
		}
	}
}

// piped reads one message a line and stops at the first that fails.
func (r *repl) piped() error {
	in := bufio.NewReader(r.a.stdin)
	n := 0
	r.next = func() (string, error) {
		var line strings.Builder
		var err error
		for err = bufio.ErrBufferFull; errors.Is(err, bufio.ErrBufferFull); {
			var part []byte
			part, err = in.ReadSlice('\n')
			if line.Write(part); line.Len() > maxPrompt {
				return "", &usageError{fmt.Sprintf("line %d has more than %s", n+1, bytesText(maxPrompt)), "no context is as long"}
			}
		}
		if line.Len() == 0 && err != nil {
			return "", err
		}
		n++
		return strings.TrimSuffix(strings.TrimSuffix(line.String(), "\n"), "\r"), nil
	}
	r.warnBase()
	for {
		line, err := r.next()
		if err == nil {
			err = r.message(line)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, errLeave) {
			return nil
		}
		if err != nil {
			return r.explain(err)
		}
	}
}

// message carries out one line: a command, or the beginning of a message.
func (r *repl) message(line string) error {
	text := strings.TrimSpace(line)
	if text == "" {
		return nil
	}
	if rest, ok := strings.CutPrefix(text, quotes); ok {
		return r.quoted(rest)
	}
	if name, arg, ok := commandOf(text); ok {
		for _, c := range commands() {
			if c.name == name {
				return c.run(r, arg)
			}
		}
		return &usageError{"there is no command /" + name, "/help lists the commands; a message that begins like one goes between " + quotes + " and " + quotes}
	}
	return r.say(line)
}

// commandOf splits /name arguments. Lines such as // or /* or /usr/bin are text.
func commandOf(text string) (name, arg string, ok bool) {
	rest, ok := strings.CutPrefix(text, "/")
	if !ok {
		return "", "", false
	}
	name, arg, _ = strings.Cut(rest, " ")
	for _, r := range name {
		if r < 'a' || r > 'z' {
			return "", "", false
		}
	}
	return name, strings.TrimSpace(arg), name != ""
}

// quoted collects the lines up to closing quotes.
func (r *repl) quoted(first string) error {
	var lines []string
	line := first
	for {
		if text, ok := strings.CutSuffix(strings.TrimRight(line, " "), quotes); ok {
			if text != "" || len(lines) == 0 {
				lines = append(lines, text)
			}
			break
		}
		if len(lines) > 0 || line != "" {
			lines = append(lines, line)
		}
		var err error
		if line, err = r.next(); err != nil {
			return r.unfinished(err, quotes)
		}
	}
	return r.say(strings.Join(lines, "\n"))
}

func (r *repl) multi(string) error {
	var lines []string
	for {
		line, err := r.next()
		if errors.Is(err, io.EOF) && r.con != nil && !r.con.gone {
			break // Ctrl-D
		}
		if err != nil {
			return r.unfinished(err, "/end")
		}
		if strings.TrimSpace(line) == "/end" {
			break
		}
		lines = append(lines, line)
	}
	return r.say(strings.Join(lines, "\n"))
}

// unfinished is the error of a message whose end did not come.
func (r *repl) unfinished(err error, end string) error {
	if errors.Is(err, io.EOF) && r.con == nil {
		return &usageError{"the last message has no end", "end it with " + end}
	}
	return err
}

// say sends a message and shows the answer.
func (r *repl) say(text string) error {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	return r.answer(func(ctx context.Context, emit func(string) error) (reply, error) { return r.talk.ask(ctx, text, emit) })
}

// errOutput means that answers cannot be written any more.
var errOutput = errors.New("standard output cannot be written")

// answer shows what turn generates, as it comes.
func (r *repl) answer(turn func(context.Context, func(string) error) (reply, error)) error {
	out := bufio.NewWriter(r.a.stdout)
	if r.con != nil && r.a.stdoutTTY {
		out = bufio.NewWriter(crlf{r.a.stdout})
	}
	shown := ""
	emit := func(text string) error {
		if r.json {
			return nil
		}
		shown = text
		if r.a.stdoutTTY {
			text = visible(text)
		}
		if _, err := out.WriteString(text); err != nil {
			return errors.Join(errOutput, err)
		}
		if err := out.Flush(); err != nil {
			return errors.Join(errOutput, err)
		}
		return nil
	}
	ctx, stop := context.WithCancel(r.a.ctx)
	defer stop()
	var got reply
	var err error
	if r.con != nil {
		r.con.during(stop, func() { got, err = turn(ctx, emit) })
	} else {
		got, err = turn(ctx, emit)
	}
	if r.con == nil && (err == nil || shown != "") || shown != "" && !strings.HasSuffix(shown, "\n") {
		err = errors.Join(err, emit("\n")) // after every answer from a pipe, so that it can be taken off again
	}
	if err != nil {
		return err
	}
	return r.report(got)
}

// report shows what is to be said about an answer.
func (r *repl) report(got reply) error {
	out := answer{Text: got.text, Tokens: got.tokens, Seed: r.talk.set.sample.Seed, Kernel: r.talk.model.Kernel(), Threads: r.talk.model.Threads()}
	out.summarise(got.result)
	switch {
	case r.json:
		if out.Tokens == nil {
			out.Tokens = []int32{}
		}
		e := json.NewEncoder(r.a.stdout) // one line each
		e.SetEscapeHTML(false)
		if err := e.Encode(&out); err != nil {
			return errors.Join(errOutput, err)
		}
	case got.full:
		r.note("the context is full: %d of %d tokens; the answer ends here. /reset begins a new conversation", len(r.talk.ids), r.talk.positions)
	case got.result.Reason == infer.ReasonLength && r.con != nil:
		r.note("ended after max_tokens, %d; /more goes on", r.talk.set.maxTokens)
	case got.text == "" && r.con != nil:
		r.note("the answer is empty; /retry tries another seed")
	}
	if r.usage {
		fresh := got.result.PromptTokens - got.result.CachedTokens
		r.note("%s read (%d known already), %s written, %.0f tokens/s; first after %.0f ms; %d of %d in the context", plural(fresh, "token"),
			got.result.CachedTokens, plural(got.result.Generated, "token"), out.Timing.DecodePS, out.Timing.PrefillMS, len(r.talk.ids), r.talk.positions)
	}
	return nil
}

// explain adds to a full context what to do about it here.
func (r *repl) explain(err error) error {
	if full, ok := errors.AsType[*infer.ContextError](err); ok {
		what := fmt.Sprintf("the conversation has %d tokens with this message, and the context holds %d; nothing was sent", full.Prompt, full.Context)
		hint := "/reset begins a new conversation"
		if r.talk.base || len(r.talk.messages) == 0 {
			what = fmt.Sprintf("the message has %d tokens, and the context holds %d, one of them for the answer; nothing was sent", full.Prompt, full.Context)
			hint = "shorten it"
		}
		return &hinted{errors.New(what), hint}
	}
	return engineError(err)
}

func (r *repl) help(string) error {
	var b strings.Builder
	for _, c := range commands() {
		fmt.Fprintf(&b, "  /%-20s %s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	b.WriteString("Ctrl-C stops an answer. The arrow keys bring earlier lines back.\n")
	_, err := io.WriteString(r.a.stderr, b.String())
	return err
}

func (r *repl) retry(string) error {
	return r.answer(func(ctx context.Context, emit func(string) error) (reply, error) {
		return r.talk.again(ctx, emit)
	})
}

func (r *repl) system(text string) error {
	if r.talk.base {
		return noSystem(r.talk.name)
	}
	r.talk.system = text
	if text == "" {
		r.note("no system message")
	}
	return nil
}

func (r *repl) set(arg string) error {
	name, value, ok := strings.Cut(strings.Replace(arg, "=", " ", 1), " ")
	if name != "" && !ok {
		return &usageError{"/set needs a name and a value", "/set temperature 0.7; /set alone shows all"}
	}
	if name != "" {
		return r.talk.set.change(name, strings.TrimSpace(value), r.talk.model.Config().Vocab)
	}
	for _, f := range allSettings() {
		fmt.Fprintf(r.a.stderr, "  %-18s %-8s %s\n", f.name, f.text(&r.talk.set), f.help)
	}
	return nil
}

func (r *repl) stats(string) error {
	r.usage = !r.usage
	if !r.usage {
		r.note("no counts any more")
	}
	return nil
}

func (r *repl) save(path string) error {
	if path == "" {
		return &usageError{"/save needs the name of a file", "/save talk.json"}
	}
	if err := r.talk.save(path); err != nil {
		return err
	}
	r.note("%s in %s", plural(len(r.talk.messages), "message"), path)
	return nil
}

func (r *repl) load(path string) error {
	if path == "" {
		return &usageError{"/load needs the name of a file", "/load talk.json"}
	}
	model, err := r.talk.load(path)
	if err != nil {
		return err
	}
	r.note("%s from %s", plural(len(r.talk.messages), "message"), path)
	if model != r.talk.name {
		r.note("note: they were exchanged with %s, and go on with %s", model, r.talk.name)
	}
	return nil
}
