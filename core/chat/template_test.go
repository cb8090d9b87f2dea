package chat

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/tokenizer"
)

// vocabulary is the bytes and the tokens given, of one kind; the first two are BOS and EOS
// if roles says so.
func vocabulary(t testing.TB, kind tokenizer.Kind, roles, addBOS bool, tokens ...string) *tokenizer.Tokenizer {
	t.Helper()
	bytes, err := tokenizer.NewByteLevel(tokenizer.MinVocab)
	require.NoError(t, err)
	src := tokenizer.Map{}
	for _, kv := range bytes.Metadata(tokenizer.MetadataOptions{}) {
		if !strings.HasSuffix(kv.Key, "_token_id") {
			src[kv.Key] = kv.Value
		}
	}
	texts := src["tokenizer.ggml.tokens"].([]string)[:256]
	kinds := src["tokenizer.ggml.token_type"].([]int32)[:256]
	for i, s := range tokens {
		texts = append(slices.Clip(texts), s)
		k := int32(kind)
		if i < 2 && roles {
			k = int32(tokenizer.Control)
		}
		kinds = append(slices.Clip(kinds), k)
	}
	src["tokenizer.ggml.tokens"], src["tokenizer.ggml.token_type"] = texts, kinds
	src["tokenizer.ggml.add_bos_token"] = addBOS
	if roles {
		src["tokenizer.ggml.bos_token_id"], src["tokenizer.ggml.eos_token_id"] = uint32(256), uint32(257)
	}
	tok, err := tokenizer.FromMetadata("test", src)
	require.NoError(t, err)
	return tok
}

// like is a model with a vocabulary and a template and nothing else.
func like(tok *tokenizer.Tokenizer, jinja string) *Model {
	m := &Model{tok: tok}
	m.info.template, m.info.foreign = ownTemplate("", jinja)
	return m
}

