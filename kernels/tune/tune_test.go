package tune

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// counted is a set that counts its calls and takes at least the given time per call.
type counted struct {
	*kernels.Set
	calls [6]atomic.Int64 // ternary GEMV, GEMM, dense GEMV, GEMM, Q8 GEMV, GEMM
	delay atomic.Int64    // ns
}

func newCounted(name string, delay time.Duration) *counted {
	base := kernels.Best()
	c := &counted{Set: new(kernels.Set)}
	*c.Set = *base
	c.Name = name
	c.delay.Store(int64(delay))
	count := func(op int) {
		c.calls[op].Add(1)
		for end := time.Now().Add(time.Duration(c.delay.Load())); time.Now().Before(end); {
		}
	}
	c.TernaryGEMV = func(dst []float32, w *kernels.Ternary, x *kernels.Act, r0, r1 int) {
		count(0)
		base.TernaryGEMV(dst, w, x, r0, r1)
	}
	c.TernaryGEMM = func(dst []float32, ldd int, w *kernels.Ternary, x *kernels.Act, r0, r1 int, scratch []byte) {
		count(1)
		base.TernaryGEMM(dst, ldd, w, x, r0, r1, scratch)
	}
	c.DenseGEMV = func(dst []float32, w *kernels.Dense, x []float32, r0, r1 int) {
		count(2)
		base.DenseGEMV(dst, w, x, r0, r1)
	}
	c.DenseGEMM = func(dst []float32, ldd int, w *kernels.Dense, x []float32, ldx, n, r0, r1 int) {
		count(3)
		base.DenseGEMM(dst, ldd, w, x, ldx, n, r0, r1)
	}
	c.Q8GEMV = func(dst []float32, w *kernels.Dense, x *kernels.Act, r0, r1 int) {
		count(4)
		base.Q8GEMV(dst, w, x, r0, r1)
	}
	c.Q8GEMM = func(dst []float32, ldd int, w *kernels.Dense, x *kernels.Act, r0, r1 int) {
		count(5)
		base.Q8GEMM(dst, ldd, w, x, r0, r1)
	}
	return c
}

func (c *counted) total() (n int64) {
	for i := range c.calls {
		n += c.calls[i].Load()
	}
	return n
}

// shapes has one shape per op.
var shapes = []Shape{
	{Op: TernaryGEMV, M: 48, K: 64, Group: 64, Batch: 1},
	{Op: TernaryGEMM, M: 48, K: 64, Group: 64, Batch: 5},
	{Op: DenseGEMV, M: 48, K: 64, Type: kernels.F16, Batch: 1},
	{Op: DenseGEMM, M: 48, K: 64, Type: kernels.Q8_0, Batch: 5},
	{Op: Q8GEMV, M: 48, K: 64, Type: kernels.Q8_0, Batch: 1},
	{Op: Q8GEMM, M: 48, K: 64, Type: kernels.Q8_0, Batch: 5},
}

const slow = 300 * time.Microsecond

// The set that a plan chose is the one that runs: for every op, and whichever of
// the candidates is made the fast one.
func TestTheChosenKernelRuns(t *testing.T) {
	for fast := range 2 {
		cs := []*counted{newCounted("a", slow), newCounted("b", slow)}
		cs[fast].delay.Store(0)
		plan, err := Tune(t.Context(), shapes, Options{
			Mode: Auto, Sets: []*kernels.Set{cs[0].Set, cs[1].Set}, BatchTime: time.Microsecond,
		})
		require.NoError(t, err)
		require.Equal(t, len(shapes), plan.Measured)
		for i, s := range shapes {
			require.Equal(t, cs[fast].Name, plan.Choices[i].Kernel, "%+v", plan.Choices[i])
			before := [2]int64{cs[0].calls[i].Load(), cs[1].calls[i].Load()}
			run(t, plan.Set, s)
			require.Equal(t, before[fast]+1, cs[fast].calls[i].Load(), "%s on %s", s.Op, cs[fast].Name)
			require.Equal(t, before[1-fast], cs[1-fast].calls[i].Load(), "%s on %s", s.Op, cs[1-fast].Name)

			// Shapes that were not tuned run on the fallback.
			other := s
			other.M += 16
			total := cs[0].total() + cs[1].total()
			run(t, plan.Set, other)
			require.Equal(t, total, cs[0].total()+cs[1].total())
		}
		require.Contains(t, plan.Set.Name, "tuned")
	}
}

// run computes a shape once and returns the result.
func run(t *testing.T, set *kernels.Set, s Shape) []float32 {
	t.Helper()
	w, err := NewWork(s, 1, 0)
	require.NoError(t, err)
	defer w.Close()
	w.Prepare(set)
	tm := team.New(1, team.Options{})
	defer tm.Close()
	require.NoError(t, tm.Run(func(wk *team.Worker) { w.Run(set, wk, 0, 0) }))
	return w.Result()
}

