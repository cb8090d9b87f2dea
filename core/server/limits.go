package server

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Limits bound what one request may ask for. The zero value of a field is its
// default.
type Limits struct {
	Body      int // bytes of a request's body
	Header    int // bytes of a request's header
	Depth     int // levels of a request's JSON
	MaxTokens int // tokens of an answer; 0 is the model's context
	N         int // answers to one prompt
	Prompts   int // prompts, or texts to embed, of one request
	Messages  int // messages of one conversation
	Stops     int // stop texts
	StopBytes int // bytes of a stop text
	Biases    int // entries of logit_bias

	ReadHeader time.Duration // until the header has come
	Read       time.Duration // until the whole request has come
	Write      time.Duration // for each write of the answer
	Idle       time.Duration // between two requests of a connection
	Request    time.Duration // for a whole request, waiting included
	Drain      time.Duration // for what runs when the server is told to end
}

// DefaultLimits are the limits of a server that was told none.
var DefaultLimits = Limits{
	Body: 1 << 20, Header: 32 << 10, Depth: 32, N: 8, Prompts: 32, Messages: 1024, Stops: 4, StopBytes: 64, Biases: 300,
	ReadHeader: 5 * time.Second, Read: 30 * time.Second, Write: 10 * time.Second, Idle: time.Minute,
	Request: 10 * time.Minute, Drain: 30 * time.Second,
}

// limitRange is what a limit may be set to.
var limitRange = struct{ counts, times [2]float64 }{counts: [2]float64{1, 1 << 30}, times: [2]float64{0.01, 86400}}

func (l Limits) withDefaults() (Limits, error) {
	d := DefaultLimits
	for _, c := range []struct {
		name string
		v    *int
		def  int
	}{
		{"body", &l.Body, d.Body}, {"header", &l.Header, d.Header}, {"depth", &l.Depth, d.Depth}, {"max_tokens", &l.MaxTokens, 0},
		{"n", &l.N, d.N}, {"prompts", &l.Prompts, d.Prompts}, {"messages", &l.Messages, d.Messages}, {"stops", &l.Stops, d.Stops},
		{"stop_bytes", &l.StopBytes, d.StopBytes}, {"biases", &l.Biases, d.Biases},
	} {
		if *c.v == 0 {
			*c.v = c.def
		}
		if *c.v < 0 || *c.v > 1<<30 {
			return l, fmt.Errorf("server: limit %s is %d, must be 1 to %d", c.name, *c.v, 1<<30)
		}
	}
	for _, c := range []struct {
		name string
		v    *time.Duration
		def  time.Duration
	}{
		{"read_header", &l.ReadHeader, d.ReadHeader}, {"read", &l.Read, d.Read}, {"write", &l.Write, d.Write}, {"idle", &l.Idle, d.Idle},
		{"request", &l.Request, d.Request}, {"drain", &l.Drain, d.Drain},
	} {
		if *c.v == 0 {
			*c.v = c.def
		}
		if s := c.v.Seconds(); s < limitRange.times[0] || s > limitRange.times[1] {
			return l, fmt.Errorf("server: limit %s is %v, must be 10ms to 24h", c.name, *c.v)
		}
	}
	return l, nil
}

// Limit is the range of one number of a request.
type Limit struct {
	// Name is the field as clients write it.
	Name string
	// Min and Max are accepted, and all between.
	Min, Max float64
	// Whole says that it is an integer.
	Whole bool
	// Default is what stands for an absent field.
	Default string
	// What is what the number means.
	What string
}

// maxSeed is 2^63, the first seed beyond int64.
const maxSeed = 1 << 63

