package infer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/kernels"
)

// fake is a model whose logits depend on every token of the sequence by way of
// its pages: a position holds a hash of all tokens up to it. A page that is
// shared wrongly, written twice or stale gives other tokens.
type fake struct {
	voc, ctx int
	slab     []uint64 // [pages][pageLen]
	inUse    []bool
	freeList []int32
	rows     [][]float32
	states   [][][]float32 // [span][token]
	closed   bool

	entered atomic.Int64 // steps begun

	mu sync.Mutex
	// gate, if not nil, is received from before each step.
	gate chan struct{}
	// fail is what a step returns or panics with.
	fail func(b *batch) error
	// nan poisons the logits of sequences that start with this token.
	nan   int32
	steps []shape
}

// shape is what a step looked like.
type shape struct {
	decoding, prefill, rows int
}

func newFake(vocab, context, pages int) *fake {
	f := &fake{voc: vocab, ctx: context, slab: make([]uint64, pages*pageLen), inUse: make([]bool, pages), nan: -1, steps: make([]shape, 0, 1<<16)}
	for i := pages - 1; i >= 0; i-- {
		f.freeList = append(f.freeList, int32(i))
	}
	return f
}

func (f *fake) vocab() int   { return f.voc }
func (f *fake) context() int { return f.ctx }
func (f *fake) dim() int     { return 3 }
func (f *fake) pages() int   { return len(f.inUse) }
func (f *fake) close()       { f.closed = true }

func (f *fake) alloc() (int32, bool) {
	n := len(f.freeList)
	if n == 0 {
		return 0, false
	}
	page := f.freeList[n-1]
	f.freeList = f.freeList[:n-1]
	f.inUse[page] = true
	return page, true
}

func (f *fake) free(page int32) {
	if !f.inUse[page] {
		panic(fmt.Sprintf("page %d freed twice", page))
	}
	f.inUse[page] = false
	f.freeList = append(f.freeList, page)
}

func (f *fake) copy(dst, src int32) {
	if !f.inUse[dst] || !f.inUse[src] || dst == src {
		panic(fmt.Sprintf("page %d copied to %d", src, dst))
	}
	copy(f.slab[int(dst)*pageLen:][:pageLen], f.slab[int(src)*pageLen:])
}

func step(h uint64, token int32) uint64 {
	h = (h ^ uint64(token+1)) * 0x9E3779B97F4A7C15
	return h ^ h>>31
}

// fill writes the logits after a sequence with hash h that ends in token.
func (f *fake) fill(row []float32, h uint64, token int32) {
	for i := range row {
		h = step(h, int32(i))
		row[i] = float32(h>>40) / (1 << 23)
	}
	if h>>20&31 != 0 { // a habit, so that texts repeat
		row[(int(token)%10*3+1)%len(row)] += 6
	}
}

func (f *fake) forward(b *batch) error {
	f.entered.Add(1)
	f.mu.Lock()
	gate, fail := f.gate, f.fail
	f.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if fail != nil {
		if err := fail(b); err != nil {
			return err
		}
	}
	var sh shape
	at, row := 0, 0
	f.states = f.states[:0]
	for _, s := range b.spans {
		var states [][]float32
		if s.n < 1 || s.pos+s.n > f.ctx || s.pos+s.n > len(s.pages)*pageLen {
			return fmt.Errorf("fake: span %+v", s)
		}
		var h uint64
		if s.pos > 0 {
			h = f.slab[int(s.pages[(s.pos-1)/pageLen])*pageLen+(s.pos-1)%pageLen]
		}
		first := f.slab[int(s.pages[0])*pageLen]
		for i := range s.n {
			pos := s.pos + i
			page := s.pages[pos/pageLen]
			if !f.inUse[page] {
				return fmt.Errorf("fake: page %d is not in use", page)
			}
			h = step(h, b.tokens[at+i])
			f.slab[int(page)*pageLen+pos%pageLen] = h
			if pos == 0 {
				first = h
			}
			if s.hidden {
				states = append(states, f.state(h))
			}
			if i >= s.n-s.rows {
				if row == len(f.rows) {
					f.rows = append(f.rows, make([]float32, f.voc))
				}
				f.fill(f.rows[row], h, b.tokens[at+i])
				if f.nan >= 0 && first == step(0, f.nan) {
					f.rows[row][3] = float32(nan())
				}
				row++
			}
		}
		if s.rows > 0 && s.n-s.rows == 0 {
			sh.decoding++
		} else {
			sh.prefill += s.n
		}
		at += s.n
		f.states = append(f.states, states)
	}
	if at != len(b.tokens) {
		return errors.New("fake: tokens left over")
	}
	sh.rows = row
	f.mu.Lock()
	if len(f.steps) < cap(f.steps) {
		f.steps = append(f.steps, sh)
	}
	f.mu.Unlock()
	return nil
}

func (f *fake) row(i int) []float32       { return f.rows[i] }
func (f *fake) hidden(s, i int) []float32 { return f.states[s][i] }

