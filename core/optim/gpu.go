package optim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/architehc/nanochat/kernels/cuda"
)

// GPUParam is a Param whose weights and gradient, float32, are on a device. Both stay
// the caller's. Addresses that are multiples of 16 bytes are faster.
type GPUParam struct {
	Name       string
	Class      Class
	Rows, Cols int
	W, G       cuda.Ptr
	Split      []int
}

// GPU is an Optimizer on a device: the same rules, with the same bits for norms, the
// decisions about clipping and skipping, AdamW and Lion. Muon's products are those of
// the device's library. It is for one goroutine, on the thread of the device.
//
// A step is Prepare, Queue (or the replay of a graph that recorded Queue), a wait for
// the device, and Report.
type GPU struct {
	gpuPlan
	count Counters
	t     *cuda.Thread
	ops   *cuda.Optim
	blas  *cuda.Blas

	all, small, parts *cuda.OptimTable
	step              *cuda.OptimStep
	state             cuda.Ptr
	x, y, gram, poly  cuda.Ptr
	host              []Tensor // filled by Tensors
	norms             []float64
	pending           bool // prepared, not reported
	factor            float64
}

// gpuPlan is what follows from the parameters and options.
type gpuPlan struct {
	o        Options
	slots    []gpuSlot
	matrices []part
	groups   []batch
	bytes    Memory
	// long is the elements of the largest batch, square those of its products over
	// the shorter side.
	long, square int64
	stateBytes   uint64
}

// gpuSlot is a parameter with what belongs to it. m and v are bytes from the
// beginning of the state.
type gpuSlot struct {
	GPUParam
	rule    Rule
	m, v    uint64
	half    bool
	element uint64 // the number of its first element, for random numbers
}

// part is a matrix that Muon orthogonalises: rows of a slot from element lo on.
type part struct {
	slot, rows, cols int
	lo               int64
}

// batch is parts first to last of one shape, which are orthogonalised together.
type batch struct {
	first, last, rows, cols, steps int
}

// batchElements is the most elements of a batch, unless one matrix has more: enough
// to fill a device with blocks of 128 by 128, and few enough for its cache.
const batchElements = 1 << 24

// stateAlign is the bytes at multiples of which the state of a tensor begins.
const stateAlign = 64

// The device's classes are these.
var _ = [1]struct{}{}[classes-cuda.OptimClasses]

// newGPUPlan checks the parameters and lays out the memory.
func newGPUPlan(params []GPUParam, o Options) (gpuPlan, error) {
	p := gpuPlan{o: o}
	if err := p.o.check(); err != nil {
		return p, err
	}
	list := newChecker[cuda.Ptr](&p.o)
	var elements uint64
	for i, q := range params {
		at := q.W
		if at == 0 { // a forecast has no addresses
			at = cuda.Ptr(i + 1)
		}
		rule, split, err := list.check(q.Name, q.Class, q.Rows, q.Cols, at, q.Split)
		if err != nil {
			return p, err
		}
		q.Split = split
		s := gpuSlot{GPUParam: q, rule: rule, element: elements, half: o.HalfState && rule.Kind != AdamW}
		n := uint64(q.Rows) * uint64(q.Cols)
		elements += (n + align - 1) / align * align
		size := 4 * n
		if s.half {
			size = 2 * n
		}
		s.m = p.stateBytes
		p.stateBytes += roundUp(size)
		if rule.Kind == AdamW {
			s.v = p.stateBytes
			p.stateBytes += roundUp(size)
		}
		p.slots = append(p.slots, s)
	}
	p.cut()
	p.forecast()
	return p, nil
}

func roundUp(bytes uint64) uint64 { return (bytes + stateAlign - 1) / stateAlign * stateAlign }

