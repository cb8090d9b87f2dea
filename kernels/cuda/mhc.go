package cuda

import "fmt"

// This file queues the kernels of src/mhc.cu and src/mhc_backward.cu. Shapes are those of the kernels; each
// structure of arguments has the layout of the one there.

// MHCShape is what all sites of a network have in common: as mhc.Config.
type MHCShape struct {
	// Streams is 2 or 4; Dim is the width of one.
	Streams, Dim int
	// Sinkhorn has Iters iterations, else the mixing is of permutations.
	Sinkhorn bool
	Iters    int
	// Dynamic makes the mixing depend on the token.
	Dynamic bool
}

// Logits is the number of logits of a site.
func (s MHCShape) Logits() int {
	switch {
	case s.Sinkhorn:
		return 2*s.Streams + s.Streams*s.Streams
	case s.Streams == 2:
		return 2*2 + 2
	}
	return MHCLogits
}

// MHCLogits is the most logits of a site, and the floats between the logits of tokens.
const MHCLogits = 32

// MHCSite is the parameters of a site, float32, and their gradients, which are added to. What
// a kind of site has not is 0, and so are the gradients where there is no backward.
type MHCSite struct {
	Pre, Post, Res    Ptr // [Streams], [Streams], [Logits-2·Streams]
	Gate, Proj        Ptr // [3], [Logits][Streams·Dim]: of a dynamic site
	GPre, GPost, GRes Ptr
	GGate, GProj      Ptr
	Coef              Ptr // a Coef, which Prepare writes: of a static site
}

// MHCSites is the sites of a network on a device, and the memory of their backward.
type MHCSites struct {
	shape  MHCShape
	kind   mhcKind
	sites  []MHCSite
	tokens int // 0: there is no backward

	table, scratch                   Ptr
	sums, tape, dl, along, projected Ptr // parts of scratch
}

// MHC computes the mixing of residual streams, and the backward of that. With one stream
// there is nothing to do.
type MHC struct {
	t *Thread

	fewLogits, fewMixings, prepare, coefs, sums, finish, logitsBack, projectBack, add, cosine *Kernel
}

