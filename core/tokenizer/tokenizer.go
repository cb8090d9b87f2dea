package tokenizer

import "slices"

// Role is a task that one token of a vocabulary may have.
type Role uint8

// The roles.
const (
	BOS       Role = iota // stands before a text
	EOS                   // ends a text
	EOT                   // ends a turn of a conversation
	UNK                   // stands for what cannot be expressed
	PAD                   // fills a batch
	SEP                   // stands between texts
	FIMPrefix             // stands before the text before a gap
	FIMSuffix             // stands before the text after a gap
	FIMMiddle             // stands before the text of a gap
	FIMPad                // fills a gap
	FIMRepo               // stands before the name of a repository
	FIMSep                // stands between files
	numRoles
)

// roleKeys are the metadata keys of the roles, the one to write first.
var roleKeys = [numRoles][]string{
	BOS:       {"tokenizer.ggml.bos_token_id"},
	EOS:       {"tokenizer.ggml.eos_token_id"},
	EOT:       {"tokenizer.ggml.eot_token_id"},
	UNK:       {"tokenizer.ggml.unknown_token_id"},
	PAD:       {"tokenizer.ggml.padding_token_id"},
	SEP:       {"tokenizer.ggml.seperator_token_id"}, // spelled so by its authors
	FIMPrefix: {"tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"},
	FIMSuffix: {"tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"},
	FIMMiddle: {"tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"},
	FIMPad:    {"tokenizer.ggml.fim_pad_token_id"},
	FIMRepo:   {"tokenizer.ggml.fim_rep_token_id"},
	FIMSep:    {"tokenizer.ggml.fim_sep_token_id"},
}

// roleNames are the texts by which a special token is given a role where the file
// does not say it, the likeliest first.
var roleNames = [numRoles][]string{
	BOS:       {"<|begin_of_text|>", "<|startoftext|>", "<s>", "<|endoftext|>"},
	EOS:       {"<|end_of_text|>", "<|endoftext|>", "</s>"},
	EOT:       {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|endofturn|>"},
	UNK:       {"<unk>", "<|unk|>"},
	PAD:       {"<|pad|>", "<pad>", "<|finetune_right_pad_id|>"},
	FIMPrefix: {"<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<PRE>"},
	FIMSuffix: {"<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "<SUF>"},
	FIMMiddle: {"<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<MID>"},
	FIMPad:    {"<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<PAD>"},
	FIMRepo:   {"<|repo_name|>", "<reponame>", "<fim_repo>"},
	FIMSep:    {"<|file_sep|>"},
}

// endNames are special tokens after which a model has nothing more to say.
var endNames = []string{
	"<|endoftext|>", "<|end_of_text|>", "</s>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>",
	"<|endofturn|>", "<end_of_turn>",
}

// Tokenizer is a vocabulary with the rules for using it.
type Tokenizer struct {
	vocab  *vocab
	merges *merges
	pre    *presplit
	spm    *spm // not nil for SentencePiece vocabularies, which have no pre and merges
	class  *classTable

	// ignoreMerges says that a piece that is a token becomes that token, even if
	// merges would not make it.
	ignoreMerges bool
	addBOS       bool
	special      specials
	role         [numRoles]int32 // -1 where there is none

	// idle holds encoders for reuse; its capacity bounds the memory they keep.
	idle chan *encoder
}

// maxIdle is the number of encoders a Tokenizer keeps for reuse.
const maxIdle = 16

// finish completes a tokenizer whose vocabulary, merges and roles are set.
func (t *Tokenizer) finish() *Tokenizer {
	t.class = classes()
	t.idle = make(chan *encoder, maxIdle)
	v := t.vocab
	for id := range v.len() {
		if k := v.kind[id]; k == Control || k == UserDefined {
			t.special.add(v.piece(int32(id)), int32(id), k == Control)
		}
	}
	return t
}

// nameRoles gives the roles that are still free to special tokens by their text.
func (t *Tokenizer) nameRoles() {
	for r, names := range roleNames {
		for _, n := range names {
			if t.role[r] >= 0 {
				break
			}
			t.role[r] = t.control(n)
		}
	}
}

// control returns the id of the control token with this text, or -1.
func (t *Tokenizer) control(text string) int32 {
	v := t.vocab
	for id, k := range v.kind {
		if k == Control && string(v.piece(int32(id))) == text {
			return int32(id)
		}
	}
	return -1
}

func noRoles() (r [numRoles]int32) {
	for i := range r {
		r[i] = -1
	}
	return r
}

// Vocab returns the number of tokens. Ids are 0 to Vocab()-1.
func (t *Tokenizer) Vocab() int { return t.vocab.len() }

// Piece returns the bytes that token id stands for, nil where there is no such
// token. They are not always valid UTF-8. The caller must not change them.
func (t *Tokenizer) Piece(id int32) []byte {
	if id < 0 || int(id) >= t.vocab.len() {
		return nil
	}
	return t.vocab.piece(id)
}

// Kind returns what token id is for, 0 where there is no such token.
func (t *Tokenizer) Kind(id int32) Kind {
	if id < 0 || int(id) >= t.vocab.len() {
		return 0
	}
	return t.vocab.kind[id]
}

// ID returns the token with exactly this text, be it special or not.
func (t *Tokenizer) ID(text string) (id int32, ok bool) {
	if id := t.control(text); id >= 0 {
		return id, true
	}
	id = t.vocab.findString(text)
	return id, id >= 0
}

// Special returns the token that has a role; ok is false where none has it.
func (t *Tokenizer) Special(r Role) (id int32, ok bool) {
	if r >= numRoles || t.role[r] < 0 {
		return -1, false
	}
	return t.role[r], true
}

// AddsBOS reports whether the vocabulary asks for BOS before every text. Encode
// adds it only when its options say so.
func (t *Tokenizer) AddsBOS() bool { return t.addBOS && t.role[BOS] >= 0 }

// Pre returns the name of the pre-split, as in tokenizer.ggml.pre. It is "default"
// for SentencePiece vocabularies.
func (t *Tokenizer) Pre() string {
	if t.pre == nil {
		return "default"
	}
	return t.pre.name
}

// Stops returns the ids after which generation ends: EOS, EOT and control tokens
// known by name to end a text or a turn; ascending.
func (t *Tokenizer) Stops() []int32 {
	var ids []int32
	for _, r := range []Role{EOS, EOT} {
		if id, ok := t.Special(r); ok {
			ids = append(ids, id)
		}
	}
	for _, n := range endNames {
		if id := t.control(n); id >= 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
