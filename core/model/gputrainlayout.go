package model

import (
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
)

// gpuPart is a part of a GPUTrainer's memory: one allocation each.
type gpuPart int

const (
	gpuWeights gpuPart = iota // latent weights
	gpuGrads
	gpuPacked  // tiles, scales, stored tables, mixing: the model as inference has it
	gpuFactors // weights as the backward and the head multiply by them
	gpuTape
	gpuScratch
	gpuBatches
	gpuParts
)

var gpuPartNames = [gpuParts]string{
	"latent weights", "gradients", "model", "factors of the backward pass", "activations", "scratch", "batches",
}

// A gpuRegion deals out one allocation. With base 0 it only counts.
type gpuRegion struct {
	base    cuda.Ptr
	at, end uint64
}

// take is the next bytes of the region, aligned as a whole allocation is.
func (r *gpuRegion) take(bytes int) cuda.Ptr {
	p := r.base + cuda.Ptr(r.at)
	r.at += (uint64(bytes) + 255) &^ 255
	r.end = max(r.end, r.at)
	return p
}

// gpuVector is a parameter that is no matrix, with its gradient.
type gpuVector struct{ w, g cuda.Ptr }

// gpuMatrix is a stack of projections, or a table: latents and gradient, float32
// [rows][cols], and the weights that the forward multiplies by.
type gpuMatrix struct {
	rows, cols int
	w, g       cuda.Ptr
	used       cuda.Ptr     // bfloat16
	packed     cuda.Ternary // of a stack of projections
	table      cuda.Dense   // of an embedding or a head, as it is stored
	half       cuda.Ptr     // float16, of a head
}

// gpuSite is the mixing of the streams around a layer function.
type gpuSite struct {
	pre, post, res, gate, proj gpuVector
	number                     int
	coef                       cuda.Ptr // a cuda.Coef, or of a dynamic site one a token
	z, inverse                 cuda.Ptr // of a dynamic site: what MHC.Coefs leaves for the backward
}

// gpuTrainLayer is a layer: parameters, and what its forward leaves.
type gpuTrainLayer struct {
	qkv, o, up, down                                          gpuMatrix
	attnNorm, qNorm, kNorm, attnSub, ffnNorm, ffnSub, scalars gpuVector
	mhcAttn, mhcFFN                                           gpuSite
	gpuTapeLayer
}

// gpuTapeLayer is what the forward of a layer leaves: names are those of tapeLayer. With
// recomputation all layers share everything but left.
type gpuTapeLayer struct {
	before cuda.Ptr // streams in front of the layer, [tokens][Streams·Dim]
	// entered is 0 for one stream with residual scalars: it follows from before.
	entered, middle, left cuda.Ptr
	in, attOut, ffnIn, ff cuda.Act
	qkvY                  cuda.Ptr // results of the stack, f32 [tokens][q+2kv]; 0: not kept
	rotated               cuda.Ptr // the same normed and rotated, f16
	att, lse              cuda.Ptr // f32 [tokens][q]; [Heads][tokens]
	upY                   cuda.Ptr // results of up, and gate, f32 [tokens][I]
	oY, downY             cuda.Ptr // f32 [tokens][Dim]; 0: not kept
}

// gpuShape is the sizes that everything follows from.
type gpuShape struct {
	cfg                          *config.Model
	site                         mhc.Config
	tokens, micros               int
	dim, q, kv, stack, ffn, wide int // stack: rows of q, k and v together; wide: of up, and gate
	streams                      int // values of a token's streams
	vocab, block                 int // block: tokens that go through the head together
	recompute, int8Head          bool
	processors                   int // of the device
}

// headBlock is the tokens whose logits exist at the same time: as many as fill the tensor
// cores, for logits take four bytes for each of the vocabulary.
const headBlock = 4096

// newGPUNet is the network for a device of that many multiprocessors.
func newGPUNet(m *Model, o *GPUTrainOptions, processors int) gpuNet {
	return gpuNet{gpuShape: newGPUShape(m, o, processors)}
}

func newGPUShape(m *Model, o *GPUTrainOptions, processors int) gpuShape {
	c := &m.cfg
	s := gpuShape{
		cfg: c, site: mhcConfig(*c), tokens: o.Tokens, micros: o.Micros, dim: c.Dim, q: c.Heads * c.HeadDim, kv: c.KVHeads * c.HeadDim,
		ffn: c.FFN, wide: c.FFN, streams: c.Streams * c.Dim, vocab: c.Vocab, block: min(headBlock, o.Tokens), recompute: o.Recompute, processors: processors,
	}
	s.stack = s.q + 2*s.kv
	if c.FFNKind != config.FFNReLU2 {
		s.wide *= 2
	}
	s.int8Head = denseType(headKind(c)) == kernels.Q8_0
	return s
}

// headKind is the storage type of the matrix that is the head.
func headKind(c *config.Model) string {
	if c.TieEmbeddings {
		return c.Embedding
	}
	return c.Head
}

func (s *gpuShape) dynamic() bool { return s.cfg.Streams > 1 && s.cfg.MHCDynamic }