// cut lists Muon's matrices, those of one shape side by side, in batches.
func (p *gpuPlan) cut() {
	shape := func(x part) [3]int { return [3]int{x.rows, x.cols, p.slots[x.slot].rule.NewtonSchulz} }
	var order [][3]int
	for i, s := range p.slots {
		if s.rule.Kind != Muon {
			continue
		}
		row := 0
		for _, rows := range s.Split {
			x := part{slot: i, rows: rows, cols: s.Cols, lo: int64(row) * int64(s.Cols)}
			row += rows
			p.matrices = append(p.matrices, x)
			if !slices.Contains(order, shape(x)) {
				order = append(order, shape(x))
			}
		}
	}
	slices.SortStableFunc(p.matrices, func(a, b part) int {
		return slices.Index(order, shape(a)) - slices.Index(order, shape(b))
	})
	for i := 0; i < len(p.matrices); {
		x := p.matrices[i]
		n := int64(x.rows) * int64(x.cols)
		last := i + 1
		for last < len(p.matrices) && shape(p.matrices[last]) == shape(x) && int64(last+1-i)*n <= batchElements {
			last++
		}
		k := int64(last - i)
		side := int64(min(x.rows, x.cols))
		p.long, p.square = max(p.long, k*n), max(p.square, k*side*side)
		p.groups = append(p.groups, batch{i, last, x.rows, x.cols, p.slots[x.slot].rule.NewtonSchulz})
		i = last
	}
}

// width is the bytes of an element of Muon's matrices.
func (p *gpuPlan) width() uint64 {
	if p.o.BF16 {
		return 2
	}
	return 4
}

// forecast counts the memory.
func (p *gpuPlan) forecast() {
	var all, small, parts []int64
	for _, s := range p.slots {
		n := int64(s.Rows) * int64(s.Cols)
		all = append(all, n)
		if s.rule.Kind != Muon {
			small = append(small, n)
		}
	}
	for _, x := range p.matrices {
		parts = append(parts, int64(x.rows)*int64(x.cols))
	}
	scratch := cuda.OptimStepBytes(len(all))
	for _, list := range [][]int64{all, small, parts} {
		if len(list) > 0 {
			scratch += cuda.OptimTableBytes(list)
		}
	}
	if len(parts) > 0 {
		scratch += 2*cuda.AllocBytes(uint64(p.long)*p.width()) + 2*cuda.AllocBytes(uint64(p.square)*p.width())
	}
	p.bytes = Memory{State: int(cuda.AllocBytes(p.stateBytes)), Scratch: int(scratch)}
}

// GPUMemoryOf is the memory of the device that a GPU takes for such parameters, whose
// addresses are not needed.
func GPUMemoryOf(params []GPUParam, o Options) (Memory, error) {
	p, err := newGPUPlan(params, o)
	return p.bytes, err
}

// NewGPU checks the parameters and options as New does and allocates all memory that
// steps need. blas may be nil if no rule is Muon. The first step plans the products:
// it must not be recorded in a graph.
func NewGPU(t *cuda.Thread, image cuda.Image, blas *cuda.Blas, params []GPUParam, o Options) (*GPU, error) {
	plan, err := newGPUPlan(params, o)
	if err != nil {
		return nil, err
	}
	for _, q := range params {
		if q.W == 0 || q.G == 0 {
			return nil, fail(q.Name, "it has no weights or no gradient on the device")
		}
	}
	if len(plan.matrices) > 0 && blas == nil {
		return nil, errors.New("optim: Muon on a GPU needs cuBLASLt")
	}
	p := &GPU{gpuPlan: plan, t: t, blas: blas}
	if p.ops, err = t.Optim(image); err != nil {
		return nil, fmt.Errorf("optim: %w", err)
	}
	if err := p.allocate(); err != nil {
		_ = p.Free(t) // the first error says more
		return nil, fmt.Errorf("optim: %w", err)
	}
	return p, nil
}

// allocate takes the memory of the device, with a state of zeros.
func (p *GPU) allocate() error {
	take := func(at *cuda.Ptr, bytes uint64) (err error) {
		*at, err = p.t.Alloc(bytes)
		return err
	}
	err := take(&p.state, p.stateBytes)
	if err == nil && p.stateBytes > 0 {
		err = p.t.Fill(p.state, 0, p.stateBytes)
	}
	if len(p.matrices) > 0 {
		for _, b := range []struct {
			at *cuda.Ptr
			n  int64
		}{{&p.x, p.long}, {&p.y, p.long}, {&p.gram, p.square}, {&p.poly, p.square}} {
			if err == nil {
				err = take(b.at, uint64(b.n)*p.width())
			}
		}
	}
	if err != nil {
		return err
	}
	return p.tables()
}

