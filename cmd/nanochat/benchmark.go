package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/architehc/nanochat/core/bench"
	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

type benchmarkCmd struct {
	Model    string `arg:"" optional:"" help:"A model to measure: a file (.gguf), or a name from nanochat list."`
	File     string `kong:"-"` // of Model
	Roofline bool   `help:"Measure this machine's limits: instructions and memory."`
	Kernels  bool   `help:"Measure the kernels against those limits."`

	Train           string   `placeholder:"PRESET|FILE" help:"Measure a step of training of a preset, or of a configuration (.toml)."`
	Set             []string `placeholder:"KEY=VALUE" sep:"none" help:"With --train: override a key of the configuration, as in --set train.micro_rows=4. May be repeated."`
	ForwardBackward bool     `help:"With --train: only forward and backward of train.micro_rows rows, without the update."`

	Streams int `placeholder:"N" help:"With MODEL: measure N streams at once against one, and a long prompt beside others, in place of one stream."`

	Prompt   *size  `placeholder:"N" help:"Tokens of the prompt that is read (default: 512, or what the context holds)."`
	Tokens   *size  `placeholder:"N" help:"Tokens to generate (default: 128, or what the context holds)."`
	Repeats  int    `default:"5" placeholder:"N" help:"Repetitions whose median counts, at least 5 (default: ${default})."`
	Compare  string `placeholder:"FILE" help:"Compare with a report made by --json."`
	Markdown string `placeholder:"FILE" help:"Write the results into the marked parts of a document."`
	JSON     bool   `name:"json" help:"Print JSON."`
	loadFlags
	engineFlags
	runFlags
}

// Help is the longer help text.
func (*benchmarkCmd) Help() string {
	return "Every number is a median, with the smallest and the largest beside it. Other programs on the machine " +
		"disturb measurements; the report says how much of it they used. " +
		"With --server the latencies of requests that arrive at a rate count from when they were due, so that a server that " +
		"stalls is charged for everybody who would have come meanwhile."
}

// Run measures what was asked for, one part after the other.
func (c *benchmarkCmd) Run(a *app) error {
	switch only := c.serverOnly(); {
	case c.Server != "" && (c.Model != "" || c.Roofline || c.Kernels || c.Train != ""):
		return &usageError{"--server excludes a MODEL and the other measurements", "name the server's model with --model"}
	case c.Server != "":
		return c.runLoad(a, c.JSON)
	case only != "":
		return &usageError{only + " is about --server", "add --server URL, or leave it out"}
	}
	if c.Model == "" && !c.Roofline && !c.Kernels && c.Train == "" {
		return &usageError{"no MODEL to measure", "name a model file, or measure training with --train or the machine with --roofline and --kernels"}
	}
	if c.Train == "" && (len(c.Set) > 0 || c.ForwardBackward) {
		return &usageError{"--set and --forward-backward are about training", "name what to train with --train, as in --train nano-5m"}
	}
	if c.Streams < 0 || c.Streams == 1 || c.Streams > 1024 || c.Streams > 0 && c.Model == "" {
		return &usageError{fmt.Sprintf("--streams %d: want a MODEL and 2 to 1024 streams", c.Streams), "leave it out to measure one stream"}
	}
	if c.Repeats < 5 {
		return &usageError{fmt.Sprintf("--repeats %d is less than 5", c.Repeats), "a median of fewer says little"}
	}
	for _, f := range []struct {
		flag string
		n    *size
	}{{"--prompt", c.Prompt}, {"--tokens", c.Tokens}} {
		if f.n != nil && (*f.n < 1 || *f.n > 1<<31-1) {
			return &usageError{fmt.Sprintf("%s %d is outside 1 to %d", f.flag, *f.n, 1<<31-1), "leave it out to measure 512 and 128 tokens"}
		}
	}
	set, err := c.set()
	if err != nil {
		return err
	}
	var training *config.Config
	if c.Train != "" {
		if training, err = loadConfig(c.Train, c.Set); err != nil {
			return err
		}
	}
	if c.Markdown != "" { // measuring takes minutes: know before it
		if _, err := c.document(); err != nil {
			return err
		}
	}
	var old *bench.Report
	if c.Compare != "" {
		b, err := os.ReadFile(c.Compare)
		if err != nil {
			return fmt.Errorf("report %s: %s", c.Compare, reason(err))
		}
		if old, err = bench.Parse(b); err != nil {
			return &hinted{fmt.Errorf("report %s: %w", c.Compare, err), "make one with nanochat benchmark --json"}
		}
	}
	if c.Model != "" {
		found, err := a.find(c.Model)
		if err != nil {
			return err
		}
		c.File = found.Path
	}
	r, err := c.measure(a, set, training)
	if err != nil {
		return err
	}
	if c.Markdown != "" {
		if err := c.writeMarkdown(r); err != nil {
			return err
		}
	}
	if c.JSON && old == nil {
		return writeJSON(a.stdout, r)
	}
	if !c.JSON {
		if err := r.Text(a.stdout); err != nil || old == nil {
			return err
		}
	}
	changes := bench.Compare(old, r)
	if n := bench.Hidden(changes); n > 0 {
		fmt.Fprintf(a.stderr, "warning: %s of %d cannot be told from noise; compare on an idle machine, or with more --repeats\n", plural(n, "difference"), len(changes))
	}
	if c.JSON {
		return writeJSON(a.stdout, map[string]any{"report": r, "changes": changes})
	}
	return bench.WriteChanges(a.stdout, changes)
}

