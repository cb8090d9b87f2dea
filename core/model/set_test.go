package model

import (
	"path/filepath"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/kernels"
)

// A model with another set has the same weights in the same memory, and computes the
// same bits.
func TestWithSet(t *testing.T) {
	dynamic, llama := small(), wide()
	dynamic.Streams, dynamic.MHC, dynamic.MHCDynamic = 2, config.MHCBvN, true
	path := filepath.Join(t.TempDir(), "llama.gguf")
	require.NoError(t, initModel(t, llama, 5, nil).Export(path, gguf.TQ2_0))
	foreign, err := Load(open(t, path), Options{HugePages: true})
	require.NoError(t, err)
	for name, m := range map[string]*Model{"plain": initModel(t, small(), 1, nil), "dynamic": initModel(t, dynamic, 1, nil), "foreign": foreign} {
		ids := text(m.cfg, 9)
		want := run(t, m, 1, kernels.KVF16, ids, 7, 1)
		for _, set := range kernels.All() {
			n := m.WithSet(set)
			require.Same(t, set, n.Set())
			require.Equal(t, want, run(t, n, 1, kernels.KVF16, ids, 7, 1), "%s, %s", name, set.Name)
			require.Same(t, &m.layers[0], &n.layers[0])
			require.Same(t, &m.embed.Data[0], &n.embed.Data[0])
			a, b := reflect.ValueOf(m).Elem(), reflect.ValueOf(n).Elem()
			for i := range a.NumField() {
				switch field := a.Type().Field(i).Name; field {
				case "set", "rope", "hold":
				default: // a field that WithSet forgets is zero
					require.Equal(t, a.Field(i).IsZero(), b.Field(i).IsZero(), field)
				}
			}
			for i, from, to := 0, a.FieldByName("rope"), b.FieldByName("rope"); i < from.NumField(); i++ {
				require.Equal(t, from.Field(i).IsZero(), to.Field(i).IsZero(), from.Type().Field(i).Name)
			}
		}
	}
}
