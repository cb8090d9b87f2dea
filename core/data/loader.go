package data

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/tokenizer"
)

// ErrClosed is what Next returns once the loader was closed.
var ErrClosed = errors.New("data: the loader is closed")

// LoaderOptions says what a loader makes.
type LoaderOptions struct {
	// Rows is the number of rows of a batch, SeqLen the tokens of a row. Both must
	// be at least 1.
	Rows, SeqLen int
	// Seed chooses the order and the FIM transformations.
	Seed uint64
	// Ordered takes documents and rows as they are stored, for evaluation.
	Ordered bool
	// Epochs ends the data after so many; 0: it never ends. Rows of the last batch
	// that are left over have no targets.
	Epochs int
	// FIM is fill in the middle; with a rate above 0 it needs Tokenizer.
	FIM FIM
	// Tokenizer must be the one that made the shards. It is needed for FIM only.
	Tokenizer *tokenizer.Tokenizer
	// Workers is the number of goroutines that make batches. The default value is
	// 1. It does not change the batches.
	Workers int
	// Depth is the number of batches made ahead. The default value is 4.
	Depth int
	// Cursor, if not nil, is where to go on.
	Cursor *Cursor
	// Clock measures how long Next waits. The default value is the system's.
	Clock clock.Clock
}

// Batch is rows of training data. It is valid until the next call of Next.
type Batch struct {
	// Rows and SeqLen are the shape of the slices.
	Rows, SeqLen int
	// Tokens are the inputs, [Rows][SeqLen].
	Tokens []int32
	// Targets are the ids that follow the inputs, [Rows][SeqLen]; -1 is no target.
	Targets []int32
	// Starts says for each input where in its row its document begins, [Rows][SeqLen]:
	// attention from place i may look at Starts[i] to i.
	Starts []int32
	// Count is the number of targets that are not -1.
	Count int
	// TextBytes is the number of bytes of text that the targets stand for: the
	// bits per byte of the batch are its summed nats / (ln 2 · TextBytes).
	TextBytes int64
	// Epoch is that of the first row, from 0. Row is its number through all epochs.
	Epoch, Row uint64
	// Wait is how long Next waited for the batch.
	Wait time.Duration
}

// Cursor is a place in the data: what a checkpoint keeps of a loader. It is
// written as JSON.
type Cursor struct {
	// Dataset is the ID of the dataset.
	Dataset string `json:"dataset"`
	Seed    uint64 `json:"seed"`
	SeqLen  int    `json:"seq_len"`
	// Row is the next row, counted through all epochs.
	Row     uint64 `json:"row"`
	Ordered bool   `json:"ordered,omitempty"`
}

// Loader makes batches ahead of their use. Next and Cursor are for one
// goroutine; Close may be called by any.
type Loader struct {
	layout
	o     LoaderOptions
	first uint64 // row of batch 0
	end   uint64 // row after the last

	slots []slot
	jobs  chan uint64 // batches whose slot is free
	quit  chan struct{}
	close sync.Once
	wg    sync.WaitGroup

	given  uint64 // batches given out by Next
	queued uint64 // batches given to the workers
	total  uint64 // batches there are

	mu    sync.Mutex
	plans [2]*epochPlan
}

type slot struct {
	batch Batch
	err   error
	ready chan struct{}
}

