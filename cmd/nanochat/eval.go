package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/eval"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/kernels/team"
)

type evalCmd struct {
	BPB evalBPBCmd `cmd:"" name:"bpb" help:"Bits per byte: how well a model predicts text."`
}

type evalBPBCmd struct {
	modelArg
	Files []string `arg:"" optional:"" help:"Text: directories of source files, .jsonl, .jsonl.zst, .jsonl.gz, .parquet or text files."`

	Shards    string   `placeholder:"DIR" help:"In place of files, prepared data, evaluated as training does."`
	Split     string   `enum:"val,train" default:"val" help:"With --shards: val or train (default: ${default})."`
	Rows      int      `default:"0" placeholder:"N" help:"With --shards: the first N rows only; 0: all (default: ${default})."`
	Window    size     `default:"0" placeholder:"N" help:"Tokens that the model sees at once; 0: its context (default: ${default})."`
	Overlap   size     `default:"0" placeholder:"N" help:"Tokens that a window repeats of the one before it, as context only (default: ${default})."`
	Extension []string `sep:"none" placeholder:".EXT" help:"Files wanted from directories (default: .rs). May be repeated."`
	Special   bool     `help:"Read the texts of special tokens as those tokens."`
	Each      bool     `help:"Show every document as well."`
	JSON      bool     `name:"json" help:"Print JSON."`
	KV        string   `name:"kv" enum:"f16,int8" default:"f16" help:"Storage of the cache: f16, as in training, or int8 (default: ${default})."`
	engineFlags
	deviceFlag
}

// Help is the longer help text.
func (*evalBPBCmd) Help() string {
	return "Bits per byte is the sum of -log2 of the probabilities that the model gives to what follows, divided by the bytes of text. " +
		"Every token counts once, and so does the end of every document, which costs bits and stands for no bytes. " +
		"A document is cut into windows of the model's context, each of which it sees for itself; --overlap gives windows a beginning to look back at."
}

// bpbReport is what `eval bpb --json` prints.
type bpbReport struct {
	Model     string      `json:"model"`
	SHA256    string      `json:"sha256,omitempty"`
	BPB       float64     `json:"bpb"`
	PerToken  float64     `json:"nats_per_token"`
	Nats      float64     `json:"nats"`
	Documents int         `json:"documents"`
	Tokens    int         `json:"tokens"`
	Bytes     int64       `json:"bytes"`
	Window    int         `json:"window"`
	Overlap   int         `json:"overlap"`
	Shards    string      `json:"shards,omitempty"`
	Split     string      `json:"split,omitempty"`
	Each      []bpbOfText `json:"each,omitempty"`
	Seconds   float64     `json:"seconds"`
	TokS      float64     `json:"tok_s"`
	Device    string      `json:"device"`
	Kernel    string      `json:"kernel"`
	Threads   int         `json:"threads"`
}

// bpbOfText is one document.
type bpbOfText struct {
	Path   string  `json:"path"`
	BPB    float64 `json:"bpb"`
	Nats   float64 `json:"nats"`
	Tokens int     `json:"tokens"`
	Bytes  int64   `json:"bytes"`
}

