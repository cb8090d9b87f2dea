package chat

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/core/tokenizer"
)

// TestEcho: the prompt comes first, as text and as tokens with what is asked of them, and
// no stop text is looked for in it.
func TestEcho(t *testing.T) {
	m := open(t, Options{})
	const prompt = "fn größe() {"
	r := Request{Prompt: prompt, MaxTokens: 12, IgnoreEnd: true, Sample: sample.Options{Temperature: 1, Seed: 9}}
	answered, ids, _ := answer(t, m, r)
	r.Echo, r.Logits, r.Sample.Logprobs, r.Embed = true, true, true, true
	r.Stop = []string{"größe"}
	s, err := m.Generate(t.Context(), r)
	require.NoError(t, err)
	want := append(m.Prompt(prompt, false), ids...)
	var echoed, text string
	for i, id := range want {
		p, err := s.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, id, p.ID)
		require.Equal(t, i < len(want)-12, p.Echo)
		if i == 0 {
			require.Empty(t, p.Logits)
		} else {
			require.Len(t, p.Logits, 400)
			require.Negative(t, p.Logprob)
		}
		if p.Echo {
			echoed += p.Text
		} else {
			text += p.Text
		}
	}
	rest, _ := drain(t, s, -1)
	require.Equal(t, prompt, echoed)
	require.Equal(t, answered, text+rest)
	require.Len(t, s.Result().Embedding, 64)
	require.Equal(t, 12, s.Result().Generated)
}

// A SentencePiece vocabulary puts a space before a text, which the text does not have.
func TestEchoWithoutTheSpaceOfTheTokenizer(t *testing.T) {
	tokens := []string{"<unk>", "<s>", "</s>"}
	kinds := []int32{2, 3, 3}
	scores := []float32{0, 0, 0}
	for b := range 256 {
		tokens = append(tokens, "<0x"+string("0123456789ABCDEF"[b>>4])+string("0123456789ABCDEF"[b&15])+">")
		kinds, scores = append(kinds, 6), append(scores, 0)
	}
	for i, s := range []string{"\u2581", "a", "b", "\u2581a"} {
		tokens, kinds, scores = append(tokens, s), append(kinds, 1), append(scores, -float32(i))
	}
	tok, err := tokenizer.FromMetadata("spm", tokenizer.Map{
		"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.scores": scores,
		"tokenizer.ggml.bos_token_id": uint32(1), "tokenizer.ggml.eos_token_id": uint32(2), "tokenizer.ggml.unknown_token_id": uint32(0),
	})
	require.NoError(t, err)
	m := openAt(t, fileWith(t, 300, tok))
	for _, text := range []string{"ab a", " a", "\u00e9", ""} {
		s, err := m.Generate(t.Context(), Request{Prompt: text, Echo: true, MaxTokens: -1})
		require.NoError(t, err)
		got, _ := drain(t, s, -1)
		require.Equal(t, text, got)
	}
}

// fileWith writes a model with a vocabulary and other metadata.
func fileWith(t testing.TB, vocab int, tok *tokenizer.Tokenizer, more ...gguf.KV) string {
	t.Helper()
	c, err := config.Preset("tiny", "model.dim=64", "model.ffn=64", "model.layers=1", "model.context=128")
	require.NoError(t, err)
	c.Model.Vocab = vocab
	net, err := model.Init(t.Context(), c.Model, 3, model.Options{})
	require.NoError(t, err)
	meta, err := gguf.Collect(tok.Pairs(tokenizer.MetadataOptions{}))
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "m.gguf")
	require.NoError(t, net.Save(path, append(meta, more...)...))
	return path
}

