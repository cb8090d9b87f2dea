package train

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/optim"
)

// metaVersion is the version of meta.
const metaVersion = 1

// meta is the state of a run that is not in tensors: state.json of a checkpoint.
type meta struct {
	Version int `json:"version"`
	// Step is the steps taken, and Tokens those they learned from.
	Step   int   `json:"step"`
	Tokens int64 `json:"tokens"`
	// Seconds is the time of all parts of the run.
	Seconds  float64        `json:"seconds"`
	Cursor   data.Cursor    `json:"cursor"`
	Counters optim.Counters `json:"counters"`
	Detector Detector       `json:"detector"`
	// Val is the last evaluation, made after ValStep; Best is the lowest bits per byte.
	Val      *Eval   `json:"val,omitempty"`
	ValStep  int     `json:"val_step,omitempty"`
	Best     float64 `json:"best,omitempty"`
	BestStep int     `json:"best_step,omitempty"`
	// Pending is the last step's line of metrics where an interrupt came before it was
	// complete: its evaluation is still to be made.
	Pending *Metrics `json:"pending,omitempty"`
	// Config is the configuration as TOML, and Kernel the kernel set.
	Config string `json:"config"`
	Kernel string `json:"kernel"`
}

// evaluated notes an evaluation.
func (m *meta) evaluated(step int, v *Eval) {
	m.Val, m.ValStep = v, step
	if m.BestStep == 0 || float64(v.BPB) < m.Best {
		m.Best, m.BestStep = float64(v.BPB), step
	}
}

func (r *run) path(name string) string { return filepath.Join(r.cfg.Train.Out, name) }

func (r *run) checkpoints() string { return r.path("checkpoints") }

// state is what a checkpoint of the run as it stands holds. Its tensors are the
// run's own memory.
func (r *run) state() (*checkpoint.State, error) {
	r.meta.Version, r.meta.Config, r.meta.Kernel = metaVersion, r.cfg.TOML(), r.learn.Kernel()
	r.meta.Counters, r.meta.Detector = r.learn.Counters(), r.detect.s
	if err := r.learn.Pull(); err != nil {
		return nil, err
	}
	state, err := r.learn.State()
	if err != nil {
		return nil, err
	}
	s := &checkpoint.State{Step: r.meta.Step, Weights: checkpoint.Weights(r.params), Optimizer: state}
	return s, s.SetMeta(&r.meta)
}

// event reports something that is no anomaly of the numbers.
func (r *run) event(kind Kind, format string, args ...any) {
	r.eventAt(r.meta.Step, kind, format, args...)
}

// eventAt is event of a step.
func (r *run) eventAt(step int, kind Kind, format string, args ...any) {
	e := Event{kind, step, fmt.Sprintf(format, args...)}
	r.events = append(r.events, e)
	r.logf("warning: step %d: %s", e.Step, e.Text)
}

// start gives the run its state, first or resumed, and opens its files.
func (r *run) start() error {
	state, err := r.find()
	if err != nil {
		return err
	}
	if state == nil {
		if err := r.first(); err != nil {
			return err
		}
	} else if err := r.restore(state); err != nil {
		return err
	}
	r.meta.Kernel = r.learn.Kernel() // of a resumed run, too: that of its last part
	if err := r.learn.Push(); err != nil {
		return err
	}
	if err := r.fs.MkdirAll(r.cfg.Train.Out, 0o755); err != nil {
		return &Error{What: "directory " + r.cfg.Train.Out, Err: err, Hint: "choose another with --out"}
	}
	if err := r.takeLock(); err != nil {
		return err
	}
	if err := r.room(); err != nil {
		return err
	}
	text := r.cfg.TOML()
	if err := fsx.WriteAtomic(r.fs, r.path("config.toml"), func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}); err != nil {
		return &Error{What: "directory " + r.cfg.Train.Out, Err: err, Hint: "choose another with --out"}
	}
	if r.metrics, err = openMetrics(r.fs, r.path("metrics.jsonl"), r.meta.Step); err != nil {
		return &Error{What: "metrics", Err: err}
	}
	r.findPeak()
	r.began = r.clock.Now()
	return nil
}

