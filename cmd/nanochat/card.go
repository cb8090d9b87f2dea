package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/core/train"
	"github.com/architehc/nanochat/core/zoo"
)

// hubLicences are the licences that the hub knows, by their names there.
var hubLicences = strings.Fields("apache-2.0 mit openrail bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear cc0-1.0 cc-by-3.0 cc-by-4.0 " +
	"cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-4.0 cdla-permissive-2.0 ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 " +
	"agpl-3.0 gpl-2.0 gpl-3.0 lgpl-2.1 lgpl-3.0 isc mpl-2.0 ms-pl ncsa odc-by odbl pddl postgresql unlicense wtfpl zlib llama2 llama3 gemma")

// frontMatter is the head of a card, as the hub reads it: YAML, whose strings are those
// of JSON here.
func (p *publication) frontMatter() string {
	var b strings.Builder
	b.WriteString("---\n")
	licence := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(p.entry.Licence), "-only"), "-or-later")
	if slices.Contains(hubLicences, licence) {
		fmt.Fprintf(&b, "license: %s\n", licence)
	} else {
		fmt.Fprintf(&b, "license: other\nlicense_name: %s\n", yaml(p.entry.Licence))
	}
	fmt.Fprintf(&b, "library_name: nanochat\npipeline_tag: text-generation\nmodel_name: %s\ntags:\n", yaml(p.entry.Name))
	tags := []string{"nanochat", "gguf", "ternary"}
	for _, t := range p.Tag {
		if !slices.Contains(tags, t) {
			tags = append(tags, t)
		}
	}
	for _, t := range tags {
		fmt.Fprintf(&b, "- %s\n", yaml(t))
	}
	b.WriteString("---\n\n")
	return b.String()
}

// yaml is a string as YAML takes it, which is as JSON writes it.
func yaml(s string) string { return strings.TrimSuffix(jsonText(s), "\n") }

// pictures finds the local pictures of a card: ![text](file) and <img src="file">.
var pictures = regexp.MustCompile(`!\[[^\]]*\]\(([^)\s]+)[^)]*\)|<img\s[^>]*src="([^"]+)"`)

// readCard is the text of --card, without a front matter of its own. The pictures that
// it shows go along.
func (p *publication) readCard(a *app) (string, error) {
	b, err := os.ReadFile(p.Card)
	if err != nil {
		return "", &hinted{fmt.Errorf("card %s: %s", p.Card, reason(err)), "name a file with the text of the card"}
	}
	text := strings.ReplaceAll(string(b), "\r\n", "\n")
	if rest, ok := strings.CutPrefix(text, "---\n"); ok {
		if _, after, ok := strings.Cut(rest, "\n---\n"); ok {
			text = strings.TrimLeft(after, "\n")
		}
	}
	done := map[string]bool{}
	for _, m := range pictures.FindAllStringSubmatch(text, -1) {
		name := m[1] + m[2]
		if strings.Contains(name, ":") || done[name] {
			continue // it is elsewhere
		}
		done[name] = true
		if !zoo.ValidName(name) {
			fmt.Fprintf(a.stderr, "warning: %s shows %s, which is not beside it, and will be missing\n", p.Card, name)
			continue
		}
		err := p.copyFile(filepath.Join(filepath.Dir(p.Card), name), filepath.Join(p.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(a.stderr, "warning: %s shows %s, which is not there\n", p.Card, name)
			continue
		}
		if err == nil {
			err = p.add(name)
		}
		if err != nil {
			return "", fmt.Errorf("card %s: %s: %w", p.Card, name, err)
		}
	}
	return text, nil
}

// body is a card of what the file says of itself.
func (p *publication) body(m config.Model) string {
	var b strings.Builder
	w, e := m.Params(), &p.entry
	fmt.Fprintf(&b, "# %s\n\n", e.Name)
	if e.Description != "" {
		fmt.Fprintf(&b, "%s\n\n", e.Description)
	}
	fmt.Fprintf(&b, "A language model with ternary weights for [nanochat](https://github.com/architehc/nanochat): one file, for ordinary processors.\n\n")
	fmt.Fprintf(&b, "```sh\nnanochat generate %s '%s' -n 100\n```\n\n", p.ref(), strings.ReplaceAll(p.Prompt, "'", `'\''`))
	fmt.Fprintf(&b, "```python\nimport nanochat\n\nmodel = nanochat.load_model(%q)\nprint(model.generate(%s, max_tokens=100).text)\n```\n\n", p.ref(), yaml(p.Prompt))
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "| %s | %s |\n", name, fmt.Sprintf(format, args...))
	}
	b.WriteString("| | |\n|---|---|\n")
	row("file", "`%s`, %s", e.File, bytesText(e.Size))
	row("SHA-256", "`%s`", e.SHA256)
	row("weights", "%s: ternary %s, embedding %s, head %s, norms and mixing %s", countText(w.Total()), countText(w.Ternary), countText(w.Embedding),
		countText(w.Head), countText(w.Norms+w.MHC))
	row("network", "%d layers of %d, %d/%d heads of %d, feed-forward %d %s", m.Layers, m.Dim, m.Heads, m.KVHeads, m.HeadDim, m.FFN, m.FFNKind)
	if m.Streams > 1 {
		row("residual streams", "%d (%s)", m.Streams, m.MHC)
	}
	row("vocabulary", "%d tokens, split as `%s`", p.report.Vocabulary.Size, p.report.Vocabulary.Split)
	row("context", "%d tokens", m.Context)
	row("licence", "%s", e.Licence)
	if text := training(p.file); text != "" {
		b.WriteString("\n## Training\n\n| | |\n|---|---|\n" + text)
	}
	b.WriteString("\nThe keys of the network are in `config.toml`. The checksums of all files are in `SHA256SUMS`:\n\n```sh\nsha256sum -c SHA256SUMS\n```\n")
	return b.String()
}