// gpuNet is the network on the device: where everything stands. It is laid out twice, first
// to count and then with memory.
type gpuNet struct {
	gpuShape
	layers      []gpuTrainLayer
	embed, head gpuMatrix
	norm        gpuVector
	params      []optim.GPUParam
	rope        [2]cuda.Ptr // cosines, sines of all positions
	regions     [gpuParts]gpuRegion
	start       cuda.Ptr // streams in front of the first layer
	gpuScratchSpace
	batch    gpuBatch    // the micro batch at hand
	slots    [2]cuda.Ptr // staged steps: micros batches each
	evalSlot cuda.Ptr
}

// layOut puts everything in its place in the regions.
func (n *gpuNet) layOut(m *Model) {
	for i := range n.regions {
		n.regions[i].at = 0
	}
	n.layers = make([]gpuTrainLayer, len(m.layers))
	n.params = n.params[:0]
	n.layOutParams(m)
	n.layOutModel(m)
	n.layOutTape()
	n.layOutScratch()
}

// layOutParams places latents and gradients in the order of a file, but the parts of a stack
// together.
func (n *gpuNet) layOutParams(m *Model) {
	vectors, linears := n.places(m)
	add := func(name string, class optim.Class, rows, cols int, w, g cuda.Ptr) {
		n.params = append(n.params, optim.GPUParam{Name: name, Class: class, Rows: rows, Cols: cols, W: w, G: g})
	}
	for _, s := range m.slots() {
		switch {
		case s.optional:
		case s.vec != nil:
			rows, cols := s.shape()
			v := vectors[s.vec]
			v.w, v.g = n.regions[gpuWeights].take(4*rows*cols), n.regions[gpuGrads].take(4*rows*cols)
			class := optim.Scalar
			if strings.Contains(s.name, ".mhc_") {
				class = optim.MHC
			}
			add(s.name, class, rows, cols, v.w, v.g)
		case s.dense != nil:
			d, class := &n.embed, optim.Embedding
			if s.name != "token_embd.weight" {
				d, class = &n.head, optim.Head
			}
			n.takeMatrix(d, n.vocab, n.dim)
			add(s.name, class, d.rows, d.cols, d.w, d.g)
		default:
			at := linears[s.lin]
			if at.m.rows == 0 { // the first part of a stack
				n.takeMatrix(at.m, at.rows, s.cols)
			}
			skip := cuda.Ptr(4 * at.row * s.cols)
			add(s.name, optim.Matrix, s.rows, s.cols, at.m.w+skip, at.m.g+skip)
		}
	}
	if n.cfg.TieEmbeddings {
		n.head = n.embed
	}
}

func (n *gpuNet) takeMatrix(m *gpuMatrix, rows, cols int) {
	m.rows, m.cols = rows, cols
	m.w, m.g = n.regions[gpuWeights].take(4*rows*cols), n.regions[gpuGrads].take(4*rows*cols)
}

// shape is the rows and columns of a vector or small matrix.
func (s *slot) shape() (rows, cols int) {
	rows, cols = 1, 1
	for _, d := range s.dims {
		rows, cols = rows*cols, d
	}
	return rows, cols
}

// gpuPlace is where a projection stands in a stack of that many rows.
type gpuPlace struct {
	m         *gpuMatrix
	row, rows int
}

// places says where the tensors of m go.
func (n *gpuNet) places(m *Model) (map[*[]float32]*gpuVector, map[*linear]gpuPlace) {
	vectors, linears := map[*[]float32]*gpuVector{&m.norm: &n.norm}, map[*linear]gpuPlace{}
	for i := range m.layers {
		l, x := &m.layers[i], &n.layers[i]
		for from, to := range map[*[]float32]*gpuVector{
			&l.scalars: &x.scalars, &l.attnNorm: &x.attnNorm, &l.ffnNorm: &x.ffnNorm, &l.qNorm: &x.qNorm, &l.kNorm: &x.kNorm,
			&l.attnSub: &x.attnSub, &l.ffnSub: &x.ffnSub,
		} {
			vectors[from] = to
		}
		for from, to := range map[*mhc.Site]*gpuSite{l.mhcAttn: &x.mhcAttn, l.mhcFFN: &x.mhcFFN} {
			vectors[&from.Pre], vectors[&from.Post], vectors[&from.Res] = &to.pre, &to.post, &to.res
			vectors[&from.Gate], vectors[&from.Proj] = &to.gate, &to.proj
		}
		linears[&l.q], linears[&l.k], linears[&l.v] = gpuPlace{&x.qkv, 0, n.stack}, gpuPlace{&x.qkv, n.q, n.stack}, gpuPlace{&x.qkv, n.q + n.kv, n.stack}
		linears[&l.o], linears[&l.down] = gpuPlace{&x.o, 0, n.dim}, gpuPlace{&x.down, 0, n.dim}
		linears[&l.up], linears[&l.gate] = gpuPlace{&x.up, 0, n.wide}, gpuPlace{&x.up, n.ffn, n.wide}
	}
	return vectors, linears
}

