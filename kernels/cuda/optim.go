package cuda

import (
	"fmt"
	"unsafe"
)

// Optim is the kernels that update weights: the arithmetic of core/optim, which says what is
// updated how.
type Optim struct {
	t *Thread

	squares, totals, decide, update, direction, normalize, apply *Kernel
}

// Optim loads the kernels.
func (t *Thread) Optim(image Image) (*Optim, error) {
	o := &Optim{t: t}
	return o, t.loadKernels(image, "optim", map[string]**Kernel{
		"squares": &o.squares, "totals": &o.totals, "decide": &o.decide, "update": &o.update,
		"direction": &o.direction, "normalize": &o.normalize, "apply": &o.apply,
	})
}

// OptimFlags say how a tensor is updated.
type OptimFlags int32

// The flags: decay with the update only; gradients that are not clipped; Muon without Nesterov's
// blend; momentum as bfloat16, rounded at random; addresses that allow four elements at once (set
// by Table); Lion instead of AdamW.
const (
	OptimCautious OptimFlags = 1 << iota
	OptimNoClip
	OptimHeavy
	OptimHalf
	optimVector
	OptimLion
)

// OptimClasses is the number of classes of tensors.
const OptimClasses = 5

// OptimTensor is a tensor, or one matrix of a stack that Muon updates. The layout is the source's.
type OptimTensor struct {
	W, G, M, V Ptr // weights, gradient, momentum, and AdamW's second moment
	N          int64
	// Element is the number of the first element among those of all tensors: with the step it
	// chooses the random numbers of rounding.
	Element uint64
	// At is the place of the direction in its batch, and Scaling the factor of the learning rate;
	// both are Muon's.
	At                  int64
	Scaling             float64
	B1, B2, C1, C2, Eps float32
	Class               int32
	Flags               OptimFlags
	first               int32
}

// OptimRates is the numbers of a class in one step.
type OptimRates struct {
	LR, Keep float32
	// N1 and N2 are AdamW's corrections of its moments, Beta Muon's momentum.
	N1, N2, Beta, _ float32
}

// OptimNumbers is what differs from step to step.
type OptimNumbers struct {
	Clip  float64 // the largest norm; 0: none
	Rates [OptimClasses]OptimRates
	Step  uint32
	Seed  [2]uint32
	_     uint32
}

// OptimDecision is what a step decided and measured.
type OptimDecision struct {
	Norm      float64
	ClassNorm [OptimClasses]float64
	Clip      float64
	Skip      int32
	// Wrong is the first tensor whose gradient is not finite, -1 if all are, -2 if the loss is not.
	Wrong int32
	Scale float32
	_     int32
}

// optimChunk is the elements whose squares are summed in single precision.
const optimChunk = 4096

// OptimTable is a list of tensors on the device.
type OptimTable struct {
	tensors, work, sums, totals, inverse Ptr
	count, chunks                        int
	first                                []int // chunk of each tensor, and the number of all
}

// AllocBytes is what Alloc takes for so many bytes.
func AllocBytes(bytes uint64) uint64 { return roundUp(bytes) }

// OptimTableBytes is the memory of a table for tensors of these sizes.
func OptimTableBytes(elements []int64) uint64 {
	chunks := uint64(0)
	for _, n := range elements {
		chunks += uint64(n+optimChunk-1) / optimChunk
	}
	return roundUp(uint64(len(elements))*uint64(unsafe.Sizeof(OptimTensor{}))) + 2*roundUp(8*chunks) +
		roundUp(8*uint64(len(elements))) + roundUp(4*uint64(len(elements)))
}