// NewLoader starts a loader. Errors are of type *Error. Close it after use.
func NewLoader(d *Dataset, o LoaderOptions) (*Loader, error) {
	if o.Workers == 0 {
		o.Workers = 1
	}
	if o.Depth == 0 {
		o.Depth = 4
	}
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	switch {
	case o.Rows < 1 || o.SeqLen < 1 || o.Rows > math.MaxInt32/o.SeqLen:
		return nil, optionError("%d rows of %d tokens", o.Rows, o.SeqLen)
	case o.Workers < 0 || o.Workers > 1024 || o.Depth < 0 || o.Depth > 1024 || o.Epochs < 0:
		return nil, optionError("%d workers, depth %d, %d epochs; want 1 to 1024 workers and batches ahead", o.Workers, o.Depth, o.Epochs)
	case !(o.FIM.Rate >= 0 && o.FIM.Rate <= 1 && o.FIM.SPM >= 0 && o.FIM.SPM <= 1) || o.FIM.MinTokens < 0:
		return nil, optionError("FIM rate %g and SPM share %g must be 0 to 1", o.FIM.Rate, o.FIM.SPM)
	}
	l := &Loader{layout: newLayout(d, o.SeqLen, o.Ordered, o.Seed), o: o, end: math.MaxUint64}
	if d.tokens == 0 || l.length < 2 {
		return nil, &Error{Path: d.shards[0].path, What: fmt.Sprintf("%d tokens are too few to learn from", d.tokens), Hint: "prepare the data again with more text"}
	}
	if o.Cursor != nil {
		if err := l.seek(*o.Cursor); err != nil {
			return nil, err
		}
	}
	if o.Epochs > 0 {
		l.end = uint64(o.Epochs) * l.rows
	}
	if l.first < l.end {
		l.total = (l.end-l.first-1)/uint64(o.Rows) + 1
	}
	workers := make([]*worker, o.Workers)
	for i := range workers {
		w, err := l.newWorker()
		if err != nil {
			return nil, err
		}
		workers[i] = w
	}
	l.slots = make([]slot, o.Depth)
	l.jobs = make(chan uint64, o.Depth)
	l.quit = make(chan struct{})
	n := o.Rows * o.SeqLen
	for i := range l.slots {
		ids := make([]int32, 3*n)
		l.slots[i].batch = Batch{Rows: o.Rows, SeqLen: o.SeqLen, Tokens: ids[:n:n], Targets: ids[n : 2*n : 2*n], Starts: ids[2*n:]}
		l.slots[i].ready = make(chan struct{}, 1)
	}
	l.queue()
	for _, w := range workers {
		l.wg.Add(1)
		go w.run()
	}
	return l, nil
}

// seek moves to a saved cursor. A cursor of another SeqLen goes on at the same
// share of its epoch; the rows of this epoch are then other ones.
func (l *Loader) seek(c Cursor) error {
	if c.Dataset != l.data.ID() {
		return &Error{Path: "cursor", What: fmt.Sprintf("it was saved with dataset %.12s…, this one is %.12s…", c.Dataset, l.data.ID()),
			Hint: "resume with the data the run began with, or start without a cursor"}
	}
	if c.Seed != l.seed || c.Ordered != l.ordered {
		return &Error{Path: "cursor", What: fmt.Sprintf("it was saved with seed %d, ordered %t; the loader has seed %d, ordered %t", c.Seed, c.Ordered, l.seed, l.ordered),
			Hint: "use the seed of the run, or start without a cursor"}
	}
	if c.SeqLen < 1 {
		return &Error{Path: "cursor", What: fmt.Sprintf("rows of %d tokens", c.SeqLen), Hint: "the checkpoint is damaged; use an older one"}
	}
	l.first = c.Row
	if c.SeqLen != l.seqLen {
		old := newLayout(l.data, c.SeqLen, l.ordered, l.seed)
		epoch, in := c.Row/old.rows, c.Row%old.rows
		tokens := in * uint64(c.SeqLen)
		l.first = epoch*l.rows + min(l.rows, (tokens+uint64(l.seqLen)-1)/uint64(l.seqLen))
	}
	if l.first > 1<<55 {
		return &Error{Path: "cursor", What: fmt.Sprintf("row %d", c.Row), Hint: "the checkpoint is damaged; use an older one"}
	}
	return nil
}

// Cursor is the place after the last batch that Next returned.
func (l *Loader) Cursor() Cursor {
	return Cursor{Dataset: l.data.ID(), Seed: l.seed, SeqLen: l.seqLen, Ordered: l.ordered,
		Row: min(l.first+l.given*uint64(l.o.Rows), max(l.end, l.first))}
}

// RowsPerEpoch is the number of rows that an epoch has.
func (l *Loader) RowsPerEpoch() uint64 { return l.rows }