// state is the hidden state of a sequence with hash h.
func (f *fake) state(h uint64) []float32 {
	x := make([]float32, f.dim())
	for i := range x {
		x[i] = float32(step(h, int32(i))>>40) / (1 << 20)
	}
	return x
}

func nan() float64 { var z float64; return z / z }

// setFail makes every later step fail.
func (f *fake) setFail(fn func(b *batch) error) {
	f.mu.Lock()
	f.fail = fn
	f.mu.Unlock()
}

// shapes is what the steps looked like so far.
func (f *fake) shapes() []shape {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.steps)
}

// answer is what a stream gave.
type answer struct {
	tokens    []Token
	reason    Reason
	stopID    int32
	embedding []float32
}

// plain generates without an engine: one token at a time, nothing reused.
func plain(t require.TestingT, f *fake, context int, r Request) answer {
	s, err := sample.New(r.Sample, f.voc)
	require.NoError(t, err)
	ws := sample.NewWorkspace(f.voc, kernels.Best())
	s.Reset(r.Prompt)
	a := answer{stopID: -1}
	give := func(tok Token, row []float32) {
		if row != nil {
			tok.Top = append([]sample.Candidate(nil), s.Top()...)
		}
		if r.Logits {
			tok.Logits = slices.Clone(row)
		}
		a.tokens = append(a.tokens, tok)
	}
	row := make([]float32, f.voc)
	var h uint64
	for i, id := range r.Prompt {
		if r.Echo && (i == 0 || !r.scores()) {
			give(Token{ID: id, Echo: true}, nil)
		} else if r.Echo {
			f.fill(row, h, r.Prompt[i-1])
			lp, err := s.Score(ws, row, i, id)
			require.NoError(t, err)
			give(Token{ID: id, Echo: true, Logprob: lp}, row)
		}
		h = step(h, id)
		if r.Embed {
			if i == 0 {
				a.embedding = make([]float32, f.dim())
			}
			for j, x := range f.state(h) {
				a.embedding[j] += x
			}
		}
	}
	for j := range a.embedding {
		a.embedding[j] /= float32(len(r.Prompt))
	}
	last := r.Prompt[len(r.Prompt)-1]
	generated := 0
	for n := len(r.Prompt); ; n++ {
		if r.MaxTokens < 0 || generated == r.MaxTokens && r.MaxTokens > 0 || n == context {
			a.reason = ReasonLength
			return a
		}
		f.fill(row, h, last)
		id, lp, err := s.Sample(ws, row, n)
		require.NoError(t, err)
		if slices.Contains(r.Stop, id) {
			a.reason, a.stopID = ReasonStop, id
			return a
		}
		s.Accept(id)
		generated++
		give(Token{ID: id, Logprob: lp}, row)
		h, last = step(h, id), id
	}
}

// read reads at most limit tokens of a stream; fewer than 0 means all.
func read(t require.TestingT, s *Stream, limit int) answer {
	var a answer
	for limit < 0 || len(a.tokens) < limit {
		tok, err := s.Next(context.Background())
		if err != nil {
			require.ErrorIs(t, err, io.EOF)
			break
		}
		tok.Top = append([]sample.Candidate(nil), tok.Top...)
		tok.Logits = slices.Clone(tok.Logits)
		a.tokens = append(a.tokens, tok)
	}
	r := s.Result()
	a.reason, a.stopID, a.embedding = r.Reason, r.StopID, r.Embedding
	return a
}

// engine starts an engine over f and closes it at the end of the test, when it
// also checks that nothing is left: no page, no goroutine.
func engine(t testing.TB, f *fake, o Options) *Engine {
	before := runtime.NumGoroutine()
	o, err := o.withDefaults()
	require.NoError(t, err)
	e, err := start(o, f, kernels.Best())
	require.NoError(t, err)
	t.Cleanup(func() {
		shut(t, e, f)
		deadline := time.Now().Add(5 * time.Second)
		for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
			runtime.Gosched()
		}
		require.LessOrEqual(t, runtime.NumGoroutine(), before, "goroutines left")
	})
	return e
}

// shut closes e and checks its books.
func shut(t require.TestingT, e *Engine, f *fake) {
	e.Close()
	e.Close()
	require.True(t, f.closed)
	st := e.Stats()
	require.Zero(t, st.UsedPages, "pages still used")
	require.Zero(t, st.Running+st.Waiting)
	require.Equal(t, f.pages(), len(f.freeList)+st.CachedPages, "pages lost")
	walk := 0
	for p := e.cache.oldest; p != nothing; p = e.cache.node[p].newer {
		walk++
	}
	require.Equal(t, st.CachedPages, walk)
}

func generate(t require.TestingT, e *Engine, r Request) *Stream {
	s, err := e.Generate(context.Background(), r)
	require.NoError(t, err)
	return s
}

// prompt is n tokens that depend on seed.
func prompt(n int, seed uint64) []int32 {
	p := make([]int32, n)
	h := seed
	for i := range p {
		h = step(h, int32(i))
		p[i] = int32(h >> 33 % 90)
	}
	return p
}