// origin is what a card says about where weights came from, in this order.
var origin = []struct{ key, name string }{
	{"nanochat.training.steps", "steps"}, {"nanochat.training.tokens", "tokens learned from"}, {"nanochat.training.seconds", "time"},
	{"nanochat.training.program", "program"}, {"nanochat.training.kernel", "kernels"}, {"nanochat.training.val_bpb", "held-out bits per byte"},
	{"nanochat.training.val_nats", "held-out nats per token"}, {"nanochat.training.val_tokens", "tokens evaluated"}, {"nanochat.data.licence", "data"},
	{"nanochat.data.id", "SHA-256 of the data"}, {"nanochat.data.tokenizer_sha256", "SHA-256 of the vocabulary"},
}

// training is rows of a table of where the weights came from.
func training(f *gguf.File) string {
	var b strings.Builder
	for _, o := range origin {
		v, ok := f.Lookup(o.key)
		if !ok {
			continue
		}
		text := fmt.Sprint(v)
		if seconds, ok := v.(float64); ok && o.name == "time" {
			text = train.Left(time.Duration(seconds * float64(time.Second)))
		}
		if text = strings.ReplaceAll(oneLine(text), "|", `\|`); text != "" {
			fmt.Fprintf(&b, "| %s | %s |\n", o.name, text)
		}
	}
	return b.String()
}

// hubConfig is config.json: the shape under the names that programs of the hub use.
func hubConfig(m config.Model, t *tokenizer.Tokenizer) map[string]any {
	c := map[string]any{
		"model_type": "nanochat", "library_name": "nanochat", "hidden_size": m.Dim, "num_hidden_layers": m.Layers, "num_attention_heads": m.Heads,
		"num_key_value_heads": m.KVHeads, "head_dim": m.HeadDim, "intermediate_size": m.FFN, "hidden_act": m.FFNKind, "vocab_size": m.Vocab,
		"max_position_embeddings": m.Context, "rope_theta": m.RopeTheta, "rms_norm_eps": m.NormEps, "tie_word_embeddings": m.TieEmbeddings,
		"quantization_config": map[string]any{"quant_method": "ternary", "group_size": m.Group}, "nanochat": settingsOf(m),
	}
	if id, ok := t.Special(tokenizer.BOS); ok {
		c["bos_token_id"] = id
	}
	if stops := t.Stops(); len(stops) > 0 {
		c["eos_token_id"] = stops
	}
	return c
}

// toml is config.toml: the configuration of the training without the paths of the
// machine it ran on, or the network alone.
func (p *publication) toml(a *app, m config.Model) string {
	name := p.entry.Name
	text, _ := p.file.StringOr("nanochat.training.config", "")
	c, err := config.Parse("nanochat.training.config", []byte(text))
	if text == "" || err != nil {
		c = &config.Config{Model: m}
		var b strings.Builder
		fmt.Fprintf(&b, "name = %s\n\n[model]\n", yaml(name))
		for _, s := range c.Settings() {
			if key, ok := strings.CutPrefix(s.Key, "model."); ok {
				fmt.Fprintf(&b, "%s = %s\n", key, tomlValue(s.Value))
			}
		}
		return b.String()
	}
	c.Name = name
	for _, path := range []string{c.Data.Path, c.Data.Tokenizer, c.Train.Out, c.Train.InitFrom} {
		if filepath.IsAbs(path) {
			fmt.Fprintf(a.stderr, "warning: the model file names the path %s of the machine that it was trained on\n", path)
		}
	}
	c.Data.Path, c.Data.Tokenizer, c.Train.Out, c.Train.InitFrom = "data", "", "run", filepath.Base(c.Train.InitFrom)
	if c.Train.InitFrom == "." {
		c.Train.InitFrom = ""
	}
	return c.TOML()
}

// tomlValue is a scalar, which TOML writes as JSON does.
func tomlValue(v any) string { return strings.TrimSuffix(jsonText(v), "\n") }
