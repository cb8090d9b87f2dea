package train

import (
	"context"
	"fmt"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
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
	// MachineMemory is what this machine, or the control group, has, in bytes; 0 if
	// unknown. Where Memory is more, no step was measured, and Memory is as foreseen.
	MachineMemory int64 `json:"machine_memory,omitempty"`
	// Device is what would compute: "cpu", or the name of a GPU, of which there are Devices.
	// Note says why it is not what was wished, or why no step was measured on it.
	Device  string `json:"device"`
	Devices int    `json:"devices"`
	Note    string `json:"note,omitempty"`
	// DeviceMemory is what the run takes on each GPU, and DeviceTotal what it has; 0 if
	// unknown. Of these DevicePeak bytes were in use at a time when a step was measured.
	DeviceMemory Parts `json:"device_memory,omitempty"`
	DeviceTotal  int64 `json:"device_memory_total,omitempty"`
	DevicePeak   int64 `json:"device_memory_peak,omitempty"`
	// StepSeconds is the time of a measured step, and Seconds that of all; evaluations
	// and checkpoints come on top.
	StepSeconds float64 `json:"step_s"`
	// StepParts is where the time of a step goes on a GPU; queued part by part it takes a
	// little longer than StepSeconds.
	StepParts       []model.PartTime `json:"step_parts,omitempty"`
	TokensPerSecond float64          `json:"tok_s"`
	// MFU is the share of Peak, in operations a second, that the step reached.
	MFU     float64 `json:"mfu,omitempty"`
	Peak    float64 `json:"peak,omitempty"`
	Seconds float64 `json:"seconds"`
}

// Fits says whether the run fits in the memory of this machine, and of its GPUs.
func (p *Plan) Fits() bool {
	return (p.MachineMemory == 0 || p.Memory.Total() <= p.MachineMemory) && (p.DeviceTotal == 0 || p.DeviceMemory.Total() <= p.DeviceTotal)
}

// MakePlan says what Run with the same arguments would do from a start, and measures
// one step after a shorter one, if it fits in memory. It writes nothing.
func MakePlan(ctx context.Context, cfg *config.Config, o Options) (*Plan, error) {
	r, err := open(cfg, o)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if err := r.openLoader(nil); err != nil {
		return nil, err
	}
	t := &cfg.Train
	p := &Plan{
		Params: cfg.Model.Params(), Steps: r.total, Rows: t.Rows, SeqLen: t.SeqLen, MicroRows: t.MicroRows,
		Tokens: int64(r.total) * int64(t.Rows) * int64(t.SeqLen), DataTokens: r.data.Tokens(), MachineMemory: r.memory,
	}
	p.Epochs = float64(r.total) * float64(t.Rows) / float64(r.loader.RowsPerEpoch())
	missing, err := r.planDevice(p)
	if err != nil {
		return nil, err
	}
	if p.Memory, err = r.foresee(); err != nil || !p.Fits() || missing {
		return p, err
	}
	if err := r.build(); err != nil {
		return nil, err
	}
	return p, r.measurePlan(ctx, p)
}

// measurePlan takes a step and notes how long it took, and the memory that the run
// allocated.
func (r *run) measurePlan(ctx context.Context, p *Plan) error {
	if err := r.weights(); err != nil {
		return err
	}
	if err := r.learn.Push(); err != nil {
		return err
	}
	r.findPeak()
	r.began = r.clock.Now()
	s := r.take(ctx, 0)
	if s.err != nil {
		return s.err
	}
	if err := r.learn.Warm(s); err != nil {
		return err
	}
	m, err := r.step(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	if m.Skipped {
		return &Error{What: fmt.Sprintf("the first step failed: %s is not finite", m.NonFinite)}
	}
	p.StepSeconds, p.TokensPerSecond = float64(m.StepMS)/1e3, float64(m.TokensPerSecond)
	p.MFU, p.Peak = float64(m.MFU), r.peak
	p.Seconds = p.StepSeconds * float64(r.total)
	var trits int64
	projections, err := r.learn.Projections()
	for _, w := range projections {
		trits += int64(len(w.Tiles))
	}
	host, device := r.learn.Memory()
	p.Memory = r.parts(host, trits)
	if device != nil {
		d := r.learn.(*devices)
		p.DeviceMemory, p.DevicePeak = device, d.inUse()
		if s := r.take(ctx, 0); s.err == nil && err == nil {
			p.StepParts, err = d.timed(s)
		}
	} else if r.note != nil { // the GPU could not train it after all
		p.Device, p.Devices, p.Note = config.DeviceCPU, 1, r.note.Error()
		p.DeviceMemory, p.DeviceTotal = nil, 0
	}
	return err
}

// optimizerParts is the memory of an optimizer.
func optimizerParts(state, scratch int64) Parts {
	return Parts{{"optimizer state", state}, {"optimizer scratch", scratch}}
}

// parts adds to the memory of a learner that of the batches that are made ahead and of the
// copies of trits for flips.
func (r *run) parts(learner Parts, trits int64) Parts {
	p := append(learner, Part{"batches", 2 * 3 * 4 * int64(r.cfg.Train.Rows) * int64(r.cfg.Train.SeqLen)})
	if trits > 0 {
		p = append(p, Part{"copy of the trits", trits})
	}
	return p
}

// foresee is the memory of the host that the run will take, to about a percent, without
// taking it.
func (r *run) foresee() (Parts, error) {
	c := &r.cfg.Model
	if r.onDevices() {
		return r.parts(hostParts(r), c.Params().Ternary/4), nil
	}
	m, err := model.TrainMemoryOf(*c, trainOptions(r.cfg, r.set, r.team))
	if err != nil {
		return nil, &Error{What: "the network", Err: err}
	}
	state, scratch := optimizerMemory(r)
	trits := int64(0)
	if !r.cfg.Train.Float {
		trits = c.Params().Ternary / 4
	}
	return r.parts(append(memoryParts(m), optimizerParts(state, scratch)...), trits), nil
}

// optimizerMemory is what the optimizer takes on the processor.
func optimizerMemory(r *run) (state, scratch int64) {
	c := &r.cfg.Model
	rules, count := rulesOf(r.cfg), c.Params()
	words := func(class optim.Class) int64 {
		if rules[class].Kind == optim.AdamW {
			return 2
		}
		return 1
	}
	state = 4 * (count.Ternary*words(optim.Matrix) + count.Embedding*words(optim.Embedding) + count.Head*words(optim.Head) +
		count.Norms*words(optim.Scalar) + count.MHC*words(optim.MHC))
	if rules[optim.Matrix].Kind == optim.Muon {
		// Two copies of the largest matrix, two squares of its shorter side, and what
		// every worker multiplies in.
		dim, heads := int64(c.Dim), int64(c.Heads*c.HeadDim)
		long, square := dim*max(int64(c.FFN), heads), max(min(dim, int64(c.FFN)), min(dim, heads))
		scratch = 8*(long+square*square) + int64(kernels.MatMulScratch()*r.team.Size())
	}
	return state, scratch
}

// lessMemory is what to do about a run that does not fit.
const lessMemory = "lower train.micro_rows or train.seq_len, set train.recompute = true, or train a smaller model"
