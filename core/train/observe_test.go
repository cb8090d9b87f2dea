package train

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/optim"
)

// witness writes down what it is told.
type witness struct {
	calls  []string
	phases []Phase
	panics string // the call at which it panics
}

func (w *witness) call(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.calls = append(w.calls, text)
	if w.panics != "" && strings.HasPrefix(text, w.panics) {
		panic("witness")
	}
}

func (w *witness) Began(b *Beginning) { w.call("began %d/%d %s", b.Step, b.Steps, b.Config.Name) }
func (w *witness) Stepped(m *Metrics, p []Phase) {
	w.call("stepped %d %t", m.Step, m.Val != nil)
	w.phases = append(w.phases, p...)
}
func (w *witness) Saved(s *Saving)            { w.call("saved %d %t", s.Step, s.Path != "") }
func (w *witness) Ended(r *Result, err error) { w.call("ended %d %v", r.Steps, err) }
func (w *witness) Dropped() int64             { return 0 }

func TestObserverIsToldAll(t *testing.T) {
	fsys, w := fsx.NewCrash(1), &witness{}
	_, err := train(t, settings(t, prepared(t), "train.steps=6"), fsys, func(o *Options) { o.Observer = w })
	require.NoError(t, err)
	require.Equal(t, []string{
		"began 0/6 t", "stepped 1 false", "stepped 2 false", "stepped 3 false", "stepped 4 false", "stepped 5 true", "saved 5 true", "stepped 6 true", "saved 6 true", "ended 6 <nil>",
	}, w.calls)
	var names []string
	for i, p := range w.phases {
		require.False(t, p.To.Before(p.From), "%+v", p)
		if p.Name == PhaseStep {
			names = nil
		} else if p.Name != PhaseEvaluate {
			require.False(t, p.From.Before(w.phases[i-len(names)].From), "%+v", p)
		}
		names = append(names, p.Name)
	}
	// Two micro-batches; the network of the tests does not say when it turned back.
	require.Equal(t, []string{PhaseStep, PhaseData, PhaseBackward, PhaseBackward, PhaseOptimizer, PhaseEvaluate}, names)

	w = &witness{}
	_, err = train(t, settings(t, prepared(t), "train.steps=8"), fsys, func(o *Options) { o.Observer = w })
	require.NoError(t, err)
	require.Equal(t, []string{"began 6/8 t", "stepped 7 false"}, w.calls[:2])
}

// The network of the model says where the forward ends.
func TestPhasesOfTheModel(t *testing.T) {
	w := &witness{}
	_, err := train(t, settings(t, prepared(t), "train.steps=4", "train.rows=2"), fsx.NewCrash(1), func(o *Options) { o.Observer, o.hooks.network = w, newNetwork })
	require.NoError(t, err)
	var names []string
	for _, p := range w.phases[:5] {
		require.False(t, p.To.Before(p.From), "%+v", p)
		names = append(names, p.Name)
	}
	require.Equal(t, []string{PhaseStep, PhaseData, PhaseForward, PhaseBackward, PhaseOptimizer}, names)
	require.Equal(t, w.phases[2].To, w.phases[3].From)
}

// An observer that panics is one fewer, and changes nothing.
func TestObserverThatPanics(t *testing.T) {
	for _, at := range []string{"began", "stepped 3", "saved", "ended"} {
		var log bytes.Buffer
		weights, w := map[string][]float32{}, &witness{panics: at}
		_, err := train(t, settings(t, prepared(t), "train.steps=6"), fsx.NewCrash(1), keep(weights, newFake), func(o *Options) { o.Observer, o.Log = w, &log })
		require.NoError(t, err)
		require.Equal(t, 1, strings.Count(log.String(), "an observer failed and is not called again: witness"), at)
		require.True(t, strings.HasPrefix(w.calls[len(w.calls)-1], at), "%v", w.calls)
	}
}

// sealed is a disk on which nothing with this name can be changed from a moment on.
type sealed struct {
	fsx.FS
	name string
	full *atomic.Bool
}

func (s sealed) deny(path string) error {
	if s.full.Load() && strings.Contains(path, s.name) {
		return &fs.PathError{Op: "write", Path: path, Err: syscall.ENOSPC}
	}
	return nil
}

