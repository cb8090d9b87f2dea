package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/kernels/tune"
)

// Streams is how an engine serves several requests at once.
type Streams struct {
	Name    string `json:"name"`
	Kernel  string `json:"kernel"`
	Threads int    `json:"threads"`
	// Device is the GPU that computes; without one it is "".
	Device  string `json:"device,omitempty"`
	Streams int    `json:"streams"`
	// Tokens is the length of an answer. One stream alone gives One tokens a second, all
	// together give All; Ratio is All/One of the same repetition.
	Tokens int    `json:"tokens"`
	One    Spread `json:"one_tok_s"`
	All    Spread `json:"all_tok_s"`
	Ratio  Spread `json:"ratio"`
	// While Writing streams write, a prompt of Prompt tokens is read; TTFT is what it
	// takes to its first token. Gap is the largest time between two tokens of any of the
	// streams meanwhile, Idle that of as many steps before, both in medians of the
	// stream's times before; Median is the median of these medians in milliseconds.
	Writing int    `json:"writing"`
	Prompt  int    `json:"prompt"`
	TTFT    Spread `json:"ttft_ms"`
	Median  Spread `json:"gap_ms"`
	Gap     Spread `json:"gap_ratio"`
	Idle    Spread `json:"idle_gap_ratio"`
}

// StreamsOptions says what to measure; the fields of ModelOptions mean the same.
type StreamsOptions struct {
	ModelOptions
	// Streams is the number of streams, at least 2.
	Streams int
	// Stall is infer.Options.Stall.
	Stall float64
}

// writing is the number of streams that write while a prompt is read.
const writing = 8

// MeasureStreams measures the throughput of many streams against that of one, and what a
// long prompt does to the flow of the others.
func MeasureStreams(ctx context.Context, o StreamsOptions) (r *Streams, err error) {
	o.ModelOptions = o.ModelOptions.withDefaults()
	if o.Streams < 2 {
		return nil, fmt.Errorf("bench: %d streams, want 2 or more", o.Streams)
	}
	m, _, closing, err := o.Open()
	if err != nil {
		return nil, fmt.Errorf("bench: open the model: %w", err)
	}
	defer func() { err = errors.Join(err, closing()) }()
	e, closeEngine, err := o.engineOn(m, infer.Options{
		Threads: o.Threads, Pin: o.Pin, MaxBatch: max(o.Streams, writing+1), KVType: o.KVType, NoPrefixCache: true, Stall: o.Stall,
	})
	if err != nil {
		return nil, err
	}
	defer closeEngine()
	kernel, device := o.where(m)
	r = &Streams{Name: o.Name, Kernel: kernel, Device: device, Threads: o.Threads, Streams: o.Streams, Writing: writing}
	if r.Prompt, err = fit("prompt", o.Prompt, 512, e.Context()); err != nil {
		return nil, err
	}
	if r.Tokens, err = fit("answer", o.Decode, 128, e.Context()); err != nil {
		return nil, err
	}
	var one, all, ratio, ttft, median, gap, idle []float64
	for i := range o.Repeats + 1 { // the first is a warm-up
		o.Progress(fmt.Sprintf("1 and %d streams of %d tokens, %s", o.Streams, r.Tokens, o.worker()))
		a, err := together(ctx, e, 1, r.Tokens)
		if err != nil {
			return nil, err
		}
		b, err := together(ctx, e, o.Streams, r.Tokens)
		if err != nil {
			return nil, err
		}
		o.Progress(fmt.Sprintf("a prompt of %d tokens beside %d streams", r.Prompt, writing))
		f, err := beside(ctx, e, r.Prompt)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			continue
		}
		one, all, ratio = append(one, a), append(all, b), append(ratio, b/a)
		ttft, median, gap, idle = append(ttft, f.ttft), append(median, f.median), append(gap, f.gap), append(idle, f.idle)
	}
	r.One, r.All, r.Ratio = spreadOf(one), spreadOf(all), spreadOf(ratio)
	r.TTFT, r.Median, r.Gap, r.Idle = spreadOf(ttft), spreadOf(median), spreadOf(gap), spreadOf(idle)
	return r, nil
}

// written is what a reader of a stream saw.
type written struct {
	times []time.Time
	err   error
}

