package bench

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
	"github.com/architehc/nanochat/kernels/tune"
)

// A model with a tuned set computes what it computes with any other set.
func TestTunedModelGivesTheSameBits(t *testing.T) {
	c := tinyConfig()
	shapes := []tune.Shape{{Op: tune.DenseGEMV, M: c.Vocab, K: c.Dim, Type: kernels.F16, Batch: 1}}
	for _, s := range [][2]int{{64, 64}, {128, 64}, {64, 128}} {
		shapes = append(shapes,
			tune.Shape{Op: tune.TernaryGEMV, M: s[0], K: s[1], Group: 64, Batch: 1},
			tune.Shape{Op: tune.TernaryGEMM, M: s[0], K: s[1], Group: 64, Batch: 5})
	}
	plan, err := tune.Tune(t.Context(), shapes, tune.Options{Mode: tune.Auto, BatchTime: 10 * time.Microsecond})
	require.NoError(t, err)
	require.Equal(t, len(shapes), plan.Measured)
	// Every set is somewhere: the choice of this machine may be one for all.
	mixed := *plan.Set
	if all := kernels.All(); len(all) > 1 {
		mixed.TernaryGEMV, mixed.DenseGEMV = all[1].TernaryGEMV, all[len(all)-1].DenseGEMV
	}
	var want []float32
	for _, set := range []*kernels.Set{kernels.Best(), plan.Set, &mixed} {
		got := logits(t, c, set)
		if want == nil {
			want = got
		}
		require.Equal(t, want, got, set.Name)
	}
}

// logits reads a short prompt and decodes one token.
func logits(t *testing.T, c config.Model, set *kernels.Set) []float32 {
	t.Helper()
	m, err := model.Init(t.Context(), c, 1, model.Options{Set: set})
	require.NoError(t, err)
	tm := team.New(2, team.Options{})
	defer tm.Close()
	w, err := model.NewWork(m, tm, 16)
	require.NoError(t, err)
	pool, err := model.NewPool(m, 2, kernels.KVF16)
	require.NoError(t, err)
	var seq model.Seq
	require.NoError(t, pool.Grow(&seq, 8))
	var out []float32
	for _, ids := range [][]int32{{1, 2, 3, 4, 5}, {6}} {
		step := model.Step{Tokens: ids, Seqs: []model.SeqStep{{Seq: &seq, N: len(ids), Logits: model.LogitsLast}}}
		require.NoError(t, m.Forward(w, pool, &step))
		out = append(out, w.Logits(0)...)
	}
	return out
}
