package bench

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync/atomic"
	"time"

	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// Profile is where the time of a step goes.
type Profile struct {
	// Model is what the caller calls it.
	Model string `json:"model"`
	// Name is "decode" or "prefill"; Tokens the number of tokens of a step and
	// Position where the first stands.
	Name     string `json:"name"`
	Tokens   int    `json:"tokens"`
	Position int    `json:"position"`
	Threads  int    `json:"threads"`
	// Microseconds is the mean time of a step.
	Microseconds float64  `json:"us"`
	Ops          []OpTime `json:"ops"`
}

// OpTime is one kernel's part of a step. The last of a profile, "between
// kernels", is what no kernel used: barriers, waiting for other workers, and Go.
type OpTime struct {
	Op string `json:"op"`
	// Calls is per step, of all workers.
	Calls float64 `json:"calls"`
	// Microseconds is per step and worker.
	Microseconds float64 `json:"us"`
	// Share is the part of the step's time.
	Share float64 `json:"share"`
}

// A stopwatch adds up the time of one op of an instrumented set.
type stopwatch struct {
	op    string
	ns    atomic.Int64
	calls atomic.Int64
	_     [104]byte // workers hold different ops at the same time
}

func (s *stopwatch) since(start time.Time) {
	s.ns.Add(int64(time.Since(start)))
	s.calls.Add(1)
}

// instrument returns a set that computes like set and times every op. A call
// costs about a tenth of a microsecond more.
func instrument(set *kernels.Set) (*kernels.Set, []*stopwatch) {
	s := *set
	var ws []*stopwatch
	watch := func(op string) *stopwatch {
		w := &stopwatch{op: op}
		ws = append(ws, w)
		return w
	}
	quantize, rms, rmsQuantize := watch("quantize"), watch("rmsnorm"), watch("rmsnorm+quantize")
	s.Quantize = func(q []int8, sums []int32, x []float32, group int) float32 {
		defer quantize.since(time.Now())
		return set.Quantize(q, sums, x, group)
	}
	s.RMSNorm = func(dst, x, weight []float32, eps float32) {
		defer rms.since(time.Now())
		set.RMSNorm(dst, x, weight, eps)
	}
	s.RMSNormQuantize = func(q []int8, sums []int32, norm, x, weight []float32, eps float32, group int) float32 {
		defer rmsQuantize.since(time.Now())
		return set.RMSNormQuantize(q, sums, norm, x, weight, eps, group)
	}
	tgemv, tgemm := watch("ternary_gemv"), watch("ternary_gemm")
	s.TernaryGEMV = func(dst []float32, w *kernels.Ternary, x *kernels.Act, r0, r1 int) {
		defer tgemv.since(time.Now())
		set.TernaryGEMV(dst, w, x, r0, r1)
	}
	s.TernaryGEMM = func(dst []float32, ldd int, w *kernels.Ternary, x *kernels.Act, r0, r1 int, scratch []byte) {
		defer tgemm.since(time.Now())
		set.TernaryGEMM(dst, ldd, w, x, r0, r1, scratch)
	}
	dgemv, dgemm, row := watch("dense_gemv"), watch("dense_gemm"), watch("embedding row")
	s.DenseGEMV = func(dst []float32, w *kernels.Dense, x []float32, r0, r1 int) {
		defer dgemv.since(time.Now())
		set.DenseGEMV(dst, w, x, r0, r1)
	}
	s.DenseGEMM = func(dst []float32, ldd int, w *kernels.Dense, x []float32, ldx, n, r0, r1 int) {
		defer dgemm.since(time.Now())
		set.DenseGEMM(dst, ldd, w, x, ldx, n, r0, r1)
	}
	head := watch("int8 head")
	s.Q8GEMV = func(dst []float32, w *kernels.Dense, x *kernels.Act, r0, r1 int) {
		defer head.since(time.Now())
		set.Q8GEMV(dst, w, x, r0, r1)
	}
	s.Q8GEMM = func(dst []float32, ldd int, w *kernels.Dense, x *kernels.Act, r0, r1 int) {
		defer head.since(time.Now())
		set.Q8GEMM(dst, ldd, w, x, r0, r1)
	}
	s.DenseRow = func(dst []float32, w *kernels.Dense, r int) {
		defer row.since(time.Now())
		set.DenseRow(dst, w, r)
	}
	act, sum := watch("activation"), watch("add, axpy, scale")
	s.SwiGLU = func(dst, gate, up []float32) {
		defer act.since(time.Now())
		set.SwiGLU(dst, gate, up)
	}
	s.ReLU2GLU = func(dst, gate, up []float32) {
		defer act.since(time.Now())
		set.ReLU2GLU(dst, gate, up)
	}
	s.ReLU2 = func(dst, x []float32) {
		defer act.since(time.Now())
		set.ReLU2(dst, x)
	}
	s.Add = func(dst, x, y []float32) {
		defer sum.since(time.Now())
		set.Add(dst, x, y)
	}
	s.Axpy = func(dst []float32, a float32, x []float32) {
		defer sum.since(time.Now())
		set.Axpy(dst, a, x)
	}
	s.Scale = func(dst []float32, a float32, x []float32) {
		defer sum.since(time.Now())
		set.Scale(dst, a, x)
	}
	rope, store, attend := watch("rope"), watch("cache store"), watch("attention")
	s.RoPE = func(x []float32, heads, headDim int, cos, sin []float32, interleaved bool) {
		defer rope.since(time.Now())
		set.RoPE(x, heads, headDim, cos, sin, interleaved)
	}
	s.KVStore = func(kv *kernels.KV, pos int, k, v []float32) {
		defer store.since(time.Now())
		set.KVStore(kv, pos, k, v)
	}
	s.Attention = func(dst []float32, ldd int, q []float32, ldq int, kv *kernels.KV, a kernels.Query, h0, h1 int, scratch []byte) {
		defer attend.since(time.Now())
		set.Attention(dst, ldd, q, ldq, kv, a, h0, h1, scratch)
	}
	return &s, ws
}

