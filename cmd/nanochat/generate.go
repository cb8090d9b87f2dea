package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/core/tokenizer"
)

// maxPrompt bounds what is read from standard input. A prompt that fits any
// context is far smaller.
const maxPrompt = 64 << 20

type generateCmd struct {
	modelArg
	Prompt *string `arg:"" optional:"" help:"The text to continue; - or nothing reads standard input."`

	MaxTokens   size    `short:"n" default:"200" placeholder:"N" help:"Tokens to generate at most; 0: as many as the context holds (default: ${default})."`
	Temperature float64 `short:"t" default:"0" placeholder:"T" help:"0 takes the most likely token (default: ${default})."`
	TopK        int     `short:"k" default:"0" placeholder:"K" help:"Choose among the K most likely tokens; 0: all (default: ${default})."`
	TopP        float64 `short:"p" default:"1" placeholder:"P" help:"Choose among the most likely tokens that together reach P (default: ${default})."`
	MinP        float64 `name:"min-p" default:"0" placeholder:"P" help:"Choose among tokens at least P times as likely as the likeliest (default: ${default})."`
	Seed        uint64  `default:"0" placeholder:"N" help:"The same seed gives the same text (default: ${default})."`

	RepeatPenalty    float64  `default:"1" placeholder:"X" help:"Divide the logits of tokens seen before; 1: off (default: ${default})."`
	PresencePenalty  float64  `default:"0" placeholder:"X" help:"Subtract from the logits of tokens generated before (default: ${default})."`
	FrequencyPenalty float64  `default:"0" placeholder:"X" help:"Subtract as often as a token was generated (default: ${default})."`
	PenaltyWindow    int      `default:"0" placeholder:"N" help:"Last tokens that penalties see; 0: all (default: ${default})."`
	LogitBias        []string `sep:"none" placeholder:"TOKEN=BIAS" help:"Add to the logit of a token id; -inf bans it. May be repeated."`
	Stop             []string `sep:"none" placeholder:"TEXT" help:"Stop before this text. May be repeated."`
	IgnoreEnd        bool     `help:"Go on after the tokens that end a text."`
	Special          bool     `help:"Read the texts of special tokens in the prompt as those tokens."`
	Logprobs         int      `default:"-1" placeholder:"N" help:"With --json: log probabilities, and of the N likeliest tokens."`

	JSON     bool `name:"json" help:"Print one JSON object at the end."`
	NoStream bool `help:"Print the text at the end, not as it comes."`
	Usage    bool `short:"u" help:"Show counts and speed on standard error."`

	Speculate int  `default:"0" placeholder:"N" help:"Guess up to N tokens ahead from the text so far; changes no token (default: ${default})."`
	Context   size `default:"0" placeholder:"N" help:"Positions to make room for; 0: what the model was made for (default: ${default})."`
	engineFlags
	runFlags
}

// answer is what `generate --json` prints.
type answer struct {
	Text         string    `json:"text"`
	Tokens       []int32   `json:"tokens"`
	Logprobs     []logprob `json:"logprobs,omitempty"`
	FinishReason string    `json:"finish_reason"`
	Seed         uint64    `json:"seed"`
	Usage        usage     `json:"usage"`
	Timing       timing    `json:"timing"`
	Kernel       string    `json:"kernel"`
	Threads      int       `json:"threads"`
}

type logprob struct {
	ID      int32     `json:"id"`
	Text    string    `json:"text"`
	Logprob float32   `json:"logprob"`
	Top     []logprob `json:"top,omitempty"`
}

type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Drafted    int `json:"drafted_tokens,omitempty"`
	Accepted   int `json:"accepted_tokens,omitempty"`
}

type timing struct {
	LoadMS    float64 `json:"load_ms"`
	PrefillMS float64 `json:"prefill_ms"`
	DecodeMS  float64 `json:"decode_ms"`
	PrefillPS float64 `json:"prefill_tok_s"`
	DecodePS  float64 `json:"decode_tok_s"`
}

