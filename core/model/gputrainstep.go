package model

import (
	"errors"
	"fmt"
	"sync"

	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
)

// gpuSteps is the state of steps.
type gpuSteps struct {
	ready    bool // weights are on the device
	inFlight bool
	seen     int // tokens of the last batch
	stage    [2]gpuStage
	next     int // of stage: the one that the next step takes
	eval     gpuStage
	terms32  []float32 // pinned: lossTerms
	result   []float64 // pinned: lossSums
	bad      []int32   // pinned: quantised

	// The graphs, and whether what they are of was computed without one before: products
	// choose their algorithms then.
	micro, update         *cuda.Graph
	warmMicro, warmUpdate bool

	projections []*kernels.Ternary
	clock       gpuClock
	sorter      batchSorter
	staging     sync.Mutex // of stage, next, eval and sorter
}

// gpuStage is the batches of a step on their way to the device.
type gpuStage struct {
	pinned []int32 // [room][batchLen]
	at     cuda.Ptr
	own    bool // at was allocated for more micro batches than were expected
	room   int  // micro batches
	shapes []gpuBatchShape
	full   bool // staged and not taken
}

type gpuBatchShape struct{ rows, seqLen int }

// openSteps makes what steps need of the host.
func (g *GPUTrainer) openSteps(t *cuda.Thread) (err error) {
	size := batchLen(g.tokens)
	for i := range g.stage {
		s := &g.stage[i]
		s.at, s.room = g.slots[i], g.micros
		if s.pinned, err = cuda.Pinned[int32](t, size*s.room); err != nil {
			return err
		}
	}
	g.eval.at, g.eval.room = g.evalSlot, 1
	if g.eval.pinned, err = cuda.Pinned[int32](t, size); err != nil {
		return err
	}
	if g.terms32, err = cuda.Pinned[float32](t, lossTerms); err != nil {
		return err
	}
	if g.result, err = cuda.Pinned[float64](t, lossSums); err != nil {
		return err
	}
	if g.bad, err = cuda.Pinned[int32](t, g.quantised()); err != nil {
		return err
	}
	g.sorter = batchSorter{tokens: g.tokens, vocab: g.vocab, context: g.cfg.Context, next: make([]int32, g.vocab)}
	evaluate := [lossTerms]float32{4: float32(g.cfg.LogitSoftcap)}
	return cuda.Upload(t, g.evalTerms, evaluate[:])
}

func (g *GPUTrainer) closeSteps(t *cuda.Thread) error {
	for _, graph := range []*cuda.Graph{g.micro, g.update} {
		if graph != nil {
			t.Drop(graph)
		}
	}
	var err error
	for i := range g.stage {
		if s := &g.stage[i]; s.own {
			err = errors.Join(err, t.Free(s.at))
		}
	}
	return err
}

// idle reports a step that has not ended.
func (g *GPUTrainer) idle() error {
	switch {
	case g.closed:
		return fmt.Errorf("model: the trainer is closed")
	case g.inFlight:
		return fmt.Errorf("model: a step is under way; call End")
	}
	return nil
}

// Stage copies the batches of the next step into memory that the device reads by itself and
// starts their way there. The step that is under way goes on meanwhile. The batches may be
// used for something else when it returns.
func (g *GPUTrainer) Stage(micro []*TrainBatch) error {
	g.staging.Lock()
	defer g.staging.Unlock()
	return g.put(&g.stage[g.next], micro)
}

// put fills s with batches and queues their upload.
func (g *GPUTrainer) put(s *gpuStage, micro []*TrainBatch) error {
	if len(micro) == 0 {
		return fmt.Errorf("model: a step without batches")
	}
	if s.full { // what was staged may still be on its way
		if err := g.device.Do((*cuda.Thread).SyncPrefetch); err != nil {
			return fmt.Errorf("model: copying batches to the GPU: %w", err)
		}
	}
	s.full = false
	for i, b := range micro {
		if err := g.sorter.check(b); err != nil {
			return fmt.Errorf("%w (micro batch %d)", err, i)
		}
	}
	size := batchLen(g.tokens)
	if len(micro) > s.room {
		if err := g.device.Do(func(t *cuda.Thread) error { return g.grow(t, s, len(micro)) }); err != nil {
			return fmt.Errorf("model: room for %d micro batches: %w", len(micro), err)
		}
	}
	s.shapes = s.shapes[:0]
	for i, b := range micro {
		g.sorter.put(s.pinned[i*size:(i+1)*size], b)
		s.shapes = append(s.shapes, gpuBatchShape{b.Rows, b.SeqLen})
	}
	err := g.device.Do(func(t *cuda.Thread) error { return cuda.Prefetch(t, s.at, s.pinned[:size*len(micro)]) })
	if err != nil {
		return fmt.Errorf("model: copying batches to the GPU: %w", err)
	}
	s.full = true
	return nil
}

