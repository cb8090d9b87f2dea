package browser

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

const pageFile = "../../core/server/page/index.html"

// A fake answers as the server does, with texts that the test asks for.
type fake struct {
	url      string
	key      string
	template any // of the model: nil is a base model

	mu       sync.Mutex
	requests []chatRequest
	gone     chan struct{} // gets a value when a client leaves before the end
	step     chan struct{} // lets a "slow" answer go one word further
}

type chatRequest struct {
	path          string
	Model         string
	Prompt        string
	Messages      []struct{ Role, Content string }
	Temperature   float64
	TopP          float64 `json:"top_p"`
	MaxTokens     int     `json:"max_tokens"`
	Seed          int64
	RepeatPenalty float64 `json:"repetition_penalty"`
	Stream        bool
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
}

// newFake serves the page under the policy that the real server sends.
func newFake(t *testing.T, change func(*fake)) *fake {
	f := &fake{template: "chatml", gone: make(chan struct{}, 16), step: make(chan struct{})}
	if change != nil {
		change(f)
	}
	html, err := os.ReadFile(pageFile)
	if err != nil {
		t.Fatal(err)
	}
	policy := "default-src 'none'; script-src " + hashOf(t, html, "script") + "; style-src " + hashOf(t, html, "style") +
		"; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", policy)
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(html)
	})
	mux.HandleFunc("GET /v1/models", f.locked(func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"object": "list", "data": []any{
			map[string]any{"id": "small", "object": "model", "max_model_len": 512, "chat_template": f.template},
			map[string]any{"id": "large", "object": "model", "max_model_len": 4096, "chat_template": f.template},
		}})
	}))
	mux.HandleFunc("POST /v1/chat/completions", f.locked(f.answer))
	mux.HandleFunc("POST /v1/completions", f.locked(f.answer))
	s := httptest.NewServer(mux)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	f.url = s.URL
	return f
}

// hashOf is the source expression that allows the only element of this name.
func hashOf(t *testing.T, html []byte, element string) string {
	t.Helper()
	found := regexp.MustCompile(`(?s)<`+element+`>(.*?)</`+element+`>`).FindAllSubmatch(html, -1)
	if len(found) != 1 {
		t.Fatalf("the page has %d elements %s", len(found), element)
	}
	sum := sha256.Sum256(found[0][1])
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func (f *fake) locked(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if f.key != "" && r.Header.Get("Authorization") != "Bearer "+f.key {
			refuse(w, 401, "no API key")
			return
		}
		h(w, r)
	}
}

func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"message": message, "type": "invalid_request_error"}})
}

// last is the newest request.
func (f *fake) last() chatRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests[len(f.requests)-1]
}

const (
	injection = `<img src=x onerror=alert(1)><script>alert(2)</script> & "quotes" <b>bold</b> javascript:alert(3)`
	codeText  = "A function:\n\n```rust\nfn add(a: i32, b: i32) -> i32 {\n    a + b // <b>\n}\n```\n\nand that is all."
)

// answer does what the last message asks for.
func (f *fake) answer(w http.ResponseWriter, r *http.Request) {
	q := chatRequest{path: r.URL.Path}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		refuse(w, 400, err.Error())
		return
	}
	f.mu.Lock()
	f.requests = append(f.requests, q)
	f.mu.Unlock()
	chat := strings.Contains(q.path, "chat")
	asked := q.Prompt
	if chat {
		asked = q.Messages[len(q.Messages)-1].Content
	}
	text := "You said: " + asked
	switch asked {
	case "busy":
		w.Header().Set("Retry-After", "7")
		refuse(w, 429, "the queue is full")
		return
	case "long":
		refuse(w, 400, "prompt has 600 tokens, the context holds 512")
		return
	case "inject":
		text = injection
	case "code":
		text = codeText
	case "fn main() {":
		text = "\n    println!(\"hello\");\n}\n"
	}
	words := strings.SplitAfter(text, " ")
	if asked == "slow" || asked == "paced" {
		words = strings.SplitAfter(strings.Repeat("word ", 2000), " ")
	}
	send := func(v any) bool {
		b, _ := json.Marshal(v)
		_, err := fmt.Fprintf(w, "data: %s\n\n", b)
		w.(http.Flusher).Flush()
		return err == nil && r.Context().Err() == nil
	}
	choice := func(text string, reason any) map[string]any {
		c := map[string]any{"index": 0, "finish_reason": reason}
		if chat {
			c["delta"] = map[string]string{"content": text}
		} else {
			c["text"] = text
		}
		return map[string]any{"choices": []any{c}}
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for i, word := range words {
		if asked == "paced" {
			select {
			case <-f.step:
			case <-r.Context().Done():
			}
		}
		if asked == "slow" {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-r.Context().Done():
			}
		}
		if !send(choice(word, nil)) {
			f.gone <- struct{}{}
			return
		}
		if i == 1 && asked == "fail in the middle" {
			send(map[string]any{"error": map[string]any{"message": "the engine stopped"}})
			return
		}
		if i == 1 && asked == "cut the line" {
			panic(http.ErrAbortHandler)
		}
	}
	send(choice("", "stop"))
	if q.StreamOptions.IncludeUsage {
		send(map[string]any{"choices": []any{}, "usage": map[string]int{"prompt_tokens": 3, "completion_tokens": len(words)}})
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}
