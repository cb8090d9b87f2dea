package interop

import (
	"encoding/binary"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// logits computes the logits of every token of ids.
func logits(t *testing.T, m *model.Model, ids []int32) [][]float32 {
	t.Helper()
	tm := team.New(1, team.Options{})
	defer tm.Close()
	w, err := model.NewWork(m, tm, len(ids))
	require.NoError(t, err)
	p, err := model.NewPool(m, len(ids)/kernels.PageLen+1, kernels.KVF16)
	require.NoError(t, err)
	seq := &model.Seq{}
	require.NoError(t, p.Grow(seq, len(ids)))
	require.NoError(t, m.Forward(w, p, &model.Step{Tokens: ids, Seqs: []model.SeqStep{{Seq: seq, N: len(ids), Logits: model.LogitsAll}}}))
	var out [][]float32
	for i := range w.Rows() {
		out = append(out, append([]float32(nil), w.Logits(i)...))
	}
	return out
}

func readWords(t *testing.T, path string) []uint32 {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	out := make([]uint32, len(b)/4)
	for i := range out {
		out[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return out
}

// farthest is the largest difference between two sets of logits.
func farthest(t *testing.T, a, b [][]float32) float64 {
	t.Helper()
	require.Equal(t, len(a), len(b))
	d := 0.0
	for i := range a {
		require.Equal(t, len(a[i]), len(b[i]))
		for j := range a[i] {
			v := math.Abs(float64(a[i][j]) - float64(b[i][j]))
			require.False(t, math.IsNaN(v))
			d = max(d, v)
		}
	}
	return d
}

// Foreign files written by the Python package gguf give the logits of the NumPy
// reference. The seeds are such that no activation falls so close to a tie of its
// int8 rounding that float32 and float64 differ, which moves a logit by some 1e-2.
func TestForeignModelsMatchNumPy(t *testing.T) {
	py := tokenizerPython(t)
	for _, args := range []string{
		"llama F32 1", "llama F16 2 tied", "llama BF16 3", "llama Q8_0 4 rope_freqs", "llama Q4_0 5 linear_rope",
		"llama TQ1_0 6 tied", "llama TQ2_0 7 rope_freqs",
		"bitnet F32 8", "bitnet F16 21 scales", "bitnet TQ2_0 10", "bitnet F16 11 relu2",
		"bitnet-b1.58 F32 12", "bitnet-b1.58 TQ1_0 13", "bitnet-25 BF16 14",
	} {
		t.Run(args, func(t *testing.T) {
			dir := t.TempDir()
			out, err := exec.Command(py, append([]string{"model_reference.py", dir}, strings.Fields(args)...)...).CombinedOutput()
			require.NoError(t, err, "%s", out)
			f, err := gguf.Open(filepath.Join(dir, "model.gguf"))
			require.NoError(t, err)
			defer f.Close()
			m, err := model.Load(f, model.Options{})
			require.NoError(t, err)
			var ids []int32
			for _, v := range readWords(t, filepath.Join(dir, "ids.i32")) {
				ids = append(ids, int32(v))
			}
			want := make([][]float32, len(ids))
			vocab := m.Config().Vocab
			for i, v := range readWords(t, filepath.Join(dir, "logits.f32")) {
				want[i/vocab] = append(want[i/vocab], math.Float32frombits(v))
			}
			got := logits(t, m, ids)
			d := farthest(t, got, want)
			t.Logf("largest difference of a logit: %.1e", d)
			require.LessOrEqual(t, d, 1e-3)
		})
	}
}
