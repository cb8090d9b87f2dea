package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/infer"
)

// choice is one answer on its way.
type choice struct {
	index  int // in the response
	prompt int
	nth    int // of the answers to the prompt
	ticket *ticket

	begun  bool // something of it was sent
	text   strings.Builder
	scores []score
	scorer *scorer
	result infer.Result
	// sum of the log probabilities, for best_of
	sum float64
}

// likelihood is the mean log probability of the tokens.
func (c *choice) likelihood() float64 { return c.sum / float64(max(c.result.Generated, 1)) }

// output is where answers go: into events, or into a response at the end. Its
// methods are called by one goroutine at a time.
type output interface {
	// piece takes text of an answer and the scores of the tokens in it.
	piece(c *choice, text string, scores []score) error
	// end takes the end of an answer.
	end(c *choice) error
	// finish sends what remains.
	finish(choices []*choice, u usage) error
}

// usage counts tokens, in the form of responses.
type usage struct {
	Prompt     int    `json:"prompt_tokens"`
	Completion int    `json:"completion_tokens"`
	Total      int    `json:"total_tokens"`
	Details    cached `json:"prompt_tokens_details"`
}

type cached struct {
	// Cached tokens were computed for an earlier request.
	Cached int `json:"cached_tokens"`
}

// param is the field that holds the prompt.
func (q *query) param() string {
	if q.chat {
		return "messages"
	}
	return "prompt"
}

// run generates and sends the answers.
func (q *query) run(w http.ResponseWriter, r *http.Request) *apiError {
	s := q.s
	tickets, refused := q.entry.gate.reserve(s.clientOf(r), q.count())
	if refused != nil {
		return refused
	}
	defer func() {
		for _, t := range tickets {
			t.release(0)
		}
	}()
	began := s.clock.Now()
	if err := tickets[0].wait(r.Context()); err != nil {
		return errorOf(err, q.param())
	}
	m, done, err := q.entry.use(r.Context())
	if err != nil {
		return errorOf(err, q.param())
	}
	defer done()
	if err := q.prepare(m); err != nil {
		return errorOf(err, q.param())
	}
	q.tickets = tickets
	out := q.output(w, q.entry.known())
	choices := make([]*choice, len(tickets))
	for i, t := range tickets {
		choices[i] = &choice{index: i, prompt: i / q.bestOf, nth: i % q.bestOf, ticket: t}
		if q.logprobs {
			choices[i].scorer = newScorer(m)
		}
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	if len(choices) == 1 {
		err = q.answer(ctx, m, choices[0], out, began)
	} else {
		err = q.answers(ctx, cancel, m, choices, out, began)
	}
	u := q.spent(choices)
	q.visit.promptTokens, q.visit.completionTokens = u.Prompt, u.Completion
	if err == nil {
		err = out.finish(choices, u)
	}
	if err != nil {
		return errorOf(err, q.param())
	}
	return nil
}

// prepare turns the prompts into ids and checks what depends on the model.
func (q *query) prepare(m *chat.Model) error {
	if q.maxTokens > 0 {
		for _, l := range q.s.limits.Table(q.entry.known().context) {
			if l.Name == "max_tokens" {
				if err := l.check(float64(q.maxTokens), fmt.Sprint(q.maxTokens)); err != nil {
					return err
				}
			}
		}
	}
	q.request.Echo = q.echo
	switch {
	case q.maxTokens == 0:
		q.request.MaxTokens = -1
	case q.maxTokens > 0:
		q.request.MaxTokens = q.maxTokens
	}
	for i := range q.prompts {
		p := &q.prompts[i]
		var err error
		switch {
		case p.messages != nil:
			var stops []string
			if p.ids, stops, err = m.ChatPrompt(p.messages, p.template); err == nil {
				q.request.Stop = append(q.request.Stop, stops...)
			}
		case p.infill:
			p.ids, err = m.FIMPrompt(p.text, p.suffix)
		case p.ids == nil:
			p.ids = m.Prompt(p.text, p.special)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// answers generates several answers at once; the first that fails ends all.
func (q *query) answers(ctx context.Context, cancel context.CancelCauseFunc, m *chat.Model, choices []*choice, out output, began time.Time) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	shared := &locked{output: out}
	for _, c := range choices {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var err error
			defer func() {
				if v := recover(); v != nil {
					err = fmt.Errorf("server: %v\n%s", v, debug.Stack())
				}
				if err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
					cancel(err)
				}
			}()
			err = q.answer(ctx, m, c, shared, began)
		}()
	}
	wg.Wait()
	return first
}

// locked is an output for several goroutines.
type locked struct {
	mu sync.Mutex
	output
}

func (l *locked) piece(c *choice, text string, scores []score) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.output.piece(c, text, scores)
}

