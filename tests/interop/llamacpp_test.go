package interop

import (
	"fmt"
	"math"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
)

// vocabulary is metadata of a SentencePiece tokenizer with n tokens: three special
// ones, 256 bytes, and nonsense.
func vocabulary(n int) []gguf.KV {
	tokens, scores, types := make([]string, n), make([]float32, n), make([]int32, n)
	for i := range n {
		switch {
		case i < 3:
			tokens[i], types[i] = []string{"<unk>", "<s>", "</s>"}[i], []int32{2, 3, 3}[i]
		case i < 259:
			tokens[i], types[i] = fmt.Sprintf("<0x%02X>", i-3), 6
		default:
			tokens[i], types[i], scores[i] = fmt.Sprintf("▁w%d", i), 1, float32(-i)
		}
	}
	return []gguf.KV{
		{Key: "tokenizer.ggml.model", Value: gguf.V("llama")},
		{Key: "tokenizer.ggml.tokens", Value: gguf.Array(tokens)},
		{Key: "tokenizer.ggml.scores", Value: gguf.Array(scores)},
		{Key: "tokenizer.ggml.token_type", Value: gguf.Array(types)},
		{Key: "tokenizer.ggml.bos_token_id", Value: gguf.V(uint32(1))},
		{Key: "tokenizer.ggml.eos_token_id", Value: gguf.V(uint32(2))},
		{Key: "tokenizer.ggml.unknown_token_id", Value: gguf.V(uint32(0))},
		{Key: "tokenizer.ggml.add_bos_token", Value: gguf.V(false)},
	}
}

// llama.cpp runs what Export writes, and its probabilities are those of the same
// file run here; where the file is ternary that is the original model too. The
// tolerance is that of its 8-bit activations, one scale per 256 values.
func TestLlamaCppRunsExports(t *testing.T) {
	py := tokenizerPython(t)
	if err := exec.Command(py, "-c", "import xllamacpp").Run(); err != nil {
		t.Skip("the Python package xllamacpp is not installed: pip install xllamacpp")
	}
	for _, kind := range []string{"llama", "bitnet"} {
		for _, typ := range []gguf.Type{gguf.F16, gguf.Q4_0, gguf.TQ2_0} {
			t.Run(fmt.Sprint(kind, " ", typ), func(t *testing.T) {
				c := config.DefaultModel()
				c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN = 256, 2, 4, 4, 64, 512
				c.Vocab, c.Context, c.Group = 300, 128, 256
				if kind == "bitnet" {
					c.SubNorm, c.TieEmbeddings = true, true
				} else {
					c.KVHeads = 2
				}
				m, err := model.Init(t.Context(), c, 1, model.Options{})
				require.NoError(t, err)
				dir := t.TempDir()
				path, out := filepath.Join(dir, "model.gguf"), filepath.Join(dir, "logprobs.f32")
				require.NoError(t, m.Export(path, typ, vocabulary(c.Vocab)...))
				ids := []int32{1, 270, 5, 299, 120, 121, 264, 280, 9, 33, 290, 7}
				args := []string{"llamacpp_reference.py", path, out, strconv.Itoa(c.Vocab)}
				for _, id := range ids {
					args = append(args, strconv.Itoa(int(id)))
				}
				said, err := exec.Command(py, args...).CombinedOutput()
				require.NoError(t, err, "%s", said)
				f, err := gguf.Open(path)
				require.NoError(t, err)
				defer f.Close()
				foreign, err := model.Load(f, model.Options{})
				require.NoError(t, err)
				want := logSoftmax(logits(t, foreign, ids)[len(ids)-1])
				sum := 0.0
				for i, v := range readWords(t, out) {
					d := float64(math.Float32frombits(v)) - want[i]
					require.False(t, math.IsNaN(d), "token %d", i)
					sum += d * d
				}
				rms := math.Sqrt(sum / float64(c.Vocab))
				t.Logf("root mean square difference of log probabilities: %.1e", rms)
				require.Less(t, rms, 0.05)
			})
		}
	}
}

func logSoftmax(z []float32) []float64 {
	top, sum := math.Inf(-1), 0.0
	for _, v := range z {
		top = max(top, float64(v))
	}
	for _, v := range z {
		sum += math.Exp(float64(v) - top)
	}
	out := make([]float64, len(z))
	for i, v := range z {
		out[i] = float64(v) - top - math.Log(sum)
	}
	return out
}
