package model

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// small is a shape whose sizes are not multiples of anything convenient.
func small() config.Model {
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN = 96, 3, 4, 2, 24, 160
	c.Vocab, c.Context, c.Group = 211, 300, 64
	c.Embedding, c.Head = config.TypeF16, config.TypeQ8_0
	return c
}

// axes is a finite set of configurations in which every switch is on and off and
// every choice is taken.
func axes() map[string]config.Model {
	all := map[string]config.Model{"plain": small()}
	add := func(name string, f func(c *config.Model)) {
		c := small()
		f(&c)
		all[name] = c
	}
	add("tied q8_0", func(c *config.Model) { c.TieEmbeddings, c.Embedding = true, config.TypeQ8_0 })
	add("f16 head", func(c *config.Model) { c.Head = config.TypeF16 })
	add("relu2", func(c *config.Model) { c.FFNKind = config.FFNReLU2 })
	add("relu2_glu", func(c *config.Model) { c.FFNKind = config.FFNReLU2GLU; c.SubNorm = true })
	add("norms", func(c *config.Model) { c.QKNorm, c.SubNorm = true, true })
	add("softcap", func(c *config.Model) { c.LogitSoftcap = 3 })
	add("scalars", func(c *config.Model) { c.ResidualScalars = true })
	add("group row", func(c *config.Model) { c.Group = 0 })
	add("group 128", func(c *config.Model) { c.Group = 128 })
	add("group 256", func(c *config.Model) { c.Group, c.Dim, c.FFN = 256, 256, 512 })
	add("one head", func(c *config.Model) { c.Heads, c.KVHeads, c.HeadDim = 1, 1, 64 })
	add("three kv heads", func(c *config.Model) { c.Heads, c.KVHeads = 6, 3 })
	add("whole heads", func(c *config.Model) { c.Heads, c.KVHeads, c.HeadDim = 8, 4, 16 })
	for _, n := range []int{2, 4} {
		for _, kind := range []string{config.MHCBvN, config.MHCSinkhorn} {
			for _, dynamic := range []bool{false, true} {
				add(fmt.Sprint(n, " streams ", kind, " ", dynamic), func(c *config.Model) {
					c.Streams, c.MHC, c.MHCDynamic = n, kind, dynamic
					c.ResidualScalars = dynamic && n == 2
				})
			}
		}
	}
	return all
}

// run computes the logits of all tokens of ids, in steps of the given sizes, the
// last repeated.
func run(t testing.TB, m *Model, workers int, kv kernels.KVType, ids []int32, sizes ...int) [][]float32 {
	t.Helper()
	tm := team.New(workers, team.Options{})
	defer tm.Close()
	w, err := NewWork(m, tm, len(ids))
	require.NoError(t, err)
	p, err := NewPool(m, len(ids)/kernels.PageLen+1, kv)
	require.NoError(t, err)
	return steps(t, m, w, p, ids, sizes...)
}

// steps is run with memory that is there.
func steps(t testing.TB, m *Model, w *Work, p *Pool, ids []int32, sizes ...int) [][]float32 {
	t.Helper()
	seq := &Seq{}
	var out [][]float32
	for i := 0; len(ids) > 0; i++ {
		n := min(sizes[min(i, len(sizes)-1)], len(ids))
		require.NoError(t, p.Grow(seq, n))
		require.NoError(t, m.Forward(w, p, &Step{Tokens: ids[:n], Seqs: []SeqStep{{seq, n, LogitsAll, false}}}))
		require.Equal(t, n, w.Rows())
		for i := range n {
			out = append(out, append([]float32(nil), w.Logits(i)...))
		}
		ids = ids[n:]
	}
	return out
}

// text is n token ids.
func text(c config.Model, n int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32((i*i*7 + 13*i + 5) % c.Vocab)
	}
	return ids
}

func initModel(t testing.TB, c config.Model, seed uint64, set *kernels.Set) *Model {
	t.Helper()
	m, err := Init(t.Context(), c, seed, Options{Set: set})
	require.NoError(t, err)
	return m
}

// A token's logits do not depend on the kernel set, the number of workers, or how
// the sequence is cut into steps. By default every set meets every configuration
// and every way of cutting meets the fastest set; all with all are
//
//	NANOCHAT_LONG=1 go test -run OneAnswer ./core/model
func TestOneAnswer(t *testing.T) {
	const n = 70 // two pages
	long := os.Getenv("NANOCHAT_LONG") != ""
	type way struct {
		workers int
		sizes   []int
	}
	ways := []way{{1, []int{n}}, {2, []int{1, 30, 1, 36, 2}}, {1, []int{1}}, {2, []int{2}}, {3, []int{3, 65, 1}}, {4, []int{n}}}
	for name, c := range axes() {
		t.Run(name, func(t *testing.T) {
			ids := text(c, n)
			for _, kv := range []kernels.KVType{kernels.KVF16, kernels.KVI8} {
				var want [][]float32
				for i, set := range kernels.All() {
					if kv == kernels.KVI8 && !c.QKNorm && !long {
						continue
					}
					m := initModel(t, c, 1, set)
					for j, x := range ways {
						if i > 0 && j > 1 && !long {
							break
						}
						got := run(t, m, x.workers, kv, ids, x.sizes...)
						if want == nil {
							want = got
						}
						require.Equal(t, want, got, "%s, %d workers, steps of %v", set.Name, x.workers, x.sizes)
					}
				}
			}
		})
	}
}
