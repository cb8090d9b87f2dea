package gopurego

import (
	"runtime"
	"unsafe"
)

// Session is a text that grows: what was computed for it is kept. It has one stream at
// a time.
type Session struct {
	l *Library
	h uintptr
}

// NewSession returns a session without text. Close closes it.
func (m *Model) NewSession() (*Session, error) {
	s := &Session{l: m.l}
	var err uintptr
	if e := m.l.check(m.l.c.sessionOpen(m.h, &s.h, &err), err); e != nil {
		return nil, e
	}
	return s, nil
}

// Generate starts the continuation of everything so far and text.
func (s *Session) Generate(text string, o GenerateOptions) (*Stream, error) {
	return s.l.stream(&o, func(c *generateOptions, stream, err *uintptr) Status {
		return s.l.c.sessionStream(s.h, unsafe.Pointer(unsafe.StringData(text)), uint64(len(text)), c, stream, err)
	})
}

// Tokens is the ids of everything so far.
func (s *Session) Tokens() ([]int32, error) {
	return read[int32](s.l, func(p unsafe.Pointer, n uint64, count *uint64, err *uintptr) Status {
		return s.l.c.sessionTokens(s.h, p, n, count, err)
	})
}

// Truncate keeps the first n tokens.
func (s *Session) Truncate(n int) error {
	var err uintptr
	status := s.l.c.sessionTruncate(s.h, uint64(max(n, 0)), &err)
	return s.l.check(status, err)
}

// Close closes the session. Its stream goes on.
func (s *Session) Close() error { return s.l.check(s.l.c.sessionClose(s.h), 0) }

// Message is one turn of a conversation; Role is system, user or assistant.
type Message struct{ Role, Content string }

// Chat starts the next answer of a conversation. An empty template is the model's own. With a
// session, which may be nil, what it has computed for the conversation is not computed again.
func (m *Model) Chat(s *Session, messages []Message, template string, o GenerateOptions) (*Stream, error) {
	var pins runtime.Pinner
	defer pins.Unpin()
	n := len(messages)
	roles, contents, lengths := make([]*byte, n+1), make([]*byte, n+1), make([]uint64, n+1)
	for i, message := range messages {
		roles[i], contents[i] = text(&pins, message.Role), text(&pins, message.Content)
		lengths[i] = uint64(len(message.Content))
	}
	pins.Pin(&roles[0])
	pins.Pin(&contents[0])
	var name unsafe.Pointer
	if template != "" {
		name = unsafe.Pointer(text(&pins, template))
	}
	session := uintptr(0)
	if s != nil {
		session = s.h
	}
	return m.l.stream(&o, func(c *generateOptions, stream, err *uintptr) Status {
		return m.l.c.chatOpen(m.h, session, &roles[0], &contents[0], &lengths[0], uint64(n), name, c, stream, err)
	})
}

// text is s with a NUL after it, pinned.
func text(pins *runtime.Pinner, s string) *byte {
	p := unsafe.StringData(s + "\x00")
	pins.Pin(p)
	return p
}

// GenerateTokens starts the continuation of ids.
func (m *Model) GenerateTokens(ids []int32, o GenerateOptions) (*Stream, error) {
	return m.l.stream(&o, func(c *generateOptions, stream, err *uintptr) Status {
		return m.l.c.streamOpenTokens(m.h, unsafe.Pointer(unsafe.SliceData(ids)), uint64(len(ids)), c, stream, err)
	})
}

// Fill starts the text between prefix and suffix.
func (m *Model) Fill(prefix, suffix string, o GenerateOptions) (*Stream, error) {
	return m.l.stream(&o, func(c *generateOptions, stream, err *uintptr) Status {
		return m.l.c.fimOpen(m.h, unsafe.Pointer(unsafe.StringData(prefix)), uint64(len(prefix)),
			unsafe.Pointer(unsafe.StringData(suffix)), uint64(len(suffix)), c, stream, err)
	})
}

// Logits is what the token that Next gave last was chosen from, or predicted by, with
// GenerateOptions.Logits; empty for the first token of a prompt.
func (s *Stream) Logits() ([]float32, error) {
	return read[float32](s.l, func(p unsafe.Pointer, n uint64, count *uint64, err *uintptr) Status {
		return s.l.c.streamLogits(s.h, p, n, count, err)
	})
}

// Embedding is that of the prompt, with GenerateOptions.Embedding; empty until it is
// computed.
func (s *Stream) Embedding() ([]float32, error) {
	return read[float32](s.l, func(p unsafe.Pointer, n uint64, count *uint64, err *uintptr) Status {
		return s.l.c.streamEmbedding(s.h, p, n, count, err)
	})
}
