package mhc

import (
	"fmt"

	"github.com/architehc/nanochat/kernels"
)

// MaxStreams is the largest number of residual streams.
const MaxStreams = 4

// maxLogits is the length of the longest logit vector: two per stream, and 24
// permutations.
const maxLogits = 2*MaxStreams + 24

// normEps is the eps of the norm in front of a dynamic site's projection.
const normEps = 1e-6

// Kind is how H_res is kept doubly stochastic.
type Kind uint8

// The kinds of H_res.
const (
	BvN Kind = iota
	Sinkhorn
)

// Config describes a site. All sites of a network have the same one.
type Config struct {
	// Streams is 1, 2 or 4; Dim is the width of one.
	Streams, Dim int
	Kind         Kind
	// Dynamic makes the mixing depend on the token.
	Dynamic bool
	// SinkhornIters is at least 1 for Sinkhorn and has no meaning for BvN.
	SinkhornIters int
}

// ResLogits is the number of logits of H_res.
func (c Config) ResLogits() int {
	switch {
	case c.Streams == 1:
		return 0
	case c.Kind == Sinkhorn:
		return c.Streams * c.Streams
	}
	return len(permutations[c.Streams])
}

// Logits is the number of all logits: h_pre, h_post, H_res.
func (c Config) Logits() int {
	if c.Streams == 1 {
		return 0
	}
	return 2*c.Streams + c.ResLogits()
}

// Param is one parameter tensor of a site. Data is the site's own memory.
type Param struct {
	// Name is "pre", "post", "res", "gate" or "proj".
	Name string
	// Dims are the sizes, slowest first.
	Dims []int
	Data []float32
}

// Site is one hyper-connection. Fields may be set freely before Prepare; after it
// a Site may be used by many goroutines.
type Site struct {
	Config
	// Pre and Post are [Streams], Res is [ResLogits]: the logits b.
	Pre, Post, Res []float32
	// Gate is [3], for pre, post and res, and Proj is W, [Logits, Streams·Dim]. Both are
	// nil unless Dynamic.
	Gate, Proj []float32

	fixed Coef          // of a static site
	proj  kernels.Dense // Proj as the kernel wants it
}

// New returns a site whose parameters are all zero.
func New(c Config) (*Site, error) {
	if c.Streams != 1 && c.Streams != 2 && c.Streams != 4 {
		return nil, fmt.Errorf("mhc: %d streams: want 1, 2 or 4", c.Streams)
	}
	if c.Dim < 1 {
		return nil, fmt.Errorf("mhc: width %d: want at least 1", c.Dim)
	}
	if c.Streams == 1 {
		return &Site{Config: Config{Streams: 1, Dim: c.Dim}}, nil
	}
	if c.Kind != BvN && c.Kind != Sinkhorn {
		return nil, fmt.Errorf("mhc: unknown kind %d", c.Kind)
	}
	if c.Kind == Sinkhorn && (c.SinkhornIters < 1 || c.SinkhornIters > 1000) {
		return nil, fmt.Errorf("mhc: %d Sinkhorn iterations: want 1 to 1000", c.SinkhornIters)
	}
	s := &Site{Config: c}
	s.Pre = make([]float32, c.Streams)
	s.Post = make([]float32, c.Streams)
	s.Res = make([]float32, c.ResLogits())
	if c.Dynamic {
		s.Gate = make([]float32, 3)
		s.Proj = make([]float32, c.Logits()*c.Streams*c.Dim)
	}
	return s, nil
}

// Params lists the parameters; none for one stream.
func (s *Site) Params() []Param {
	if s.Streams == 1 {
		return nil
	}
	p := []Param{
		{"pre", []int{s.Streams}, s.Pre},
		{"post", []int{s.Streams}, s.Post},
		{"res", []int{s.ResLogits()}, s.Res},
	}
	if s.Dynamic {
		p = append(p,
			Param{"gate", []int{3}, s.Gate},
			Param{"proj", []int{s.Logits(), s.Streams * s.Dim}, s.Proj})
	}
	return p
}