// Next returns the next batch; io.EOF after the last one; ErrClosed; the error of
// ctx; or an *Error of the data.
func (l *Loader) Next(ctx context.Context) (*Batch, error) {
	select {
	case <-l.quit:
		return nil, ErrClosed
	default:
	}
	if l.given >= l.total {
		return nil, io.EOF
	}
	l.queue() // the batch returned before is free from here on
	s := &l.slots[l.given%uint64(len(l.slots))]
	var wait time.Duration
	select {
	case <-s.ready:
	default:
		from := l.o.Clock.Now()
		select {
		case <-s.ready:
		case <-l.quit:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		wait = l.o.Clock.Now().Sub(from)
	}
	if s.err != nil {
		s.ready <- struct{}{} // the next call finds the same error
		return nil, s.err
	}
	l.given++
	s.batch.Wait = wait
	return &s.batch, nil
}

// queue gives the workers every batch whose slot is free. It never blocks: jobs
// has as many places as there are slots.
func (l *Loader) queue() {
	for l.queued < min(l.total, l.given+uint64(len(l.slots))) {
		l.jobs <- l.queued
		l.queued++
	}
}

// Close ends the workers and waits for them: at most the time of one row each.
func (l *Loader) Close() error {
	l.close.Do(func() { close(l.quit) })
	l.wg.Wait()
	return nil
}

// plan returns the plan of an epoch and keeps the last two.
func (l *Loader) plan(epoch uint64) *epochPlan {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := &l.plans[epoch%2]
	if *at == nil || (*at).epoch != epoch {
		*at = l.data.planEpoch(l.seed, epoch, l.ordered, l.rows, l.extra)
	}
	return *at
}

// A worker fills slots.
type worker struct {
	l    *Loader
	rows rowMaker
	plan *epochPlan
	job  uint64
	fill func() error // w.fillJob, bound once
}

func (l *Loader) newWorker() (*worker, error) {
	w := &worker{l: l, rows: rowMaker{layout: &l.layout, ids: make([]int32, 0, l.seqLen+1), starts: make([]int32, 0, l.seqLen+1)}}
	w.fill = w.fillJob
	if l.o.FIM.Rate > 0 {
		if l.o.Tokenizer == nil {
			return nil, optionError("FIM.Rate is %g, but there is no Tokenizer", l.o.FIM.Rate)
		}
		if got := TokenizerHash(l.o.Tokenizer); got != l.data.vocab.Hash {
			return nil, &Error{Path: l.data.shards[0].path, What: fmt.Sprintf("made with tokenizer %x…, the tokenizer given is %x…", l.data.vocab.Hash[:4], got[:4]),
				Hint: "use the tokenizer that prepared the data"}
		}
		f, err := newFIM(l.o.FIM, l.o.Tokenizer)
		if err != nil {
			return nil, err
		}
		w.rows.fim = f
	}
	return w, nil
}

func (w *worker) run() {
	defer w.l.wg.Done()
	for {
		select {
		case <-w.l.quit:
			return
		case w.job = <-w.l.jobs:
		}
		s := &w.l.slots[w.job%uint64(len(w.l.slots))]
		s.err = w.guarded()
		s.ready <- struct{}{}
	}
}

// guarded runs fill and turns what it may do to the process into an error.
func (w *worker) guarded() (err error) {
	path := w.l.data.shards[0].path
	defer func() {
		if r := recover(); r != nil {
			err = &Error{Path: path, What: fmt.Sprintf("making a batch failed: %v", r), Hint: "verify the shards: " + rewriteHint, Err: ErrDamaged}
		}
	}()
	if err := fsx.Guard(path, w.fill); err != nil {
		return fileError(path, err, rewriteHint)
	}
	return nil
}

func (w *worker) fillJob() error {
	l := w.l
	b := &l.slots[w.job%uint64(len(l.slots))].batch
	row := l.first + w.job*uint64(l.o.Rows)
	b.Row, b.Epoch, b.Count, b.TextBytes = row, row/l.rows, 0, 0
	for i := range l.o.Rows {
		select {
		case <-l.quit:
			return ErrClosed
		default:
		}
		lo, hi := i*l.seqLen, (i+1)*l.seqLen
		tokens, targets, starts := b.Tokens[lo:hi], b.Targets[lo:hi], b.Starts[lo:hi]
		if row+uint64(i) >= l.end {
			w.rows.blank(tokens, targets, starts)
			continue
		}
		if epoch := (row + uint64(i)) / l.rows; w.plan == nil || w.plan.epoch != epoch {
			w.plan = l.plan(epoch)
		}
		count, text, err := w.rows.make(w.plan, row+uint64(i), tokens, targets, starts)
		if err != nil {
			return err
		}
		b.Count += count
		b.TextBytes += text
	}
	return nil
}