func (s sealed) OpenFile(path string, flag int, perm fs.FileMode) (fsx.File, error) {
	if err := s.deny(path); err != nil {
		return nil, err
	}
	f, err := s.FS.OpenFile(path, flag, perm)
	if err == nil && strings.Contains(path, s.name) {
		f = sealedFile{f, s}
	}
	return f, err
}

func (s sealed) MkdirAll(path string, perm fs.FileMode) error {
	return errors.Join(s.deny(path), s.FS.MkdirAll(path, perm))
}

type sealedFile struct {
	fsx.File
	disk sealed
}

func (f sealedFile) WriteAt(b []byte, at int64) (int, error) {
	if err := f.disk.deny(f.Name()); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, at)
}

// The disk of TensorBoard's events is full, from the start or later: the training gives
// the same weights, says so once, and counts what was lost.
func TestEventsOnFullDisk(t *testing.T) {
	run := func(from int) (weights map[string][]float32, log string, res *Result) {
		var text bytes.Buffer
		weights = map[string][]float32{}
		var full atomic.Bool
		full.Store(from == 0)
		disk := sealed{fsx.NewCrash(1), "tensorboard", &full}
		res, err := train(t, settings(t, prepared(t), "telemetry.tensorboard=true"), disk, keep(weights, newFake), func(o *Options) {
			o.Log = &text
			grads := o.hooks.gradients
			o.hooks.gradients = func(step int, p []optim.Param) {
				full.CompareAndSwap(false, step == from)
				if grads != nil {
					grads(step, p)
				}
			}
		})
		require.NoError(t, err)
		return weights, text.String(), res
	}
	good, log, res := run(-1)
	require.Zero(t, res.Dropped)
	require.NotContains(t, log, "observations")
	for _, from := range []int{0, 4} {
		weights, log, res := run(from)
		require.Equal(t, good, weights)
		require.Positive(t, res.Dropped)
		require.LessOrEqual(t, strings.Count(log, "observations could not be written or sent; the training goes on without them"), 1, log)
	}
}

// A sample is made while the weights are those of the forward pass, and the run goes on
// as without it.
func TestSample(t *testing.T) {
	r, err := open(settings(t, prepared(t)), Options{FS: fsx.NewCrash(1), Peak: 1})
	require.NoError(t, err)
	defer r.close()
	require.NoError(t, r.build())
	r.learn.Init(1)
	require.NoError(t, r.learn.Push())
	text, err := r.sample("fn ", 8)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(text, "fn ") && len(text) > 3, "%q", text)
	again, err := r.sample("fn ", 8)
	require.NoError(t, err)
	require.Equal(t, text, again)
	_, err = r.sample(strings.Repeat("x", 100), 8) // longer than the context
	require.Error(t, err)
}

// BenchmarkBoard is what a step costs besides the training to be in TensorBoard.
func BenchmarkBoard(b *testing.B) {
	r := &run{cfg: settings(b, prepared(b)), fs: fsx.OS(), clock: clock.System()}
	r.cfg.Telemetry.TensorBoardDir = b.TempDir()
	board, v := newBoard(r), Number(0.5)
	m := &Metrics{Loss: 3, FlipRate: &v, ZeroFraction: &v, Cosine: &v, Norms: map[string]Number{"matrix": 1, "head": 1, "embedding": 1, "scalar": 1, "mhc": 1}}
	for b.Loop() {
		m.Step++
		board.Stepped(m, nil)
	}
	board.Ended(nil, nil)
	b.ReportMetric(float64(board.Dropped()), "dropped")
}

// BenchmarkBoardEvaluation is what an evaluation of nano-5m's shape costs besides, with
// histograms of all weights and trits, its residual streams and a sample of 64 tokens.
func BenchmarkBoardEvaluation(b *testing.B) {
	c, err := config.Parse("b.toml", []byte("preset = \"nano-5m\"\n"), "data.path="+prepared(b), "model.vocab=272", "train.steps=1000")
	require.NoError(b, err)
	c.Telemetry.TensorBoardDir = b.TempDir()
	r, err := open(c, Options{Peak: 1, FS: fsx.OS(), Clock: clock.System()})
	require.NoError(b, err)
	defer r.close()
	require.NoError(b, r.build())
	r.learn.Init(1)
	require.NoError(b, r.learn.Push())
	board := newBoard(r)
	m := &Metrics{Val: &Eval{}}
	for b.Loop() {
		m.Step++
		r.lookAtStreams(m)
		board.Stepped(m, nil)
	}
	board.Ended(nil, nil)
}
