package server

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"strings"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/tokenizer"
)

// tokenize is /tokenize: a text, or a conversation, becomes ids.
func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) *apiError {
	f, e, err := s.open(w, r)
	if err != nil {
		return err
	}
	name := ""
	for _, n := range []string{"content", "prompt", "text", "messages"} {
		if !f.has(n) {
			continue
		}
		if name != "" {
			f.fail(bad(n, "both %s and %s are there: one is expected", name, n))
		}
		name = n
	}
	p := prompt{}
	switch name {
	case "":
		f.fail(bad("content", "content is missing: it must be a string"))
	case "messages":
		p.messages, p.template = f.messages(), f.text("chat_template")
	default:
		p.text = f.text(name)
	}
	special, bos, pieces := f.boolean("special"), f.boolean("add_special"), f.boolean("with_pieces")
	if err := s.closeFields(f, visitOf(r.Context())); err != nil {
		return err
	}
	m, done, failed := e.use(r.Context())
	if failed != nil {
		return errorOf(failed, name)
	}
	defer done()
	t := m.Tokenizer()
	ids := []int32{}
	if p.messages != nil {
		var err error
		if ids, _, err = m.ChatPrompt(p.messages, p.template); err != nil {
			return errorOf(err, name)
		}
	} else {
		ids = t.Encode(ids, p.text, tokenizer.EncodeOptions{AddBOS: bos && t.AddsBOS(), ParseSpecial: special})
	}
	out := map[string]any{"tokens": ids, "count": len(ids), "max_model_len": e.known().context}
	if pieces {
		list := make([]string, len(ids))
		for i, id := range ids {
			list[i] = tokenName(t.Piece(id))
		}
		out["pieces"] = list
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// detokenize is /detokenize: ids become a text.
func (s *Server) detokenize(w http.ResponseWriter, r *http.Request) *apiError {
	f, e, err := s.open(w, r)
	if err != nil {
		return err
	}
	var parts []json.RawMessage
	v := f.get("tokens")
	if v == nil {
		f.fail(bad("tokens", "tokens is missing: it must be an array of token ids"))
	} else if json.Unmarshal(v, &parts) != nil {
		f.fail(wrongType("tokens", v, "an array of token ids"))
	}
	ids, wrong := idsOf("tokens", parts)
	if wrong != nil {
		f.fail(wrong)
	}
	if err := s.closeFields(f, visitOf(r.Context())); err != nil {
		return err
	}
	m, done, failed := e.use(r.Context())
	if failed != nil {
		return errorOf(failed, "tokens")
	}
	defer done()
	t := m.Tokenizer()
	for i, id := range ids {
		if int(id) >= t.Vocab() {
			return bad("tokens", "tokens has %d at index %d: ids are 0 to %d", id, i, t.Vocab()-1)
		}
	}
	text := strings.ToValidUTF8(string(t.Decode(nil, ids, tokenizer.DecodeOptions{})), "\ufffd")
	writeJSON(w, http.StatusOK, map[string]any{"content": text, "prompt": text, "count": len(ids)})
	return nil
}

// embedding is one vector of a response.
type embedding struct {
	Object string `json:"object"`
	Index  int    `json:"index"`
	// Vector is numbers, or a text of their bytes.
	Vector any `json:"embedding"`
}

// embeddings is /v1/embeddings: the mean of the last hidden states of a text,
// scaled to length 1.
func (s *Server) embeddings(w http.ResponseWriter, r *http.Request) *apiError {
	f, e, err := s.open(w, r)
	if err != nil {
		return err
	}
	q := &query{s: s, entry: e, visit: visitOf(r.Context()), bestOf: 1}
	q.prompts = f.texts("input")
	packed := f.oneOf("encoding_format", "float", "base64") == "base64"
	dims, given := f.seed("dimensions")
	f.ignore("user")
	if err := s.closeFields(f, q.visit); err != nil {
		return err
	}
	tickets, err := e.gate.reserve(s.clientOf(r), 1)
	if err != nil {
		return err
	}
	defer tickets[0].release(0)
	if err := tickets[0].wait(r.Context()); err != nil {
		return errorOf(err, "input")
	}
	m, done, failed := e.use(r.Context())
	if failed != nil {
		return errorOf(failed, "input")
	}
	defer done()
	if have := uint64(e.known().dim); given && dims != have {
		return unsupported("dimensions", "dimensions is %d: this model's embeddings have %d and are not cut", int64(dims), have)
	}
	list := make([]embedding, len(q.prompts))
	for i, p := range q.prompts {
		if p.ids == nil {
			p.ids = m.Prompt(p.text, false)
		}
		q.visit.promptTokens += len(p.ids)
		st, err := m.Generate(r.Context(), chat.Request{IDs: p.ids, MaxTokens: -1, Embed: true})
		if err != nil {
			return errorOf(err, "input")
		}
		for err == nil {
			_, err = st.Next(r.Context())
		}
		vector := st.Result().Embedding
		st.Close()
		if !errors.Is(err, io.EOF) {
			return errorOf(err, "input")
		}
		list[i] = embedding{"embedding", i, encode(unit(vector), packed)}
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": list, "model": e.spec.Name,
		"usage": map[string]int{"prompt_tokens": q.visit.promptTokens, "total_tokens": q.visit.promptTokens}})
	return nil
}

// unit scales v to length 1, so that the dot product of two is their similarity.
func unit(v []float32) []float32 {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	out := make([]float32, len(v))
	if sum == 0 {
		return out
	}
	scale := 1 / math.Sqrt(sum)
	for i, x := range v {
		out[i] = float32(float64(x) * scale)
	}
	return out
}

// encode is the vector as numbers, or the base64 of its float32, low bytes first.
func encode(v []float32, packed bool) any {
	if !packed {
		return v
	}
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return base64.StdEncoding.EncodeToString(b)
}
