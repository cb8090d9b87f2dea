package chat

import (
	"fmt"
	"slices"
	"strings"

	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/tokenizer"
)

// Message is one turn of a conversation.
type Message struct {
	// Role is "system", "user" or "assistant".
	Role string
	// Content is text. What looks like a control token in it stays text.
	Content string
}

// The roles of messages.
const (
	RoleSystem    = "system"
	RoleUser      = "user"
	RoleAssistant = "assistant"
)

// template turns messages into ids as one family of models was trained to read them.
type template struct {
	name string
	// marks are in the Jinja template of such a model, spaces and line ends left out;
	// none of foreign is.
	marks, foreign []string
	// instead is in the Jinja template that files of such a model have by mistake.
	instead string
	// tokens must be special tokens of the vocabulary; ends of them end an answer.
	tokens, ends []string
	// roles are the tokens that the format needs besides.
	roles []tokenizer.Role
	// stops end an answer too: texts that begin the next turn.
	stops []string
	// alternate says that user and assistant take turns after at most one system message.
	alternate bool
	write     func(w *writer, messages []Message)
}

// templates is every format that is known.
func templates() []template {
	return []template{
		{name: "plain", write: writePlain},
		{
			name: "bitnet", marks: []string{"|capitalize", "<|eot_id|>"}, foreign: []string{"<|start_header_id|>"},
			instead: "BITNETAssistant:", // microsoft/bitnet-b1.58-2B-4T-gguf, where the converter put a placeholder
			tokens:  []string{"<|eot_id|>"}, ends: []string{"<|eot_id|>"}, write: writeBitNet,
		},
		{
			name: "chatml", marks: []string{"<|im_start|>", "<|im_end|>"}, foreign: []string{"<|im_sep|>", "|capitalize"},
			tokens: []string{"<|im_start|>", "<|im_end|>"}, ends: []string{"<|im_end|>"}, write: writeChatML,
		},
		{
			name: "gemma", marks: []string{"<start_of_turn>", "<end_of_turn>"}, tokens: []string{"<start_of_turn>", "<end_of_turn>"},
			ends: []string{"<end_of_turn>"}, roles: []tokenizer.Role{tokenizer.BOS}, alternate: true, write: writeGemma,
		},
		{
			name: "llama2", marks: []string{"[INST]", "<<SYS>>"}, roles: []tokenizer.Role{tokenizer.BOS, tokenizer.EOS},
			stops: []string{"[INST]"}, alternate: true, write: writeLlama2,
		},
		{
			name: "llama3", marks: []string{"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
			tokens: []string{"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}, ends: []string{"<|eot_id|>"},
			roles: []tokenizer.Role{tokenizer.BOS}, write: writeLlama3,
		},
		{ // recognised by its name in the file only
			name: "nanochat", tokens: []string{"<|system|>", "<|user|>", "<|assistant|>", "<|end|>"}, ends: []string{"<|end|>"}, write: writeNanochat,
		},
		{
			name: "phi3", marks: []string{"<|user|>", "<|assistant|>", "<|end|>"}, foreign: []string{"<|im_start|>"},
			tokens: []string{"<|system|>", "<|user|>", "<|assistant|>", "<|end|>"}, ends: []string{"<|end|>"}, write: writePhi3,
		},
		{
			name: "zephyr", marks: []string{"<|user|>'+message['content']+eos_token"}, roles: []tokenizer.Role{tokenizer.EOS},
			stops: []string{"<|system|>", "<|user|>", "<|assistant|>"}, write: writeZephyr,
		},
	}
}

// Templates are the names that ChatPrompt knows, in alphabetical order but for "plain",
// which comes first.
func Templates() []string {
	var names []string
	for _, t := range templates() {
		names = append(names, t.name)
	}
	return names
}

func templateNamed(name string) *template {
	for _, t := range templates() {
		if t.name == name {
			return &t
		}
	}
	return nil
}

// ownTemplate finds a model's template by the name or by the Jinja text in its file. The
// text is compared with marks, never executed. foreign says that there is one, but none
// that is known.
func ownTemplate(name, jinja string) (t *template, foreign bool) {
	if name != "" {
		t = templateNamed(name)
		return t, t == nil
	}
	if jinja == "" {
		return nil, false
	}
	text := strings.Join(strings.Fields(jinja), "")
	text = strings.NewReplacer(`\n`, "", `"`, "'").Replace(text)
	has := func(mark string) bool { return strings.Contains(text, mark) }
	for _, t := range templates() {
		if t.instead != "" && has(t.instead) {
			return &t, false
		}
		found := len(t.marks) > 0
		for _, m := range t.marks {
			found = found && has(m)
		}
		if found && !slices.ContainsFunc(t.foreign, has) {
			return &t, false
		}
	}
	return nil, true
}

// ChatPrompt turns a conversation into the ids of a prompt for its next answer, and into
// the texts that end that answer besides the tokens that always do.
//
// template is one of Templates, or "" for the model's own; a model without one is taken for
// one that continues text and gets "plain": the contents as one text, in which an answer
// goes on where the message before it ends, and any other message begins a line. Special tokens come from the template alone: contents are never searched for any.
//
// If the last message is the assistant's, the answer continues it.
//
// A model whose own template is not known, or whose vocabulary lacks the tokens of the
// named one, gives a *UnsupportedError; messages that make no conversation give a
// *infer.RequestError.
func (m *Model) ChatPrompt(messages []Message, template string) (ids []int32, stops []string, err error) {
	t := m.info.template
	switch {
	case template != "":
		if t = templateNamed(template); t == nil {
			return nil, nil, &infer.RequestError{Field: "template", What: fmt.Sprintf("is %q, known are %s", template, strings.Join(Templates(), ", "))}
		}
	case m.info.foreign:
		return nil, nil, &UnsupportedError{
			What: "the chat template of this model is none of those that are known",
			Hint: "name the one that is like it: " + strings.Join(Templates(), ", "),
		}
	case t == nil:
		t = templateNamed("plain")
	}
	w, err := m.newWriter(t)
	if err != nil {
		return nil, nil, err
	}
	if err := t.check(messages); err != nil {
		return nil, nil, err
	}
	t.write(w, messages)
	w.flush()
	return w.ids, w.stops, nil
}

// check finds what makes messages no conversation.
func (t *template) check(messages []Message) error {
	if len(messages) == 0 {
		return &infer.RequestError{Field: "messages", What: "is empty, must have at least one message"}
	}
	want := RoleUser
	for i, m := range messages {
		field := fmt.Sprintf("messages[%d].role", i)
		switch m.Role {
		case RoleSystem, RoleUser, RoleAssistant:
		default:
			return &infer.RequestError{Field: field, What: fmt.Sprintf("is %q, must be system, user or assistant", m.Role)}
		}
		if !t.alternate || m.Role == RoleSystem && i == 0 {
			continue
		}
		if m.Role != want {
			return &infer.RequestError{Field: field, What: fmt.Sprintf("is %q, must be %q: in the template %s user and assistant take turns after at most one system message",
				m.Role, want, t.name)}
		}
		if want = RoleAssistant; m.Role == RoleAssistant {
			want = RoleUser
		}
	}
	if t.alternate && messages[len(messages)-1].Role == RoleSystem {
		return &infer.RequestError{Field: "messages", What: "has a system message only, must have a user message as well"}
	}
	return nil
}

// writer makes ids of a template's tokens and of text. Text between two tokens is encoded
// as one, as a tokenizer would that reads the whole prompt.
type writer struct {
	m       *Model
	ids     []int32
	text    strings.Builder
	special map[string]int32
	hidden  []string // special tokens that the tokenizer would find in text unasked
	stops   []string
	bosID   int32
	eosID   int32
}

func (m *Model) newWriter(t *template) (*writer, error) {
	w := &writer{m: m, special: map[string]int32{}, stops: slices.Clone(t.stops)}
	lacks := func(what string) error {
		return &UnsupportedError{
			What: fmt.Sprintf("the template %s does not fit this model: its vocabulary has no %s", t.name, what),
			Hint: "use the template that the model was trained with; plain fits every model",
		}
	}
	for _, text := range t.tokens {
		id, ok := m.tok.ID(text)
		kind := m.tok.Kind(id)
		if !ok || kind != tokenizer.Control && kind != tokenizer.UserDefined {
			return nil, lacks("special token " + text)
		}
		w.special[text] = id
		if kind == tokenizer.UserDefined {
			w.hidden = append(w.hidden, text)
			if slices.Contains(t.ends, text) { // it ends no answer by itself
				w.stops = append(w.stops, text)
			}
		}
	}
	var hasBOS, hasEOS bool
	w.bosID, hasBOS = m.tok.Special(tokenizer.BOS)
	w.eosID, hasEOS = m.tok.Special(tokenizer.EOS)
	switch {
	case slices.Contains(t.roles, tokenizer.BOS) && !hasBOS:
		return nil, lacks("token that begins a text")
	case slices.Contains(t.roles, tokenizer.EOS) && !hasEOS:
		return nil, lacks("token that ends a text")
	}
	if hasBOS && (m.tok.AddsBOS() || slices.Contains(t.roles, tokenizer.BOS)) {
		w.ids = append(w.ids, w.bosID)
	}
	return w, nil
}

// put appends text.
func (w *writer) put(text ...string) {
	for _, s := range text {
		w.text.WriteString(s)
	}
}

// token appends a special token of the template.
func (w *writer) token(text string) { w.id(w.special[text]) }

func (w *writer) id(id int32) {
	w.flush()
	w.ids = append(w.ids, id)
}

func (w *writer) flush() {
	w.ids = w.m.encode(w.ids, w.text.String(), w.hidden)
	w.text.Reset()
}

// encode appends the ids of text, in which no special token is found. hidden are the
// special tokens that the vocabulary finds in any text: each is cut in two.
func (m *Model) encode(ids []int32, text string, hidden []string) []int32 {
	for text != "" {
		end := len(text)
		for _, s := range hidden {
			if i := strings.Index(text, s); i >= 0 {
				end = min(end, i+1)
			}
		}
		ids = m.tok.Encode(ids, text[:end], tokenizer.EncodeOptions{})
		text = text[end:]
	}
	return ids
}
