package capi

import (
	"fmt"
	"sync"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/infer"
)

// openedSession is the value of a session's handle.
type openedSession struct {
	model *entry // kept as long as the session
	*chat.Session

	mu   sync.Mutex
	last *stream // the stream opened last
}

// idle says whether the last stream was read to its end or closed. What was cancelled
// is waited for: at most a step.
func (s *openedSession) idle() bool {
	if s.last == nil {
		return true
	}
	if !s.last.over.Load() {
		return false
	}
	if s.last.ctx.Err() != nil {
		s.last.s.Close()
	}
	s.last = nil
	return true
}

// stream opens the next stream; its handle keeps e, the entry of s.
func (s *openedSession) stream(e *entry, r chat.Request) (uintptr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.idle() {
		return 0, infer.ErrBusy
	}
	next, err := newStream(e, s.Generate, r)
	if err != nil {
		return 0, err
	}
	s.last = next
	return handles.add(kindStream, next, next.free), nil
}

// openSession is nanochat_session_open.
func openSession(model uintptr) (uintptr, error) {
	e, m, err := useModel(model)
	if err != nil {
		return 0, err
	}
	s := &openedSession{model: e, Session: m.NewSession()}
	return handles.add(kindSession, s, func() {
		s.Close()
		s.model.release()
	}), nil
}

// useSession finds the session of a handle; the entry is to be released.
func useSession(h uintptr) (*entry, *openedSession, error) {
	e, err := handles.use(kindSession, h)
	if err != nil {
		return nil, nil, err
	}
	return e, e.value.(*openedSession), nil
}

// continueSession is nanochat_session_stream.
func continueSession(h uintptr, text string, o generateOptions) (uintptr, error) {
	e, s, err := useSession(h)
	if err != nil {
		return 0, err
	}
	defer e.release()
	r, err := o.request()
	if err != nil {
		return 0, err
	}
	r.Prompt = text
	return s.stream(e, r)
}

// sessionIDs is nanochat_session_tokens.
func sessionIDs(h uintptr) ([]int32, error) {
	e, s, err := useSession(h)
	if err != nil {
		return nil, err
	}
	defer e.release()
	return s.IDs(), nil
}

// truncateSession is nanochat_session_truncate.
func truncateSession(h uintptr, keep int) error {
	e, s, err := useSession(h)
	if err != nil {
		return err
	}
	defer e.release()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.idle() {
		return infer.ErrBusy
	}
	return s.Truncate(keep)
}

// chatPrompt is the ids of a conversation and the texts that end its answer.
func chatPrompt(m *openedModel, roles, contents []string, template string) ([]int32, []string, error) {
	messages := make([]chat.Message, len(roles))
	for i := range roles {
		messages[i] = chat.Message{Role: roles[i], Content: contents[i]}
	}
	return m.ChatPrompt(messages, template)
}

// openChat is nanochat_chat_open; session may be 0.
func openChat(model, session uintptr, roles, contents []string, template string, o generateOptions) (uintptr, error) {
	complete := func(m *openedModel, r *chat.Request) error {
		ids, stops, err := chatPrompt(m, roles, contents, template)
		r.IDs, r.Stop = ids, append(r.Stop, stops...)
		return err
	}
	if session == 0 {
		return openOn(model, o, complete)
	}
	e, m, err := useModel(model)
	if err != nil {
		return 0, err
	}
	defer e.release()
	of, s, err := useSession(session)
	if err != nil {
		return 0, err
	}
	defer of.release()
	if s.model != e {
		return 0, invalid("the session is one of another model", "")
	}
	r, err := o.request()
	if err != nil {
		return 0, err
	}
	if err := complete(m, &r); err != nil {
		return 0, err
	}
	return s.stream(of, r)
}

// chatIDs is nanochat_chat_tokens.
func chatIDs(model uintptr, roles, contents []string, template string) ([]int32, error) {
	e, m, err := useModel(model)
	if err != nil {
		return nil, err
	}
	defer e.release()
	ids, _, err := chatPrompt(m, roles, contents, template)
	return ids, err
}

// openTokens is nanochat_stream_open_tokens.
func openTokens(model uintptr, ids []int32, o generateOptions) (uintptr, error) {
	return openOn(model, o, func(m *openedModel, r *chat.Request) error {
		r.IDs = ids
		return m.checkIDs(ids)
	})
}

// openFIM is nanochat_fim_open.
func openFIM(model uintptr, prefix, suffix string, o generateOptions) (uintptr, error) {
	return openOn(model, o, func(m *openedModel, r *chat.Request) (err error) {
		r.IDs, err = m.FIMPrompt(prefix, suffix)
		return err
	})
}

// checkIDs says which of ids is no token.
func (m *openedModel) checkIDs(ids []int32) error {
	n := m.Tokenizer().Vocab()
	for i, id := range ids {
		if id < 0 || int(id) >= n {
			return invalid(fmt.Sprintf("ids[%d] is %d, tokens are 0 to %d", i, id, n-1), "")
		}
	}
	return nil
}
