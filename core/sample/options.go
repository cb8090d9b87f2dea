// Package sample turns one row of logits into one token id.
//
// It knows no model and no text. The id depends on the logits, the options,
// the seed, the position and the tokens accepted before, and on nothing else:
// never on a batch, a thread, a clock or a kernel.
//
// # Definition
//
// For a row l and the tokens accepted so far:
//
//	l' = l with repetition, then presence and frequency penalties, plus bias
//	p  = softmax(l' / Temperature)
//
// Tokens are ordered by p, the lower id first among equals. TopK keeps the
// first K; TopP then keeps the shortest beginning whose share of what TopK
// kept reaches TopP; MinP then keeps what is at least MinP times the largest.
// One of the kept tokens is drawn in proportion to p, by the random number of
// (Seed, position). Temperature 0 takes the largest l'.
package sample

import (
	"fmt"
	"math"
	"slices"
)

// MaxTopLogprobs is the largest accepted Options.TopLogprobs.
const MaxTopLogprobs = 64

// Options choose the distribution to draw from. The zero value is greedy.
type Options struct {
	// Temperature divides the logits. 0 takes the most likely token.
	Temperature float64
	// TopK keeps the K most likely tokens. 0 keeps all.
	TopK int
	// TopP keeps the most likely tokens that together reach this share. 0 and 1 keep all.
	TopP float64
	// MinP keeps tokens at least this times as likely as the most likely one. 0 keeps all.
	MinP float64

	// RepeatPenalty divides positive and multiplies negative logits of tokens in
	// the window, prompt included (the definition of Hugging Face transformers).
	// 0 and 1 are off.
	RepeatPenalty float64
	// PresencePenalty is subtracted from the logits of tokens generated in the window.
	PresencePenalty float64
	// FrequencyPenalty is subtracted once for each time a token was generated in the
	// window (both as OpenAI defines them).
	FrequencyPenalty float64
	// PenaltyWindow is how many of the last tokens the penalties see. 0 means all.
	PenaltyWindow int

	// LogitBias is added to the logits of these ids; negative infinity bans one.
	LogitBias map[int32]float32

	// Seed chooses the random numbers.
	Seed uint64

	// Logprobs asks for the natural logarithm of the chosen token's probability
	// under softmax(l): the model's own distribution, before any option.
	Logprobs bool
	// TopLogprobs asks for this many of the most likely tokens under softmax(l).
	TopLogprobs int
}

// OptionError reports an option that is out of range.
type OptionError struct {
	// Option is the name in the form of requests and flags, such as "top_p".
	Option string
	// Value is what was found.
	Value any
	// Want says what is accepted.
	Want string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("sample: %s is %v, must be %s", e.Option, e.Value, e.Want)
}

const minTemperature = 1e-6

// Validate reports the first option that is out of range for a vocabulary of
// this size as an *OptionError.
func (o Options) Validate(vocab int) error {
	in := func(v, lo, hi float64) bool { return v >= lo && v <= hi } // false for NaN
	for _, c := range []struct {
		ok   bool
		name string
		val  any
		want string
	}{
		{vocab > 0, "vocab", vocab, "at least 1"},
		{o.Temperature == 0 || in(o.Temperature, minTemperature, 100), "temperature", o.Temperature, "0 (greedy) or 0.000001 to 100"},
		{o.TopK >= 0, "top_k", o.TopK, "0 (off) or more"},
		{in(o.TopP, 0, 1), "top_p", o.TopP, "0 (off) to 1"},
		{in(o.MinP, 0, 1), "min_p", o.MinP, "0 (off) to 1"},
		{o.RepeatPenalty == 0 || in(o.RepeatPenalty, 0.01, 100), "repeat_penalty", o.RepeatPenalty, "0 (off) or 0.01 to 100"},
		{in(o.PresencePenalty, -100, 100), "presence_penalty", o.PresencePenalty, "-100 to 100"},
		{in(o.FrequencyPenalty, -100, 100), "frequency_penalty", o.FrequencyPenalty, "-100 to 100"},
		{o.PenaltyWindow >= 0, "penalty_window", o.PenaltyWindow, "0 (all) or more"},
		{o.TopLogprobs >= 0 && o.TopLogprobs <= MaxTopLogprobs, "top_logprobs", o.TopLogprobs, fmt.Sprintf("0 to %d", MaxTopLogprobs)},
	} {
		if !c.ok {
			return &OptionError{c.name, c.val, c.want}
		}
	}
	ids := make([]int32, 0, len(o.LogitBias))
	for id := range o.LogitBias {
		ids = append(ids, id)
	}
	slices.Sort(ids) // the same error every time
	for _, id := range ids {
		if id < 0 || int(id) >= vocab {
			return &OptionError{"logit_bias", fmt.Sprintf("for id %d", id), fmt.Sprintf("for ids 0 to %d", vocab-1)}
		}
		if b := o.LogitBias[id]; !in(float64(b), -1e6, 1e6) && !math.IsInf(float64(b), -1) {
			return &OptionError{"logit_bias", fmt.Sprintf("%v for id %d", b, id), "-1e6 to 1e6, or negative infinity"}
		}
	}
	return nil
}

// penalises says whether the history matters.
func (o Options) penalises() bool {
	return (o.RepeatPenalty != 0 && o.RepeatPenalty != 1) || o.PresencePenalty != 0 || o.FrequencyPenalty != 0
}
