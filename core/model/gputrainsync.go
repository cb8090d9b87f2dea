package model

import (
	"fmt"
	"slices"

	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
)

// Push copies the host's mirrors to the device and quantises them there. It fails if a
// weight of a matrix is not finite.
func (g *GPUTrainer) Push() error {
	if err := g.idle(); err != nil {
		return err
	}
	g.ready = false
	err := g.device.Do(func(t *cuda.Thread) error {
		for i, p := range g.host.params {
			if err := cuda.Upload(t, g.params[i].W, p.W); err != nil {
				return err
			}
		}
		q := &queue{}
		q.do(t.Fill(g.flags, 0, uint64(4*len(g.bad))))
		if q.err == nil {
			q.do(g.quantise())
		}
		q.do(cuda.DownloadAsync(t, g.bad, g.flags))
		q.do(t.Wait())
		return q.err
	})
	if err == nil {
		err = g.notFinite()
	}
	if err != nil {
		return fmt.Errorf("model: copying the weights to the GPU: %w", err)
	}
	g.ready = true
	return nil
}

// notFinite names the first weights that could not be quantised.
func (g *GPUTrainer) notFinite() error {
	i := slices.IndexFunc(g.bad, func(v int32) bool { return v != 0 })
	if i < 0 {
		return nil
	}
	name := "token_embd"
	switch layer := i / 4; {
	case layer < len(g.layers):
		name = fmt.Sprintf("blk.%d.%s", layer, [4]string{"attn_q, attn_k or attn_v", "attn_output", "ffn_up or ffn_gate", "ffn_down"}[i%4])
	case i > 4*len(g.layers):
		name = "output"
	}
	return fmt.Errorf("a weight of %s is not finite, or too large to be stored", name)
}

// Pull copies the weights from the device to the host's mirrors. Model follows with
// Refresh.
func (g *GPUTrainer) Pull() error {
	if err := g.idle(); err != nil {
		return err
	}
	err := g.device.Do(func(t *cuda.Thread) error {
		for i, p := range g.host.params {
			if err := cuda.Download(t, p.W, g.params[i].W); err != nil {
				return err
			}
		}
		return nil
	})
	g.host.ready = false
	if err != nil {
		return fmt.Errorf("model: copying the weights from the GPU: %w", err)
	}
	return nil
}

// Gradients copies the gradients of the last step to dst, a slice for each of Params.
func (g *GPUTrainer) Gradients(dst [][]float32) error {
	if err := g.idle(); err != nil {
		return err
	}
	if len(dst) != len(g.params) {
		return fmt.Errorf("model: room for %d gradients of %d", len(dst), len(g.params))
	}
	return g.device.Do(func(t *cuda.Thread) error {
		for i, p := range g.params {
			if len(dst[i]) != p.Rows*p.Cols {
				return fmt.Errorf("model: room for %d numbers of the gradient of %q, it has %d", len(dst[i]), p.Name, p.Rows*p.Cols)
			}
			if err := cuda.Download(t, dst[i], p.G); err != nil {
				return err
			}
		}
		return nil
	})
}

// Projections downloads the ternary matrices, as the forward reads them, in the order of a
// file. They are g's memory, until the next call.
func (g *GPUTrainer) Projections() ([]*kernels.Ternary, error) {
	if err := g.idle(); err != nil {
		return nil, err
	}
	_, linears := g.places(g.host.m)
	var from []gpuPlace
	for _, s := range g.host.m.slots() {
		if s.lin == nil || s.lin.ternary == nil {
			continue
		}
		from = append(from, linears[s.lin])
		if len(g.projections) < len(from) {
			w := *s.lin.ternary
			w.Tiles, w.Scales = kernels.AlignedBytes(len(w.Tiles)), make([]uint16, len(w.Scales))
			g.projections = append(g.projections, &w)
		}
	}
	err := g.device.Do(func(t *cuda.Thread) error {
		for i, w := range g.projections {
			// A stack's rows are divided between blocks of 16, so a part is a piece of it.
			p, block := from[i], from[i].row/kernels.TileSide
			if err := cuda.Download(t, w.Tiles, p.m.packed.Tiles+cuda.Ptr(64*block*w.ColTiles())); err != nil {
				return err
			}
			if err := cuda.Download(t, w.Scales, p.m.packed.Scales+cuda.Ptr(2*kernels.TileSide*block*w.Groups())); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("model: copying projections from the GPU: %w", err)
	}
	return g.projections, nil
}

// Counters is the counters of the optimizer.
func (g *GPUTrainer) Counters() optim.Counters { return g.optim.Counters() }

// Tensors downloads the state of the optimizer. The tensors are its memory, until the next
// call.
func (g *GPUTrainer) Tensors() (all []optim.Tensor, err error) {
	if err := g.idle(); err != nil {
		return nil, err
	}
	err = g.device.Do(func(t *cuda.Thread) error {
		all, err = g.optim.Tensors(t)
		return err
	})
	return all, err
}

// Restore is Restore of the optimizer.
func (g *GPUTrainer) Restore(c optim.Counters, tensors []optim.Tensor) error {
	if err := g.idle(); err != nil {
		return err
	}
	return g.device.Do(func(t *cuda.Thread) error { return g.optim.Restore(t, c, tensors) })
}

// StreamCosine is Trainer.StreamCosine: the mean cosine between the residual streams behind
// each layer, for some tokens of the last step or Evaluate. ok is false with one stream, or
// before the first.
func (g *GPUTrainer) StreamCosine() (cosine float64, ok bool, err error) {
	if g.cfg.Streams < 2 || g.seen == 0 {
		return 0, false, nil
	}
	if err := g.idle(); err != nil {
		return 0, false, err
	}
	step := max(g.seen/cosineTokens, 1)
	of := make([]float64, (g.seen+step-1)/step)
	err = g.device.Do(func(t *cuda.Thread) error {
		// The results of the loss are read already, and have two numbers of 8 bytes a token.
		for i := range g.layers {
			if err := g.mhc.Similarities(g.results, g.layers[i].left, g.seen, step, g.cfg.Streams, g.dim); err != nil {
				return err
			}
			if err := cuda.Download(t, of, g.results); err != nil {
				return err
			}
			for _, v := range of {
				cosine += v
			}
		}
		return nil
	})
	return cosine / float64(len(g.layers)*len(of)), err == nil, err
}
