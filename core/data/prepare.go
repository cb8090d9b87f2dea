package data

import (
	"context"
	"runtime"
	"slices"

	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/tokenizer"
)

// PrepareOptions says what Prepare reads, keeps and writes.
type PrepareOptions struct {
	// Inputs are directories of source files and .jsonl, .jsonl.zst, .jsonl.gz,
	// .parquet and text files.
	Inputs []string
	// ValInputs are inputs whose documents all go to the validation split. They are
	// read first; training documents like theirs, or of one of their groups, are
	// left out.
	ValInputs []string
	// Evaluation are files, of any kind that Inputs may be, with which documents of
	// either split must not share NGram consecutive words. Of JSON all strings
	// count.
	Evaluation []string
	// Out is the directory to write, made if needed.
	Out string
	// Overwrite replaces prepared data in Out.
	Overwrite bool
	// Tokenizer makes the tokens.
	Tokenizer *tokenizer.Tokenizer
	// Extensions are the ends of the names of files wanted from directories. The
	// default value is .rs.
	Extensions []string
	// Licences, if not empty, are the licences (SPDX identifiers) under which
	// documents are kept; those of unknown licence are then left out.
	Licences []string
	// Filter, Dedup: see there.
	Filter FilterOptions
	Dedup  DedupOptions
	// NGram is the number of words of an overlap. The default value is 13.
	NGram int
	// GroupBy is ByRepository, the default, or ByCrate; it matters for directories.
	GroupBy string
	// ValFraction is the share of groups, chosen by their hashes with Seed, that go
	// to the validation split. 0 is none.
	ValFraction float64
	Seed        uint64
	// ShardTokens is the size at which a shard is written. The default value is
	// 2^23; a document is never cut.
	ShardTokens int
	// Threads is the number of goroutines. The default value is
	// runtime.GOMAXPROCS(0). It does not change the result.
	Threads int
	// FS is the disk that is read and written. The default value is the real one.
	FS fsx.FS
}

// PrepareProgress is how far Prepare is.
type PrepareProgress struct {
	Documents int   // read
	Bytes     int64 // of their text
	Kept      int   // documents
	Tokens    int64 // written or to be written
}

func (o PrepareOptions) withDefaults() (PrepareOptions, error) {
	o.Filter = o.Filter.withDefaults()
	if o.Dedup.Near == 0 {
		o.Dedup.Near = 0.7
	}
	if o.NGram == 0 {
		o.NGram = 13
	}
	if o.GroupBy == "" {
		o.GroupBy = ByRepository
	}
	if len(o.Extensions) == 0 {
		o.Extensions = []string{".rs"}
	}
	if o.ShardTokens == 0 {
		o.ShardTokens = 1 << 23
	}
	if o.Threads <= 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if o.FS == nil {
		o.FS = fsx.OS()
	}
	switch {
	case len(o.Inputs) == 0:
		return o, optionError("no inputs to prepare")
	case o.Out == "":
		return o, optionError("no directory to write to")
	case o.Tokenizer == nil:
		return o, optionError("no tokenizer")
	case o.Tokenizer.Vocab() > maxVocab:
		return o, optionError("a vocabulary of %d tokens; at most %d", o.Tokenizer.Vocab(), maxVocab)
	case o.GroupBy != ByRepository && o.GroupBy != ByCrate:
		return o, optionError("group by %q; want %q or %q", o.GroupBy, ByRepository, ByCrate)
	case !(o.ValFraction >= 0 && o.ValFraction < 1):
		return o, optionError("a validation fraction of %g; want 0 to less than 1", o.ValFraction)
	case !(o.Dedup.Near > 0):
		return o, optionError("a near-duplicate similarity of %g; want more than 0", o.Dedup.Near)
	case o.NGram < 3 || o.NGram > 100:
		return o, optionError("overlaps of %d words; want 3 to 100", o.NGram)
	case o.ShardTokens < 1 || o.ShardTokens > 1<<31:
		return o, optionError("shards of %d tokens; want 1 to 2^31", o.ShardTokens)
	case !(o.Filter.MinLetters <= 1) || !(o.Filter.MaxDigits <= 1):
		return o, optionError("shares of letters %g and digits %g; want at most 1", o.Filter.MinLetters, o.Filter.MaxDigits)
	}
	return o, nil
}

// Prepare reads the inputs, writes shards and the manifest to o.Out and returns
// the manifest. The manifest is written last: without it there is no dataset.
// Errors are of type *Error or that of ctx. progress may be nil; it is called now
// and then from the goroutine that called Prepare.
func Prepare(ctx context.Context, o PrepareOptions, progress func(PrepareProgress)) (*Manifest, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	p := newPreparer(o, progress)
	if err := p.clear(); err != nil {
		return nil, err
	}
	for _, in := range o.Evaluation {
		if err := p.learn(ctx, in); err != nil {
			return nil, err
		}
	}
	for i, in := range slices.Concat(o.ValInputs, o.Inputs) {
		use := Train
		if i < len(o.ValInputs) {
			use = Val
		}
		if err := p.input(ctx, in, use); err != nil {
			return nil, err
		}
	}
	return p.finish()
}
