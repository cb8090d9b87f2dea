package server

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"math"
	"net/http"
	"slices"
	"strconv"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/sample"
)

// query is a request for answers, read and checked as far as that can be done
// without the model.
type query struct {
	s       *Server
	entry   *entry
	visit   *visit
	chat    bool
	prompts []prompt
	n       int // answers to send for each prompt
	bestOf  int // answers to generate for each
	stream  bool
	usage   bool // an event with the usage ends the stream
	echo    bool
	// logprobs says that log probabilities are wanted; request.Sample has of how many.
	logprobs bool
	// maxTokens is what the request says; it is checked again when the context is known.
	maxTokens int
	seed      uint64
	request   chat.Request
	tickets   []*ticket
}

// prompt is what one answer or more follow.
type prompt struct {
	text     string
	ids      []int32
	messages []chat.Message
	template string
	// infill asks for the text between text and suffix.
	infill  bool
	suffix  string
	special bool
}

// common are the fields of every request for answers.
func (q *query) common(f *fields) {
	q.n = f.integer("n", 1)
	q.stream = f.boolean("stream")
	if o := f.object("stream_options"); o != nil {
		sub := newFields(o, nil)
		q.usage = sub.boolean("include_usage")
		sub.ignore("include_obfuscation")
		f.merge("stream_options.", sub)
		if f.err == nil && !q.stream {
			f.fail(bad("stream_options", "stream_options is there, but stream is not true"))
		}
	}
	o := &q.request.Sample
	o.Temperature = f.number("temperature", 1)
	o.TopP = f.number("top_p", 1)
	o.TopK = f.integer("top_k", 0)
	o.MinP = f.number("min_p", 0)
	o.RepeatPenalty = f.number("repetition_penalty", 1)
	if f.has("repeat_penalty") { // as other servers call it
		if f.has("repetition_penalty") {
			f.fail(bad("repeat_penalty", "both repetition_penalty and repeat_penalty are there: they mean the same"))
		}
		o.RepeatPenalty = f.number("repeat_penalty", 1)
	}
	o.PresencePenalty = f.number("presence_penalty", 0)
	o.FrequencyPenalty = f.number("frequency_penalty", 0)
	o.PenaltyWindow = f.integer("penalty_window", 0)
	o.LogitBias = f.biases()
	if o.TopP == 0 { // to the sampler 0 is off; here it is the smallest share
		o.TopK = 1
	}
	q.request.Stop = f.stops(q.s.limits)
	q.request.IgnoreEnd = f.boolean("ignore_eos")
	seed, given := f.seed("seed")
	if !given {
		var b [8]byte
		rand.Read(b[:]) //nolint:errcheck // it never fails
		seed = binary.LittleEndian.Uint64(b[:])
	}
	q.seed = seed
	f.ignore("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
}

// biases reads logit_bias, of which -100 bans a token.
func (f *fields) biases() map[int32]float32 {
	o := f.object("logit_bias")
	if n := float64(len(o)); n > f.limits["logit_bias entries"].Max {
		f.fail(bad("logit_bias", "logit_bias has %d entries: at most %s are accepted", len(o), number(f.limits["logit_bias entries"].Max)))
	}
	if len(o) == 0 || f.err != nil {
		return nil
	}
	out := make(map[int32]float32, len(o))
	keys := make([]string, 0, len(o))
	for k := range o {
		keys = append(keys, k)
	}
	slices.Sort(keys) // the same error every time
	for _, k := range keys {
		id, err := strconv.ParseInt(k, 10, 32)
		if err != nil || id < 0 {
			f.fail(bad("logit_bias", "logit_bias has the key %q, which is no token id", short(k)))
			return nil
		}
		v, e := limited(f.limits["logit_bias"], "logit_bias", o[k])
		if e != nil {
			f.fail(e)
			return nil
		}
		if v == f.limits["logit_bias"].Min {
			v = math.Inf(-1)
		}
		out[int32(id)] = float32(v)
	}
	return out
}

// stops reads stop: a text or a few.
func (f *fields) stops(l Limits) []string {
	v := f.get("stop")
	if v == nil {
		return nil
	}
	parts := []json.RawMessage{v}
	if kind(v) == "an array" {
		parts = f.list("stop", v, f.limits["stop"])
	}
	var out []string
	for _, p := range parts {
		var s string
		if kind(p) != "a string" || json.Unmarshal(p, &s) != nil {
			f.fail(wrongType("stop", p, "a string or an array of strings"))
			return nil
		}
		if len(s) == 0 || len(s) > l.StopBytes {
			f.fail(bad("stop", "stop has a text of %d bytes: 1 to %d are accepted", len(s), l.StopBytes))
			return nil
		}
		out = append(out, s)
	}
	return out
}

// merge takes over the error and the unknown fields of a part.
func (f *fields) merge(prefix string, part *fields) {
	if part.err != nil && f.err == nil {
		part.err.param = prefix + part.err.param
		f.err = part.err
	}
	for name := range part.raw {
		if !part.used[name] {
			f.raw[prefix+name] = part.raw[name]
		}
	}
}

// refuse fails for fields that ask for what nanochat does not do, unless they
// hold a value that asks for nothing.
func (f *fields) refuse(names ...string) {
	for _, name := range names {
		v := f.get(name)
		switch string(v) {
		case "", "[]", "{}", "false", `"none"`:
			continue
		}
		f.fail(unsupported(name, "%s is not supported: this server generates text", name))
	}
}

// ids reads an array of token ids.
func idsOf(name string, parts []json.RawMessage) ([]int32, *apiError) {
	ids := make([]int32, len(parts))
	for i, p := range parts {
		v, err := strconv.ParseInt(string(p), 10, 32)
		if err != nil || v < 0 {
			return nil, bad(name, "%s has %s at index %d, which is no token id", name, short(string(p)), i)
		}
		ids[i] = int32(v)
	}
	return ids, nil
}

// texts reads the forms of prompt and input: a text, texts, ids, or lists of ids.
func (f *fields) texts(name string) []prompt {
	v := f.get(name)
	if f.err != nil {
		return nil
	}
	want := "a string, an array of strings, an array of token ids or an array of such arrays"
	var parts []json.RawMessage
	switch kind(v) {
	case "nothing":
		f.fail(bad(name, "%s is missing: it must be %s", name, want))
		return nil
	case "a string":
		return []prompt{{text: f.text(name)}}
	case "an array":
		if json.Unmarshal(v, &parts) != nil || len(parts) == 0 {
			f.fail(bad(name, "%s is an empty array, must be %s", name, want))
			return nil
		}
	default:
		f.fail(wrongType(name, v, want))
		return nil
	}
	first := kind(parts[0])
	if first == "a number" {
		ids, err := idsOf(name, parts)
		if err != nil {
			f.fail(err)
			return nil
		}
		return []prompt{{ids: ids}}
	}
	if most := f.limits["prompts"].Max; float64(len(parts)) > most {
		f.fail(bad(name, "%s has %d texts: at most %s are accepted in one request", name, len(parts), number(most)))
		return nil
	}
	out := make([]prompt, len(parts))
	for i, p := range parts {
		var inner []json.RawMessage
		switch {
		case first == "a string" && json.Unmarshal(p, &out[i].text) == nil && kind(p) == first:
		case first == "an array" && json.Unmarshal(p, &inner) == nil && len(inner) > 0:
			ids, err := idsOf(name, inner)
			if err != nil {
				f.fail(err)
				return nil
			}
			out[i].ids = ids
		default:
			f.fail(bad(name, "%s has %s at index %d, must be %s", name, kind(p), i, want))
			return nil
		}
	}
	return out
}

// open reads the body of a request and finds the model that it names.
func (s *Server) open(w http.ResponseWriter, r *http.Request) (*fields, *entry, *apiError) {
	v := visitOf(r.Context())
	body, err := s.readBody(w, r)
	if err != nil {
		return nil, nil, err
	}
	if err := s.bodies.parse(r.Context(), v); err != nil {
		e := errorOf(err, "")
		if e == nil { // nobody will read it
			e = &apiError{status: statusGone, kind: typeServer, message: errGone.Error()}
		}
		return nil, nil, e
	}
	// The answer may take longer than the request was allowed to.
	http.NewResponseController(w).SetReadDeadline(noDeadline) //nolint:errcheck // there is none without a connection
	raw, err := parse(body, s.limits.Depth)
	if err != nil {
		return nil, nil, err
	}
	name := newFields(raw, nil)
	model := name.text("model")
	if name.err != nil {
		return nil, nil, name.err
	}
	e, err := s.find(model)
	if err != nil {
		return nil, nil, err
	}
	v.model = e.spec.Name
	longest := e.known().context
	if longest == 0 {
		longest = math.MaxInt32 // checked again once the model is there
	}
	f := newFields(raw, s.limits.Table(longest))
	f.ignore("model")
	return f, e, nil
}

// closeFields accounts for the fields that nothing has read. The body is parsed then.
func (s *Server) closeFields(f *fields, v *visit) *apiError {
	v.dropBody()
	for name := range f.raw {
		if !f.used[name] {
			v.unknown++
			s.o.Metrics.UnknownField(name)
		}
	}
	return f.err
}

// options that are valid alone but not together.
func (q *query) contradictions() *apiError {
	switch {
	case q.bestOf < q.n:
		return bad("best_of", "best_of is %d and n is %d: best_of must be at least n", q.bestOf, q.n)
	case q.stream && q.bestOf > q.n:
		return bad("best_of", "best_of is %d, n is %d and stream is true: what is best is known at the end only, so it cannot be streamed", q.bestOf, q.n)
	case q.maxTokens == 0 && q.chat:
		return bad("max_tokens", "max_tokens is 0: a chat needs at least 1")
	case q.maxTokens == 0 && !q.echo:
		return bad("max_tokens", "max_tokens is 0: at least 1 is accepted, or 0 with echo")
	}
	if o := q.request.Sample; o.Temperature > 0 && o.Temperature < 1e-6 {
		return bad("temperature", "temperature is %v: 0 (greedy) or at least 0.000001 is accepted", o.Temperature)
	}
	return nil
}

// count is the number of answers to generate.
func (q *query) count() int { return len(q.prompts) * q.bestOf }

// sampleOf is the sampling of answer i to a prompt.
func (q *query) sampleOf(i int) sample.Options {
	o := q.request.Sample
	o.Seed = q.seed + uint64(i)
	return o
}
