package optim

import (
	"fmt"
	"slices"

	"github.com/architehc/nanochat/kernels"
)

// Tensor is one named part of the state. Data is the state itself, not a copy.
type Tensor struct {
	Name       string
	Rows, Cols int
	Data       []float32
}

// Counters is the part of the state that is not in tensors.
type Counters struct {
	// Step is the steps taken, skipped ones included: the schedule's position.
	Step int
	// Skipped is the steps that a non-finite gradient stopped.
	Skipped int
}

// Memory is bytes as the allocator handed them out, its rounding included.
type Memory struct {
	// State is what a checkpoint has to hold, Scratch what a step works in.
	State, Scratch int
}

// Route is how one parameter is trained.
type Route struct {
	Name       string
	Class      Class
	Kind       Kind
	Rows, Cols int
	Split      []int
	LR         float64
	// StateBytes is the size of its tensors.
	StateBytes int
}

// align is the elements that a tensor's state begins at a multiple of: a cache line.
const align = 16

// allocate makes the state, in one piece, and the scratch.
func (p *Optimizer) allocate() {
	var total, chunks, long, square int
	for i := range p.slots {
		s := &p.slots[i]
		n := len(s.W)
		total += (n + align - 1) / align * align * s.rule.Kind.words()
		s.chunks = [2]int{chunks, chunks + chunkCount(n)}
		chunks = s.chunks[1]
		if s.rule.Kind != Muon {
			continue
		}
		for _, rows := range s.Split {
			long, square = max(long, rows*s.Cols), max(square, min(rows, s.Cols))
		}
	}
	p.state = obtain[float32](&p.bytes.State, total, 4)
	p.sums = obtain[float64](&p.bytes.Scratch, chunks, 8)
	p.x, p.y = obtain[float32](&p.bytes.Scratch, long, 4), obtain[float32](&p.bytes.Scratch, long, 4)
	p.gram, p.poly = obtain[float32](&p.bytes.Scratch, square*square, 4), obtain[float32](&p.bytes.Scratch, square*square, 4)
	p.workers = make([]worker, p.o.Team.Size())
	for i := range p.workers {
		if long > 0 {
			p.workers[i].scratch = obtain[byte](&p.bytes.Scratch, kernels.MatMulScratch(), 1)
		}
	}
	free := p.state
	take := func(s *slot, what string) []float32 {
		d := free[:len(s.W):len(s.W)]
		free = free[(len(s.W)+align-1)/align*align:]
		p.tensor = append(p.tensor, Tensor{s.Name + "." + what, s.Rows, s.Cols, d})
		return d
	}
	for i := range p.slots {
		s := &p.slots[i]
		s.m = take(s, "m")
		if s.rule.Kind == AdamW {
			s.v = take(s, "v")
		}
	}
}

// words is the state of one weight in float32.
func (k Kind) words() int {
	if k == AdamW {
		return 2
	}
	return 1
}

// obtain allocates n zero values and counts the bytes of the block that the
// runtime took for them: a slice that was grown has all of it as its capacity.
func obtain[T any](bytes *int, n, size int) []T {
	s := slices.Grow([]T(nil), n)
	*bytes += cap(s) * size
	return s[:n:n]
}

// Memory is the bytes of state and scratch.
func (p *Optimizer) Memory() Memory { return p.bytes }

// Counters is the counters of the state.
func (p *Optimizer) Counters() Counters { return p.count }

// Tensors is the state of all parameters, in their order: NAME.m is the momentum
// of Muon and Lion and the first moment of AdamW, NAME.v AdamW's second moment.
func (p *Optimizer) Tensors() []Tensor { return slices.Clone(p.tensor) }

// Routes is how every parameter is trained, in order.
func (p *Optimizer) Routes() []Route {
	r := make([]Route, len(p.slots))
	for i, s := range p.slots {
		r[i] = Route{s.Name, s.Class, s.rule.Kind, s.Rows, s.Cols, slices.Clone(s.Split), s.rule.LR, 4 * len(s.W) * s.rule.Kind.words()}
	}
	return r
}

// Restore replaces the state by what Counters and Tensors gave for the same
// parameters and kinds of rules; the next step is then the same, bit for bit. If
// it returns an error nothing was changed.
func (p *Optimizer) Restore(c Counters, tensors []Tensor) error {
	have, err := match(c, p.tensor, tensors)
	if err != nil {
		return err
	}
	for i, t := range p.tensor {
		copy(t.Data, have[i])
	}
	p.count = c
	return nil
}

// match finds the data of every tensor of want among those given.
func match(c Counters, want, given []Tensor) ([][]float32, error) {
	if c.Step < 0 || c.Skipped < 0 || c.Skipped > c.Step {
		return nil, fmt.Errorf("optim: state after %d steps of which %d were skipped", c.Step, c.Skipped)
	}
	have := map[string]Tensor{}
	for _, t := range given {
		if _, twice := have[t.Name]; twice {
			return nil, fmt.Errorf("optim: state tensor %q is there twice", t.Name)
		}
		have[t.Name] = t
	}
	found := make([][]float32, len(want))
	for i, t := range want {
		h, ok := have[t.Name]
		switch {
		case !ok:
			return nil, fmt.Errorf("optim: state tensor %q is missing; was the checkpoint made with another optimizer or model?", t.Name)
		case h.Rows != t.Rows || h.Cols != t.Cols || len(h.Data) != t.Rows*t.Cols:
			return nil, fmt.Errorf("optim: state tensor %q has %d rows of %d (%d values), want %d of %d", t.Name, h.Rows, h.Cols, len(h.Data), t.Rows, t.Cols)
		}
		found[i] = h.Data
		delete(have, t.Name)
	}
	for _, t := range given {
		if _, extra := have[t.Name]; extra {
			return nil, fmt.Errorf("optim: state tensor %q belongs to no parameter; was the checkpoint made with another optimizer or model?", t.Name)
		}
	}
	return found, nil
}
