package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
)

type initCmd struct {
	Preset string   `arg:"" help:"A preset (see doctor --config), or a .toml file."`
	Out    string   `arg:"" help:"The model file to write."`
	Seed   uint64   `default:"0" help:"Seed of the weights: the same seed, the same file."`
	Set    []string `placeholder:"KEY=VALUE" sep:"none" help:"Override a key, as in --set model.vocab=16384. May be repeated."`
	outputFlags
}

// outputFlags are shared by the commands that write a file.
type outputFlags struct {
	Force bool `help:"Replace the file if it exists."`
	JSON  bool `name:"json" help:"Print JSON."`
}

// check refuses what would be lost or cannot be written.
func (o *outputFlags) check(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return nil // whatever it is, writing will say it
	case st.IsDir():
		return &hinted{fmt.Errorf("output %s is a directory", path), "name a file in it"}
	case !o.Force:
		return &hinted{fmt.Errorf("output %s exists", path), "--force replaces it"}
	}
	return nil
}

// begin arranges that an interrupt while path is written leaves nothing behind:
// until it is complete a file has a hidden name that starts with its own.
func (o *outputFlags) begin(a *app, path string) {
	a.removing(filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.tmp-%d-*", filepath.Base(path), os.Getpid())))
}

// removing arranges that a command that is cut off removes the files of a pattern.
func (a *app) removing(pattern string) {
	f := func() {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return // a name with brackets
		}
		for _, name := range names {
			os.Remove(name)
		}
	}
	a.abandon.Store(&f)
}

// failed names the output in an error of writing it, which may be about a hidden
// file or directory on the way.
func (o *outputFlags) failed(path string, err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("output %s: %w", path, p.Err)
	}
	return err
}

// written says what was written.
func (o *outputFlags) written(a *app, path string, m *model.Model) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	p := m.Config().Params()
	if o.JSON {
		return writeJSON(a.stdout, map[string]any{"path": path, "bytes": st.Size(), "params": paramsOf(m.Config())})
	}
	_, err = fmt.Fprintf(a.stderr, "wrote %s: %s weights, %s\n", path, countText(p.Total()), bytesText(st.Size()))
	return err
}

// Help is the longer help text.
func (*initCmd) Help() string {
	return "The weights are random, so the text such a model makes has no meaning; it is for tests and measurements. " +
		"Its vocabulary has one token for every byte, and made-up words for the rest."
}

// Run makes the model and writes it.
func (c *initCmd) Run(a *app) error {
	conf, err := loadConfig(c.Preset, c.Set)
	if err != nil {
		return err
	}
	if conf.Model.Vocab < tokenizer.MinVocab {
		return &usageError{fmt.Sprintf("model.vocab %d is too small for a vocabulary of bytes", conf.Model.Vocab),
			fmt.Sprintf("it needs at least %d", tokenizer.MinVocab)}
	}
	if err := c.check(c.Out); err != nil {
		return err
	}
	tok, err := tokenizer.NewByteLevel(conf.Model.Vocab)
	if err != nil {
		return err
	}
	meta, err := gguf.Collect(tok.Pairs(tokenizer.MetadataOptions{}))
	if err != nil {
		return err
	}
	meta = append(meta, gguf.KV{Key: "general.name", Value: gguf.V(conf.Name)})
	if conf.Description != "" {
		meta = append(meta, gguf.KV{Key: "general.description", Value: gguf.V(conf.Description + " Random weights.")})
	}
	m, err := model.Init(a.ctx, conf.Model, c.Seed, model.Options{})
	if err != nil {
		return err
	}
	c.begin(a, c.Out)
	if err := m.Save(c.Out, meta...); err != nil {
		return c.failed(c.Out, err)
	}
	return c.written(a, c.Out, m)
}
