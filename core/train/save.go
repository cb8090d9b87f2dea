package train

import (
	"fmt"
	"runtime/debug"
	"time"

	"github.com/architehc/nanochat/core/checkpoint"
)

// writing is a checkpoint on its way to the disk.
type writing struct {
	step int
	from time.Time
	done chan struct{} // closed when path and err are there
	path string
	err  error
}

// save writes a checkpoint. A failure is reported, counted and returned; training can
// go on.
func (r *run) save() error {
	r.settle()
	w, save := r.write()
	save()
	return r.arrive(w)
}

// saveBeside is save, but where what is saved is a copy of its own the disk is waited for
// while the next steps are taken.
func (r *run) saveBeside() {
	if !r.learn.Detached() {
		_ = r.save() // reported and counted
		return
	}
	r.settle()
	w, save := r.write()
	r.writing = w
	go func() {
		defer func() {
			if p := recover(); p != nil {
				w.err = fmt.Errorf("train: internal error while saving: %v\n%s", p, debug.Stack())
				close(w.done)
			}
		}()
		save()
	}()
}

// write prepares a checkpoint of the run as it stands, and what writes it.
func (r *run) write() (w *writing, save func()) {
	w = &writing{step: r.meta.Step, from: r.clock.Now(), done: make(chan struct{})}
	r.metrics.sync()
	t := &r.cfg.Train
	o := checkpoint.Options{KeepLast: t.KeepLast, KeepBest: t.KeepBest}
	if r.meta.Val != nil && r.meta.ValStep == r.meta.Step {
		o.Score = float64(r.meta.Val.BPB)
	}
	state, err := r.state()
	fsys, dir := r.fs, r.checkpoints()
	return w, func() {
		if w.err = err; err == nil {
			w.path, w.err = checkpoint.Save(fsys, dir, w.step, state, o)
		}
		close(w.done)
	}
}

// settle waits for a checkpoint that is on its way, and notes it.
func (r *run) settle() {
	if w := r.writing; w != nil {
		r.writing = nil
		_ = r.arrive(w) // reported and counted
	}
}

// settled notes a checkpoint that has arrived, and waits for none.
func (r *run) settled() {
	if w := r.writing; w != nil {
		select {
		case <-w.done:
			r.settle()
		default:
		}
	}
}

// arrive waits for a checkpoint and says what became of it.
func (r *run) arrive(w *writing) error {
	<-w.done
	if w.err != nil {
		r.failed++
		what := "checkpoint not saved"
		if w.path != "" {
			what = "checkpoint saved, but"
		}
		r.eventAt(w.step, unsaved, "%s: %v", what, w.err)
	}
	s := &Saving{Step: w.step, Path: w.path, Err: w.err, From: w.from, To: r.clock.Now()}
	r.observe(func(o Observer) { o.Saved(s) })
	if w.path == "" {
		return w.err
	}
	r.saved, r.result.Checkpoint = w.step, w.path
	return nil
}
