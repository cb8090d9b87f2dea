package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/telemetry/sink"
	"github.com/architehc/nanochat/core/train"
	"github.com/architehc/nanochat/core/watch"
)

type trainCmd struct {
	Config string   `arg:"" help:"A configuration (.toml)."`
	Set    []string `placeholder:"KEY=VALUE" sep:"none" help:"Override a key, as in --set train.steps=2000. May be repeated."`
	Resume string   `default:"auto" placeholder:"auto|none|PATH" help:"Go on from the newest checkpoint of the run if there is one, never, or from the checkpoint PATH (default: ${default})."`
	Out    string   `placeholder:"DIR" help:"The directory of the run; the same as --set train.out=DIR."`
	Device string   `enum:"cpu,cuda,auto," default:"" placeholder:"cpu|cuda|auto" help:"Where to train: cpu, cuda (NVIDIA GPUs), auto (GPUs if they can be used); the same as --set train.device=…."`
	DryRun bool     `help:"Show what the run would be, and how long it would take, and train nothing."`
	JSON   bool     `name:"json" help:"Print the result as JSON."`

	MetricsAddr string `placeholder:"HOST:PORT" help:"Let Prometheus scrape http://HOST:PORT/metrics."`
	Tensorboard string `placeholder:"DIR|off" help:"Where event files for TensorBoard go (default: tensorboard in the directory of the run), or off."`
	OTLP        string `name:"otlp" placeholder:"URL" help:"Send the spans of every step to this OpenTelemetry collector."`
	LogJSON     string `name:"log-json" placeholder:"FILE|-" help:"Append the log as JSON lines to FILE; - is standard error, in place of the log for people."`
	engineFlags
}

// Help is the longer help text.
func (*trainCmd) Help() string {
	return "An interrupt saves a checkpoint and ends the run; the same command goes on from there, with the same result as " +
		"if it had never stopped. A second interrupt ends it at once. The directory of the run holds metrics.jsonl, the " +
		"checkpoints, best.gguf and model.gguf. Exit code 6: the training diverged; 7: the GPU failed in mid-run, and the same command " +
		"goes on from the newest checkpoint."
}

// Run trains.
func (c *trainCmd) Run(a *app) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	set, err := c.set()
	if err != nil {
		return err
	}
	o := train.Options{Resume: c.Resume, Version: version, Set: set, CUDA: cudaSetup()}
	if c.DryRun {
		p, err := train.MakePlan(a.ctx, cfg, o)
		if err != nil {
			return err
		}
		if c.JSON {
			return writeJSON(a.stdout, struct {
				Params map[string]int64 `json:"params"`
				*train.Plan
			}{paramsOf(cfg.Model), p})
		}
		return writePairs(a.stdout, planPairs(p))
	}
	// A log that nobody reads, or reads no more, does not hold up the training or end it.
	log := sink.New(a.stderr)
	defer log.Close()
	signal.Ignore(syscall.SIGPIPE)
	bar := &trainBar{w: log, show: a.stderrTTY && c.LogJSON != "-"}
	if c.LogJSON != "-" {
		o.Log, o.Progress = bar, bar.update
	}
	w, err := c.watch(a, cfg)
	if err != nil {
		return err
	}
	if w != nil {
		defer w.Close()
		o.Observer = w
	}
	a.patient.Store(true)
	res, err := train.Run(a.ctx, cfg, o)
	bar.clear()
	if err == nil && !c.JSON && res.Model != "" {
		fmt.Fprintf(log, "wrote %s after %d steps and %s tokens\n", res.Model, res.Steps, countText(res.Tokens))
	}
	log.Close()
	if err == nil && c.JSON {
		return writeJSON(a.stdout, res)
	}
	return err
}

// config is the file with the flags over it.
func (c *trainCmd) config() (*config.Config, error) {
	if !strings.HasSuffix(c.Config, ".toml") {
		return nil, &usageError{fmt.Sprintf("%s is not a .toml file", c.Config), "a training needs a file that names its data; begin it with preset = \"nano-5m\""}
	}
	sets := c.Set
	if c.Out != "" {
		sets = append(sets, "train.out="+quoteTOML(c.Out))
	}
	if c.Device != "" {
		sets = append(sets, "train.device="+c.Device)
	}
	if c.Threads > 0 {
		sets = append(sets, fmt.Sprintf("train.threads=%d", c.Threads))
	}
	switch c.Tensorboard {
	case "":
	case "off":
		sets = append(sets, "telemetry.tensorboard=false")
	default:
		sets = append(sets, "telemetry.tensorboard=true", "telemetry.tensorboard_dir="+quoteTOML(c.Tensorboard))
	}
	return loadConfig(c.Config, sets)
}

