package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// badBodies are requests that get 400, with the field at fault and a part of the message.
var badBodies = []struct{ path, body, param, says string }{
	{"C", ``, "", "empty"},
	{"C", `null`, "", "not a JSON object"},
	{"C", `[1]`, "", "not a JSON object"},
	{"C", `"x"`, "", "not a JSON object"},
	{"C", `{"prompt":"a"`, "", "ends too early"},
	{"C", `{"prompt":"a"}}`, "", "follows"},
	{"C", `{"prompt":"a"} x`, "", "follows"},
	{"C", `{"prompt":"a",}`, "", "offset"},
	{"C", `{prompt:1}`, "", "offset"},
	{"C", `{"prompt":"a","temperature":NaN}`, "", "offset"},
	{"C", `{"prompt":"a","temperature":Infinity}`, "", "offset"},
	{"C", "{\"prompt\":\"a\xff\"}", "", "0xff at offset 12"},
	{"C", `{"prompt":"\ud800"}`, "", "surrogate"},
	{"C", `{"prompt":"\udc00\ud800"}`, "", "surrogate"},
	{"C", `{"prompt":"a","prompt":"b"}`, "prompt", "twice"},
	{"C", `{"prompt":"a","logit_bias":{"1":1,"1":2}}`, "1", "twice"},
	{"C", `{}`, "prompt", "missing"},
	{"C", `{"prompt":null}`, "prompt", "missing"},
	{"C", `{"prompt":3}`, "prompt", "a number"},
	{"C", `{"prompt":[]}`, "prompt", "empty"},
	{"C", `{"prompt":[[]]}`, "prompt", "index 0"},
	{"C", `{"prompt":["a",1]}`, "prompt", "index 1"},
	{"C", `{"prompt":[1,"a"]}`, "prompt", "index 1"},
	{"C", `{"prompt":[300]}`, "prompt", "300"},
	{"C", `{"prompt":[-1]}`, "prompt", "-1"},
	{"C", `{"prompt":[1e3]}`, "prompt", "1e3"},
	{"C", `{"prompt":[99999999999]}`, "prompt", "no token id"},
	{"C", `{"prompt":"a","max_tokens":129}`, "max_tokens", "max_tokens is 129: at most 128"},
	{"C", `{"prompt":"a","max_tokens":-1}`, "max_tokens", "at least 0"},
	{"C", `{"prompt":"a","max_tokens":0}`, "max_tokens", "echo"},
	{"C", `{"prompt":"a","max_tokens":1.5}`, "max_tokens", "an integer"},
	{"C", `{"prompt":"a","max_tokens":"5"}`, "max_tokens", "a string"},
	{"C", `{"prompt":"a","max_tokens":1e999}`, "max_tokens", "at most 128"},
	{"C", `{"prompt":"a","n":9}`, "n", "n is 9: at most 8"},
	{"C", `{"prompt":"a","n":1000000000}`, "n", "at most 8"},
	{"C", `{"prompt":"a","n":0}`, "n", "at least 1"},
	{"C", `{"prompt":"a","n":2,"best_of":1}`, "best_of", "at least n"},
	{"C", `{"prompt":"a","best_of":2,"stream":true}`, "best_of", "cannot be streamed"},
	{"C", `{"prompt":"a","temperature":-1}`, "temperature", "temperature is -1: at least 0"},
	{"C", `{"prompt":"a","temperature":11}`, "temperature", "at most 10"},
	{"C", `{"prompt":"a","temperature":1e-9}`, "temperature", "0.000001"},
	{"C", `{"prompt":"a","temperature":true}`, "temperature", "a boolean"},
	{"C", `{"prompt":"a","top_p":1.01}`, "top_p", "at most 1"},
	{"C", `{"prompt":"a","top_k":-1}`, "top_k", "at least 0"},
	{"C", `{"prompt":"a","min_p":2}`, "min_p", "at most 1"},
	{"C", `{"prompt":"a","repetition_penalty":0}`, "repetition_penalty", "at least 0.01"},
	{"C", `{"prompt":"a","repeat_penalty":0}`, "repeat_penalty", "at least 0.01"},
	{"C", `{"prompt":"a","repeat_penalty":1,"repetition_penalty":1}`, "repeat_penalty", "mean the same"},
	{"C", `{"prompt":"a","presence_penalty":3}`, "presence_penalty", "at most 2"},
	{"C", `{"prompt":"a","frequency_penalty":-3}`, "frequency_penalty", "at least -2"},
	{"C", `{"prompt":"a","penalty_window":-3}`, "penalty_window", "at least 0"},
	{"C", `{"prompt":"a","seed":9223372036854775808}`, "seed", "from -2^63 to 2^63-1"},
	{"C", `{"prompt":"a","seed":1.5}`, "seed", "an integer"},
	{"C", `{"prompt":"a","seed":"x"}`, "seed", "a string"},
	{"C", `{"prompt":"a","logprobs":21}`, "logprobs", "at most 20"},
	{"C", `{"prompt":"a","logprobs":true}`, "logprobs", "a boolean"},
	{"C", `{"prompt":"a","stop":""}`, "stop", "0 bytes"},
	{"C", `{"prompt":"a","stop":["a","b","c","d","e"]}`, "stop", "5 elements"},
	{"C", `{"prompt":"a","stop":[1]}`, "stop", "a number"},
	{"C", `{"prompt":"a","stop":"` + strings.Repeat("x", 65) + `"}`, "stop", "65 bytes"},
	{"C", `{"prompt":"a","logit_bias":{"x":1}}`, "logit_bias", "no token id"},
	{"C", `{"prompt":"a","logit_bias":{"1":101}}`, "logit_bias", "at most 100"},
	{"C", `{"prompt":"a","logit_bias":{"300":1}}`, "logit_bias", "300"},
	{"C", `{"prompt":"a","logit_bias":[1]}`, "logit_bias", "an array"},
	{"C", `{"prompt":"a","stream":"yes"}`, "stream", "a string"},
	{"C", `{"prompt":"a","stream_options":{}}`, "stream_options", "stream is not true"},
	{"C", `{"prompt":"a","stream":true,"stream_options":{"include_usage":1}}`, "stream_options.include_usage", "a number"},
	{"C", `{"prompt":"a","suffix":1}`, "suffix", "a number"},
	{"C", `{"prompt":"a","suffix":"b","echo":true}`, "echo", "suffix"},
	{"C", `{"prompt":"a","model":3}`, "model", "a number"},
	{"C", `{"prompt":"` + strings.Repeat("a", 200) + `"}`, "prompt", "201 tokens; the context holds 128"},
	{"C", `{"prompt":"a","x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, "", "32 levels"},
	{"H", `{}`, "messages", "missing"},
	{"H", `{"messages":[]}`, "messages", "0 elements"},
	{"H", `{"messages":{}}`, "messages", "an object"},
	{"H", `{"messages":["a"]}`, "messages", "messages[0]"},
	{"H", `{"messages":[{"role":"user"}]}`, "messages", "content is missing"},
	{"H", `{"messages":[{"role":"king","content":"a"}]}`, "messages", "king"},
	{"H", `{"messages":[{"role":"tool","content":"a"}]}`, "messages", "not supported"},
	{"H", `{"messages":[{"role":"user","content":3}]}`, "messages", "a number"},
	{"H", `{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, "messages", "image_url"},
	{"H", `{"messages":[{"role":"user","content":[{"type":"text"}]}]}`, "messages", "no text"},
	{"H", `{"messages":[{"role":"user","content":"a"}],"tools":[{}]}`, "tools", "not supported"},
	{"H", `{"messages":[{"role":"user","content":"a"}],"functions":[{}]}`, "functions", "not supported"},
	{"H", `{"messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_object"}}`, "response_format", "json_object"},
	{"H", `{"messages":[{"role":"user","content":"a"}],"modalities":["audio"]}`, "modalities", "audio"},
	{"H", `{"messages":[{"role":"user","content":"a"}],"top_logprobs":2}`, "top_logprobs", "logprobs is not true"},
	{"H", `{"messages":[{"role":"user","content":"a"}],"max_tokens":2,"max_completion_tokens":2}`, "max_tokens", "mean the same"},
	{"H", `{"messages":[{"role":"user","content":"a"}],"max_completion_tokens":0}`, "max_tokens", "max_tokens is 0: a chat needs at least 1"},
	{"H", `{"messages":[{"role":"user","content":"a"}],"max_completion_tokens":200}`, "max_completion_tokens", "at most 128"},
	{"H", `{"messages":[{"role":"user","content":"a"}],"chat_template":"none"}`, "chat_template", "none"},
	{"E", `{}`, "input", "missing"},
	{"E", `{"input":""}`, "", ""},
	{"E", `{"input":"a","encoding_format":"hex"}`, "encoding_format", "float or base64"},
	{"T", `{}`, "content", "missing"},
	{"T", `{"content":"a","prompt":"b"}`, "prompt", "both"},
}

var paths = map[string]string{"C": "/v1/completions", "H": "/v1/chat/completions", "E": "/v1/embeddings", "T": "/tokenize"}

func TestBadBodies(t *testing.T) {
	f := serve(t, Options{}, nil)
	for _, c := range badBodies {
		if c.says == "" {
			continue
		}
		status, b := f.post(t, paths[c.path], c.body)
		require.Equal(t, 400, status, "%.100s: %s", c.body, b)
		e := errorIn(t, b)
		require.Equal(t, c.param, e.Param, "%.100s: %s", c.body, e.Message)
		require.Contains(t, e.Message, c.says, "%.100s", c.body)
		require.Equal(t, "invalid_request_error", e.Type)
	}
	f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":1}`)
}

func TestGoodBodies(t *testing.T) {
	f := serve(t, Options{}, nil)
	for _, c := range []struct{ path, body string }{
		{"C", `{"prompt":"","max_tokens":1}`},
		{"C", "  {\"prompt\":\"\\ud83d\\ude00 \\\\ud800\",\"max_tokens\":1}\n"},
		{"C", `{"prompt":"a","max_tokens":1,"top_p":0,"stop":[],"logit_bias":{}}`},
		{"C", `{"prompt":"a","max_tokens":2.0,"n":null,"seed":-5}`},
		{"H", `{"messages":[{"role":"user","content":"a","name":"x"}],"tools":[],"tool_choice":"none","response_format":{"type":"text"},"modalities":["text"],"max_tokens":1}`},
		{"H", `{"messages":[{"role":"developer","content":[]},{"role":"user","content":[{"type":"text","text":"a"}]}],"max_tokens":1}`},
	} {
		f.ok(t, paths[c.path], c.body)
	}
}

func TestUnknownFieldsAreCounted(t *testing.T) {
	f := serve(t, Options{}, nil)
	f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":1,"foo":1,"bar":{"baz":1},"user":"u"}`)
	require.Contains(t, f.log.String(), "ignored_fields=2")
}

// TestSizes: what is too large is refused before it is read.
func TestSizes(t *testing.T) {
	if race {
		t.Skip("it is about memory")
	}
	f := serve(t, Options{Limits: Limits{Body: 10000}}, nil)
	before := resident(t)
	status, b := f.post(t, "/v1/completions", `{"prompt":"`+strings.Repeat("a", 20000)+`"}`)
	require.Equal(t, 413, status)
	require.Contains(t, errorIn(t, b).Message, "at most 10000")
	r, err := http.Post(f.url+"/v1/completions", "", io.LimitReader(endless{}, 1<<30)) // chunked
	if err == nil {
		require.Equal(t, 413, r.StatusCode)
		r.Body.Close()
	}
	c := f.dial(t, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1099511627776\r\n\r\n{")
	require.Equal(t, 413, statusOf(t, c))
	require.Equal(t, 431, statusOf(t, f.dial(t, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "+strings.Repeat("a", 64<<10)+"\r\n\r\n")))
	require.Less(t, resident(t)-before, 16.0, "MiB")
	f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":1}`)

	many := make([]string, 200000)
	for i := range many {
		many[i] = fmt.Sprintf(`"%d":0`, i)
	}
	g := serve(t, Options{Limits: Limits{Body: 4 << 20}}, nil)
	for _, body := range []string{
		`{"prompt":"a","logit_bias":{` + strings.Join(many, ",") + `}}`,
		`{"prompt":"a","stop":[` + strings.Repeat(`"a",`, 100000) + `"a"]}`,
		`{"prompt":[` + strings.Repeat(`"a",`, 100000) + `"a"]}`,
		`{"prompt":"a","x":` + strings.Repeat(`[`, 100000),
		`{"prompt":"a","x":` + strings.Repeat(`{"a":`, 100000),
		`{"messages":[` + strings.Repeat(`{"role":"user","content":"a"},`, 5000) + `{}]}`,
		`{"prompt":[` + strings.Repeat(`1,`, 500000) + `1]}`,
	} {
		path := "/v1/completions"
		if strings.HasPrefix(body, `{"m`) {
			path = "/v1/chat/completions"
		}
		status, b := g.post(t, path, body)
		require.Equal(t, 400, status, "%s", b)
		errorIn(t, b)
	}
	require.Less(t, resident(t)-before, 24.0, "MiB")
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func statusOf(t *testing.T, c net.Conn) int {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 64)
	n, err := c.Read(b)
	require.NoError(t, err)
	var status int
	_, err = fmt.Sscanf(string(b[:n]), "HTTP/1.1 %d", &status)
	require.NoError(t, err, "%q", b[:n])
	return status
}

// TestBadHTTP: what is no request of HTTP/1.1 is refused or closed.
func TestBadHTTP(t *testing.T) {
	f := serve(t, Options{Limits: Limits{ReadHeader: 300 * time.Millisecond, Read: 400 * time.Millisecond}}, nil)
	for name, raw := range map[string]string{
		"HTTP/0.9":           "GET /\r\n\r\n",
		"two lengths":        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
		"length and chunks":  "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"bad chunk":          "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"chunks without end": "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
		"no host":            "GET /healthz HTTP/1.1\r\n\r\n",
		"bad header":         "GET /healthz HTTP/1.1\r\nHost: localhost\r\nA b: c\r\n\r\n",
		"gzip":               "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/2 preface":     "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"a body cut off":     "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{",
	} {
		c := f.dial(t, raw)
		c.SetReadDeadline(time.Now().Add(3 * time.Second))
		b := make([]byte, 64)
		n, err := c.Read(b)
		if err != nil { // closed without a word
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded, name)
			continue
		}
		require.Regexp(t, `^HTTP/1\.[01] (4|505)`, string(b[:n]), name)
	}
	f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":1}`)
}

// FuzzBody sends any body to any path: the answer is JSON or events with a status
// below 500, and the server is unharmed.
func FuzzBody(f *testing.F) {
	for _, c := range badBodies {
		f.Add(c.path[0], []byte(c.body))
	}
	f.Add(byte('H'), []byte(`{"messages":[{"role":"user","content":"a"}],"max_tokens":1,"stream":true,"n":2,"logprobs":true,"top_logprobs":1,"stop":["b"],"logit_bias":{"3":-100}}`))
	f.Add(byte('C'), []byte(`{"prompt":["a","b"],"max_tokens":1,"echo":true,"logprobs":1,"best_of":2,"suffix":null,"seed":3}`))
	f.Add(byte('D'), []byte(`{"tokens":[1,2,3]}`))
	f.Add(byte('E'), []byte(`{"input":[[1,2],[3]],"encoding_format":"base64"}`))
	s, err := New(Options{Models: []ModelSpec{spec(f, "m")}, Parallel: 2, Queue: 64, Limits: Limits{MaxTokens: 2}})
	require.NoError(f, err)
	require.NoError(f, s.Load(f.Context(), ""))
	f.Cleanup(func() { s.Close() })
	all := map[byte]string{'C': paths["C"], 'H': paths["H"], 'E': paths["E"], 'T': paths["T"], 'D': "/detokenize"}
	f.Fuzz(func(t *testing.T, which byte, body []byte) {
		path, ok := all[which]
		if !ok {
			path = all["CHETD"[which%5]]
		}
		r := httptest.NewRequest("POST", path, strings.NewReader(string(body)))
		r.Host = "localhost"
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != 200 && (w.Code < 400 || w.Code > 499) {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		switch {
		case strings.HasPrefix(w.Header().Get("Content-Type"), "text/event-stream"):
			events, err := eventsOf(w.Body)
			if err != nil || events[len(events)-1] != "[DONE]" {
				t.Fatalf("%v: %q", err, events)
			}
		case !json.Valid(w.Body.Bytes()):
			t.Fatalf("no JSON: %q", w.Body)
		}
		if w.Code == 200 && !(utf8.Valid(body) && json.Valid(body)) {
			t.Fatalf("accepted %q", body)
		}
		if w.Code != 200 {
			var e struct{ Error *wrong }
			if json.Unmarshal(w.Body.Bytes(), &e) != nil || e.Error == nil || e.Error.Message == "" {
				t.Fatalf("no error: %s", w.Body)
			}
		}
		if g := s.models[0].gate; g.entered+g.waiting+g.parked != 0 {
			t.Fatalf("%d places are not free", g.entered+g.waiting+g.parked)
		}
	})
}
