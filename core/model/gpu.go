package model

import (
	"fmt"
	"runtime"
	"slices"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
)

// GPU is a copy of a model's weights on a device, and what computes steps there: the same
// network with the same results, to the bit. It may be shared by any number of
// goroutines; their steps run one after the other.
type GPU struct {
	m      *Model
	device *cuda.Device
	ops    *cuda.Ops
	decode *cuda.Decode
	memory *gpuMemory
	stage  gpuTransit

	embed, head  cuda.Dense
	norm         cuda.Ptr
	cosine, sine cuda.Ptr // of all positions of the context
	layers       []gpuLayer
	mixing       *gpuMixing // where it depends on the token
}

// gpuLayer is layer on the device. What a model does without is 0.
type gpuLayer struct {
	mhcAttn, mhcFFN                                           cuda.Ptr // a cuda.Coef each
	scalars, attnNorm, qNorm, kNorm, attnSub, ffnNorm, ffnSub cuda.Ptr
	q, k, v, o, gate, up, down                                cuda.Ternary
	// Those with the same input as one matrix, if they fit together: then the ones above are
	// parts of it.
	qkv, upGate cuda.Ternary
}

// UnsupportedError is a model that cannot be computed on a device.
type UnsupportedError struct {
	// What the model has.
	What string
	// Hint says what to do; the default is to use the processor.
	Hint string
}

func (e *UnsupportedError) Error() string {
	hint := e.Hint
	if hint == "" {
		hint = "use the processor"
	}
	return "model: " + e.What + " cannot be computed on a GPU; " + hint
}

// gpuMemory is allocations on a device, which are freed when their owner is collected, or
// with the device.
type gpuMemory struct {
	device *cuda.Device
	parts  []cuda.Ptr
	graphs []*cuda.Graph
}

func (g *gpuMemory) alloc(t *cuda.Thread, bytes int) (cuda.Ptr, error) {
	p, err := t.Alloc(uint64(bytes))
	if err == nil {
		g.parts = append(g.parts, p)
	}
	return p, err
}

func (g *gpuMemory) act(t *cuda.Thread, tokens, cols, group int) (cuda.Act, error) {
	a, err := t.NewAct(tokens, cols, group)
	g.parts = append(g.parts, a.Q, a.Scale, a.Sums)
	return a, err
}

