package server

import (
	"cmp"
	"crypto/rand"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/architehc/nanochat/core/infer"
)

// head is what every response and every event begins with.
type head struct {
	ID          string `json:"id"`
	Object      string `json:"object"`
	Created     int64  `json:"created"`
	Model       string `json:"model"`
	Fingerprint string `json:"system_fingerprint"`
}

// response is a whole answer of either endpoint.
type response struct {
	head
	Choices []any `json:"choices"`
	Usage   usage `json:"usage"`
}

// event is a part of a streamed answer.
type event struct {
	head
	Choices []any `json:"choices"`
}

// countedEvent is one of a stream that ends with the usage, which is null before.
type countedEvent struct {
	event
	Usage *usage `json:"usage"`
}

// The forms of choices. A nil pointer is null; what is sometimes left out is
// marked so.
type (
	chatMessage struct {
		Role    string  `json:"role"`
		Content string  `json:"content"`
		Refusal *string `json:"refusal"`
	}
	chatChoice struct {
		Index    int           `json:"index"`
		Message  chatMessage   `json:"message"`
		Logprobs *chatLogprobs `json:"logprobs"`
		Finish   string        `json:"finish_reason"`
	}
	chatDelta struct {
		Role    string  `json:"role,omitempty"`
		Content *string `json:"content,omitempty"`
	}
	chatPart struct {
		Index    int           `json:"index"`
		Delta    chatDelta     `json:"delta"`
		Logprobs *chatLogprobs `json:"logprobs"`
		Finish   *string       `json:"finish_reason"`
	}
	textChoice struct {
		Text     string        `json:"text"`
		Index    int           `json:"index"`
		Logprobs *textLogprobs `json:"logprobs"`
		Finish   *string       `json:"finish_reason"`
	}
)

// finishReason is the reason in the words of responses.
func finishReason(c *choice) *string {
	reason := "stop"
	if c.result.Reason == infer.ReasonLength {
		reason = "length"
	}
	return &reason
}

func (q *query) output(w http.ResponseWriter, f facts) output {
	h := head{ID: "cmpl-" + rand.Text(), Object: "text_completion", Created: q.s.clock.Now().Unix(), Model: q.entry.spec.Name, Fingerprint: f.fingerprint}
	if q.chat {
		h.ID, h.Object = "chatcmpl-"+rand.Text(), "chat.completion"
	}
	if rec, ok := w.(*recorder); ok && q.stream {
		if q.chat {
			h.Object += ".chunk"
		}
		return &events{q: q, w: rec, head: h}
	}
	return &collected{q: q, w: w, head: h}
}

// collected answers at the end.
type collected struct {
	q    *query
	w    http.ResponseWriter
	head head
}

func (o *collected) piece(c *choice, text string, scores []score) error {
	c.text.WriteString(text)
	c.scores = append(c.scores, scores...)
	return nil
}

func (*collected) end(*choice) error { return nil }

func (o *collected) finish(choices []*choice, u usage) error {
	r := response{head: o.head, Usage: u}
	for i, c := range o.q.best(choices) {
		if o.q.chat {
			out := chatChoice{Index: i, Message: chatMessage{Role: "assistant", Content: c.text.String()}, Finish: *finishReason(c)}
			if o.q.logprobs {
				out.Logprobs = chatScores(c.scores)
			}
			r.Choices = append(r.Choices, out)
			continue
		}
		out := textChoice{Text: c.text.String(), Index: i, Finish: finishReason(c)}
		if o.q.logprobs {
			out.Logprobs = textScores(c.scores, o.q.request.Sample.TopLogprobs > 0)
		}
		r.Choices = append(r.Choices, out)
	}
	writeJSON(o.w, http.StatusOK, r)
	return nil
}

// best chooses the n likeliest answers to each prompt, in order of likelihood
// where there are more.
func (q *query) best(choices []*choice) []*choice {
	if q.bestOf == q.n {
		return choices
	}
	var out []*choice
	for group := range slices.Chunk(choices, q.bestOf) {
		sorted := slices.Clone(group)
		slices.SortStableFunc(sorted, func(a, b *choice) int { return cmp.Compare(b.likelihood(), a.likelihood()) })
		out = append(out, sorted[:q.n]...)
	}
	return out
}

// events sends each piece at once.
type events struct {
	q    *query
	w    *recorder
	head head

	slow *time.Timer // fires while a client does not take an event
	mu   sync.Mutex  // guards what follows, and the tickets' being parked
	busy bool        // an event is on its way
	lent bool        // the tickets were parked
}

// patience is how long a client may take for an event before its place is lent to
// others.
const patience = 100 * time.Millisecond

// write sends an event. While the client does not take it, the places of the
// request's answers are lent.
func (o *events) write(send func() error) error {
	o.setBusy(true)
	if o.slow == nil {
		o.slow = time.AfterFunc(patience, o.park)
	} else {
		o.slow.Reset(patience)
	}
	err := send()
	o.slow.Stop()
	if o.setBusy(false) { // perhaps by the timer of an earlier event, which came late
		for _, t := range o.q.tickets {
			t.resume()
		}
	}
	return err
}

// setBusy notes whether an event is on its way, and says whether places were lent.
func (o *events) setBusy(on bool) (lent bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	lent, o.lent, o.busy = o.lent, false, on
	return lent
}

func (o *events) park() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.busy {
		return
	}
	o.lent = true
	for _, t := range o.q.tickets {
		t.park()
	}
}

// send wraps the part of a choice, or the usage, into an event.
func (o *events) send(u *usage, choices ...any) error {
	if choices == nil {
		choices = []any{}
	}
	e := event{o.head, choices}
	return o.write(func() error {
		if o.q.usage {
			return o.w.event(countedEvent{e, u})
		}
		return o.w.event(e)
	})
}

// begin sends the role before the first text of a chat's answer.
func (o *events) begin(c *choice) error {
	if c.begun || !o.q.chat {
		return nil
	}
	c.begun = true
	empty := ""
	return o.send(nil, chatPart{Index: c.index, Delta: chatDelta{Role: "assistant", Content: &empty}})
}

func (o *events) piece(c *choice, text string, scores []score) error {
	if err := o.begin(c); err != nil {
		return err
	}
	if o.q.chat {
		p := chatPart{Index: c.index, Delta: chatDelta{Content: &text}}
		if o.q.logprobs {
			p.Logprobs = chatScores(scores)
		}
		return o.send(nil, p)
	}
	p := textChoice{Text: text, Index: c.index}
	if o.q.logprobs {
		p.Logprobs = textScores(scores, o.q.request.Sample.TopLogprobs > 0)
	}
	return o.send(nil, p)
}

func (o *events) end(c *choice) error {
	if err := o.begin(c); err != nil {
		return err
	}
	if o.q.chat {
		return o.send(nil, chatPart{Index: c.index, Finish: finishReason(c)})
	}
	return o.send(nil, textChoice{Index: c.index, Finish: finishReason(c)})
}

func (o *events) finish(_ []*choice, u usage) error {
	if o.q.usage {
		if err := o.send(&u); err != nil {
			return err
		}
	}
	return o.w.done()
}