func openAt(t testing.TB, path string) *Model {
	t.Helper()
	m, err := Open(t.Context(), path, Options{Engine: infer.Options{Threads: 1}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

func TestPromptIsTextOrIDs(t *testing.T) {
	m := open(t, Options{})
	ids := m.Prompt("fn <|endoftext|>", true)
	require.Equal(t, []int32{256, 'f', 'n', ' ', 256}, ids)
	require.Len(t, m.Prompt("fn <|endoftext|>", false), 1+16)
	r := Request{Prompt: "fn", MaxTokens: 9, IgnoreEnd: true}
	want, _, _ := answer(t, m, r)
	r.Prompt, r.IDs = "", m.Prompt("fn", false)
	got, _, _ := answer(t, m, r)
	require.Equal(t, want, got)
	for _, r := range []Request{{Prompt: "a", IDs: []int32{1}}, {IDs: []int32{}}, {IDs: []int32{400}}, {IDs: []int32{-1}}, {Prompt: "a", MaxTokens: -2}} {
		_, err := m.Generate(t.Context(), r)
		var re *infer.RequestError
		require.ErrorAs(t, err, &re, "%+v", r)
	}
}

func TestFIMPrompt(t *testing.T) {
	m := open(t, Options{})
	require.True(t, m.Info().FIM)
	ids, err := m.FIMPrompt("fn a<|fim_middle|>", "}")
	require.NoError(t, err)
	want := "<|endoftext|><|fim_prefix|>fn a<|fim_middle|><|fim_suffix|>}<|fim_middle|>"
	require.Equal(t, want, string(m.tok.Decode(nil, ids, tokenizer.DecodeOptions{})))
	require.Len(t, ids, 4+len("fn a<|fim_middle|>}"))
	require.Len(t, m.Prompt(want, true), 6+len("fn a}"), "as a document of the training has it, but for what looks like a token")

	loose := vocabulary(t, tokenizer.UserDefined, false, false, "<PRE>", "<SUF>", "<MID>")
	src := tokenizer.Map{"tokenizer.ggml.fim_pre_token_id": uint32(256), "tokenizer.ggml.fim_suf_token_id": uint32(257), "tokenizer.ggml.fim_mid_token_id": uint32(258)}
	for _, kv := range loose.Metadata(tokenizer.MetadataOptions{}) {
		src[kv.Key] = kv.Value
	}
	loose, err = tokenizer.FromMetadata("test", src)
	require.NoError(t, err)
	ids, err = like(loose, "").FIMPrompt("a<MID>", "<PRE>b")
	require.NoError(t, err)
	require.Equal(t, slices.Concat([]int32{256, 'a'}, bytesOf("<MID>"), []int32{257}, bytesOf("<PRE>b"), []int32{258}), ids)

	none := like(vocabulary(t, tokenizer.Control, true, true, "<s>", "</s>", "<fim_prefix>"), "")
	_, err = none.FIMPrompt("a", "b")
	require.EqualError(t, err, "chat: this model cannot fill gaps: its vocabulary has no token for suffix, middle; use a model that was trained with fill-in-the-middle, or continue the text before the gap")
}

func bytesOf(s string) (ids []int32) {
	for _, b := range []byte(s) {
		ids = append(ids, int32(b))
	}
	return ids
}

func TestInfo(t *testing.T) {
	tok := vocabulary(t, tokenizer.Control, true, true, families["llama3"].tokens...)
	path := fileWith(t, 300, tok,
		gguf.KV{Key: "general.name", Value: gguf.V("a name")}, gguf.KV{Key: "general.license", Value: gguf.V("MIT")},
		gguf.KV{Key: "general.description", Value: gguf.V("for a test")}, gguf.KV{Key: "nanochat.training.steps", Value: gguf.V(uint64(7))},
		gguf.KV{Key: "nanochat.data.id", Value: gguf.V("data")}, gguf.KV{Key: "general.tags", Value: gguf.Array([]string{"x"})},
		gguf.KV{Key: "tokenizer.chat_template", Value: gguf.V(families["llama3"].jinja)})
	m := openAt(t, path)
	in := m.Info()
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, path, m.Path())
	require.Equal(t, []string{"a name", "nanochat", "MIT", "for a test", "llama3"}, []string{in.Name, in.Architecture, in.Licence, in.Description, in.ChatTemplate})
	require.Equal(t, st.Size(), in.FileBytes)
	require.Equal(t, m.Config().Params(), in.Params)
	require.Less(t, in.WeightBytes, in.FileBytes)
	require.InDelta(t, 8*float64(in.WeightBytes)/float64(in.Params.Total()), in.BitsPerWeight, 1e-9)
	sum, err := hex.DecodeString(in.SHA256)
	require.NoError(t, err)
	require.Len(t, sum, 32)
	require.False(t, in.FIM)
	require.Equal(t, "7", in.Provenance["nanochat.training.steps"])
	require.Equal(t, "data", in.Provenance["nanochat.data.id"])
	require.Equal(t, "nanochat", in.Provenance["general.architecture"])
	require.NotContains(t, in.Provenance, "general.tags")
	require.NotContains(t, in.Provenance, "tokenizer.chat_template")

	named := openAt(t, fileWith(t, 300, tok, gguf.KV{Key: "nanochat.chat.template", Value: gguf.V("plain")},
		gguf.KV{Key: "tokenizer.chat_template", Value: gguf.V(families["llama3"].jinja)}))
	require.Equal(t, "plain", named.Info().ChatTemplate)
}
