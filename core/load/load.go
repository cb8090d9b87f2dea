package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/rng"
)

// Options shape a run.
type Options struct {
	// URL is where the server is, with or without /v1 at its end.
	URL string
	// Key is sent as the API key. The default value sends none.
	Key string
	// Model is what requests name. The default value is the first that the server lists.
	Model string
	// Chat sends prompts as messages to /v1/chat/completions, and not to /v1/completions.
	Chat bool
	// Prompts are sent in turn. The default value is a few beginnings of Rust files.
	Prompts []string
	// MaxTokens of every answer. The default value is 64.
	MaxTokens int
	// Temperature of every answer; request i has the seed Seed+i.
	Temperature float64
	Seed        uint64

	// Rate is how many requests arrive a second (open loop).
	Rate float64
	// Concurrency is how many clients take turns with themselves (closed loop). The
	// default value is 1 where Rate is 0.
	Concurrency int
	// Requests is how many are sent. The default value is 100 where Duration is 0.
	Requests int
	// Duration is for how long new ones are sent; those that run then are waited for.
	Duration time.Duration
	// Timeout ends a request. The default value is 2 minutes.
	Timeout time.Duration
	// Warmup is how many requests are sent before, one after the other, and not counted:
	// the first one may load the model.
	Warmup int

	// Progress, if not nil, is told how many requests have ended, one call at a time.
	Progress func(ended int)
	// Client sends the requests. The default value keeps connections open.
	Client *http.Client

	clock clock.Clock
}

// Limits of Options.
const (
	maxRate        = 1e5
	maxConcurrency = 1 << 16
	maxRequests    = 1 << 24
)

// OptionError reports an option that makes no sense.
type OptionError struct {
	// Option is its name in the form of flags, such as "rate".
	Option string
	What   string
}

func (e *OptionError) Error() string { return "load: " + e.Option + " " + e.What }

func (o Options) withDefaults() (Options, error) {
	o.URL = strings.TrimSuffix(strings.TrimRight(o.URL, "/"), "/v1")
	if !strings.HasPrefix(o.URL, "http://") && !strings.HasPrefix(o.URL, "https://") {
		return o, &OptionError{"server", fmt.Sprintf("is %q, not a URL such as http://127.0.0.1:8080", o.URL)}
	}
	switch {
	case o.Rate != 0 && o.Concurrency != 0:
		return o, &OptionError{"rate", "and concurrency exclude each other: requests arrive at a rate, or clients take turns"}
	case !(o.Rate >= 0 && o.Rate <= maxRate):
		return o, &OptionError{"rate", fmt.Sprintf("is %v, must be 0 to %v", o.Rate, maxRate)}
	case o.Concurrency < 0 || o.Concurrency > maxConcurrency:
		return o, &OptionError{"concurrency", fmt.Sprintf("is %d, must be 1 to %d", o.Concurrency, maxConcurrency)}
	case o.Requests < 0 || o.Requests > maxRequests:
		return o, &OptionError{"requests", fmt.Sprintf("is %d, must be 1 to %d", o.Requests, maxRequests)}
	case o.Duration < 0 || o.Timeout < 0 || o.Warmup < 0:
		return o, &OptionError{"duration", "and the other times and counts are not negative"}
	case o.MaxTokens < 0:
		return o, &OptionError{"max_tokens", fmt.Sprintf("is %d, must be 1 or more", o.MaxTokens)}
	}
	if o.Rate == 0 && o.Concurrency == 0 {
		o.Concurrency = 1
	}
	if o.Requests == 0 {
		o.Requests = maxRequests
		if o.Duration == 0 {
			o.Requests = 100
		}
	}
	if o.MaxTokens == 0 {
		o.MaxTokens = 64
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Minute
	}
	if len(o.Prompts) == 0 {
		o.Prompts = defaultPrompts()
	}
	if o.clock == nil {
		o.clock = clock.System()
	}
	if o.Client == nil {
		// As many idle connections as there are clients: a new one for each request would
		// measure the network.
		o.Client = &http.Client{Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, MaxIdleConns: 0, MaxIdleConnsPerHost: maxConcurrency, DisableCompression: true,
		}}
	}
	return o, nil
}

