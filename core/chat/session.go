package chat

import (
	"context"
	"slices"
	"sync"

	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/tokenizer"
)

// Session is a text that grows: what was computed for it is kept for what follows. It is
// never tokenised again, so an answer is that of Model.Generate with the same ids.
//
// It has one stream at a time. Methods may be called from any goroutine.
type Session struct {
	m     *Model
	inner *infer.Session

	mu sync.Mutex
	// own says that ids is the text; else it is that of inner: the last prompt and the
	// tokens read of its answer.
	own bool
	ids []int32
}

// NewSession returns a session without text.
func (m *Model) NewSession() *Session { return &Session{m: m, inner: m.engine.NewSession()} }

// IDs is the text so far: the prompts, and the tokens that were read of the answers.
func (s *Session) IDs() []int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.text())
}

func (s *Session) text() []int32 {
	if s.own {
		return s.ids
	}
	return s.inner.IDs()
}

// with is the text and what a request adds to it.
func (s *Session) with(text string, special bool) []int32 {
	ids := s.text()
	return s.m.tok.Encode(slices.Clip(ids), text, tokenizer.EncodeOptions{AddBOS: len(ids) == 0 && s.m.tok.AddsBOS(), ParseSpecial: special})
}

// Append adds text without computing anything yet. Like Truncate it returns
// infer.ErrBusy while a stream has not ended.
func (s *Session) Append(text string, special bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inner.Busy() {
		return infer.ErrBusy
	}
	s.ids, s.own = s.with(text, special), true
	return nil
}

// Truncate keeps the first n ids of the text; n beyond its end keeps all.
func (s *Session) Truncate(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inner.Busy() {
		return infer.ErrBusy
	}
	ids := s.text()
	s.ids, s.own = ids[:min(max(n, 0), len(ids))], true
	return nil
}

// Generate is Model.Generate for the session's text: Prompt follows it, IDs replaces it.
// Only what is not computed yet is computed. At an error the text stays as it was;
// infer.ErrBusy says that the last stream has not ended.
func (s *Session) Generate(ctx context.Context, r Request) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inner.Busy() {
		return nil, infer.ErrBusy
	}
	stream, err := s.m.generate(ctx, r, s.inner.Generate, func() []int32 { return s.with(r.Prompt, r.ParseSpecial) })
	if err != nil {
		return nil, err
	}
	s.ids, s.own = nil, false
	return stream, nil
}

// Close ends the session's stream and frees what it keeps. It may be called twice.
func (s *Session) Close() { s.inner.Close() }
