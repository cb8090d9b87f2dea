//go:build cgo

package infer

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// An engine on the emulated GPU gives the tokens of one on the processor: with a prefix
// that is shared, its pages copied, and streams side by side.
func TestEngineOnGPU(t *testing.T) {
	t.Cleanup(cudatest.Clean)
	device, image := cudatest.Open(t, os.Getenv)
	t.Cleanup(device.Close)

	m := smallModel(t)
	gpu, err := model.NewGPU(m, device, image)
	require.NoError(t, err)
	prompts := [][]int32{make([]int32, 70), make([]int32, 67), {5, 6, 7}}
	for _, p := range prompts[:2] {
		for i := range p {
			p[i] = int32(3*i%50 + 1) // the first 64 and more are shared
		}
	}
	var want [][]int32
	for _, o := range []Options{{Threads: 1}, {GPU: gpu, MaxTokensPerStep: 16}} {
		e, err := New(m, o)
		require.NoError(t, err)
		var streams []*Stream
		var got [][]int32
		for i, p := range prompts {
			s, err := e.Generate(t.Context(), Request{Prompt: p, MaxTokens: 4, Sample: sample.Options{Temperature: 1, Seed: uint64(i)}})
			require.NoError(t, err)
			streams = append(streams, s)
		}
		for _, s := range streams {
			got = append(got, ids(read(t, s, 100).tokens))
		}
		s, err := e.Generate(t.Context(), Request{Prompt: append(prompts[0][:66:66], 9), MaxTokens: 3})
		require.NoError(t, err)
		got = append(got, ids(read(t, s, 100).tokens))
		require.NotZero(t, s.Result().CachedTokens)
		e.Close()
		if want == nil {
			want = got
		}
		require.Equal(t, want, got)
	}
}