// free may come after the device was closed, which has freed everything.
func (g *gpuMemory) free() {
	_ = g.device.Do(func(t *cuda.Thread) error {
		for _, graph := range g.graphs {
			t.Drop(graph)
		}
		for _, p := range g.parts {
			if err := t.Free(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// grow makes room for more bytes in the place of *p, without its contents.
func (g *gpuMemory) grow(t *cuda.Thread, p *cuda.Ptr, bytes int) error {
	if i := slices.Index(g.parts, *p); *p != 0 && i >= 0 {
		if err := t.Free(*p); err != nil {
			return err
		}
		g.parts = slices.Delete(g.parts, i, i+1)
	}
	next, err := g.alloc(t, bytes)
	*p = next
	return err
}

// sendGPU copies x to the device; of nothing it gives 0.
func sendGPU[T cuda.Element](t *cuda.Thread, g *gpuMemory, x []T, size int) (cuda.Ptr, error) {
	if len(x) == 0 {
		return 0, nil
	}
	p, err := g.alloc(t, size*len(x))
	if err != nil {
		return 0, err
	}
	return p, cuda.Upload(t, p, x)
}

// NewGPU copies m to a device. image gives the code of its kernels.
//
// Models with float projections, which are foreign, are an *UnsupportedError; one without
// room is a *cuda.MemoryError.
func NewGPU(m *Model, device *cuda.Device, image cuda.Image) (*GPU, error) {
	if err := m.checkGPU(); err != nil {
		return nil, err
	}
	g := &GPU{m: m, device: device, memory: &gpuMemory{device: device}, layers: make([]gpuLayer, len(m.layers))}
	err := device.Do(func(t *cuda.Thread) error { return g.upload(t, image) })
	if err != nil {
		g.memory.free()
		return nil, fmt.Errorf("model: on the GPU: %w", err)
	}
	runtime.AddCleanup(g, (*gpuMemory).free, g.memory)
	return g, nil
}

func (m *Model) checkGPU() error {
	c := &m.cfg
	onDevice := func(t kernels.DType) bool {
		return t == kernels.F32 || t == kernels.F16 || t == kernels.BF16 || t == kernels.Q8_0
	}
	switch {
	case c.HeadDim > cuda.MaxHeadDim:
		return &UnsupportedError{What: fmt.Sprintf("heads of %d", c.HeadDim)}
	case !onDevice(m.embed.Type) || !onDevice(m.head.Type) || m.head.Type == kernels.Q8_0 && !m.int8Head():
		return &UnsupportedError{What: "an embedding or head of this storage type"}
	}
	for i := range m.layers {
		for _, p := range m.layers[i].projections() {
			if p.dense != nil {
				return &UnsupportedError{What: "projections that are not ternary"}
			}
		}
	}
	return nil
}

// upload copies the weights.
func (g *GPU) upload(t *cuda.Thread, image cuda.Image) (err error) {
	if g.ops, err = t.Ops(image); err != nil {
		return err
	}
	if g.decode, err = t.Decode(image); err != nil {
		return err
	}
	m, keep := g.m, g.memory
	if g.embed, err = g.dense(t, &m.embed); err != nil {
		return err
	}
	if g.head = g.embed; !m.cfg.TieEmbeddings {
		if g.head, err = g.dense(t, &m.head); err != nil {
			return err
		}
	}
	rope := m.rope.upTo(m.rope.limit)
	type floats struct {
		dst *cuda.Ptr
		src []float32
	}
	vectors := []floats{{&g.norm, m.norm}, {&g.cosine, rope.cos}, {&g.sine, rope.sin}}
	for i := range m.layers {
		l, d := &m.layers[i], &g.layers[i]
		vectors = append(vectors, floats{&d.mhcAttn, coefFloats(l.mhcAttn, m.set)}, floats{&d.mhcFFN, coefFloats(l.mhcFFN, m.set)},
			floats{&d.scalars, l.scalars}, floats{&d.attnNorm, l.attnNorm}, floats{&d.qNorm, l.qNorm}, floats{&d.kNorm, l.kNorm},
			floats{&d.attnSub, l.attnSub}, floats{&d.ffnNorm, l.ffnNorm}, floats{&d.ffnSub, l.ffnSub})
		for _, stack := range []struct {
			whole *cuda.Ternary
			parts []*cuda.Ternary
			from  []*linear
		}{
			{&d.qkv, []*cuda.Ternary{&d.q, &d.k, &d.v}, []*linear{&l.q, &l.k, &l.v}},
			{&d.upGate, []*cuda.Ternary{&d.up, &d.gate}, []*linear{&l.up, &l.gate}},
			{nil, []*cuda.Ternary{&d.o}, []*linear{&l.o}}, {nil, []*cuda.Ternary{&d.down}, []*linear{&l.down}},
		} {
			if err = keep.stack(t, stack.whole, stack.parts, stack.from); err != nil {
				return err
			}
		}
	}
	for _, v := range vectors {
		if *v.dst, err = sendGPU(t, keep, v.src, 4); err != nil {
			return err
		}
	}
	if m.cfg.Streams > 1 && m.cfg.MHCDynamic {
		if g.mixing, err = newGPUMixing(t, image, m, keep); err != nil {
			return err
		}
	}
	return t.Wait()
}

// stack copies matrices with one input to the device. If all but the last have whole blocks of rows,
// and all the same groups and gain, they are one, of which the parts are slices; else whole stays
// as it is. A matrix that the model has not stays as it is too.
func (g *gpuMemory) stack(t *cuda.Thread, whole *cuda.Ternary, parts []*cuda.Ternary, from []*linear) (err error) {
	joint := kernels.Ternary{}
	fits := whole != nil
	for i, f := range from {
		w := f.ternary
		if w == nil {
			continue
		}
		if joint.Rows == 0 {
			joint.Cols, joint.Group, joint.Gain = w.Cols, w.Group, w.Gain
		}
		fits = fits && joint.Rows%kernels.TileSide == 0 && w.Group == joint.Group && w.Gain == joint.Gain
		parts[i].Tiles, parts[i].Scales = cuda.Ptr(len(joint.Tiles)), cuda.Ptr(2*len(joint.Scales)) // from the stack's beginning
		parts[i].Rows, parts[i].Cols, parts[i].Group, parts[i].Gain = w.Rows, w.Cols, w.Group, w.Gain
		joint.Rows += w.Rows
		if fits {
			joint.Tiles, joint.Scales = append(joint.Tiles, w.Tiles...), append(joint.Scales, w.Scales...)
		}
	}
	if fits {
		if *whole, err = t.UploadTernary(&joint); err == nil {
			for i, f := range from {
				if f.ternary != nil {
					parts[i].Tiles, parts[i].Scales = whole.Tiles+parts[i].Tiles, whole.Scales+parts[i].Scales
				}
			}
		}
		g.parts = append(g.parts, whole.Tiles, whole.Scales)
		return err
	}
	for i, f := range from {
		if f.ternary == nil {
			continue
		}
		*parts[i], err = t.UploadTernary(f.ternary)
		if g.parts = append(g.parts, parts[i].Tiles, parts[i].Scales); err != nil {
			return err
		}
	}
	return nil
}

func (g *GPU) dense(t *cuda.Thread, w *kernels.Dense) (d cuda.Dense, err error) {
	d = cuda.Dense{Rows: w.Rows, Cols: w.Cols, Type: int(w.Type)}
	d.Data, err = sendGPU(t, g.memory, w.Data, 1)
	return d, err
}

// coefFloats is the mixing of a static site in the layout of cuda.Coef; nothing for a
// dynamic one.
func coefFloats(s *mhc.Site, k *kernels.Set) []float32 {
	if s.Dynamic {
		return nil
	}
	c := s.Coef(k, nil, nil, nil)
	f := append(append(make([]float32, 0, 24), c.Pre[:]...), c.Post[:]...)
	for i := range c.Res {
		f = append(f, c.Res[i][:]...)
	}
	return f
}

// Device is where g is.
func (g *GPU) Device() *cuda.Device { return g.device }

// activation is the device's name of a kind of feed-forward part.
func activation(kind string) cuda.Activation {
	switch kind {
	case config.FFNReLU2:
		return cuda.ReLU2
	case config.FFNReLU2GLU:
		return cuda.ReLU2GLU
	}
	return cuda.SwiGLU
}

// gpuSlab is the memory of a Pool on a device.
type gpuSlab struct {
	g  *GPU
	at cuda.Ptr
	// err is a copy that failed; the next step reports it.
	err error
}

// NewGPUPool is NewPool on g's device, all of whose memory is taken at once.
func NewGPUPool(g *GPU, pages int, t kernels.KVType) (*Pool, error) {
	if t != kernels.KVF16 && t != kernels.KVI8 {
		return nil, fmt.Errorf("model: unknown KV storage type %d", t)
	}
	size := PageBytes(g.m, t)
	p, err := emptyPool(pages, size, size/g.m.cfg.Layers, t)
	if err != nil {
		return nil, err
	}
	p.gpu = &gpuSlab{g: g}
	memory := &gpuMemory{device: g.device}
	err = g.device.Do(func(th *cuda.Thread) (err error) {
		p.gpu.at, err = memory.alloc(th, pages*size)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("model: a KV pool of %d bytes: %w", pages*size, err)
	}
	runtime.AddCleanup(p, (*gpuMemory).free, memory)
	return p, nil
}

// copyPage is Pool.Copy on the device.
func (s *gpuSlab) copyPage(dst, src int32, bytes int) {
	err := s.g.device.Do(func(t *cuda.Thread) error {
		n := cuda.Ptr(bytes)
		return t.Copy(s.at+cuda.Ptr(dst)*n, s.at+cuda.Ptr(src)*n, uint64(bytes))
	})
	if s.err == nil {
		s.err = err
	}
}
