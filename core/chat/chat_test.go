package chat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
	"github.com/architehc/nanochat/kernels/tune"
)

// file writes a model with random weights.
func file(t testing.TB, modelVocab, tokVocab int) string {
	t.Helper()
	c, err := config.Preset("tiny", "model.dim=64", "model.ffn=64", "model.layers=1", "model.context=128", fmt.Sprint("model.vocab=", modelVocab))
	require.NoError(t, err)
	m, err := model.Init(t.Context(), c.Model, 3, model.Options{})
	require.NoError(t, err)
	tok, err := tokenizer.NewByteLevel(tokVocab)
	require.NoError(t, err)
	meta, err := gguf.Collect(tok.Pairs(tokenizer.MetadataOptions{}))
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "m.gguf")
	require.NoError(t, m.Save(path, meta...))
	return path
}

func open(t testing.TB, o Options) *Model {
	t.Helper()
	o.Engine.Threads = 1
	m, err := Open(t.Context(), file(t, 400, 400), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// answer reads a stream to its end.
func answer(t testing.TB, m *Model, r Request) (text string, ids []int32, res infer.Result) {
	t.Helper()
	s, err := m.Generate(t.Context(), r)
	require.NoError(t, err)
	defer s.Close()
	for {
		p, err := s.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return text, ids, s.Result()
		}
		require.NoError(t, err)
		require.True(t, utf8.ValidString(p.Text), "piece %q is not whole characters", p.Text)
		text += p.Text
		if p.ID >= 0 {
			ids = append(ids, p.ID)
		}
	}
}

func TestPiecesAreTheDecodedTokens(t *testing.T) {
	m := open(t, Options{})
	r := Request{Prompt: "fn größe() {", MaxTokens: 60, IgnoreEnd: true, Sample: sample.Options{Temperature: 1.5, Seed: 9}}
	text, ids, res := answer(t, m, r)
	require.Len(t, ids, 60)
	require.Equal(t, infer.ReasonLength, res.Reason)
	require.Equal(t, 1+len("fn größe() {"), res.PromptTokens) // BOS and one token a byte
	whole := m.Tokenizer().Decode(nil, ids, tokenizer.DecodeOptions{SkipSpecial: true})
	require.Equal(t, strings.ToValidUTF8(string(whole), "\ufffd"), collapse(text))
	again, _, _ := answer(t, m, r)
	require.Equal(t, text, again)
}

// collapse makes runs of replacement characters one, as ToValidUTF8 does.
func collapse(s string) string {
	for strings.Contains(s, "\ufffd\ufffd") {
		s = strings.ReplaceAll(s, "\ufffd\ufffd", "\ufffd")
	}
	return s
}

func TestStopTexts(t *testing.T) {
	m := open(t, Options{})
	r := Request{Prompt: "x", MaxTokens: 60, IgnoreEnd: true, Sample: sample.Options{Temperature: 1, Seed: 2}}
	text, ids, _ := answer(t, m, r)
	runes := []rune(text)
	require.Greater(t, len(runes), 20)
	for _, at := range []int{0, 3, 10} {
		stop := string(runes[at : at+2])
		before, _, _ := strings.Cut(text, stop)
		r.Stop = []string{"this never comes", stop}
		got, gotIDs, res := answer(t, m, r)
		require.Equal(t, before, got)
		require.Equal(t, infer.ReasonStop, res.Reason)
		require.Equal(t, ids[:len(gotIDs)], gotIDs)
	}
	r.Stop = []string{text + "more"} // held back whole, then given out
	got, _, res := answer(t, m, r)
	require.Equal(t, text, got)
	require.Equal(t, infer.ReasonLength, res.Reason)
}

func TestCutterDoesNotDependOnTheCalls(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringOfN(rapid.RuneFrom([]rune("ab")), 1, 4, -1)
		stops := rapid.SliceOfN(word, 0, 3).Draw(t, "stops")
		text := rapid.StringOfN(rapid.RuneFrom([]rune("abc")), 0, 30, -1).Draw(t, "text")
		run := func(step func() int) (out string, found bool) {
			c := cutter{stops: stops}
			for rest := text; rest != "" && !found; {
				n := min(max(step(), 1), len(rest))
				var o string
				o, found = c.add(rest[:n])
				out, rest = out+o, rest[n:]
			}
			if !found {
				out += c.rest()
			}
			return out, found
		}
		want, wantFound := run(func() int { return 1 })
		got, gotFound := run(func() int { return rapid.IntRange(1, 9).Draw(t, "step") })
		if got != want || gotFound != wantFound {
			t.Fatalf("%q %v in pieces, %q %v byte by byte", got, gotFound, want, wantFound)
		}
		if !wantFound {
			for _, s := range stops {
				if strings.Contains(text, s) {
					t.Fatalf("stop %q in %q was not found", s, text)
				}
			}
			if want != text {
				t.Fatalf("%q of %q came out", want, text)
			}
		}
	})
}

