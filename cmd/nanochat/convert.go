package main

import (
	"errors"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
)

// exportTypes are the values of --to that make files for llama.cpp.
var exportTypes = map[string]gguf.Type{"f16": gguf.F16, "q4_0": gguf.Q4_0, "tq2_0": gguf.TQ2_0}

type convertCmd struct {
	In        string `arg:"" help:"The model file to read: of this program, or a llama or bitnet GGUF."`
	Out       string `arg:"" help:"The model file to write."`
	To        string `enum:"nanochat,f16,q4_0,tq2_0" default:"nanochat" help:"nanochat, or for llama.cpp f16, q4_0 or tq2_0 (default: ${default})."`
	Embedding string `enum:",f16,q8_0" default:"" placeholder:"TYPE" help:"Store embedding and head as f16, or as q8_0: half the bytes, and a head that takes its input in 8 bits (default: as they are; f16 if neither)."`
	Quantize  bool   `help:"Make weights ternary that are not. A model that was not trained for it is not usable afterwards."`
	Group     int    `enum:"0,64,128,256" default:"128" help:"With --quantize: inputs that share one scale; 0: the whole row (default: ${default})."`
	outputFlags
}

// Run converts.
func (c *convertCmd) Run(a *app) error {
	found, err := a.find(c.In)
	if err != nil {
		return err
	}
	c.In = found.Path
	if err := c.check(c.Out); err != nil {
		return err
	}
	f, err := gguf.Open(c.In)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := model.Load(f, model.Options{})
	if err != nil {
		return err
	}
	if m.Arch() != "nanochat" || c.To == "nanochat" || c.Embedding != "" {
		m, err = m.Convert(a.ctx, model.ConvertOptions{Quantize: c.Quantize, Group: c.Group, Embedding: c.Embedding})
		if errors.Is(err, model.ErrNotTernary) {
			return &hinted{err, "--quantize makes weights ternary, at the price of a model that must be trained again"}
		}
		if err != nil {
			return err
		}
	}
	if a.ctx.Err() != nil {
		return a.ctx.Err()
	}
	c.begin(a, c.Out)
	if c.To == "nanochat" {
		err = m.Save(c.Out)
	} else {
		err = c.export(f, m)
	}
	if err != nil {
		return c.failed(c.Out, err)
	}
	return c.written(a, c.Out, m)
}

// export writes a file for llama.cpp, its vocabulary in the form known there.
func (c *convertCmd) export(f *gguf.File, m *model.Model) error {
	tok, err := tokenizer.FromMetadata(f.Path, f)
	if err != nil {
		return err
	}
	meta, err := gguf.Collect(tok.Pairs(tokenizer.MetadataOptions{ForLlamaCPP: true}))
	if err != nil {
		return err
	}
	if err := m.Export(c.Out, exportTypes[c.To], meta...); err != nil {
		hint := "--to f16 fits the scales of every model"
		if m.Config().Streams > 1 {
			hint = "such a model runs in nanochat only; one made with --set model.streams=1 can be exported"
		}
		return &hinted{err, hint}
	}
	return nil
}
