package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/architehc/nanochat/core/load"
)

// loadFlags are those of `benchmark --server`.
type loadFlags struct {
	Server      string        `placeholder:"URL" help:"Put a load on a server that speaks OpenAI's HTTP, and measure what its clients feel."`
	ServerModel string        `name:"model" placeholder:"NAME" help:"With --server: the model that is asked (default: the first that the server lists)."`
	APIKey      string        `name:"api-key" env:"NANOCHAT_API_KEY,OPENAI_API_KEY" placeholder:"KEY" help:"With --server: the API key."`
	Rate        float64       `placeholder:"R" help:"With --server: R requests a second arrive at random times, whatever becomes of those before."`
	Concurrency int           `placeholder:"N" help:"With --server: N clients send one request after the other (default: 1, without --rate)."`
	Requests    size          `placeholder:"K" help:"With --server: how many requests (default: 100, without --duration)."`
	Duration    time.Duration `placeholder:"TIME" help:"With --server: for how long requests are sent, as in 30s."`
	Prompts     string        `placeholder:"FILE" help:"With --server: a prompt a line; in a file .jsonl, the \"prompt\" of each object (default: beginnings of Rust files)."`
	MaxTokens   size          `placeholder:"N" help:"With --server: most tokens of an answer (default: 64)."`
	Temperature float64       `placeholder:"T" help:"With --server: temperature of the answers (default: 0)."`
	Seed        uint64        `placeholder:"N" help:"With --server: of the times and the answers (default: 0)."`
	Chat        bool          `help:"With --server: ask /v1/chat/completions, not /v1/completions."`
	Timeout     time.Duration `placeholder:"TIME" help:"With --server: a request that takes longer has failed (default: 2m)."`
}

// serverOnly are the names of the flags above that were given without --server.
func (f *loadFlags) serverOnly() string {
	for _, g := range []struct {
		name string
		set  bool
	}{
		{"--model", f.ServerModel != ""}, {"--rate", f.Rate != 0}, {"--concurrency", f.Concurrency != 0}, {"--requests", f.Requests != 0},
		{"--duration", f.Duration != 0}, {"--prompts", f.Prompts != ""}, {"--max-tokens", f.MaxTokens != 0},
		{"--temperature", f.Temperature != 0}, {"--seed", f.Seed != 0}, {"--chat", f.Chat}, {"--timeout", f.Timeout != 0},
	} {
		if g.set {
			return g.name
		}
	}
	return ""
}

// runLoad measures a server.
func (f *loadFlags) runLoad(a *app, asJSON bool) error {
	prompts, err := f.prompts()
	if err != nil {
		return err
	}
	a.patient.Store(true) // an interrupt shows what was measured until then
	shown := time.Now()
	r, err := load.Run(a.ctx, load.Options{
		URL: f.Server, Key: f.APIKey, Model: f.ServerModel, Chat: f.Chat, Prompts: prompts, MaxTokens: int(f.MaxTokens),
		Temperature: f.Temperature, Seed: f.Seed, Rate: f.Rate, Concurrency: f.Concurrency, Requests: int(f.Requests),
		Duration: f.Duration, Timeout: f.Timeout, Warmup: 1,
		Progress: func(ended int) {
			if time.Since(shown) > 100*time.Millisecond {
				shown = time.Now()
				a.note(plural(ended, "request"))
			}
		},
	})
	a.noteDone()
	if o, ok := errors.AsType[*load.OptionError](err); ok {
		return &usageError{strings.TrimPrefix(o.Error(), "load: "), "see nanochat benchmark --help"}
	}
	if s, ok := errors.AsType[*load.StatusError](err); ok && (s.Status == 401 || s.Status == 403) {
		return &hinted{s, "give the key with --api-key or NANOCHAT_API_KEY"}
	}
	if s, ok := errors.AsType[*load.StatusError](err); ok && s.Status == 404 {
		return &hinted{s, "leave out --model for the first one that the server has"}
	}
	if r == nil {
		return &hinted{err, "start one with nanochat serve MODEL, and give the address that it prints"}
	}
	var shownErr error
	if asJSON {
		shownErr = writeJSON(a.stdout, r)
	} else {
		shownErr = r.Text(a.stdout)
	}
	if err == nil && shownErr == nil && r.Answered == 0 {
		return &hinted{errors.New("no request was answered"), "the report counts the failures by kind"}
	}
	return errors.Join(shownErr, err)
}

// prompts reads --prompts.
func (f *loadFlags) prompts() (list []string, err error) {
	if f.Prompts == "" {
		return nil, nil
	}
	b, err := os.ReadFile(f.Prompts)
	if err != nil {
		return nil, fmt.Errorf("file %s: %s", f.Prompts, reason(err))
	}
	n := 0
	for line := range bytes.Lines(b) {
		n++
		line = bytes.TrimRight(line, "\r\n")
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		text := string(line)
		if strings.HasSuffix(f.Prompts, ".jsonl") {
			var o struct{ Prompt *string }
			if err := json.Unmarshal(line, &o); err != nil || o.Prompt == nil {
				return nil, &usageError{fmt.Sprintf("file %s, line %d: no JSON object with a \"prompt\"", f.Prompts, n), `as in {"prompt": "fn main() {\n"}`}
			}
			text = *o.Prompt
		}
		list = append(list, text)
	}
	if len(list) == 0 {
		return nil, &usageError{fmt.Sprintf("file %s holds no prompt", f.Prompts), "one a line"}
	}
	return list, nil
}
