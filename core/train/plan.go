package train

import (
	"context"
	"fmt"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/model"
)

// Part is the memory of one part of a training.
type Part struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// Parts is memory by part.
type Parts []Part

// Total is the sum of all parts.
func (p Parts) Total() (n int64) {
	for _, x := range p {
		n += x.Bytes
	}
	return n
}

// Plan is what a run would be.
type Plan struct {
	Params config.ParamCount `json:"-"`
	// Tokens in Steps of Rows rows of SeqLen tokens, MicroRows of them at a time.
	Tokens    int64 `json:"tokens"`
	Steps     int   `json:"steps"`
	Rows      int   `json:"rows"`
	SeqLen    int   `json:"seq_len"`
	MicroRows int   `json:"micro_rows"`
	// DataTokens is the tokens of the training data, Epochs the passes through them.
	DataTokens int64   `json:"data_tokens"`
	Epochs     float64 `json:"epochs"`
	Memory     Parts   `json:"memory"`
	// StepSeconds is the time of a measured step, and Seconds that of all; evaluations
	// and checkpoints come on top.
	StepSeconds     float64 `json:"step_s"`
	TokensPerSecond float64 `json:"tok_s"`
	// MFU is the share of Peak, in operations a second, that the step reached.
	MFU     float64 `json:"mfu,omitempty"`
	Peak    float64 `json:"peak,omitempty"`
	Seconds float64 `json:"seconds"`
}

// MakePlan says what Run with the same arguments would do from a start, and measures
// one step after a shorter one. It writes nothing.
func MakePlan(ctx context.Context, cfg *config.Config, o Options) (*Plan, error) {
	r, err := open(cfg, o)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if err := r.first(); err != nil {
		return nil, err
	}
	if err := r.net.Refresh(); err != nil {
		return nil, err
	}
	t := &cfg.Train
	p := &Plan{
		Params: cfg.Model.Params(), Steps: r.total, Rows: t.Rows, SeqLen: t.SeqLen, MicroRows: t.MicroRows,
		Tokens: int64(r.total) * int64(t.Rows) * int64(t.SeqLen), DataTokens: r.data.Tokens(),
	}
	p.Epochs = float64(r.total) * float64(t.Rows) / float64(r.loader.RowsPerEpoch())
	r.findPeak()
	r.began = r.clock.Now()
	// One batch of a few rows warms caches and threads up.
	b, err := r.loader.Next(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := r.net.Backward(batchOf(b, 0, t.MicroRows), model.LossOptions{Scale: 1}); err != nil {
		return nil, err
	}
	m, err := r.step(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	if m.Skipped {
		return nil, &Error{What: fmt.Sprintf("the first step failed: %s is not finite", m.NonFinite)}
	}
	p.StepSeconds, p.TokensPerSecond = float64(m.StepMS)/1e3, float64(m.TokensPerSecond)
	p.MFU, p.Peak = float64(m.MFU), r.peak
	p.Seconds = p.StepSeconds * float64(r.total)
	// What a run holds: the network and the optimizer as they counted, the data of all
	// batches that are made ahead, and the copies of trits for flips.
	p.Memory = r.net.Memory()
	om := r.opt.Memory()
	p.Memory = append(p.Memory, Part{"optimizer state", int64(om.State)}, Part{"optimizer scratch", int64(om.Scratch)},
		Part{"batches", 2 * 3 * 4 * int64(t.Rows) * int64(t.SeqLen)})
	var trits int64
	for _, w := range r.net.Projections() {
		trits += int64(len(w.Tiles))
	}
	if trits > 0 {
		p.Memory = append(p.Memory, Part{"copy of the trits", trits})
	}
	return p, nil
}
