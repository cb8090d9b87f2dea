package tokenizer

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// asMap returns the metadata of tok as a Source.
func asMap(tok *Tokenizer) Map {
	m := Map{}
	for _, kv := range tok.Metadata(MetadataOptions{}) {
		m[kv.Key] = kv.Value
	}
	return m
}

// same checks that two tokenizers agree on everything that can be asked.
func same(t testing.TB, a, b *Tokenizer) {
	require.Equal(t, a.Vocab(), b.Vocab())
	require.Equal(t, a.vocab.text, b.vocab.text)
	require.Equal(t, a.vocab.kind, b.vocab.kind)
	require.Equal(t, a.role, b.role)
	require.Equal(t, a.Pre(), b.Pre())
	require.Equal(t, a.AddsBOS(), b.AddsBOS())
	r := rand.New(rand.NewPCG(11, 11))
	for range 50 {
		text := randomText(r, 300)
		for _, o := range []EncodeOptions{{}, {AddBOS: true, ParseSpecial: true}} {
			require.Equal(t, a.Encode(nil, text, o), b.Encode(nil, text, o))
		}
	}
}

func TestMetadataRoundTrip(t *testing.T) {
	for _, p := range presplits {
		tok, err := FromMetadata("", asMap(testVocab(t, p.name)))
		require.NoError(t, err)
		tok.ignoreMerges = p.name == "qwen2"
		got, err := FromMetadata("m.gguf", asMap(tok))
		require.NoError(t, err)
		same(t, tok, got)
		require.Equal(t, tok.ignoreMerges, got.ignoreMerges)
		require.Equal(t, tok.Metadata(MetadataOptions{}), got.Metadata(MetadataOptions{}))
	}
	tok := testVocab(t, "nanochat")
	for _, kv := range tok.Metadata(MetadataOptions{ForLlamaCPP: true}) {
		if kv.Key == keyPre {
			require.Equal(t, "qwen2", kv.Value)
		}
	}
}

func TestHFRoundTrip(t *testing.T) {
	for _, p := range presplits {
		tok := testVocab(t, p.name)
		var b bytes.Buffer
		require.NoError(t, tok.WriteHF(&b))
		require.True(t, json.Valid(b.Bytes()))
		got, err := LoadHF("tokenizer.json", b.Bytes())
		require.NoError(t, err)
		same(t, tok, got)
	}
}

// TestIgnoreMerges: with ignore_merges a piece that is a token becomes it even where
// no merges make it.
func TestIgnoreMerges(t *testing.T) {
	tok := testVocab(t, "llama-bpe")
	m := asMap(tok)
	m[keyTokens] = append(m[keyTokens].([]string), "Ġunreachable")
	m[keyTypes] = append(m[keyTypes].([]int32), 1)
	for _, ignore := range []bool{true, false} {
		m[keyIgnoreMerges] = ignore
		got, err := FromMetadata("", m)
		require.NoError(t, err)
		require.Equal(t, ignore, len(got.Encode(nil, " unreachable", EncodeOptions{})) == 1)
	}
	delete(m, keyIgnoreMerges) // llama-bpe has it without saying so
	got, err := FromMetadata("", m)
	require.NoError(t, err)
	require.Len(t, got.Encode(nil, " unreachable", EncodeOptions{}), 1)
}

// TestPreIsRecognised: public BitNet files name no pre-split.
func TestPreIsRecognised(t *testing.T) {
	big, err := NewByteLevel(128256)
	require.NoError(t, err)
	m := asMap(big)
	delete(m, keyPre)
	_, err = FromMetadata("m.gguf", m)
	require.ErrorContains(t, err, "tokenizer.ggml.pre: absent, want one of nanochat, gpt-2, llama-bpe, qwen2")
	m[keyPre] = "default"
	tokens := m[keyTokens].([]string)
	tokens[128000], m[keyTypes].([]int32)[128000] = "<|begin_of_text|>", 3
	got, err := FromMetadata("m.gguf", m)
	require.NoError(t, err)
	require.Equal(t, "llama-bpe", got.Pre())
	tokens[128000] = "x y"
	tokens[256], tokens[50256] = "<|was_endoftext|>", "<|endoftext|>"
	m[keyTypes].([]int32)[50256] = 3
	got, err = FromMetadata("m.gguf", m)
	require.NoError(t, err)
	require.Equal(t, "gpt-2", got.Pre())
}

