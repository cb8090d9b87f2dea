package tokenizer

import (
	"iter"
	"math"
	"reflect"
	"slices"
	"strconv"
)

// Source gives metadata values by key. The values are string, bool, any integer or
// float type, or slices of these; ok is false where the key is absent.
type Source interface {
	Lookup(key string) (value any, ok bool)
}

// Map is a Source made of a map.
type Map map[string]any

// Lookup returns the value of key.
func (m Map) Lookup(key string) (value any, ok bool) {
	value, ok = m[key]
	return value, ok
}

// KV is one metadata entry. Value is a string, bool, uint32, []string, []int32 or
// []float32.
type KV struct {
	Key   string
	Value any
}

// Metadata keys, as in GGUF files.
const (
	keyModel        = "tokenizer.ggml.model"
	keyPre          = "tokenizer.ggml.pre"
	keyTokens       = "tokenizer.ggml.tokens"
	keyTypes        = "tokenizer.ggml.token_type"
	keyScores       = "tokenizer.ggml.scores"
	keyMerges       = "tokenizer.ggml.merges"
	keyAddBOS       = "tokenizer.ggml.add_bos_token"
	keyAddSpace     = "tokenizer.ggml.add_space_prefix"
	keyIgnoreMerges = "nanochat.tokenizer.ignore_merges" // ours: GGUF leaves it to the name of the pre-split
)

// FromMetadata makes a tokenizer from the tokenizer.ggml keys of a GGUF file. path
// names the file in errors. Errors are of type *Error.
//
// Two kinds of file are read: tokenizer.ggml.model "gpt2" (byte-level BPE) and
// "llama" (SentencePiece). A "gpt2" file without tokenizer.ggml.pre, as the public
// BitNet files are, is taken for Llama-3 or GPT-2 where its special tokens stand at
// the places that only these vocabularies have; else it is an error.
func FromMetadata(path string, src Source) (*Tokenizer, error) {
	t, err := fromMetadata(src)
	if err != nil {
		return nil, withPath(err, path)
	}
	return t, nil
}

func fromMetadata(src Source) (*Tokenizer, error) {
	model, err := str(src, keyModel)
	if err != nil {
		return nil, err
	}
	tokens, err := strs(src, keyTokens)
	if err != nil {
		return nil, err
	}
	if len(tokens) == 0 {
		return nil, errf(keyTokens, "no tokens")
	}
	if len(tokens) > math.MaxInt32/2 {
		return nil, errf(keyTokens, "%d tokens, want fewer than 2^30", len(tokens))
	}
	t := &Tokenizer{role: noRoles()}
	for r, keys := range roleKeys {
		for _, key := range keys {
			id, ok, err := integer(src, key)
			if err != nil {
				return nil, err
			}
			if !ok || id == math.MaxUint32 || id == -1 { // both are written for none
				continue
			}
			if id < 0 || id >= int64(len(tokens)) {
				return nil, errf(key, "id %d, want 0 to %d", id, len(tokens)-1)
			}
			if t.role[r] < 0 {
				t.role[r] = int32(id)
			}
		}
	}
	kinds, err := t.kinds(src, len(tokens), model == "llama")
	if err != nil {
		return nil, err
	}
	switch model {
	case "gpt2":
		err = t.loadBPE(src, tokens, kinds)
	case "llama":
		err = t.loadSPM(src, tokens, kinds)
	default:
		err = errf(keyModel, "%q, want gpt2 or llama", model).
			hint("convert a model whose tokenizer is byte-level BPE or SentencePiece BPE")
	}
	if err != nil {
		return nil, err
	}
	addBOS, ok, err := boolean(src, keyAddBOS)
	if err != nil {
		return nil, err
	}
	t.addBOS = addBOS
	if !ok { // what llama.cpp takes it for
		t.addBOS = t.spm != nil || t.pre.name == "llama-bpe"
	}
	t.finish()
	for r := EOT; r < numRoles; r++ { // BOS and EOS are what the file says
		if t.role[r] >= 0 || r == UNK || r == PAD {
			continue
		}
		for _, n := range roleNames[r] {
			if t.role[r] = t.control(n); t.role[r] >= 0 {
				break
			}
		}
	}
	return t, nil
}

