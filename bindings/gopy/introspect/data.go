package introspect

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/tokenizer"
)

// readable is text for Python, whose strings hold no bytes that are not UTF-8.
func readable(b []byte) string { return strings.ToValidUTF8(string(b), "�") }

// Shard describes one file of tokens; nothing of the file stays open.
type Shard struct {
	// Path is the file.
	Path string
	// Documents, Tokens and TextBytes are the sums of the file.
	Documents, Tokens, TextBytes int
	// Vocabulary is the number of different tokens there are; Used is how many of
	// them occur.
	Vocabulary, Used int
	// Shortest, Median and Longest are lengths of documents, in tokens.
	Shortest, Median, Longest int
	// TokenizerHash is the SHA-256 of the tokenizer, in hexadecimal digits.
	TokenizerHash string

	counts []int // of each token
}

// OpenShard reads a shard of prepared data and counts its tokens.
func OpenShard(path string) (shard *Shard, err error) {
	s, err := data.OpenShard(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := s.Close(); err == nil && e != nil {
			shard, err = nil, e
		}
	}()
	v := s.Vocabulary()
	out := &Shard{
		Path: path, Documents: s.Docs(), Tokens: s.Tokens(), TextBytes: int(s.TextBytes()), Vocabulary: len(v.Bytes),
		TokenizerHash: hex.EncodeToString(v.Hash[:]), counts: make([]int, len(v.Bytes)),
	}
	lengths := make([]int, s.Docs())
	var ids []int32
	for i := range lengths {
		ids, _ = s.Doc(ids[:0], i)
		lengths[i] = len(ids)
		for _, id := range ids {
			if id < 0 || int(id) >= len(out.counts) {
				return nil, fmt.Errorf("%s: document %d has token %d of %d", path, i, id, len(out.counts))
			}
			if out.counts[id] == 0 {
				out.Used++
			}
			out.counts[id]++
		}
	}
	if len(lengths) > 0 {
		slices.Sort(lengths)
		out.Shortest, out.Median, out.Longest = lengths[0], lengths[len(lengths)/2], lengths[len(lengths)-1]
	}
	return out, nil
}

// BytesPerToken returns how much text a token stands for, on average.
func (s *Shard) BytesPerToken() float64 {
	if s.Tokens == 0 {
		return 0
	}
	return float64(s.TextBytes) / float64(s.Tokens)
}

// Count returns how often a token occurs.
func (s *Shard) Count(id int) int {
	if id < 0 || id >= len(s.counts) {
		return 0
	}
	return s.counts[id]
}

// Common returns the n tokens that occur most often, the most frequent first.
func (s *Shard) Common(n int) []int {
	ids := make([]int, len(s.counts))
	for i := range ids {
		ids[i] = i
	}
	slices.SortStableFunc(ids, func(a, b int) int { return s.counts[b] - s.counts[a] })
	return ids[:min(max(n, 0), s.Used)]
}

// Document returns the text of one document.
func Document(path, tokenizerPath string, index int) (string, error) {
	t, err := OpenTokenizer(tokenizerPath)
	if err != nil {
		return "", err
	}
	s, err := data.OpenShard(path)
	if err != nil {
		return "", err
	}
	defer s.Close()
	if index < 0 || index >= s.Docs() {
		return "", fmt.Errorf("%s has documents 0 to %d, not %d", path, s.Docs()-1, index)
	}
	if s.Vocabulary().Hash != data.TokenizerHash(t.t) {
		return "", fmt.Errorf("%s was made with another tokenizer than %s", path, tokenizerPath)
	}
	ids, _ := s.Doc(nil, index)
	return readable(t.t.Decode(nil, ids, tokenizer.DecodeOptions{})), nil
}
