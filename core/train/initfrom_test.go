package train

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/model"
)

// A training may start from the float weights of another model: its first loss is then
// about that model's last one. A shape that does not fit is an error with the key.
func TestInitFrom(t *testing.T) {
	dir, out := prepared(t), t.TempDir()
	run := filepath.Join(out, "run")
	var first *Result
	first, err := train(t, settings(t, dir, "train.out="+run, "train.steps=40"), fsx.OS(), func(o *Options) { o.hooks.network = newNetwork })
	require.NoError(t, err)
	f, err := gguf.Open(first.Model)
	require.NoError(t, err)
	defer f.Close()
	m, err := model.Load(f, model.Options{})
	require.NoError(t, err)
	llama := filepath.Join(out, "llama.gguf")
	require.NoError(t, m.Export(llama, gguf.F16))

	var log bytes.Buffer
	var start Number
	_, err = train(t, settings(t, dir, "train.out="+filepath.Join(out, "next"), "train.init_from="+llama, "train.steps=4", "schedule.decay=1", "model.qk_norm=true"), fsx.OS(),
		func(o *Options) {
			o.Log, o.hooks.network = &log, newNetwork
			o.Progress = func(p *Progress) {
				if p.Step == 1 {
					start = p.Metrics.CE
				}
			}
		})
	require.NoError(t, err)
	require.Less(t, float64(start), 4.5, "ln 272 is 5.6, the other model came to %v", first.Val.Nats)
	require.Contains(t, log.String(), "has no blk.0.attn_q_norm.weight")

	_, err = train(t, settings(t, dir, "train.out="+filepath.Join(out, "bad"), "train.init_from="+llama, "model.ffn=96"), fsx.OS(),
		func(o *Options) { o.hooks.network = newNetwork })
	require.ErrorContains(t, err, "train.init_from")
	require.ErrorContains(t, err, "ffn")
}
