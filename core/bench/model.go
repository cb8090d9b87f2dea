package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// Model is the speed of one model on one team.
type Model struct {
	// Name is what the caller calls it; Arch where its file comes from.
	Name string `json:"name"`
	Arch string `json:"arch"`
	// Prefill is reading a prompt of Prefill.Tokens, Decode writing Decode.Tokens
	// after a prompt of one token, greedily.
	Prefill Rate `json:"prefill"`
	Decode  Rate `json:"decode"`
	// TTFT is from asking to the first token, for the prompt of Prefill.
	TTFT float64 `json:"ttft_ms"`
	// Load is from opening the file to the first logits.
	Load       float64 `json:"load_ms"`
	LoadSpread Spread  `json:"load_spread_ms"`
	// RSS is the resident memory of the process after the first prefill and decode;
	// RSSPeak the most it has been.
	RSS     int64 `json:"rss_bytes"`
	RSSPeak int64 `json:"rss_peak_bytes"`
	// ModelBytes is the size of the file, or of the weights of a model that is in no
	// file; KVBytes the cache of a whole context.
	ModelBytes int64  `json:"model_bytes"`
	KVBytes    int64  `json:"kv_bytes"`
	Kernel     string `json:"kernel"`
	Threads    int    `json:"threads"`
	// Device is the GPU that computes; without one it is "".
	Device     string `json:"device,omitempty"`
	Streams    int    `json:"streams"`
	Parameters int64  `json:"parameters"`
	// BytesPerToken is the weights that decoding one token reads, and ReadGBs the
	// rate that this makes at the measured speed.
	BytesPerToken int64   `json:"bytes_per_token"`
	ReadGBs       float64 `json:"read_gb_s"`
}

// Rate is a speed over a number of tokens.
type Rate struct {
	TokS   float64 `json:"tok_s"`
	Min    float64 `json:"min_tok_s"`
	Max    float64 `json:"max_tok_s"`
	Tokens int     `json:"tokens"`
}

// Opener opens the model anew; closing gives everything back. size is that of
// the file, 0 if there is none.
type Opener func() (m *model.Model, size int64, closing func() error, err error)

// ModelOptions says how to measure a model.
type ModelOptions struct {
	// Name is for the report.
	Name string
	// Open opens the model.
	Open Opener
	// GPU puts the model on a device, which is closed before the model is; it gives nil where the
	// processor is to compute. A nil GPU is the processor.
	GPU func(*model.Model) (*model.GPU, error)
	// Threads is the size of the team; 0 means all cores this process may use.
	Threads int
	// Pin binds the workers to CPUs.
	Pin bool
	// Prompt is the number of tokens of the prefill and Decode the number to
	// generate. More than the context holds is a *ContextError. The default values
	// are 512 and 128, or what the context holds if that is less.
	Prompt, Decode int
	// KVType is the storage of the cache.
	KVType kernels.KVType
	// Repeats is the number of repetitions whose median counts: at least 5.
	Repeats int
	// Progress is told what is being measured, before it is. It may be nil.
	Progress func(name string)

	on *model.GPU // of the engine
}

func (o ModelOptions) withDefaults() ModelOptions {
	if o.Threads <= 0 {
		o.Threads = team.DefaultSize()
	}
	o.Repeats = max(o.Repeats, 5)
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o
}

// MeasureModel measures a model.
func MeasureModel(ctx context.Context, o ModelOptions) (*Model, error) {
	o = o.withDefaults()
	r := &Model{Name: o.Name, Threads: o.Threads}
	if err := r.measureSpeed(ctx, o); err != nil {
		return nil, err
	}
	if err := r.measureLoad(ctx, o); err != nil {
		return nil, err
	}
	return r, nil
}

// engine opens the model and an engine on it.
func (o *ModelOptions) engine() (m *model.Model, size int64, e *infer.Engine, closing func() error, err error) {
	m, size, closeModel, err := o.Open()
	if err != nil {
		return nil, 0, nil, nil, fmt.Errorf("bench: open the model: %w", err)
	}
	e, closeEngine, err := o.engineOn(m, infer.Options{
		Threads: o.Threads, Pin: o.Pin, MaxBatch: 1,
		KVType: o.KVType, NoPrefixCache: true, // every repetition reads its prompt
	})
	if err != nil {
		return nil, 0, nil, nil, errors.Join(err, closeModel())
	}
	return m, size, e, func() error {
		closeEngine()
		return closeModel()
	}, nil
}

// engineOn makes an engine on the device of o.
func (o *ModelOptions) engineOn(m *model.Model, e infer.Options) (_ *infer.Engine, closing func(), err error) {
	if o.GPU != nil {
		if e.GPU, err = o.GPU(m); err != nil {
			return nil, nil, fmt.Errorf("bench: %w", err)
		}
	}
	closeDevice := func() {}
	if e.GPU != nil {
		closeDevice = e.GPU.Device().Close
	}
	engine, err := infer.New(m, e)
	if err != nil {
		closeDevice()
		return nil, nil, fmt.Errorf("bench: %w", err)
	}
	o.on = e.GPU
	return engine, func() {
		engine.Close()
		closeDevice()
	}, nil
}

// where is the kernels and the device of the engine made last.
func (o *ModelOptions) where(m *model.Model) (kernel, device string) {
	if o.on == nil {
		return m.Set().Name, ""
	}
	return "cuda", o.on.Device().Name
}

