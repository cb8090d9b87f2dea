package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/core/train"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

type inspectCmd struct {
	Model     string `arg:"" help:"A model file (.gguf) or a name from nanochat list, the directory of a training run, or a checkpoint in it."`
	Text      string `placeholder:"FILE" help:"The text that the streams are measured with (default: random tokens)."`
	Tokenizer string `placeholder:"FILE" help:"For --text with a checkpoint: its tokenizer, a tokenizer.json or a model file (default: where the run found it)."`
	Length    size   `default:"256" placeholder:"N" help:"Tokens to run through the model, at most (default: ${default})."`
	Seed      uint64 `default:"0" placeholder:"N" help:"Seed of random tokens (default: ${default})."`
	Tensors   bool   `help:"Show every projection, not one line for each layer."`
	JSON      bool   `name:"json" help:"Print JSON; it has everything."`
	engineFlags
}

// Help is the longer help text.
func (*inspectCmd) Help() string {
	return "Shows what became of the weights: the shares of -1, 0 and +1 and the scales of the ternary projections, outputs that are always 0, " +
		"the lengths of embedding rows, and how residual streams are mixed and how far apart they are: a similarity of 1 means that mixing has no effect. " +
		"Of a checkpoint it also shows how many latent weights are close to the threshold at which their trit changes."
}

// inspectReport is what `inspect --json` prints.
type inspectReport struct {
	Path   string         `json:"path"`
	Step   *int           `json:"step,omitempty"` // of a checkpoint
	Config map[string]any `json:"config"`
	model.WeightStats
	Streams []model.StreamStats `json:"streams"`
	Text    string              `json:"text,omitempty"`
	Tokens  int                 `json:"tokens"`

	shape config.Model
}

// subject is what is inspected.
type subject struct {
	model *model.Model
	net   *train.Network // of a checkpoint, else nil
	tok   *tokenizer.Tokenizer
	close func() error
}

// Run inspects.
func (c *inspectCmd) Run(a *app) error {
	set, err := c.set()
	if err != nil {
		return err
	}
	if c.Length < 1 {
		return &usageError{fmt.Sprintf("--length %d", c.Length), "it is a number of tokens, at least 1"}
	}
	s, err := c.open(a, set)
	if err != nil {
		return err
	}
	defer s.close()
	ids, err := c.tokens(s)
	if err != nil {
		return err
	}
	r := &inspectReport{Path: c.Model, Text: c.Text, Tokens: len(ids), shape: s.model.Config()}
	r.Config = settingsOf(r.shape)
	if s.net != nil {
		r.Path, r.Step = s.net.Checkpoint, &s.net.Step
		r.WeightStats, err = s.net.WeightStats(a.ctx)
	} else {
		r.WeightStats, err = s.model.WeightStats(a.ctx)
	}
	if err != nil {
		return err
	}
	tm := team.New(c.threads(), team.Options{})
	defer tm.Close()
	if r.Streams, err = s.model.StreamStats(tm, ids); err != nil {
		return err
	}
	if c.JSON {
		return writeJSON(a.stdout, r)
	}
	return r.write(a.stdout, c.Tensors)
}