// tables puts what is updated how on the device.
func (p *GPU) tables() (err error) {
	var all, small, parts []cuda.OptimTensor
	for i := range p.slots {
		x := p.slots[i].tensor(p.state)
		all = append(all, x)
		if p.slots[i].rule.Kind != Muon {
			small = append(small, x)
		}
	}
	for _, b := range p.groups {
		for i, x := range p.matrices[b.first:b.last] {
			s := &p.slots[x.slot]
			y := s.tensor(p.state)
			y.N = int64(x.rows) * int64(x.cols)
			y.At, y.Element, y.Scaling = int64(i)*y.N, y.Element+uint64(x.lo), s.rule.Scaling.factor(x.rows, x.cols)
			y.W, y.G = y.W+cuda.Ptr(4*x.lo), y.G+cuda.Ptr(4*x.lo)
			if s.half {
				y.M += cuda.Ptr(2 * x.lo)
			} else {
				y.M += cuda.Ptr(4 * x.lo)
			}
			parts = append(parts, y)
		}
	}
	if p.all, err = p.ops.Table(all); err != nil {
		return err
	}
	if p.small, err = p.ops.Table(small); err != nil {
		return err
	}
	if p.parts, err = p.ops.Table(parts); err != nil {
		return err
	}
	p.step, err = p.ops.Step(len(all))
	return err
}

// tensor is how the device knows the slot.
func (s *gpuSlot) tensor(state cuda.Ptr) cuda.OptimTensor {
	r := &s.rule
	x := cuda.OptimTensor{
		W: s.W, G: s.G, M: state + cuda.Ptr(s.m), N: int64(s.Rows) * int64(s.Cols), Element: s.element, Class: int32(s.Class),
		B1: float32(r.Beta1), B2: float32(r.Beta2), C1: float32(1 - r.Beta1), C2: float32(1 - r.Beta2), Eps: float32(r.Eps),
	}
	if r.Kind == AdamW {
		x.V = state + cuda.Ptr(s.v)
	}
	for _, f := range []struct {
		on   bool
		flag cuda.OptimFlags
	}{{r.Cautious, cuda.OptimCautious}, {r.NoClip, cuda.OptimNoClip}, {r.Heavy, cuda.OptimHeavy}, {s.half, cuda.OptimHalf}, {r.Kind == Lion, cuda.OptimLion}} {
		if f.on {
			x.Flags |= f.flag
		}
	}
	return x
}

// Free gives the memory of the device back.
func (p *GPU) Free(t *cuda.Thread) error {
	var all []error
	for _, table := range []*cuda.OptimTable{p.all, p.small, p.parts} {
		if table != nil {
			all = append(all, p.ops.FreeTable(table))
		}
	}
	if p.step != nil {
		all = append(all, p.ops.FreeStep(p.step))
	}
	for _, at := range []*cuda.Ptr{&p.state, &p.x, &p.y, &p.gram, &p.poly} {
		all = append(all, t.Free(*at))
		*at = 0
	}
	return errors.Join(all...)
}

// Prepare queues the upload of what the next step needs to know. The report of the
// step before must have been taken.
func (p *GPU) Prepare(_ *cuda.Thread) error {
	if p.pending {
		return errors.New("optim: a step was prepared before the report of the last one was taken")
	}
	step, applied := p.count.Step+1, p.count.Step-p.count.Skipped+1
	p.factor = p.o.Schedule.Factor(step)
	n := cuda.OptimNumbers{Clip: p.o.Clip, Step: uint32(step), Seed: [2]uint32{uint32(p.o.Seed), uint32(p.o.Seed >> 32)}}
	for class, r := range p.o.Rules {
		x := r.rates(p.factor)
		n1, n2 := r.corrections(applied)
		n.Rates[class] = cuda.OptimRates{LR: x.lr, Keep: x.keep, N1: n1, N2: n2, Beta: r.momentum(applied)}
	}
	if err := p.ops.Prepare(p.step, &n); err != nil {
		return fmt.Errorf("optim: step %d: %w", step, err)
	}
	p.pending = true
	return nil
}