// read reads a stream to its end. After each token it calls each, if that is not nil.
func read(ctx context.Context, s *infer.Stream, room int, each func(tokens int)) written {
	w := written{times: make([]time.Time, 0, room)}
	for {
		if _, w.err = s.Next(ctx); w.err != nil {
			return w
		}
		w.times = append(w.times, time.Now())
		if each != nil {
			each(len(w.times))
		}
	}
}

// together is the tokens a second of n streams that begin at once.
func together(ctx context.Context, e *infer.Engine, n, tokens int) (float64, error) {
	begun := time.Now()
	done := make(chan error, n)
	for i := range n {
		s, err := e.Generate(ctx, infer.Request{Prompt: []int32{int32(i)}, MaxTokens: tokens})
		if err != nil {
			return 0, fmt.Errorf("bench: %w", err)
		}
		defer s.Close()
		go func() {
			w := read(ctx, s, tokens, nil)
			if r := s.Result().Reason; r == infer.ReasonLength {
				w.err = nil
			}
			done <- w.err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			return 0, fmt.Errorf("bench: %w", err)
		}
	}
	return float64(n*tokens) / time.Since(begun).Seconds(), nil
}

// flow is one measurement of beside; times in milliseconds.
type flow struct{ ttft, median, gap, idle float64 }

// before is how many tokens the streams write before the prompt comes.
const before = 32

// beside reads a prompt of n tokens while streams write.
func beside(ctx context.Context, e *infer.Engine, n int) (flow, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	warm := make(chan struct{}, writing)
	done := make(chan written, writing)
	for i := range writing {
		s, err := e.Generate(ctx, infer.Request{Prompt: []int32{int32(i)}})
		if err != nil {
			return flow{}, fmt.Errorf("bench: %w", err)
		}
		defer s.Close()
		go func() {
			done <- read(ctx, s, e.Context(), func(tokens int) {
				if tokens == before {
					warm <- struct{}{}
				}
			})
		}()
	}
	for range writing {
		select {
		case <-warm:
		case w := <-done:
			return flow{}, fmt.Errorf("bench: a stream ended after %d tokens: %w", len(w.times), w.err)
		}
	}
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(i % 64)
	}
	asked := time.Now()
	s, err := e.Generate(ctx, infer.Request{Prompt: ids, MaxTokens: 1})
	if err != nil {
		return flow{}, fmt.Errorf("bench: %w", err)
	}
	defer s.Close()
	if _, err := s.Next(ctx); err != nil {
		return flow{}, fmt.Errorf("bench: %w", err)
	}
	answered := time.Now()
	cancel()
	f := flow{ttft: answered.Sub(asked).Seconds() * 1e3}
	var medians []float64
	for range writing {
		w := <-done
		var alone, with []float64
		for i := 1; i < len(w.times); i++ {
			gap := w.times[i].Sub(w.times[i-1]).Seconds() * 1e3
			switch {
			case w.times[i].Before(asked) && i > 8: // the first come while others still begin
				alone = append(alone, gap)
			case w.times[i].After(asked) && !w.times[i-1].After(answered):
				with = append(with, gap)
			}
		}
		if len(with) == 0 { // the gap is longer than the prompt took
			with = append(with, answered.Sub(w.times[len(w.times)-1]).Seconds()*1e3)
		}
		m := tune.Median(slices.Clone(alone))
		medians = append(medians, m)
		f.gap, f.idle = max(f.gap, slices.Max(with)/m), max(f.idle, slices.Max(alone)/m)
	}
	f.median = tune.Median(medians)
	return f, nil
}

func streamsTable(rs []*Streams) *table {
	t := &table{title: "Streams", header: []string{"<model", "threads", "streams", "one tok/s", "all tok/s", "ratio", "min–max", "writing", "prompt",
		"first token ms", "gap ms", "largest gap", "min–max", "without a prompt"}}
	for _, r := range rs {
		t.add(r.Name, threads(r.Device, r.Threads), fmt.Sprint(r.Streams), num(r.One.Median), num(r.All.Median), num(r.Ratio.Median), reach(r.Ratio),
			fmt.Sprint(r.Writing), fmt.Sprint(r.Prompt), num(r.TTFT.Median), num(r.Median.Median), num(r.Gap.Median), reach(r.Gap), num(r.Idle.Median))
	}
	return t
}
