package gopurego

import (
	"context"
	"errors"
	"io"
	"iter"
	"runtime"
	"time"
	"unsafe"
)

// ModelOptions say how a model is run. The zero value is the default.
type ModelOptions struct {
	// Threads, Context, Batch and Speculate are as in nanochat_model_options.
	Threads, Context, Batch, Speculate uint32
	// Kernel is one of SystemInfo's kernels, Device is cpu, cuda or auto.
	Kernel, Device string
	// Pin binds threads to processors, KVInt8 keeps keys and values in 8 bits,
	// NoHugePages uses weights where the file is mapped.
	Pin, KVInt8, NoHugePages bool
}

// modelOptions is nanochat_model_options.
type modelOptions struct {
	size, flags, threads, context, batch, speculate uint32
	kernel, device                                  *byte
}

// Model is an open model.
type Model struct {
	l *Library
	h uintptr
}

// OpenModel opens a model file, or the model of a name that is on this machine. Close
// closes it.
func (l *Library) OpenModel(name string, o ModelOptions) (*Model, error) {
	var pins runtime.Pinner
	defer pins.Unpin()
	c := modelOptions{
		flags:   bit(o.Pin, 1) | bit(o.KVInt8, 2) | bit(o.NoHugePages, 4),
		threads: o.Threads, context: o.Context, batch: o.Batch, speculate: o.Speculate,
	}
	c.size = uint32(unsafe.Sizeof(c))
	if o.Kernel != "" {
		c.kernel = text(&pins, o.Kernel)
	}
	if o.Device != "" {
		c.device = text(&pins, o.Device)
	}
	m := &Model{l: l}
	var err uintptr
	if e := l.check(l.c.modelOpen(name, &c, &m.h, &err), err); e != nil {
		return nil, e
	}
	return m, nil
}

func bit(on bool, flag uint32) uint32 {
	if on {
		return flag
	}
	return 0
}

// Info is a JSON object about the model.
func (m *Model) Info() ([]byte, error) {
	return read[byte](m.l, func(p unsafe.Pointer, n uint64, length *uint64, err *uintptr) Status {
		return m.l.c.modelInfo(m.h, p, n, length, err)
	})
}

// Tokenize is the ids of a text, as a prompt is read.
func (m *Model) Tokenize(text string) ([]int32, error) {
	const prompt = 2
	return read[int32](m.l, func(p unsafe.Pointer, n uint64, count *uint64, err *uintptr) Status {
		return m.l.c.tokenize(m.h, unsafe.Pointer(unsafe.StringData(text)), uint64(len(text)), prompt, p, n, count, err)
	})
}

// Detokenize is the text of ids without control tokens.
func (m *Model) Detokenize(ids []int32) (string, error) {
	const plain = 1
	b, err := read[byte](m.l, func(p unsafe.Pointer, n uint64, length *uint64, err *uintptr) Status {
		return m.l.c.detokenize(m.h, unsafe.Pointer(unsafe.SliceData(ids)), uint64(len(ids)), plain, p, n, length, err)
	})
	return string(b), err
}

// Close closes the model. Its streams go on.
func (m *Model) Close() error { return m.l.check(m.l.c.modelClose(m.h), 0) }

// GenerateOptions say what to generate. The zero value is not the default: see
// DefaultGenerateOptions.
type GenerateOptions struct {
	// MaxTokens of 0 means as many as the context holds.
	MaxTokens, TopK                                  uint32
	Temperature, TopP, MinP                          float64
	RepeatPenalty, PresencePenalty, FrequencyPenalty float64
	PenaltyWindow                                    uint32
	Seed                                             uint64
	// Stops are texts that end the answer without being part of it.
	Stops []string
	// TopLogprobs is how many of the most likely tokens Stream.Top gives.
	TopLogprobs uint32
	// LogitBias is added to the logits of tokens.
	LogitBias map[int32]float32
	// IgnoreEnd goes on after the tokens that end a text; Special reads the texts of
	// control tokens in the prompt as those tokens; Logprobs gives log probabilities.
	IgnoreEnd, Special, Logprobs bool
	// Echo begins with the tokens of the prompt; Logits keeps what Stream.Logits gives,
	// Embedding what Stream.Embedding gives; PromptOnly generates nothing.
	Echo, Logits, Embedding, PromptOnly bool
}