// open opens a model file, or a checkpoint if it is a directory.
func (c *inspectCmd) open(a *app, set *kernels.Set) (*subject, error) {
	if st, err := os.Stat(c.Model); err == nil && st.IsDir() {
		net, err := train.Open(c.Model, train.ExportOptions{Tokenizer: c.Tokenizer, Version: version, Set: set, Warn: func(err error) {
			fmt.Fprintf(a.stderr, "warning: %s\n", oneLine(err.Error()))
		}})
		if err != nil {
			return nil, err
		}
		return &subject{net.Model(), net, net.Tokenizer, func() error { return nil }}, nil
	}
	if c.Tokenizer != "" {
		return nil, &usageError{"--tokenizer is for checkpoints", "a model file has its own"}
	}
	found, err := a.find(c.Model)
	if err != nil {
		return nil, err
	}
	f, err := gguf.Open(found.Path)
	if err != nil {
		return nil, err
	}
	s := &subject{close: f.Close}
	if s.model, err = model.Load(f, model.Options{Set: set}); err == nil && c.Text != "" {
		s.tok, err = tokenizer.FromMetadata(f.Path, f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

// tokens is what runs through the model.
func (c *inspectCmd) tokens(s *subject) ([]int32, error) {
	most := min(int(c.Length), s.model.Config().Context, 1<<16)
	if c.Text == "" {
		return s.model.RandomTokens(most, c.Seed), nil
	}
	if s.tok == nil {
		return nil, &hinted{fmt.Errorf("%s: the tokenizer of the run is not where it was", c.Model), "name it with --tokenizer FILE, or leave out --text"}
	}
	f, err := os.Open(c.Text)
	if err != nil {
		return nil, fmt.Errorf("text %s: %s", c.Text, reason(err))
	}
	defer f.Close()
	// A token stands for few bytes; more than this are not needed for any length.
	b, err := io.ReadAll(io.LimitReader(f, 64*int64(most)))
	if err != nil {
		return nil, fmt.Errorf("text %s: %s", c.Text, reason(err))
	}
	ids := s.tok.Encode(nil, string(b), tokenizer.EncodeOptions{})
	if len(ids) == 0 {
		return nil, &usageError{c.Text + " is empty", "name a text, or leave out --text for random tokens"}
	}
	return ids[:min(len(ids), most)], nil
}

func (r *inspectReport) write(w io.Writer, tensors bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")+"\t") }
	name := r.Path
	if r.Step != nil {
		name += fmt.Sprintf(", step %d", *r.Step)
	}
	m := &r.shape
	fmt.Fprintf(w, "%s: %d layers of %d, FFN %d %s, %s\n", name, m.Layers, m.Dim, m.FFN, m.FFNKind, plural(m.Streams, "stream"))

	if groups := r.grouped(tensors); len(groups) > 0 {
		fmt.Fprintln(w, "\nTernary projections: shares of trits, scales, outputs that are always 0")
		head := []string{"", "-1", "0", "+1", "scale min", "median", "max", "dead"}
		near := groups[0].Near != nil
		if near {
			head = append(head, "near threshold")
		}
		line(head...)
		for _, p := range groups {
			cells := []string{p.Name, percent(p.Minus), percent(p.Zero), percent(p.Plus), short(float64(p.ScaleMin)), short(float64(p.ScaleMedian)), short(float64(p.ScaleMax)), fmt.Sprint(p.DeadRows)}
			if near {
				cells = append(cells, percent(*p.Near))
			}
			line(cells...)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprintln(w, "\nOther matrices: root mean squares of their rows")
	line("", "rows", "columns", "min", "median", "max")
	for _, d := range r.Dense {
		line(d.Name, fmt.Sprint(d.Rows), fmt.Sprint(d.Cols), short(d.Min), short(d.Median), short(d.Max))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	what := fmt.Sprintf("%d random tokens", r.Tokens)
	if r.Text != "" {
		what = fmt.Sprintf("%d tokens of %s", r.Tokens, r.Text)
	}
	if m.Streams == 1 {
		fmt.Fprintf(w, "\nThe residual stream in front of each part, %s\n", what)
		line("layer", "part", "rms")
	} else {
		fmt.Fprintf(w, "\nResidual streams in front of each part and their mixing, %s\n", what)
		line("layer", "part", "rms", "similarity", "eff. rank", "kept", "h_pre", "h_post", "spread")
	}
	for _, s := range r.Streams {
		cells := []string{fmt.Sprint(s.Layer), s.Part, short(s.RMS)}
		if m.Streams > 1 {
			cells = append(cells, fmt.Sprintf("%.4f", s.Similarity), fmt.Sprintf("%.2f", s.EffectiveRank))
		}
		if x := s.Mixing; x != nil {
			cells = append(cells, fmt.Sprintf("%.3f", x.Kept), list(x.Pre), list(x.Post), short(x.Spread))
		} else if m.Streams > 1 {
			cells = append(cells, "", "", "", "")
		}
		line(cells...)
	}
	return t.Flush()
}

// grouped is the projections, or a line for every layer: means over weights, the
// extremes of scales, the median of the medians.
func (r *inspectReport) grouped(tensors bool) []model.ProjectionStats {
	if tensors {
		return r.Projections
	}
	var all []model.ProjectionStats
	for i := 0; i < len(r.Projections); {
		layer, _, _ := strings.Cut(strings.TrimPrefix(r.Projections[i].Name, "blk."), ".")
		g, weights, near := model.ProjectionStats{Name: "layer " + layer, ScaleMin: float32(math.Inf(1))}, 0.0, 0.0
		var medians []float32
		for ; i < len(r.Projections) && strings.HasPrefix(r.Projections[i].Name, "blk."+layer+"."); i++ {
			p := &r.Projections[i]
			n := float64(p.Rows) * float64(p.Cols)
			weights += n
			g.Minus, g.Zero, g.Plus = g.Minus+n*p.Minus, g.Zero+n*p.Zero, g.Plus+n*p.Plus
			g.ScaleMin, g.ScaleMax = min(g.ScaleMin, p.ScaleMin), max(g.ScaleMax, p.ScaleMax)
			g.DeadRows += p.DeadRows
			medians = append(medians, p.ScaleMedian)
			if p.Near != nil {
				near += n * *p.Near
				g.Near = &near
			}
		}
		slices.Sort(medians)
		g.ScaleMedian = medians[(len(medians)-1)/2]
		g.Minus, g.Zero, g.Plus, near = g.Minus/weights, g.Zero/weights, g.Plus/weights, near/weights
		all = append(all, g)
	}
	return all
}

func percent(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) }

// short is v with four digits.
func short(v float64) string { return fmt.Sprintf("%.4g", v) }

// list is numbers with two decimals.
func list(v []float64) string {
	cells := make([]string, len(v))
	for i, x := range v {
		cells[i] = fmt.Sprintf("%.2f", x)
	}
	return strings.Join(cells, " ")
}