// grow makes room in s for more micro batches than were expected.
func (g *GPUTrainer) grow(t *cuda.Thread, s *gpuStage, micros int) error {
	size := batchLen(g.tokens)
	pinned, err := cuda.Pinned[int32](t, size*micros)
	if err != nil {
		return err
	}
	at, err := t.Alloc(uint64(4 * size * micros))
	if err != nil {
		return err
	}
	if s.own {
		if err := t.Free(s.at); err != nil {
			return err
		}
	}
	s.pinned, s.at, s.own, s.room = pinned, at, true, micros
	return nil
}

// Step computes forward and backward of the micro batches, with the gradient of scale times
// the objective, and one update. A nil micro takes what Stage left.
//
// The sums are those of this device's batches. Where a gradient or the objective is not
// finite the weights stay as they are, and the report says so.
func (g *GPUTrainer) Step(micro []*TrainBatch, scale float64) (LossSum, optim.Report, error) {
	if err := g.Begin(micro, scale); err != nil {
		return LossSum{}, optim.Report{}, err
	}
	return g.End()
}

// Begin queues a step and returns; End waits for it. A nil micro takes what Stage left. If it
// fails, a group of devices is at its end: the others would wait for this one.
func (g *GPUTrainer) Begin(micro []*TrainBatch, scale float64) error {
	err := g.begin(micro, scale)
	if err != nil && g.o.Group != nil {
		g.o.Group.Abort(err)
	}
	return err
}

func (g *GPUTrainer) begin(micro []*TrainBatch, scale float64) error {
	if err := g.idle(); err != nil {
		return err
	}
	if !g.ready {
		return errNotPushed
	}
	g.staging.Lock()
	defer g.staging.Unlock()
	s := &g.stage[g.next]
	switch {
	case micro == nil && !s.full:
		return fmt.Errorf("model: a step without batches: none are staged")
	case micro != nil:
		if err := g.put(s, micro); err != nil {
			return err
		}
	}
	s.full = false
	g.next = 1 - g.next
	g.seen = s.shapes[len(s.shapes)-1].rows * s.shapes[len(s.shapes)-1].seqLen
	l := &g.o.Loss
	copy(g.terms32, []float32{float32(scale), float32(l.Z), float32(l.Entropy), float32(l.Smoothing), float32(g.cfg.LogitSoftcap)})
	g.inFlight = true
	err := g.device.Do(func(t *cuda.Thread) error { return g.queueStep(t, s) })
	if err != nil {
		g.inFlight = false
		return fmt.Errorf("model: training on the GPU: %w", err)
	}
	return nil
}

var errNotPushed = errors.New("model: the weights are not on the GPU; call Push")

// queueStep queues the micro batches in s and the update.
func (g *GPUTrainer) queueStep(t *cuda.Thread, s *gpuStage) error {
	q := &queue{}
	q.do(g.clock.start(t))
	q.do(cuda.Upload(t, g.terms, g.terms32))
	q.do(t.Fill(g.regions[gpuGrads].base, 0, g.regions[gpuGrads].end))
	q.do(t.Fill(g.sums, 0, 8*lossSums))
	q.do(t.Fill(g.flags, 0, uint64(4*len(g.bad))))
	q.do(t.AwaitPrefetch())
	for i, shape := range s.shapes {
		q.do(g.takeBatch(t, s, i))
		q.do(g.queueMicro(t, shape))
	}
	q.do(g.reduce(t))
	q.do(g.clock.mark(t, partOptimizer))
	q.do(g.optim.Prepare(t))
	q.do(g.queueUpdate(t))
	q.do(cuda.DownloadAsync(t, g.result, g.local()))
	q.do(cuda.DownloadAsync(t, g.bad, g.flags))
	return q.err
}

// reduce adds up gradients and sums of all devices of the group.
func (g *GPUTrainer) reduce(t *cuda.Thread) error {
	if g.o.Group == nil {
		return nil
	}
	q := &queue{}
	q.do(t.Copy(g.own, g.sums, 8*lossSums))
	q.do(g.o.Group.AllReduce(t, g.o.Rank, g.regions[gpuGrads].base, int(g.regions[gpuGrads].end/4)))
	q.do(g.o.Group.AllReduceF64(t, g.o.Rank, g.sums, lossSums))
	return q.err
}

// local is where the sums of this device's batches are.
func (g *GPUTrainer) local() cuda.Ptr {
	if g.o.Group == nil {
		return g.sums
	}
	return g.own
}