// Run generates and prints.
func (c *generateCmd) Run(a *app) error {
	if err := c.check(a); err != nil {
		return err
	}
	req, err := c.request()
	if err != nil {
		return err
	}
	opts, err := c.alone(&c.engineFlags, c.Context, c.Speculate)
	if err != nil {
		return err
	}
	if req.Prompt, err = c.prompt(a); err != nil {
		return err
	}
	begin := time.Now()
	m, err := a.openModel(c.Model, opts)
	if err != nil {
		return err
	}
	defer m.Close()
	out := answer{Tokens: []int32{}, Seed: c.Seed, Kernel: m.Kernel(), Threads: m.Threads()}
	out.Timing.LoadMS = ms(time.Since(begin))

	s, err := m.Generate(a.ctx, req)
	if err != nil {
		return flagNames(err)
	}
	defer s.Close()
	err = c.read(a, m, s, &out)
	out.summarise(s.Result())
	if c.Usage {
		line := out.line()
		if !c.JSON && !a.stdoutTTY && out.Text != "" && !strings.HasSuffix(out.Text, "\n") {
			line = "\n" + line // both often end on the same screen, and nothing may be added to the text
		}
		fmt.Fprintln(a.stderr, line)
	}
	if err != nil {
		return err
	}
	if c.JSON {
		return writeJSON(a.stdout, &out)
	}
	return nil
}

