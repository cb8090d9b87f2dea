package main

import (
	"fmt"

	"github.com/architehc/nanochat/core/checkpoint"
)

type checkpointCmd struct {
	Split splitCmd `cmd:"" help:"Cut a checkpoint into small files."`
	Join  joinCmd  `cmd:"" help:"Put them together again, so that the training goes on from there."`
}

type splitCmd struct {
	From   string `arg:"" name:"run" help:"The directory of a run, or a checkpoint in it."`
	Out    string `short:"o" required:"" placeholder:"DIR" help:"The directory for the parts."`
	Size   size   `default:"16MB" placeholder:"BYTES" help:"No file is larger than this (default: ${default})."`
	Models bool   `help:"Take best.gguf and model.gguf of the run along."`
	JSON   bool   `name:"json" help:"Print what was written as JSON."`
}

// Help is the longer help text.
func (*splitCmd) Help() string {
	return "Of a run it takes the newest good checkpoint, the configuration and the metrics. Every part and every file is listed " +
		"with its size and SHA-256 in a file PARTS. A split that was interrupted goes on where it was."
}

// Run splits.
func (c *splitCmd) Run(a *app) error {
	if c.Size < checkpoint.MinPart {
		return &usageError{fmt.Sprintf("--size %d is too small", c.Size), fmt.Sprintf("parts have %d bytes or more", checkpoint.MinPart)}
	}
	p, err := checkpoint.Split(nil, c.From, c.Out, checkpoint.SplitOptions{Size: int64(c.Size), Models: c.Models})
	if err != nil {
		return err
	}
	if c.JSON {
		return writeJSON(a.stdout, p)
	}
	_, err = fmt.Fprintf(a.stderr, "wrote %s, step %d, as %d parts in %s: %s\n", c.From, p.Step, len(p.Parts), c.Out, bytesText(p.Bytes()))
	return err
}

type joinCmd struct {
	From string `arg:"" name:"dir" help:"The directory with the parts."`
	Out  string `short:"o" required:"" placeholder:"RUN" help:"The directory of the run: a new one, or one with earlier checkpoints of it."`
	JSON bool   `name:"json" help:"Print what was written as JSON."`
}

// Help is the longer help text.
func (*joinCmd) Help() string {
	return "Everything is compared with its SHA-256 before the checkpoint appears. nanochat train CONFIG --out RUN then goes on from it."
}

// Run joins.
func (c *joinCmd) Run(a *app) error {
	p, at, err := checkpoint.Join(nil, c.From, c.Out)
	if err != nil {
		return err
	}
	if c.JSON {
		return writeJSON(a.stdout, struct {
			Path string `json:"path"`
			*checkpoint.Parts
		}{at, p})
	}
	_, err = fmt.Fprintf(a.stderr, "wrote %s, step %d, of %d parts: %s\n", at, p.Step, len(p.Parts), bytesText(p.Bytes()))
	return err
}