// takeBatch makes the i-th staged batch the one at hand.
func (g *GPUTrainer) takeBatch(t *cuda.Thread, s *gpuStage, i int) error {
	size := 4 * batchLen(g.tokens)
	return t.Copy(g.batch.ids, s.at+cuda.Ptr(i*size), uint64(size))
}

// queueMicro queues forward and backward of the batch at hand.
func (g *GPUTrainer) queueMicro(t *cuda.Thread, s gpuBatchShape) error {
	whole := s == gpuBatchShape{g.tokens / g.o.SeqLen, g.o.SeqLen}
	if !g.o.Graph || g.clock.on || !whole || !g.warmMicro {
		g.warmMicro = g.warmMicro || whole
		return g.pass(t, s, g.terms, true)
	}
	if g.micro == nil {
		graph, err := t.Graph(func() error { return g.pass(t, s, g.terms, true) })
		if err != nil {
			return err
		}
		g.micro = graph
	}
	return t.Replay(g.micro)
}

// queueUpdate queues the optimizer and the quantisation of what it changes.
func (g *GPUTrainer) queueUpdate(t *cuda.Thread) error {
	update := func() error {
		q := &queue{}
		q.do(g.optim.Queue(t, g.sums))
		q.do(g.clock.mark(t, partOptimizer))
		q.do(g.quantise())
		q.do(g.clock.mark(t, partRefresh))
		return q.err
	}
	if !g.o.Graph || g.clock.on || !g.warmUpdate {
		g.warmUpdate = true
		return update()
	}
	if g.update == nil {
		graph, err := t.Graph(update)
		if err != nil {
			return err
		}
		g.update = graph
	}
	return t.Replay(g.update)
}

// pass queues forward, loss and, if it is to learn, backward of the batch at hand.
func (g *GPUTrainer) pass(t *cuda.Thread, s gpuBatchShape, terms cuda.Ptr, learn bool) error {
	p := &gpuPass{
		GPUTrainer: g, t: t, n: s.rows * s.seqLen, terms: terms, learn: learn,
		docs: cuda.Docs{Starts: g.batch.starts, Rows: s.rows, SeqLen: s.seqLen},
	}
	p.forward()
	p.head()
	if learn {
		p.backward()
	}
	return p.err
}

// End waits for the step that Begin queued.
func (g *GPUTrainer) End() (LossSum, optim.Report, error) {
	switch {
	case g.closed:
		return LossSum{}, optim.Report{}, fmt.Errorf("model: the trainer is closed")
	case !g.inFlight:
		return LossSum{}, optim.Report{}, fmt.Errorf("model: no step is under way; call Begin")
	}
	var report optim.Report
	err := g.device.Do(func(t *cuda.Thread) (err error) {
		if err = t.Wait(); err != nil {
			return err
		}
		if report, err = g.optim.Report(t); err != nil {
			return err
		}
		return g.clock.read(t)
	})
	g.inFlight = false
	if err != nil {
		return LossSum{}, report, fmt.Errorf("model: training on the GPU: %w", err)
	}
	if err := g.notFinite(); err != nil {
		g.ready = false
		return lossSum(g.result), report, fmt.Errorf("model: step %d: after the update %w", report.Step, err)
	}
	return lossSum(g.result), report, nil
}

// lossSum is the sums that Loss.Sum left.
func lossSum(s []float64) LossSum {
	return LossSum{Count: int(s[0]), NLL: s[1], LSE2: s[2], Entropy: s[3], Objective: s[4]}
}

// Evaluate computes the loss of b: the sums of a step with only the log-likelihood for an
// objective.
func (g *GPUTrainer) Evaluate(b *TrainBatch) (LossSum, error) {
	if err := g.idle(); err != nil {
		return LossSum{}, err
	}
	if !g.ready {
		return LossSum{}, errNotPushed
	}
	g.staging.Lock()
	defer g.staging.Unlock()
	if err := g.put(&g.eval, []*TrainBatch{b}); err != nil {
		return LossSum{}, err
	}
	g.eval.full, g.seen = false, b.Rows*b.SeqLen // the wait below is for the copy too
	err := g.device.Do(func(t *cuda.Thread) error {
		q := &queue{}
		q.do(g.clock.start(t))
		q.do(t.Fill(g.sums, 0, 8*lossSums))
		q.do(t.AwaitPrefetch())
		q.do(g.takeBatch(t, &g.eval, 0))
		q.do(g.pass(t, g.eval.shapes[0], g.evalTerms, false))
		q.do(cuda.DownloadAsync(t, g.result, g.sums))
		q.do(t.Wait())
		q.do(g.clock.read(t))
		return q.err
	})
	if err != nil {
		return LossSum{}, fmt.Errorf("model: evaluating on the GPU: %w", err)
	}
	return lossSum(g.result), nil
}
