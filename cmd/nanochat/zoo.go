package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/zoo"
)

// openZoo is the zoo that the environment asks for.
func openZoo() (*zoo.Zoo, error) { return openZooWith(func(*zoo.Options) {}) }

// openZooWith is openZoo with other options.
func openZooWith(change func(*zoo.Options)) (*zoo.Zoo, error) {
	o, err := zoo.FromEnvironment(os.Getenv, executable())
	if err != nil {
		return nil, err
	}
	change(&o)
	return zoo.New(o)
}

// executable is the file of the program; "" where it is not known and nothing is found beside it.
func executable() string {
	exe, err := os.Executable()
	if err != nil {
		return ""
	}
	return exe
}

// find is where every command gets its model from: a file, or a name that is
// looked up beside the program, in the cache and on the network, in this order.
func (a *app) find(ref string) (zoo.Found, error) {
	return a.findWith(ref, func(*zoo.Options) {})
}

// findHere is find without the network.
func (a *app) findHere(ref string) (zoo.Found, error) {
	found, err := a.findWith(ref, func(o *zoo.Options) { o.Offline = true })
	if e, ok := errors.AsType[*zoo.Error](err); ok && e.Kind == zoo.ErrOffline {
		err = &zoo.Error{Kind: zoo.ErrNotFound, Model: e.Model, What: "is not on this machine", Hint: "nanochat download " + ref}
	}
	return found, err
}

func (a *app) findWith(ref string, change func(*zoo.Options)) (zoo.Found, error) {
	st, err := os.Stat(ref)
	isDir := err == nil && st.IsDir()
	if ref == "" || err == nil && !isDir || zoo.IsPath(ref) && !strings.HasPrefix(ref, "file:") || slices.Contains(config.Presets(), ref) {
		return zoo.Found{Path: ref, Source: zoo.FromPath}, checkFile(ref)
	}
	z, err := openZooWith(change)
	if err != nil {
		return zoo.Found{}, err
	}
	bar := a.fetchBar(false)
	found, err := z.Resolve(a.ctx, ref, zoo.Fetch{Progress: bar.update})
	bar.done()
	if err != nil && isDir {
		return zoo.Found{}, checkFile(ref)
	}
	return found, err
}

// fetchBar shows how far a download is.
type fetchBar struct {
	a     *app
	quiet bool
	state string
	line  *progress
}

func (a *app) fetchBar(quiet bool) *fetchBar {
	return &fetchBar{a: a, quiet: quiet || os.Getenv("NANOCHAT_NO_PROGRESS") != ""}
}

func (b *fetchBar) update(p zoo.Progress) {
	if b.quiet {
		return
	}
	if b.state != p.State {
		b.done()
		b.state = p.State
		switch {
		case p.State == zoo.Waiting:
			b.a.note("waiting for another process that downloads " + p.Model)
		case p.State == zoo.Downloading && !b.a.stderrTTY:
			size := ""
			if p.Total > 0 {
				size = ", " + bytesText(p.Total)
			}
			fmt.Fprintf(b.a.stderr, "downloading %s%s\n", p.Model, size)
		}
		b.line = b.a.progress(map[string]string{zoo.Checking: "check", zoo.Downloading: "download"}[p.State] + " " + p.Model)
	}
	if p.State != zoo.Waiting {
		b.line.update(p.Done, p.Total)
	}
}

// done removes the line.
func (b *fetchBar) done() {
	if b.state == zoo.Waiting {
		b.a.noteDone()
	}
	if b.line != nil {
		b.line.done()
	}
}

type downloadCmd struct {
	Name   string `arg:"" help:"A model of nanochat list, as NAME or NAME@REVISION, or hub:OWNER/REPO/FILE.gguf@REVISION."`
	Force  bool   `help:"Download it again."`
	URL    string `name:"url" placeholder:"URL" help:"Take this file and call it NAME; with --sha256."`
	SHA256 string `name:"sha256" placeholder:"HEX" help:"The SHA-256 of the file at --url."`
	Quiet  bool   `short:"q" help:"Show no progress."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

// Help is the longer help text.
func (*downloadCmd) Help() string {
	return "Prints the path of the file. What was interrupted goes on where it stopped, and nothing is there before its SHA-256 is right. " +
		"NANOCHAT_CACHE: where models are kept. NANOCHAT_ENDPOINT: a mirror of the hub. NANOCHAT_TOKEN or HF_TOKEN: sent to the hub and nowhere else. " +
		"NANOCHAT_OFFLINE=1: no network. HTTPS_PROXY and SSL_CERT_FILE are honoured."
}

// Run downloads.
func (c *downloadCmd) Run(a *app) error {
	switch {
	case c.URL != "" && c.SHA256 == "":
		return &usageError{"--url without --sha256", "nanochat downloads only what it can check: ask whoever published the file for its SHA-256"}
	case c.URL == "" && c.SHA256 != "":
		return &usageError{"--sha256 without --url", "the models of nanochat list have theirs"}
	}
	z, err := openZoo()
	if err != nil {
		return err
	}
	bar := a.fetchBar(c.Quiet)
	f := zoo.Fetch{Force: c.Force, Progress: bar.update}
	var found zoo.Found
	if c.URL != "" {
		found, err = z.From(a.ctx, c.Name, c.URL, c.SHA256, f)
	} else {
		found, err = z.Download(a.ctx, c.Name, f)
	}
	bar.done()
	if err != nil {
		return err
	}
	if c.JSON {
		return writeJSON(a.stdout, &found)
	}
	_, err = fmt.Fprintln(a.stdout, found.Path)
	return err
}

type listCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Help is the longer help text.
func (*listCmd) Help() string {
	return "bundled: came with nanochat. cached: downloaded. partial: a download was interrupted. available: can be downloaded. " +
		"planned: not published yet. missing: should have come with nanochat. Needs no network. NANOCHAT_INDEX: a file of models that have names, " +
		"instead of that of this version. NANOCHAT_MODELS: directories of models that came with nanochat."
}

// Run lists.
func (c *listCmd) Run(a *app) error {
	z, err := openZoo()
	if err != nil {
		return err
	}
	all := z.List()
	if c.JSON {
		return writeJSON(a.stdout, map[string]any{"index": z.Index().Updated, "cache": z.Cache(), "models": all})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, e := range all {
		size := ""
		if e.Size > 0 {
			size = bytesText(e.Size)
		}
		if e.State == zoo.StatePartial {
			size = fmt.Sprintf("%s of %s", bytesText(e.Bytes), size)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", e.Ref(), e.State, size, e.Description)
	}
	return w.Flush()
}

type rmCmd struct {
	Names []string `arg:"" name:"name" help:"Models of nanochat list; NAME is all its revisions."`
	JSON  bool     `name:"json" help:"Print JSON."`
}

// Help is the longer help text.
func (*rmCmd) Help() string {
	return "Removes downloaded models and what is left of interrupted downloads. What came with nanochat stays."
}

// Run removes.
func (c *rmCmd) Run(a *app) error {
	z, err := openZoo()
	if err != nil {
		return err
	}
	total := int64(0)
	for _, name := range c.Names {
		n, err := z.Remove(name)
		total += n
		if err != nil {
			return err
		}
		if !c.JSON {
			fmt.Fprintf(a.stderr, "removed %s: %s freed\n", name, bytesText(n))
		}
	}
	if c.JSON {
		return writeJSON(a.stdout, map[string]any{"removed": c.Names, "bytes": total})
	}
	return nil
}
