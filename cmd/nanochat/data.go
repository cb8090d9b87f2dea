package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/architehc/nanochat/core/data"
)

type dataCmd struct {
	Prepare dataPrepareCmd `cmd:"" help:"Turn source code into token shards for training."`
}

type dataPrepareCmd struct {
	Inputs    []string `arg:"" help:"Training text: directories of source files (a crate registry, a checkout), .jsonl, .jsonl.zst, .jsonl.gz, .parquet or text files."`
	Out       string   `short:"o" required:"" placeholder:"DIR" help:"The directory to write, made if needed."`
	Tokenizer string   `required:"" placeholder:"FILE" help:"A tokenizer.json, or a model file."`

	Val           []string `sep:"none" placeholder:"INPUT" help:"Text for validation only: its crates are kept out of training. May be repeated."`
	ValFraction   float64  `default:"0" placeholder:"F" help:"Share of the crates or repositories of INPUTS to keep for validation (default: ${default})."`
	Seed          uint64   `default:"0" placeholder:"N" help:"Chooses which those are (default: ${default})."`
	GroupBy       string   `enum:"repository,crate" default:"repository" help:"What is never split between training and validation: repository or crate (default: ${default})."`
	Decontaminate []string `sep:"none" placeholder:"FILE" help:"Evaluation data: what shares --ngram words with it is left out. May be repeated."`
	Ngram         int      `default:"13" placeholder:"N" help:"Words of such an overlap (default: ${default})."`

	Licence       []string `sep:"none" placeholder:"SPDX" help:"Keep only documents under this licence, as in --licence MIT. May be repeated; leaves out unknown licences."`
	Extension     []string `sep:"none" placeholder:".EXT" help:"Files wanted from directories (default: .rs). May be repeated."`
	MinBytes      int      `default:"150" placeholder:"N" help:"Shortest document (default: ${default}). Here and below 0 is no limit."`
	MaxBytes      size     `default:"200000" placeholder:"N" help:"Longest document (default: ${default})."`
	MaxLine       int      `default:"500" placeholder:"N" help:"Longest line in bytes (default: ${default})."`
	MaxMeanLine   int      `default:"80" placeholder:"N" help:"Greatest mean length of lines in bytes (default: ${default})."`
	MinLetters    float64  `default:"0.3" placeholder:"F" help:"Least share of letters (default: ${default})."`
	MaxDigits     float64  `default:"0.15" placeholder:"F" help:"Greatest share of digits (default: ${default})."`
	KeepGenerated bool     `help:"Keep files that say a program wrote them."`
	Near          float64  `default:"0.7" placeholder:"F" help:"Similarity from which a document is a copy of an earlier one; above 1: only exact copies (default: ${default})."`
	NoDedup       bool     `help:"Keep copies."`

	ShardTokens size `default:"8M" placeholder:"N" help:"Tokens in a shard (default: ${default})."`
	Threads     int  `env:"NANOCHAT_THREADS" placeholder:"N" help:"Threads (default: the cores this process may use). The result does not depend on it."`
	Force       bool `help:"Replace prepared data in DIR."`
	JSON        bool `name:"json" help:"Print JSON: the manifest without its list of groups."`
}

// Help is the longer help text.
func (*dataPrepareCmd) Help() string {
	return "Filters, removes copies, keeps evaluation data out, splits by crate or repository, and writes token shards, tokenizer.json and manifest.json, " +
		"which says what came from where, under which licence, and what was left out and why."
}

// prepared is what `data prepare --json` prints.
type prepared struct {
	Path      string                 `json:"path"`
	Tokenizer data.TokenizerInfo     `json:"tokenizer"`
	Settings  data.Settings          `json:"settings"`
	Inputs    []data.InputInfo       `json:"inputs"`
	Splits    map[string]*data.Split `json:"splits"`
	Dropped   map[string]data.Count  `json:"dropped"`
	Licences  map[string]data.Count  `json:"licences"`
	Groups    int                    `json:"groups"`
	Warnings  []string               `json:"warnings,omitempty"`
}

