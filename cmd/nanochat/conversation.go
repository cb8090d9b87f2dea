package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/sample"
)

// A conversation is what was said, and what the model has read of it.
//
// With a model that knows no roles (base) every message is a text of its own that
// the model continues.
type conversation struct {
	model   *chat.Model
	session *chat.Session
	name    string
	// template is that of the model ("") or the one that was asked for.
	template string
	base     bool
	// positions is how many tokens the model can have before it.
	positions int

	system   string
	messages []chat.Message // user and assistant in turn
	set      settings

	ids  []int32  // what the model has before it: the last prompt and its answer
	stop []string // of the last prompt
	cut  bool     // the last answer can go on

	// ending, if not nil, is closed when the stream that was stopped last has ended: a
	// step of a large model takes seconds, and nobody waits for it after Ctrl-C.
	ending chan struct{}
}

// settings choose the text.
type settings struct {
	sample    sample.Options
	maxTokens int
}

// defaultSettings suit a small model: a base model repeats itself without a penalty
// and seldom ends a text by itself.
func defaultSettings(base bool) settings {
	s := settings{sample: sample.Options{Temperature: 0.8, TopP: 1, RepeatPenalty: 1}, maxTokens: 1024}
	if base {
		s.sample.RepeatPenalty, s.maxTokens = 1.1, 200
	}
	return s
}

// A setting is a number that /set changes.
type setting struct {
	name, help string
	text       func(*settings) string
	set        func(*settings, string) error
}

func number(name, help string, field func(*settings) *float64) setting {
	return setting{name, help,
		func(s *settings) string { return strconv.FormatFloat(*field(s), 'g', -1, 64) },
		func(s *settings, v string) (err error) { *field(s), err = strconv.ParseFloat(v, 64); return err }}
}

func count(name, help string, field func(*settings) *int) setting {
	return setting{name, help,
		func(s *settings) string { return strconv.Itoa(*field(s)) },
		func(s *settings, v string) (err error) {
			var n uint64
			n, err = strconv.ParseUint(v, 10, 31)
			*field(s) = int(n)
			return err
		}}
}

func allSettings() []setting {
	return []setting{
		number("temperature", "0 takes the most likely token", func(s *settings) *float64 { return &s.sample.Temperature }),
		count("top_k", "choose among the K most likely tokens; 0: all", func(s *settings) *int { return &s.sample.TopK }),
		number("top_p", "choose among the likeliest tokens that together reach P", func(s *settings) *float64 { return &s.sample.TopP }),
		number("min_p", "choose among tokens at least P times as likely as the likeliest", func(s *settings) *float64 { return &s.sample.MinP }),
		number("repeat_penalty", "divide the logits of tokens seen before; 1: off", func(s *settings) *float64 { return &s.sample.RepeatPenalty }),
		number("presence_penalty", "subtract from the logits of tokens generated before", func(s *settings) *float64 { return &s.sample.PresencePenalty }),
		number("frequency_penalty", "subtract as often as a token was generated", func(s *settings) *float64 { return &s.sample.FrequencyPenalty }),
		count("penalty_window", "last tokens that penalties see; 0: all", func(s *settings) *int { return &s.sample.PenaltyWindow }),
		count("max_tokens", "most tokens of an answer; 0: as many as the context holds", func(s *settings) *int { return &s.maxTokens }),
		{"seed", "the same seed gives the same answers",
			func(s *settings) string { return strconv.FormatUint(s.sample.Seed, 10) },
			func(s *settings, v string) (err error) { s.sample.Seed, err = strconv.ParseUint(v, 10, 64); return err }},
	}
}

// change sets name to value, if that is possible for a vocabulary of this size.
func (s *settings) change(name, value string, vocab int) error {
	var names []string
	for _, f := range allSettings() {
		names = append(names, f.name)
		if f.name != strings.ReplaceAll(name, "-", "_") {
			continue
		}
		next := *s
		if err := f.set(&next, value); err != nil {
			return &usageError{fmt.Sprintf("%s cannot be %q", f.name, value), f.help}
		}
		if err := next.sample.Validate(vocab); err != nil {
			return &usageError{strings.TrimPrefix(err.Error(), "sample: "), f.help}
		}
		*s = next
		return nil
	}
	return &usageError{fmt.Sprintf("there is no setting %q", name), "there are " + strings.Join(names, ", ")}
}

// A reply is how an answer went.
type reply struct {
	text   string
	tokens []int32
	result infer.Result
	// full says that the answer ended because the context holds no more.
	full bool
}

// ask sends a message and gives the pieces of the answer to emit. When ctx ends the answer
// stays as far as it came, and the error is the context's. After any other error the
// conversation is as it was.
func (c *conversation) ask(ctx context.Context, text string, emit func(string) error) (reply, error) {
	before := c.messages
	c.messages = append(c.messages[:len(c.messages):len(c.messages)], chat.Message{Role: chat.RoleUser, Content: text})
	ids, stop, err := c.prompt()
	if err != nil {
		c.messages = before
		return reply{}, err
	}
	r, err := c.run(ctx, ids, stop, emit)
	if err != nil && r.text == "" {
		c.messages = before
		return r, err
	}
	c.messages = append(c.messages, chat.Message{Role: chat.RoleAssistant, Content: r.text})
	return r, err
}

// prompt is the ids of all that was said.
func (c *conversation) prompt() ([]int32, []string, error) {
	if c.base {
		return c.model.Prompt(c.messages[len(c.messages)-1].Content, false), nil, nil
	}
	all := c.messages
	if c.system != "" {
		all = append([]chat.Message{{Role: chat.RoleSystem, Content: c.system}}, all...)
	}
	return c.model.ChatPrompt(all, c.template)
}

