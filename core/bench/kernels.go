package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/numa"
	"github.com/architehc/nanochat/kernels/team"
	"github.com/architehc/nanochat/kernels/tune"
)

// Kernel is one kernel on one shape: W [M, K] times N vectors. For attention M
// is the number of query heads, K the positions seen by the last query and N the
// number of queries.
type Kernel struct {
	Op      string  `json:"op"`
	Kernel  string  `json:"kernel"`
	M       int     `json:"m"`
	K       int     `json:"k"`
	N       int     `json:"n"`
	Threads int     `json:"threads"`
	GOPS    float64 `json:"gops"`
	// LimitGOPS is the lower of PeakGOPS and ReadGOPS.
	LimitGOPS float64 `json:"limit_gops"`
	Fraction  float64 `json:"fraction_of_limit"`
	// Bound is "compute" or "memory": which roof is lower.
	Bound string `json:"bound"`

	// Group is the scale group of a ternary matrix, Type the storage of a dense one
	// or of a cache.
	Group int    `json:"group,omitempty"`
	Type  string `json:"type,omitempty"`
	// PeakGOPS is the rate of the instruction, ReadGOPS the operations per second
	// if the weights were only read.
	PeakGOPS       float64 `json:"peak_gops"`
	ReadGOPS       float64 `json:"read_gops"`
	FractionOfPeak float64 `json:"fraction_of_peak"`
	// WeightBytes is read per product; GBs is the rate that gives.
	WeightBytes int     `json:"weight_bytes"`
	GBs         float64 `json:"gb_s"`
	// Microseconds is the median time of one product.
	Microseconds float64 `json:"us"`
	MinGOPS      float64 `json:"min_gops"`
	MaxGOPS      float64 `json:"max_gops"`
}

// product is one row of the table of shapes.
type product struct {
	tune.Shape
	// cold measures the weights coming from memory.
	cold bool
	// avx2 measures the AVX2 set too.
	avx2 bool
}

// products are the shapes of the models we ship and of the literature: squares;
// nano-125m (768, 2048); BitNet b1.58 2B4T (2560, 640, 6912, head 128256).
func products() []product {
	ternary := func(m, k, group, n int) tune.Shape {
		op := tune.TernaryGEMM
		if n == 1 {
			op = tune.TernaryGEMV
		}
		return tune.Shape{Op: op, M: m, K: k, Group: group, Batch: n}
	}
	dense := func(m, k int, t kernels.DType, n int) tune.Shape {
		op := tune.DenseGEMM
		if n == 1 {
			op = tune.DenseGEMV
		}
		return tune.Shape{Op: op, M: m, K: k, Type: t, Batch: n}
	}
	head := func(m, k, n int) tune.Shape {
		op := tune.Q8GEMM
		if n == 1 {
			op = tune.Q8GEMV
		}
		return tune.Shape{Op: op, M: m, K: k, Type: kernels.Q8_0, Batch: n}
	}
	return []product{
		{Shape: ternary(2048, 2048, 128, 1), avx2: true},
		{Shape: ternary(2048, 2048, 2048, 1)},
		{Shape: ternary(768, 768, 128, 1)},
		{Shape: ternary(2048, 768, 128, 1)},
		{Shape: ternary(768, 2048, 128, 1)},
		{Shape: ternary(6912, 2560, 2560, 1), cold: true},
		{Shape: ternary(32768, 8192, 128, 1), cold: true},
		{Shape: ternary(4096, 4096, 128, 48), avx2: true},
		{Shape: ternary(4096, 4096, 128, 512)},
		{Shape: ternary(2048, 768, 128, 512)},
		{Shape: ternary(6912, 2560, 2560, 512)},
		{Shape: head(16384, 768, 1)},
		{Shape: head(128256, 2560, 1), cold: true},
		{Shape: head(16384, 768, 48)},
		{Shape: dense(16384, 768, kernels.Q8_0, 1)},
		{Shape: dense(16384, 768, kernels.F16, 1)},
		{Shape: dense(128256, 2560, kernels.Q8_0, 1), cold: true},
		{Shape: dense(128256, 2560, kernels.F16, 1), cold: true},
		{Shape: dense(16384, 768, kernels.Q8_0, 48)},
	}
}

// MeasureKernels measures the table of shapes. A GEMV of a ternary matrix
// includes the quantisation of its activations, by every worker for itself as in
// the decoder; a GEMM gets them quantised.
func MeasureKernels(ctx context.Context, o Options) ([]Kernel, error) {
	return measureKernels(ctx, o.withDefaults(), products(), attentions())
}

