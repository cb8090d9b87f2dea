package train

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/core/telemetry/events"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/kernels/team"
)

// board writes a run for TensorBoard.
type board struct {
	r *run
	w *events.Writer
}

func newBoard(r *run) *board {
	dir := r.cfg.Telemetry.TensorBoardDir
	if dir == "" {
		dir = r.path("tensorboard")
	}
	return &board{r, events.Open(filepath.Clean(dir), events.Options{First: r.meta.Step + 1, FS: r.fs, Clock: r.clock})}
}

// Began writes the configuration.
func (b *board) Began(s *Beginning) {
	b.w.Text(s.Step+1, "config", fenced("toml", s.Config.TOML()))
}

// Stepped writes the numbers of a step, and more after an evaluation.
func (b *board) Stepped(m *Metrics, _ []Phase) {
	b.w.Scalars(m.Step, scalarsOf(m)...)
	for _, e := range m.Events {
		b.w.Text(m.Step, "events/"+string(e.Kind), e.Text)
	}
	if m.Val == nil {
		return
	}
	t := &b.r.cfg.Telemetry
	if t.Histograms {
		b.histograms(m.Step)
	}
	b.streams(m.Step)
	if t.SampleTokens > 0 && t.Sample != "" {
		if text, err := b.r.sample(t.Sample, t.SampleTokens); err == nil {
			b.w.Text(m.Step, "sample", fenced("", text))
		}
	}
}

// scalarsOf is the numbers of a step by their names in TensorBoard.
func scalarsOf(m *Metrics) []events.Scalar {
	out := make([]events.Scalar, 0, 32)
	add := func(tag string, v Number) { out = append(out, events.Scalar{Tag: tag, Value: float64(v)}) }
	add("loss/total", m.Loss)
	add("loss/ce", m.CE)
	add("loss/z", m.Z)
	add("loss/bpb", m.BPB)
	add("loss/entropy", m.Entropy)
	add("optim/lr", m.LR)
	add("optim/clip", m.Clip)
	add("optim/grad_norm", m.GradNorm)
	for class, v := range m.Norms {
		add("optim/grad_norm/"+class, v)
	}
	for tensor, v := range m.MHCNorms {
		add("mhc/grad_norm/"+tensor, v)
	}
	add("optim/skipped_total", Number(m.SkippedTotal))
	add("speed/tokens_per_second", m.TokensPerSecond)
	add("speed/mfu", m.MFU)
	add("speed/step_ms", m.StepMS)
	add("speed/data_wait_ms", m.WaitMS)
	add("data/epoch", m.Epoch)
	for tag, v := range map[string]*Number{"trits/flip_rate": m.FlipRate, "trits/zero_fraction": m.ZeroFraction, "mhc/stream_similarity": m.Cosine, "mhc/gain": m.Gain} {
		if v != nil {
			add(tag, *v)
		}
	}
	if v := m.Val; v != nil {
		add("val/bpb", v.BPB)
		add("val/nats", v.Nats)
	}
	slices.SortFunc(out, func(a, b events.Scalar) int {
		switch {
		case a.Tag < b.Tag:
			return -1
		case a.Tag > b.Tag:
			return 1
		}
		return 0
	})
	return out
}

// Saved writes nothing: checkpoints are not a curve.
func (b *board) Saved(*Saving) {}

// Ended closes the file.
func (b *board) Ended(*Result, error) { b.w.Close() }

// Dropped is the number of events that were lost.
func (b *board) Dropped() int64 { return b.w.Dropped() }

// modelOf is the model that the forward pass uses, nil for a network that has none, or
// whose model cannot be had: the next step tells why.
func (r *run) modelOf() *model.Model {
	if m, err := r.learn.Model(); err == nil {
		return m
	}
	return nil
}

// histograms writes the distributions of the latent weights and of the trits made of
// them.
func (b *board) histograms(step int) {
	if b.r.learn.Pull() != nil {
		return // the next step tells why
	}
	// A GPU waits meanwhile.
	params := b.r.params
	all := make([]*events.Histogram, len(params))
	if b.r.team.Run(func(w *team.Worker) {
		loop := w.Counter(len(params), 1, 1)
		for w.Next(&loop) {
			for i := loop.Lo; i < loop.Hi; i++ {
				all[i] = events.HistogramOf(params[i].W)
			}
		}
	}) != nil {
		return
	}
	for i := range params {
		b.w.Histogram(step, "weights/"+params[i].Name, all[i])
	}
	m := b.r.modelOf()
	if m == nil {
		return
	}
	s, err := m.WeightStats(context.Background())
	if err != nil {
		return
	}
	for _, p := range s.Projections {
		n := float64(p.Rows * p.Cols)
		count := func(share float64) int { return int(share*n + 0.5) }
		b.w.Histogram(step, "trits/"+p.Name, events.HistogramOfTrits(count(p.Minus), count(p.Zero), count(p.Plus)))
	}
}

// streams writes how far apart the residual streams are, and how they are mixed.
func (b *board) streams(step int) {
	for _, x := range b.r.streams {
		place := fmt.Sprintf("/layer%02d/%s", x.Layer, x.Part)
		b.w.Scalars(step, events.Scalar{Tag: "mhc/rms" + place, Value: x.RMS}, events.Scalar{Tag: "mhc/similarity" + place, Value: x.Similarity},
			events.Scalar{Tag: "mhc/effective_rank" + place, Value: x.EffectiveRank})
		if x.Mixing != nil {
			b.w.Scalars(step, events.Scalar{Tag: "mhc/kept" + place, Value: x.Mixing.Kept})
		}
	}
}

// sample is what the model goes on with after text.
func (r *run) sample(text string, tokens int) (string, error) {
	m := r.modelOf()
	if m == nil || r.cfg.Train.Float {
		return "", &Error{What: "the network is not one that generates"}
	}
	ids := r.tok.Encode(nil, text, tokenizer.EncodeOptions{AddBOS: r.tok.AddsBOS()})
	ctx, cancel := context.WithTimeout(context.Background(), sampleTime)
	defer cancel()
	e, err := infer.New(m, infer.Options{Team: r.team, MaxBatch: 1, MaxTokensPerStep: 32, Context: len(ids) + tokens})
	if err != nil {
		return "", err
	}
	defer e.Close()
	s, err := e.Generate(ctx, infer.Request{
		Prompt: ids, MaxTokens: tokens, Stop: r.tok.Stops(),
		Sample: sample.Options{Temperature: 0.8, TopP: 0.95, RepeatPenalty: 1.1, Seed: evalSeed},
	})
	if err != nil {
		return "", err
	}
	defer s.Close()
	ids = ids[:0]
	for {
		t, err := s.Next(ctx)
		if err != nil {
			break // the end, or what there is by now
		}
		ids = append(ids, t.ID)
	}
	return string(r.tok.Decode([]byte(text), ids, tokenizer.DecodeOptions{})), nil
}

// sampleTime is the most time that a sample may take.
const sampleTime = 20 * time.Second
