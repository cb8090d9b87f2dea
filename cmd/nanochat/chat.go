package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/architehc/nanochat/core/chat"
)

// chatModelArg is a MODEL that may be left out: it is then the one that comes with nanochat.
type chatModelArg struct {
	Model string `arg:"" optional:"" env:"NANOCHAT_MODEL" default:"nano-5m-rust" help:"A model file (.gguf), or a name from nanochat list (default: ${default})."`
}

// check finds the model, and from then on Model is its file.
func (m *chatModelArg) check(a *app) (name string, err error) {
	name = strings.TrimSuffix(filepath.Base(m.Model), ".gguf")
	arg := modelArg{Model: m.Model}
	err = arg.check(a)
	m.Model = arg.Model
	return name, err
}

type chatCmd struct {
	chatModelArg

	System   string `short:"s" placeholder:"TEXT" help:"What the model is told before the first message."`
	Template string `placeholder:"NAME" help:"Form of the conversation, if the model does not say it or says one that is not known: ${templates}."`

	MaxTokens     *size    `short:"n" placeholder:"N" help:"Most tokens of an answer; 0: as many as the context holds (default: 1024, and 200 for models that only continue text)."`
	Temperature   float64  `short:"t" default:"0.8" placeholder:"T" help:"0 takes the most likely token (default: ${default})."`
	TopK          int      `short:"k" default:"0" placeholder:"K" help:"Choose among the K most likely tokens; 0: all (default: ${default})."`
	TopP          float64  `short:"p" default:"1" placeholder:"P" help:"Choose among the most likely tokens that together reach P (default: ${default})."`
	MinP          float64  `name:"min-p" default:"0" placeholder:"P" help:"Choose among tokens at least P times as likely as the likeliest (default: ${default})."`
	RepeatPenalty *float64 `placeholder:"X" help:"Divide the logits of tokens seen before; 1: off (default: 1, and 1.1 for models that only continue text)."`
	Seed          uint64   `default:"0" placeholder:"N" help:"The same seed gives the same answers (default: ${default})."`

	Usage     bool `short:"u" aliases:"stats" help:"Show counts and speed after every answer."`
	JSON      bool `name:"json" help:"Read messages from a pipe and print one line of JSON for each answer."`
	NoHistory bool `help:"Neither read nor write the file that the arrow keys bring lines back from."`

	Context size `default:"0" placeholder:"N" help:"Positions to make room for; 0: what the model was made for (default: ${default})."`
	engineFlags
	runFlags
}

// Help is the longer help text.
func (*chatCmd) Help() string {
	return `On a terminal: /help lists the commands, """ begins and ends a message of several lines, Ctrl-C stops an answer, ` +
		"twice (or Ctrl-D) leaves. From a pipe: one message a line, and nothing but the answers on standard output. " +
		"A model without a chat template continues what is typed and does not answer it. " +
		"Typed lines are kept in $XDG_STATE_HOME/nanochat/history (~/.local/state)."
}

// Run talks.
func (c *chatCmd) Run(a *app) error {
	name, err := c.check(a)
	if err != nil {
		return err
	}
	o, err := c.alone(&c.engineFlags, c.Context, 0)
	if err != nil {
		return err
	}
	a.note("loading " + name)
	m, err := a.openModel(c.Model, o)
	a.noteDone()
	if err != nil {
		return err
	}
	info := m.Info()
	if info.Name != "" {
		name = info.Name
	}
	talk := &conversation{
		model: m, session: m.NewSession(), name: name, system: c.System, positions: positions(m, c.Context),
		template: c.Template, base: c.Template == "plain" || c.Template == "" && info.ChatTemplate == "",
	}
	defer talk.close()
	if err := c.settings(talk); err != nil {
		return flagNames(err)
	}
	if _, _, err := m.ChatPrompt([]chat.Message{{Role: chat.RoleUser, Content: "x"}}, c.Template); err != nil {
		return engineError(err)
	}
	r := &repl{a: a, talk: talk, usage: c.Usage, json: c.JSON}
	if a.stdinTTY && (a.stdoutTTY || a.stderrTTY) && os.Getenv("TERM") != "dumb" && !c.JSON {
		return c.interactive(a, r)
	}
	return r.piped()
}

// positions is how many tokens m can have before it.
func positions(m *chat.Model, asked size) int {
	if asked > 0 {
		return int(asked)
	}
	return m.Config().Context
}

// engineError gives an error of the engine the hint that belongs to the command line.
func engineError(err error) error {
	if u, ok := errors.AsType[*chat.UnsupportedError](err); ok {
		return &hinted{errors.New(u.What), u.Hint}
	}
	return flagNames(err)
}

// settings are those of the flags.
func (c *chatCmd) settings(talk *conversation) error {
	if talk.base && c.System != "" {
		return noSystem(talk.name)
	}
	s := defaultSettings(talk.base)
	s.sample.Temperature, s.sample.TopK, s.sample.TopP, s.sample.MinP, s.sample.Seed = c.Temperature, c.TopK, c.TopP, c.MinP, c.Seed
	if c.RepeatPenalty != nil {
		s.sample.RepeatPenalty = *c.RepeatPenalty
	}
	if c.MaxTokens != nil {
		if *c.MaxTokens < 0 || *c.MaxTokens > 1<<31-1 {
			return &usageError{fmt.Sprintf("--max-tokens %d is outside 0 to %d", *c.MaxTokens, 1<<31-1), "0 means as many as the context holds"}
		}
		s.maxTokens = int(*c.MaxTokens)
	}
	talk.set = s
	return s.sample.Validate(talk.model.Config().Vocab)
}

func noSystem(name string) error {
	return &usageError{fmt.Sprintf("model %s has no chat template, so nobody reads a system message", name),
		"write what the text should begin with into the message itself"}
}

// interactive talks to a terminal.
func (c *chatCmd) interactive(a *app, r *repl) error {
	screen := a.stdout
	if !a.stdoutTTY {
		screen = a.stderr
	}
	var h *history
	if !c.NoHistory {
		var err error
		if h, err = readHistory(historyPath()); err != nil {
			fmt.Fprintf(a.stderr, "note: lines are not kept: %s\n", oneLine(err.Error()))
			h.path = ""
		}
	}
	con, err := openConsole(os.Stdin, screen, h)
	if err != nil {
		return err
	}
	defer con.close()
	restore := con.close
	a.abandon.Store(&restore)
	r.con = con
	stderr := a.stderr
	a.stderr = crlf{screen}
	err = r.interactive()
	a.stderr = stderr
	if errors.Is(err, errLeave) {
		err = nil
	}
	return err
}