// Table puts a list of tensors on the device. It waits.
func (o *Optim) Table(tensors []OptimTensor) (*OptimTable, error) {
	t := &OptimTable{count: len(tensors), first: make([]int, 0, len(tensors)+1)}
	list := make([]OptimTensor, len(tensors))
	var work []packWork
	for i, x := range tensors {
		if x.N < 1 || x.W == 0 || x.G == 0 || x.M == 0 || x.Class < 0 || x.Class >= OptimClasses {
			return nil, fmt.Errorf("cuda: tensor %d of %d elements and class %d cannot be updated", i, x.N, x.Class)
		}
		unit := Ptr(16)
		if x.Flags&OptimHalf != 0 {
			unit = 8
		}
		x.Flags &^= optimVector
		if aligned(16, x.W, x.G, x.V)&aligned(unit, x.M) == 1 && x.At%4 == 0 && x.Element%4 == 0 {
			x.Flags |= optimVector
		}
		x.first = int32(len(work))
		t.first = append(t.first, len(work))
		list[i] = x
		for k := range (x.N + optimChunk - 1) / optimChunk {
			work = append(work, packWork{int32(i), int32(k)})
		}
	}
	t.chunks = len(work)
	t.first = append(t.first, t.chunks)
	if t.count == 0 {
		return t, nil
	}
	for _, a := range []struct {
		at    *Ptr
		bytes []byte
		size  uint64
	}{
		{&t.tensors, raw(list), 0}, {&t.work, raw(work), 0}, {&t.sums, nil, 8 * uint64(t.chunks)},
		{&t.totals, nil, 8 * uint64(t.count)}, {&t.inverse, nil, 4 * uint64(t.count)},
	} {
		var err error
		if *a.at, err = o.t.Alloc(max(a.size, uint64(len(a.bytes)))); err == nil {
			err = Upload(o.t, *a.at, a.bytes)
		}
		if err != nil {
			_ = o.FreeTable(t) // the first error says more
			return nil, err
		}
	}
	return t, nil
}

// raw is a list as bytes.
func raw[T any](list []T) []byte {
	if len(list) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(list))), uintptr(len(list))*unsafe.Sizeof(list[0]))
}

// FreeTable gives the memory of a table back.
func (o *Optim) FreeTable(t *OptimTable) error {
	for _, p := range []*Ptr{&t.tensors, &t.work, &t.sums, &t.totals, &t.inverse} {
		if err := o.t.Free(*p); err != nil {
			return err
		}
		*p = 0
	}
	return nil
}

// OptimStep is the numbers that a step gets from the host and gives to it, for a list of tensors.
type OptimStep struct {
	numbers        *OptimNumbers // pinned
	decision       *OptimDecision
	norms          []float64
	results        []byte // decision and norms
	device, result Ptr
}

// OptimStepBytes is the memory of a step of that many tensors.
func OptimStepBytes(tensors int) uint64 {
	return roundUp(uint64(unsafe.Sizeof(OptimNumbers{}))) + roundUp(uint64(unsafe.Sizeof(OptimDecision{}))+8*uint64(tensors))
}

// Step allocates them.
func (o *Optim) Step(tensors int) (*OptimStep, error) {
	s := &OptimStep{}
	numbers, err := Pinned[byte](o.t, int(unsafe.Sizeof(*s.numbers)))
	if err != nil {
		return nil, err
	}
	head := int(unsafe.Sizeof(*s.decision))
	if s.results, err = Pinned[byte](o.t, head+8*tensors); err != nil {
		return nil, err
	}
	clear(numbers)
	clear(s.results)
	s.numbers = (*OptimNumbers)(unsafe.Pointer(&numbers[0]))
	s.decision = (*OptimDecision)(unsafe.Pointer(&s.results[0]))
	if tensors > 0 {
		s.norms = unsafe.Slice((*float64)(unsafe.Pointer(&s.results[head])), tensors)
	}
	if s.device, err = o.t.Alloc(uint64(len(numbers))); err != nil {
		return nil, err
	}
	if s.result, err = o.t.Alloc(uint64(len(s.results))); err != nil {
		_ = o.FreeStep(s) // the first error says more
		return nil, err
	}
	return s, nil
}

// FreeStep gives the device's memory back. Pinned memory stays until the device is closed.
func (o *Optim) FreeStep(s *OptimStep) error {
	for _, p := range []*Ptr{&s.device, &s.result} {
		if err := o.t.Free(*p); err != nil {
			return err
		}
		*p = 0
	}
	return nil
}

// Prepare queues the upload of a step's numbers. What was queued before has to be done.
func (o *Optim) Prepare(s *OptimStep, n *OptimNumbers) error {
	*s.numbers = *n
	return Upload(o.t, s.device, raw(unsafe.Slice(s.numbers, 1)))
}

// Results queues their download.
func (o *Optim) Results(s *OptimStep) error {
	return DownloadAsync(o.t, s.results, s.result)
}

// Read is what the last step decided, and the norm of each gradient, once the device is done. The
// norms are in pinned memory: they are valid until the next step, or until the device is closed.
func (s *OptimStep) Read() (OptimDecision, []float64) { return *s.decision, s.norms }

