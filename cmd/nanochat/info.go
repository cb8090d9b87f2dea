package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
)

// modelArg is the MODEL argument that most commands have.
type modelArg struct {
	Model string `arg:"" help:"A model file (.gguf), or a name from nanochat list."`
}

// check finds the model, and from then on Model is its file.
func (m *modelArg) check(a *app) error {
	found, err := a.find(m.Model)
	if err == nil {
		m.Model = found.Path
	}
	return err
}

// checkFile finds the mistakes that need no look into the file.
func checkFile(path string) error {
	st, err := os.Stat(path)
	switch {
	case err == nil && st.IsDir():
		return &modelError{path, syscall.EISDIR, "name the .gguf file in it"}
	case err == nil && !st.Mode().IsRegular():
		return &modelError{path, errors.New("is not a regular file"), "models are mapped into memory; save it to a file first"}
	case err == nil:
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrPermission) {
			return &hinted{fmt.Errorf("model %s: %w", path, fs.ErrPermission), "make it readable for this user"}
		}
		if err == nil {
			f.Close()
		}
		return nil // any other reason comes back when the file is read
	case path == "":
		return &usageError{"the name of the model is empty", "name a .gguf file, or a model of nanochat list"}
	}
	hint := "create one with random weights: nanochat init nano-5m " + path
	if slices.Contains(config.Presets(), path) {
		hint = fmt.Sprintf("%s is a preset; make a model of it: nanochat init %s %s.gguf", path, path, path)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		hint = ""
	}
	return &modelError{path, err, hint}
}

// infoReport is what `info --json` prints.
type infoReport struct {
	Path         string           `json:"path"`
	Bytes        int64            `json:"bytes"`
	DataOffset   int64            `json:"data_offset"`
	Version      uint32           `json:"gguf_version"`
	Alignment    uint64           `json:"alignment"`
	Name         string           `json:"name,omitempty"`
	Architecture string           `json:"architecture"`
	Licence      string           `json:"licence,omitempty"`
	SHA256       string           `json:"sha256,omitempty"`
	Config       *config.Model    `json:"-"`
	Settings     map[string]any   `json:"config,omitempty"` // Config by the keys of a configuration file
	Params       map[string]int64 `json:"params,omitempty"`
	Vocabulary   *vocabReport     `json:"vocabulary,omitempty"`
	Types        []typeReport     `json:"tensor_types"`
	Tensors      []tensorReport   `json:"tensors,omitempty"`
	Metadata     map[string]any   `json:"metadata,omitempty"`
	// Problem says why the file cannot be run, where its structure is valid.
	Problem string `json:"problem,omitempty"`
}

type vocabReport struct {
	Size  int     `json:"size"`
	Split string  `json:"split"`
	BOS   *int32  `json:"bos,omitempty"`
	Stops []int32 `json:"stops"`
}

type typeReport struct {
	Type    string `json:"type"`
	Tensors int    `json:"tensors"`
	Bytes   int64  `json:"bytes"`
}

type tensorReport struct {
	Name   string   `json:"name"`
	Type   string   `json:"type"`
	Dims   []uint64 `json:"dims"`
	Offset uint64   `json:"offset"`
	Bytes  uint64   `json:"bytes"`
}

type infoCmd struct {
	modelArg
	JSON    bool `name:"json" help:"Print JSON."`
	Tensors bool `help:"List the tensors as well."`
	Meta    bool `help:"Show all metadata as well; long arrays are cut."`
}

// Help is the longer help text.
func (*infoCmd) Help() string {
	return "Only the header is read, so a large file takes no longer than a small one; verify reads the weights as well."
}

// Run describes the file. A file that is valid GGUF but no model that runs here
// is described as well, with the reason.
func (c *infoCmd) Run(a *app) error {
	if err := c.check(a); err != nil {
		return err
	}
	f, err := gguf.ReadInfo(c.Model)
	if err != nil {
		return err
	}
	r := describe(f)
	if c.Tensors {
		for i := range f.Tensors {
			t := &f.Tensors[i]
			r.Tensors = append(r.Tensors, tensorReport{t.Name, t.Type.String(), t.Dims, t.Offset, t.Size()})
		}
	}
	if c.Meta {
		r.Metadata = map[string]any{}
		for _, kv := range f.Meta {
			r.Metadata[kv.Key] = shortValue(kv.Value)
		}
	}
	if c.JSON {
		return writeJSON(a.stdout, r)
	}
	return writePairs(a.stdout, r.pairs(f))
}