// Run evaluates.
func (c *evalBPBCmd) Run(a *app) (err error) {
	switch {
	case c.Shards == "" && len(c.Files) == 0:
		return &usageError{"no text to evaluate", "name files, or give --shards DIR for prepared data"}
	case c.Shards != "" && len(c.Files) > 0:
		return &usageError{"files and --shards at once", "evaluate one after the other"}
	case c.Shards != "" && (c.Overlap != 0 || c.Each):
		return &usageError{"--overlap and --each are not for --shards", "rows of prepared data are evaluated as training does; evaluate the files themselves"}
	case c.Shards == "" && c.Rows != 0 || c.Rows < 0:
		return &usageError{fmt.Sprintf("--rows %d", c.Rows), "it counts rows of --shards, and 0 is all"}
	}
	set, err := c.set()
	if err != nil {
		return err
	}
	if err := c.check(a); err != nil {
		return err
	}
	f, err := gguf.Open(c.Model)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := model.Load(f, model.Options{Set: set, HugePages: true})
	if err != nil {
		return err
	}
	tok, err := tokenizer.FromMetadata(f.Path, f)
	if err != nil {
		return err
	}
	tm := team.New(c.threads(), team.Options{})
	defer tm.Close()
	gpu, why, err := chat.OnDevice(m, c.Device, cudaSetup())
	if err != nil {
		return err
	}
	a.onProcessor(why)
	r := bpbReport{Model: c.Model, Window: int(c.Window), Overlap: int(c.Overlap), Device: chat.DeviceCPU, Kernel: set.Name, Threads: tm.Size()}
	if gpu != nil {
		defer gpu.Device().Close()
		r.Device, r.Kernel = gpu.Device().Name, chat.DeviceCUDA
	}
	e, err := eval.New(m, tok, eval.Options{Team: tm, GPU: gpu, KVType: (&runFlags{KV: c.KV}).kv()})
	if err != nil {
		return evalFlags(err)
	}
	r.SHA256, _ = f.StringOr("nanochat.sha256", "")
	if r.Window == 0 {
		r.Window = m.Config().Context
	}
	begin := time.Now()
	var sums eval.Sums
	if c.Shards != "" {
		r.Shards, r.Split = c.Shards, c.Split
		sums, err = c.rows(a, e, r.Window)
	} else {
		sums, err = c.documents(a, e, &r)
	}
	if err != nil {
		return evalFlags(err)
	}
	r.Seconds = time.Since(begin).Seconds()
	r.BPB, r.PerToken, r.Nats, r.Documents, r.Tokens, r.Bytes = sums.BPB(), sums.PerToken(), sums.Nats, sums.Documents, sums.Tokens, sums.Bytes
	r.TokS = float64(r.Tokens) / r.Seconds
	if c.JSON {
		return writeJSON(a.stdout, &r)
	}
	return writePairs(a.stdout, r.pairs())
}

func (c *evalBPBCmd) documents(a *app, e *eval.Evaluator, r *bpbReport) (eval.Sums, error) {
	line := a.counter()
	defer line.done()
	var each func(data.Document, eval.Sums)
	if c.Each {
		each = func(d data.Document, s eval.Sums) {
			if s.Bytes > 0 { // bits per byte of no text are no number
				r.Each = append(r.Each, bpbOfText{d.Path, s.BPB(), s.Nats, s.Tokens, s.Bytes})
			}
		}
	}
	docs := data.Read(a.ctx, c.Files, data.ReadOptions{Extensions: c.Extension})
	return e.Documents(a.ctx, docs, eval.Windows{Window: r.Window, Overlap: r.Overlap, Special: c.Special}, each, func(p eval.Progress) {
		line.show("%s, %s", plural(p.Documents, "document"), bytesText(p.Bytes))
	})
}

func (c *evalBPBCmd) rows(a *app, e *eval.Evaluator, seqLen int) (sums eval.Sums, err error) {
	d, err := data.Open(c.Shards, c.Split, data.OpenOptions{})
	if err != nil {
		return sums, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	line := a.counter()
	defer line.done()
	return e.Dataset(a.ctx, d, eval.Rows{SeqLen: seqLen, Rows: c.Rows}, func(p eval.Progress) {
		line.show("%d %% of %s tokens", min(100, 100*int64(p.Tokens)/max(p.Total, 1)), countText(p.Total))
	})
}

// evalFlags turns errors about how to evaluate into errors about the command line.
func evalFlags(err error) error {
	if e, ok := errors.AsType[*eval.Error](err); ok {
		return &usageError{"eval: " + e.What, e.Hint}
	}
	return err
}

func (r *bpbReport) pairs() []pair {
	p := []pair{
		{"bits per byte", fmt.Sprintf("%.4f", r.BPB)},
		{"nats per token", fmt.Sprintf("%.4f", r.PerToken)},
		{"text", fmt.Sprintf("%s, %s, %s tokens", plural(r.Documents, "document"), bytesText(r.Bytes), countText(int64(r.Tokens)))},
		{"window", fmt.Sprintf("%d tokens", r.Window)},
	}
	if r.Overlap > 0 {
		p[3].value += fmt.Sprintf(", %d of them from the window before", r.Overlap)
	}
	where := plural(r.Threads, "thread")
	if r.Kernel == chat.DeviceCUDA {
		where = r.Device
	}
	p = append(p, pair{"time", fmt.Sprintf("%.1f s, %.0f tok/s, %s on %s", r.Seconds, r.TokS, r.Kernel, where)})
	for _, d := range r.Each {
		p = append(p, pair{"document", fmt.Sprintf("%.4f  %8d bytes  %s", d.BPB, d.Bytes, d.Path)})
	}
	return p
}