// Queue queues the update by the gradients as they will be then: all weights change,
// or none if a gradient is not finite or, unless loss is 0, the fifth of the six
// float64 there. It does not wait and can be recorded in a graph, which is good for
// all steps.
func (p *GPU) Queue(_ *cuda.Thread, loss cuda.Ptr) error {
	if err := p.queue(loss); err != nil {
		return fmt.Errorf("optim: step %d: %w", p.count.Step+1, err)
	}
	return nil
}

func (p *GPU) queue(loss cuda.Ptr) error {
	if err := p.ops.Decide(p.all, p.step, loss); err != nil {
		return err
	}
	if err := p.ops.Update(p.small, p.step); err != nil {
		return err
	}
	if err := p.ops.Direction(p.parts, p.step); err != nil {
		return err
	}
	for _, b := range p.groups {
		if err := p.ops.Normalize(p.parts, p.step, b.first, b.last, p.x, p.o.BF16); err != nil {
			return err
		}
		x, err := p.orthogonalise(b)
		if err != nil {
			return err
		}
		if err := p.ops.Apply(p.parts, p.step, b.first, b.last, x, p.o.BF16); err != nil {
			return err
		}
	}
	return p.ops.Results(p.step)
}

// orthogonalise is Optimizer.orthogonalise for the matrices of a batch, in p.x: the
// element-wise parts are in the products. It returns where the result is.
func (p *GPU) orthogonalise(b batch) (cuda.Ptr, error) {
	kind := cuda.BlasF32
	if p.o.BF16 {
		kind = cuda.BlasBF16
	}
	x, y, tall, n := p.x, p.y, b.rows > b.cols, min(b.rows, b.cols)
	square, whole := int64(n)*int64(n), int64(b.rows)*int64(b.cols)
	base := cuda.Product{TypeA: kind, TypeD: kind, Batch: b.last - b.first, Alpha: 1}

	gram := base
	gram.M, gram.N, gram.K = n, n, max(b.rows, b.cols)
	gram.TransA, gram.TransB = tall, !tall
	gram.LDA, gram.LDB, gram.LDD = b.cols, b.cols, n
	gram.StrideA, gram.StrideB, gram.StrideD = whole, whole, square
	gram.D = p.gram

	poly := base
	poly.M, poly.N, poly.K = n, n, n
	poly.A, poly.B, poly.C, poly.D = p.gram, p.gram, p.gram, p.poly
	poly.LDA, poly.LDB, poly.LDC, poly.LDD = n, n, n, n
	poly.StrideA, poly.StrideB, poly.StrideC, poly.StrideD = square, square, square, square
	poly.Alpha, poly.Beta = nsC, nsB

	next := base
	next.M, next.N, next.K = b.rows, b.cols, n
	next.LDC, next.LDD, next.StrideC, next.StrideD = b.cols, b.cols, whole, whole
	next.Beta = nsA
	for range b.steps {
		gram.A, gram.B = x, x
		next.C, next.D = x, y
		if tall {
			next.A, next.LDA, next.StrideA, next.B, next.LDB, next.StrideB = x, b.cols, whole, p.poly, n, square
		} else {
			next.A, next.LDA, next.StrideA, next.B, next.LDB, next.StrideB = p.poly, n, square, x, b.cols, whole
		}
		for _, m := range []*cuda.Product{&gram, &poly, &next} {
			if err := p.blas.MatMul(m); err != nil {
				return 0, err
			}
		}
		x, y = y, x
	}
	return x, nil
}

// Report says what the step did. The device has to be done with it.
func (p *GPU) Report(_ *cuda.Thread) (Report, error) {
	if !p.pending {
		return Report{}, errors.New("optim: a report without a step")
	}
	p.pending = false
	d, norms := p.step.Read()
	p.norms = append(p.norms[:0], norms...)
	p.count.Step++
	r := Report{Step: p.count.Step, Factor: p.factor, GradNorm: d.Norm, ClassNorm: d.ClassNorm, Norms: p.norms, Clip: d.Clip, Skipped: d.Skip != 0}
	if r.Skipped {
		p.count.Skipped++
		r.NonFinite = "loss"
		if i := int(d.Wrong); i >= 0 && i < len(p.slots) {
			r.NonFinite = p.slots[i].Name
		}
	}
	return r, nil
}