// again asks the last message once more, with the next seed.
func (c *conversation) again(ctx context.Context, emit func(string) error) (reply, error) {
	n := len(c.messages)
	if n < 2 {
		return reply{}, &usageError{"there is no answer yet", "type a message first"}
	}
	before, last := c.messages, c.messages[n-2].Content
	c.messages = c.messages[:n-2]
	c.set.sample.Seed++
	r, err := c.ask(ctx, last, emit)
	if err != nil && r.text == "" {
		c.messages = before
		c.set.sample.Seed--
	}
	return r, err
}

// more goes on with the last answer.
func (c *conversation) more(ctx context.Context, emit func(string) error) (reply, error) {
	if !c.cut {
		return reply{}, &usageError{"there is no answer that was cut short", "type a message"}
	}
	r, err := c.run(ctx, c.ids, c.stop, emit)
	last := len(c.messages) - 1
	c.messages[last].Content += r.text
	return r, err
}

// run reads one stream to its end.
func (c *conversation) run(ctx context.Context, ids []int32, stop []string, emit func(string) error) (r reply, err error) {
	if c.ending != nil {
		select {
		case <-c.ending:
		case <-ctx.Done():
			return reply{}, ctx.Err()
		}
	}
	s, err := c.session.Generate(ctx, chat.Request{IDs: ids, Stop: stop, MaxTokens: c.set.maxTokens, Sample: c.set.sample})
	if err != nil {
		return reply{}, err
	}
	ended := make(chan struct{})
	c.ending = ended
	defer func() {
		go func() {
			defer close(ended)
			s.Close()
		}()
	}()
	var text strings.Builder
	for err == nil {
		var p chat.Piece
		if p, err = s.Next(ctx); err != nil {
			break
		}
		text.WriteString(p.Text)
		if p.ID >= 0 {
			r.tokens = append(r.tokens, p.ID)
		}
		if p.Text != "" {
			err = emit(p.Text)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	r.text, r.result = text.String(), s.Result()
	c.ids, c.stop = append(ids[:len(ids):len(ids)], r.tokens...), stop
	cut := r.result.Reason == infer.ReasonLength
	r.full = cut && len(c.ids) >= c.positions
	c.cut = cut && !r.full || err != nil && r.text != ""
	return r, err
}

// reset forgets everything but the settings and the system message.
func (c *conversation) reset() error {
	if c.ending != nil {
		<-c.ending
	}
	c.messages, c.ids, c.stop, c.cut = nil, nil, nil, false
	return c.session.Truncate(0)
}

// close frees the model, but does not keep the program waiting for a step.
func (c *conversation) close() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.session.Close()
		c.model.Close()
	}()
	select {
	case <-done:
	case <-time.After(grace):
	}
}

// saved is the form of /save and /load.
type saved struct {
	Format   string            `json:"format"`
	Model    string            `json:"model"`
	System   string            `json:"system,omitempty"`
	Settings map[string]string `json:"settings"`
	Messages []savedMessage    `json:"messages"`
}

type savedMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

const savedFormat = "nanochat-conversation-1"

// save writes the conversation to path. It replaces an earlier one, and no other file.
func (c *conversation) save(path string) error {
	if old, err := os.ReadFile(path); err == nil {
		if _, err := parseSaved(path, old); err != nil {
			return &usageError{fmt.Sprintf("file %s exists and is no conversation", path), "choose another name, or remove the file first"}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("file %s: %s", path, reason(err))
	}
	s := saved{Format: savedFormat, Model: c.name, System: c.system, Settings: map[string]string{}, Messages: []savedMessage{}}
	for _, f := range allSettings() {
		s.Settings[f.name] = f.text(&c.set)
	}
	for _, m := range c.messages {
		s.Messages = append(s.Messages, savedMessage(m))
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".conversation-*") // whole or not at all
	if err != nil {
		return fmt.Errorf("file %s: %s", path, reason(err))
	}
	err = errors.Join(writeJSON(f, &s), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("file %s: %s", path, reason(err))
	}
	return nil
}

// load replaces the conversation by the one in path.
func (c *conversation) load(path string) (from string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("file %s: %s", path, reason(err))
	}
	s, err := parseSaved(path, b)
	if err != nil {
		return "", err
	}
	set := c.set
	for name, value := range s.Settings {
		if err := set.change(name, value, c.model.Config().Vocab); err != nil {
			return "", fmt.Errorf("file %s: %w", path, err)
		}
	}
	if err := c.reset(); err != nil {
		return "", err
	}
	c.system, c.set = s.System, set
	for _, m := range s.Messages {
		c.messages = append(c.messages, chat.Message(m))
	}
	return s.Model, nil
}

func parseSaved(path string, b []byte) (*saved, error) {
	var s saved
	hint := "conversations are written by /save"
	if err := json.Unmarshal(b, &s); err != nil || s.Format != savedFormat {
		return nil, &hinted{fmt.Errorf("file %s is no conversation", path), hint}
	}
	if len(s.Messages)%2 != 0 {
		return nil, &hinted{fmt.Errorf("file %s: %s, and every question has an answer", path, plural(len(s.Messages), "message")), hint}
	}
	for i, m := range s.Messages {
		if want := []string{chat.RoleUser, chat.RoleAssistant}[i%2]; m.Role != want {
			return nil, &hinted{fmt.Errorf("file %s: message %d is by %q, not %q", path, i+1, m.Role, want), hint}
		}
	}
	return &s, nil
}