// layOutModel places what is made of the latents.
func (n *gpuNet) layOutModel(m *Model) {
	for i := range n.layers {
		l := &n.layers[i]
		for _, w := range []*gpuMatrix{&l.qkv, &l.o, &l.up, &l.down} {
			w.packed = cuda.Ternary{Rows: w.rows, Cols: w.cols, Group: n.group(w.cols), Gain: 1}
			shape := kernels.Ternary{Rows: w.rows, Cols: w.cols, Group: w.packed.Group}
			w.packed.Tiles = n.regions[gpuPacked].take(64 * shape.Blocks() * shape.ColTiles())
			w.packed.Scales = n.regions[gpuPacked].take(2 * kernels.TileSide * shape.Blocks() * shape.Groups())
			w.used = n.regions[gpuFactors].take(2 * w.rows * w.cols)
		}
		if n.cfg.Streams > 1 && !n.cfg.MHCDynamic {
			l.mhcAttn.coef, l.mhcFFN.coef = n.regions[gpuPacked].take(4*cuda.CoefFloats), n.regions[gpuPacked].take(4*cuda.CoefFloats)
		}
	}
	n.layOutTable(&n.embed, denseType(n.cfg.Embedding), n.cfg.TieEmbeddings)
	if n.cfg.TieEmbeddings {
		n.head = n.embed
	} else {
		n.layOutTable(&n.head, denseType(n.cfg.Head), true)
	}
	rope := 4 * m.rope.limit * (m.rope.rotary / 2)
	n.rope = [2]cuda.Ptr{n.regions[gpuPacked].take(rope), n.regions[gpuPacked].take(rope)}
}

func (n *gpuNet) layOutTable(t *gpuMatrix, kind kernels.DType, head bool) {
	t.table = cuda.Dense{Rows: t.rows, Cols: t.cols, Type: int(kind), Data: n.regions[gpuPacked].take(t.rows * kind.RowBytes(t.cols))}
	if head {
		t.half, t.used = n.regions[gpuFactors].take(2*t.rows*t.cols), n.regions[gpuFactors].take(2*t.rows*t.cols)
	}
}

// group is the inputs that share a scale in matrices of that many columns.
func (n *gpuNet) group(cols int) int {
	if n.cfg.Group == 0 {
		return cols
	}
	return n.cfg.Group
}

// layOutTape places what the forward leaves.
func (n *gpuNet) layOutTape() {
	r := &n.regions[gpuTape]
	floats := func(width int) cuda.Ptr { return r.take(4 * n.tokens * width) }
	n.start = floats(n.streams)
	before := n.start
	for i := range n.layers {
		l := &n.layers[i]
		if i == 0 || !n.recompute {
			l.gpuTapeLayer = n.tapeLayer(floats)
		} else {
			l.gpuTapeLayer = n.layers[0].gpuTapeLayer
		}
		for j, site := range []*gpuSite{&l.mhcAttn, &l.mhcFFN} {
			site.number = 2*i + j
			switch first := []*gpuSite{&n.layers[0].mhcAttn, &n.layers[0].mhcFFN}[j]; {
			case !n.dynamic():
			case i == 0 || !n.recompute:
				site.coef, site.z, site.inverse = floats(cuda.CoefFloats), floats(cuda.MHCLogits), floats(1)
			default:
				site.coef, site.z, site.inverse = first.coef, first.z, first.inverse
			}
		}
		l.before, l.left = before, floats(n.streams)
		before = l.left
		if !n.cfg.ResidualScalars {
			l.entered = l.before
		}
	}
}

func (n *gpuNet) tapeLayer(floats func(width int) cuda.Ptr) gpuTapeLayer {
	l := gpuTapeLayer{middle: floats(n.streams), in: n.act(n.dim), attOut: n.act(n.q), ffnIn: n.act(n.dim), ff: n.act(n.ffn)}
	if n.cfg.ResidualScalars && n.cfg.Streams > 1 {
		l.entered = floats(n.streams)
	}
	l.rotated = n.regions[gpuTape].take(2 * n.tokens * n.stack)
	l.att, l.lse, l.upY = floats(n.q), floats(n.cfg.Heads), floats(n.wide)
	if n.cfg.QKNorm {
		l.qkvY = floats(n.stack) // its norms are differentiated at them
	}
	if n.cfg.Streams > 1 {
		l.oY, l.downY = floats(n.dim), floats(n.dim)
	}
	return l
}

// act is int8 vectors of that length on the tape.
func (n *gpuNet) act(cols int) cuda.Act { return n.actIn(gpuTape, cols, n.group(cols)) }

func (n *gpuNet) actIn(part gpuPart, cols, group int) cuda.Act {
	a := cuda.Act{Tokens: n.tokens, Cols: cols, Stride: kernels.ActStride(cols), Group: group}
	r := &n.regions[part]
	a.Q, a.Scale, a.Sums = r.take(n.tokens*a.Stride), r.take(4*n.tokens), r.take(4*n.tokens*a.Groups())
	return a
}
