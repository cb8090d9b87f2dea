package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// The parts of tokenizer.json. Everything that changes ids is named here; what is
// not named is rejected by name.

type hfFile struct {
	Version       json.RawMessage `json:"version"`
	Truncation    json.RawMessage `json:"truncation"`
	Padding       json.RawMessage `json:"padding"`
	AddedTokens   []hfAdded       `json:"added_tokens"`
	Normalizer    json.RawMessage `json:"normalizer"`
	PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
	PostProcessor json.RawMessage `json:"post_processor"`
	Decoder       json.RawMessage `json:"decoder"`
	Model         json.RawMessage `json:"model"`
}

type hfAdded struct {
	ID         int64  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

type hfModel struct {
	Type                    string           `json:"type"`
	Dropout                 float64          `json:"dropout"`
	UnkToken                *string          `json:"unk_token"`
	ContinuingSubwordPrefix string           `json:"continuing_subword_prefix"`
	EndOfWordSuffix         string           `json:"end_of_word_suffix"`
	FuseUnk                 bool             `json:"fuse_unk"`
	ByteFallback            bool             `json:"byte_fallback"`
	IgnoreMerges            bool             `json:"ignore_merges"`
	Vocab                   map[string]int64 `json:"vocab"`
	Merges                  json.RawMessage  `json:"merges"`
}

// hfStep is any pre-tokenizer, post-processor or decoder.
type hfStep struct {
	Type           string            `json:"type"`
	AddPrefixSpace bool              `json:"add_prefix_space"`
	TrimOffsets    bool              `json:"trim_offsets"`
	UseRegex       *bool             `json:"use_regex"`
	Pattern        *hfPattern        `json:"pattern"`
	Behavior       string            `json:"behavior"`
	Invert         bool              `json:"invert"`
	PreTokenizers  []json.RawMessage `json:"pretokenizers"`
	Processors     []json.RawMessage `json:"processors"`
	Decoders       []json.RawMessage `json:"decoders"`
	Single         []hfTemplate      `json:"single"`
	Pair           json.RawMessage   `json:"pair"`
	SpecialTokens  map[string]struct {
		ID     string   `json:"id"`
		IDs    []int64  `json:"ids"`
		Tokens []string `json:"tokens"`
	} `json:"special_tokens"`
}

type hfPattern struct {
	Regex  *string `json:"Regex"`
	String *string `json:"String"`
}

type hfTemplate struct {
	SpecialToken *struct {
		ID     string `json:"id"`
		TypeID int    `json:"type_id"`
	} `json:"SpecialToken"`
	Sequence *struct {
		ID     string `json:"id"`
		TypeID int    `json:"type_id"`
	} `json:"Sequence"`
}

const hintByteLevel = "only byte-level BPE tokenizers (GPT-2, Llama-3, Qwen2 and our own) are supported"

// LoadHF makes a tokenizer from the bytes of a Hugging Face tokenizer.json file.
// path names the file in errors. Errors are of type *Error; a feature that is not
// supported is an error that names it.
//
// The file does not say which special tokens end a text or a turn, or mark the
// parts of fill-in-the-middle: they are found by their usual names.
func LoadHF(path string, b []byte) (*Tokenizer, error) {
	t, err := loadHF(b)
	if err != nil {
		return nil, withPath(err, path)
	}
	return t, nil
}

func loadHF(b []byte) (*Tokenizer, error) {
	var f hfFile
	if err := unmarshal("", b, &f); err != nil {
		return nil, err
	}
	for _, part := range []struct {
		key string
		raw json.RawMessage
	}{{"normalizer", f.Normalizer}, {"truncation", f.Truncation}, {"padding", f.Padding}} {
		if !null(part.raw) {
			return nil, errf(part.key, "%s is not supported, want null", stepName(part.raw)).hint(hintByteLevel)
		}
	}
	var m hfModel
	if null(f.Model) {
		return nil, errf("model", "absent, want a BPE model").hint(hintByteLevel)
	}
	if err := unmarshal("model", f.Model, &m); err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	t := &Tokenizer{role: noRoles(), ignoreMerges: m.IgnoreMerges}
	var err error
	if t.pre, err = hfPre(f.PreTokenizer); err != nil {
		return nil, err
	}
	if err := hfDecoder(f.Decoder); err != nil {
		return nil, err
	}
	if err := t.loadHFVocab(&m, f.AddedTokens); err != nil {
		return nil, err
	}
	list, err := hfMerges(m.Merges)
	if err != nil {
		return nil, err
	}
	if err := t.loadMerges("model.merges", list); err != nil {
		return nil, err
	}
	if err := t.hfPost("post_processor", f.PostProcessor); err != nil {
		return nil, err
	}
	t.finish()
	t.nameRoles()
	return t, nil
}

func (m *hfModel) check() error {
	bad := func(name string, value any) error {
		return errf("model."+name, "%v is not supported", value).hint(hintByteLevel)
	}
	switch {
	case m.Type != "BPE":
		return bad("type", strconv.Quote(m.Type))
	case m.Dropout != 0:
		return bad("dropout", m.Dropout)
	case m.ContinuingSubwordPrefix != "":
		return bad("continuing_subword_prefix", strconv.Quote(m.ContinuingSubwordPrefix))
	case m.EndOfWordSuffix != "":
		return bad("end_of_word_suffix", strconv.Quote(m.EndOfWordSuffix))
	case m.ByteFallback:
		return bad("byte_fallback", m.ByteFallback)
	}
	return nil // unk_token and fuse_unk do nothing where every byte has a token
}

// null reports whether a part is absent or null.
func null(raw json.RawMessage) bool {
	return len(raw) == 0 || bytes.Equal(bytes.TrimSpace(raw), []byte("null"))
}

// stepName returns the type of a part for messages.
func stepName(raw json.RawMessage) string {
	var s struct {
		Type string `json:"type"`
	}
	if json.Unmarshal(raw, &s) == nil && s.Type != "" {
		return s.Type
	}
	return "a value"
}

// unmarshal decodes raw strictly: a field that is not known is an error naming it.
func unmarshal(key string, raw []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if d.InputOffset() < int64(len(raw)) && len(bytes.TrimSpace(raw[d.InputOffset():])) > 0 {
			return errf(key, "more text after the end of the JSON value at byte %d", d.InputOffset())
		}
		return nil
	}
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return errf(key, "not JSON: byte %d: %v", syntax.Offset, err)
	case errors.As(err, &typ):
		return errf(key, "field %q is a %s, want %s", typ.Field, typ.Value, typ.Type)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errf(key, "not JSON: it ends after %d bytes", len(raw))
	}
	return errf(key, "%v", err)
}