// Whatever is chosen, the bits are the same, on any number of workers and grain.
func TestTuningChangesNoResult(t *testing.T) {
	tm := team.New(3, team.Options{})
	defer tm.Close()
	plan, err := Tune(t.Context(), shapes, Options{Mode: Auto, Team: tm, BatchTime: time.Microsecond})
	require.NoError(t, err)
	for _, s := range shapes {
		want := run(t, kernels.Best(), s)
		for _, grain := range []int{0, 16, plan.Grain(s)} {
			w, err := NewWork(s, 3, 3*s.WeightBytes())
			require.NoError(t, err)
			w.Prepare(plan.Set)
			require.NoError(t, tm.Run(func(wk *team.Worker) {
				for i := range 4 {
					w.Run(plan.Set, wk, i, grain)
				}
			}))
			require.Equal(t, want, w.Result(), "%s grain %d", s.Op, grain)
			w.Close()
		}
	}
}

func TestStoredChoicesAreUsed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	a, b := newCounted("a", slow), newCounted("b", 0)
	o := Options{Mode: Auto, Dir: dir, Version: "1.2.3", Sets: []*kernels.Set{a.Set, b.Set}, BatchTime: time.Microsecond}
	first, err := Tune(t.Context(), shapes, o)
	require.NoError(t, err)
	require.Empty(t, first.Notes)
	require.Equal(t, len(shapes), first.Measured)

	calls := a.total() + b.total()
	again, err := Tune(t.Context(), shapes, o)
	require.NoError(t, err)
	require.Zero(t, again.Measured)
	require.Equal(t, first.Choices, again.Choices)
	require.Equal(t, calls, a.total()+b.total(), "nothing runs")

	// Other thread counts are measured and stored beside these.
	tm := team.New(2, team.Options{})
	defer tm.Close()
	two := o
	two.Team = tm
	plan, err := Tune(t.Context(), shapes[:1], two)
	require.NoError(t, err)
	require.Equal(t, 1, plan.Measured)
	again, err = Tune(t.Context(), shapes, o)
	require.NoError(t, err)
	require.Zero(t, again.Measured)

	// Now a is fast: only a refresh notices.
	a.delay.Store(0)
	b.delay.Store(int64(slow))
	again, err = Tune(t.Context(), shapes, o)
	require.NoError(t, err)
	require.Equal(t, "b", again.Choices[0].Kernel)
	o.Mode = Refresh
	again, err = Tune(t.Context(), shapes, o)
	require.NoError(t, err)
	require.Equal(t, len(shapes), again.Measured)
	require.Equal(t, "a", again.Choices[0].Kernel)
	o.Mode = Auto
	again, err = Tune(t.Context(), shapes, o)
	require.NoError(t, err)
	require.Zero(t, again.Measured)
	require.Equal(t, "a", again.Choices[0].Kernel)
}

// A file that is damaged or from elsewhere is measured again, with a reason, and
// replaced.
func TestUnusableFilesAreMeasuredAgain(t *testing.T) {
	edit := func(f func(m map[string]any)) func([]byte) []byte {
		return func(b []byte) []byte {
			var m map[string]any
			if err := json.Unmarshal(b, &m); err != nil {
				panic(err)
			}
			f(m)
			b, _ = json.Marshal(m)
			return b
		}
	}
	choice := func(key string, value any) func([]byte) []byte {
		return edit(func(m map[string]any) { m["choices"].([]any)[0].(map[string]any)[key] = value })
	}
	tests := map[string]struct {
		change func([]byte) []byte
		reason string
	}{
		"empty":       {func([]byte) []byte { return nil }, "damaged"},
		"cut":         {func(b []byte) []byte { return b[:len(b)/2] }, "damaged"},
		"not JSON":    {func([]byte) []byte { return []byte("\x00\x01") }, "damaged"},
		"format":      {edit(func(m map[string]any) { m["format"] = 99 }), "format 99"},
		"other CPU":   {edit(func(m map[string]any) { m["cpu"] = "Z80" }), `measured on "Z80"`},
		"version":     {edit(func(m map[string]any) { m["version"] = "0.0.1" }), `version "0.0.1"`},
		"other sets":  {edit(func(m map[string]any) { m["sets"] = []string{"x"} }), "kernels [x]"},
		"kernel":      {choice("kernel", "x"), `kernel "x"`},
		"time":        {choice("ns", -1), "-1 ns"},
		"grain":       {choice("grain", 7), "grain 7"},
		"threads":     {choice("threads", 0), "0 threads"},
		"op":          {choice("op", "x"), `unknown op "x"`},
		"size":        {choice("m", -4), "sizes must be"},
		"wrong types": {choice("m", "many"), "damaged"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := Options{Mode: Auto, Dir: dir, Version: "1", BatchTime: time.Microsecond,
				Sets: []*kernels.Set{newCounted("a", 0).Set, newCounted("b", 0).Set}}
			_, err := Tune(t.Context(), shapes[:1], o)
			require.NoError(t, err)
			files, err := filepath.Glob(filepath.Join(dir, "*"))
			require.NoError(t, err)
			require.Len(t, files, 1, "no temporary file stays")
			b, err := os.ReadFile(files[0])
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(files[0], tt.change(b), 0o644))

			plan, err := Tune(t.Context(), shapes[:1], o)
			require.NoError(t, err)
			require.Equal(t, 1, plan.Measured)
			require.Len(t, plan.Notes, 1)
			require.Contains(t, plan.Notes[0], tt.reason)
			require.Contains(t, plan.Notes[0], files[0])

			plan, err = Tune(t.Context(), shapes[:1], o)
			require.NoError(t, err)
			require.Zero(t, plan.Measured)
			require.Empty(t, plan.Notes)
		})
	}
}