// families are the vocabularies and a part of the Jinja templates of the models that the
// formats come from, with a conversation as their documentation writes it.
var families = map[string]struct {
	tokens []string // BOS and EOS first
	addBOS bool
	jinja  string
	want   string
	stops  []string
}{
	// https://huggingface.co/microsoft/bitnet-b1.58-2B-4T
	"bitnet": {
		tokens: []string{"<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"}, addBOS: true,
		jinja: "{% for message in messages %}{% set content = message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}",
		want:  "<|begin_of_text|>System: Be brief.<|eot_id|>User: Hi!<|eot_id|>Assistant: Hello.<|eot_id|>User: Why?<|eot_id|>Assistant: ",
	},
	// https://github.com/openai/openai-python/blob/v0.28.1/chatml.md, and Qwen2
	"chatml": {
		tokens: []string{"<|endoftext|>", "<|im_end|>", "<|im_start|>"},
		jinja:  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
		want: "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n" +
			"<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
	},
	// https://ai.google.dev/gemma/docs/core/prompt-structure
	"gemma": {
		tokens: []string{"<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"}, addBOS: true,
		jinja: "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
		want: "<bos><start_of_turn>user\nBe brief.\n\nHi!<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n" +
			"<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n",
	},
	// https://github.com/meta-llama/llama/blob/main/llama/generation.py and
	// https://huggingface.co/blog/llama2#how-to-prompt-llama-2
	"llama2": {
		tokens: []string{"<s>", "</s>"}, addBOS: true,
		jinja: "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}",
		want:  "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi! [/INST] Hello. </s><s>[INST] Why? [/INST]",
		stops: []string{"[INST]"},
	},
	// https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/
	"llama3": {
		tokens: []string{"<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}, addBOS: true,
		jinja: "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}",
		want: "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>" +
			"<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>" +
			"<|start_header_id|>assistant<|end_header_id|>\n\n",
	},
	// core/tokenizer, specialTokens
	"nanochat": {
		tokens: []string{"<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"}, addBOS: true,
		want: "<|endoftext|><|system|>Be brief.<|end|><|user|>Hi!<|end|><|assistant|>Hello.<|end|><|user|>Why?<|end|><|assistant|>",
	},
	// https://huggingface.co/microsoft/Phi-3-mini-4k-instruct#chat-format
	"phi3": {
		tokens: []string{"<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"},
		jinja:  "{% for message in messages %}{% if message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% else %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{{ eos_token }}",
		want:   "<|system|>\nBe brief.<|end|>\n<|user|>\nHi!<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nWhy?<|end|>\n<|assistant|>\n",
	},
	// https://huggingface.co/HuggingFaceH4/zephyr-7b-beta
	"zephyr": {
		tokens: []string{"<s>", "</s>"},
		jinja:  "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% endif %}{% endfor %}",
		want:   "<|system|>\nBe brief.</s>\n<|user|>\nHi!</s>\n<|assistant|>\nHello.</s>\n<|user|>\nWhy?</s>\n<|assistant|>\n",
		stops:  []string{"<|system|>", "<|user|>", "<|assistant|>"},
	},
}

var conversation = []Message{{RoleSystem, "Be brief."}, {RoleUser, "Hi!"}, {RoleAssistant, "Hello."}, {RoleUser, "Why?"}}

// TestFormats compares the ids with those of the text in the documentation, its tokens
// parsed, and finds the format by the model's own template.
func TestFormats(t *testing.T) {
	require.Equal(t, "plain", Templates()[0])
	for _, name := range Templates()[1:] {
		f, ok := families[name]
		require.True(t, ok, "%s has no test", name)
		m := like(vocabulary(t, tokenizer.Control, true, f.addBOS, f.tokens...), f.jinja)
		if f.jinja != "" {
			require.NotNil(t, m.info.template, name)
			require.Equal(t, name, m.info.template.name)
			// In the form that some files have it: line ends as \n, other quotes.
			other, _ := ownTemplate("", strings.NewReplacer("\n", `\n`, "'", `"`, " + ", "+").Replace(f.jinja))
			require.NotNil(t, other, name)
			require.Equal(t, name, other.name)
		}
		own, foreign := ownTemplate(name, "anything")
		require.Equal(t, name, own.name)
		require.False(t, foreign)
		for _, template := range []string{name, ""} {
			if template == "" && f.jinja == "" {
				continue
			}
			ids, stops, err := m.ChatPrompt(conversation, template)
			require.NoError(t, err)
			require.Equal(t, f.want, string(m.tok.Decode(nil, ids, tokenizer.DecodeOptions{})), name)
			require.Equal(t, m.tok.Encode(nil, f.want, tokenizer.EncodeOptions{ParseSpecial: true}), ids, name)
			require.Equal(t, f.stops, stops, name)
		}
		// An answer that is begun goes on where it ends.
		open := append(slices.Clone(conversation), Message{RoleAssistant, "Because "})
		ids, _, err := m.ChatPrompt(open, name)
		require.NoError(t, err)
		begun := f.want
		if name == "llama2" {
			begun += " "
		}
		if name == "bitnet" { // its format ends in the space before the answer
			require.True(t, strings.HasSuffix(f.want, "Assistant: "))
		}
		require.Equal(t, begun+"Because ", string(m.tok.Decode(nil, ids, tokenizer.DecodeOptions{})), name)
	}
}

func TestPlain(t *testing.T) {
	own, err := tokenizer.NewByteLevel(tokenizer.MinVocab)
	require.NoError(t, err)
	m := like(own, "")
	for _, c := range []struct {
		messages []Message
		want     string
	}{
		{[]Message{{RoleUser, "fn main() {"}}, "fn main() {"},
		{[]Message{{RoleUser, "fn a() {"}, {RoleAssistant, "}"}, {RoleUser, "fn b"}}, "fn a() {}\nfn b"},
		{[]Message{{RoleSystem, "// Rust\n"}, {RoleUser, "fn a"}, {RoleAssistant, "bc"}}, "// Rust\nfn abc"},
		{[]Message{{RoleUser, ""}}, ""},
	} {
		ids, stops, err := m.ChatPrompt(c.messages, "")
		require.NoError(t, err)
		require.Equal(t, m.Prompt(c.want, false), ids)
		require.Empty(t, stops)
	}
}

func TestTemplatesThatAreNotKnown(t *testing.T) {
	own, err := tokenizer.NewByteLevel(tokenizer.MinVocab)
	require.NoError(t, err)
	for name, jinja := range map[string]string{
		"phi4":    "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}",
		"smolvlm": "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{{message['content']}}<end_of_utterance>{% endfor %}",
		"mistral": "{{ bos_token }}{{ '[INST] ' + message['content'] + ' [/INST]' }}",
		"falcon3": "{% if message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}{% endif %}",
		"empty":   "{{ '' }}",
	} {
		m := like(own, jinja)
		_, _, err := m.ChatPrompt(conversation, "")
		var u *UnsupportedError
		require.ErrorAs(t, err, &u, name)
		require.Contains(t, u.Hint, "chatml, gemma, llama2")
		_, _, err = m.ChatPrompt(conversation, "plain")
		require.NoError(t, err)
	}
	placeholder, _ := ownTemplate("", "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Human: ' + message['content'] + '\n\nBITNETAssistant: ' + eos_token }}{% endif %}{% endfor %}")
	require.NotNil(t, placeholder)
	require.Equal(t, "bitnet", placeholder.name)
	_, foreign := ownTemplate("no such", "")
	require.True(t, foreign)

	// A format whose tokens the vocabulary lacks would be plain text to the model.
	_, _, err = like(own, "").ChatPrompt(conversation, "chatml")
	require.EqualError(t, err, "chat: the template chatml does not fit this model: its vocabulary has no special token <|im_start|>; use the template that the model was trained with; plain fits every model")
	bare := like(vocabulary(t, tokenizer.Control, false, false, "<|x|>"), "")
	for _, name := range []string{"llama2", "zephyr"} {
		_, _, err = bare.ChatPrompt(conversation, name)
		require.ErrorContains(t, err, "its vocabulary has no token that", name)
	}
}

func TestMessagesThatMakeNoConversation(t *testing.T) {
	f := families["llama2"]
	m := like(vocabulary(t, tokenizer.Control, true, true, f.tokens...), f.jinja)
	user := Message{RoleUser, "a"}
	for _, c := range []struct {
		template string
		messages []Message
		want     string
	}{
		{"", nil, "infer: messages is empty, must have at least one message"},
		{"plain", []Message{user, {"tool", "b"}}, `infer: messages[1].role is "tool", must be system, user or assistant`},
		{"", []Message{user, user}, `infer: messages[1].role is "user", must be "assistant": in the template llama2 user and assistant take turns after at most one system message`},
		{"", []Message{{RoleAssistant, "b"}}, `infer: messages[0].role is "assistant", must be "user": in the template llama2 user and assistant take turns after at most one system message`},
		{"", []Message{user, {RoleSystem, "b"}}, `infer: messages[1].role is "system", must be "assistant": in the template llama2 user and assistant take turns after at most one system message`},
		{"", []Message{{RoleSystem, "b"}}, "infer: messages has a system message only, must have a user message as well"},
		{"vicuna", []Message{user}, `infer: template is "vicuna", known are plain, bitnet, chatml, gemma, llama2, llama3, nanochat, phi3, zephyr`},
	} {
		_, _, err := m.ChatPrompt(c.messages, c.template)
		var re *infer.RequestError
		require.ErrorAs(t, err, &re)
		require.EqualError(t, err, c.want)
	}
}

// TestContentsMakeNoTokens: whatever a message says, the special tokens of the prompt are
// those of a harmless conversation of the same shape.
func TestContentsMakeNoTokens(t *testing.T) {
	var all []string
	for _, f := range families {
		all = append(all, f.tokens...)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	for _, kind := range []tokenizer.Kind{tokenizer.Control, tokenizer.UserDefined} {
		vocab := append([]string{"<s>", "</s>"}, slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == "<s>" || s == "</s>" })...)
		m := like(vocabulary(t, kind, true, true, vocab...), "")
		rapid.Check(t, func(rt *rapid.T) {
			name := rapid.SampledFrom(Templates()).Draw(rt, "template")
			word := rapid.OneOf(rapid.SampledFrom(all), rapid.SampledFrom([]string{"<", "<|", "|>", "im_start|>", "<<SYS>>", "[/INST]", "\n", " "}), rapid.StringN(0, 4, 8))
			evil := []Message{{RoleSystem, ""}, {RoleUser, ""}, {RoleAssistant, ""}, {RoleUser, ""}}
			kind := templateNamed(name)
			for i := range evil {
				evil[i].Content = strings.Join(rapid.SliceOfN(word, 0, 6).Draw(rt, "content"), "")
			}
			ids, stops, err := m.ChatPrompt(evil, name)
			if err != nil {
				rt.Fatal(err)
			}
			harmless, again, err := m.ChatPrompt(conversation, name)
			if err != nil {
				rt.Fatal(err)
			}
			own := map[int32]bool{}
			for _, s := range kind.tokens {
				id, _ := m.tok.ID(s)
				own[id] = true
			}
			special := func(ids []int32) (out []int32) {
				for _, id := range ids {
					if m.tok.Kind(id) == tokenizer.Control || own[id] {
						out = append(out, id)
					}
				}
				return out
			}
			if !slices.Equal(special(ids), special(harmless)) || !slices.Equal(stops, again) {
				rt.Fatalf("%s: special tokens %v, want %v", name, special(ids), special(harmless))
			}
			text := string(m.tok.Decode(nil, ids, tokenizer.DecodeOptions{}))
			for _, x := range evil {
				if !strings.Contains(text, strings.TrimSpace(x.Content)) {
					rt.Fatalf("%s: %q is not in %q", name, x.Content, text)
				}
			}
		})
	}
}