type squaresArgs struct {
	tensors, work, sums Ptr
	count, _            int32
}

type totalsArgs struct {
	tensors, sums, totals, inverse Ptr
	chunks, _                      int32
}

type decideArgs struct {
	tensors, totals, numbers, loss, decision, norms Ptr
	count, _                                        int32
}

// Decide measures the gradients of all tensors and decides about the step. loss is six float64 of
// which the fifth has to be finite, or 0.
func (o *Optim) Decide(t *OptimTable, s *OptimStep, loss Ptr) error {
	if t.count > 0 {
		a := squaresArgs{tensors: t.tensors, work: t.work, sums: t.sums, count: int32(t.chunks)}
		if err := Launch(o.t, o.squares, rows(t.chunks, 32, 128), &a); err != nil {
			return err
		}
		if err := o.total(t, 0); err != nil {
			return err
		}
	}
	d := decideArgs{
		tensors: t.tensors, totals: t.totals, numbers: s.device, loss: loss, decision: s.result,
		norms: s.result + Ptr(unsafe.Sizeof(*s.decision)), count: int32(t.count),
	}
	return Launch(o.t, o.decide, Shape{Grid: [3]uint32{1, 1, 1}, Block: [3]uint32{256, 1, 1}}, &d)
}

func (o *Optim) total(t *OptimTable, inverse Ptr) error {
	a := totalsArgs{tensors: t.tensors, sums: t.sums, totals: t.totals, inverse: inverse, chunks: int32(t.chunks)}
	return Launch(o.t, o.totals, Shape{Grid: [3]uint32{uint32(t.count), 1, 1}, Block: [3]uint32{32, 1, 1}}, &a)
}

// rows is the launch of n items, each blocks of one size have so many of.
func rows(n, each, threads int) Shape {
	return Shape{Grid: [3]uint32{uint32((n + each - 1) / each), 1, 1}, Block: [3]uint32{uint32(threads), 1, 1}}
}

type updateArgs struct{ tensors, work, numbers, decision Ptr }

// Update is AdamW and Lion for all tensors of t.
func (o *Optim) Update(t *OptimTable, s *OptimStep) error {
	if t.count == 0 {
		return nil
	}
	a := updateArgs{tensors: t.tensors, work: t.work, numbers: s.device, decision: s.result}
	return Launch(o.t, o.update, rows(t.chunks, 1, 256), &a)
}

type directionArgs struct {
	tensors, work, numbers, decision, sums Ptr
	count, _                               int32
}

// Direction moves the momentum of all matrices of t and measures their directions.
func (o *Optim) Direction(t *OptimTable, s *OptimStep) error {
	if t.count == 0 {
		return nil
	}
	a := directionArgs{tensors: t.tensors, work: t.work, numbers: s.device, decision: s.result, sums: t.sums, count: int32(t.chunks)}
	if err := Launch(o.t, o.direction, rows(t.chunks, 32, 128), &a); err != nil {
		return err
	}
	return o.total(t, t.inverse)
}

type matrixArgs struct {
	tensors, work, numbers, decision, inverse, x Ptr
	half, _                                      int32
}

// Normalize writes the directions of matrices first to last (not included), of Frobenius norm 1,
// to x: each at its At. half: x is bfloat16, else float32.
func (o *Optim) Normalize(t *OptimTable, s *OptimStep, first, last int, x Ptr, half bool) error {
	return o.matrices(o.normalize, t, s, first, last, x, half)
}

// Apply updates these matrices by what became of their directions.
func (o *Optim) Apply(t *OptimTable, s *OptimStep, first, last int, x Ptr, half bool) error {
	return o.matrices(o.apply, t, s, first, last, x, half)
}

func (o *Optim) matrices(k *Kernel, t *OptimTable, s *OptimStep, first, last int, x Ptr, half bool) error {
	if first < 0 || first >= last || last > t.count || x%16 != 0 {
		return fmt.Errorf("cuda: matrices %d to %d of %d, directions at %#x", first, last, t.count, uint64(x))
	}
	a := matrixArgs{
		tensors: t.tensors, work: t.work + Ptr(8*t.first[first]), numbers: s.device, decision: s.result, inverse: t.inverse, x: x,
	}
	if half {
		a.half = 1
	}
	return Launch(o.t, k, rows(t.first[last]-t.first[first], 1, 256), &a)
}
