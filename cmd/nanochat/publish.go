package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/core/train"
	"github.com/architehc/nanochat/core/zoo"
)

type publishCmd struct {
	From      string   `arg:"" name:"model" help:"A model file (.gguf), a name from nanochat list, or the directory of a run or a checkpoint."`
	Out       string   `short:"o" required:"" placeholder:"FOLDER" help:"The folder to make."`
	Repo      string   `required:"" placeholder:"OWNER/REPO" help:"The repository of the hub that it is for."`
	Name      string   `placeholder:"NAME" help:"The name of the model (default: the one in the file)."`
	Revision  string   `default:"1" placeholder:"REVISION" help:"Its revision in an index (default: ${default})."`
	Licence   string   `aliases:"license" placeholder:"SPDX" help:"Its licence, such as MIT or Apache-2.0 (default: the one in the file)."`
	URL       []string `name:"url" sep:"none" placeholder:"URL" help:"Another address of the folder, for the index. May be repeated."`
	Card      string   `placeholder:"FILE" help:"Text of the card, in Markdown, with the pictures that it shows (default: what the file says of itself)."`
	Tag       []string `sep:"none" placeholder:"TAG" help:"A tag of the card besides those of every model, such as rust. May be repeated."`
	Prompt    string   `default:"Once upon a time" placeholder:"TEXT" help:"What the examples of the card continue (default: ${default})."`
	Best      bool     `help:"Of a run, take the checkpoint with the lowest bits per byte, not the newest."`
	Tokenizer string   `placeholder:"FILE" help:"The tokenizer of the run (default: where the run found it)."`
	Force     bool     `help:"Replace what an earlier publish made in the folder."`
	JSON      bool     `name:"json" help:"Print JSON."`
}

// Help is the longer help text.
func (*publishCmd) Help() string {
	return "Makes a folder that is ready to upload, and uploads nothing: the model file, README.md in the form that the hub shows, config.json and " +
		"config.toml, tokenizer.json where the vocabulary has that form, index.json for NANOCHAT_INDEX, and SHA256SUMS. The model is checked completely " +
		"first. The same model and flags make the same bytes."
}

// The files of a published folder besides the model and the pictures of its card.
const (
	cardName   = "README.md"
	indexName  = "index.json"
	attributes = ".gitattributes"
)

// publishedFile is a file of the folder.
type publishedFile struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// publication is a folder that is being made.
type publication struct {
	*publishCmd
	dir    string // until it is complete
	report *infoReport
	file   *gguf.File
	entry  zoo.Model
	files  []publishedFile
}

var repoPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$`)

// check finds the mistakes that need no look at the model.
func (c *publishCmd) check() error {
	switch {
	case !repoPattern.MatchString(c.Repo) || strings.Contains(c.Repo, ".."):
		return &usageError{fmt.Sprintf("--repo %s is not OWNER/REPO", c.Repo), "as in --repo me/nano-5m-rust"}
	case c.Name != "" && !zoo.ValidName(c.Name):
		return &usageError{fmt.Sprintf("--name %s cannot be the name of a model", c.Name), "names have letters, digits and . _ -"}
	case !zoo.ValidName(c.Revision):
		return &usageError{fmt.Sprintf("--revision %s cannot be a revision", c.Revision), "as in --revision 1"}
	case strings.ContainsAny(c.Licence, "\r\n"):
		return &usageError{"--licence has more than one line", "give an SPDX identifier, such as MIT"}
	}
	for _, u := range c.URL {
		if !strings.HasPrefix(u, "https://") && !strings.HasPrefix(u, "http://") {
			return &usageError{fmt.Sprintf("--url %s is not a https:// or http:// address", u), ""}
		}
	}
	st, err := os.Stat(c.Out)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("folder %s: %s", c.Out, reason(err))
	case !st.IsDir():
		return &hinted{fmt.Errorf("folder %s is a file", c.Out), "name a folder that does not exist yet"}
	}
	entries, err := os.ReadDir(c.Out)
	if err != nil {
		return fmt.Errorf("folder %s: %s", c.Out, reason(err))
	}
	ours := slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == zoo.ChecksumsName })
	switch {
	case len(entries) == 0:
		return nil
	case !ours:
		return &hinted{fmt.Errorf("folder %s holds something else", c.Out), "name a folder that does not exist yet"}
	case !c.Force:
		return &hinted{fmt.Errorf("folder %s exists", c.Out), "--force replaces what publish made there"}
	}
	return nil
}

// Run makes the folder.
func (c *publishCmd) Run(a *app) error {
	if err := c.check(); err != nil {
		return err
	}
	out := filepath.Clean(c.Out)
	dir, err := os.MkdirTemp(filepath.Dir(out), fmt.Sprintf(".%s.tmp-%d-*", filepath.Base(out), os.Getpid()))
	if err != nil {
		return c.failed(err)
	}
	drop := func() { os.RemoveAll(dir) }
	a.abandon.Store(&drop)
	defer drop()
	p := &publication{publishCmd: c, dir: filepath.Clean(dir)}
	if err := p.make(a); err != nil {
		return err
	}
	if err := p.install(out); err != nil {
		return c.failed(err)
	}
	if c.JSON {
		return writeJSON(a.stdout, map[string]any{"folder": c.Out, "ref": p.ref(), "files": p.files, "entry": p.entry})
	}
	for _, f := range p.files {
		fmt.Fprintf(a.stderr, "%s  %s\n", filepath.Join(c.Out, f.Name), bytesText(f.Bytes))
	}
	_, err = fmt.Fprintf(a.stderr, "ready to upload to %s; from there: nanochat download %s\n", c.Repo, p.ref())
	return err
}

// failed names the folder in an error of the disk.
func (c *publishCmd) failed(err error) error {
	if cause := errors.Unwrap(err); cause != nil {
		return fmt.Errorf("folder %s: %w", c.Out, cause)
	}
	return err
}

// ref is the name of the model file on the hub.
func (p *publication) ref() string { return "hub:" + p.Repo + "/" + p.entry.File }

// make writes all files.
func (p *publication) make(a *app) error {
	from, err := p.source(a)
	if err != nil {
		return err
	}
	f, err := gguf.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	p.file, p.report = f, describe(f)
	if p.report.Problem != "" {
		return &hinted{fmt.Errorf("model %s cannot be published: %s", p.From, p.report.Problem), "publish what nanochat generate runs"}
	}
	if _, err := a.verifyFile(f); err != nil {
		return err
	}
	if err := p.names(); err != nil {
		return err
	}
	to := filepath.Join(p.dir, p.entry.File)
	if filepath.Dir(from) == p.dir {
		if err := os.Rename(from, to); err != nil {
			return p.failed(err)
		}
	} else if err := p.copyFile(from, to); err != nil {
		return err
	}
	if err := p.add(p.entry.File); err != nil {
		return err
	}
	p.entry.Size, p.entry.SHA256 = p.files[0].Bytes, p.files[0].SHA256
	return p.describe(a)
}

// source is the model file: one that is there, or one made of a checkpoint in the
// folder.
func (p *publication) source(a *app) (string, error) {
	if st, err := os.Stat(p.From); err == nil && st.IsDir() {
		made := filepath.Join(p.dir, "model.gguf")
		_, err := train.Export(p.From, made, train.ExportOptions{Best: p.Best, Tokenizer: p.Tokenizer, Version: version, Warn: func(err error) {
			fmt.Fprintf(a.stderr, "warning: %s\n", oneLine(err.Error()))
		}})
		return made, err
	}
	if p.Best || p.Tokenizer != "" {
		return "", &usageError{"--best and --tokenizer are for the directory of a run", "leave them out"}
	}
	found, err := a.findHere(p.From)
	if err == nil {
		err = a.verifyDigest(found)
	}
	return found.Path, err
}

// copyFile copies a file of others.
func (p *publication) copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return p.copy(in, to)
}

// copy writes a file of what r gives.
func (p *publication) copy(r io.Reader, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return p.failed(err)
	}
	_, err = io.Copy(f, r)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return p.failed(err)
	}
	return nil
}

// names settles the name, the licence and the entry of the index.
func (p *publication) names() error {
	name := p.Name
	if name == "" {
		name = p.report.Name
	}
	if !zoo.ValidName(name) {
		return &usageError{fmt.Sprintf("the model calls itself %q, which cannot be its name", name), "give --name, with letters, digits and . _ - only"}
	}
	licence := p.Licence
	if licence == "" {
		licence = p.report.Licence
	}
	if licence == "" {
		return &usageError{"the file names no licence", "give --licence, an SPDX identifier such as MIT"}
	}
	description, _ := p.file.StringOr("general.description", "")
	p.entry = zoo.Model{Name: name, Revision: p.Revision, Status: zoo.Published, File: name + ".gguf", Licence: licence, Description: oneLine(description)}
	p.entry.URLs = []string{p.ref()}
	for _, u := range p.URL {
		p.entry.URLs = append(p.entry.URLs, strings.TrimRight(u, "/")+"/"+p.entry.File)
	}
	return nil
}

// describe writes everything but the model.
func (p *publication) describe(a *app) error {
	conf, err := model.ReadConfig(p.file)
	if err != nil {
		return err
	}
	tok, err := tokenizer.FromMetadata(p.file.Path, p.file)
	if err != nil {
		return err
	}
	texts := map[string]string{
		attributes:    "*.gguf filter=lfs diff=lfs merge=lfs -text\n",
		"config.json": jsonText(hubConfig(conf, tok)),
		"config.toml": p.toml(a, conf),
		indexName:     jsonText(zoo.Index{Updated: p.entry.Name + "@" + p.entry.Revision, Models: []zoo.Model{p.entry}}),
	}
	// What people would get is tried before it is theirs.
	if _, err := zoo.ParseIndex([]byte(texts[indexName])); err != nil {
		return err
	}
	body := p.body(conf)
	if p.Card != "" {
		if body, err = p.readCard(a); err != nil {
			return err
		}
	}
	texts[cardName] = p.frontMatter() + body
	var hf strings.Builder
	if err := tok.WriteHF(&hf); err == nil { // SentencePiece vocabularies have no such form
		texts["tokenizer.json"] = hf.String()
	}
	for name, text := range texts {
		if err := p.copy(strings.NewReader(text), filepath.Join(p.dir, name)); err != nil {
			return err
		}
		if err := p.add(name); err != nil {
			return err
		}
	}
	slices.SortFunc(p.files, func(x, y publishedFile) int { return strings.Compare(x.Name, y.Name) })
	var sums strings.Builder
	for _, f := range p.files {
		fmt.Fprintf(&sums, "%s  %s\n", f.SHA256, f.Name)
	}
	return p.copy(strings.NewReader(sums.String()), filepath.Join(p.dir, zoo.ChecksumsName))
}

// add notes the digest of a file that was written.
func (p *publication) add(name string) error {
	f, err := os.Open(filepath.Join(p.dir, name))
	if err != nil {
		return p.failed(err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return p.failed(err)
	}
	p.files = append(p.files, publishedFile{name, n, hex.EncodeToString(h.Sum(nil))})
	return nil
}

// install makes the folder appear; in one that publish made before, it replaces the
// files and removes those that no longer belong to it.
func (p *publication) install(out string) error {
	if err := os.Chmod(p.dir, 0o755); err != nil {
		return err
	}
	old, err := os.ReadFile(filepath.Join(out, zoo.ChecksumsName))
	if errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(out) // an empty one
		return os.Rename(p.dir, out)
	}
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, f := range p.files {
		keep[f.Name] = true
		if err := os.Rename(filepath.Join(p.dir, f.Name), filepath.Join(out, f.Name)); err != nil {
			return err
		}
	}
	for line := range strings.Lines(string(old)) {
		_, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if ok && !keep[name] && filepath.Base(name) == name && name != "." && name != ".." {
			_ = os.Remove(filepath.Join(out, name)) // it may be gone already
		}
	}
	return os.Rename(filepath.Join(p.dir, zoo.ChecksumsName), filepath.Join(out, zoo.ChecksumsName))
}

func jsonText(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return "null\n" // nothing here can fail to encode
	}
	return b.String()
}
