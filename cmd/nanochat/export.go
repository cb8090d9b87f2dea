package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/architehc/nanochat/core/train"
)

type exportCmd struct {
	From      string `arg:"" name:"run" help:"The directory of a run, or a checkpoint in it."`
	Out       string `short:"o" required:"" placeholder:"FILE" help:"The model file to write (.gguf)."`
	Best      bool   `help:"Of a run, take the checkpoint with the lowest bits per byte, not the newest."`
	Tokenizer string `placeholder:"FILE" help:"The tokenizer of the run, a tokenizer.json or a model file (default: where the run found it)."`
	outputFlags
}

// Help is the longer help text.
func (*exportCmd) Help() string {
	return "The file has the very weights that the training computed with at that step, so it gives the same logits, " +
		"with the vocabulary, the configuration of the run and where its data came from."
}

// Run exports.
func (c *exportCmd) Run(a *app) error {
	if _, err := os.Stat(c.From); err != nil {
		hint := "train a model first: nanochat train CONFIG.toml"
		if !errors.Is(err, fs.ErrNotExist) {
			hint = ""
		}
		return &hinted{fmt.Errorf("run %s: %s", c.From, reason(err)), hint}
	}
	if err := c.check(c.Out); err != nil {
		return err
	}
	c.begin(a, c.Out)
	e, err := train.Export(c.From, c.Out, train.ExportOptions{Best: c.Best, Tokenizer: c.Tokenizer, Version: version, Warn: func(err error) {
		fmt.Fprintf(a.stderr, "warning: %s\n", oneLine(err.Error()))
	}})
	if err != nil {
		return err
	}
	if c.JSON {
		st, err := os.Stat(c.Out)
		if err != nil {
			return err
		}
		return writeJSON(a.stdout, struct {
			Path  string `json:"path"`
			Bytes int64  `json:"bytes"`
			*train.Exported
			Params map[string]int64 `json:"params"`
		}{c.Out, st.Size(), e, paramsOf(e.Config.Model)})
	}
	what := fmt.Sprintf("wrote %s from %s: %d steps, %s tokens", c.Out, e.Checkpoint, e.Step, countText(e.Tokens))
	if e.Val != nil {
		what += fmt.Sprintf(", %.4f bits per byte", float64(e.Val.BPB))
	}
	_, err = fmt.Fprintln(a.stderr, what)
	return err
}
