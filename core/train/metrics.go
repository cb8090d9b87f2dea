package train

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// Number is a float64 that JSON writes as null where it is not finite.
type Number float64

// MarshalJSON writes six significant digits, or null.
func (n Number) MarshalJSON() ([]byte, error) {
	if v := float64(n); math.IsNaN(v) || math.IsInf(v, 0) {
		return []byte("null"), nil
	}
	return []byte(fmt.Sprintf("%.6g", float64(n))), nil
}

// Metrics is what a step measured: a line of metrics.jsonl. Losses are means over the
// targets of the step, in nats.
type Metrics struct {
	// Step is the number of the step, from 1, and Tokens all tokens up to its end.
	Step   int   `json:"step"`
	Tokens int64 `json:"tokens"`
	// Epoch is the passes through the data, with a fraction.
	Epoch Number `json:"epoch"`
	// Loss is the objective; CE its cross-entropy without smoothing, Z its z-loss and
	// Entropy the entropy of the predictions. BPB is CE in bits per byte of text.
	Loss    Number `json:"loss"`
	CE      Number `json:"ce"`
	Z       Number `json:"z"`
	BPB     Number `json:"bpb"`
	Entropy Number `json:"entropy"`
	// LR is the learning rate of the matrices.
	LR Number `json:"lr"`
	// GradNorm is the norm of all gradients before clipping, Norms that of each class,
	// and Clip the factor of the clipping, 1 if none.
	GradNorm Number            `json:"grad_norm"`
	Norms    map[string]Number `json:"norms"`
	Clip     Number            `json:"clip"`
	// TokensPerSecond is the speed of this step; MFU the share of the machine's peak
	// that its arithmetic reached, 0 where the peak is unknown.
	TokensPerSecond Number `json:"tok_s"`
	MFU             Number `json:"mfu"`
	// WaitMS is the time that the step waited for its data, StepMS its whole time.
	WaitMS Number `json:"data_wait_ms"`
	StepMS Number `json:"step_ms"`
	// Skipped says that the step changed nothing because something was not finite, and
	// NonFinite what. SkippedTotal counts such steps.
	Skipped      bool   `json:"skipped"`
	NonFinite    string `json:"non_finite,omitempty"`
	SkippedTotal int    `json:"skipped_total"`
	// MHCNorms is the norms of the gradients of every tensor of the hyper-connections,
	// measured with every line of the log.
	MHCNorms map[string]Number `json:"mhc_norms,omitempty"`
	// FlipRate is the share of trits that the step changed, ZeroFraction the share
	// that is zero, Cosine the mean cosine between residual streams. They are measured
	// with every line of the log.
	FlipRate     *Number `json:"flip_rate,omitempty"`
	ZeroFraction *Number `json:"zero_fraction,omitempty"`
	Cosine       *Number `json:"stream_cosine,omitempty"`
	// Gain is the largest sum of a row of the product of all mixings of residual streams,
	// measured with every evaluation: 1, unless a mixing is not doubly stochastic.
	Gain *Number `json:"mhc_gain,omitempty"`
	// Val is the evaluation after this step.
	Val *Eval `json:"val,omitempty"`
	// Failed counts checkpoints and lines of metrics that could not be written.
	Failed int `json:"write_failures,omitempty"`
	// Events is what happened since the line before.
	Events []Event `json:"events,omitempty"`
}

// Eval is the result of an evaluation on the validation split.
type Eval struct {
	Nats    Number `json:"nats"` // per token
	BPB     Number `json:"bpb"`  // bits per byte of text
	Tokens  int    `json:"tokens"`
	Bytes   int64  `json:"bytes"`
	Seconds Number `json:"seconds"`
}

// maxMetrics bounds the metrics file that is read at a resume.
const maxMetrics = 4 << 30

// metricsFile appends lines to a file. It never stops its caller: lines that cannot be
// written are counted.
type metricsFile struct {
	fs   fsx.FS
	path string
	f    fsx.File
	at   int64 // where the next line goes
	lost int
}

// openMetrics opens the file and cuts off every line after step, and what follows a
// line that is not whole: those steps come again.
func openMetrics(fsys fsx.FS, path string, step int) (*metricsFile, error) {
	old, err := fsx.ReadFile(fsys, path, maxMetrics)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	m := &metricsFile{fs: fsys, path: path, at: int64(keepLines(old, step))}
	if err := m.open(); err != nil {
		return nil, err
	}
	return m, nil
}

// keepLines is the length of the whole lines up to step.
func keepLines(b []byte, step int) int {
	at := 0
	for at < len(b) {
		end := bytes.IndexByte(b[at:], '\n')
		if end < 0 {
			break
		}
		var line struct {
			Step *int `json:"step"`
		}
		if json.Unmarshal(b[at:at+end], &line) != nil || line.Step == nil || *line.Step > step {
			break
		}
		at += end + 1
	}
	return at
}

func (m *metricsFile) open() error {
	f, err := m.fs.OpenFile(m.path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if err := f.Truncate(m.at); err != nil {
		return errors.Join(err, f.Close())
	}
	m.f = f
	return nil
}

// write appends one line.
func (m *metricsFile) write(v *Metrics) {
	var line bytes.Buffer
	e := json.NewEncoder(&line)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	if err == nil && m.f == nil {
		err = m.open()
	}
	if err == nil {
		var n int
		if n, err = m.f.WriteAt(line.Bytes(), m.at); err == nil && n < line.Len() {
			err = io.ErrShortWrite
		}
	}
	if err == nil {
		m.at += int64(line.Len())
		return
	}
	m.lost++
	if m.f != nil { // half a line must not stand before the next one
		m.f.Truncate(m.at)
		m.f.Close()
		m.f = nil
	}
}

// sync puts the lines on the disk, so that those of a checkpoint survive with it.
func (m *metricsFile) sync() {
	if m.f != nil && m.f.Sync() != nil {
		m.lost++
	}
}

func (m *metricsFile) close() error {
	if m.f == nil {
		return nil
	}
	return errors.Join(m.f.Sync(), m.f.Close())
}