// DefaultGenerateOptions is 200 tokens, each the most likely one.
func DefaultGenerateOptions() GenerateOptions {
	return GenerateOptions{MaxTokens: 200, TopP: 1, RepeatPenalty: 1}
}

// generateOptions is nanochat_generate_options.
type generateOptions struct {
	size, flags, maxTokens, topK                     uint32
	temperature, topP, minP                          float64
	repeatPenalty, presencePenalty, frequencyPenalty float64
	seed                                             uint64
	penaltyWindow, topLogprobs                       uint32
	stops                                            **byte
	stopLengths                                      *uint64
	stopCount                                        uint64
	biasIDs                                          *int32
	biasValues                                       *float32
	biasCount                                        uint64
}

// Generate starts the continuation of a prompt.
func (m *Model) Generate(prompt string, o GenerateOptions) (*Stream, error) {
	return m.l.stream(&o, func(c *generateOptions, stream, err *uintptr) Status {
		return m.l.c.streamOpen(m.h, unsafe.Pointer(unsafe.StringData(prompt)), uint64(len(prompt)), c, stream, err)
	})
}

// stream starts what open asks for.
func (l *Library) stream(o *GenerateOptions, open func(c *generateOptions, stream, err *uintptr) Status) (*Stream, error) {
	var pins runtime.Pinner
	defer pins.Unpin()
	c := generateOptions{
		flags:     bit(o.IgnoreEnd, 1) | bit(o.Special, 2) | bit(o.Logprobs, 4) | bit(o.Echo, 8) | bit(o.Logits, 16) | bit(o.Embedding, 32) | bit(o.PromptOnly, 64),
		maxTokens: o.MaxTokens, topK: o.TopK, temperature: o.Temperature, topP: o.TopP, minP: o.MinP,
		repeatPenalty: o.RepeatPenalty, presencePenalty: o.PresencePenalty, frequencyPenalty: o.FrequencyPenalty,
		seed: o.Seed, penaltyWindow: o.PenaltyWindow, topLogprobs: o.TopLogprobs,
		stopCount: uint64(len(o.Stops)), biasCount: uint64(len(o.LogitBias)),
	}
	c.size = uint32(unsafe.Sizeof(c))
	if len(o.Stops) > 0 {
		texts, lengths := make([]*byte, len(o.Stops)), make([]uint64, len(o.Stops))
		for i, s := range o.Stops {
			texts[i], lengths[i] = unsafe.StringData(s+"\x00"), uint64(len(s))
			pins.Pin(texts[i])
		}
		c.stops, c.stopLengths = &texts[0], &lengths[0]
		pins.Pin(c.stops)
		pins.Pin(c.stopLengths)
	}
	if len(o.LogitBias) > 0 {
		ids, values := make([]int32, 0, len(o.LogitBias)), make([]float32, 0, len(o.LogitBias))
		for id, v := range o.LogitBias {
			ids, values = append(ids, id), append(values, v)
		}
		c.biasIDs, c.biasValues = &ids[0], &values[0]
		pins.Pin(c.biasIDs)
		pins.Pin(c.biasValues)
	}
	s := &Stream{l: l, buffer: make([]byte, 4096)}
	var err uintptr
	if e := l.check(open(&c, &s.h, &err), err); e != nil {
		return nil, e
	}
	return s, nil
}

// Piece is one token and the text that it completed.
type Piece struct {
	// ID is the token, or -1 for text that was held back until the end.
	ID int32
	// Text is whole characters; it may be empty.
	Text string
	// Logprob is the natural logarithm of the token's probability, with Logprobs.
	Logprob float32
	// Echo says that it is a token of the prompt.
	Echo bool
}