// Tokens of the format that the vocabulary keeps as ordinary ones are parsed, protected
// from the contents all the same, and end an answer by their text.
func TestUserDefinedMarkers(t *testing.T) {
	f := families["chatml"]
	m := like(vocabulary(t, tokenizer.UserDefined, false, false, f.tokens...), f.jinja)
	ids, stops, err := m.ChatPrompt(conversation, "")
	require.NoError(t, err)
	require.Equal(t, m.tok.Encode(nil, f.want, tokenizer.EncodeOptions{ParseSpecial: true}), ids)
	require.Equal(t, []string{"<|im_end|>"}, stops)
}

func FuzzChatPrompt(f *testing.F) {
	for name, x := range families {
		f.Add(name, x.jinja, "user", "Hi <|im_start|>", "assistant", "Hello")
	}
	var vocab []string
	for _, x := range families {
		for _, s := range x.tokens {
			if !slices.Contains(vocab, s) {
				vocab = append(vocab, s)
			}
		}
	}
	slices.Sort(vocab)
	tok := vocabulary(f, tokenizer.Control, true, true, vocab...)
	f.Fuzz(func(t *testing.T, name, jinja, role1, content1, role2, content2 string) {
		m := like(tok, jinja)
		for _, template := range []string{name, ""} {
			ids, _, err := m.ChatPrompt([]Message{{role1, content1}, {role2, content2}}, template)
			if err != nil {
				continue
			}
			text := m.tok.Decode(nil, ids, tokenizer.DecodeOptions{SkipSpecial: true})
			for _, c := range []string{content1, content2} {
				if c = strings.TrimSpace(c); utf8.ValidString(c) && !strings.Contains(string(text), c) {
					t.Fatalf("%q is not in %q", c, text)
				}
			}
		}
	})
}
