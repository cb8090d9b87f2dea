package bench

import (
	"context"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/tune"
)

// Shapes lists the matrix products of a model: every projection and the head, for
// decoding one token and for reading a prompt in steps of 256.
func Shapes(c config.Model) []tune.Shape {
	const prompt = 256
	type matrix struct{ m, k int }
	projections := []matrix{
		{c.Heads * c.HeadDim, c.Dim}, {c.KVHeads * c.HeadDim, c.Dim}, {c.Dim, c.Heads * c.HeadDim},
		{c.FFN, c.Dim}, {c.Dim, c.FFN},
	}
	var shapes []tune.Shape
	seen := map[matrix]bool{}
	for _, p := range projections {
		if seen[p] {
			continue
		}
		seen[p] = true
		group := c.Group
		if group == 0 || group > p.k {
			group = p.k
		}
		shapes = append(shapes,
			tune.Shape{Op: tune.TernaryGEMV, M: p.m, K: p.k, Group: group, Batch: 1},
			tune.Shape{Op: tune.TernaryGEMM, M: p.m, K: p.k, Group: group, Batch: prompt})
	}
	head := kernels.F16
	if c.Head == "q8_0" || c.TieEmbeddings && c.Embedding == "q8_0" {
		head = kernels.Q8_0
	}
	return append(shapes, tune.Shape{Op: tune.DenseGEMV, M: c.Vocab, K: c.Dim, Type: head, Batch: 1})
}

// Tune chooses kernels for a model's shapes. The plan's set goes into
// model.Options; it gives the same bits as any other.
func Tune(ctx context.Context, c config.Model, o tune.Options) (*tune.Plan, error) {
	shapes := Shapes(c)
	if o.WorkingSet == 0 {
		for _, s := range shapes {
			if s.Batch > 1 {
				continue
			}
			copies := 1 // the head
			if s.Group > 0 {
				copies = c.Layers
			}
			o.WorkingSet += copies * s.WeightBytes()
		}
	}
	return tune.Tune(ctx, shapes, o)
}
