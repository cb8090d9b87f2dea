package model

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/kernels"
)

// A file with a few changed bytes is refused or gives a model that runs: nothing
// panics, and what is refused says so with a *gguf.FormatError.
func TestLoadSurvivesMutation(t *testing.T) {
	dir := t.TempDir()
	own := small()
	own.Streams, own.MHCDynamic, own.ResidualScalars, own.QKNorm, own.Layers = 2, true, true, true, 1
	own.Vocab = 31
	foreign := wide()
	foreign.Layers, foreign.Vocab = 1, 31
	require.NoError(t, initModel(t, own, 1, nil).Save(filepath.Join(dir, "0")))
	require.NoError(t, initModel(t, foreign, 1, nil).Export(filepath.Join(dir, "1"), gguf.TQ2_0))
	r := rand.New(rand.NewPCG(1, 1))
	loaded := 0
	for _, name := range []string{"0", "1"} {
		whole, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		f, err := gguf.Parse(name, whole)
		require.NoError(t, err)
		for range 1500 {
			b := append([]byte(nil), whole...)
			for range 1 + r.IntN(3) {
				end := int(f.HeaderSize)
				if r.IntN(4) == 0 {
					end = len(b)
				}
				b[r.IntN(end)] = byte(r.Uint32())
			}
			bad, err := gguf.Parse("mutant", b)
			if err != nil {
				continue
			}
			m, err := Load(bad, Options{})
			if err != nil {
				var fe *gguf.FormatError
				require.ErrorAs(t, err, &fe)
				continue
			}
			loaded++
			if m.cfg.Context >= 2 && loaded%10 == 0 {
				run(t, m, 1, kernels.KVF16, []int32{0, 1}, 2)
			}
		}
	}
	require.Positive(t, loaded)
}