// hfPre finds the pre-split that a pre-tokenizer describes: ByteLevel with its own
// pattern, or Split with a known pattern followed by ByteLevel without one.
func hfPre(raw json.RawMessage) (*presplit, error) {
	const key = "pre_tokenizer"
	if null(raw) {
		return nil, errf(key, "absent, want ByteLevel, or Split and ByteLevel").hint(hintByteLevel)
	}
	var s hfStep
	if err := unmarshal(key, raw, &s); err != nil {
		return nil, err
	}
	steps := []hfStep{s}
	if s.Type == "Sequence" {
		steps = make([]hfStep, len(s.PreTokenizers))
		for i := range steps {
			if err := unmarshal(fmt.Sprintf("%s.pretokenizers[%d]", key, i), s.PreTokenizers[i], &steps[i]); err != nil {
				return nil, err
			}
		}
	}
	byteLevel := func(s hfStep, regex bool) error {
		switch {
		case s.AddPrefixSpace:
			return errf(key, "ByteLevel with add_prefix_space is not supported")
		case (s.UseRegex == nil || *s.UseRegex) != regex:
			return errf(key, "ByteLevel with use_regex %v is not supported here", !regex)
		}
		return nil
	}
	switch {
	case len(steps) == 1 && steps[0].Type == "ByteLevel":
		return presplitNamed("gpt-2"), byteLevel(steps[0], true)
	case len(steps) == 2 && steps[0].Type == "Split" && steps[1].Type == "ByteLevel":
		if err := byteLevel(steps[1], false); err != nil {
			return nil, err
		}
		sp := steps[0]
		switch {
		case sp.Behavior != "Isolated":
			return nil, errf(key, "Split with behavior %q is not supported, want Isolated", sp.Behavior)
		case sp.Invert:
			return nil, errf(key, "Split with invert is not supported")
		case sp.Pattern == nil || sp.Pattern.Regex == nil:
			return nil, errf(key, "Split without a Regex pattern is not supported")
		}
		if p := presplitMatching(*sp.Pattern.Regex); p != nil {
			return p, nil
		}
		return nil, errf(key, "Split with the pattern %s is not supported, want that of one of %s",
			quote([]byte(*sp.Pattern.Regex)), presplitNames())
	}
	for _, st := range steps {
		if st.Type != "ByteLevel" && st.Type != "Split" {
			return nil, errf(key, "%q is not supported, want ByteLevel, or Split and ByteLevel", st.Type).hint(hintByteLevel)
		}
	}
	return nil, errf(key, "this sequence is not supported, want ByteLevel, or Split and ByteLevel")
}

func hfDecoder(raw json.RawMessage) error {
	if null(raw) {
		return errf("decoder", "absent, want ByteLevel").hint(hintByteLevel)
	}
	var s hfStep
	if err := unmarshal("decoder", raw, &s); err != nil {
		return err
	}
	if s.Type == "Sequence" && len(s.Decoders) == 1 {
		return hfDecoder(s.Decoders[0])
	}
	if s.Type != "ByteLevel" {
		return errf("decoder", "%q is not supported, want ByteLevel", s.Type).hint(hintByteLevel)
	}
	return nil
}

