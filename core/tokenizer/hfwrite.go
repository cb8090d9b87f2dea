package tokenizer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// SaveHF makes the file path of what WriteHF writes; it appears when it is complete.
func (t *Tokenizer) SaveHF(path string) error {
	return fsx.WriteAtomic(fsx.OS(), path, t.WriteHF)
}

// WriteHF writes a tokenizer.json file with which the `tokenizers` package gives the
// same ids: with special tokens parsed, and with BOS first if AddsBOS.
func (t *Tokenizer) WriteHF(w io.Writer) error {
	if t.spm != nil {
		return errf("", "a SentencePiece vocabulary cannot be written as tokenizer.json").
			hint("write it as GGUF metadata")
	}
	b := bufio.NewWriter(w)
	v := t.vocab
	fmt.Fprint(b, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [")
	sep := "\n"
	for id := range v.len() {
		k := v.kind[id]
		if k != Control && k != UserDefined {
			continue
		}
		fmt.Fprintf(b, "%s    {\"id\": %d, \"content\": %s, \"single_word\": false, \"lstrip\": false, "+
			"\"rstrip\": false, \"normalized\": false, \"special\": %v}", sep, id, jsonString(t.tokenText(int32(id))), k == Control)
		sep = ",\n"
	}
	fmt.Fprint(b, "\n  ],\n  \"normalizer\": null,\n  \"pre_tokenizer\": ")
	if t.pre.name == "gpt-2" {
		fmt.Fprint(b, `{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}`)
	} else {
		fmt.Fprintf(b, `{"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": %s}, "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
  ]}`, jsonString(t.pre.pattern))
	}
	fmt.Fprint(b, ",\n  \"post_processor\": ")
	byteLevel := `{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true}`
	if t.AddsBOS() {
		bos := t.role[BOS]
		text := jsonString(t.tokenText(bos))
		fmt.Fprintf(b, `{"type": "Sequence", "processors": [
    %s,
    {"type": "TemplateProcessing",
     "single": [{"SpecialToken": {"id": %s, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
     "pair": [{"SpecialToken": {"id": %s, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, `+
			`{"SpecialToken": {"id": %s, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
     "special_tokens": {%s: {"id": %s, "ids": [%d], "tokens": [%s]}}}
  ]}`, byteLevel, text, text, text, text, text, bos, text)
	} else {
		fmt.Fprint(b, byteLevel)
	}
	fmt.Fprintf(b, ",\n  \"decoder\": %s,\n  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"+
		"    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n"+
		"    \"byte_fallback\": false,\n    \"ignore_merges\": %v,\n    \"vocab\": {", byteLevel, t.ignoreMerges)
	sep = "\n"
	for id := range v.len() {
		fmt.Fprintf(b, "%s      %s: %d", sep, jsonString(t.tokenText(int32(id))), id)
		sep = ",\n"
	}
	fmt.Fprint(b, "\n    },\n    \"merges\": [")
	sep = "\n"
	for _, m := range t.mergeTexts() {
		fmt.Fprintf(b, "%s      %s", sep, jsonString(m))
		sep = ",\n"
	}
	fmt.Fprint(b, "\n    ]\n  }\n}\n")
	if err := b.Flush(); err != nil {
		return fmt.Errorf("tokenizer: writing tokenizer.json: %w", err)
	}
	return nil
}

// jsonString returns s as a JSON string without HTML escapes.
func jsonString(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(s) != nil { // a string always encodes
		return `""`
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}
