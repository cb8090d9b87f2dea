package cuda

import (
	"fmt"

	"github.com/architehc/nanochat/kernels"
)

// This file queues the kernels of src/network.cu. Shapes are those of the kernels; each
// structure of arguments has the layout of the one there.

// Dense is a matrix of package kernels' Dense on a device.
type Dense struct {
	Rows, Cols int
	Type       int // as kernels.DType
	Data       Ptr
}

// Coef is the mixing of residual streams at one site, as package mhc defines it.
type Coef struct {
	Pre, Post [4]float32
	Res       [4][4]float32
}

type embedArgs struct {
	x, initial, table, ids Ptr
	dim, streams, kind     int32
}

// Embed writes the embeddings of ids [tokens] to every stream of x [tokens][streams][dim],
// and to initial [tokens][dim] unless that is 0.
func (o *Ops) Embed(x, initial Ptr, table *Dense, ids Ptr, tokens, streams int) error {
	a := embedArgs{x: x, initial: initial, table: table.Data, ids: ids, dim: int32(table.Cols), streams: int32(streams), kind: int32(table.Type)}
	return Launch(o.t, o.embed, perToken(tokens), &a)
}

// Mix ends one layer function and begins the next.
type Mix struct {
	X       Ptr // [tokens][streams][dim]
	Out     Ptr // [tokens][streams][dim]: what becomes of X; 0: it is changed in place
	Left    Ptr // [tokens][streams][dim]: what becomes of X before Scalars; 0: not wanted
	Y       Ptr // [tokens][dim]: what the function gave; 0: nothing is written
	Initial Ptr // [tokens][dim], with Scalars
	Scalars Ptr // [2]: Out = Scalars[0]·Left + Scalars[1]·Initial; 0: not
	U       Ptr // [tokens][dim]: what the next function reads; 0: nothing
	Mean    Ptr // [tokens][dim]: the mean of the streams of Out; 0: not wanted
	// Write and Read are the mixing of the function that ends and of the next. With one
	// stream they are not used.
	Write, Read Ptr
	// CoefStride is 0 where Write and Read are a Coef each, for all tokens, and CoefFloats
	// where they are [tokens]Coef.
	CoefStride int
}

// CoefFloats is the size of a Coef in floats.
const CoefFloats = 24

type mixArgs struct {
	x, out, left, y, initial, scalars, u, mean, write, read Ptr
	dim, streams, perToken, _                               int32
}

func (m Mix) args(streams, dim int) (mixArgs, error) {
	if streams != 1 && streams != 2 && streams != 4 || m.CoefStride != 0 && m.CoefStride != CoefFloats {
		return mixArgs{}, fmt.Errorf("cuda: a mixing of %d streams, %d floats between coefficients: want 1, 2 or 4, and 0 or %d", streams, m.CoefStride, CoefFloats)
	}
	if m.Out == 0 {
		m.Out = m.X
	}
	return mixArgs{
		x: m.X, out: m.Out, left: m.Left, y: m.Y, initial: m.Initial, scalars: m.Scalars, u: m.U, mean: m.Mean,
		write: m.Write, read: m.Read, dim: int32(dim), streams: int32(streams), perToken: int32(m.CoefStride / CoefFloats),
	}, nil
}

// Mix queues m for tokens of that many streams of dim values.
func (o *Ops) Mix(m Mix, tokens, streams, dim int) error {
	a, err := m.args(streams, dim)
	if err != nil {
		return err
	}
	s := perToken(tokens)
	s.Block[0] = uint32(min(256, (dim+127)/128*32)) // four columns a thread, whole warps
	return Launch(o.t, o.mix, s, &a)
}

type gatherArgs struct {
	dst, src, rows Ptr
	n              int32
}

// Gather copies vectors rows [count] of src [...][n] to dst [count][n].
func (o *Ops) Gather(dst, src, rows Ptr, count, n int) error {
	return Launch(o.t, o.gather, perToken(count), &gatherArgs{dst, src, rows, int32(n)})
}

// Norm writes the RMS norm of x [tokens][n] to dst.
func (o *Ops) Norm(dst, x, weight Ptr, eps float32, tokens, n int) error {
	a := quantizeArgs{norm: dst, x: x, weight: weight, n: int32(n), eps: eps, normalize: 1}
	s := perToken(tokens)
	s.Shared = uint32(4 * n)
	return Launch(o.t, o.quantize, s, &a)
}

// Cache is keys and values in pages, in the layout of kernels.KV.
type Cache struct {
	Slab        Ptr
	PageBytes   int64
	LayerOffset int64
	KVHeads     int32
	HeadDim     int32
	Int8        int32 // 1: eight bits a value
	_           int32
}

