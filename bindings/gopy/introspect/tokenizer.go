package introspect

import (
	"fmt"

	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/core/train"
)

// Tokenizer is a vocabulary with the rules for using it.
type Tokenizer struct{ t *tokenizer.Tokenizer }

// OpenTokenizer reads the vocabulary of a tokenizer.json or of a model file.
func OpenTokenizer(path string) (*Tokenizer, error) {
	t, err := train.OpenTokenizer(path)
	if err != nil {
		return nil, err
	}
	return &Tokenizer{t}, nil
}

// Size returns the number of tokens. Ids are 0 to Size-1.
func (t *Tokenizer) Size() int { return t.t.Vocab() }

// Split returns the name of the rule by which text is cut before it is merged.
func (t *Tokenizer) Split() string { return t.t.Pre() }

// Encode returns the ids of a text, without a token that marks its beginning. The
// text of special tokens is text like any other.
func (t *Tokenizer) Encode(text string) []int {
	ids := t.t.Encode(nil, text, tokenizer.EncodeOptions{})
	out := make([]int, len(ids))
	for i, id := range ids {
		out[i] = int(id)
	}
	return out
}

// Decode returns the text of ids. Bytes that are not UTF-8 become U+FFFD.
func (t *Tokenizer) Decode(ids []int) (string, error) {
	in := make([]int32, len(ids))
	for i, id := range ids {
		if err := t.check(id); err != nil {
			return "", err
		}
		in[i] = int32(id)
	}
	return readable(t.t.Decode(nil, in, tokenizer.DecodeOptions{})), nil
}

// Token returns the text of one token. Bytes that are not UTF-8 become U+FFFD.
func (t *Tokenizer) Token(id int) (string, error) {
	if err := t.check(id); err != nil {
		return "", err
	}
	return readable(t.t.Piece(int32(id))), nil
}

// IsSpecial returns whether a token is no text, such as the end of a document.
func (t *Tokenizer) IsSpecial(id int) bool {
	return t.check(id) == nil && t.t.Kind(int32(id)) == tokenizer.Control
}

// Find returns the id of the token with exactly this text, -1 if there is none.
func (t *Tokenizer) Find(text string) int {
	if id, ok := t.t.ID(text); ok {
		return int(id)
	}
	return -1
}

// Stops returns the ids that end a text.
func (t *Tokenizer) Stops() []int {
	var out []int
	for _, id := range t.t.Stops() {
		out = append(out, int(id))
	}
	return out
}

func (t *Tokenizer) check(id int) error {
	if id < 0 || id >= t.t.Vocab() {
		return fmt.Errorf("no token %d; ids are 0 to %d", id, t.t.Vocab()-1)
	}
	return nil
}
