package main

import (
	"errors"
	"fmt"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/core/zoo"
)

type verifyCmd struct {
	Models []string `arg:"" optional:"" name:"model" help:"Model files (.gguf), or names from nanochat list (default: all models that came with nanochat or were downloaded)."`
	JSON   bool     `name:"json" help:"Print JSON."`
}

// Help is the longer help text.
func (*verifyCmd) Help() string {
	return "Structure, weights, vocabulary and the checksum within the file are checked; a model that was downloaded or came with nanochat is " +
		"compared with the SHA-256 that was promised as well. Nothing is downloaded. Exit code 4: a model is damaged."
}

// verified is a model that is right.
type verified struct {
	Name  string `json:"name,omitempty"`
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
	OK    bool   `json:"ok"`
	// Checksum says that the file holds one; SHA256 is that of the whole file, where it
	// was promised.
	Checksum bool   `json:"checksum"`
	SHA256   string `json:"sha256,omitempty"`
}

// failures is that some of many models are not right; each was reported.
type failures struct {
	n, of int
	first error
}

func (e *failures) Error() string {
	return fmt.Sprintf("%d of %s are not right", e.n, plural(e.of, "model"))
}

// Run checks all models.
func (c *verifyCmd) Run(a *app) error {
	names := c.Models
	if len(names) == 0 {
		z, err := openZoo()
		if err != nil {
			return err
		}
		for _, e := range z.List() {
			if e.Path != "" {
				names = append(names, e.Ref())
			}
		}
		if len(names) == 0 {
			return &hinted{errors.New("no model came with nanochat or was downloaded"), "nanochat list shows what there is"}
		}
	}
	var all []verified
	fault := failures{of: len(names)}
	for _, name := range names {
		v, err := a.verify(name)
		switch {
		case err == nil:
			all = append(all, v)
			if !c.JSON {
				what := "structure, weights and checksum are right"
				if !v.Checksum {
					what = "structure and weights are right; the file has no checksum"
				}
				if _, err := fmt.Fprintf(a.stdout, "%s: %s\n", v.Path, what); err != nil {
					return err
				}
			}
		case len(names) == 1 || a.ctx.Err() != nil:
			return err
		default:
			a.fail(err, false)
			if fault.n++; fault.first == nil {
				fault.first = err
			}
		}
	}
	if c.JSON {
		var out any = all
		if len(c.Models) == 1 {
			out = all[0]
		}
		if err := writeJSON(a.stdout, out); err != nil {
			return err
		}
	}
	if fault.n > 0 {
		return &fault
	}
	return nil
}

// verify checks one model that is on this machine.
func (a *app) verify(ref string) (v verified, err error) {
	found, err := a.findHere(ref)
	if err != nil {
		return v, err
	}
	v = verified{Name: found.Name, Path: found.Path, SHA256: found.SHA256}
	if err := a.verifyDigest(found); err != nil {
		return v, err
	}
	f, err := gguf.Open(found.Path)
	if err != nil {
		return v, err
	}
	defer f.Close()
	v.Bytes = f.Size
	v.Checksum, err = a.verifyFile(f)
	v.OK = err == nil
	return v, err
}

// verifyDigest compares a file of the zoo with the digest it was promised with.
func (a *app) verifyDigest(found zoo.Found) error {
	if found.SHA256 == "" {
		return nil
	}
	z, err := openZoo()
	if err != nil {
		return err
	}
	bar := a.progress("verify")
	defer bar.done()
	return z.Verify(a.ctx, found, bar.update)
}

// verifyFile checks all of a model file, and says whether it holds a checksum.
func (a *app) verifyFile(f *gguf.File) (checksum bool, err error) {
	bar := a.progress("verify")
	err = f.VerifyChecksum(a.ctx, bar.update)
	bar.done()
	if err != nil && !errors.Is(err, gguf.ErrNoChecksum) {
		return false, err
	}
	checksum = err == nil
	// Loading checks every tensor, trit code and scale.
	if _, err := model.Load(f, model.Options{}); err != nil {
		return checksum, err
	}
	_, err = tokenizer.FromMetadata(f.Path, f)
	return checksum, err
}
