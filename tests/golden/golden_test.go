// Package golden checks kernels, core/mhc and the training of core/model against
// tensors that generate.py makes with JAX in float64, values and gradients.
package golden

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/safetensors"
	"github.com/architehc/nanochat/kernels"
)

// draw is series.draw of the generator: n values shift + scale·k/256, k odd.
func draw(name string, n int, scale, shift float32) []float32 {
	seed := uint32(0x811C9DC5) // FNV-1a
	for _, b := range []byte(name) {
		seed = (seed ^ uint32(b)) * 0x01000193
	}
	v := make([]float32, n)
	for i := range v {
		x := seed + uint32(i)*0x9E3779B9
		x = (x ^ x>>16) * 0x7FEB352D
		x = (x ^ x>>15) * 0x846CA68B
		x ^= x >> 16
		v[i] = shift + scale*float32(2*int(x>>24)-255)/256
	}
	return v
}

// pick is series.pick: n integers 0 ≤ i < below.
func pick(name string, n, below int) []int32 {
	v := make([]int32, n)
	for i, x := range draw(name, n, 1, 0) {
		v[i] = (int32(x*256) + 255) / 2 * int32(below) / 256
	}
	return v
}

// goldens is one file of the generator.
type goldens struct{ *safetensors.File }

func open(t *testing.T, path string) goldens {
	t.Helper()
	f, err := safetensors.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return goldens{f}
}

// meta decodes the metadata of the given name.
func (g goldens) meta(t *testing.T, name string, v any) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(g.Metadata[name]), v))
}

func (g goldens) get(t *testing.T, name string) []float32 {
	t.Helper()
	x := g.Tensor(name)
	require.NotNil(t, x, "no tensor %q: run generate.py", name)
	require.Equal(t, safetensors.F32, x.DType)
	v := make([]float32, len(x.Data)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(x.Data[4*i:]))
	}
	return v
}

// check compares got with the tensor of that name. The tolerance is relative to
// the largest magnitude of the tensor, or to 1e-3 if that is less.
func (g goldens) check(t *testing.T, name string, got []float32, tolerance float64) {
	t.Helper()
	want := g.get(t, name)
	require.Len(t, got, len(want), name)
	scale, worst, at := 1e-3, 0.0, 0
	for i, v := range want {
		scale = max(scale, math.Abs(float64(v)))
		d := math.Abs(float64(v) - float64(got[i]))
		if !(d <= worst) { // NaN too
			worst, at = d, i
		}
	}
	require.LessOrEqual(t, worst, tolerance*scale, "%s[%d]: want %g, got %g, largest %g", name, at, want[at], got[at], scale)
}

// eachSet runs f for every set of kernels. Sets give the same bits but for
// bfloat16; running all of them costs little and needs no such promise.
func eachSet(t *testing.T, f func(t *testing.T, k *kernels.Set)) {
	for _, k := range kernels.All() {
		t.Run(k.Name, func(t *testing.T) { f(t, k) })
	}
}

// The twin of series.draw: the same numbers, exactly.
func TestDraw(t *testing.T) {
	for _, v := range draw("x", 1000, 4, 0.5) {
		k := (v - 0.5) * 64
		require.Equal(t, k, float32(math.Trunc(float64(k))))
		require.Equal(t, 1, int(math.Abs(float64(k)))%2)
		require.Equal(t, v, kernels.F16ToF32(kernels.F32ToF16(v)))
	}
	for _, v := range pick("x", 1000, 40) {
		require.True(t, v >= 0 && v < 40)
	}
}
