package golden

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/model"
)

// Whole networks: the objective, its parts, and the gradient of every tensor. Three
// have float projections; one is quantised as shipped models are. The forward
// differs from float64 by the rounding of float32, which may move an int8 value of
// the quantised network by one; the backward by that its keys are those before
// they were rounded to half precision for the cache, and in the last case by the
// factors of its products, which are bfloat16.
func TestNetworks(t *testing.T) {
	g := open(t, "networks.safetensors")
	var networks map[string]config.Model
	var ranges map[string]map[string][2]float32
	g.meta(t, "networks", &networks)
	g.meta(t, "ranges", &ranges)
	require.Len(t, networks, 4)
	var quantised []string
	g.meta(t, "ternary", &quantised)
	for name, c := range networks {
		for _, o := range []struct {
			name      string
			options   model.TrainOptions
			tolerance float64
		}{
			{"f32", model.TrainOptions{F32: true}, 2.5e-3},
			{"recompute", model.TrainOptions{F32: true, Recompute: true}, 2.5e-3},
			{"bf16", model.TrainOptions{}, 4e-2},
		} {
			t.Run(name+" "+o.name, func(t *testing.T) {
				o.options.Tokens, o.options.Float = 24, !slices.Contains(quantised, name)
				tr, err := model.NewTrainer(c, o.options)
				require.NoError(t, err)
				require.Len(t, tr.Params(), len(ranges[name]))
				for _, p := range tr.Params() {
					r, ok := ranges[name][p.Name]
					require.True(t, ok, p.Name)
					copy(p.W, draw(name+"/"+p.Name, len(p.W), r[0], r[1]))
				}
				require.NoError(t, tr.Refresh())
				b := &model.TrainBatch{Rows: 2, SeqLen: 12, Tokens: pick("tokens", 24, c.Vocab), Targets: pick("targets", 24, c.Vocab), Starts: make([]int32, 24)}
				b.Targets[4], b.Targets[17] = -1, -1
				for i := 5; i < 12; i++ {
					b.Starts[i] = 5
				}
				l := model.LossOptions{Scale: 1. / 16, Z: 1. / 64, Entropy: 1. / 32, Smoothing: 1. / 16}
				sum, err := tr.Backward(b, l)
				require.NoError(t, err)
				require.Equal(t, 22, sum.Count)
				require.InEpsilon(t, g.get(t, name+"/objective")[0], sum.Objective*l.Scale, 1e-3)
				for i, want := range g.get(t, name+"/sums") {
					require.InEpsilon(t, want, []float64{sum.NLL, sum.LSE2, sum.Entropy}[i], 2e-3)
				}
				for _, p := range tr.Params() {
					tolerance := o.tolerance
					if len(p.W) <= 4 {
						tolerance *= 5 // few numbers, each a sum of many that cancel
					}
					g.check(t, name+"/"+p.Name, p.G, tolerance)
				}
			})
		}
	}
}

// The draws leave no tensor without a gradient of some size, or the comparison
// would say little about it: none but the hyper-connections that have no effect,
// pre and res of the first site and res of the last.
func TestNetworksHaveGradients(t *testing.T) {
	g := open(t, "networks.safetensors")
	var ranges map[string]map[string][2]float32
	g.meta(t, "ranges", &ranges)
	for name, tensors := range ranges {
		for tensor := range tensors {
			largest := 0.0
			for _, v := range g.get(t, name+"/"+tensor) {
				largest = max(largest, math.Abs(float64(v)))
			}
			switch tensor {
			case "blk.0.mhc_attn.pre", "blk.0.mhc_attn.res", "blk.1.mhc_ffn.res":
				require.Less(t, largest, 1e-3, fmt.Sprint(name, " ", tensor))
			default:
				require.Greater(t, largest, 1e-4, fmt.Sprint(name, " ", tensor))
			}
		}
	}
}
