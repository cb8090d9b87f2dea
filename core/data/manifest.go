package data

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// ManifestName is the file that makes a directory of shards a dataset.
const ManifestName = "manifest.json"

const manifestVersion = 1

// Manifest says where prepared data came from, under which licences, what was
// left out and why. It has no dates: the same inputs give the same manifest.
type Manifest struct {
	Version   int               `json:"version"`
	Tokenizer TokenizerInfo     `json:"tokenizer"`
	Settings  Settings          `json:"settings"`
	Inputs    []InputInfo       `json:"inputs"`
	Splits    map[string]*Split `json:"splits"`
	// Dropped counts what was left out, by reason.
	Dropped map[string]Count `json:"dropped"`
	// Licences counts what was kept; "unknown" where no licence was found.
	Licences map[string]Count `json:"licences"`
	Groups   []Group          `json:"groups"`
	Warnings []string         `json:"warnings,omitempty"`
}

// TokenizerInfo names the tokenizer of the shards.
type TokenizerInfo struct {
	SHA256 string `json:"sha256"`
	Vocab  int    `json:"vocab"`
}

// Settings are the options that decided what was kept.
type Settings struct {
	Seed        uint64        `json:"seed"`
	ValFraction float64       `json:"val_fraction"`
	GroupBy     string        `json:"group_by"`
	Extensions  []string      `json:"extensions"`
	Licences    []string      `json:"licences,omitempty"`
	Filter      FilterOptions `json:"filter"`
	Dedup       DedupOptions  `json:"dedup"`
	NGram       int           `json:"ngram"`
	ShardTokens int           `json:"shard_tokens"`
}

// InputInfo is one input as it was read.
type InputInfo struct {
	Path string `json:"path"`
	// Use is "train", "val" or "evaluation".
	Use       string `json:"use"`
	Documents int    `json:"documents"`
	Bytes     int64  `json:"bytes"`
	// SHA256 covers the path and the text of every document, in order.
	SHA256 string `json:"sha256"`
}

// Count is a number of documents and the bytes of their text.
type Count struct {
	Documents int   `json:"documents"`
	Bytes     int64 `json:"bytes"`
}

func (c *Count) add(bytes int) {
	c.Documents++
	c.Bytes += int64(bytes)
}

// Split is the sums and the shards of one split.
type Split struct {
	Documents int         `json:"documents"`
	Bytes     int64       `json:"bytes"`
	Tokens    int64       `json:"tokens"`
	Shards    []ShardInfo `json:"shards"`
}

// ShardInfo is one shard; SHA256 is that in its header.
type ShardInfo struct {
	File      string `json:"file"`
	SHA256    string `json:"sha256"`
	Documents int    `json:"documents"`
	Tokens    int64  `json:"tokens"`
	Bytes     int64  `json:"bytes"`
}

// Group is a crate or repository of which something was kept.
type Group struct {
	Name      string `json:"name"`
	Split     string `json:"split"`
	Licence   string `json:"licence"`
	Documents int    `json:"documents"`
	Bytes     int64  `json:"bytes"`
}

// ReadManifest reads the manifest in dir. Errors are of type *Error.
func ReadManifest(dir string) (*Manifest, error) {
	path := filepath.Join(dir, ManifestName)
	b, err := fsx.ReadFile(fsx.OS(), path, 1<<30)
	if err != nil {
		return nil, fileError(path, err, "a directory of prepared data has this file: run nanochat data prepare")
	}
	return parseManifest(path, b)
}

func parseManifest(path string, b []byte) (*Manifest, error) {
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&m); err != nil {
		return nil, damaged(path, fmt.Sprintf("byte %d", dec.InputOffset()), "not a manifest: %v", err)
	}
	if m.Version != manifestVersion {
		return nil, damaged(path, "", "version %d; this program reads version %d", m.Version, manifestVersion)
	}
	for name, s := range m.Splits {
		if s == nil {
			return nil, damaged(path, "", "split %q is null", name)
		}
	}
	return &m, nil
}

func (m *Manifest) encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	return append(b, '\n'), err
}
