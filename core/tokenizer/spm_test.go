package tokenizer

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

// tinySPM is a SentencePiece vocabulary with all bytes and a few pieces.
func tinySPM() Map {
	tokens := []string{"<unk>", "<s>", "</s>"}
	types := []int32{2, 3, 3}
	scores := []float32{0, 0, 0}
	for b := range 256 {
		tokens = append(tokens, "<0x"+string([]byte{hexDigits[b>>4], hexDigits[b&15]})+">")
		types, scores = append(types, 6), append(scores, 0)
	}
	for i, s := range []string{"he", "ll", "▁h", "hell", "▁hello", "lo", "llo", "▁he", "é", "▁", "h", "e", "l", "o"} {
		tokens, types, scores = append(tokens, s), append(types, 1), append(scores, float32(-i))
	}
	return Map{
		keyModel: "llama", keyTokens: tokens, keyTypes: types, keyScores: scores,
		"tokenizer.ggml.bos_token_id": uint32(1), "tokenizer.ggml.eos_token_id": uint32(2),
		"tokenizer.ggml.unknown_token_id": uint32(0),
	}
}

func TestSentencePiece(t *testing.T) {
	tok, err := FromMetadata("m.gguf", tinySPM())
	require.NoError(t, err)
	const first = 3 + 256 // id of "he"
	for _, c := range []struct {
		text string
		want []int32
	}{
		{"", nil},
		// ▁ h e l l o: he, ll, hell (before ▁he), then nothing joins hell and o
		{"hello", []int32{first + 9, first + 3, first + 13}},
		{"é", []int32{first + 9, first + 8}},
		{"ü", []int32{first + 9, 3 + 0xc3, 3 + 0xbc}},
		{"\xff", []int32{first + 9, 3 + 0xff}},
		{"<s>", []int32{first + 9, 3 + '<', 3 + 's', 3 + '>'}},
	} {
		got := tok.Encode(nil, c.text, EncodeOptions{})
		require.Equal(t, c.want, got, c.text)
		require.Equal(t, c.text, string(tok.Decode(nil, got, DecodeOptions{})))
	}
	require.Equal(t, []int32{1, 2, first + 9, first + 13}, tok.Encode(nil, "</s>o", EncodeOptions{AddBOS: true, ParseSpecial: true}))
	require.True(t, tok.AddsBOS())
	require.Equal(t, "default", tok.Pre())
	require.Equal(t, []int32{2}, tok.Stops())

	d := tok.NewStreamDecoder(DecodeOptions{})
	require.Equal(t, " he", string(d.Next(nil, first+7)), "a space is kept in a stream")

	m := asMap(tok)
	again, err := FromMetadata("", m)
	require.NoError(t, err)
	same(t, tok, again)
	require.Equal(t, tok.Metadata(MetadataOptions{}), again.Metadata(MetadataOptions{}))
	require.ErrorContains(t, tok.WriteHF(nil), "cannot be written as tokenizer.json")

	m[keyAddSpace] = false
	bare, err := FromMetadata("", m)
	require.NoError(t, err)
	require.Equal(t, []int32{first + 13}, bare.Encode(nil, "o", EncodeOptions{}))
}

func TestSentencePieceErrors(t *testing.T) {
	for want, edit := range map[string]func(Map){
		"tokenizer.ggml.scores: absent":                   func(m Map) { delete(m, keyScores) },
		"tokenizer.ggml.token_type: absent":               func(m Map) { delete(m, keyTypes) },
		"scores: 1 scores, want 273":                      func(m Map) { m[keyScores] = []float64{1} },
		"scores: element 4: not a number":                 func(m Map) { m[keyScores].([]float32)[4] = float32(math.NaN()) },
		`byte token "<0xZZ>", want <0x00> to <0xFF>`:      func(m Map) { m[keyTokens].([]string)[9] = "<0xZZ>" },
		"neither a token <0x06> nor an unknown token":     func(m Map) { m[keyTypes].([]int32)[9] = 5; delete(m, roleKeys[UNK][0]) },
		"add_space_prefix: a value of type int, want tru": func(m Map) { m[keyAddSpace] = 1 },
	} {
		m := tinySPM()
		edit(m)
		_, err := FromMetadata("m.gguf", m)
		require.ErrorContains(t, err, want)
	}
}

func TestScoreRank(t *testing.T) {
	scores := []float32{float32(math.Inf(1)), 1e9, 1, 1e-40, 0, -1e-40, -1, -1e9, float32(math.Inf(-1))}
	for i, s := range scores {
		require.Equal(t, s, rankScore(scoreRank(s)))
		if i > 0 {
			require.Less(t, scoreRank(scores[i-1]), scoreRank(s))
		}
	}
}