// A sample is what became of one request. Times count from when it was due.
type sample struct {
	due, sent    time.Duration // since the run began; they differ where the sender was late
	first, last  time.Duration // to the first and the last piece of text
	end          time.Duration
	gaps         []time.Duration // between pieces
	prompt, told int             // tokens, as the server says; told 0: it does not
	pieces       int
	fault        string // kind of failure; empty: answered
	said         string // what the server said about it
}

// failure is the kind, and what the server said.
func (s *sample) failure() string {
	if s.said == "" {
		return s.fault
	}
	return s.fault + ": " + s.said
}

// Run sends the load and returns what was measured. When ctx ends, what has ended until
// then is reported, with ctx's error. An error without a report means that nothing could be measured.
func Run(ctx context.Context, o Options) (*Report, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &client{o: o}
	if err := c.prepare(ctx); err != nil {
		return nil, err
	}
	for i := range o.Warmup {
		// Not the prompts of the run: their beginnings would be known already.
		s := c.one(ctx, o.clock.Now(), fmt.Sprintf("// warm-up %d\n", i), o.Seed)
		if s.fault != "" {
			return nil, errors.Join(fmt.Errorf("load: server %s: the first request failed: %s", o.URL, s.failure()), ctx.Err())
		}
	}
	r := &run{o: o, c: c, begin: o.clock.Now()}
	if o.Rate > 0 {
		r.open(ctx)
	} else {
		r.closed(ctx)
	}
	return r.report(c.o.Model, o.clock.Now().Sub(r.begin)), ctx.Err()
}

// run collects the samples.
type run struct {
	o     Options
	c     *client
	begin time.Time

	mu      sync.Mutex
	samples []sample
}

// add keeps a sample, unless the run was broken off before its end.
func (r *run) add(ctx context.Context, s sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() != nil && s.fault != "" {
		return
	}
	r.samples = append(r.samples, s)
	if r.o.Progress != nil {
		r.o.Progress(len(r.samples))
	}
}

// send makes request i, which is due at this time.
func (r *run) send(ctx context.Context, i int, due time.Time) {
	defer func() {
		if v := recover(); v != nil {
			r.add(ctx, sample{fault: fmt.Sprintf("internal error: %v", v)})
		}
	}()
	s := r.c.one(ctx, due, r.o.Prompts[i%len(r.o.Prompts)], r.o.Seed+uint64(i))
	s.due = due.Sub(r.begin)
	s.sent += s.due
	r.add(ctx, s)
}

// open sends requests when they are due, whatever becomes of the others.
func (r *run) open(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	random := rng.New(r.o.Seed, 0)
	at := time.Duration(0)
	for i := range r.o.Requests {
		// Gaps of a Poisson process are exponentially distributed.
		at += time.Duration(-math.Log1p(-random.Float64()) / r.o.Rate * float64(time.Second))
		if r.o.Duration > 0 && at > r.o.Duration {
			return
		}
		due := r.begin.Add(at)
		if wait := due.Sub(r.o.clock.Now()); wait > 0 {
			select {
			case <-r.o.clock.After(wait):
			case <-ctx.Done():
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		wg.Go(func() { r.send(ctx, i, due) })
	}
}

// closed lets every client send its next request when its last one has ended.
func (r *run) closed(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	next := 0
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		if next >= r.o.Requests || ctx.Err() != nil || r.o.Duration > 0 && r.o.clock.Now().Sub(r.begin) > r.o.Duration {
			return 0, false
		}
		next++
		return next - 1, true
	}
	for range min(r.o.Concurrency, r.o.Requests) {
		wg.Go(func() {
			for {
				i, ok := take()
				if !ok {
					return
				}
				r.send(ctx, i, r.o.clock.Now())
			}
		})
	}
}

// defaultPrompts are beginnings of files that differ from their first token on.
func defaultPrompts() []string {
	return []string{
		"fn main() {\n", "use std::collections::HashMap;\n\n", "pub struct Point {\n", "impl Iterator for ", "// Returns the largest of three numbers.\n",
		"#[derive(Debug, Clone)]\npub enum ", "mod tests {\n    use super::*;\n", "pub fn parse(input: &str) -> Result<", "let mut total = 0;\nfor ",
		"match value {\n    Some(", "struct Stack<T> {\n", "const LIMIT: usize = ", "trait Shape {\n    fn area(&self) -> ", "if let Err(error) = ",
		"extern crate ", "while let Some(node) = ",
	}
}