func TestMetadataErrors(t *testing.T) {
	good := asMap(testVocab(t, "nanochat"))
	tokens, types, merges := good[keyTokens].([]string), good[keyTypes].([]int32), good[keyMerges].([]string)
	with := func(list []string, i int, s string) []string {
		out := append([]string(nil), list...)
		out[i] = s
		return out
	}
	for _, c := range []struct {
		name  string
		key   string
		value any // nil deletes the key
		want  string
	}{
		{"no model", keyModel, nil, "tokenizer.ggml.model: absent"},
		{"model type", keyModel, 7, "a value of type int, want a string"},
		{"model name", keyModel, "bert", `"bert", want gpt2 or llama`},
		{"no tokens", keyTokens, nil, "tokenizer.ggml.tokens: absent"},
		{"empty tokens", keyTokens, []string{}, "no tokens"},
		{"tokens type", keyTokens, []int32{1}, "a value of type []int32, want a list of strings"},
		{"types length", keyTypes, types[1:], "571 types, want 572"},
		{"types range", keyTypes, append([]int32{9}, types[1:]...), "type 9 of token 0, want 1 to 6"},
		{"types negative", keyTypes, append([]int64{-1}, make([]int64, len(types)-1)...), "type -1 of token 0"},
		{"types text", keyTypes, "x", "want a list of integers"},
		{"types nil", keyTypes, any([]string{"a"}), "want a list of integers"},
		{"byte missing", keyTokens, with(tokens, 'A', "zzzzq"), "no token for byte 0x41"},
		{"double token", keyTokens, with(tokens, 400, tokens[300]), "tokens 300 and 400 are both"},
		{"no pre", keyPre, nil, "tokenizer.ggml.pre: absent"},
		{"pre type", keyPre, 1.5, "want a string"},
		{"pre name", keyPre, "tekken", `pre-split "tekken" is not known, want one of nanochat`},
		{"no merges", keyMerges, nil, "tokenizer.ggml.merges: absent"},
		{"merge form", keyMerges, with(merges, 3, "abc"), "element 3: \"abc\", want two tokens"},
		{"merge empty", keyMerges, with(merges, 3, ""), "element 3"},
		{"merge half", keyMerges, with(merges, 3, "a "), "element 3"},
		{"merge alphabet", keyMerges, with(merges, 3, "a 日"), "stands for no byte"},
		{"merge part", keyMerges, with(merges, 3, "qqqqq a"), `its part "qqqqq" is not a token`},
		{"merge result", keyMerges, with(merges, 3, "\u0120 !"), "its result"},
		{"merge twice", keyMerges, with(merges, 3, merges[2]), "listed twice"},
		{"bos range", "tokenizer.ggml.bos_token_id", uint32(1 << 20), "id 1048576, want 0 to 571"},
		{"bos negative", "tokenizer.ggml.bos_token_id", -2, "id -2, want 0 to 571"},
		{"bos type", "tokenizer.ggml.bos_token_id", "x", "want an integer"},
		{"add bos", keyAddBOS, 1, "want true or false"},
		{"ignore", keyIgnoreMerges, "yes", "want true or false"},
	} {
		m := Map{}
		for k, v := range good {
			m[k] = v
		}
		if m[c.key] = c.value; c.value == nil {
			delete(m, c.key)
		}
		_, err := FromMetadata("m.gguf", m)
		var e *Error
		require.ErrorAs(t, err, &e, c.name)
		require.Equal(t, "m.gguf", e.Path, c.name)
		require.Contains(t, err.Error(), c.want, c.name)
		require.True(t, strings.HasPrefix(err.Error(), "tokenizer: m.gguf: "), err.Error())
	}
	// Ids that mean none.
	for _, none := range []any{uint32(math.MaxUint32), int32(-1)} {
		m := asMap(testVocab(t, "nanochat"))
		m["tokenizer.ggml.unknown_token_id"] = none
		tok, err := FromMetadata("", m)
		require.NoError(t, err)
		_, ok := tok.Special(UNK)
		require.False(t, ok)
	}
}

// hfWith returns the tokenizer.json of a small vocabulary with one edit.
func hfWith(t testing.TB, edit func(doc map[string]any)) []byte {
	tok, err := NewByteLevel(MinVocab)
	require.NoError(t, err)
	var b bytes.Buffer
	require.NoError(t, tok.WriteHF(&b))
	var doc map[string]any
	require.NoError(t, json.Unmarshal(b.Bytes(), &doc))
	edit(doc)
	out, err := json.Marshal(doc)
	require.NoError(t, err)
	return out
}