// kinds returns the kind of every token. Where the file has none, the tokens with a
// role are control tokens and the others normal.
func (t *Tokenizer) kinds(src Source, n int, isSPM bool) ([]Kind, error) {
	kinds := make([]Kind, n)
	types, ok, err := integers(src, keyTypes)
	if err != nil {
		return nil, err
	}
	if !ok {
		if isSPM {
			return nil, errf(keyTypes, "absent, want the type of each token")
		}
		for i := range kinds {
			kinds[i] = Normal
		}
		for _, id := range t.role {
			if id >= 0 {
				kinds[id] = Control
			}
		}
		return kinds, nil
	}
	if len(types) != n {
		return nil, errf(keyTypes, "%d types, want %d, one for each token", len(types), n)
	}
	for i, k := range types {
		if k < int64(Normal) || k > int64(Byte) {
			return nil, errf(keyTypes, "type %d of token %d, want 1 to 6", k, i)
		}
		kinds[i] = Kind(k)
	}
	return kinds, nil
}

func textLen(tokens []string) int {
	n := 0
	for _, s := range tokens {
		n += len(s)
	}
	return n
}

// at gives the error of element i of the list under key its place.
func (e *Error) at(key string, i int) *Error {
	e.Key = key
	e.What = "element " + strconv.Itoa(i) + ": " + e.What
	return e
}

func (t *Tokenizer) loadBPE(src Source, tokens []string, kinds []Kind) error {
	v := newVocab(len(tokens), textLen(tokens))
	t.vocab = v
	for i, s := range tokens {
		var err *Error
		if k := kinds[i]; k == Normal || k == Byte {
			err = v.addMapped(s, Normal)
		} else {
			err = v.add(s, k)
		}
		if err != nil {
			return err.at(keyTokens, i)
		}
	}
	if err := v.findBytes(); err != nil {
		err.Key = keyTokens
		return err
	}
	pre, err := t.findPre(src)
	if err != nil {
		return err
	}
	t.pre = pre
	ignore, ok, err := boolean(src, keyIgnoreMerges)
	if err != nil {
		return err
	}
	t.ignoreMerges = ignore || !ok && pre.name == "llama-bpe"
	list, err := strs(src, keyMerges)
	if err != nil {
		return err
	}
	return t.loadMerges(keyMerges, list)
}

// loadMerges enters merges given as "LEFT RIGHT" in the printable form.
func (t *Tokenizer) loadMerges(key string, list []string) error {
	t.merges = newMerges(len(list))
	var a, b, buf []byte
	for i, s := range list {
		k := 1 // a part may not be empty
		for k < len(s) && s[k] != ' ' {
			k++
		}
		if k+1 >= len(s) {
			return errf("", "%s, want two tokens with a space between", quote([]byte(s))).at(key, i)
		}
		var okA, okB bool
		a, okA = byteAlphabet.decode(a[:0], s[:k])
		b, okB = byteAlphabet.decode(b[:0], s[k+1:])
		if !okA || !okB {
			return errf("", "%s has a character that stands for no byte", quote([]byte(s))).at(key, i)
		}
		if err := t.vocab.addMerge(t.merges, a, b, buf); err != nil {
			return err.at(key, i)
		}
	}
	return nil
}

// findPre decides how text is cut.
func (t *Tokenizer) findPre(src Source) (*presplit, error) {
	v, ok := src.Lookup(keyPre)
	name, isString := v.(string)
	if ok && !isString {
		return nil, errf(keyPre, "a value of type %T, want a string", v)
	}
	if ok && name != "default" && name != "" {
		if p := presplitNamed(name); p != nil {
			return p, nil
		}
		return nil, errf(keyPre, "pre-split %q is not known, want one of %s", name, presplitNames()).
			hint("it says how text is cut before merging; another one gives other tokens")
	}
	special := func(id int32, text string) bool { return string(t.Piece(id)) == text }
	switch {
	case special(128000, "<|begin_of_text|>"):
		return presplitNamed("llama-bpe"), nil
	case special(50256, "<|endoftext|>"):
		return presplitNamed("gpt-2"), nil
	}
	return nil, errf(keyPre, "absent, want one of %s", presplitNames()).
		hint("the file does not say how text is cut before merging; write it again with a converter that does")
}