func describe(f *gguf.File) *infoReport {
	r := &infoReport{Path: f.Path, Bytes: f.Size, DataOffset: f.DataOffset, Version: f.Version, Alignment: f.Alignment}
	r.Architecture, _ = f.StringOr("general.architecture", "unknown")
	r.Name, _ = f.StringOr("general.name", "")
	r.Licence, _ = f.StringOr("general.license", "")
	r.SHA256, _ = f.StringOr("nanochat.sha256", "")
	byType := map[gguf.Type]*typeReport{}
	for i := range f.Tensors {
		t := &f.Tensors[i]
		if byType[t.Type] == nil {
			byType[t.Type] = &typeReport{Type: t.Type.String()}
		}
		byType[t.Type].Tensors++
		byType[t.Type].Bytes += int64(t.Size())
	}
	for _, t := range byType {
		r.Types = append(r.Types, *t)
	}
	slices.SortFunc(r.Types, func(a, b typeReport) int { return int(min(max(b.Bytes-a.Bytes, -1), 1)) })

	if conf, err := model.ReadConfig(f); err != nil {
		r.Problem = err.Error()
	} else {
		r.Config, r.Settings, r.Params = &conf, settingsOf(conf), paramsOf(conf)
	}
	if t, err := tokenizer.FromMetadata(f.Path, f); err == nil {
		v := &vocabReport{Size: t.Vocab(), Split: t.Pre(), Stops: t.Stops()}
		if id, ok := t.Special(tokenizer.BOS); ok {
			v.BOS = &id
		}
		r.Vocabulary = v
	} else if r.Problem == "" {
		r.Problem = err.Error()
	}
	return r
}

// settingsOf is the shape of a network by the keys of a configuration's [model] table.
func settingsOf(m config.Model) map[string]any {
	c := config.Config{Model: m}
	out := map[string]any{}
	for _, s := range c.Settings() {
		if key, ok := strings.CutPrefix(s.Key, "model."); ok {
			out[key] = s.Value
		}
	}
	return out
}

func (r *infoReport) pairs(f *gguf.File) []pair {
	p := []pair{
		{"file", fmt.Sprintf("%s, %s", r.Path, bytesText(r.Bytes))},
		{"name", r.Name},
		{"architecture", r.Architecture},
	}
	if m := r.Config; m != nil {
		w := m.Params()
		group := "" // other programs' files have scales of their own kinds
		switch {
		case r.Architecture != "nanochat":
		case m.Group == 0:
			group = "one for each row"
		default:
			group = fmt.Sprintf("one for every %d inputs of a row", m.Group)
		}
		p = append(p,
			pair{"weights", fmt.Sprintf("%s: ternary %s, embedding %s, head %s, norms %s, mhc %s", countText(w.Total()), countText(w.Ternary),
				countText(w.Embedding), countText(w.Head), countText(w.Norms), countText(w.MHC))},
			pair{"shape", fmt.Sprintf("%d layers of %d, %d/%d heads of %d, FFN %d %s", m.Layers, m.Dim, m.Heads, m.KVHeads, m.HeadDim, m.FFN, m.FFNKind)},
			pair{"scales", group},
			pair{"context", fmt.Sprint(m.Context)},
		)
		if m.Streams > 1 {
			kind := m.MHC
			if m.MHCDynamic {
				kind += ", dynamic"
			}
			p = append(p, pair{"streams", fmt.Sprintf("%d (%s)", m.Streams, kind)})
		}
	}
	if v := r.Vocabulary; v != nil {
		p = append(p, pair{"vocabulary", fmt.Sprintf("%d tokens, split as %s", v.Size, v.Split)})
	}
	for _, t := range r.Types {
		p = append(p, pair{"tensors", fmt.Sprintf("%d %s, %s", t.Tensors, t.Type, bytesText(t.Bytes))})
	}
	p = append(p, pair{"data offset", fmt.Sprint(r.DataOffset)}, pair{"sha256", r.SHA256}, pair{"licence", r.Licence}, pair{"problem", r.Problem})
	for _, t := range r.Tensors {
		p = append(p, pair{"tensor", fmt.Sprintf("%-32s %-5s %v", t.Name, t.Type, t.Dims)})
	}
	if r.Metadata != nil {
		for _, kv := range f.Meta {
			p = append(p, pair{"metadata", fmt.Sprintf("%s = %v", kv.Key, r.Metadata[kv.Key])})
		}
	}
	return p
}

// shortValue is a metadata value with long arrays and strings cut.
func shortValue(v gguf.Value) any {
	const most = 8
	if n := v.Len(); n > most {
		s := fmt.Sprint(v.Any())
		if len(s) > 120 {
			s = strings.ToValidUTF8(s[:120], "")
		}
		return fmt.Sprintf("%s... (%d elements)", s, n)
	}
	return v.Any()
}