func measureKernels(ctx context.Context, o Options, ps []product, as []attention) ([]Kernel, error) {
	limits, ok := kernels.Roofline()
	if !ok {
		return nil, ErrNoLimits
	}
	machine := numa.ReadMachine()
	if o.MaxBytes == 0 {
		o.MaxBytes = int64(machine.MemBytes / 2)
	}
	m := meter{ctx: ctx, o: o, limits: limits, cache: machine.LastCache(32 << 20)}
	for _, n := range o.Threads {
		m.team = team.New(n, team.Options{})
		err := m.all(ps, as)
		m.team.Close()
		if err != nil {
			return nil, err
		}
	}
	return m.results, nil
}

// meter measures on one team at a time.
type meter struct {
	ctx     context.Context //nolint:containedctx // lives for one call
	o       Options
	limits  kernels.Limits
	cache   int // bytes of the last cache
	team    *team.Team
	results []Kernel
}

func (m *meter) all(ps []product, as []attention) error {
	for _, p := range ps {
		if err := m.product(p); err != nil {
			return err
		}
	}
	for _, a := range as {
		for _, set := range m.sets(false) {
			if err := m.attention(a, set); err != nil {
				return err
			}
		}
	}
	return nil
}

// sets are those to measure a shape with.
func (m *meter) sets(avx2 bool) []*kernels.Set {
	if m.o.Sets != nil {
		return m.o.Sets
	}
	sets := []*kernels.Set{kernels.Best()}
	if s, err := kernels.ByName("avx2"); avx2 && err == nil && s != sets[0] {
		sets = append(sets, s)
	}
	return sets
}

func (m *meter) product(p product) error {
	workingSet := 0
	if p.cold {
		workingSet = 4 * m.cache
	}
	need := int64(max(workingSet+p.WeightBytes(), p.WeightBytes())) + 8*int64(p.Batch)*int64(p.M+p.K)
	if m.o.MaxBytes > 0 && need > m.o.MaxBytes {
		return nil
	}
	m.o.Progress(fmt.Sprintf("%s %d×%d×%d, %d threads", p.Op, p.M, p.K, p.Batch, m.team.Size()))
	work, err := tune.NewWork(p.Shape, m.team.Size(), workingSet)
	if err != nil {
		return err
	}
	defer work.Close()
	for _, set := range m.sets(p.avx2) {
		work.Prepare(set)
		peak := m.limits.FMA
		k := Kernel{Op: string(p.Op), Kernel: set.Name, M: p.M, K: p.K, N: p.Batch, Group: p.Group}
		if p.Int8() {
			peak = m.limits.Dot8
		}
		if p.Group == 0 {
			k.Type = typeName(p.Type)
		}
		k.WeightBytes = p.WeightBytes()
		run := &task{per: p.Ops(), body: func(w *team.Worker, iters int) {
			for i := range iters {
				work.Run(set, w, i, 0)
			}
		}}
		if err := m.against(k, run, peak, work.Weights); err != nil {
			return err
		}
	}
	return nil
}

func typeName(t kernels.DType) string {
	switch t {
	case kernels.F32:
		return "f32"
	case kernels.F16:
		return "f16"
	case kernels.BF16:
		return "bf16"
	case kernels.Q8_0:
		return "q8_0"
	}
	return fmt.Sprint(uint32(t))
}

// against times run and its two roofs in turn and adds the result.
func (m *meter) against(k Kernel, run *task, peak kernels.Peak, weights func(i int) []byte) error {
	compute := peakTask(peak, m.team.Size())
	// The rate of the second roof is in operations: those of a product per reading
	// of its weights.
	reading := readTask(m.limits, weights, run.per)
	err := alternate(m.ctx, m.team, m.o, []*task{compute, reading, run},
		[]time.Duration{m.o.BatchTime * 2 / 3, m.o.BatchTime * 2 / 3, m.o.BatchTime})
	if err != nil {
		return fmt.Errorf("%w (%s on %s)", err, k.Op, k.Kernel)
	}
	s := run.spread()
	k.Threads = m.team.Size()
	k.GOPS, k.MinGOPS, k.MaxGOPS = s.Median, s.Min, s.Max
	k.PeakGOPS, k.ReadGOPS = compute.spread().Median, reading.spread().Median
	k.LimitGOPS, k.Bound = k.PeakGOPS, "compute"
	if k.ReadGOPS < k.PeakGOPS {
		k.LimitGOPS, k.Bound = k.ReadGOPS, "memory"
	}
	k.Fraction = round(k.GOPS / k.LimitGOPS)
	k.FractionOfPeak = round(k.GOPS / k.PeakGOPS)
	k.Microseconds = round(run.per / k.GOPS / 1e3)
	k.GBs = round(float64(k.WeightBytes) * k.GOPS / run.per)
	m.results = append(m.results, k)
	return nil
}