func (t *Tokenizer) loadSPM(src Source, tokens []string, kinds []Kind) error {
	scores, err := floats(src, keyScores)
	if err != nil {
		return err
	}
	if len(scores) != len(tokens) {
		return errf(keyScores, "%d scores, want %d, one for each token", len(scores), len(tokens))
	}
	v := newVocab(len(tokens), textLen(tokens))
	s := &spm{vocab: v, rank: make([]uint32, len(tokens)), unk: t.role[UNK], addSpace: true}
	t.vocab, t.spm = v, s
	for b := range v.byteID {
		v.byteID[b] = -1
	}
	for i, text := range tokens {
		if scores[i] != scores[i] {
			return errf(keyScores, "element %d: not a number", i)
		}
		if err := v.addSPM(text, kinds[i]); err != nil {
			return err.at(keyTokens, i)
		}
		if kinds[i] == Byte {
			v.byteID[v.piece(int32(i))[0]] = int32(i)
		}
		s.rank[i] = scoreRank(scores[i])
	}
	for b, id := range v.byteID {
		if id < 0 && s.unk < 0 {
			return errf(keyTokens, "neither a token <0x%02X> nor an unknown token, want one for text that is no token", b)
		}
	}
	addSpace, ok, err := boolean(src, keyAddSpace)
	if err != nil {
		return err
	}
	if ok {
		s.addSpace = addSpace
	}
	return nil
}

// str returns a string value that must be there.
func str(src Source, key string) (string, error) {
	v, ok := src.Lookup(key)
	if !ok {
		return "", errf(key, "absent, want a string").hint("the file has no tokenizer")
	}
	s, ok := v.(string)
	if !ok {
		return "", errf(key, "a value of type %T, want a string", v)
	}
	return s, nil
}

// strs returns a list of strings that must be there.
func strs(src Source, key string) ([]string, error) {
	v, ok := src.Lookup(key)
	if !ok {
		return nil, errf(key, "absent, want a list of strings").hint("the file has no complete tokenizer")
	}
	if s, ok := v.([]string); ok {
		return s, nil
	}
	return nil, errf(key, "a value of type %T, want a list of strings", v)
}

func boolean(src Source, key string) (value, ok bool, err error) {
	v, ok := src.Lookup(key)
	if !ok {
		return false, false, nil
	}
	b, isBool := v.(bool)
	if !isBool {
		return false, false, errf(key, "a value of type %T, want true or false", v)
	}
	return b, true, nil
}

func integer(src Source, key string) (value int64, ok bool, err error) {
	v, ok := src.Lookup(key)
	if !ok {
		return 0, false, nil
	}
	switch x := reflect.ValueOf(v); {
	case x.IsValid() && x.CanInt():
		return x.Int(), true, nil
	case x.IsValid() && x.CanUint() && x.Uint() <= math.MaxInt64:
		return int64(x.Uint()), true, nil
	}
	return 0, false, errf(key, "a value of type %T, want an integer", v)
}

// integers returns a list of integers of any type.
func integers(src Source, key string) (list []int64, ok bool, err error) {
	v, ok := src.Lookup(key)
	if !ok {
		return nil, false, nil
	}
	x := reflect.ValueOf(v)
	bad := errf(key, "a value of type %T, want a list of integers", v)
	if !x.IsValid() || x.Kind() != reflect.Slice {
		return nil, false, bad
	}
	list = make([]int64, x.Len())
	for i := range list {
		switch e := x.Index(i); {
		case e.CanInt():
			list[i] = e.Int()
		case e.CanUint():
			list[i] = int64(min(e.Uint(), math.MaxInt64))
		default:
			return nil, false, bad
		}
	}
	return list, true, nil
}

