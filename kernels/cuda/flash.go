package cuda

import (
	"fmt"
	"math"
)

// This file queues the kernels of src/flash.cu and src/flash_backward.cu: attention over rows
// of packed documents, for training.

// Flash is attention for training on a device. A query at place i of its row sees the keys
// from the start of its document to i. Scores have factors in half precision and float32 sums,
// gradients bfloat16 factors and float32 sums; the same input gives the same bits every time.
// Nothing waits or allocates, and launches depend on the shape alone.
type Flash struct {
	t                      *Thread
	forward, keys, queries [len(flashWidths)]*Kernel
}

// flashWidths is the elements of a head that the kernels are made for: of a shorter head the
// rest is zeros.
var flashWidths = [...]int{32, 64, 128}

// MaxFlashHead is the longest head that Flash takes, in elements.
const MaxFlashHead = 128

// FlashSupports says why there is no kernel for heads of that many elements; nil: there is.
func FlashSupports(headDim int) error {
	if headDim < 16 || headDim > MaxFlashHead || headDim%16 != 0 {
		return fmt.Errorf("cuda: attention for training takes heads of 16, 32, 48 … %d elements, not %d", MaxFlashHead, headDim)
	}
	return nil
}

// Flash loads the kernels.
func (t *Thread) Flash(image Image) (*Flash, error) {
	f := &Flash{t: t}
	forward, backward := map[string]**Kernel{}, map[string]**Kernel{}
	var large []string
	for i, w := range flashWidths {
		a, b, c := fmt.Sprint("flash_forward_", w), fmt.Sprint("flash_keys_", w), fmt.Sprint("flash_queries_", w)
		forward[a], backward[b], backward[c] = &f.forward[i], &f.keys[i], &f.queries[i]
		large = append(large, a, b, c)
	}
	if err := t.loadKernels(image, "flash", forward, large...); err != nil {
		return nil, err
	}
	return f, t.loadKernels(image, "flash_backward", backward, large...)
}

// FlashShape is what attention is over: Docs.Rows rows of Docs.SeqLen tokens n in all, Heads query
// heads of HeadDim elements, of which Heads/KVHeads read the same KV head. Scores are
// multiplied by Scale.
type FlashShape struct {
	Docs
	Heads, KVHeads, HeadDim int
	Scale                   float32
	// HalfGrads makes the gradients that Backward gives bfloat16.
	HalfGrads bool
}

type flashArgs struct {
	out, lse, dq, dk, dv, delta, dout, qkv, starts Ptr
	tokens                                         int64
	seq, dim, heads, kvHeads                       int32
	scale, exponent                                float32
	halfGrads, _                                   int32
}

// args checks a shape, and returns the place of its kernels and the common arguments.
func (s *FlashShape) args() (kind int, a flashArgs, err error) {
	if err := FlashSupports(s.HeadDim); err != nil {
		return 0, a, err
	}
	if s.Heads < 1 || s.KVHeads < 1 || s.Heads%s.KVHeads != 0 || s.Rows < 1 || s.SeqLen < 1 || !(s.Scale > 0) || math.IsInf(float64(s.Scale), 0) {
		return 0, a, fmt.Errorf("cuda: attention of %d heads over %d KV heads, %d rows of %d tokens, scores times %v", s.Heads, s.KVHeads, s.Rows, s.SeqLen, s.Scale)
	}
	// Blocks in the second and third direction of a grid, and what the kernels count in 32 bits:
	// elements of a row, and heads of tokens.
	const most, counted = 65535, math.MaxInt32
	row, tokens := float64(s.SeqLen+256)*float64(s.Heads+2*s.KVHeads)*float64(s.HeadDim), float64(s.Rows)*float64(s.SeqLen)
	if s.Heads > most || s.Rows > most || row > counted || float64(s.Heads)*(tokens+256) > counted {
		return 0, a, fmt.Errorf("cuda: attention of %d heads of %d over %d rows of %d tokens is too large for one launch", s.Heads, s.HeadDim, s.Rows, s.SeqLen)
	}
	if s.Starts == 0 {
		return 0, a, fmt.Errorf("cuda: attention without the starts of its documents")
	}
	for flashWidths[kind] < s.HeadDim {
		kind++
	}
	return kind, flashArgs{
		starts: s.Starts, tokens: int64(s.Rows) * int64(s.SeqLen), seq: int32(s.SeqLen), dim: int32(s.HeadDim),
		heads: int32(s.Heads), kvHeads: int32(s.KVHeads), scale: s.Scale, exponent: float32(float64(s.Scale) * math.Log2E),
		halfGrads: flag(s.HalfGrads),
	}, nil
}

// launch queues a kernel of one block of 128 threads for every so many tokens of a row, for every
// head and row. tile is the bytes of one row of a head in shared memory, rows how many of them
// a block has there, more what it has besides.
func (s *FlashShape) launch(t *Thread, k *Kernel, a *flashArgs, kind, tokens, heads, rows, more int) error {
	shared := rows*(2*flashWidths[kind]+16) + more
	if have := t.device.dynamicShared(); shared > have {
		return fmt.Errorf("cuda: attention over heads of %d needs %d bytes of shared memory, device %d has %d", s.HeadDim, shared, t.device.Ordinal, have)
	}
	grid := [3]uint32{uint32((s.SeqLen + tokens - 1) / tokens), uint32(heads), uint32(s.Rows)}
	return Launch(t, k, Shape{Grid: grid, Block: [3]uint32{128, 1, 1}, Shared: uint32(shared)}, a)
}

// Forward computes out [n][Heads·HeadDim] and lse [Heads][n] in float32 from qkv
// [n][(Heads+2·KVHeads)·HeadDim] in half precision: query heads, then keys, then values. lse is
// for Backward: the logarithm to base 2 of the sums of exponentials.
func (f *Flash) Forward(out, lse, qkv Ptr, s FlashShape) error {
	kind, a, err := s.args()
	if err != nil {
		return err
	}
	a.out, a.lse, a.qkv = out, lse, qkv
	keys := [...]int{64, 64, 32}[kind] // of a step
	return s.launch(f.t, f.forward[kind], &a, kind, 128, s.Heads, 128+4*keys, 0)
}

// Backward computes dq [n][Heads·HeadDim], dk and dv [n][KVHeads·HeadDim] in float32, or as HalfGrads says, the
// gradients of Forward's q, k and v as they are in qkv, from dout [n][Heads·HeadDim] in bfloat16
// and what Forward gave. delta [Heads][n], float32, is scratch.
func (f *Flash) Backward(dq, dk, dv, delta, dout, out, lse, qkv Ptr, s FlashShape) error {
	kind, a, err := s.args()
	if err != nil {
		return err
	}
	a.out, a.lse, a.dq, a.dk, a.dv, a.delta, a.dout, a.qkv = out, lse, dq, dk, dv, delta, dout, qkv
	// As the templates of the sources have it: tokens of a block, and of a step.
	own, step := [...]int{128, 128, 64}[kind], [...]int{64, 64, 32}[kind]
	if err := s.launch(f.t, f.queries[kind], &a, kind, own, s.Heads, 4*step, 0); err != nil {
		return err
	}
	return s.launch(f.t, f.keys[kind], &a, kind, own, s.KVHeads, 4*step, 2*12*step)
}

// Docs is rows of packed documents.
type Docs struct {
	// Starts [Rows·SeqLen], int32, is the place in its row at which the document of a token begins:
	// the token's position is i%SeqLen - Starts[i].
	Starts       Ptr
	Rows, SeqLen int
}
