package tokenizer

import "slices"

// specialTokens are the special tokens of our own vocabularies. They have the ids
// 256, 257, … in this order, after the 256 bytes, whatever the size of the
// vocabulary; merges follow.
//
//	<|endoftext|>   stands before every document and ends it (BOS and EOS)
//	<|fim_prefix|> text <|fim_suffix|> text <|fim_middle|> text <|endoftext|>
//	<|repo_name|> name <|file_sep|> path, then the text of the file
//	<|system|> text <|end|> <|user|> text <|end|> <|assistant|> text <|end|>
//	<|tool|> text <|end|>   what a tool answered
var specialTokens = [MinVocab - 256]string{
	"<|endoftext|>",
	"<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
	"<|repo_name|>", "<|file_sep|>",
	"<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>",
	"<|pad|>", "<|reserved_0|>", "<|reserved_1|>", "<|reserved_2|>",
}

// MinVocab is the size of the smallest vocabulary of our own: 256 bytes and the
// special tokens.
const MinVocab = 256 + 16

// SpecialTokens returns the texts of the special tokens of our own vocabularies,
// in the order of their ids, which start at 256.
func SpecialTokens() []string { return slices.Clone(specialTokens[:]) }

// newOwn returns a tokenizer of our own form with bytes and special tokens only,
// and room for n tokens.
func newOwn(n, textBytes int) (*Tokenizer, *Error) {
	t := &Tokenizer{vocab: newVocab(n, textBytes), pre: presplitNamed("nanochat"), role: noRoles(), addBOS: true}
	for b := range 256 {
		if err := t.vocab.add(string([]byte{byte(b)}), Normal); err != nil {
			return nil, err
		}
	}
	for _, s := range specialTokens {
		if err := t.vocab.add(s, Control); err != nil {
			return nil, err
		}
	}
	if err := t.vocab.findBytes(); err != nil {
		return nil, err
	}
	t.nameRoles()
	return t, nil
}

// NewByteLevel returns a vocabulary without merges: every byte of a text is one
// token. Ids from MinVocab to size-1 are never made by Encode; they decode to short
// made-up words, so that a model with random weights and any size of vocabulary
// prints text. size must be at least MinVocab.
func NewByteLevel(size int) (*Tokenizer, error) {
	if size < MinVocab || size > 1<<24 {
		return nil, errf("", "a vocabulary of %d tokens, want %d to %d", size, MinVocab, 1<<24)
	}
	t, err := newOwn(size, 256+16*size)
	if err != nil {
		return nil, err
	}
	for i := range size - MinVocab {
		if err := t.vocab.add(madeUpWord(i), Normal); err != nil {
			return nil, err
		}
	}
	t.merges = newMerges(0)
	return t.finish(), nil
}

// madeUpWord returns the i-th of an endless list of different words of two or more
// syllables, with a space before it.
func madeUpWord(i int) string {
	const consonants, vowels = "bdfgklmnprstvz", "aeiou"
	w := []byte{' '}
	for k := 0; k < 2 || i > 0; k++ {
		s := i % (len(consonants) * len(vowels))
		i /= len(consonants) * len(vowels)
		w = append(w, consonants[s/len(vowels)], vowels[s%len(vowels)])
	}
	return string(w)
}