func floats(src Source, key string) ([]float32, error) {
	v, ok := src.Lookup(key)
	if !ok {
		return nil, errf(key, "absent, want a list of numbers")
	}
	switch x := v.(type) {
	case []float32:
		return x, nil
	case []float64:
		list := make([]float32, len(x))
		for i := range x {
			list[i] = float32(x[i])
		}
		return list, nil
	}
	return nil, errf(key, "a value of type %T, want a list of numbers", v)
}

// MetadataOptions says for whom metadata are written.
type MetadataOptions struct {
	// ForLlamaCPP writes, in place of the nanochat pre-split, the most similar one
	// that llama.cpp knows. Such a file loads there; some texts then become other
	// tokens that stand for the same text.
	ForLlamaCPP bool
}

// Metadata returns the entries that a GGUF file needs for FromMetadata to make the
// same tokenizer again, in a fixed order.
func (t *Tokenizer) Metadata(o MetadataOptions) []KV {
	v := t.vocab
	tokens := make([]string, v.len())
	types := make([]int32, v.len())
	for i := range tokens {
		tokens[i], types[i] = t.tokenText(int32(i)), int32(v.kind[i])
	}
	var kv []KV
	put := func(key string, value any) { kv = append(kv, KV{key, value}) }
	if t.spm != nil {
		scores := make([]float32, v.len())
		for i, r := range t.spm.rank {
			scores[i] = rankScore(r)
		}
		put(keyModel, "llama")
		put(keyPre, "default")
		put(keyTokens, tokens)
		put(keyScores, scores)
		put(keyTypes, types)
		put(keyAddSpace, t.spm.addSpace)
	} else {
		pre := t.pre.name
		if o.ForLlamaCPP {
			pre = t.pre.nearest
		}
		put(keyModel, "gpt2")
		put(keyPre, pre)
		put(keyTokens, tokens)
		put(keyTypes, types)
		put(keyMerges, t.mergeTexts())
		put(keyIgnoreMerges, t.ignoreMerges)
	}
	for r, id := range t.role {
		if id >= 0 {
			put(roleKeys[r][0], uint32(id))
		}
	}
	put(keyAddBOS, t.addBOS)
	return kv
}

// Pairs is Metadata as keys and values, which gguf.Collect takes.
func (t *Tokenizer) Pairs(o MetadataOptions) iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		for _, kv := range t.Metadata(o) {
			if !yield(kv.Key, kv.Value) {
				return
			}
		}
	}
}

// tokenText returns token id as files spell it.
func (t *Tokenizer) tokenText(id int32) string {
	p, k := t.vocab.piece(id), t.vocab.kind[id]
	switch {
	case t.spm != nil && k == Byte:
		return "<0x" + string([]byte{hexDigits[p[0]>>4], hexDigits[p[0]&15]}) + ">"
	case t.spm != nil && k == Normal:
		return string(replaceSpaces(p))
	case t.spm == nil && k == Normal:
		return string(byteAlphabet.encode(nil, p))
	}
	return string(p)
}

const hexDigits = "0123456789ABCDEF"

// replaceSpaces puts spaceMark for every space.
func replaceSpaces(p []byte) []byte {
	var out []byte
	for _, b := range p {
		if b == ' ' {
			out = append(out, spaceMark...)
		} else {
			out = append(out, b)
		}
	}
	return out
}

// mergeTexts returns the merges by rank in the form "LEFT RIGHT".
func (t *Tokenizer) mergeTexts() []string {
	list := make([]string, len(t.merges.list))
	var buf []byte
	for i, pair := range t.merges.list {
		buf = byteAlphabet.encode(buf[:0], t.vocab.piece(int32(pair>>32)))
		buf = append(buf, ' ')
		buf = byteAlphabet.encode(buf, t.vocab.piece(int32(uint32(pair))))
		list[i] = string(slices.Clone(buf))
	}
	return list
}
