package chat

import (
	"context"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
	"github.com/architehc/nanochat/kernels/tune"
)

// A Chooser picks the kernels for a model of shape c on team t. All sets compute
// the same bits.
type Chooser func(ctx context.Context, c config.Model, t *team.Team) (*kernels.Set, error)

// Tuned is a Chooser that measures, or remembers, the fastest kernel for every
// matrix product of the model. Team and WorkingSet of o are filled in.
func Tuned(o tune.Options) Chooser {
	return func(ctx context.Context, c config.Model, t *team.Team) (*kernels.Set, error) {
		list := shapes(c)
		o.Team, o.WorkingSet = t, 0
		for _, s := range list {
			switch {
			case s.Batch > 1: // the same weights as its GEMV
			case s.Group > 0:
				o.WorkingSet += c.Layers * s.WeightBytes()
			default:
				o.WorkingSet += s.WeightBytes()
			}
		}
		plan, err := tune.Tune(ctx, list, o)
		if err != nil {
			return nil, err
		}
		return plan.Set, nil
	}
}

// shapes lists the products that a model computes: its projections, for one token
// and for a step of a prompt, and the head.
func shapes(c config.Model) []tune.Shape {
	const step = 256
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	seen := map[[2]int]bool{}
	var list []tune.Shape
	for _, s := range [][2]int{{q, c.Dim}, {kv, c.Dim}, {c.Dim, q}, {c.FFN, c.Dim}, {c.Dim, c.FFN}} {
		if seen[s] {
			continue
		}
		seen[s] = true
		group := c.Group
		if group == 0 || group > s[1] {
			group = s[1]
		}
		list = append(list,
			tune.Shape{Op: tune.TernaryGEMV, M: s[0], K: s[1], Group: group, Batch: 1},
			tune.Shape{Op: tune.TernaryGEMM, M: s[0], K: s[1], Group: group, Batch: step})
	}
	kind := c.Head
	if c.TieEmbeddings {
		kind = c.Embedding
	}
	head := tune.Shape{Op: tune.DenseGEMV, M: c.Vocab, K: c.Dim, Type: kernels.F16, Batch: 1}
	if kind == config.TypeQ8_0 {
		head.Op, head.Type = tune.Q8GEMV, kernels.Q8_0
	}
	return append(list, head)
}
