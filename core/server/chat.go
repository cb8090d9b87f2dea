package server

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/architehc/nanochat/core/chat"
)

// chatCompletions is /v1/chat/completions.
func (s *Server) chatCompletions(w http.ResponseWriter, r *http.Request) *apiError {
	f, e, err := s.open(w, r)
	if err != nil {
		return err
	}
	q := &query{s: s, entry: e, visit: visitOf(r.Context()), chat: true}
	p := prompt{messages: f.messages(), template: f.text("chat_template")}
	q.prompts = []prompt{p}
	q.common(f)
	q.bestOf = q.n
	q.logprobs = f.boolean("logprobs")
	top := f.integer("top_logprobs", 0)
	if f.err == nil && top > 0 && !q.logprobs {
		f.fail(bad("top_logprobs", "top_logprobs is %d, but logprobs is not true", top))
	}
	q.request.Sample.Logprobs, q.request.Sample.TopLogprobs = q.logprobs, top
	q.maxTokens = -1
	for _, name := range []string{"max_completion_tokens", "max_tokens"} {
		if f.has(name) {
			if q.maxTokens >= 0 {
				f.fail(bad(name, "both max_tokens and max_completion_tokens are there: they mean the same"))
			}
			l := f.limits["max_tokens"]
			v, e := limited(l, name, f.get(name))
			if e != nil {
				f.fail(e)
			}
			q.maxTokens = int(v)
		}
	}
	f.refuse("tools", "tool_choice", "functions", "function_call", "audio", "prediction", "web_search_options")
	f.ignore("reasoning_effort", "verbosity")
	f.textFormat()
	f.modalities()
	if err := s.closeFields(f, q.visit); err != nil {
		return err
	}
	if err := q.contradictions(); err != nil {
		return err
	}
	return q.run(w, r)
}

// textFormat refuses a response_format other than text.
func (f *fields) textFormat() {
	o := f.object("response_format")
	if o == nil {
		return
	}
	sub := newFields(o, nil)
	if t := sub.text("type"); sub.err == nil && t != "text" {
		f.fail(unsupported("response_format", "response_format is of type %q: only text is supported", short(t)))
	}
	f.merge("response_format.", sub)
}

// modalities refuses any but text.
func (f *fields) modalities() {
	v := f.get("modalities")
	if v == nil {
		return
	}
	var list []string
	if json.Unmarshal(v, &list) != nil {
		f.fail(wrongType("modalities", v, "an array of strings"))
	}
	for _, m := range list {
		if m != "text" {
			f.fail(unsupported("modalities", "modalities has %q: only text is supported", short(m)))
		}
	}
}

// messages reads a conversation.
func (f *fields) messages() []chat.Message {
	v := f.get("messages")
	if v == nil {
		f.fail(bad("messages", "messages is missing: it must be an array of objects with role and content"))
		return nil
	}
	parts := f.list("messages", v, f.limits["messages"])
	out := make([]chat.Message, 0, len(parts))
	for i, p := range parts {
		m, err := message(p)
		if err != nil {
			err.message = "messages[" + number(float64(i)) + "]: " + err.message
			err.param = "messages"
			f.fail(err)
			return nil
		}
		out = append(out, m)
	}
	return out
}

func message(p json.RawMessage) (m chat.Message, err *apiError) {
	var o map[string]json.RawMessage
	if json.Unmarshal(p, &o) != nil || o == nil {
		return m, bad("", "is %s, must be an object with role and content", kind(p))
	}
	f := newFields(o, nil)
	switch role := f.text("role"); role {
	case "system", "user", "assistant":
		m.Role = role
	case "developer":
		m.Role = "system"
	case "tool", "function":
		return m, unsupported("", "the role %s is not supported: this server generates text", role)
	default:
		if f.err == nil {
			f.fail(bad("", "the role is %q, must be system, developer, user or assistant", short(role)))
		}
	}
	f.refuse("tool_calls", "function_call", "audio")
	switch v := f.get("content"); kind(v) {
	case "nothing":
		f.fail(bad("", "content is missing: it must be a string or an array of text parts"))
	case "an array":
		m.Content = f.parts(v)
	default:
		m.Content = f.text("content")
	}
	return m, f.err
}

// parts joins the text parts of a message.
func (f *fields) parts(v json.RawMessage) string {
	var list []json.RawMessage
	if json.Unmarshal(v, &list) != nil {
		f.fail(wrongType("content", v, "a string or an array of text parts"))
	}
	var b strings.Builder
	for _, p := range list {
		var o map[string]json.RawMessage
		if json.Unmarshal(p, &o) != nil || o == nil {
			f.fail(bad("", "content has %s, must be text parts", kind(p)))
			return ""
		}
		sub := newFields(o, nil)
		if t := sub.text("type"); sub.err == nil && t != "text" {
			sub.fail(unsupported("", "content has a part of type %q: only text is supported", short(t)))
		}
		if !sub.has("text") {
			sub.fail(bad("", "a text part of content has no text"))
		}
		b.WriteString(sub.text("text"))
		if sub.err != nil {
			f.fail(sub.err)
			return ""
		}
	}
	return b.String()
}
