package interop

import (
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/model"
)

// TestPretrainedMatchesNumPy reads the same llama from safetensors and from GGUF:
// the latent weights are equal, and the float forward of a training has the logits
// of the NumPy reference.
func TestPretrainedMatchesNumPy(t *testing.T) {
	for _, args := range []string{"float32 1", "float16 2 tied sharded", "bfloat16 3 plain", "float32 4 wide sharded", "bfloat16 5 tied"} {
		t.Run(args, func(t *testing.T) {
			dir := t.TempDir()
			python(t, append([]string{"pretrained_reference.py", dir}, strings.Fields(args)...)...)
			hf, cfg, left := startFrom(t, filepath.Join(dir, "hf"))
			require.Empty(t, left)
			g, cfg2, _ := startFrom(t, filepath.Join(dir, "model.gguf"))
			require.Equal(t, cfg, cfg2)
			require.Equal(t, strings.Contains(args, "tied"), cfg.TieEmbeddings)
			for i, p := range hf.Params() {
				require.Equal(t, p.Name, g.Params()[i].Name)
				require.Equal(t, p.W, g.Params()[i].W, p.Name)
			}
			for i, v := range readWords(t, filepath.Join(dir, "q.f32")) {
				for _, p := range hf.Params() {
					if p.Name == "blk.0.attn_q.weight" {
						require.Equal(t, v, math.Float32bits(p.W[i]))
					}
				}
			}
			var ids []int32
			for _, v := range readWords(t, filepath.Join(dir, "ids.i32")) {
				ids = append(ids, int32(v))
			}
			want := make([][]float32, len(ids))
			for i, v := range readWords(t, filepath.Join(dir, "logits.f32")) {
				want[i/cfg.Vocab] = append(want[i/cfg.Vocab], math.Float32frombits(v))
			}
			d := farthest(t, logits(t, hf.Model(), ids), want)
			t.Logf("largest difference of a logit: %.1e", d)
			require.LessOrEqual(t, d, 1e-3)
		})
	}
}

// startFrom is a float training that starts from the weights at path.
func startFrom(t *testing.T, path string) (*model.Trainer, config.Model, []string) {
	p, err := model.OpenPretrained(path)
	require.NoError(t, err)
	defer p.Close()
	require.NoError(t, p.Fits(p.Config()))
	tr, err := model.NewTrainer(p.Config(), model.TrainOptions{Tokens: 32, Float: true})
	require.NoError(t, err)
	tr.Init(1)
	left, err := p.Fill(tr.Params())
	require.NoError(t, err)
	require.NoError(t, tr.Refresh())
	return tr, p.Config(), left
}