// MHC loads the kernels.
func (t *Thread) MHC(image Image) (*MHC, error) {
	m := &MHC{t: t}
	err := t.loadKernels(image, "mhc", map[string]**Kernel{
		"mhc_prepare": &m.prepare, "mhc_coefs": &m.coefs, "mhc_few_logits": &m.fewLogits, "mhc_few_mixings": &m.fewMixings,
	}, "mhc_few_logits")
	if err != nil {
		return nil, err
	}
	err = t.loadKernels(image, "mhc_backward", map[string]**Kernel{
		"mhc_sums": &m.sums, "mhc_finish": &m.finish, "mhc_logits_back": &m.logitsBack, "mhc_project_back": &m.projectBack, "mhc_add": &m.add,
		"mhc_cosine": &m.cosine,
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

type mhcKind struct{ streams, dim, logits, sinkhorn, iterations, _ int32 }

func (s MHCShape) check() error {
	if s.Streams != 2 && s.Streams != 4 || s.Dim < 1 || s.Streams*s.Dim > 1<<24 || s.Sinkhorn && (s.Iters < 1 || s.Iters > 1000) {
		return fmt.Errorf("cuda: hyper-connections of %d streams of %d, %d iterations: want 2 or 4 streams, and 1 to 1000 iterations", s.Streams, s.Dim, s.Iters)
	}
	return nil
}

const (
	mhcTile      = 16       // tokens of a block of mhc_coefs
	mhcSumTokens = 256      // of one of mhc_sums
	mhcThreads   = 128      // of the blocks of mhc_logits_back and mhc_project_back
	mhcTapeBytes = 32 << 20 // of all tapes of Sinkhorn
	mhcBlocks    = 128      // at most, of mhc_logits_back
	mhcProjects  = 4 * 132  // blocks of mhc_project_back that there are to be: four for each multiprocessor of an H100
)

// mhcPlan is how the backward is cut: for a number of tokens it is always the same.
type mhcPlan struct {
	sumBlocks   int // of mhc_sums
	backBlocks  int // of mhc_logits_back
	tape        int // floats of one thread's tape
	mostRanges  int // of tokens, in mhc_project_back: as many or fewer for fewer tokens
	ranges      int
	rangeTokens int // of one
	rows        int // of the partial sums of a projection's gradient
}

func (s MHCShape) plan(tokens int) (p mhcPlan) {
	if s.Sinkhorn {
		p.tape = (2*s.Iters + 2) * s.Streams
	}
	p.sumBlocks = ceil(tokens, mhcSumTokens)
	p.backBlocks = min(ceil(tokens, mhcThreads), mhcBlocks, max(1, mhcTapeBytes/max(1, 4*p.tape*mhcThreads)))
	p.rows = ceil(s.Logits(), 8) * 8
	columns := ceil(s.Streams*s.Dim, mhcThreads)
	p.mostRanges = max(1, min(ceil(mhcProjects, columns), ceil(tokens, 4*mhcTile)))
	p.rangeTokens = ceil(ceil(tokens, p.mostRanges), mhcTile) * mhcTile
	p.ranges = ceil(tokens, p.rangeTokens)
	return p
}

func ceil(a, b int) int { return (a + b - 1) / b }

// parts is the sizes in bytes of what the backward needs: sums, tape, dl, along, projected.
func (s MHCShape) parts(tokens int) (bytes [5]int) {
	if tokens == 0 {
		return bytes
	}
	p := s.plan(tokens)
	bytes[0] = 8 * 2 * MHCLogits * p.sumBlocks
	bytes[1] = 4 * p.tape
	if s.Dynamic {
		bytes[1] *= mhcThreads * p.backBlocks
		bytes[2], bytes[3] = 4*MHCLogits*tokens, 4*tokens
		bytes[4] = 4 * p.mostRanges * p.rows * s.Streams * s.Dim
	}
	for i := range bytes {
		bytes[i] = (bytes[i] + 255) &^ 255
	}
	return bytes
}

// ScratchBytes is the memory of the device that Sites takes for the backward of that many tokens.
func (s MHCShape) ScratchBytes(tokens int) (sum int) {
	for _, n := range s.parts(tokens) {
		sum += n
	}
	return sum
}

// Sites takes the sites of a network, and memory for the backward of up to that many tokens: 0 if
// there is none. Of static sites it keeps a table on the device, and waits for its upload.
func (m *MHC) Sites(shape MHCShape, sites []MHCSite, tokens int) (*MHCSites, error) {
	if err := shape.check(); err != nil {
		return nil, err
	}
	if len(sites) == 0 || tokens < 0 {
		return nil, fmt.Errorf("cuda: hyper-connections at %d places, with a backward of %d tokens", len(sites), tokens)
	}
	x := &MHCSites{shape: shape, sites: sites, tokens: tokens}
	x.kind = mhcKind{streams: int32(shape.Streams), dim: int32(shape.Dim), logits: int32(shape.Logits())}
	if shape.Sinkhorn {
		x.kind.sinkhorn, x.kind.iterations = 1, int32(shape.Iters)
	}
	err := m.allocate(x)
	if err != nil {
		return nil, first(err, m.Free(x))
	}
	return x, nil
}

func (m *MHC) allocate(x *MHCSites) (err error) {
	if !x.shape.Dynamic { // Prepare goes through all sites
		if err = m.upload(x); err != nil {
			return err
		}
	}
	if x.tokens == 0 {
		return nil
	}
	if x.scratch, err = m.t.Alloc(uint64(x.shape.ScratchBytes(x.tokens))); err != nil {
		return err
	}
	at, parts := x.scratch, x.shape.parts(x.tokens)
	for i, p := range []*Ptr{&x.sums, &x.tape, &x.dl, &x.along, &x.projected} {
		*p = at
		at += Ptr(parts[i])
	}
	return nil
}

// upload copies the table of sites to the device.
func (m *MHC) upload(x *MHCSites) (err error) {
	fields := make([]uint64, 0, 11*len(x.sites))
	for _, s := range x.sites {
		for _, p := range []Ptr{s.Pre, s.Post, s.Res, s.Gate, s.Proj, s.GPre, s.GPost, s.GRes, s.GGate, s.GProj, s.Coef} {
			fields = append(fields, uint64(p))
		}
	}
	if x.table, err = m.t.Alloc(uint64(8 * len(fields))); err != nil {
		return err
	}
	return first(Upload(m.t, x.table, fields), m.t.Wait())
}

// first is the first error.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Free takes the memory of x back.
func (m *MHC) Free(x *MHCSites) error {
	err := first(m.t.Free(x.table), m.t.Free(x.scratch))
	x.table, x.scratch = 0, 0
	return err
}

type mhcPrepareArgs struct {
	sites    Ptr
	kind     mhcKind
	count, _ int32
}

// Prepare computes the mixing of all static sites: mhc.Site.Prepare, to the bit.
func (m *MHC) Prepare(x *MHCSites) error {
	if x.shape.Dynamic {
		return nil
	}
	a := mhcPrepareArgs{sites: x.table, kind: x.kind, count: int32(len(x.sites))}
	return Launch(m.t, m.prepare, mhcGrid(ceil(len(x.sites), 32), 1, 32), &a)
}

func mhcGrid(x, y, threads int) Shape {
	return Shape{Grid: [3]uint32{uint32(x), uint32(y), 1}, Block: [3]uint32{uint32(threads), 1, 1}}
}

// MHCCoefs is what Coefs reads and writes.
type MHCCoefs struct {
	X    Ptr // [tokens][Streams·Dim]: the streams
	Coef Ptr // [tokens]Coef
	U    Ptr // [tokens][Dim]: what the layer function reads; 0: not wanted
	// Z [tokens][MHCLogits] and Inverse [tokens] are what Backward needs; 0: not wanted. With
	// them up to FewTokens are faster.
	Z, Inverse Ptr
}

type mhcCoefsArgs struct {
	MHCCoefs
	site      MHCSite
	kind      mhcKind
	tokens, _ int32
}

// FewTokens is how many tokens Coefs spreads over the device by themselves.
const FewTokens = 16

// Coefs computes the mixing of tokens at a dynamic site, and what is read with it: mhc.Site.Coef
// and Coef.Read, to the bit.
func (m *MHC) Coefs(x *MHCSites, site int, c *MHCCoefs, tokens int) error {
	if err := x.checkSite(site, true, tokens); err != nil {
		return err
	}
	a := mhcCoefsArgs{MHCCoefs: *c, site: x.sites[site], kind: x.kind, tokens: int32(tokens)}
	shared := 8 * ceil(int(x.kind.streams*x.kind.dim), 4) * 4
	if tokens > FewTokens || c.Z == 0 || c.Inverse == 0 || shared > m.t.device.dynamicShared() {
		return Launch(m.t, m.coefs, mhcGrid(ceil(tokens, mhcTile), 1, 256), &a)
	}
	s := mhcGrid(int(x.kind.logits), tokens, 128)
	s.Shared = uint32(shared)
	if err := Launch(m.t, m.fewLogits, s, &a); err != nil {
		return err
	}
	return Launch(m.t, m.fewMixings, mhcGrid(tokens, 1, 256), &a)
}

func (x *MHCSites) checkSite(site int, dynamic bool, tokens int) error {
	if site < 0 || site >= len(x.sites) || x.shape.Dynamic != dynamic || tokens < 1 {
		return fmt.Errorf("cuda: %d tokens at site %d of %d, whose mixing depends on the token: %t", tokens, site, len(x.sites), x.shape.Dynamic)
	}
	return nil
}

func (x *MHCSites) checkBackward(site int, dynamic bool, tokens int) error {
	if tokens > x.tokens {
		return fmt.Errorf("cuda: the backward of %d tokens, there is room for %d", tokens, x.tokens)
	}
	return x.checkSite(site, dynamic, tokens)
}

type mhcSumsArgs struct {
	g, z, partial Ptr
	tokens, width int32
}

type mhcFinishArgs struct {
	partial, tape   Ptr
	site            MHCSite
	kind            mhcKind
	blocks, dynamic int32
}

// sum adds to the gradients what the sums of g [tokens][width] over tokens say.
func (m *MHC) sum(x *MHCSites, site int, g, z Ptr, tokens, width int) error {
	blocks := ceil(tokens, mhcSumTokens)
	s := mhcSumsArgs{g: g, z: z, partial: x.sums, tokens: int32(tokens), width: int32(width)}
	if err := Launch(m.t, m.sums, mhcGrid(blocks, 1, 256), &s); err != nil {
		return err
	}
	f := mhcFinishArgs{partial: x.sums, tape: x.tape, site: x.sites[site], kind: x.kind, blocks: int32(blocks)}
	if x.shape.Dynamic {
		f.dynamic = 1
	}
	return Launch(m.t, m.finish, mhcGrid(1, 1, 256), &f)
}

// Finish adds the gradients of a static site's parameters, from those of its mixing by tokens, grad
// [tokens]Coef: mhc.Site.Backward of all tokens, then FinishBackward. The sums over tokens are
// float64, in an order that depends on the number of tokens alone.
func (m *MHC) Finish(x *MHCSites, site int, grad Ptr, tokens int) error {
	if err := x.checkBackward(site, false, tokens); err != nil {
		return err
	}
	return m.sum(x, site, grad, 0, tokens, CoefFloats)
}

// MHCBackward is what Backward reads and writes.
type MHCBackward struct {
	X, DX      Ptr // [tokens][Streams·Dim]: the streams, and their gradient, which is added to
	Grad       Ptr // [tokens]Coef, complete
	Z, Inverse Ptr // what Coefs has left
}

type mhcLogitsBackArgs struct {
	grad, z, dl, along, tape Ptr
	site                     MHCSite
	kind                     mhcKind
	tokens, _                int32
}

type mhcProjectBackArgs struct {
	x, dx, dl, along, inverse, partial Ptr
	site                               MHCSite
	kind                               mhcKind
	tokens, each                       int32
}

type mhcAddArgs struct {
	dst, partial Ptr
	n, stride    int64
	count, _     int32
}

// Backward is mhc.Site.Backward of tokens at a dynamic site: it adds to the gradients of its
// parameters and of the streams. Sums over tokens are taken in an order that depends on their
// number alone.
func (m *MHC) Backward(x *MHCSites, site int, b *MHCBackward, tokens int) error {
	if err := x.checkBackward(site, true, tokens); err != nil {
		return err
	}
	p := x.shape.plan(tokens)
	l := mhcLogitsBackArgs{grad: b.Grad, z: b.Z, dl: x.dl, along: x.along, tape: x.tape, site: x.sites[site], kind: x.kind, tokens: int32(tokens)}
	if err := Launch(m.t, m.logitsBack, mhcGrid(p.backBlocks, 1, mhcThreads), &l); err != nil {
		return err
	}
	if err := m.sum(x, site, x.dl, b.Z, tokens, MHCLogits); err != nil {
		return err
	}
	width := x.shape.Streams * x.shape.Dim
	back := mhcProjectBackArgs{
		x: b.X, dx: b.DX, dl: x.dl, along: x.along, inverse: b.Inverse, partial: x.projected,
		site: x.sites[site], kind: x.kind, tokens: int32(tokens), each: int32(p.rangeTokens),
	}
	if err := Launch(m.t, m.projectBack, mhcGrid(ceil(width, mhcThreads), p.ranges, mhcThreads), &back); err != nil {
		return err
	}
	n := x.shape.Logits() * width
	a := mhcAddArgs{dst: x.sites[site].GProj, partial: x.projected, n: int64(n), stride: int64(p.rows * width), count: int32(p.ranges)}
	return Launch(m.t, m.add, mhcGrid(ceil(n, 256), 1, 256), &a)
}

type mhcCosineArgs struct {
	dst, x                Ptr
	dim, streams, step, _ int32
}

// Similarities writes mhc.Similarity of every step-th token of x [tokens][streams][dim], from the first
// on, to dst, float64 [ceil(tokens/step)].
func (m *MHC) Similarities(dst, x Ptr, tokens, step, streams, dim int) error {
	if streams != 2 && streams != 4 || dim < 1 || tokens < 1 || step < 1 {
		return fmt.Errorf("cuda: the similarity of %d streams of %d, of every %d of %d tokens: want 2 or 4 streams", streams, dim, step, tokens)
	}
	a := mhcCosineArgs{dst: dst, x: x, dim: int32(dim), streams: int32(streams), step: int32(step)}
	return Launch(m.t, m.cosine, mhcGrid(ceil(tokens, step), 1, 256), &a)
}
