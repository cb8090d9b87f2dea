package load

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"time"
)

// client sends requests to one server.
type client struct{ o Options }

// maxLine bounds a line of an answer.
const maxLine = 1 << 20

// prepare finds out which model is meant, and whether there is a server at all.
func (c *client) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	res, err := c.do(ctx, http.MethodGet, "/v1/models", nil)
	if err != nil {
		return fmt.Errorf("load: server %s: %s", c.o.URL, causeOf(err))
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxLine))
	if err != nil {
		return fmt.Errorf("load: server %s: %w", c.o.URL, err)
	}
	if res.StatusCode != http.StatusOK {
		return &StatusError{c.o.URL, res.StatusCode, message(b)}
	}
	var list struct{ Data []struct{ ID string } }
	if err := json.Unmarshal(b, &list); err != nil || len(list.Data) == 0 {
		return fmt.Errorf("load: server %s: /v1/models lists no model", c.o.URL)
	}
	if c.o.Model == "" {
		c.o.Model = list.Data[0].ID
	}
	return nil
}

// StatusError is a server that refuses to tell its models.
type StatusError struct {
	URL     string
	Status  int
	Message string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("load: server %s: %d: %s", e.URL, e.Status, e.Message)
}

// causeOf leaves out the method and the URL.
func causeOf(err error) string {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return err.Error()
}

// message is what an answer in OpenAI's form says.
func message(b []byte) string {
	var e struct{ Error struct{ Message string } }
	if json.Unmarshal(b, &e) != nil || e.Error.Message == "" {
		return string(bytes.TrimSpace(b[:min(len(b), 200)]))
	}
	return e.Error.Message
}

func (c *client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.o.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.o.Key != "" {
		req.Header.Set("Authorization", "Bearer "+c.o.Key)
	}
	return c.o.Client.Do(req)
}

// event is what a piece of a streamed answer has that is of interest here.
type event struct {
	Choices []struct {
		Text  string
		Delta struct{ Content string }
	}
	Usage *struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
	}
	Error *struct{ Message string }
}

// one sends a request that is due at this time and reads its answer.
func (c *client) one(ctx context.Context, due time.Time, prompt string, seed uint64) (s sample) {
	body := map[string]any{
		"model": c.o.Model, "max_tokens": c.o.MaxTokens, "temperature": c.o.Temperature, "seed": seed & math.MaxInt64,
		"stream": true, "stream_options": map[string]bool{"include_usage": true},
	}
	path := "/v1/completions"
	if c.o.Chat {
		path = "/v1/chat/completions"
		body["messages"] = []map[string]string{{"role": "user", "content": prompt}}
	} else {
		body["prompt"] = prompt
	}
	b, err := json.Marshal(body)
	if err != nil {
		return sample{fault: err.Error()}
	}
	since := func() time.Duration { return c.o.clock.Now().Sub(due) }
	s.sent = since()
	defer func() { s.end = since() }()
	all := ctx
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	res, err := c.do(ctx, http.MethodPost, path, b)
	if err != nil {
		s.fault, s.said = faultOf(all, err, "connection"), causeOf(err)
		return s
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(res.Body, maxLine)) // whole, so that the connection can be used again
		s.fault, s.said = fmt.Sprint(res.StatusCode), message(b)
		return s
	}
	s.fault = faultOf(all, c.read(res.Body, &s, since), "stream cut")
	return s
}

var (
	errStream    = errors.New("error in the stream")
	errMalformed = errors.New("malformed stream")
)

// faultOf is the kind of failure that err is.
func faultOf(ctx context.Context, err error, otherwise string) string {
	var n net.Error
	switch {
	case err == nil:
		return ""
	case ctx.Err() != nil:
		return "cancelled"
	case errors.Is(err, errStream), errors.Is(err, errMalformed):
		return err.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &n) && n.Timeout():
		return "timeout"
	}
	return otherwise
}

// read takes the server-sent events of an answer up to its end.
func (c *client) read(body io.Reader, s *sample, since func() time.Duration) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data:"))
		if !ok {
			continue
		}
		if data = bytes.TrimSpace(data); string(data) == "[DONE]" {
			_, err := io.Copy(io.Discard, body)
			return err
		}
		now := since()
		var e event
		if err := json.Unmarshal(data, &e); err != nil {
			return errMalformed
		}
		switch {
		case e.Error != nil:
			s.said = e.Error.Message
			return errStream
		case e.Usage != nil:
			s.prompt, s.told = e.Usage.Prompt, e.Usage.Completion
		}
		if len(e.Choices) == 0 || e.Choices[0].Text == "" && e.Choices[0].Delta.Content == "" {
			continue
		}
		if s.pieces++; s.pieces == 1 {
			s.first = now
		} else {
			s.gaps = append(s.gaps, now-s.last)
		}
		s.last = now
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return errMalformed
	}
	if lines.Err() != nil {
		return lines.Err()
	}
	return io.ErrUnexpectedEOF
}
