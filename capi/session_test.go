package capi

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/sample"
)

// ignoring is options of an answer of n tokens.
func ignoring(n uint32) generateOptions {
	return generateOptions{maxTokens: n, flags: flagIgnoreEnd, sample: sample.Options{Temperature: 1, Seed: 3}}
}

// read is a piece with what it carries.
type read struct {
	piece
	text   string
	top    []sample.Candidate
	logits []float32
}

// all reads a stream to its end.
func all(t testing.TB, h uintptr) (out []read) {
	t.Helper()
	e, s, err := useStream(h)
	require.NoError(t, err)
	defer e.release()
	b := make([]byte, 1024)
	for {
		p, err := s.next(forever, b)
		require.NoError(t, err)
		if p.finish != 0 {
			return out
		}
		top, err := s.candidates()
		require.NoError(t, err)
		row, err := s.row()
		require.NoError(t, err)
		out = append(out, read{p, string(b[:p.length]), top, row})
	}
}

func idsOf(pieces []read) (ids []int32) {
	for _, p := range pieces {
		if p.token >= 0 {
			ids = append(ids, p.token)
		}
	}
	return ids
}

func closeStream(t testing.TB, h uintptr) {
	t.Helper()
	require.NoError(t, closeHandle(kindStream, h))
}

func TestSessionsGoOn(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	s, err := openSession(h)
	require.NoError(t, err)
	first, err := continueSession(s, "fn a", ignoring(5))
	require.NoError(t, err)
	_, err = continueSession(s, "x", ignoring(5))
	requireStatus(t, statusBusy, "stream", err)
	requireStatus(t, statusBusy, "stream", truncateSession(s, 1))
	answered := idsOf(all(t, first))
	closeStream(t, first)

	prompt, err := tokenize(h, "fn a", flagPrompt)
	require.NoError(t, err)
	ids, err := sessionIDs(s)
	require.NoError(t, err)
	require.Equal(t, append(prompt, answered...), ids)

	second, err := continueSession(s, " { b", ignoring(5))
	require.NoError(t, err)
	got := idsOf(all(t, second))
	more, err := tokenize(h, " { b", 0)
	require.NoError(t, err)
	whole, err := openTokens(h, append(ids, more...), ignoring(5))
	require.NoError(t, err)
	require.Equal(t, idsOf(all(t, whole)), got)
	e, v, err := useStream(second)
	require.NoError(t, err)
	r, err := v.result()
	require.NoError(t, err)
	require.Equal(t, len(ids)+len(more), r.PromptTokens)
	require.Positive(t, r.CachedTokens)
	e.release()
	closeStream(t, second)
	closeStream(t, whole)

	require.NoError(t, truncateSession(s, 3))
	kept, err := sessionIDs(s)
	require.NoError(t, err)
	require.Equal(t, ids[:3], kept)
	last, err := continueSession(s, "", ignoring(2))
	require.NoError(t, err)
	require.NoError(t, closeHandle(kindSession, s)) // its stream goes on
	require.Len(t, idsOf(all(t, last)), 2)
	closeStream(t, last)
	_, err = sessionIDs(s)
	requireStatus(t, statusClosed, "session", err)
	_, err = openSession(s)
	requireStatus(t, statusInvalid, "session", err)
}

func TestChat(t *testing.T) {
	h, other := open(t, modelOptions{threads: 1}), open(t, modelOptions{threads: 1})
	roles, contents := []string{"system", "user"}, []string{"be brief", "hi <|end|>"}
	plain, err := chatIDs(h, roles, contents, "")
	require.NoError(t, err)
	ids, err := chatIDs(h, roles, contents, "phi3")
	require.NoError(t, err)
	require.NotEqual(t, plain, ids)
	end, err := tokenize(h, "<|end|>", flagSpecial)
	require.NoError(t, err)
	require.Len(t, end, 1)
	ends := 0
	for _, id := range ids {
		if id == end[0] {
			ends++
		}
	}
	require.Equal(t, 2, ends, "what looks like a token in a content stays text")

	s, err := openSession(h)
	require.NoError(t, err)
	want := []int32(nil)
	for _, session := range []uintptr{0, s, s} {
		c, err := openChat(h, session, roles, contents, "phi3", ignoring(6))
		require.NoError(t, err)
		got := idsOf(all(t, c))
		closeStream(t, c)
		if want == nil {
			want = got
		}
		require.Equal(t, want, got)
	}
	_, err = openChat(other, s, roles, contents, "phi3", ignoring(6))
	requireStatus(t, statusInvalid, "another model", err)
	require.NoError(t, closeHandle(kindSession, s))

	_, err = openChat(h, 0, []string{"robot"}, []string{"x"}, "", ignoring(1))
	requireStatus(t, statusInvalid, "robot", err)
	_, err = openChat(h, 0, roles, contents, "telex", ignoring(1))
	requireStatus(t, statusInvalid, "telex", err)
	_, err = openChat(h, 0, roles, contents, "chatml", ignoring(1))
	requireStatus(t, statusUnsupported, "chatml", err)
	_, err = chatIDs(h, nil, nil, "")
	requireStatus(t, statusInvalid, "messages", err)
}

func TestTokensAndGaps(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	ids, err := tokenize(h, "let x", flagPrompt)
	require.NoError(t, err)
	byIDs, err := openTokens(h, ids, ignoring(8))
	require.NoError(t, err)
	byText, err := openStream(h, "let x", ignoring(8))
	require.NoError(t, err)
	require.Equal(t, idsOf(all(t, byText)), idsOf(all(t, byIDs)))
	closeStream(t, byIDs)
	closeStream(t, byText)
	_, err = openTokens(h, []int32{1, 300}, ignoring(1))
	requireStatus(t, statusInvalid, "ids[1] is 300", err)
	gap, err := openFIM(h, "fn a() {", "}", ignoring(4))
	require.NoError(t, err)
	require.Len(t, idsOf(all(t, gap)), 4)
	closeStream(t, gap)
}

