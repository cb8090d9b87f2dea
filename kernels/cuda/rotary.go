package cuda

import (
	"fmt"
	"math"
)

// This file queues the kernels of src/rotary.cu: positions in training.

// TrainRotation is the arguments of Train.Rotate and those that RotateBack has in common with it.
type TrainRotation struct {
	// X f32 [n][(Heads+2·KVHeads)·HeadDim] is the results of the stacked projections of queries, keys and
	// values.
	X            Ptr
	QNorm, KNorm Ptr // [HeadDim], or both 0
	Cosine, Sine Ptr // f32 [positions][Half]

	Heads, KVHeads, HeadDim int // HeadDim is a multiple of 16, at most 128
	Half                    int // of the elements that turn; 2·Half is at most HeadDim
	Interleaved             bool
	Eps                     float32
}

// turnArgs is Turn of src/rotary.cu.
type turnArgs struct {
	cosine, sine, starts                               Ptr
	seqLen, heads, kvHeads, headDim, half, interleaved int32
}

// turn checks the shape of r. It returns the number of tokens.
func (r *TrainRotation) turn(d Docs) (turnArgs, int, error) {
	if r.HeadDim < 16 || r.HeadDim > 128 || r.HeadDim%16 != 0 || r.Half < 0 || 2*r.Half > r.HeadDim || r.Heads < 1 || r.KVHeads < 1 || (r.QNorm == 0) != (r.KNorm == 0) {
		return turnArgs{}, 0, fmt.Errorf("cuda: training with %d and %d heads of %d, %d pairs of which turn: heads are multiples of 16 up to 128",
			r.Heads, r.KVHeads, r.HeadDim, r.Half)
	}
	n := d.Rows * d.SeqLen
	if d.Rows < 1 || d.SeqLen < 1 {
		return turnArgs{}, 0, fmt.Errorf("cuda: %d rows of %d tokens", d.Rows, d.SeqLen)
	}
	if n > math.MaxInt32/(r.Heads+2*r.KVHeads+2) {
		return turnArgs{}, 0, fmt.Errorf("cuda: %d tokens of %d heads in one launch", n, r.Heads+2*r.KVHeads)
	}
	t := turnArgs{
		cosine: r.Cosine, sine: r.Sine, starts: d.Starts, seqLen: int32(d.SeqLen), heads: int32(r.Heads), kvHeads: int32(r.KVHeads),
		headDim: int32(r.HeadDim), half: int32(r.Half),
	}
	if r.Interleaved {
		t.interleaved = 1
	}
	return t, n, checkTokens(n)
}

// chunks is how many times 64 elements a head has room in.
func (r *TrainRotation) chunks() int { return (r.HeadDim + 63) / 64 }

type rotateTrainArgs struct {
	x, y, qNorm, kNorm Ptr
	turn               turnArgs
	tokens             int32
	eps                float32
}

// Rotate writes queries and keys, normed and rotated, and values to y in half precision, in the layout of
// r.X: the numbers that inference has.
func (x *Train) Rotate(y Ptr, r *TrainRotation, d Docs) error {
	turn, n, err := r.turn(d)
	if err != nil {
		return err
	}
	units := n * ((r.Heads + 2*r.KVHeads + 1) / 2)
	s := Shape{Grid: [3]uint32{uint32((units + 7) / 8), 1, 1}, Block: [3]uint32{256, 1, 1}}
	return Launch(x.t, x.rotate[r.chunks()].Kernel, s, &rotateTrainArgs{r.X, y, r.QNorm, r.KNorm, turn, int32(n), r.Eps})
}

// RotateBack is the backward of Rotate.
type RotateBack struct {
	TrainRotation // X is used with norms only
	// DQ [n][Heads·HeadDim], DK and DV [n][KVHeads·HeadDim]: float32, or, with HalfD, bfloat16.
	DQ, DK, DV Ptr
	HalfD      bool
	DYB        Ptr    // bf16 [n][(Heads+2·KVHeads)·HeadDim]: the gradient of X, times the gain of Input
	Input      Factor // of the stacked projections
	Partial    Ptr    // of PartialBytes, with norms
}

type rotateBackArgs struct {
	dq, dk, dv, x, qNorm, kNorm, scale, dyb, partial Ptr
	turn                                             turnArgs
	input                                            int8Args
	tokens, half                                     int32
	eps                                              float32
	_                                                int32
}

// RotateBack queues r. With norms it returns the partial sums of the gradients of QNorm and KNorm.
func (x *Train) RotateBack(r *RotateBack, d Docs) (qNorm, kNorm PartialSum, err error) {
	turn, n, err := r.turn(d)
	if err != nil {
		return qNorm, kNorm, err
	}
	input, err := r.Input.args()
	if err != nil {
		return qNorm, kNorm, err
	}
	k := x.rotateBack[r.chunks()]
	s := x.shape(k, n, 256)
	if r.QNorm != 0 {
		qNorm = partialSum(r.Partial, s, r.HeadDim, 2*r.HeadDim)
		kNorm = partialSum(r.Partial+Ptr(4*r.HeadDim), s, r.HeadDim, 2*r.HeadDim)
	}
	return qNorm, kNorm, Launch(x.t, k.Kernel, s, &rotateBackArgs{
		dq: r.DQ, dk: r.DK, dv: r.DV, x: r.X, qNorm: r.QNorm, kNorm: r.KNorm, scale: scaleOf(r.Input.Act), dyb: r.DYB, partial: r.Partial,
		turn: turn, input: input, tokens: int32(n), half: flag(r.HalfD), eps: r.Eps,
	})
}
