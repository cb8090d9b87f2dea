package model

import (
	"math"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/kernels"
)

// The int8 head against the float product of the same matrix, which foreign
// models have: what rounding its input to 8 bits costs. NANOCHAT_LONG=1 takes the
// nano shape: NANOCHAT_LONG=1 go test -run Int8Head -v ./core/model
func TestInt8HeadIsCloseToFloat(t *testing.T) {
	c := small()
	if os.Getenv("NANOCHAT_LONG") != "" {
		c = nano()
	}
	c.Head = config.TypeQ8_0
	m := initModel(t, c, 5, nil)
	require.True(t, m.int8Head())
	float := initModel(t, c, 5, nil)
	float.arch = "llama"
	require.False(t, float.int8Head())
	ids := text(c, 24)
	got, want := run(t, m, 1, kernels.KVF16, ids, 24), run(t, float, 1, kernels.KVF16, ids, 24)
	var diff, norm float64
	for i := range want {
		for j, v := range want[i] {
			d := float64(got[i][j] - v)
			diff += d * d
			norm += float64(v) * float64(v)
		}
	}
	rms := math.Sqrt(diff / norm)
	t.Logf("relative RMS difference of the logits %.4f", rms)
	require.NotZero(t, rms)
	require.Less(t, rms, 0.01)
	// f16 heads are float in every architecture.
	c.Head = config.TypeF16
	require.False(t, initModel(t, c, 5, nil).int8Head())
}