// takeLock makes sure that no other process writes to the directory of the run, as far
// as its file system can tell.
func (r *run) takeLock() error {
	f, err := r.fs.OpenFile(r.path(".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return &Error{What: "directory " + r.cfg.Train.Out, Err: err, Hint: "choose another with --out"}
	}
	r.lock = f
	if ok, err := fsx.TryLock(f); !ok && err == nil {
		return &Error{What: "another training is writing to " + r.cfg.Train.Out, Hint: "wait for it, or choose another directory with --out"}
	}
	return nil
}

// find loads the checkpoint to go on from; nil means a start.
func (r *run) find() (*checkpoint.State, error) {
	dir := r.checkpoints()
	switch r.o.Resume {
	case ResumeNone:
		if list, err := checkpoint.List(r.fs, dir); err == nil && len(list) > 0 {
			return nil, &Error{What: fmt.Sprintf("%s holds a run of %d steps", r.cfg.Train.Out, list[0].Step), Hint: "go on with --resume auto, or choose another directory with --out"}
		}
		return nil, nil
	case ResumeAuto:
		path, skipped, err := checkpoint.Latest(r.fs, dir)
		for _, e := range skipped {
			r.logf("warning: %v", e)
		}
		if errors.Is(err, checkpoint.ErrNone) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		r.result.Checkpoint = path
		return checkpoint.Load(r.fs, path)
	}
	r.result.Checkpoint = r.o.Resume
	return checkpoint.Load(r.fs, r.o.Resume)
}

// room refuses a run whose first checkpoint will not fit on the disk, and warns of one
// whose last will not.
func (r *run) room() error {
	free, ok := fsx.Free(r.fs, r.cfg.Train.Out)
	if !ok {
		return nil
	}
	state, err := r.state()
	if err != nil {
		return err
	}
	one, err := checkpoint.Room(state)
	if err != nil {
		return err
	}
	if one > free {
		return &Error{What: fmt.Sprintf("%s has %s free, and a checkpoint needs %s", r.cfg.Train.Out, size(free), size(one)), Err: syscall.ENOSPC,
			Hint: "free some space, or choose a directory on another disk with --out"}
	}
	t := &r.cfg.Train
	kept := int64(1)
	if t.CheckpointEvery > 0 {
		kept = min(int64(r.total/t.CheckpointEvery)+1, int64(t.KeepLast+t.KeepBest+1)) // nothing goes before the next one is safe
	}
	if r.resumed == 0 && kept*one > free {
		r.logf("warning: %s has %s free, and the %d checkpoints that the run keeps need %s", t.Out, size(free), kept, size(kept*one))
	}
	return nil
}

// first is the state of a start.
func (r *run) first() error {
	if err := r.weights(); err != nil {
		return err
	}
	if err := r.openLoader(nil); err != nil {
		return err
	}
	r.meta.Cursor = r.loader.Cursor()
	return nil
}

// weights makes the first weights.
func (r *run) weights() error {
	r.learn.Init(uint64(r.cfg.Train.Seed))
	if r.cfg.Train.InitFrom != "" {
		return r.fillFrom(r.cfg.Train.InitFrom)
	}
	return nil
}

// restore takes the state of a checkpoint.
func (r *run) restore(s *checkpoint.State) error {
	bad := func(err error, hint string) error {
		return &Error{What: "checkpoint " + r.result.Checkpoint, Err: err, Hint: hint}
	}
	var m meta
	if err := s.GetMeta(&m); err != nil {
		return bad(err, "it was made by another version; start anew with --resume none --out DIR")
	}
	if m.Version != metaVersion {
		return bad(fmt.Errorf("state of version %d, this program reads %d", m.Version, metaVersion), "resume with the program that made it")
	}
	old, err := config.Parse("config of "+r.result.Checkpoint, []byte(m.Config))
	if err != nil {
		return bad(err, "it was made by another version; resume with that one")
	}
	if err := r.compare(old); err != nil {
		return err
	}
	if k := r.learn.Kernel(); m.Kernel != k {
		r.logf("warning: the run began with the kernels %s and goes on with %s: its results may differ in the last bits", m.Kernel, k)
	}
	const other = "resume with the configuration of the run, or start anew with --resume none --out DIR"
	if err := s.CopyWeights(r.params); err != nil {
		return bad(err, other)
	}
	if err := r.learn.Restore(m.Counters, s.Optimizer); err != nil {
		return bad(err, other)
	}
	if err := r.openLoader(&m.Cursor); err != nil {
		return bad(err, "the data is not that of the run: name it with data.path, or start anew with --resume none --out DIR")
	}
	r.meta, r.resumed, r.saved, r.before = m, m.Step, m.Step, m.Seconds
	r.detect.restore(m.Detector)
	if m.Step > r.total {
		return bad(fmt.Errorf("%d steps, more than the %d of the configuration", m.Step, r.total), "raise train.steps, or resume from an older checkpoint")
	}
	r.logf("resumed %s after step %d of %d", r.result.Checkpoint, m.Step, r.total)
	return nil
}

// fixed are the beginnings of keys that may not change at a resume.
var fixed = []string{"model.", "train.seed", "train.float"}

// compare reports the keys that changed since the checkpoint and refuses some.
func (r *run) compare(old *config.Config) error {
	for _, d := range r.cfg.Differences(old) {
		is := func(prefix string) bool { return strings.HasPrefix(d.Key, prefix) }
		if slices.ContainsFunc(fixed, is) {
			return &config.Error{Source: r.cfg.Source(d.Key), Key: d.Key, What: fmt.Sprintf("is %s, but the run began with %s", d.New, d.Old),
				Hint: "resume with the value of the run, or start anew with --resume none --out DIR"}
		}
		r.logf("changed since the checkpoint: %s = %s, was %s", d.Key, d.New, d.Old)
	}
	return nil
}