func TestHFErrors(t *testing.T) {
	type obj = map[string]any
	model := func(key string, v any) func(obj) { return func(d obj) { d["model"].(obj)[key] = v } }
	added := func(key string, v any) func(obj) {
		return func(d obj) { d["added_tokens"].([]any)[2].(obj)[key] = v }
	}
	top := func(key string, v any) func(obj) { return func(d obj) { d[key] = v } }
	step := func(kv ...any) obj {
		o := obj{}
		for i := 0; i < len(kv); i += 2 {
			o[kv[i].(string)] = kv[i+1]
		}
		return o
	}
	seq := func(steps ...any) obj { return obj{"type": "Sequence", "pretokenizers": steps} }
	bl := step("type", "ByteLevel", "use_regex", false)
	split := func(re string) obj {
		return step("type", "Split", "behavior", "Isolated", "pattern", obj{"Regex": re})
	}
	for _, c := range []struct {
		edit func(obj)
		want string
	}{
		{top("normalizer", step("type", "NFC")), "normalizer: NFC is not supported"},
		{top("truncation", step("max_length", 5)), "truncation: a value is not supported"},
		{top("novelty", 1), `unknown field "novelty"`},
		{top("model", nil), "model: absent"},
		{model("type", "Unigram"), `model.type: "Unigram" is not supported`},
		{model("dropout", 0.1), "model.dropout: 0.1 is not supported"},
		{model("byte_fallback", true), "model.byte_fallback: true"},
		{model("continuing_subword_prefix", "##"), "model.continuing_subword_prefix"},
		{model("end_of_word_suffix", "</w>"), "model.end_of_word_suffix"},
		{model("vocab", obj{}), "want ids 0 to 15"},
		{model("vocab", 5), `field "vocab" is a number`},
		{model("merges", nil), "model.merges: absent"},
		{model("merges", []any{[]any{"a"}}), "element 0 has 1 parts"},
		{model("merges", []any{1}), "not a list of pairs"},
		{model("merges", []any{"a b"}), `element 0: its result "ab" is not a token`},
		{func(d obj) { d["model"].(obj)["vocab"].(obj)["A"] = 66 }, "have the same id 66"},
		{func(d obj) { d["model"].(obj)["vocab"].(obj)["A"] = -1 }, "has id -1, want ids 0 to 271"},
		{func(d obj) { d["model"].(obj)["vocab"].(obj)["new"] = 999999999 }, "has id 999999999, want ids 0 to 272"},
		{added("single_word", true), "added_tokens[2]: single_word is not supported"},
		{added("rstrip", true), "lstrip and rstrip are not supported"},
		{added("id", 5), "but 258 in model.vocab"},
		{added("content", ""), "empty token"},
		{top("pre_tokenizer", nil), "pre_tokenizer: absent"},
		{top("pre_tokenizer", step("type", "Metaspace")), `pre_tokenizer: "Metaspace" is not supported`},
		{top("pre_tokenizer", step("type", "Digits", "individual_digits", true)), `unknown field "individual_digits"`},
		{top("pre_tokenizer", step("type", "ByteLevel", "add_prefix_space", true)), "add_prefix_space"},
		{top("pre_tokenizer", bl), "use_regex false"},
		{top("pre_tokenizer", seq(split(`\w+`), bl)), `pattern "\\w+" is not supported`},
		{top("pre_tokenizer", seq(bl, bl)), "this sequence is not supported"},
		{top("pre_tokenizer", seq(split(llamaPattern), step("type", "ByteLevel"))), "use_regex true"},
		{top("pre_tokenizer", seq(step("type", "Split", "behavior", "Removed"), bl)), `behavior "Removed"`},
		{top("pre_tokenizer", seq(step("type", "Split", "behavior", "Isolated", "invert", true), bl)), "invert"},
		{top("pre_tokenizer", seq(step("type", "Split", "behavior", "Isolated", "pattern", obj{"String": " "}), bl)), "without a Regex"},
		{top("decoder", nil), "decoder: absent"},
		{top("decoder", step("type", "WordPiece")), `decoder: "WordPiece" is not supported`},
		{top("post_processor", step("type", "BertProcessing")), `post_processor: "BertProcessing" is not supported`},
		{top("post_processor", step("type", "TemplateProcessing", "single", []any{})), "a template other than"},
		{top("post_processor", step("type", "TemplateProcessing", "single", []any{obj{"SpecialToken": obj{"id": "x"}}})), "has no single id"},
	} {
		_, err := LoadHF("tokenizer.json", hfWith(t, c.edit))
		var e *Error
		require.ErrorAs(t, err, &e, c.want)
		require.Contains(t, err.Error(), c.want)
		require.Equal(t, "tokenizer.json", e.Path)
	}
	for text, want := range map[string]string{
		"": "it ends after 0 bytes", "{": "not JSON", "[1]": "want tokenizer.hfFile", "{} {}": "more text after the end",
	} {
		_, err := LoadHF("", []byte(text))
		require.ErrorContains(t, err, want, text)
	}
}