// hfPost reads the post-processor: ByteLevel changes no ids, a template may put one
// token before the text.
func (t *Tokenizer) hfPost(key string, raw json.RawMessage) error {
	if null(raw) {
		return nil
	}
	var s hfStep
	if err := unmarshal(key, raw, &s); err != nil {
		return err
	}
	switch s.Type {
	case "ByteLevel":
		return nil
	case "Sequence":
		for i, p := range s.Processors {
			if stepName(p) == "Sequence" {
				return errf(key, "a Sequence within a Sequence is not supported")
			}
			if err := t.hfPost(fmt.Sprintf("%s.processors[%d]", key, i), p); err != nil {
				return err
			}
		}
		return nil
	case "TemplateProcessing":
		single := s.Single
		if len(single) > 0 && single[0].SpecialToken != nil {
			tok, ok := s.SpecialTokens[single[0].SpecialToken.ID]
			if !ok || len(tok.IDs) != 1 || tok.IDs[0] < 0 || tok.IDs[0] >= int64(t.Vocab()) {
				return errf(key, "special token %q has no single id below %d", single[0].SpecialToken.ID, t.Vocab())
			}
			if t.addBOS {
				return errf(key, "a second token before the text is not supported")
			}
			t.role[BOS], t.addBOS = int32(tok.IDs[0]), true
			single = single[1:]
		}
		if len(single) != 1 || single[0].Sequence == nil {
			return errf(key, "a template other than [one special token,] text is not supported")
		}
		return nil
	}
	return errf(key, "%q is not supported, want ByteLevel or TemplateProcessing", s.Type).hint(hintByteLevel)
}

// loadHFVocab makes the vocabulary of model.vocab and the added tokens.
func (t *Tokenizer) loadHFVocab(m *hfModel, added []hfAdded) error {
	const key = "model.vocab"
	type entry struct {
		text  string
		kind  Kind
		taken bool
	}
	// Ids must be 0 to n-1: n is known once the new texts among the added ones are.
	n := len(m.Vocab)
	for _, a := range added {
		if _, ok := m.Vocab[a.Content]; !ok {
			n++
		}
	}
	entries := make([]entry, n)
	put := func(key, text string, id int64, k Kind) error {
		if id < 0 || id >= int64(n) {
			return errf(key, "%s has id %d, want ids 0 to %d, each once", quote([]byte(text)), id, n-1)
		}
		e := &entries[id]
		if e.taken && (e.text != text || e.kind != Normal) {
			return errf(key, "%s and %s have the same id %d", quote([]byte(e.text)), quote([]byte(text)), id)
		}
		*e = entry{text, k, true}
		return nil
	}
	for text, id := range m.Vocab {
		if err := put(key, text, id, Normal); err != nil {
			return err
		}
	}
	for i, a := range added {
		key := fmt.Sprintf("added_tokens[%d]", i)
		switch {
		case a.SingleWord:
			return errf(key, "single_word is not supported (token %s)", quote([]byte(a.Content)))
		case a.LStrip || a.RStrip:
			return errf(key, "lstrip and rstrip are not supported (token %s)", quote([]byte(a.Content)))
		case a.Content == "":
			return errf(key, "empty token")
		}
		if id, ok := m.Vocab[a.Content]; ok && id != a.ID {
			return errf(key, "%s has id %d, but %d in %s", quote([]byte(a.Content)), a.ID, id, "model.vocab")
		}
		k := UserDefined
		if a.Special {
			k = Control
		}
		if err := put(key, a.Content, a.ID, k); err != nil {
			return err
		}
	}
	total := 0
	for id, e := range entries {
		if !e.taken {
			return errf(key, "no token has id %d, want ids 0 to %d, each once", id, n-1)
		}
		total += len(e.text)
	}
	v := newVocab(n, total)
	t.vocab = v
	for id, e := range entries {
		var err *Error
		if e.kind == Normal {
			err = v.addMapped(e.text, Normal)
		} else {
			err = v.add(e.text, e.kind)
		}
		if err != nil {
			err.Key = fmt.Sprintf("%s (id %d)", key, id)
			return err
		}
	}
	if err := v.findBytes(); err != nil {
		err.Key = key
		return err
	}
	return nil
}

// hfMerges reads the list of merges in either form: "LEFT RIGHT" or ["LEFT","RIGHT"].
func hfMerges(raw json.RawMessage) ([]string, error) {
	const key = "model.merges"
	if null(raw) {
		return nil, errf(key, "absent, want a list")
	}
	var list []string
	if json.Unmarshal(raw, &list) == nil {
		return list, nil
	}
	var pairs [][]string
	if err := json.Unmarshal(raw, &pairs); err != nil {
		return nil, errf(key, "not a list of pairs: %v", err)
	}
	list = make([]string, len(pairs))
	for i, p := range pairs {
		if len(p) != 2 {
			return nil, errf(key, "element %d has %d parts, want 2", i, len(p))
		}
		list[i] = p[0] + " " + p[1]
	}
	return list, nil
}
