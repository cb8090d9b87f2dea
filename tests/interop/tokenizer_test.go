package interop

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/tokenizer"
)

// python returns the interpreter given by NANOCHAT_PYTHON, or skips the test.
func tokenizerPython(t *testing.T) string {
	py := os.Getenv("NANOCHAT_PYTHON")
	if py == "" {
		t.Skip("NANOCHAT_PYTHON is not set: want a Python with the packages of tests/interop; `make test` sets it")
	}
	return py
}

func runTokenizerScript(t *testing.T, args ...string) {
	cmd := exec.Command(tokenizerPython(t), append([]string{"tokenizer_reference.py"}, args...)...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// readRecords reads records of a little-endian uint32 count and count elements of
// size bytes.
func readRecords(t *testing.T, path string, size int) [][]byte {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var out [][]byte
	for len(b) > 0 {
		n := 4 + size*int(binary.LittleEndian.Uint32(b))
		out, b = append(out, b[4:n]), b[n:]
	}
	return out
}

func idsOf(b []byte) []int32 {
	ids := make([]int32, len(b)/4)
	for i := range ids {
		ids[i] = int32(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return ids
}

// TestTokenizerMatchesPython compares ids with the `tokenizers` package on mixed
// text: vocabularies that the package trained (with the pre-tokenizers of GPT-2,
// Llama-3 and our own), and vocabularies that this module trained and wrote.
//
// The text has 1.5 MB; with NANOCHAT_LONG=1, 12 MB. NANOCHAT_CORPUS may name a
// folder with *.jsonl.zst files that half of the text is taken from (the Python
// package zstandard reads them).
//
//	NANOCHAT_LONG=1 NANOCHAT_PYTHON=python3 go test -run TokenizerMatches -v ./tests/interop
func TestTokenizerMatchesPython(t *testing.T) {
	dir := t.TempDir()
	size := 1_500_000
	if os.Getenv("NANOCHAT_LONG") != "" {
		size = 12_000_000
	}
	args := []string{"make", dir, strconv.Itoa(size)}
	if corpus := os.Getenv("NANOCHAT_CORPUS"); corpus != "" {
		files, err := filepath.Glob(filepath.Join(corpus, "*.jsonl.zst"))
		require.NoError(t, err)
		require.NotEmpty(t, files, "no *.jsonl.zst in NANOCHAT_CORPUS")
		args = append(args, files...)
	}
	runTokenizerScript(t, args...)
	docs := readRecords(t, filepath.Join(dir, "docs.bin"), 1)

	write := func(name string, tok *tokenizer.Tokenizer) {
		var b bytes.Buffer
		require.NoError(t, tok.WriteHF(&b))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+".json"), b.Bytes(), 0o666))
	}
	made, err := filepath.Glob(filepath.Join(dir, "*.json"))
	require.NoError(t, err)
	require.Len(t, made, 4)
	for _, path := range made {
		tok := loadHF(t, path)
		meta := tokenizer.Map{}
		for _, kv := range tok.Metadata(tokenizer.MetadataOptions{}) {
			meta[kv.Key] = kv.Value
		}
		again, err := tokenizer.FromMetadata(path, meta)
		require.NoError(t, err)
		write(strings.TrimSuffix(filepath.Base(path), ".json")+"_rewritten", again)
	}
	plain, err := tokenizer.NewByteLevel(3000)
	require.NoError(t, err)
	write("bytelevel", plain)
	for _, pre := range []string{"nanochat", "qwen2"} { // the last three quarters of the text are held out
		trained, err := tokenizer.Train(t.Context(), func(yield func(string, error) bool) {
			for _, d := range docs[:len(docs)/4] {
				if !yield(string(d), nil) {
					return
				}
			}
		}, tokenizer.TrainOptions{VocabSize: 4000, Pre: pre}, nil)
		require.NoError(t, err)
		write("trained_"+pre, trained)
	}

	runTokenizerScript(t, "encode", dir)
	all, err := filepath.Glob(filepath.Join(dir, "*.json"))
	require.NoError(t, err)
	for _, path := range all {
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		t.Run(name, func(t *testing.T) {
			tok := loadHF(t, path)
			want := readRecords(t, strings.TrimSuffix(path, ".json")+".ids", 4)
			require.Len(t, want, len(docs))
			bytesIn, tokens := 0, 0
			o := tokenizer.EncodeOptions{AddBOS: tok.AddsBOS(), ParseSpecial: true}
			var got []int32
			for i, d := range docs {
				got = tok.Encode(got[:0], string(d), o)
				compareIDs(t, tok, string(d), got, idsOf(want[i]))
				back := tok.Decode(nil, got, tokenizer.DecodeOptions{})
				if tok.AddsBOS() {
					back = back[len(tok.Piece(got[0])):]
				}
				require.Equal(t, string(d), string(back))
				bytesIn, tokens = bytesIn+len(d), tokens+len(got)
			}
			t.Logf("%d bytes, %d ids equal, pre %s, vocabulary %d", bytesIn, tokens, tok.Pre(), tok.Vocab())
		})
	}
}

func loadHF(t *testing.T, path string) *tokenizer.Tokenizer {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	tok, err := tokenizer.LoadHF(path, b)
	require.NoError(t, err)
	return tok
}

// compareIDs fails with the text around the first difference.
func compareIDs(t *testing.T, tok *tokenizer.Tokenizer, text string, got, want []int32) {
	for i := range max(len(got), len(want)) {
		if i < len(got) && i < len(want) && got[i] == want[i] {
			continue
		}
		show := func(ids []int32) string {
			s := ""
			for _, id := range ids[min(i, len(ids)):min(i+6, len(ids))] {
				s += strconv.Quote(string(tok.Piece(id))) + " "
			}
			return s
		}
		before := tok.Decode(nil, want[max(0, i-8):min(i, len(want))], tokenizer.DecodeOptions{})
		t.Fatalf("id %d differs after %q: got %s, want %s", i, before, show(got), show(want))
	}
}

// TestTokenizerMatchesSentencePiece compares ids with the sentencepiece package for
// a vocabulary that it trained, loaded as from a GGUF file.
func TestTokenizerMatchesSentencePiece(t *testing.T) {
	dir := t.TempDir()
	runTokenizerScript(t, "make", dir, "400000")
	cmd := exec.Command(tokenizerPython(t), "tokenizer_reference.py", "sentencepiece", dir)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() == 3 {
		t.Skip("the Python package sentencepiece is not installed")
	}
	require.NoError(t, err, "%s", out)
	b, err := os.ReadFile(filepath.Join(dir, "spm.meta"))
	require.NoError(t, err)
	var meta struct {
		Tokens []string  `json:"tokens"`
		Scores []float32 `json:"scores"`
		Types  []int32   `json:"types"`
	}
	require.NoError(t, json.Unmarshal(b, &meta))
	src := tokenizer.Map{
		"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": meta.Tokens, "tokenizer.ggml.scores": meta.Scores,
		"tokenizer.ggml.token_type": meta.Types, "tokenizer.ggml.unknown_token_id": uint32(0),
		"tokenizer.ggml.bos_token_id": uint32(1), "tokenizer.ggml.eos_token_id": uint32(2),
	}
	tok, err := tokenizer.FromMetadata("spm.meta", src)
	require.NoError(t, err)
	want := readRecords(t, filepath.Join(dir, "spm.ids"), 4)
	n := 0
	for i, d := range readRecords(t, filepath.Join(dir, "docs.bin"), 1) {
		if bytes.ContainsRune(d, 0x2581) || len(d) == 0 {
			continue // sentencepiece takes U+2581 for a space
		}
		got := tok.Encode(nil, string(d), tokenizer.EncodeOptions{})
		compareIDs(t, tok, string(d), got, idsOf(want[i]))
		require.Equal(t, string(d), string(tok.Decode(nil, got, tokenizer.DecodeOptions{})))
		n += len(got)
	}
	t.Logf("%d ids equal, vocabulary %d", n, tok.Vocab())
}