// piece is nanochat_piece.
type piece struct {
	size          uint32
	token, finish int32
	logprob       float32
	length        uint64
	flags, _      uint32
}

// Finish is why an answer ended.
type Finish int32

// The reasons.
const (
	NotFinished       Finish = 0
	FinishedStop      Finish = 1
	FinishedLength    Finish = 2
	FinishedCancelled Finish = 3
	FinishedError     Finish = 4
)

// Stats says how an answer went so far.
type Stats struct {
	Finish                              Finish
	Prompt, Cached, Generated           uint64 // tokens
	Drafted, Accepted                   uint64 // tokens guessed ahead
	QueuedTime, PrefillTime, DecodeTime time.Duration
}

// stats is nanochat_stats.
type stats struct {
	size                      uint32
	finish                    int32
	prompt, cached, generated uint64
	drafted, accepted         uint64
	queued, prefill, decode   uint64
}

// Stream gives the pieces of an answer.
type Stream struct {
	l      *Library
	h      uintptr
	buffer []byte
}

// slice is how long a call waits before it looks at its context, in milliseconds.
const slice = 50

// Next waits for the next piece. It returns io.EOF at the end of the answer. If ctx is
// done first it returns ctx.Err(); the stream goes on and Next may be called again.
func (s *Stream) Next(ctx context.Context) (Piece, error) {
	p := piece{}
	p.size = uint32(unsafe.Sizeof(p))
	for {
		if err := ctx.Err(); err != nil {
			return Piece{}, err
		}
		var e uintptr
		status := s.l.c.streamNext(s.h, slice, unsafe.Pointer(unsafe.SliceData(s.buffer)), uint64(len(s.buffer)), &p, &e)
		err := s.l.check(status, e)
		switch {
		case status == timeout:
		case status == bufferTooSmall:
			s.buffer = make([]byte, p.length)
		case err != nil:
			return Piece{}, err
		case p.finish != 0:
			return Piece{}, io.EOF
		default:
			return Piece{ID: p.token, Text: string(s.buffer[:p.length]), Logprob: p.logprob, Echo: p.flags&1 != 0}, nil
		}
	}
}

// All gives the pieces that are left. An error is the last thing it gives.
func (s *Stream) All(ctx context.Context) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		for {
			p, err := s.Next(ctx)
			if errors.Is(err, io.EOF) || !yield(p, err) || err != nil {
				return
			}
		}
	}
}

// Candidate is a token that could have been chosen.
type Candidate struct {
	ID      int32
	Logprob float32
}

// Top is the TopLogprobs most likely tokens at the place of the token that Next
// gave last, most likely first.
func (s *Stream) Top() ([]Candidate, error) {
	var logprobs []float32
	ids, err := read[int32](s.l, func(p unsafe.Pointer, n uint64, count *uint64, err *uintptr) Status {
		logprobs = make([]float32, n)
		return s.l.c.streamTop(s.h, p, unsafe.Pointer(unsafe.SliceData(logprobs)), n, count, err)
	})
	out := make([]Candidate, len(ids))
	for i, id := range ids {
		out[i] = Candidate{id, logprobs[i]}
	}
	return out, err
}

// Stats says how the answer went so far.
func (s *Stream) Stats() (Stats, error) {
	c := stats{}
	c.size = uint32(unsafe.Sizeof(c))
	var e uintptr
	err := s.l.check(s.l.c.streamStats(s.h, &c, &e), e)
	return Stats{
		Finish: Finish(c.finish), Prompt: c.prompt, Cached: c.cached, Generated: c.generated, Drafted: c.drafted, Accepted: c.accepted,
		QueuedTime: time.Duration(c.queued), PrefillTime: time.Duration(c.prefill), DecodeTime: time.Duration(c.decode),
	}, err
}

// Cancel ends generation and returns at once: Next then fails with Cancelled.
func (s *Stream) Cancel() error { return s.l.check(s.l.c.streamCancel(s.h), 0) }

// Close ends the stream.
func (s *Stream) Close() error { return s.l.check(s.l.c.streamClose(s.h), 0) }
