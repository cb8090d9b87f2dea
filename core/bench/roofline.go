package bench

import (
	"context"
	"errors"
	"time"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/numa"
	"github.com/architehc/nanochat/kernels/team"
)

// ErrNoLimits says that the build has no loops that reach the machine's limits.
var ErrNoLimits = errors.New("bench: this build has only the Go kernels and cannot measure the machine's limits; build with a C compiler and CGO_ENABLED=1")

// Roofline is what this machine can do.
type Roofline struct {
	Peaks []Peak `json:"peaks"`
	Reads []Read `json:"reads"`
}

// Peak is the rate of independent instructions of one kind.
type Peak struct {
	// Instruction is its name; Kind is "int8 dot", "fma f32" or "bf16 dot".
	Instruction string `json:"instruction"`
	Kind        string `json:"kind"`
	Threads     int    `json:"threads"`
	// GOPS counts a multiply-add as two.
	GOPS Spread `json:"gops"`
}

// Read is the rate at which memory of one size is read again and again.
type Read struct {
	// Level is "L2", "L3" or "DRAM".
	Level   string `json:"level"`
	Threads int    `json:"threads"`
	// Bytes is the memory of all threads together.
	Bytes int    `json:"bytes"`
	GBs   Spread `json:"gb_s"`
}

// MeasureRoofline measures the limits of this machine.
func MeasureRoofline(ctx context.Context, o Options) (*Roofline, error) {
	o = o.withDefaults()
	limits, ok := kernels.Roofline()
	if !ok {
		return nil, ErrNoLimits
	}
	r := &Roofline{}
	m := numa.ReadMachine()
	for _, n := range o.Threads {
		tm := team.New(n, team.Options{})
		err := r.measure(ctx, tm, o, limits, m)
		tm.Close()
		if err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *Roofline) measure(ctx context.Context, tm *team.Team, o Options, l kernels.Limits, m numa.Machine) error {
	for _, p := range []struct {
		kind string
		peak kernels.Peak
	}{{"int8 dot", l.Dot8}, {"fma f32", l.FMA}, {"bf16 dot", l.DotBF16}} {
		if p.peak.Run == nil {
			continue
		}
		o.Progress(p.peak.Name)
		t := peakTask(p.peak, tm.Size())
		if err := alternate(ctx, tm, o, []*task{t}, []time.Duration{o.BatchTime}); err != nil {
			return err
		}
		r.Peaks = append(r.Peaks, Peak{p.peak.Name, p.kind, tm.Size(), t.spread()})
	}
	for _, s := range readSizes(m, tm.Size()) {
		o.Progress("read " + s.level)
		buf, err := numa.Alloc(s.bytes, numa.Any, true)
		if err != nil {
			return err
		}
		err = r.read(ctx, tm, o, l, s.level, buf.Bytes())
		_ = buf.Free()
		if err != nil {
			return err
		}
	}
	return nil
}

type readSize struct {
	level string
	bytes int // of all threads together
}

// readSizes are sizes that fit a level well and no level below.
func readSizes(m numa.Machine, threads int) []readSize {
	l2, last := m.CacheBytes(2, 1<<20), m.LastCache(32<<20)
	sizes := []readSize{{"L2", l2 / 2 * threads}}
	if last > 2*l2*threads {
		sizes = append(sizes, readSize{"L3", max(last/4, 2*l2*threads)})
	}
	return append(sizes, readSize{"DRAM", max(4*last, 256<<20)})
}

func (r *Roofline) read(ctx context.Context, tm *team.Team, o Options, l kernels.Limits, level string, b []byte) error {
	for i := range b {
		b[i] = byte(i) // every page is real
	}
	t := readTask(l, func(int) []byte { return b }, float64(len(b)))
	if err := alternate(ctx, tm, o, []*task{t}, []time.Duration{o.BatchTime}); err != nil {
		return err
	}
	r.Reads = append(r.Reads, Read{Level: level, Threads: tm.Size(), Bytes: len(b), GBs: t.spread()})
	return nil
}

// peakTask runs the instruction on all workers; its rate is in GOPS.
func peakTask(p kernels.Peak, threads int) *task {
	const chunk = 2000 // iterations per call into C
	return &task{
		per: float64(p.Ops) * chunk * float64(threads),
		body: func(w *team.Worker, iters int) {
			w.Barrier()
			for range iters {
				p.Run(chunk)
			}
		},
	}
}

// readTask reads buf(i) in iteration i, each worker its part; its rate is amount
// per nanosecond, where amount is what one iteration counts for.
func readTask(l kernels.Limits, buf func(i int) []byte, amount float64) *task {
	return &task{
		per: amount,
		body: func(w *team.Worker, iters int) {
			for i := range iters {
				b := buf(i)
				lo, hi := w.Range(len(b), 64)
				l.Read(b[lo:hi])
				w.Barrier()
			}
		},
	}
}