// watch shows the run to those that the flags name; nil: to no one.
func (c *trainCmd) watch(a *app, cfg *config.Config) (*watch.Watch, error) {
	if c.MetricsAddr == "" && c.OTLP == "" && c.LogJSON == "" {
		return nil, nil
	}
	o := watch.Options{
		MetricsAddr: c.MetricsAddr, OTLP: c.OTLP, Traceparent: os.Getenv("TRACEPARENT"), LogFile: c.LogJSON,
		Version: version, Model: cfg.Name, Run: cfg.Train.Out,
	}
	if c.LogJSON == "-" {
		o.Log = a.stderr
	}
	w, err := watch.New(o)
	if err == nil && w.Addr() != "" && c.LogJSON != "-" {
		fmt.Fprintf(a.stderr, "metrics at http://%s/metrics\n", w.Addr())
	}
	return w, err
}

// quoteTOML is s as a literal that stands for nothing else; a name with an
// apostrophe is left as it is, which reads as a bare string.
func quoteTOML(s string) string {
	if strings.ContainsAny(s, "'\n\r") {
		return s
	}
	return "'" + s + "'"
}

func planPairs(p *train.Plan) []pair {
	w := p.Params
	out := []pair{
		{"weights", fmt.Sprintf("%s: ternary %s, embedding %s, head %s, norms %s, mhc %s", countText(w.Total()), countText(w.Ternary),
			countText(w.Embedding), countText(w.Head), countText(w.Norms), countText(w.MHC))},
		{"tokens", fmt.Sprintf("%s, %.2f passes through %s", countText(p.Tokens), p.Epochs, countText(p.DataTokens))},
		{"steps", fmt.Sprintf("%d of %d rows of %d tokens, %d rows at a time", p.Steps, p.Rows, p.SeqLen, p.MicroRows)},
		{"memory", bytesText(p.Memory.Total())},
	}
	for _, part := range p.Memory {
		out = append(out, pair{"", ""}, pair{"  " + part.Name, bytesText(part.Bytes)})
	}
	if p.DeviceMemory != nil {
		device := p.Device
		if p.Devices > 1 {
			device += fmt.Sprintf(", %d of them", p.Devices)
		}
		memory := bytesText(p.DeviceMemory.Total())
		if p.DeviceTotal > 0 {
			memory += " of " + bytesText(p.DeviceTotal)
		}
		if p.DevicePeak > 0 {
			memory += ", at most " + bytesText(p.DevicePeak) + " in use"
		}
		out = append(out, pair{"device", device}, pair{"gpu memory", memory})
		for _, part := range p.DeviceMemory {
			out = append(out, pair{"  " + part.Name, bytesText(part.Bytes)})
		}
	}
	if p.Note != "" {
		out = append(out, pair{"note", oneLine(p.Note)})
	}
	switch {
	case p.MachineMemory > 0 && p.Memory.Total() > p.MachineMemory:
		return append(out, pair{"machine", bytesText(p.MachineMemory) + " of memory: the run does not fit, and no step was measured"})
	case !p.Fits():
		return append(out, pair{"", ""}, pair{"gpu", "the run does not fit, and no step was measured"})
	case p.StepSeconds == 0:
		return append(out, pair{"step", "not measured"})
	}
	out = append(out, pair{"step", fmt.Sprintf("%.0f ms, %.0f tokens/s", p.StepSeconds*1e3, p.TokensPerSecond)})
	for _, part := range p.StepParts {
		out = append(out, pair{"  " + part.Name, fmt.Sprintf("%.2f ms", part.Seconds*1e3)})
	}
	if p.MFU > 0 {
		out = append(out, pair{"", ""}, pair{"mfu", fmt.Sprintf("%.3f of %.0f GFLOP/s", p.MFU, p.Peak/1e9)})
	}
	return append(out, pair{"time", train.Left(time.Duration(p.Seconds * float64(time.Second)))})
}

// trainBar is a bar below the lines of a log. It is both: lines are written to it,
// and update redraws the bar.
type trainBar struct {
	mu   sync.Mutex
	w    io.Writer
	show bool
	text string
}

// Write writes a line above the bar.
func (b *trainBar) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.text != "" {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
	n, err := b.w.Write(p)
	if b.text != "" {
		fmt.Fprint(b.w, b.text)
	}
	return n, err
}

func (b *trainBar) update(p *train.Progress) {
	if !b.show {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	const width = 24
	full := width * p.Step / max(p.Steps, 1)
	b.text = fmt.Sprintf("[%s%s] %d/%d  loss %.3f  %.0f tok/s  left %s ", strings.Repeat("#", full), strings.Repeat(".", width-full), p.Step, p.Steps,
		float64(p.Metrics.Loss), float64(p.Metrics.TokensPerSecond), train.Left(p.Left))
	fmt.Fprint(b.w, "\r\x1b[K"+b.text)
}

// clear removes the bar.
func (b *trainBar) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.text != "" {
		fmt.Fprint(b.w, "\r\x1b[K")
		b.text = ""
	}
}
