package model

import (
	"fmt"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// refreshRows is the number of rows that one job of Refresh quantises.
const refreshRows = 64

// refreshJob brings rows r0 ≤ r < r1 of a matrix of the model up to date, one of
// ternary and dense, from latents that begin at a place.
type refreshJob struct {
	ternary *kernels.Ternary
	dense   *kernels.Dense
	name    string
	at      place
	r0, r1  int
}

// addJobs cuts j into jobs of a few rows.
func (t *Trainer) addJobs(j refreshJob, rows int) {
	for r := 0; r < rows; r += refreshRows {
		j.r0, j.r1 = r, min(r+refreshRows, rows)
		t.jobs = append(t.jobs, j)
	}
}

// Refresh brings the Model up to date with the latent weights. It must be called
// after every change of weights, and fails if one is not finite.
func (t *Trainer) Refresh() error {
	t.ready = false
	clock := &partClock{}
	if t.work != nil {
		clock = t.work.tape.clock
	}
	clock.start()
	errs := make([]error, t.o.Team.Size())
	err := t.o.Team.Run(func(w *team.Worker) {
		row := make([]float32, max(t.m.cfg.Dim, t.m.cfg.FFN, t.m.cfg.Heads*t.m.cfg.HeadDim))
		loop := w.Counter(len(t.jobs), 1, 1)
		for w.Next(&loop) {
			for i := loop.Lo; i < loop.Hi && errs[w.ID] == nil; i++ {
				errs[w.ID] = t.jobs[i].run(t.o.Set, row)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("model: refresh: %w", err)
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	for i := range t.m.layers {
		t.m.layers[i].mhcAttn.Prepare(t.o.Set)
		t.m.layers[i].mhcFFN.Prepare(t.o.Set)
	}
	clock.mark(partRefresh)
	t.ready = true
	return nil
}

// run does the job. row has room for the longest row.
func (j *refreshJob) run(k *kernels.Set, row []float32) error {
	m := j.at.m
	cols := m.cols
	at := func(r int) int { return (j.at.row + r) * cols }
	if w := j.ternary; w != nil {
		if err := ternary.QuantizeRows(w, m.w[at(0):at(w.Rows)], j.r0, j.r1); err != nil {
			return fmt.Errorf("model: tensor %q: %w", j.name, err)
		}
		if m.used.half != nil {
			k.TernaryBF16(m.used.half[at(j.r0):at(j.r1)], cols, w, j.r0, j.r1)
			return nil
		}
		if m.used.full == nil {
			return nil // bare weights
		}
		for r := j.r0; r < j.r1; r++ {
			if err := ternary.DequantizeRow(m.used.full[at(r):at(r+1)], w, r); err != nil {
				return fmt.Errorf("model: tensor %q: %w", j.name, err)
			}
		}
		return nil
	}
	w := j.dense
	size := w.Type.RowBytes(cols)
	for r := j.r0; r < j.r1; r++ {
		x := m.w[at(r):at(r+1)]
		if w.Type != kernels.F32 {
			if err := gguf.Quantize(w.Data[r*size:(r+1)*size], gguf.Type(w.Type), x); err != nil {
				return fmt.Errorf("model: tensor %q: row %d: %w", j.name, r, err)
			}
			x = row[:cols]
			k.DenseRow(x, w, r)
		}
		if m.used.half != nil {
			k.BF16(m.used.half[at(r):at(r+1)], 1, x)
		} else if m.used.full != nil && w.Type != kernels.F32 {
			copy(m.used.full[at(r):at(r+1)], x)
		}
	}
	return nil
}
