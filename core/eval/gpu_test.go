//go:build cgo

package eval

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
	"github.com/architehc/nanochat/kernels/team"
)

// The device measures what the processor does, to the bit: with documents that do not fit into a
// step, and windows that overlap.
func TestOnGPU(t *testing.T) {
	t.Cleanup(cudatest.Clean)
	device, image := cudatest.Open(t, os.Getenv)
	t.Cleanup(device.Close)
	m, tok := testModel(t)
	gpu, err := model.NewGPU(m, device, image)
	require.NoError(t, err)
	tm := team.New(2, team.Options{})
	t.Cleanup(tm.Close)
	var want []Sums
	for _, o := range []Options{{}, {GPU: gpu, StepTokens: 40}, {GPU: gpu}} {
		o.Team, o.KVType = tm, kernels.KVI8
		e, err := New(m, tok, o)
		require.NoError(t, err)
		var got []Sums
		total, err := e.Documents(t.Context(), texts("fn main() {}", "let x = 1; let y = 2; let z = x + y; println!(\"{}\", z);", "a"), Windows{Window: 30, Overlap: 7},
			func(_ data.Document, s Sums) { got = append(got, s) }, nil)
		require.NoError(t, err)
		got = append(got, total)
		if want == nil {
			want = got
		}
		require.Equal(t, want, got)
	}
}
