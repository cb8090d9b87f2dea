package server

import "net/http"

// completionTokens is how long a completion is if the request does not say, as
// OpenAI defines it.
const completionTokens = 16

// completions is /v1/completions.
func (s *Server) completions(w http.ResponseWriter, r *http.Request) *apiError {
	f, e, err := s.open(w, r)
	if err != nil {
		return err
	}
	q := &query{s: s, entry: e, visit: visitOf(r.Context())}
	q.prompts = f.texts("prompt")
	q.common(f)
	q.echo = f.boolean("echo")
	q.bestOf = f.integer("best_of", q.n)
	q.maxTokens = completionTokens
	if f.has("max_tokens") {
		q.maxTokens = f.integer("max_tokens", 0)
	}
	if f.has("logprobs") {
		q.logprobs = true
		q.request.Sample.Logprobs, q.request.Sample.TopLogprobs = true, f.integer("logprobs", 0)
	}
	special := f.boolean("special")
	suffix := f.has("suffix")
	for i := range q.prompts {
		p := &q.prompts[i]
		p.special = special
		if !suffix {
			continue
		}
		p.infill, p.suffix = true, f.text("suffix")
		if f.err == nil && p.ids != nil {
			f.fail(bad("suffix", "suffix is there, but prompt is token ids: it must be text"))
		}
	}
	if f.err == nil && suffix && q.echo {
		f.fail(bad("echo", "echo is true and suffix is there: the prompt of an infill is no text"))
	}
	if err := s.closeFields(f, q.visit); err != nil {
		return err
	}
	if err := q.contradictions(); err != nil {
		return err
	}
	return q.run(w, r)
}