func (l *locked) end(c *choice) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.output.end(c)
}

// answer generates one answer. The place that its ticket gives is free again
// when it returns. began is when the request joined the queue.
func (q *query) answer(ctx context.Context, m *chat.Model, c *choice, out output, began time.Time) error {
	s := q.s
	if err := c.ticket.wait(ctx); err != nil {
		return err
	}
	started := s.clock.Now()
	took := 0.0
	defer func() { c.ticket.release(took) }()
	r := q.request
	r.IDs = q.prompts[c.prompt].ids
	r.Sample = q.sampleOf(c.nth)
	if q.bestOf > q.n {
		r.Sample.Logprobs = true
	}
	st, err := m.Generate(ctx, r)
	if err != nil {
		return err
	}
	defer st.Close()
	defer func() { c.result = st.Result(); q.observe(ctx, c, began, started) }()
	s.fail("answer")
	var last time.Time
	for {
		p, err := st.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause // Next says only that it is done
			}
			return err
		}
		if p.ID >= 0 && !p.Echo {
			now := s.clock.Now()
			if last.IsZero() {
				q.entry.metrics.FirstToken(now.Sub(q.visit.began))
			} else {
				q.entry.metrics.NextToken(now.Sub(last))
			}
			last = now
			c.sum += float64(p.Logprob)
		}
		var scores []score
		if c.scorer != nil {
			scores = c.scorer.add(p)
		}
		if p.Text == "" && len(scores) == 0 {
			continue
		}
		if err := out.piece(c, p.Text, scores); err != nil {
			return err
		}
	}
	c.result = st.Result()
	took = s.clock.Now().Sub(started).Seconds()
	if c.scorer != nil {
		if rest := c.scorer.rest(c.result); len(rest) > 0 {
			if err := out.piece(c, "", rest); err != nil {
				return err
			}
		}
	}
	return out.end(c)
}

// observe tells how long the parts of an answer took.
func (q *query) observe(ctx context.Context, c *choice, began, started time.Time) {
	t := q.s.o.Tracer
	r := c.result
	admitted := started.Add(r.Queued)
	q.entry.metrics.Queued(admitted.Sub(began))
	t.Record(ctx, "queue", began, admitted)
	if r.Prefill > 0 {
		first := admitted.Add(r.Prefill)
		t.Record(ctx, "prefill", admitted, first, slog.Int("prompt_tokens", r.PromptTokens), slog.Int("cached_tokens", r.CachedTokens))
		t.Record(ctx, "decode", first, first.Add(r.Decode), slog.Int("tokens", r.Generated), slog.String("reason", string(r.Reason)))
	}
}

// spent counts each prompt once and every answer.
func (q *query) spent(choices []*choice) usage {
	u := usage{}
	for _, p := range q.prompts {
		u.Prompt += len(p.ids)
	}
	for _, c := range choices {
		u.Completion += c.result.Generated
		if c.nth == 0 {
			u.Details.Cached += c.result.CachedTokens
		}
	}
	u.Total = u.Prompt + u.Completion
	return u
}
