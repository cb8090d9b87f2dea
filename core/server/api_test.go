package server

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// varying is what differs between two answers to the same request.
var varying = regexp.MustCompile(`"(id|created)":("[^"]*"|\d+)`)

// TestStreams compares whole streams with those in testdata. The weights are
// random and every processor computes the same bits, so the text is fixed.
// NANOCHAT_GOLDEN=write writes them anew.
func TestStreams(t *testing.T) {
	f := serve(t, Options{}, nil)
	for name, c := range map[string]struct{ path, body string }{
		"chat":             {"/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":3,"seed":1,"ignore_eos":true,"stream":true}`},
		"chat_usage":       {"/v1/chat/completions", `{"messages":[{"role":"user","content":"hi"}],"max_completion_tokens":2,"seed":1,"ignore_eos":true,"stream":true,"stream_options":{"include_usage":true}}`},
		"chat_logprobs":    {"/v1/chat/completions", `{"messages":[{"role":"user","content":"hi"}],"max_tokens":2,"temperature":0,"ignore_eos":true,"stream":true,"logprobs":true,"top_logprobs":2}`},
		"completion":       {"/v1/completions", `{"model":"m","prompt":"fn","max_tokens":3,"seed":1,"ignore_eos":true,"stream":true}`},
		"completion_echo":  {"/v1/completions", `{"prompt":"fn","max_tokens":2,"seed":1,"ignore_eos":true,"stream":true,"echo":true,"logprobs":1}`},
		"completion_usage": {"/v1/completions", `{"prompt":"fn","max_tokens":1,"seed":1,"ignore_eos":true,"stream":true,"stream_options":{"include_usage":true}}`},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.Post(f.url+c.path, "application/json", strings.NewReader(c.body))
			require.NoError(t, err)
			defer r.Body.Close()
			require.Equal(t, 200, r.StatusCode)
			require.Equal(t, "text/event-stream; charset=utf-8", r.Header.Get("Content-Type"))
			require.Equal(t, "no-cache", r.Header.Get("Cache-Control"))
			b, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			got := varying.ReplaceAllString(string(b), `"$1":0`)
			file := filepath.Join("testdata", name+".sse")
			if os.Getenv("NANOCHAT_GOLDEN") == "write" {
				require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
		})
	}
}

func TestStreamAndWholeAgree(t *testing.T) {
	f := serve(t, Options{}, nil)
	for i := range 20 {
		body := fmt.Sprintf(`{"prompt":"p%d","max_tokens":30,"seed":%d,"temperature":1.3`, i, i-5)
		whole := textOf(t, f.ok(t, "/v1/completions", body+"}"))
		_, b := f.post(t, "/v1/completions", body+`,"stream":true}`)
		events, err := eventsOf(strings.NewReader(string(b)))
		require.NoError(t, err)
		text, err := streamed(events)
		require.NoError(t, err)
		require.Equal(t, whole, text)
	}
}

func TestSeveralAnswers(t *testing.T) {
	f := serve(t, Options{}, nil)
	body := `{"prompt":["a","b"],"n":3,"seed":7,"max_tokens":9,"ignore_eos":true`
	all := f.ok(t, "/v1/completions", body+"}")["choices"].([]any)
	require.Len(t, all, 6)
	for i, c := range all {
		choice := c.(map[string]any)
		require.EqualValues(t, i, choice["index"])
		alone := f.ok(t, "/v1/completions", fmt.Sprintf(`{"prompt":%q,"seed":%d,"max_tokens":9,"ignore_eos":true}`, "ab"[i/3:i/3+1], 7+i%3))
		require.Equal(t, textOf(t, alone), choice["text"], "answer %d is that of its seed", i)
	}
	_, b := f.post(t, "/v1/completions", body+`,"stream":true}`)
	texts := make([]string, 6)
	ends := 0
	events, err := eventsOf(strings.NewReader(string(b)))
	require.NoError(t, err)
	for _, e := range events[:len(events)-1] {
		var v struct {
			Choices []struct {
				Index  int
				Text   string
				Finish *string `json:"finish_reason"`
			}
		}
		require.NoError(t, json.Unmarshal([]byte(e), &v))
		texts[v.Choices[0].Index] += v.Choices[0].Text
		if v.Choices[0].Finish != nil {
			ends++
		}
	}
	require.Equal(t, 6, ends)
	for i, c := range all {
		require.Equal(t, c.(map[string]any)["text"], texts[i])
	}
}

// TestBestOf: the answers sent are the likeliest of those that the seeds give.
func TestBestOf(t *testing.T) {
	f := serve(t, Options{}, nil)
	type scored struct {
		text string
		mean float64
	}
	var all []scored
	for seed := range 5 {
		v := f.ok(t, "/v1/completions", fmt.Sprintf(`{"prompt":"a","seed":%d,"max_tokens":9,"ignore_eos":true,"logprobs":0,"temperature":2}`, seed))
		c := v["choices"].([]any)[0].(map[string]any)
		sum, n := 0.0, 0.0
		for _, l := range c["logprobs"].(map[string]any)["token_logprobs"].([]any) {
			sum += l.(float64)
			n++
		}
		all = append(all, scored{c["text"].(string), sum / n})
	}
	best := f.ok(t, "/v1/completions", `{"prompt":"a","seed":0,"max_tokens":9,"ignore_eos":true,"best_of":5,"n":2,"temperature":2}`)
	choices := best["choices"].([]any)
	require.Len(t, choices, 2)
	require.Nil(t, choices[0].(map[string]any)["logprobs"])
	require.EqualValues(t, 45, best["usage"].(map[string]any)["completion_tokens"])
	for _, c := range choices {
		at := -1
		better := 0
		for i, s := range all {
			if s.text == c.(map[string]any)["text"] {
				at = i
			}
		}
		require.GreaterOrEqual(t, at, 0)
		for _, s := range all {
			if s.mean > all[at].mean {
				better++
			}
		}
		require.Less(t, better, 2)
	}
}

func TestStops(t *testing.T) {
	f := serve(t, Options{}, nil)
	body := `{"prompt":"x","max_tokens":60,"seed":2,"ignore_eos":true,"logprobs":0`
	whole := textOf(t, f.ok(t, "/v1/completions", body+"}"))
	runes := []rune(whole)
	stop, _ := json.Marshal(string(runes[10:13])) // each rune is a token or more
	v := f.ok(t, "/v1/completions", body+`,"stop":[`+string(stop)+`,"never"]}`)
	before, _, _ := strings.Cut(whole, string(runes[10:13]))
	require.Equal(t, before, textOf(t, v))
	choice := v["choices"].([]any)[0].(map[string]any)
	require.Equal(t, "stop", choice["finish_reason"])
	offsets := choice["logprobs"].(map[string]any)["text_offset"].([]any)
	require.Less(t, int(offsets[len(offsets)-1].(float64)), len([]rune(before)), "no token of the stop text is among the scores")
	require.Equal(t, textOf(t, f.ok(t, "/v1/completions", body+`,"stop":`+string(stop)+`}`)), before)
}

func TestLogprobsAreOfTheTokens(t *testing.T) {
	f := serve(t, Options{}, nil)
	v := f.ok(t, "/v1/completions", `{"prompt":"abc","max_tokens":5,"temperature":0,"ignore_eos":true,"echo":true,"logprobs":3}`)
	l := v["choices"].([]any)[0].(map[string]any)["logprobs"].(map[string]any)
	tokens, probs, top := l["tokens"].([]any), l["token_logprobs"].([]any), l["top_logprobs"].([]any)
	require.Len(t, tokens, 4+5) // <|endoftext|> a b c
	require.Nil(t, probs[0])
	for i := 4; i < 9; i++ { // greedy: the chosen is the likeliest
		for _, p := range top[i].(map[string]any) {
			require.LessOrEqual(t, p.(float64), probs[i].(float64))
		}
	}
	again := f.ok(t, "/v1/completions", `{"prompt":"abc","max_tokens":0,"echo":true,"logprobs":3}`)
	l2 := again["choices"].([]any)[0].(map[string]any)["logprobs"].(map[string]any)
	require.Equal(t, probs[:4], l2["token_logprobs"])
	require.Equal(t, "abc", textOf(t, again))
	bans := map[string]float64{}
	for i := range 299 {
		bans[fmt.Sprint(i)] = -100
	}
	b, err := json.Marshal(bans)
	require.NoError(t, err)
	v = f.ok(t, "/v1/chat/completions", `{"messages":[{"role":"user","content":"x"}],"max_tokens":3,"logprobs":true,"logit_bias":`+string(b)+`}`)
	content := v["choices"].([]any)[0].(map[string]any)["logprobs"].(map[string]any)["content"].([]any)
	for _, c := range content {
		require.Equal(t, content[0].(map[string]any)["token"], c.(map[string]any)["token"], "one token alone is allowed")
	}
}

func TestFillInTheMiddle(t *testing.T) {
	f := serve(t, Options{}, nil)
	v := f.ok(t, "/v1/completions", `{"prompt":"fn a() {","suffix":"}","max_tokens":4,"seed":1,"ignore_eos":true}`)
	plain := f.ok(t, "/v1/completions", `{"prompt":"fn a() {","max_tokens":4,"seed":1,"ignore_eos":true}`)
	require.NotEqual(t, v["usage"], plain["usage"])
	status, b := f.post(t, "/v1/completions", `{"prompt":[1,2],"suffix":"x"}`)
	require.Equal(t, 400, status)
	require.Equal(t, "suffix", errorIn(t, b).Param)
}

func TestEmbeddings(t *testing.T) {
	f := serve(t, Options{}, nil)
	v := f.ok(t, "/v1/embeddings", `{"input":["abc","d"],"encoding_format":"float"}`)
	data := v["data"].([]any)
	require.Len(t, data, 2)
	vector := data[0].(map[string]any)["embedding"].([]any)
	require.Len(t, vector, 64)
	sum := 0.0
	for _, x := range vector {
		sum += x.(float64) * x.(float64)
	}
	require.InDelta(t, 1, sum, 1e-5)
	packed := f.ok(t, "/v1/embeddings", `{"input":"abc","encoding_format":"base64","dimensions":64}`)
	raw, err := base64.StdEncoding.DecodeString(packed["data"].([]any)[0].(map[string]any)["embedding"].(string))
	require.NoError(t, err)
	require.Len(t, raw, 4*64)
	for i, x := range vector {
		bits := uint32(raw[4*i]) | uint32(raw[4*i+1])<<8 | uint32(raw[4*i+2])<<16 | uint32(raw[4*i+3])<<24
		require.Equal(t, float32(x.(float64)), math.Float32frombits(bits))
	}
	status, b := f.post(t, "/v1/embeddings", `{"input":"abc","dimensions":8}`)
	require.Equal(t, 400, status)
	require.Equal(t, "dimensions", errorIn(t, b).Param)
	for dims, want := range map[string]string{"0": "dimensions is 0: this model's", "1.5": "dimensions is 1.5, must be an integer", `"64"`: "dimensions is a string, must be an integer"} {
		status, b := f.post(t, "/v1/embeddings", `{"input":"abc","dimensions":`+dims+`}`)
		require.Equal(t, 400, status)
		require.Contains(t, errorIn(t, b).Message, want)
	}
}

func TestTokens(t *testing.T) {
	f := serve(t, Options{}, nil)
	v := f.ok(t, "/tokenize", `{"content":"größe <|endoftext|>","with_pieces":true}`)
	ids, err := json.Marshal(v["tokens"])
	require.NoError(t, err)
	require.EqualValues(t, len(v["pieces"].([]any)), v["count"])
	back := f.ok(t, "/detokenize", `{"tokens":`+string(ids)+`}`)
	require.Equal(t, "größe <|endoftext|>", back["content"])
	special := f.ok(t, "/tokenize", `{"content":"<|endoftext|>","special":true}`)
	require.EqualValues(t, 1, special["count"])
	require.EqualValues(t, 0, f.ok(t, "/tokenize", `{"content":""}`)["count"])
	require.EqualValues(t, 1, f.ok(t, "/tokenize", `{"content":"","add_special":true}`)["count"])
	chatted := f.ok(t, "/tokenize", `{"messages":[{"role":"user","content":"hi"}]}`)
	require.Greater(t, chatted["count"], 1.0)
	for body, param := range map[string]string{
		`{"tokens":[300]}`: "tokens", `{"tokens":[-1]}`: "tokens", `{"tokens":["a"]}`: "tokens", `{"tokens":3}`: "tokens", `{}`: "tokens", `{"tokens":[1.5]}`: "tokens",
	} {
		status, b := f.post(t, "/detokenize", body)
		require.Equal(t, 400, status, body)
		require.Equal(t, param, errorIn(t, b).Param, body)
	}
}

func TestModels(t *testing.T) {
	o := Options{Models: []ModelSpec{spec(t, "one"), spec(t, "owner/two")}, IdleUnload: 1}
	f := serve(t, o, nil)
	list := f.info(t, "/v1/models")
	require.Len(t, list["data"], 2)
	two := f.info(t, "/v1/models/owner/two")
	require.Equal(t, false, two["loaded"])
	require.Equal(t, "owner/two", f.ok(t, "/v1/completions", `{"model":"owner/two","prompt":"a","max_tokens":1}`)["model"])
	require.Equal(t, "one", f.ok(t, "/v1/completions", `{"prompt":"a","max_tokens":1}`)["model"])
	require.EqualValues(t, 128, f.info(t, "/v1/models/owner/two")["max_model_len"])
	status, b := f.post(t, "/v1/completions", `{"model":"three","prompt":"a"}`)
	require.Equal(t, 404, status)
	e := errorIn(t, b)
	require.Equal(t, "model_not_found", e.Code)
	require.Contains(t, e.Message, "one, owner/two")
	require.Equal(t, 404, f.get(t, "GET", "/v1/models/three").StatusCode)
	eventually(t, func() bool { return f.info(t, "/v1/models/owner/two")["loaded"] == false }, "an unused model leaves memory")
	require.Equal(t, 200, f.get(t, "GET", "/readyz").StatusCode, "it comes back when it is asked for")
	require.Equal(t, "owner/two", f.ok(t, "/v1/completions", `{"model":"owner/two","prompt":"a","max_tokens":1}`)["model"])
}

func TestPage(t *testing.T) {
	f := serve(t, Options{Keys: []string{"k"}}, nil)
	r := f.get(t, "GET", "/")
	require.Equal(t, 200, r.StatusCode)
	require.Contains(t, r.Header.Get("Content-Security-Policy"), "script-src 'sha256-")
	require.Contains(t, r.Header.Get("Content-Security-Policy"), "style-src 'sha256-")
	require.Equal(t, "nosniff", r.Header.Get("X-Content-Type-Options"))
	require.Equal(t, 404, serve(t, Options{NoPage: true}, nil).get(t, "GET", "/").StatusCode)
}