func TestUnwritableDirectoryIsANote(t *testing.T) {
	blocked := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(blocked, nil, 0o644))
	plan, err := Tune(t.Context(), shapes[:1], Options{Mode: Auto, Dir: filepath.Join(blocked, "x"), BatchTime: time.Microsecond})
	require.NoError(t, err)
	require.Equal(t, 1, plan.Measured)
	require.NotEmpty(t, plan.Notes)
	require.Contains(t, strings.Join(plan.Notes, "\n"), "not stored")
}

func TestOffMeasuresNothing(t *testing.T) {
	a := newCounted("a", 0)
	dir := t.TempDir()
	plan, err := Tune(t.Context(), shapes, Options{Dir: dir, Sets: []*kernels.Set{a.Set}, Fallback: a.Set})
	require.NoError(t, err)
	require.Same(t, a.Set, plan.Set)
	require.Zero(t, a.total())
	plan, err = Tune(t.Context(), shapes, Options{})
	require.NoError(t, err)
	require.Same(t, kernels.Best(), plan.Set, "the fallback is the same on every run")
	require.Zero(t, plan.Grain(shapes[0]))
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	plan, err := Tune(ctx, shapes, Options{Mode: Auto})
	require.ErrorIs(t, err, context.Canceled)
	require.NotNil(t, plan.Set)
}

func TestBadArguments(t *testing.T) {
	for reason, s := range map[string]Shape{
		"unknown op":           {Op: "x"},
		"sizes must be":        {Op: TernaryGEMV, M: 0, K: 1, Group: 16, Batch: 1},
		"takes 1 vector":       {Op: DenseGEMV, M: 1, K: 1, Batch: 4},
		"group 5":              {Op: TernaryGEMM, M: 16, K: 64, Group: 5, Batch: 2},
		"takes a Q8_0 matrix":  {Op: Q8GEMV, M: 1, K: 32, Type: kernels.F16, Batch: 1},
		"type 99":              {Op: DenseGEMV, M: 1, K: 1, Type: 99, Batch: 1},
		"want a multiple of 3": {Op: DenseGEMV, M: 1, K: 33, Type: kernels.Q8_0, Batch: 1},
	} {
		_, err := Tune(t.Context(), []Shape{s}, Options{Mode: Auto})
		require.ErrorContains(t, err, reason)
		_, err = NewWork(s, 1, 0)
		require.ErrorContains(t, err, "tune: ")
	}
	_, err := Tune(t.Context(), nil, Options{Mode: "always"})
	require.ErrorContains(t, err, "want off, auto or refresh")
	for _, s := range []string{"", "off", "auto", "refresh"} {
		_, err := ParseMode(s)
		require.NoError(t, err)
	}
}

func TestBucketAndMedian(t *testing.T) {
	for n, want := range map[int]int{1: 1, 2: 2, 3: 4, 48: 64, 64: 64, 65: 128, 512: 512, 5000: 512} {
		require.Equal(t, want, Bucket(n))
	}
	require.InDelta(t, 3.0, Median([]float64{5, 1, 3}), 0)
	require.InDelta(t, 2.0, Median([]float64{3, 1}), 0)
	require.Zero(t, Median(nil))
}

func TestLookupAllocatesNothing(t *testing.T) {
	a := newCounted("a", 0)
	fallback := newCounted("f", slow)
	plan, err := Tune(t.Context(), shapes[:1], Options{Mode: Auto, Sets: []*kernels.Set{a.Set, fallback.Set}, Fallback: fallback.Set, BatchTime: time.Microsecond})
	require.NoError(t, err)
	require.Equal(t, "a", plan.Choices[0].Kernel)
	w, err := NewWork(shapes[0], 1, 0)
	require.NoError(t, err)
	defer w.Close()
	require.Zero(t, testing.AllocsPerRun(100, func() { w.rows(plan.Set, 0, 0, 0, 48) }))
}