// worker is what computes, for people.
func (o *ModelOptions) worker() string {
	device := ""
	if o.on != nil {
		device = o.on.Device().Name
	}
	return by(device, o.Threads)
}

func (r *Model) measureSpeed(ctx context.Context, o ModelOptions) (err error) {
	m, size, e, closing, err := o.engine()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closing()) }()
	r.describe(m, size, &o)
	prompt, err := fit("prompt", o.Prompt, 512, e.Context())
	if err != nil {
		return err
	}
	decode, err := fit("answer", o.Decode, 128, e.Context())
	if err != nil {
		return err
	}

	var prefills, decodes, ttfts []float64
	for i := range o.Repeats + 1 {
		o.Progress(fmt.Sprintf("prefill %d tokens, %s", prompt, o.worker()))
		first, err := generate(ctx, e, prompt, 1, m.Config().Vocab)
		if err != nil {
			return err
		}
		o.Progress(fmt.Sprintf("decode %d tokens, %s", decode, o.worker()))
		rest, err := generate(ctx, e, 1, decode, m.Config().Vocab)
		if err != nil {
			return err
		}
		if i == 0 { // warm-up
			r.RSS, r.RSSPeak = resident()
			continue
		}
		ttfts = append(ttfts, first.first.Seconds()*1e3)
		prefills = append(prefills, float64(prompt)/first.result.Prefill.Seconds())
		// The first token belongs to the prefill.
		if n := rest.result.Generated - 1; n > 0 {
			decodes = append(decodes, float64(n)/rest.result.Decode.Seconds())
		}
	}
	r.Prefill = rateOf(prefills, prompt)
	r.Decode = rateOf(decodes, decode)
	r.TTFT = spreadOf(ttfts).Median
	r.ReadGBs = round(float64(r.BytesPerToken) * r.Decode.TokS / 1e9)
	return nil
}

// ContextError reports a measurement that does not fit the context of the model.
type ContextError struct {
	// What is "prompt" or "answer", and Tokens how long it was to be.
	What   string
	Tokens int
	// Context is the number of positions. One is for a token of the other.
	Context int
}

func (e *ContextError) Error() string {
	return fmt.Sprintf("bench: %s of %d tokens: the model's context of %d holds at most %d", e.What, e.Tokens, e.Context, e.Context-1)
}

// fit is the length of a prompt or an answer, normal if n is not positive.
func fit(what string, n, normal, context int) (int, error) {
	switch {
	case n <= 0:
		return min(normal, context-1), nil
	case n >= context:
		return 0, &ContextError{what, n, context}
	}
	return n, nil
}

// describe fills in what needs no measurement.
func (r *Model) describe(m *model.Model, size int64, o *ModelOptions) {
	c, mem := m.Config(), m.Memory()
	r.Arch, r.Streams = m.Arch(), c.Streams
	r.Kernel, r.Device = o.where(m)
	r.Parameters = c.Params().Total()
	r.ModelBytes = size
	if size == 0 {
		r.ModelBytes = mem.Total()
	}
	pages := int64((c.Context + kernels.PageLen - 1) / kernels.PageLen)
	r.KVBytes = pages * int64(model.PageBytes(m, o.KVType))
	r.BytesPerToken = mem.Tiles + mem.Scales + mem.Dense + mem.Norms + mem.MHC + mem.Head
	if mem.Head == 0 { // tied: the head is the embedding
		r.BytesPerToken += mem.Embedding
	}
}

func (r *Model) measureLoad(ctx context.Context, o ModelOptions) error {
	var loads []float64
	for range o.Repeats {
		o.Progress("load")
		start := time.Now()
		m, _, e, closing, err := o.engine()
		if err != nil {
			return err
		}
		_, err = generate(ctx, e, 1, 1, m.Config().Vocab)
		loads = append(loads, time.Since(start).Seconds()*1e3)
		if err := errors.Join(err, closing()); err != nil {
			return err
		}
	}
	r.LoadSpread = spreadOf(loads)
	r.Load = r.LoadSpread.Median
	return nil
}

// run is one request.
type run struct {
	first  time.Duration // from asking to the first token
	result infer.Result
}

// generate reads a prompt of n ids and writes tokens greedily.
func generate(ctx context.Context, e *infer.Engine, n, tokens, vocab int) (r run, err error) {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32((i*7919 + 13) % vocab)
	}
	start := time.Now()
	s, err := e.Generate(ctx, infer.Request{Prompt: ids, MaxTokens: tokens})
	if err != nil {
		return r, fmt.Errorf("bench: %w", err)
	}
	defer s.Close()
	for {
		_, err := s.Next(ctx)
		if r.first == 0 {
			r.first = time.Since(start)
		}
		if err != nil {
			break
		}
	}
	<-s.Done()
	r.result = s.Result()
	if err := ctx.Err(); err != nil {
		return r, fmt.Errorf("bench: %w", context.Cause(ctx))
	}
	if r.result.Reason != infer.ReasonLength {
		return r, fmt.Errorf("bench: generation ended early, after %d of %d tokens: %s", r.result.Generated, tokens, r.result.Reason)
	}
	return r, nil
}

func rateOf(x []float64, tokens int) Rate {
	s := spreadOf(x)
	return Rate{TokS: s.Median, Min: s.Min, Max: s.Max, Tokens: tokens}
}
