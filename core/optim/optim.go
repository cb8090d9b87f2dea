// Package optim turns gradients into new weights.
//
// It owns the optimizer state, the learning-rate schedule, gradient clipping and
// the refusal of non-finite gradients. It knows no model and no loss: parameters
// are named slices with a declared class, and a class has a rule (Muon, Lion or
// AdamW). Files are its caller's: state is exposed as named tensors.
//
// The bits of an update depend on the weights, the gradients, the options and the
// kernel set, never on the number of workers.
package optim

import (
	"fmt"
	"maps"
	"slices"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// Class says what a parameter is. It is declared, never guessed from a shape.
type Class uint8

// The classes.
const (
	// Matrix is a weight matrix inside the network.
	Matrix Class = iota
	// Embedding is a table with one row per token or index.
	Embedding
	// Head is the output projection to the vocabulary.
	Head
	// Scalar is gains, biases and other vectors or numbers.
	Scalar
	// MHC is the mixing parameters of hyper-connections.
	MHC
	classes
)

// String is the class's name in reports.
func (c Class) String() string {
	if c >= classes {
		return fmt.Sprintf("class %d", uint8(c))
	}
	return [classes]string{"matrix", "embedding", "head", "scalar", "mhc"}[c]
}

// Param is one tensor to train, [Rows, Cols], row by row.
type Param struct {
	Name       string
	Class      Class
	Rows, Cols int
	// W is the weights, which Step changes, and G their gradient, which it reads.
	// Both stay the caller's.
	W, G []float32
	// Split is the rows of each of the matrices that are stacked in this one, such
	// as query, key and value: Muon orthogonalises each alone. Empty means one.
	Split []int
}

// Options configures an Optimizer.
type Options struct {
	// Rules has one rule for every class among the parameters.
	Rules map[Class]Rule
	// Schedule gives the factor on every learning rate at each step. The zero value
	// is a factor of 1.
	Schedule Schedule
	// Clip is the largest norm of all gradients together, those of rules with NoClip
	// left out; longer ones are scaled down to it. 0 means no clipping.
	Clip float64
	// BF16 multiplies in bfloat16 inside Muon: twice as fast where the CPU has a dot
	// product for it, with other bits than on CPUs without.
	BF16 bool
	// HalfState keeps the momentum of Muon and Lion in bfloat16, rounded at random so
	// that its mean is right; Seed chooses the random numbers. It is for NewGPU.
	HalfState bool
	Seed      uint64
	// Set is the kernels to use. The default is kernels.Best().
	Set *kernels.Set
	// Team is the workers. The default is the calling goroutine alone.
	Team *team.Team
}

// Optimizer changes a fixed list of parameters by their gradients. It is for one
// goroutine.
type Optimizer struct {
	o      Options
	slots  []slot
	count  Counters
	state  []float32
	tensor []Tensor

	norms   []float64 // of the gradients, by parameter
	sums    []float64 // of squares, by chunk of the gradients; then of Muon's directions
	x, y    []float32 // Muon's direction and its next iterate
	gram    []float32 // X·Xᵀ
	poly    []float32 // and the polynomial in it
	workers []worker
	bytes   Memory

	report Report
	now    plan
}

// slot is a parameter with what belongs to it.
type slot struct {
	Param
	rule   Rule
	m, v   []float32
	chunks [2]int // range of sums
}

// worker is what one worker alone uses.
type worker struct {
	scratch []byte
	dense   kernels.Dense
	dot     [1]float32
}

// plan is what worker 0 decides for a step.
type plan struct {
	applied int     // updates applied, this one included
	factor  float64 // of the learning rates
	clip    float32 // of the gradients that are clipped
}

// Report says what a step did.
type Report struct {
	// Step is the number of this step; the first is 1.
	Step int
	// Factor is the schedule's factor on all learning rates.
	Factor float64
	// GradNorm is the Euclidean norm of all gradients, before clipping, and
	// ClassNorm that of each class.
	GradNorm  float64
	ClassNorm [classes]float64
	// Norms is that of each parameter's gradient, in order, until the next step.
	Norms []float64
	// Clip is the factor that clipping put on the gradients, 1 if none.
	Clip float64
	// Skipped says that nothing was changed because a gradient was not finite;
	// NonFinite names the first parameter with such a gradient, or is "loss" where
	// that was looked at.
	Skipped   bool
	NonFinite string
}

// New checks the parameters and options and allocates all memory that steps need.
func New(params []Param, o Options) (*Optimizer, error) {
	if o.Set == nil {
		o.Set = kernels.Best()
	}
	if o.Team == nil {
		o.Team = team.New(1, team.Options{})
	}
	if o.HalfState {
		return nil, fmt.Errorf("optim: HalfState is for a GPU")
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	p := &Optimizer{o: o}
	if err := p.addAll(params); err != nil {
		return nil, err
	}
	p.allocate()
	return p, nil
}

// check checks the options, the number of parameters apart, and fills in the rules'
// defaults.
func (o *Options) check() error {
	if !(o.Clip >= 0) {
		return fmt.Errorf("optim: Clip is %v; it must be 0 (off) or more", o.Clip)
	}
	if err := o.Schedule.Check(); err != nil {
		return err
	}
	o.Rules = maps.Clone(o.Rules)
	for _, class := range slices.Sorted(maps.Keys(o.Rules)) {
		r := o.Rules[class].withDefaults()
		if err := r.check(class); err != nil {
			return err
		}
		o.Rules[class] = r
	}
	return nil
}

// addAll checks the parameters and makes their slots.
func (p *Optimizer) addAll(params []Param) error {
	list := newChecker[*float32](&p.o)
	for _, q := range params {
		if n := q.Rows * q.Cols; n < 1 || len(q.W) != n || len(q.G) != n {
			return fail(q.Name, "%d weights and %d gradients for %d rows of %d", len(q.W), len(q.G), q.Rows, q.Cols)
		}
		rule, split, err := list.check(q.Name, q.Class, q.Rows, q.Cols, &q.W[0], q.Split)
		if err != nil {
			return err
		}
		q.Split = split
		p.slots = append(p.slots, slot{Param: q, rule: rule})
	}
	p.norms = make([]float64, len(p.slots))
	return nil
}

// checker checks a list of parameters, whose weights are at an address.
type checker[A comparable] struct {
	rules map[Class]Rule
	names map[string]bool
	first map[A]string
}

func newChecker[A comparable](o *Options) *checker[A] {
	return &checker[A]{o.Rules, map[string]bool{}, map[A]string{}}
}

func fail(name, format string, args ...any) error {
	return fmt.Errorf("optim: parameter %q: %s", name, fmt.Sprintf(format, args...))
}

// check checks the next parameter and returns its rule and its split.
func (c *checker[A]) check(name string, class Class, rows, cols int, weights A, split []int) (Rule, []int, error) {
	rule, ok := c.rules[class]
	switch {
	case name == "" || c.names[name]:
		return rule, nil, fail(name, "the name is empty or used twice")
	case !ok:
		return rule, nil, fail(name, "Options.Rules has no rule for its class, %v", class)
	case rows < 1 || cols < 1:
		return rule, nil, fail(name, "%d rows of %d", rows, cols)
	case c.first[weights] != "":
		return rule, nil, fail(name, "it shares its weights with %q; list tied weights once", c.first[weights])
	}
	if len(split) == 0 {
		split = []int{rows}
	}
	total := 0
	for _, r := range split {
		if r < 1 {
			return rule, nil, fail(name, "Split %v has a part of %d rows", split, r)
		}
		total += r
	}
	if total != rows {
		return rule, nil, fail(name, "Split %v has %d rows of %d", split, total, rows)
	}
	c.names[name], c.first[weights] = true, name
	return rule, slices.Clone(split), nil
}

// Step applies one update: it reads all gradients and changes all weights, or
// none if any gradient is not finite. An error comes from a worker that failed;
// weights and state are unspecified then.
func (p *Optimizer) Step() (Report, error) {
	p.report = Report{Step: p.count.Step + 1, Clip: 1}
	err := p.o.Team.Run(func(w *team.Worker) {
		p.gradientSums(w)
		w.Barrier()
		if w.ID == 0 {
			p.decide()
		}
		w.Barrier()
		if p.report.Skipped {
			return
		}
		for i := range p.slots {
			s := &p.slots[i]
			switch s.rule.Kind {
			case Muon:
				p.muon(w, s)
			case Lion:
				lo, hi := w.Range(len(s.W), chunkLen)
				s.lion(lo, hi, p.rates(s))
			case AdamW:
				lo, hi := w.Range(len(s.W), chunkLen)
				s.adamW(lo, hi, p.rates(s), p.now.applied)
			}
		}
	})
	if err != nil {
		return p.report, fmt.Errorf("optim: step %d: %w", p.report.Step, err)
	}
	p.count.Step++
	if p.report.Skipped {
		p.count.Skipped++
	}
	return p.report, nil
}

// decide turns the sums of squares into norms and plans the step.
func (p *Optimizer) decide() {
	r := &p.report
	var all, clipped float64
	var square [classes]float64
	for i := range p.slots {
		s := &p.slots[i]
		var sum float64
		for _, v := range p.sums[s.chunks[0]:s.chunks[1]] {
			sum += v
		}
		if !finite(sum) && !r.Skipped {
			r.Skipped, r.NonFinite = true, s.Name
		}
		p.norms[i] = sqrt(sum)
		square[s.Class] += sum
		all += sum
		if !s.rule.NoClip {
			clipped += sum
		}
	}
	r.Norms = p.norms
	r.GradNorm = sqrt(all)
	for c, v := range square {
		r.ClassNorm[c] = sqrt(v)
	}
	r.Factor = p.o.Schedule.Factor(r.Step)
	if n := sqrt(clipped); p.o.Clip > 0 && n > p.o.Clip && !r.Skipped {
		r.Clip = p.o.Clip / n
	}
	p.now = plan{applied: p.count.Step - p.count.Skipped + 1, factor: r.Factor, clip: float32(r.Clip)}
}

// rates is the numbers of one update of s.
func (p *Optimizer) rates(s *slot) rates {
	r := s.rule.rates(p.now.factor)
	r.grad = p.now.clip
	if s.rule.NoClip {
		r.grad = 1
	}
	return r
}