func (c *benchmarkCmd) measure(a *app, set *kernels.Set, training *config.Config) (*bench.Report, error) {
	r := bench.NewReport(version, commit)
	r.Command = strings.Join(append([]string{"nanochat"}, os.Args[1:]...), " ")
	noise := bench.NoiseMeter()
	o := bench.Options{Repeats: c.Repeats, Progress: a.note}
	if c.Threads > 0 {
		o.Threads = []int{c.Threads}
	}
	if c.Kernel != "" {
		o.Sets = []*kernels.Set{set}
	}
	defer a.noteDone()
	var err error
	if c.Roofline {
		if r.Roofline, err = bench.MeasureRoofline(a.ctx, o); err != nil {
			return nil, c.unmeasured(err)
		}
	}
	if c.Kernels {
		if r.Kernels, err = bench.MeasureKernels(a.ctx, o); err != nil {
			return nil, c.unmeasured(err)
		}
	}
	if training != nil {
		if r.Train, err = bench.MeasureTrain(a.ctx, bench.TrainOptions{
			Name: training.Name, Config: training, ForwardBackward: c.ForwardBackward,
			Set: set, Threads: c.Threads, Pin: c.Pin, Repeats: c.Repeats, Progress: a.note,
		}); err != nil {
			return nil, err
		}
	}
	if c.Model != "" {
		if set, err = c.tuned(a, set); err != nil {
			return nil, err
		}
		o := bench.ModelOptions{
			Name: filepath.Base(c.Model), Threads: c.Threads, Pin: c.Pin, Prompt: c.Prompt.or0(), Decode: c.Tokens.or0(),
			KVType: c.kv(), Repeats: c.Repeats, Progress: a.note, GPU: c.onDevice(a),
			Open: func() (*model.Model, int64, func() error, error) {
				f, m, err := c.open(set)
				if err != nil {
					return nil, 0, nil, err
				}
				return m, f.Size, f.Close, nil
			},
		}
		if c.Streams > 0 {
			r.Together, err = bench.MeasureStreams(a.ctx, bench.StreamsOptions{ModelOptions: o, Streams: c.Streams})
		} else {
			r.Model, err = bench.MeasureModel(a.ctx, o)
		}
		if ce, ok := errors.AsType[*bench.ContextError](err); ok {
			flag := map[string]string{"prompt": "--prompt", "answer": "--tokens"}[ce.What]
			return nil, &usageError{ce.Error(), fmt.Sprintf("%s %d, or less, or leave it out", flag, ce.Context-1)}
		}
		if err != nil {
			return nil, err
		}
	}
	r.Noise = noise()
	return r, nil
}

// onDevice puts models where --device says. Why it is not the GPU is said once.
func (c *benchmarkCmd) onDevice(a *app) func(*model.Model) (*model.GPU, error) {
	var said bool
	return func(m *model.Model) (*model.GPU, error) {
		gpu, why, err := chat.OnDevice(m, c.Device, cudaSetup())
		if !said {
			a.onProcessor(why)
			said = true
		}
		return gpu, err
	}
}

func (c *benchmarkCmd) open(set *kernels.Set) (*gguf.File, *model.Model, error) {
	f, err := gguf.Open(c.File)
	if err != nil {
		return nil, nil, err
	}
	m, err := model.Load(f, model.Options{Set: set, HugePages: c.HugePages})
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, m, nil
}

// tuned is set, or what the autotuner chooses for the model instead.
func (c *benchmarkCmd) tuned(a *app, set *kernels.Set) (*kernels.Set, error) {
	choose, err := c.chooser(set)
	if err != nil || choose == nil {
		return set, err
	}
	f, err := gguf.ReadInfo(c.File)
	if err != nil {
		return nil, err
	}
	conf, err := model.ReadConfig(f)
	if err != nil {
		return nil, err
	}
	t := team.New(c.Threads, team.Options{Pin: c.Pin})
	defer t.Close()
	a.note("tuning")
	return choose(a.ctx, conf, t)
}

func (*benchmarkCmd) unmeasured(err error) error {
	if errors.Is(err, bench.ErrNoLimits) {
		return &hinted{err, "make build does so"}
	}
	return err
}

// document is the text of --markdown.
func (c *benchmarkCmd) document() (string, error) {
	b, err := os.ReadFile(c.Markdown)
	if errors.Is(err, fs.ErrNotExist) {
		return "", &hinted{fmt.Errorf("document %s: no such file", c.Markdown), "write one with lines <!-- begin machine --> and <!-- end machine --> where the tables belong"}
	}
	if err != nil {
		return "", fmt.Errorf("document %s: %s", c.Markdown, reason(err))
	}
	return string(b), nil
}

func (c *benchmarkCmd) writeMarkdown(r *bench.Report) error {
	b, err := c.document()
	if err != nil {
		return err
	}
	doc, err := bench.Markdown(b, r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.Markdown, []byte(doc), 0o644); err != nil {
		return fmt.Errorf("document %s: %w", c.Markdown, err)
	}
	return nil
}
