package train

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/eval"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/kernels/team"
)

// bitsPerByte evaluates a model file as `nanochat eval bpb --shards` does.
func bitsPerByte(t *testing.T, path, shards string, seqLen int) (eval.Sums, *gguf.File) {
	t.Helper()
	f, err := gguf.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	m, err := model.Load(f, model.Options{})
	require.NoError(t, err)
	tok, err := tokenizer.FromMetadata(path, f)
	require.NoError(t, err)
	tm := team.New(2, team.Options{})
	defer tm.Close()
	e, err := eval.New(m, tok, eval.Options{Team: tm})
	require.NoError(t, err)
	d, err := data.Open(shards, data.Val, data.OpenOptions{})
	require.NoError(t, err)
	defer d.Close()
	s, err := e.Dataset(t.Context(), d, eval.Rows{SeqLen: seqLen}, nil)
	require.NoError(t, err)
	return s, f
}

// TestExportedModelIsTheTrainers: for every kind of network, what a run evaluates,
// the file that it writes, and the file that is made of its checkpoint are one model.
func TestExportedModelIsTheTrainers(t *testing.T) {
	shards := prepared(t)
	for name, sets := range map[string][]string{
		"plain":     nil,
		"one":       {"model.streams=1", "model.ffn_kind=relu2", "model.sub_norm=true", "model.residual_scalars=true", "model.logit_softcap=15", "model.tie_embeddings=false", "model.head=q8_0", "model.embedding=q8_0"},
		"grouped":   {"model.heads=4", "model.head_dim=16", "model.kv_heads=2", "model.tie_embeddings=true", "model.streams=2", "model.ffn_kind=swiglu"},
		"streams":   {"model.streams=4", "model.sub_norm=true", "model.ffn_kind=relu2_glu"},
		"dynamic":   {"model.streams=2", "model.mhc_dynamic=true", "model.qk_norm=true"},
		"sinkhorn":  {"model.streams=4", "model.mhc=sinkhorn", "model.tie_embeddings=true", "model.embedding=q8_0"},
		"recompute": {"model.streams=2", "train.recompute=true"},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "run")
			cfg := settings(t, shards, append([]string{"model.layers=2", "train.out=" + out, "train.eval_tokens=0", "train.steps=6", "train.eval_every=2", "train.checkpoint_every=3"}, sets...)...)
			res, err := train(t, cfg, nil, func(o *Options) { o.hooks.network, o.Peak, o.Version = nil, 1, "test" })
			require.NoError(t, err)
			require.NotNil(t, res.Val)

			made := filepath.Join(t.TempDir(), "made.gguf")
			e, err := Export(out, made, ExportOptions{Version: "test"})
			require.NoError(t, err)
			require.Equal(t, 6, e.Step)
			require.Equal(t, res.Checkpoint, e.Checkpoint)
			require.InEpsilon(t, float64(res.Val.BPB), float64(e.Val.BPB), 1e-5) // six digits in a checkpoint
			written, err := os.ReadFile(filepath.Join(out, "model.gguf"))
			require.NoError(t, err)
			exported, err := os.ReadFile(made)
			require.NoError(t, err)
			require.True(t, bytes.Equal(written, exported), "the run and the export write other files")

			s, f := bitsPerByte(t, made, shards, cfg.Train.SeqLen)
			require.Equal(t, res.Val.Tokens, s.Tokens)
			require.Equal(t, res.Val.Bytes, s.Bytes)
			require.InEpsilon(t, float64(res.Val.BPB), s.BPB(), 5e-7, "six digits")
			require.InEpsilon(t, float64(res.Val.Nats), s.PerToken(), 5e-7)
			for _, key := range []string{"general.name", "nanochat.training.config", "nanochat.data.id", "nanochat.data.tokenizer_sha256", "nanochat.training.kernel"} {
				v, err := f.StringOr(key, "")
				require.NoError(t, err)
				require.NotEmpty(t, v, key)
			}
		})
	}
}

func TestExportChooses(t *testing.T) {
	shards := prepared(t)
	root := t.TempDir()
	out := filepath.Join(root, "run")
	cfg := settings(t, shards, "train.out="+out, "train.steps=6", "train.eval_every=2", "train.checkpoint_every=2", "train.keep_last=9", "optim.matrix.lr=0.5")
	_, err := train(t, cfg, nil, func(o *Options) { o.hooks.network, o.Peak = nil, 1 })
	require.NoError(t, err)
	to := filepath.Join(root, "m.gguf")
	for path, step := range map[string]int{out: 6, filepath.Join(out, "checkpoints"): 6, filepath.Join(out, "checkpoints", "step-00000004"): 4} {
		e, err := Export(path, to, ExportOptions{})
		require.NoError(t, err)
		require.Equal(t, step, e.Step, path)
	}
	best, err := Export(out, to, ExportOptions{Best: true})
	require.NoError(t, err)
	lowest := math.Inf(1)
	for _, step := range []string{"step-00000002", "step-00000004", "step-00000006"} {
		e, err := Export(filepath.Join(out, "checkpoints", step), to, ExportOptions{})
		require.NoError(t, err)
		lowest = min(lowest, float64(e.Val.BPB))
	}
	require.Equal(t, lowest, float64(best.Val.BPB))

	// A damaged checkpoint is passed over, and said.
	weights := filepath.Join(out, "checkpoints", "step-00000006", "weights.safetensors")
	b, err := os.ReadFile(weights)
	require.NoError(t, err)
	b[len(b)-9] ^= 1
	require.NoError(t, os.WriteFile(weights, b, 0o666))
	warned := 0
	e, err := Export(out, to, ExportOptions{Warn: func(error) { warned++ }})
	require.NoError(t, err)
	require.Equal(t, 4, e.Step)
	require.Equal(t, 1, warned)
	_, err = Export(filepath.Join(out, "checkpoints", "step-00000006"), to, ExportOptions{})
	require.ErrorContains(t, err, "weights.safetensors")

	// Without the data the tokenizer must be named.
	away := filepath.Join(root, "away")
	require.NoError(t, os.Rename(shards, away))
	var fault *Error
	_, err = Export(out, to, ExportOptions{})
	require.ErrorAs(t, err, &fault)
	require.Contains(t, fault.Hint, "--tokenizer")
	_, err = Export(out, to, ExportOptions{Tokenizer: filepath.Join(away, "tokenizer.json")})
	require.NoError(t, err)
	small, err := tokenizer.NewByteLevel(fakeVocab + 1)
	require.NoError(t, err)
	other, err := os.Create(filepath.Join(root, "other.json"))
	require.NoError(t, err)
	require.NoError(t, small.WriteHF(other))
	require.NoError(t, other.Close())
	_, err = Export(out, to, ExportOptions{Tokenizer: other.Name()})
	require.ErrorAs(t, err, &fault)
	require.Contains(t, fault.What, "273 tokens")

	for path, what := range map[string]string{filepath.Join(root, "nowhere"): "no such file", root: "no checkpoint", to: "is a file"} {
		_, err := Export(path, filepath.Join(root, "x.gguf"), ExportOptions{})
		require.ErrorAs(t, err, &fault, path)
		require.ErrorContains(t, err, what)
		require.NotEmpty(t, fault.Hint)
	}
	_, err = Export(filepath.Join(out, "checkpoints", "step-00000004"), to, ExportOptions{Best: true})
	require.ErrorContains(t, err, "one checkpoint")

}
