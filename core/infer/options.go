package infer

import (
	"fmt"

	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// Options shape an engine. The zero value serves a few conversations on all
// cores of this process. None of them changes a token.
type Options struct {
	// Team computes the steps. If it is nil the engine makes one of Threads
	// workers and closes it.
	Team *team.Team
	// Threads is the size of the team made. The default value is the number of
	// cores this process may use.
	Threads int
	// Pin binds the workers of the team made to their CPUs.
	Pin bool

	// GPU computes the steps instead of the team, if it is not nil. It is of the
	// engine's model.
	GPU *model.GPU

	// MaxBatch is the largest number of requests in one step; more wait.
	// The default value is 8.
	MaxBatch int
	// MaxQueue is the largest number of waiting requests. The default value is 1024.
	MaxQueue int
	// MaxTokensPerStep is the largest number of tokens in one step: prompts are cut
	// into chunks of this. The default value is 256; it is at least MaxBatch.
	MaxTokensPerStep int
	// Stall is how many times as long as a step that only decodes a step may take
	// that also reads prompts, so that running answers keep flowing. The default
	// value is 2: then prompts get half of the time.
	Stall float64

	// Context limits the positions of one request. The default value is the model's.
	Context int
	// KVPages is the number of 64-position pages of the cache. The default value
	// holds MaxBatch full contexts; memory is taken as it is used.
	KVPages int
	// KVBytes limits the cache instead: as many pages as fit.
	KVBytes int64
	// KVType is the storage type of the cache.
	KVType kernels.KVType
	// NoPrefixCache turns off the sharing of pages between requests.
	NoPrefixCache bool

	// Speculate is how many tokens to guess ahead, at most, by looking up what
	// followed the last few tokens before. The default value is 0: none.
	Speculate int
}

// largest accepted values; they bound the memory of an engine.
const (
	maxBatch     = 4096
	maxStep      = 65536
	maxSpeculate = ringLen - 2
)

func (o Options) withDefaults() (Options, error) {
	for _, c := range []struct {
		name    string
		v       *int
		def, hi int
	}{
		{"threads", &o.Threads, 0, team.MaxSize},
		{"max_batch", &o.MaxBatch, 8, maxBatch},
		{"max_queue", &o.MaxQueue, 1024, 1 << 20},
		{"max_tokens_per_step", &o.MaxTokensPerStep, 256, maxStep},
		{"context", &o.Context, 0, 1 << 30},
		{"kv_pages", &o.KVPages, 0, 1 << 24},
		{"speculate", &o.Speculate, 0, maxSpeculate},
	} {
		if *c.v < 0 || *c.v > c.hi {
			return o, &RequestError{c.name, fmt.Sprintf("is %d, must be 0 (default) to %d", *c.v, c.hi)}
		}
		if *c.v == 0 {
			*c.v = c.def
		}
	}
	if o.KVBytes < 0 {
		return o, &RequestError{"kv_bytes", fmt.Sprintf("is %d, must be 0 (default) or more", o.KVBytes)}
	}
	if o.Stall == 0 {
		o.Stall = 2
	}
	if !(o.Stall >= 1 && o.Stall <= 1e6) {
		return o, &RequestError{"stall", fmt.Sprintf("is %v, must be 1 to 1000000", o.Stall)}
	}
	o.MaxTokensPerStep = max(o.MaxTokensPerStep, o.MaxBatch)
	return o, nil
}