func TestEchoLogitsAndEmbedding(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	o := generateOptions{flags: flagEcho | flagLogits | flagLogprobs | flagEmbedding | flagPromptOnly, sample: sample.Options{TopLogprobs: 2}}
	s, err := openStream(h, "fn main", o)
	require.NoError(t, err)
	e, v, err := useStream(s)
	require.NoError(t, err)
	pieces := all(t, s)
	prompt, err := tokenize(h, "fn main", flagPrompt)
	require.NoError(t, err)
	require.Equal(t, prompt, idsOf(pieces))
	text := ""
	for i, p := range pieces {
		require.EqualValues(t, pieceEcho, p.flags)
		text += p.text
		if i == 0 {
			require.Empty(t, p.logits)
			continue
		}
		require.Len(t, p.logits, 300)
		require.Negative(t, p.logprob)
		require.Len(t, p.top, 2)
		require.Greater(t, p.logits[p.top[0].ID], p.logits[p.top[1].ID])
	}
	require.Equal(t, "fn main", text)
	values, err := v.embedding()
	require.NoError(t, err)
	require.Len(t, values, 64)
	row, err := v.row()
	require.NoError(t, err)
	require.Empty(t, row, "after the end there are none")
	e.release()
	closeStream(t, s)

	s, err = openStream(h, "x", ignoring(1))
	require.NoError(t, err)
	e, v, err = useStream(s)
	require.NoError(t, err)
	_, err = v.embedding()
	requireStatus(t, statusInvalid, "embedding", err)
	e.release()
	closeStream(t, s)
}

func TestAllStreamsOrNone(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	before := handles.len()
	_, err := openStreams(h, []string{"a", "b", string(make([]byte, 500))}, ignoring(4))
	requireStatus(t, statusContextFull, "", err)
	require.Equal(t, before, handles.len())
}

// A batch that is read where something is ready gives every answer as it is alone.
func TestWaitForStreams(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	prompts := []string{"a", "bb", "ccc", "let mut d", "fn"}
	var want [][]int32
	for _, p := range prompts {
		s, err := openStream(h, p, ignoring(40))
		require.NoError(t, err)
		want = append(want, idsOf(all(t, s)))
		closeStream(t, s)
	}
	for _, timeout := range []uint32{forever, 1, 0} {
		hs, err := openStreams(h, prompts, ignoring(40))
		require.NoError(t, err)
		with := append([]uintptr{0}, hs...)
		got := make([][]int32, len(hs))
		b := make([]byte, 256)
		for {
			i, err := waitStreams(with, timeout)
			if err != nil && timeout != forever {
				requireStatus(t, statusTimeout, "", err)
				time.Sleep(time.Millisecond)
				continue
			}
			require.NoError(t, err)
			if i == len(with) {
				break
			}
			e, s, err := useStream(with[i])
			require.NoError(t, err)
			p, err := s.next(0, b)
			require.NoError(t, err, "it was said not to wait")
			if p.token >= 0 {
				got[i-1] = append(got[i-1], p.token)
			}
			e.release()
		}
		require.Equal(t, want, got)
		for _, s := range hs {
			closeStream(t, s)
		}
	}
}

func TestWaitIsAReader(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	s := long(t, h)
	e, v, err := useStream(s)
	require.NoError(t, err)
	v.reader.Lock()
	_, err = waitStreams([]uintptr{s}, 0)
	requireStatus(t, statusBusy, "", err)
	v.reader.Unlock()
	_, err = waitStreams([]uintptr{s, s}, 0)
	requireStatus(t, statusBusy, "", err)
	_, err = waitStreams([]uintptr{0, 0}, 0)
	requireStatus(t, statusInvalid, "no stream", err)
	_, err = waitStreams([]uintptr{s, h}, 0)
	requireStatus(t, statusInvalid, "a model", err)

	// One that is cancelled is ready at once, and passed over once that was read.
	require.NoError(t, cancelStream(s))
	i, err := waitStreams([]uintptr{s}, forever)
	require.NoError(t, err)
	require.Zero(t, i)
	b := make([]byte, 64)
	for err == nil {
		_, err = v.next(0, b)
	}
	requireStatus(t, statusCancelled, "", err)
	i, err = waitStreams([]uintptr{s}, forever)
	require.NoError(t, err)
	require.Equal(t, 1, i)
	e.release()
	closeStream(t, s)
}

// What a wait has read ahead changes nothing of the piece given last.
func TestWaitKeepsTheCandidatesOfTheLastPiece(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	s, err := openStream(h, "x", generateOptions{maxTokens: 4, flags: flagIgnoreEnd | flagLogits, sample: sample.Options{TopLogprobs: 1}})
	require.NoError(t, err)
	e, v, err := useStream(s)
	require.NoError(t, err)
	p, err := v.next(forever, make([]byte, 64))
	require.NoError(t, err)
	before, err := v.row()
	require.NoError(t, err)
	_, err = waitStreams([]uintptr{s}, forever)
	require.NoError(t, err)
	top, err := v.candidates()
	require.NoError(t, err)
	require.Equal(t, p.token, top[0].ID)
	after, err := v.row()
	require.NoError(t, err)
	require.Equal(t, before, after)
	e.release()
	closeStream(t, s)
}