// Table lists the numbers that requests hold, with their ranges on a model of
// this context. Validation, messages, the help and docs/SERVER.md all read it.
func (l Limits) Table(context int) []Limit {
	longest := float64(context)
	if l.MaxTokens > 0 {
		longest = min(longest, float64(l.MaxTokens))
	}
	return []Limit{
		{"max_tokens", 0, longest, true, "chat: as many as fit; completions: 16", "tokens to generate; 0 only with echo"},
		{"n", 1, float64(l.N), true, "1", "answers to each prompt, with the seeds seed, seed+1, ..."},
		{"best_of", 1, float64(l.N), true, "n", "answers of which the n likeliest are sent"},
		{"temperature", 0, 10, false, "1", "0 takes the most likely token"},
		{"top_p", 0, 1, false, "1", "choose among the likeliest tokens that together reach this share"},
		{"top_k", 0, 1 << 20, true, "0", "choose among this many tokens; 0: all"},
		{"min_p", 0, 1, false, "0", "choose among tokens at least this times as likely as the likeliest"},
		{"repetition_penalty", 0.01, 100, false, "1", "divides the logits of tokens seen before"},
		{"repeat_penalty", 0.01, 100, false, "", "the same by its other name"},
		{"presence_penalty", -2, 2, false, "0", "subtracted from the logits of tokens generated before"},
		{"frequency_penalty", -2, 2, false, "0", "subtracted as often as a token was generated"},
		{"penalty_window", 0, 1 << 20, true, "0", "last tokens that penalties see; 0: all"},
		{"seed", -maxSeed, maxSeed - 1, true, "random", "the same seed, the same answer"},
		{"logprobs", 0, 20, true, "none", "completions: log probabilities, and of this many of the likeliest tokens"},
		{"top_logprobs", 0, 20, true, "0", "chat, with logprobs true: as above"},
		{"logit_bias", -100, 100, false, "none", "added to the logit of a token; -100 bans it"},
		{"stop", 0, float64(l.Stops), true, "none", fmt.Sprintf("texts that end the answer, of 1 to %d bytes each", l.StopBytes)},
		{"logit_bias entries", 0, float64(l.Biases), true, "0", "tokens in logit_bias"},
		{"messages", 1, float64(l.Messages), true, required, "messages of a conversation"},
		{"prompts", 1, float64(l.Prompts), true, required, "texts in prompt or input, each of one answer or more"},
		{"JSON depth", 1, float64(l.Depth), true, "", "levels of arrays and objects"},
		{"body bytes", 2, float64(l.Body), true, "", "larger ones get 413"},
		{"header bytes", 0, float64(l.Header), true, "", "larger ones get 431"},
	}
}

// Range is the limit in words.
func (r Limit) Range() string {
	least, most := r.bounds()
	switch r.Default {
	case "":
		return least + " to " + most
	case required:
		return least + " to " + most + "; " + required
	}
	return fmt.Sprintf("%s to %s; if absent: %s", least, most, r.Default)
}

// required stands where a field has no default.
const required = "required"

// bounds are the ends of the range in words; those of the seed are too long in digits.
func (r Limit) bounds() (least, most string) {
	if r.Max >= maxSeed-1 {
		return "-2^63", "2^63-1"
	}
	return number(r.Min), number(r.Max)
}

// check reports a number that is out of range.
func (r Limit) check(v float64, text string) *apiError {
	switch {
	case math.IsNaN(v) || v < r.Min:
		return bad(r.Name, "%s is %s: at least %s is accepted", r.Name, text, number(r.Min))
	case v > r.Max:
		return bad(r.Name, "%s is %s: at most %s is accepted", r.Name, text, number(r.Max))
	}
	return nil
}

// number writes v without an exponent where that is short.
func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e19 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// Markdown is the table for the documentation.
func (l Limits) Markdown(context int) string {
	var b strings.Builder
	b.WriteString("| field or part | from | to | if absent | what |\n|---|---:|---:|---|---|\n")
	for _, r := range l.Table(context) {
		least, most := r.bounds()
		if r.Name == "max_tokens" && l.MaxTokens == 0 {
			most = "the context"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.Name, least, most, r.Default, r.What)
	}
	return b.String()
}
