package server

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/tokenizer"
)

// score is the log probability of a token of an answer.
type score struct {
	token   []byte
	logprob float32
	none    bool // the first token of all follows nothing
	top     []rated
	// bytes and runes of the text before the token
	bytes, runes int
}

type rated struct {
	token   []byte
	logprob float32
}

// scorer gives out the scores of tokens with the text that they are part of:
// not before it, and not at all if a stop text cut it off.
type scorer struct {
	tok  *tokenizer.Tokenizer
	dec  *tokenizer.StreamDecoder
	buf  []byte
	echo bool // the next echoed token is not the first

	bytes, runes int // of the text of all tokens
	sent         int // bytes of it that were given out
	held         []score
}

func newScorer(m *chat.Model) *scorer {
	return &scorer{tok: m.Tokenizer(), dec: m.Tokenizer().NewStreamDecoder(tokenizer.DecodeOptions{SkipSpecial: true})}
}

// add takes a piece and returns the scores of the tokens whose text has begun to
// be sent with it.
func (s *scorer) add(p chat.Piece) []score {
	if p.ID >= 0 {
		e := score{token: s.tok.Piece(p.ID), logprob: p.Logprob, bytes: s.bytes, runes: s.runes, none: p.Echo && !s.echo}
		s.echo = true
		for _, t := range p.Top { // the piece's own stands until the next one
			e.top = append(e.top, rated{s.tok.Piece(t.ID), t.Logprob})
		}
		s.held = append(s.held, e)
		s.buf = s.dec.Next(s.buf[:0], p.ID)
		s.bytes += len(s.buf)
		s.runes += utf8.RuneCount(s.buf)
	}
	s.sent += len(p.Text)
	n := 0
	for n < len(s.held) && s.held[n].bytes < s.sent {
		n++
	}
	out := s.held[:n:n]
	s.held = s.held[n:]
	return out
}

// rest returns the scores of tokens without text at the end, unless a stop text
// ended the answer.
func (s *scorer) rest(r infer.Result) []score {
	if r.Reason == infer.ReasonStop && r.StopID < 0 {
		return nil
	}
	return s.held
}

// leastLogprob stands for impossible, which JSON has no number for.
const leastLogprob = -9999

// finite is l as JSON can express it; digits beyond those of float32 mean nothing.
func finite(l float32) float32 {
	if l >= leastLogprob {
		return l
	}
	return leastLogprob
}

// chatLogprobs is the form of chat completions.
type chatLogprobs struct {
	Content []chatLogprob `json:"content"`
	Refusal *string       `json:"refusal"`
}

type chatLogprob struct {
	Token   string        `json:"token"`
	Logprob float32       `json:"logprob"`
	Bytes   []int         `json:"bytes"`
	Top     []chatLogprob `json:"top_logprobs,omitzero"`
}

func chatScore(token []byte, logprob float32) chatLogprob {
	l := chatLogprob{Token: strings.ToValidUTF8(string(token), "\ufffd"), Logprob: finite(logprob), Bytes: make([]int, len(token))}
	for i, b := range token {
		l.Bytes[i] = int(b)
	}
	return l
}

func chatScores(list []score) *chatLogprobs {
	out := &chatLogprobs{Content: make([]chatLogprob, len(list))}
	for i, e := range list {
		l := chatScore(e.token, e.logprob)
		l.Top = make([]chatLogprob, len(e.top))
		for j, t := range e.top {
			l.Top[j] = chatScore(t.token, t.logprob)
		}
		out.Content[i] = l
	}
	return out
}

// textLogprobs is the form of completions.
type textLogprobs struct {
	Tokens   []string             `json:"tokens"`
	Logprobs []*float32           `json:"token_logprobs"`
	Top      []map[string]float32 `json:"top_logprobs"`
	Offsets  []int                `json:"text_offset"`
}

// tokenName is the token, or its bytes where they are no text.
func tokenName(token []byte) string {
	if utf8.Valid(token) {
		return string(token)
	}
	var b strings.Builder
	b.WriteString("bytes:")
	for _, c := range token {
		b.WriteString(`\x`)
		if c < 16 {
			b.WriteByte('0')
		}
		b.WriteString(strconv.FormatUint(uint64(c), 16))
	}
	return b.String()
}

func textScores(list []score, top bool) *textLogprobs {
	out := &textLogprobs{Tokens: make([]string, len(list)), Logprobs: make([]*float32, len(list)), Offsets: make([]int, len(list))}
	if top {
		out.Top = make([]map[string]float32, len(list))
	}
	for i, e := range list {
		out.Tokens[i], out.Offsets[i] = tokenName(e.token), e.runes
		if e.none {
			continue
		}
		l := finite(e.logprob)
		out.Logprobs[i] = &l
		if top {
			out.Top[i] = map[string]float32{out.Tokens[i]: l}
			for _, t := range e.top {
				out.Top[i][tokenName(t.token)] = finite(t.logprob)
			}
		}
	}
	return out
}
