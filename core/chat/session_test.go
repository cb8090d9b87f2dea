package chat

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/core/tokenizer"
)

// drain reads at most limit pieces of a stream (fewer than 0 means all).
func drain(t testing.TB, s *Stream, limit int) (text string, ids []int32) {
	t.Helper()
	for limit < 0 || len(ids) < limit {
		p, err := s.Next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		text += p.Text
		if p.ID >= 0 && !p.Echo {
			ids = append(ids, p.ID)
		}
	}
	return text, ids
}

// TestSessionAnswersAsTheModel: after any sequence of prompts, appends, truncations and
// answers read to any length, the next answer is that of the same ids without a session,
// and what was computed is used.
func TestSessionAnswersAsTheModel(t *testing.T) {
	m := open(t, Options{Engine: infer.Options{MaxBatch: 2}})
	plain := open(t, Options{Engine: infer.Options{NoPrefixCache: true}})
	rapid.Check(t, func(rt *rapid.T) {
		s := m.NewSession()
		defer s.Close()
		var text []int32
		for turn := range rapid.IntRange(1, 4).Draw(rt, "turns") {
			more := rapid.StringN(0, 6, 12).Draw(rt, "text")
			if rapid.Bool().Draw(rt, "append") {
				require.NoError(rt, s.Append(more, false))
				text = append(text, m.tok.Encode(nil, more, tokenizer.EncodeOptions{AddBOS: len(text) == 0})...)
			}
			if rapid.IntRange(0, 3).Draw(rt, "cut") == 0 {
				n := rapid.IntRange(-1, len(text)+1).Draw(rt, "keep")
				require.NoError(rt, s.Truncate(n))
				text = text[:min(max(n, 0), len(text))]
			}
			require.True(rt, slices.Equal(text, s.IDs()), "turn %d", turn)
			r := Request{Prompt: more + "a", MaxTokens: rapid.IntRange(1, 8).Draw(rt, "max"), IgnoreEnd: true, Sample: sample.Options{Temperature: 1, Seed: 3}}
			if rapid.IntRange(0, 4).Draw(rt, "ids") == 0 {
				r.Prompt, r.IDs = "", slices.Concat(text, []int32{5})
				text = r.IDs
			} else {
				text = m.tok.Encode(slices.Clip(text), r.Prompt, tokenizer.EncodeOptions{AddBOS: len(text) == 0})
			}
			limit := -1
			if rapid.Bool().Draw(rt, "leave") {
				limit = rapid.IntRange(0, 4).Draw(rt, "read")
			}
			stream, err := s.Generate(t.Context(), r)
			require.NoError(rt, err)
			_, got := drain(t, stream, limit)
			stream.Close()
			alone, err := plain.Generate(t.Context(), Request{IDs: text, MaxTokens: r.MaxTokens, IgnoreEnd: true, Sample: r.Sample})
			require.NoError(rt, err)
			_, want := drain(t, alone, limit)
			alone.Close()
			require.True(rt, slices.Equal(want, got), "turn %d: %v, want %v", turn, got, want)
			text = slices.Concat(text, got)
			require.True(rt, slices.Equal(text, s.IDs()))
		}
	})
}

func TestSessionReusesWhatItHas(t *testing.T) {
	m := open(t, Options{})
	s := m.NewSession()
	defer s.Close()
	ask := func(r Request) infer.Result {
		r.MaxTokens, r.IgnoreEnd = 5, true
		stream, err := s.Generate(t.Context(), r)
		require.NoError(t, err)
		drain(t, stream, -1)
		return stream.Result()
	}
	require.Zero(t, ask(Request{Prompt: "fn main"}).CachedTokens)
	n := len(s.IDs())
	require.Equal(t, 1+7+5, n)
	r := ask(Request{Prompt: "() {"})
	require.Equal(t, n-1, r.CachedTokens, "all but the last token, which was not fed back")
	require.Equal(t, n+4, r.PromptTokens)
	require.NoError(t, s.Truncate(n))
	require.Equal(t, n, ask(Request{Prompt: "x"}).CachedTokens)
	other := append(slices.Clone(s.IDs()[:4]), 9, 9)
	require.Equal(t, 4, ask(Request{IDs: other}).CachedTokens)
}

func TestSessionHasOneStream(t *testing.T) {
	m := open(t, Options{})
	s := m.NewSession()
	require.Empty(t, s.IDs())
	_, err := s.Generate(t.Context(), Request{Prompt: strings.Repeat("a", 500)})
	var full *infer.ContextError
	require.ErrorAs(t, err, &full)
	require.Empty(t, s.IDs(), "a request that fails adds nothing")
	require.NoError(t, s.Append("b", false))
	stream, err := s.Generate(t.Context(), Request{Prompt: "a", IgnoreEnd: true})
	require.NoError(t, err)
	_, err = stream.Next(t.Context())
	require.NoError(t, err)
	_, err = s.Generate(t.Context(), Request{Prompt: "a"})
	require.ErrorIs(t, err, infer.ErrBusy)
	require.ErrorIs(t, s.Append("c", false), infer.ErrBusy)
	require.ErrorIs(t, s.Truncate(0), infer.ErrBusy)
	require.Len(t, s.IDs(), 1+1+1+1)
	s.Close()
	for err == nil || errors.Is(err, infer.ErrBusy) {
		_, err = stream.Next(t.Context())
	}
	require.ErrorIs(t, err, infer.ErrClosed)
	_, err = s.Generate(t.Context(), Request{Prompt: "a"})
	require.ErrorIs(t, err, infer.ErrClosed)
	s.Close()

	gone, cancel := context.WithCancel(t.Context())
	s = m.NewSession()
	defer s.Close()
	stream, err = s.Generate(gone, Request{Prompt: "a", IgnoreEnd: true})
	require.NoError(t, err)
	cancel()
	stream.Close()
	require.NoError(t, s.Append("x", true))
}

// TestChatInASession is how a conversation goes on: the whole prompt every time, the
// common beginning computed once.
func TestChatInASession(t *testing.T) {
	m := open(t, Options{})
	s := m.NewSession()
	defer s.Close()
	messages := []Message{{RoleUser, "fn a() {"}}
	for turn := range 3 {
		ids, stops, err := m.ChatPrompt(messages, "")
		require.NoError(t, err)
		r := Request{IDs: ids, Stop: stops, MaxTokens: 10, IgnoreEnd: true, Sample: sample.Options{LogitBias: map[int32]float32{'q': 100}}}
		stream, err := s.Generate(t.Context(), r)
		require.NoError(t, err)
		text, _ := drain(t, stream, -1)
		require.Equal(t, strings.Repeat("q", 10), text)
		if turn > 0 {
			require.Greater(t, stream.Result().CachedTokens, 10*turn)
		}
		messages = append(messages, Message{RoleAssistant, text}, Message{RoleUser, "fn b() {"})
	}
}

func TestAfterClose(t *testing.T) {
	m, err := Open(t.Context(), file(t, 300, 300), Options{})
	require.NoError(t, err)
	s := m.NewSession()
	require.NoError(t, s.Append("a", false))
	require.NoError(t, m.Close())
	_, err = s.Generate(t.Context(), Request{})
	require.ErrorIs(t, err, infer.ErrClosed)
	_, err = m.Generate(t.Context(), Request{Prompt: "a"})
	require.ErrorIs(t, err, infer.ErrClosed)
	require.Zero(t, m.Stats().Running)
	require.NotEmpty(t, m.Prompt("a", false))
	require.Equal(t, 64, m.Config().Dim)
	s.Close()
}
