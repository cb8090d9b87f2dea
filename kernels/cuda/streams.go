package cuda

import "fmt"

// This file queues the kernels of src/streams.cu: backward of what stands between the residual streams and
// the layer functions.

// Leave is the backward of the writing of a layer function's result y to the streams.
type Leave struct {
	// DX f32 [n][Streams][Dim] is the gradient of the streams after it. With more than one stream that of
	// the streams before it goes to Old, which may be DX; with one it is the same, and Old is not used.
	DX, Old Ptr
	// X f32 [n][Streams][Dim] and Y f32 [n][Dim] are what the writing had, Coef its mixing: a Coef of each
	// token (CoefStride 24), or one for all (0). CoefGrad f32 [n][24]: Post and Res are set. None of these
	// is used with one stream.
	X, Y, Coef, CoefGrad Ptr
	CoefStride           int
	DYB                  Ptr // bf16 [n][Dim]: the gradient of y, times the gain of Input
	Input                Factor
	Streams, Dim         int
}

type leaveArgs struct {
	dx, old, x, y, coef, coefGrad, dyb, scale Ptr
	input                                     int8Args
	tokens, dim, coefStride, _                int32
}

// Leave queues l.
func (x *Train) Leave(l *Leave, n int) error {
	p, err := x.planStreams(l.Streams, l.Dim, n)
	if err != nil {
		return err
	}
	a, err := l.args(n)
	if err != nil {
		return err
	}
	k := x.leave[l.Streams]
	return Launch(x.t, k.Kernel, x.shape(k, n, p.threads), &a)
}

func (l *Leave) args(n int) (leaveArgs, error) {
	input, err := l.Input.args()
	return leaveArgs{
		dx: l.DX, old: l.Old, x: l.X, y: l.Y, coef: l.Coef, coefGrad: l.CoefGrad, dyb: l.DYB, scale: scaleOf(l.Input.Act), input: input,
		tokens: int32(n), dim: int32(l.Dim), coefStride: int32(l.CoefStride),
	}, err
}

// planStreams checks the shape of streams.
func (x *Train) planStreams(streams, dim, n int) (plan, error) {
	if x.leave[streams] == nil {
		return plan{}, fmt.Errorf("cuda: training with %d streams, expected 1, 2 or 4", streams)
	}
	if err := checkTokens(n); err != nil {
		return plan{}, err
	}
	return planFor(dim, 512, 4)
}

// Enter is the backward of the reading of a layer function's input from the streams and of its norm, of the
// residual scalars in front of it, and of the writing in front of those.
type Enter struct {
	// D [n][Dim] is the gradient of the normed input, times the gain of Act: float32, or, with HalfD,
	// bfloat16. 0: nothing was read; only Residual and Next are done.
	D     Ptr
	HalfD bool
	DX    Ptr // f32 [n][Streams][Dim]: added to; with Next it becomes that of the streams in front of the writing
	// X f32 [n][Streams][Dim] is the streams that were read. It is not used, and need not have been kept, with
	// Residual, or with Next and more than one stream: it is computed again, to the bit.
	X Ptr
	// Weight [Dim] is the norm's. Partial has PartialBytes.
	Weight, Partial Ptr
	Act             *Act // of the normed input; nil: it is not int8
	// Coef and CoefStride are as in Leave. CoefGrad f32 [n][24]: Pre is set.
	Coef, CoefGrad Ptr
	CoefStride     int
	Residual       *Residual // nil: there are no residual scalars in front of the reading
	// Next, unless it is nil, is the backward of the writing in front of all this, of the layer function before,
	// in the same pass. Its DX, Old, Streams and Dim are not used. Nothing may have to be added to DX between
	// the two, as dynamic mixing would. CoefGrad must be another one.
	Next         *Leave
	Streams, Dim int
	Eps          float32
}

// Residual is X = Scalars[0]·Before + Scalars[1]·Initial in every stream, in front of a layer.
type Residual struct {
	Before  Ptr // f32 [n][Streams][Dim]; its gradient takes the place of that of X. Not used where X is not because of Next
	Initial Ptr // f32 [n][Dim], the embedding
	Scalars Ptr // f32 [2]
	DEmbed  Ptr // f32 [n][Dim], the gradient of Initial: added to
}

type enterArgs struct {
	d, dx, x, weight, scale, coef, coefGrad, partial Ptr
	before, initial, scalars, dembed                 Ptr
	next                                             leaveArgs
	tokens, dim, coefStride, half                    int32
	eps                                              float32
	_                                                int32
}

// Enter queues e. It returns the partial sums of the gradient of the weight and those of the scalars.
func (x *Train) Enter(e *Enter, n int) (weight, scalars PartialSum, err error) {
	p, err := x.planStreams(e.Streams, e.Dim, n)
	if err != nil {
		return weight, scalars, err
	}
	a := &enterArgs{
		d: e.D, dx: e.DX, x: e.X, weight: e.Weight, scale: scaleOf(e.Act), coef: e.Coef, coefGrad: e.CoefGrad, partial: e.Partial,
		tokens: int32(n), dim: int32(e.Dim), coefStride: int32(e.CoefStride), half: flag(e.HalfD), eps: e.Eps,
	}
	k := x.enter[[2]int{e.Streams, p.elements}]
	if e.Next != nil {
		k = x.enterNext[[2]int{e.Streams, p.elements}]
		if a.next, err = e.Next.args(n); err != nil {
			return weight, scalars, err
		}
	}
	s := x.shape(k, n, p.threads)
	weight = partialSum(e.Partial, s, e.Dim, e.Dim+4)
	if r := e.Residual; r != nil {
		a.before, a.initial, a.scalars, a.dembed = r.Before, r.Initial, r.Scalars, r.DEmbed
		scalars = partialSum(e.Partial+Ptr(4*e.Dim), s, 2, e.Dim+4)
	}
	return weight, scalars, Launch(x.t, k.Kernel, s, a)
}

// LastNormBack is the backward of the norm in front of the head and of the mean of the streams.
type LastNormBack struct {
	// D [n][Dim] is the gradient of the head's input, times the gain of Act: float32, or, with HalfD, bfloat16.
	D     Ptr
	HalfD bool
	X     Ptr // f32 [n][Streams][Dim]: the streams that the last layer leaves
	// Weight [Dim] is the norm's. Partial has PartialBytes.
	Weight, Partial Ptr
	Act             *Act // the head's int8 input; nil: it has none
	DX              Ptr  // f32 [n][Streams][Dim]: written
	DEmbed          Ptr  // f32 [n][Dim]: cleared; 0: there is none
	Streams, Dim    int
	Eps             float32
}

type lastNormArgs struct {
	d, x, weight, scale, dx, dembed, partial Ptr
	tokens, dim, streams, half               int32
	eps                                      float32
	_                                        int32
}

// LastNormBack queues l.
func (x *Train) LastNormBack(l *LastNormBack, n int) (PartialSum, error) {
	p, err := x.planStreams(l.Streams, l.Dim, n)
	if err != nil {
		return PartialSum{}, err
	}
	k := x.lastNorm[p.elements]
	s := x.shape(k, n, p.threads)
	return partialSum(l.Partial, s, l.Dim, l.Dim), Launch(x.t, k.Kernel, s, &lastNormArgs{
		d: l.D, x: l.X, weight: l.Weight, scale: scaleOf(l.Act), dx: l.DX, dembed: l.DEmbed, partial: l.Partial,
		tokens: int32(n), dim: int32(l.Dim), streams: int32(l.Streams), half: flag(l.HalfD), eps: l.Eps,
	})
}
