package interop

import (
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/architehc/nanochat/core/telemetry/events"
)

// tensorboard is what TensorBoard reads in dir.
type tensorboard struct {
	Scalars    map[string][][3]float64
	Histograms map[string][][4]any
	Texts      map[string][][2]any
}

func readEvents(t *testing.T, dir string) (r tensorboard) {
	t.Helper()
	py := os.Getenv("NANOCHAT_PYTHON")
	if py == "" {
		t.Skip("NANOCHAT_PYTHON is not set: want a Python with the packages of requirements-dev.txt; `make test` sets it")
	}
	cmd := exec.Command(py, "events_reference.py", dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return r
}

// TensorBoard reads back what was written, and of a run that was resumed each step once:
// what came again takes the place of what there was.
func TestTensorBoardReadsEvents(t *testing.T) {
	dir := t.TempDir()
	weights := []float32{-2, -0.5, 0.25, 0.25, 1, 2}
	want := map[string][][2]float64{} // tag: step, value
	run := func(first, last int, scale float64) {
		w := events.Open(dir, events.Options{First: first})
		for tag := range want {
			want[tag] = slices.DeleteFunc(want[tag], func(e [2]float64) bool { return e[0] >= float64(first) })
		}
		for step := max(first, 1); step <= last; step++ {
			values := []events.Scalar{{Tag: "train/loss", Value: scale / float64(step)}, {Tag: "optim/größe", Value: -1e30 * scale}}
			w.Scalars(step, values...)
			for _, v := range values {
				want[v.Tag] = append(want[v.Tag], [2]float64{float64(step), float64(float32(v.Value))})
			}
			if step%4 == 0 {
				w.Histogram(step, "weights/a", events.HistogramOf(weights))
				w.Histogram(step, "trits/a", events.HistogramOfTrits(3, 4, 5))
				w.Text(step, "sample", "```rust\nfn größe() {}\n```")
			}
		}
		w.Close()
		if w.Dropped() != 0 {
			t.Fatalf("%d events dropped", w.Dropped())
		}
	}
	run(0, 10, 1)
	run(7, 12, 2) // resumed after step 6, though step 10 was reached
	run(13, 16, 3)
	got := readEvents(t, dir)
	for tag, w := range want {
		var g [][2]float64
		for _, e := range got.Scalars[tag] {
			g = append(g, [2]float64{e[0], e[2]})
		}
		if d := cmp.Diff(w, g); d != "" {
			t.Errorf("%s (-want +got):\n%s", tag, d)
		}
	}
	if len(want["train/loss"]) != 16 || len(got.Scalars) != 2 {
		t.Errorf("%d steps wanted, %d scalars", len(want["train/loss"]), len(got.Scalars))
	}
	a, trits := events.HistogramOf(weights), events.HistogramOfTrits(3, 4, 5)
	for tag, h := range map[string]*events.Histogram{"weights/a": a, "trits/a": trits} {
		if len(got.Histograms[tag]) != 4 {
			t.Fatalf("%s: %d histograms, want those of steps 4, 8, 12, 16", tag, len(got.Histograms[tag]))
		}
		for i, e := range got.Histograms[tag] {
			w := [4]any{float64(4 * (i + 1)), []any{h.Min, h.Max, h.Num, h.Sum, h.SumSquares}, anys(h.Limits), anys(h.Counts)}
			if d := cmp.Diff(w, e); d != "" {
				t.Errorf("%s (-want +got):\n%s", tag, d)
			}
		}
	}
	// The reader has no way to drop texts: the one of step 8 from before the restart stays.
	text := []any{"```rust\nfn größe() {}\n```"}
	if d := cmp.Diff([][2]any{{4., text}, {8., text}, {8., text}, {12., text}, {16., text}}, got.Texts["sample"]); d != "" {
		t.Errorf("texts (-want +got):\n%s", d)
	}
	for _, e := range got.Scalars["train/loss"] {
		if e[1] < 1.7e9 || math.IsNaN(e[1]) {
			t.Errorf("wall time %v", e[1])
		}
	}
}

func anys(v []float64) (out []any) {
	for _, x := range v {
		out = append(out, x)
	}
	return out
}