// MaxHeadDim is the longest head that Rotate and Attention take.
const MaxHeadDim = 256

// Rotation is the arguments of Rotate.
type Rotation struct {
	Q, K, V          Ptr // [tokens][heads][head_dim]; Q and K are changed in place
	QNorm, KNorm     Ptr // [head_dim], or 0
	Cosine, Sine     Ptr // [positions][Half]
	Positions, Pages Ptr // [tokens]: the position of each, and the page that holds it
	Cache            Cache
	Heads            int32
	Half             int32
	Interleaved      int32
	Eps              float32
	LD               int32 // from a token's vectors to the next's, in Q, in K and in V; 0: they lie close
	_                int32
}

// Rotate norms and rotates queries and keys and stores keys and values.
func (o *Ops) Rotate(r *Rotation, tokens int) error {
	grid := [3]uint32{uint32(r.Heads + r.Cache.KVHeads), uint32(tokens), 1}
	return Launch(o.t, o.rotate, Shape{Grid: grid, Block: [3]uint32{32, 1, 1}}, r)
}

// Attend is the arguments of Attention.
type Attend struct {
	Dst Ptr // [queries][heads][head_dim]
	Q   Ptr // [tokens][heads][head_dim]
	// Tokens, Positions and FirstPage [queries] say which vector of Q a query is, where it
	// stands, and where the pages of its sequence begin in Pages.
	Tokens, Positions, FirstPage, Pages Ptr
	Cache                               Cache
	Heads                               int32
	Scale                               float32
	LD                                  int32 // from a token's vectors to the next's in Q; 0: they lie close
	_                                   int32
}

// Attention is kernels.Set.Attention for every head of every query.
func (o *Ops) Attention(a *Attend, queries int) error {
	return Launch(o.t, o.attention, Shape{Grid: [3]uint32{uint32(a.Heads), uint32(queries), 1}, Block: [3]uint32{64, 1, 1}}, a)
}

// Activation is a function between the projections of a feed-forward part.
type Activation int32

// The activations of kernels.Set.
const (
	ReLU2 Activation = iota
	ReLU2GLU
	SwiGLU
)

type activateArgs struct {
	dst, gate, up Ptr
	n             int64
	kind, _       int32
}

// Activate computes n values of dst from those of gate and up. dst may be one of them.
func (o *Ops) Activate(dst, gate, up Ptr, n int, kind Activation) error {
	a := activateArgs{dst: dst, gate: gate, up: up, n: int64(n), kind: int32(kind)}
	return Launch(o.t, o.activate, Shape{Grid: [3]uint32{uint32((n + 255) / 256), 1, 1}, Block: [3]uint32{256, 1, 1}}, &a)
}

// Head is the arguments of Logits.
type Head struct {
	Table *Dense
	// X [tokens][cols] meets a table of F32, F16 or BF16, Act one of Q8_0.
	X       Ptr
	Act     *Act
	Softcap float32 // 0: none
}

type headArgs struct {
	logits, table, x, q, scale, tokens Ptr
	rows, cols, stride, kind           int32
	softcap                            float32
	staged                             int32
}

// rowBytes is the size of a row of a table.
func (w *Dense) rowBytes() int {
	switch kernels.DType(w.Type) {
	case kernels.F32:
		return 4 * w.Cols
	case kernels.Q8_0:
		return w.Cols / 32 * 34
	}
	return 2 * w.Cols
}

// Logits computes dst [count][rows] for the vectors whose numbers are in tokens [count].
func (o *Ops) Logits(dst Ptr, h *Head, tokens Ptr, count int) error {
	a := headArgs{
		logits: dst, table: h.Table.Data, x: h.X, tokens: tokens, rows: int32(h.Table.Rows), cols: int32(h.Table.Cols),
		kind: int32(h.Table.Type), softcap: h.Softcap,
	}
	kernel, rows := o.headFloat, 8
	if h.Act != nil {
		kernel, rows = o.headQ8, 16
		a.q, a.scale, a.stride = h.Act.Q, h.Act.Scale, int32(h.Act.Stride)
	}
	grid := [3]uint32{uint32((h.Table.Rows + rows - 1) / rows), uint32(count), 1}
	s := Shape{Grid: grid, Block: [3]uint32{128, 1, 1}}
	if shared := rows * h.Table.rowBytes(); shared <= o.t.device.dynamicShared() && h.Table.Data%16 == 0 {
		a.staged, s.Shared = 1, uint32(shared)
	}
	return Launch(o.t, kernel, s, &a)
}

func perToken(tokens int) Shape {
	return Shape{Grid: [3]uint32{uint32(tokens), 1, 1}, Block: [3]uint32{256, 1, 1}}
}