// Run prepares.
func (c *dataPrepareCmd) Run(a *app) error {
	threads, err := workers(c.Threads)
	if err != nil {
		return err
	}
	t, err := loadTokenizer(c.Tokenizer)
	if err != nil {
		return err
	}
	o := data.PrepareOptions{
		Inputs: c.Inputs, ValInputs: c.Val, Evaluation: c.Decontaminate, Out: c.Out, Overwrite: c.Force, Tokenizer: t,
		Extensions: c.Extension, Licences: c.Licence, NGram: c.Ngram, GroupBy: c.GroupBy, ValFraction: c.ValFraction, Seed: c.Seed,
		ShardTokens: int(c.ShardTokens), Threads: threads,
		Filter: data.FilterOptions{MinBytes: limit(c.MinBytes), MaxBytes: limit(int(c.MaxBytes)), MaxLine: limit(c.MaxLine),
			MaxMeanLine: limit(c.MaxMeanLine), MinLetters: limit(c.MinLetters), MaxDigits: limit(c.MaxDigits), KeepGenerated: c.KeepGenerated},
		Dedup: data.DedupOptions{Off: c.NoDedup, Near: c.Near},
	}
	if !c.Force {
		if _, err := os.Stat(filepath.Join(c.Out, data.ManifestName)); err == nil {
			return &hinted{fmt.Errorf("output %s holds prepared data", c.Out), "--force replaces it"}
		}
	}
	a.removing(filepath.Join(c.Out, fmt.Sprintf(".*.tmp-%d-*", os.Getpid()))) // shards that are being written
	line := a.counter()
	m, err := data.Prepare(a.ctx, o, func(p data.PrepareProgress) {
		line.show("%d documents, %s; kept %d, %s tokens", p.Documents, bytesText(p.Bytes), p.Kept, countText(p.Tokens))
	})
	line.done()
	if err != nil {
		return err
	}
	// The vocabulary goes along with what it made, so that the directory is complete.
	var out outputFlags
	copied := filepath.Join(c.Out, "tokenizer.json")
	if err := out.write(a, copied, t); err != nil {
		return err
	}
	for _, w := range m.Warnings {
		fmt.Fprintf(a.stderr, "warning: %s\n", w)
	}
	if c.JSON {
		return writeJSON(a.stdout, &prepared{c.Out, m.Tokenizer, m.Settings, m.Inputs, m.Splits, m.Dropped, m.Licences, len(m.Groups), m.Warnings})
	}
	return writePairs(a.stderr, summary(c.Out, m))
}

// limit is a flag's limit as the library wants it, where 0 is the default value and
// less is none.
func limit[T int | float64](v T) T {
	if v == 0 {
		return -1
	}
	return v
}

// summary is a manifest for people.
func summary(dir string, m *data.Manifest) []pair {
	p := []pair{{"wrote", dir}}
	for _, name := range []string{data.Train, data.Val} {
		if s := m.Splits[name]; s != nil && s.Tokens > 0 {
			p = append(p, pair{name, fmt.Sprintf("%s, %s, %s tokens of %.2f bytes, %s", plural(s.Documents, "document"), bytesText(s.Bytes),
				countText(s.Tokens), float64(s.Bytes)/float64(s.Tokens), plural(len(s.Shards), "shard"))})
		}
	}
	p = append(p, pair{"groups", fmt.Sprint(len(m.Groups))})
	for _, r := range slices.Sorted(maps.Keys(m.Dropped)) {
		p = append(p, pair{"left out", fmt.Sprintf("%s: %s, %s", strings.ReplaceAll(r, "_", " "), plural(m.Dropped[r].Documents, "document"), bytesText(m.Dropped[r].Bytes))})
	}
	licences := slices.SortedFunc(maps.Keys(m.Licences), func(a, b string) int {
		if d := m.Licences[b].Bytes - m.Licences[a].Bytes; d != 0 {
			return int(min(max(d, -1), 1))
		}
		return strings.Compare(a, b)
	})
	const most = 12
	for i, l := range licences {
		if i == most {
			p = append(p, pair{"licence", fmt.Sprintf("and %d more, in the manifest", len(licences)-most)})
			break
		}
		p = append(p, pair{"licence", fmt.Sprintf("%s: %s, %s", l, plural(m.Licences[l].Documents, "document"), bytesText(m.Licences[l].Bytes))})
	}
	return p
}
