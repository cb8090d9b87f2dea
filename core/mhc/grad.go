package mhc

import "github.com/architehc/nanochat/kernels"

// CoefGrad is the gradient of the objective by the mixing of one token at one
// site. WriteBackward sets Post and Res, ReadBackward sets Pre.
type CoefGrad struct {
	Pre, Post [MaxStreams]float32
	Res       Matrix
}

// coefSum is a sum of CoefGrads over tokens. There may be many and they may
// cancel, so it is float64.
type coefSum struct {
	pre, post [MaxStreams]float64
	res       matrix64
}

func (s *coefSum) add(d *CoefGrad) {
	for i := range MaxStreams {
		s.pre[i] += float64(d.Pre[i])
		s.post[i] += float64(d.Post[i])
		for j := range MaxStreams {
			s.res[i][j] += float64(d.Res[i][j])
		}
	}
}

func (s *coefSum) merge(part *coefSum) {
	for i := range MaxStreams {
		s.pre[i] += part.pre[i]
		s.post[i] += part.post[i]
		for j := range MaxStreams {
			s.res[i][j] += part.res[i][j]
		}
	}
}

// Grad is the gradient of the parameters of a site, or a part of it: everything
// adds to it. A Grad belongs to one goroutine at a time. For sums that do not
// depend on the number of workers, give each fixed block of tokens a Grad of its
// own and Merge them in the order of the blocks.
type Grad struct {
	// The fields are shaped as in Site. They may be set to other memory.
	Pre, Post, Res []float32
	Gate, Proj     []float32

	c   Config
	sum coefSum // of a static site, until FinishBackward

	scratch []float32 // of FinishBackward
}

// NewGrad returns a zero gradient for a site of the given configuration.
func NewGrad(c Config) *Grad {
	g := &Grad{c: c}
	if c.Streams == 1 {
		return g
	}
	g.Pre = make([]float32, c.Streams)
	g.Post = make([]float32, c.Streams)
	g.Res = make([]float32, c.ResLogits())
	if c.Dynamic {
		g.Gate = make([]float32, 3)
		g.Proj = make([]float32, c.Logits()*c.Streams*c.Dim)
	} else {
		g.scratch = make([]float32, maxLogits+c.tapeLen())
	}
	return g
}

// Params lists the gradients as Site.Params lists the parameters.
func (g *Grad) Params() []Param {
	return (&Site{Config: g.c, Pre: g.Pre, Post: g.Post, Res: g.Res, Gate: g.Gate, Proj: g.Proj}).Params()
}

// tensors are the gradients in a fixed order; empty where there is none.
func (g *Grad) tensors() [5][]float32 {
	return [5][]float32{g.Pre, g.Post, g.Res, g.Gate, g.Proj}
}

// Clear makes the gradient zero.
func (g *Grad) Clear() {
	for _, v := range g.tensors() {
		clear(v)
	}
	g.sum = coefSum{}
}

// Merge adds part, a gradient of the same configuration, element by element.
func (g *Grad) Merge(k *kernels.Set, part *Grad) {
	from := part.tensors()
	for i, v := range g.tensors() {
		if len(v) > 0 {
			k.Add(v, v, from[i])
		}
	}
	g.sum.merge(&part.sum)
}