// The starting logits. A reader's share is σ(2)/(σ(2)+(n-1)σ(-2)): 0.88 of two
// streams, 0.71 of four. The identity's share of H_res is 0.98 (n = 2) and 0.99.
const (
	initPre      = 2
	initBvN2     = -4
	initBvN4     = -8
	initSinkhorn = -6
	initGate     = 0.01
)

// Init sets the start of the package comment for a site of the given layer, which
// reads stream layer mod Streams. Proj stays zero.
func (s *Site) Init(layer int) {
	if s.Streams == 1 {
		return
	}
	for i := range s.Pre {
		s.Pre[i] = -initPre
		s.Post[i] = 0
	}
	s.Pre[layer%s.Streams] = initPre
	for i := range s.Res {
		switch {
		case s.Kind == Sinkhorn && i%(s.Streams+1) == 0, s.Kind == BvN && i == 0:
			s.Res[i] = 0
		case s.Kind == Sinkhorn:
			s.Res[i] = initSinkhorn
		case s.Streams == 2:
			s.Res[i] = initBvN2
		default:
			s.Res[i] = initBvN4
		}
	}
	for i := range s.Gate {
		s.Gate[i] = initGate
	}
}

// Prepare computes what a static site needs once. Call it after the parameters
// change.
func (s *Site) Prepare(k *kernels.Set) {
	var l [maxLogits]float32
	s.bias(l[:])
	s.fixed = Coef{n: s.Streams}
	if s.Streams > 1 {
		s.coef(k, &s.fixed, l[:s.Logits()])
	}
	s.proj = kernels.Dense{Rows: s.Logits(), Cols: s.Streams * s.Dim, Type: kernels.F32, Data: kernels.F32Bytes(s.Proj)}
}

// bias writes b to l.
func (s *Site) bias(l []float32) {
	n := copy(l, s.Pre)
	n += copy(l[n:], s.Post)
	copy(l[n:], s.Res)
}

// ScratchLen is the length of the scratch of Coef.
func (c Config) ScratchLen() int {
	if c.Streams == 1 || !c.Dynamic {
		return 0
	}
	return c.Streams*c.Dim + maxLogits
}

// Coef returns the mixing for a token with state x, [Streams·Dim]. It writes to dst
// only if the site is dynamic, and returns shared memory otherwise: do not change
// it. scratch has at least ScratchLen values.
func (s *Site) Coef(k *kernels.Set, dst *Coef, x, scratch []float32) *Coef {
	if s.Streams == 1 || !s.Dynamic {
		return &s.fixed
	}
	norm := scratch[:s.Streams*s.Dim]
	z := scratch[s.Streams*s.Dim:][:s.Logits()]
	k.RMSNorm(norm, x, nil, normEps)
	k.DenseGEMV(z, &s.proj, norm, 0, len(z))
	s.gated(z, z)
	dst.n = s.Streams
	s.coef(k, dst, z)
	return dst
}

// gated writes b + gate·z to l, which may be z.
func (s *Site) gated(l, z []float32) {
	var b [maxLogits]float32
	s.bias(b[:])
	for i := range z {
		l[i] = b[i] + float32(s.gateOf(i)*z[i])
	}
}

// gateOf is the gate of logit i.
func (s *Site) gateOf(i int) float32 { return s.Gate[min(i/s.Streams, 2)] }

// coef maps logits, which it overwrites, to the mixing.
func (s *Site) coef(k *kernels.Set, c *Coef, l []float32) {
	n := s.Streams
	k.Sigmoid(l[:2*n], l[:2*n])
	copy(c.Pre[:n], l[:n])
	for i, v := range l[n : 2*n] {
		c.Post[i] = 2 * v
	}
	if s.Kind == Sinkhorn {
		sinkhorn(k, &c.Res, l[2*n:], n, s.SinkhornIters, nil)
	} else {
		birkhoff(k, &c.Res, l[2*n:], n)
	}
}