// ProfileOptions says what to profile.
type ProfileOptions struct {
	// Name is for the report.
	Name string
	// Open opens the model with the given set; closing gives everything back.
	Open func(set *kernels.Set) (m *model.Model, closing func() error, err error)
	// Set is the set to profile. The default is the best one.
	Set *kernels.Set
	// Threads is the size of the team; 0 means all cores this process may use.
	Threads int
	// Prompt is the number of tokens of the prefill, 512 by default, and Decode the
	// number of steps of decoding after it, 64 by default; both are lowered to what
	// the context holds.
	Prompt, Decode int
}

// MeasureProfile runs a prefill and then decodes, and says where the time of
// each goes.
func MeasureProfile(ctx context.Context, o ProfileOptions) (ps []Profile, err error) {
	if o.Set == nil {
		o.Set = kernels.Best()
	}
	if o.Prompt <= 0 {
		o.Prompt = 512
	}
	if o.Decode <= 0 {
		o.Decode = 64
	}
	set, watches := instrument(o.Set)
	m, closing, err := o.Open(set)
	if err != nil {
		return nil, fmt.Errorf("bench: open the model: %w", err)
	}
	defer func() { err = errors.Join(err, closing()) }()
	c := m.Config()
	prompt := min(o.Prompt, c.Context-c.Context/4)
	decode := min(o.Decode, c.Context-prompt)
	tm := team.New(o.Threads, team.Options{})
	defer tm.Close()
	work, err := model.NewWork(m, tm, prompt)
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	pages := (c.Context + kernels.PageLen - 1) / kernels.PageLen
	pool, err := model.NewPool(m, pages, kernels.KVF16)
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	ids := make([]int32, prompt)
	for i := range ids {
		ids[i] = int32((i*7919 + 13) % c.Vocab)
	}
	p := profiler{ctx: ctx, m: m, work: work, pool: pool, watches: watches, name: o.Name, threads: tm.Size()}
	var seq model.Seq
	if err := pool.Grow(&seq, prompt+decode); err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	// The first round only warms up.
	for round := range 2 {
		seq.Len = 0
		ps = ps[:0]
		for _, s := range []struct {
			name          string
			tokens, steps int
		}{{"prefill", prompt, 1}, {"decode", 1, decode}} {
			r, err := p.steps(s.name, &seq, ids[:s.tokens], s.steps)
			if err != nil {
				return nil, err
			}
			if round == 1 {
				ps = append(ps, r)
			}
		}
	}
	return ps, nil
}

type profiler struct {
	ctx     context.Context //nolint:containedctx // lives for one call
	m       *model.Model
	work    *model.Work
	pool    *model.Pool
	watches []*stopwatch
	threads int
	name    string
}

// steps runs the same tokens n times, one after the other in seq.
func (p *profiler) steps(name string, seq *model.Seq, ids []int32, n int) (Profile, error) {
	for _, w := range p.watches {
		w.ns.Store(0)
		w.calls.Store(0)
	}
	r := Profile{Model: p.name, Name: name, Tokens: len(ids), Position: seq.Len, Threads: p.threads}
	step := model.Step{Tokens: ids, Seqs: []model.SeqStep{{Seq: seq, N: len(ids), Logits: model.LogitsLast}}}
	start := time.Now()
	for range n {
		if err := p.ctx.Err(); err != nil {
			return r, fmt.Errorf("bench: %w", context.Cause(p.ctx))
		}
		if err := p.m.Forward(p.work, p.pool, &step); err != nil {
			return r, fmt.Errorf("bench: %w", err)
		}
	}
	us := time.Since(start).Seconds() * 1e6 / float64(n)
	rest := us
	for _, w := range p.watches {
		if w.calls.Load() == 0 {
			continue
		}
		t := OpTime{Op: w.op, Calls: float64(w.calls.Load()) / float64(n), Microseconds: float64(w.ns.Load()) / 1e3 / float64(n*p.threads)}
		rest -= t.Microseconds
		t.Microseconds, t.Share = round(t.Microseconds), round2(t.Microseconds/us)
		r.Ops = append(r.Ops, t)
	}
	sort.SliceStable(r.Ops, func(i, j int) bool { return r.Ops[i].Microseconds > r.Ops[j].Microseconds })
	r.Microseconds = round(us)
	r.Ops = append(r.Ops, OpTime{Op: "between kernels", Microseconds: round(rest), Share: round2(rest / us)})
	return r, nil
}

// profileTable has a row per op.
func profileTable(p Profile) *table {
	t := &table{
		title:  fmt.Sprintf("%s, %s of %d token(s) at position %d, %d threads, %s µs", p.Model, p.Name, p.Tokens, p.Position, p.Threads, num(p.Microseconds)),
		header: []string{"<op", "calls", "µs per worker", "share"},
	}
	for _, o := range p.Ops {
		t.add(o.Op, num(o.Calls), num(o.Microseconds), fmt.Sprintf("%.0f %%", 100*o.Share))
	}
	return t
}