// TestHFMergeForms: both ways of writing merges are read.
func TestHFMergeForms(t *testing.T) {
	for _, merges := range []any{[]string{"a b"}, [][]string{{"a", "b"}}} {
		tok, err := LoadHF("", hfWith(t, func(d map[string]any) {
			d["model"].(map[string]any)["vocab"].(map[string]any)["ab"] = MinVocab
			d["model"].(map[string]any)["merges"] = merges
		}))
		require.NoError(t, err)
		require.Equal(t, []int32{MinVocab, 'c'}, tok.Encode(nil, "abc", EncodeOptions{}))
	}
}

// FuzzLoadHF: any bytes give a tokenizer that round-trips text, or an *Error.
// Long runs: go test -fuzz FuzzLoadHF ./core/tokenizer
func FuzzLoadHF(f *testing.F) {
	f.Add(hfWith(f, func(map[string]any) {}))
	f.Add(hfWith(f, func(d map[string]any) {
		d["model"].(map[string]any)["vocab"].(map[string]any)["ab"] = MinVocab
		d["model"].(map[string]any)["merges"] = []string{"a b"}
	}))
	f.Add([]byte(`{"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"pre_tokenizer":{"type":"ByteLevel"},"decoder":{"type":"ByteLevel"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		tok, err := LoadHF("f", b)
		mustWork(t, tok, err)
	})
}

// mustWork checks what every loaded tokenizer can do.
func mustWork(t *testing.T, tok *Tokenizer, err error) {
	if err != nil {
		var e *Error
		require.ErrorAs(t, err, &e)
		return
	}
	const text = "fn main() {\n    let a = \"häßlich 日本 \xff\"; // 123\n}<|endoftext|>"
	ids := tok.Encode(nil, text, EncodeOptions{ParseSpecial: true})
	for _, id := range ids {
		require.True(t, id >= 0 && int(id) < tok.Vocab())
	}
	if tok.spm == nil {
		require.Equal(t, text, string(tok.Decode(nil, ids, DecodeOptions{})))
	}
	tok.Stops()
	tok.Metadata(MetadataOptions{})
}

// FuzzFromMetadata builds metadata from bytes: any of them give a tokenizer that
// works, or an *Error.
// Long runs: go test -fuzz FuzzFromMetadata ./core/tokenizer
func FuzzFromMetadata(f *testing.F) {
	f.Add("gpt2", "nanochat", "ab\nabc", "a b\nab c", []byte{1, 1}, int64(256), true)
	f.Add("gpt2", "llama-bpe", "<|x|>", "", []byte{3}, int64(0), false)
	f.Add("llama", "default", "<unk>\n▁a\n<0x41>", "", []byte{2, 1, 6}, int64(0), true)
	f.Fuzz(func(t *testing.T, model, pre, tokens, merges string, types []byte, id int64, bytesFirst bool) {
		var list, mergeList []string
		var kinds []int32
		var scores []float32
		if bytesFirst {
			for b := range 256 {
				list, kinds = append(list, string(byteAlphabet.char[b])), append(kinds, 1)
				if model == "llama" {
					list[b], kinds[b] = "<0x"+string([]byte{hexDigits[b>>4], hexDigits[b&15]})+">", 6
				}
			}
		}
		for i, s := range strings.Split(tokens, "\n") {
			list = append(list, s)
			if i < len(types) {
				kinds = append(kinds, int32(types[i]))
			} else {
				kinds = append(kinds, 1)
			}
		}
		for i := range list {
			scores = append(scores, float32(-i))
		}
		if merges != "" {
			mergeList = strings.Split(merges, "\n")
		}
		tok, err := FromMetadata("f", Map{
			keyModel: model, keyPre: pre, keyTokens: list, keyMerges: mergeList, keyTypes: kinds, keyScores: scores,
			"tokenizer.ggml.eos_token_id": id,
		})
		mustWork(t, tok, err)
	})
}

// BenchmarkLoad/N: the time to make a tokenizer of N tokens from metadata.
func BenchmarkLoad(b *testing.B) {
	docs := make([]string, 16)
	for i := range docs {
		docs[i] = randomText(rand.New(rand.NewPCG(81, uint64(i))), 1<<18)
	}
	for _, size := range []int{16384, 65536} {
		tok, err := Train(b.Context(), documents(docs), TrainOptions{VocabSize: size}, nil)
		require.NoError(b, err)
		m := asMap(tok)
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			for b.Loop() {
				_, err := FromMetadata("", m)
				require.NoError(b, err)
			}
		})
	}
}