// read prints the pieces as they come, unless the text is wanted at the end.
func (c *generateCmd) read(a *app, m *chat.Model, s *chat.Stream, out *answer) error {
	var text strings.Builder
	stream := !c.JSON && !c.NoStream
	w := bufio.NewWriter(a.stdout)
	for {
		p, err := s.Next(a.ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if stream && a.stdoutTTY {
				fmt.Fprintln(a.stderr)
			}
			return err
		}
		text.WriteString(p.Text)
		if p.ID >= 0 {
			out.Tokens = append(out.Tokens, p.ID)
			if c.Logprobs >= 0 {
				out.Logprobs = append(out.Logprobs, logprobOf(m.Tokenizer(), p))
			}
		}
		if stream && p.Text != "" {
			if _, err := w.WriteString(p.Text); err != nil {
				return err
			}
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
	out.Text = text.String()
	if !stream && !c.JSON {
		if _, err := io.WriteString(a.stdout, out.Text); err != nil {
			return err
		}
	}
	if !c.JSON && a.stdoutTTY && !strings.HasSuffix(out.Text, "\n") {
		_, err := fmt.Fprintln(a.stdout)
		return err
	}
	return nil
}

func logprobOf(t *tokenizer.Tokenizer, p chat.Piece) logprob {
	l := logprob{ID: p.ID, Text: pieceText(t, p.ID), Logprob: p.Logprob}
	for _, top := range p.Top {
		l.Top = append(l.Top, logprob{ID: top.ID, Text: pieceText(t, top.ID), Logprob: top.Logprob})
	}
	return l
}

func pieceText(t *tokenizer.Tokenizer, id int32) string {
	return strings.ToValidUTF8(string(t.Piece(id)), "\ufffd")
}

// request is the flags that choose the text.
func (c *generateCmd) request() (chat.Request, error) {
	bias, err := c.biases()
	if err != nil {
		return chat.Request{}, err
	}
	if c.MaxTokens < 0 || int64(c.MaxTokens) > 1<<31-1 {
		return chat.Request{}, &usageError{fmt.Sprintf("--max-tokens %d is outside 0 to %d", c.MaxTokens, 1<<31-1), "0 means as many as the context holds"}
	}
	r := chat.Request{
		MaxTokens: int(c.MaxTokens), Stop: c.Stop, IgnoreEnd: c.IgnoreEnd, ParseSpecial: c.Special,
		Sample: sample.Options{
			Temperature: c.Temperature, TopK: c.TopK, TopP: c.TopP, MinP: c.MinP, Seed: c.Seed,
			RepeatPenalty: c.RepeatPenalty, PresencePenalty: c.PresencePenalty, FrequencyPenalty: c.FrequencyPenalty,
			PenaltyWindow: c.PenaltyWindow, LogitBias: bias,
		},
	}
	if c.Logprobs >= 0 {
		if !c.JSON {
			return chat.Request{}, &usageError{"--logprobs without --json", "log probabilities are part of the JSON output: add --json"}
		}
		r.Sample.Logprobs, r.Sample.TopLogprobs = true, c.Logprobs
	}
	return r, nil
}

func (c *generateCmd) biases() (map[int32]float32, error) {
	out := map[int32]float32{}
	for _, arg := range c.LogitBias {
		token, text, _ := strings.Cut(arg, "=")
		id, err1 := strconv.ParseInt(token, 10, 32)
		b, err2 := strconv.ParseFloat(text, 32)
		if err1 != nil || err2 != nil {
			return nil, &usageError{fmt.Sprintf("--logit-bias %s is not a token id, = and a number", arg), "write TOKEN=BIAS, as in --logit-bias 13=-inf"}
		}
		out[int32(id)] = float32(b)
	}
	return out, nil
}

// prompt is the argument or standard input.
func (c *generateCmd) prompt(a *app) (string, error) {
	if c.Prompt != nil && *c.Prompt != "-" {
		return *c.Prompt, nil
	}
	if c.Prompt == nil && a.stdinTTY {
		return "", &usageError{"no prompt", "nanochat generate MODEL 'fn main() {', or pipe a text into it"}
	}
	b, err := a.readStdin(maxPrompt)
	switch {
	case err != nil:
		return "", err
	case len(b) == 0:
		return "", &usageError{"standard input: the prompt is empty", "nanochat generate MODEL 'fn main() {', or pipe a text into it"}
	}
	return string(b), nil
}

// flagNames turns errors about options, which have the names of requests, into
// errors about the command line.
func flagNames(err error) error {
	if o, ok := errors.AsType[*sample.OptionError](err); ok {
		return &usageError{o.Error(), "the flag is --" + strings.ReplaceAll(o.Option, "_", "-") + "; see nanochat generate --help"}
	}
	if r, ok := errors.AsType[*infer.RequestError](err); ok {
		return &usageError{r.Error(), "the flag is --" + strings.ReplaceAll(r.Field, "_", "-") + "; see nanochat generate --help"}
	}
	if l, ok := errors.AsType[*model.LimitError](err); ok {
		return &usageError{l.Error(), fmt.Sprintf("--context %d, or less, or leave it out", l.Context)}
	}
	if _, ok := errors.AsType[*infer.ContextError](err); ok {
		return &hinted{err, "shorten the prompt, or use a model with a longer context"}
	}
	return err
}

func (o *answer) summarise(r infer.Result) {
	o.FinishReason = string(r.Reason)
	o.Usage = usage{r.PromptTokens, len(o.Tokens), r.Drafted, r.Accepted}
	o.Timing.PrefillMS, o.Timing.DecodeMS = ms(r.Prefill), ms(r.Decode)
	if s := r.Prefill.Seconds(); s > 0 {
		o.Timing.PrefillPS = float64(r.PromptTokens) / s
	}
	// Prefill ends with the first token.
	if s := r.Decode.Seconds(); s > 0 && r.Generated > 1 {
		o.Timing.DecodePS = float64(r.Generated-1) / s
	}
}

// line is the summary of -u.
func (o *answer) line() string {
	s := fmt.Sprintf("prompt %d tokens, %.0f tok/s; answer %d tokens, %.0f tok/s; load %.0f ms; %s on %s; %s",
		o.Usage.Prompt, o.Timing.PrefillPS, o.Usage.Completion, o.Timing.DecodePS, o.Timing.LoadMS, o.Kernel, plural(o.Threads, "thread"), o.FinishReason)
	if o.Usage.Drafted > 0 {
		s += fmt.Sprintf("; %d of %d guesses right", o.Usage.Accepted, o.Usage.Drafted)
	}
	return s
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
