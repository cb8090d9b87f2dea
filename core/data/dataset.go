package data

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"sort"
)

// The names of the splits.
const (
	Train = "train"
	Val   = "val"
)

// Dataset is the shards of one split, mapped into memory. It is safe for
// concurrent use and must outlive its loaders.
type Dataset struct {
	shards   []*Shard
	firstDoc []int // index of each shard's first document, and the total
	vocab    Vocabulary
	tokens   int64
	text     int64
	id       [32]byte
}

// OpenOptions says how a dataset is opened.
type OpenOptions struct {
	// SkipVerify leaves out the check of every shard's SHA-256, which reads them
	// whole. Structure is always checked, and ids when they are used.
	SkipVerify bool
}

// Open maps the shards that manifest.json in dir lists for split. Errors are of
// type *Error. Close the dataset after use.
func Open(dir, split string, o OpenOptions) (*Dataset, error) {
	m, err := ReadManifest(dir)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, ManifestName)
	info, ok := m.Splits[split]
	if !ok || len(info.Shards) == 0 {
		var names []string
		for name := range m.Splits {
			names = append(names, name)
		}
		sort.Strings(names)
		return nil, &Error{Path: path, What: fmt.Sprintf("no split %q with documents; there are %q", split, names),
			Hint: "prepare the data with a validation fraction or validation inputs"}
	}
	var shards []*Shard
	fail := func(err error) (*Dataset, error) {
		for _, s := range shards {
			s.Close()
		}
		return nil, err
	}
	for _, want := range info.Shards {
		if want.File != filepath.Base(want.File) {
			return fail(damaged(path, "", "shard %q is not a plain file name", want.File))
		}
		s, err := OpenShard(filepath.Join(dir, want.File))
		if err != nil {
			return fail(err)
		}
		shards = append(shards, s)
		if got := hex.EncodeToString(s.sum[:]); got != want.SHA256 {
			return fail(damaged(s.path, "", "its header says SHA-256 %s, the manifest expects %s", got, want.SHA256))
		}
		if !o.SkipVerify {
			if err := s.Verify(); err != nil {
				return fail(err)
			}
		}
	}
	d, err := NewDataset(shards)
	if err != nil {
		return fail(err)
	}
	return d, nil
}

// NewDataset joins shards of one tokenizer, and owns them if it returns no error.
func NewDataset(shards []*Shard) (*Dataset, error) {
	if len(shards) == 0 {
		return nil, optionError("a dataset needs at least one shard")
	}
	d := &Dataset{shards: shards, firstDoc: make([]int, 1, len(shards)+1), vocab: shards[0].vocab}
	h := sha256.New()
	for _, s := range shards {
		if !s.vocab.equal(&d.vocab) {
			return nil, damaged(s.path, "", "made with tokenizer %x…, but %s with %x…", s.vocab.Hash[:4], shards[0].path, d.vocab.Hash[:4])
		}
		d.firstDoc = append(d.firstDoc, d.firstDoc[len(d.firstDoc)-1]+s.docs)
		d.tokens += int64(s.count)
		d.text += s.text
		h.Write(s.sum[:])
	}
	h.Sum(d.id[:0])
	if d.Docs() > 1<<32-1 {
		return nil, &Error{Path: shards[0].path, What: fmt.Sprintf("%d documents in one dataset; at most 2^32-1", d.Docs())}
	}
	return d, nil
}

// Close unmaps all shards. Close the loaders first.
func (d *Dataset) Close() error {
	var first error
	for _, s := range d.shards {
		if err := s.Close(); first == nil {
			first = err
		}
	}
	return first
}

// Vocabulary is what the shards keep of their tokenizer.
func (d *Dataset) Vocabulary() Vocabulary { return d.vocab }

// Docs is the number of documents.
func (d *Dataset) Docs() int { return d.firstDoc[len(d.firstDoc)-1] }

// Tokens is the number of tokens without BOS and EOS.
func (d *Dataset) Tokens() int64 { return d.tokens }

// TextBytes is the number of bytes of text. TextBytes/Tokens is the mean length
// of a token; bits per byte are nats of all targets / (ln 2 · TextBytes).
func (d *Dataset) TextBytes() int64 { return d.text }

// ID is a SHA-256 that tells datasets apart by their contents.
func (d *Dataset) ID() string { return hex.EncodeToString(d.id[:]) }

// doc finds document i: its shard and its tokens there.
func (d *Dataset) doc(i int) (s *Shard, lo, hi int) {
	k := sort.SearchInts(d.firstDoc, i+1) - 1
	s = d.shards[k]
	lo, hi = s.span(i - d.firstDoc[k])
	return s, lo, hi
}