func TestRequestsThatCannotBeServed(t *testing.T) {
	m := open(t, Options{})
	_, err := m.Generate(t.Context(), Request{Prompt: strings.Repeat("a", 500)})
	var full *infer.ContextError
	require.ErrorAs(t, err, &full)
	require.Equal(t, 501, full.Prompt)
	require.Equal(t, 128, full.Context)
	for _, stop := range [][]string{{""}, {strings.Repeat("a", MaxStopBytes+1)}, make([]string, MaxStops+1)} {
		_, err := m.Generate(t.Context(), Request{Prompt: "a", Stop: stop})
		var re *infer.RequestError
		require.ErrorAs(t, err, &re)
		require.Equal(t, "stop", re.Field)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = m.Generate(ctx, Request{Prompt: "a"})
	require.ErrorIs(t, err, context.Canceled)
}

func TestCancelledStreamSaysSo(t *testing.T) {
	m := open(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	s, err := m.Generate(ctx, Request{Prompt: "a", IgnoreEnd: true})
	require.NoError(t, err)
	_, err = s.Next(t.Context())
	require.NoError(t, err)
	cancel()
	for err == nil {
		_, err = s.Next(t.Context())
	}
	require.True(t, errors.Is(err, context.Canceled) || errors.Is(err, io.EOF), "%v", err)
}

func TestFilesThatAreNoModels(t *testing.T) {
	_, err := Open(t.Context(), filepath.Join(t.TempDir(), "none.gguf"), Options{})
	require.Error(t, err)
	_, err = Open(t.Context(), file(t, 300, 400), Options{}) // more tokens than rows
	var fe *gguf.FormatError
	require.ErrorAs(t, err, &fe)
	require.Contains(t, err.Error(), "400 tokens, the model 300")
	_, err = Open(t.Context(), file(t, 300, 300), Options{Engine: infer.Options{Context: 129}})
	require.ErrorContains(t, err, "129")
	require.ErrorContains(t, err, "128")
}

func TestChosenSetChangesNoText(t *testing.T) {
	r := Request{Prompt: "fn", MaxTokens: 30, IgnoreEnd: true, Sample: sample.Options{Temperature: 1}}
	want, _, _ := answer(t, open(t, Options{}), r)
	var asked config.Model
	m := open(t, Options{HugePages: true, Choose: func(_ context.Context, c config.Model, tm *team.Team) (*kernels.Set, error) {
		asked = c
		require.Equal(t, 1, tm.Size())
		return kernels.ByName("go")
	}})
	require.Equal(t, m.Config(), asked)
	require.Equal(t, "go", m.Kernel())
	got, _, _ := answer(t, m, r)
	require.Equal(t, want, got)
	broken := errors.New("no set")
	_, err := Open(t.Context(), file(t, 300, 300), Options{Choose: func(context.Context, config.Model, *team.Team) (*kernels.Set, error) { return nil, broken }})
	require.ErrorIs(t, err, broken)
}

func TestTuningChangesNoText(t *testing.T) {
	r := Request{Prompt: "fn", MaxTokens: 30, IgnoreEnd: true, Sample: sample.Options{Temperature: 1}}
	want, _, _ := answer(t, open(t, Options{}), r)
	dir := t.TempDir()
	for _, mode := range []tune.Mode{tune.Refresh, tune.Auto} {
		m := open(t, Options{Choose: Tuned(tune.Options{Mode: mode, Dir: dir, BatchTime: 10 * time.Microsecond})})
		got, _, _ := answer(t, m, r)
		require.Equal(t, want, got)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Len(t, files, 1)
}

func TestShapes(t *testing.T) {
	c, err := config.Preset("bitnet-2b-4t")
	require.NoError(t, err)
	list := shapes(c.Model)
	require.Len(t, list, 2*4+1) // queries and output are square and count once
	require.Equal(t, tune.Shape{Op: tune.Q8GEMV, M: 128256, K: 2560, Type: kernels.Q8_0, Batch: 1}, list[8])
	for _, s := range list[:8] {
		require.Equal(t, s.K, s.Group) // one scale a row
	}
}

func TestCloseTwice(t *testing.T) {
	m, err := Open(t.Context(), file(t, 300, 300), Options{})
	require.NoError(t, err)
	require.NoError(t, m.Close())
	require.NoError(t, m.Close())
}
