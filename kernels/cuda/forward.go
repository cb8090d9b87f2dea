package cuda

import "fmt"

// This file queues the kernels of src/forward.cu: inputs of products for many tokens, each
// quantised in the kernel that makes it. Results are those of the kernels of Ops, to the bit.

// Forward is those kernels.
type Forward struct {
	t                       *Thread
	quantize, activate, mix *Kernel
}

// Forward loads the kernels.
func (t *Thread) Forward(image Image) (*Forward, error) {
	f := &Forward{t: t}
	names := map[string]**Kernel{"quantize_rows": &f.quantize, "activate_rows": &f.activate, "mix_rows": &f.mix}
	if err := t.loadKernels(image, "forward", names, "quantize_rows", "activate_rows", "mix_rows"); err != nil {
		return nil, err
	}
	return f, nil
}

// rowsArgs is Rows of the source.
type rowsArgs struct {
	q, sums, scale, weight                      Ptr
	n, stride, group, groups, tokens, normalize int32
	eps                                         float32
	_                                           int32
}

// forwardShared is the shared memory that the warps of a block have together, if one alone does not
// need more: four blocks then fit on a multiprocessor of sm_90 and two on those of sm_86 and sm_89.
const forwardShared = 48 << 10

// rows checks dst and fills in all but weight. s is how a launch for that many tokens looks.
func (f *Forward) rows(dst *Act, weight Ptr, eps float32, tokens int) (a rowsArgs, s Shape, err error) {
	switch {
	case tokens < 1 || tokens > dst.Tokens:
		return a, s, fmt.Errorf("cuda: %d tokens into room for %d", tokens, dst.Tokens)
	case dst.Cols%4 != 0 || dst.Group != 64 && dst.Group%128 != 0 && dst.Group < dst.Cols:
		return a, s, fmt.Errorf("cuda: vectors of %d in groups of %d: want a multiple of 4, and groups of 64, of multiples of 128 or of all", dst.Cols, dst.Group)
	case 4*dst.Cols > f.t.device.dynamicShared():
		return a, s, fmt.Errorf("cuda: a vector of %d elements, at most %d fit", dst.Cols, f.t.device.dynamicShared()/4)
	}
	a = rowsArgs{
		q: dst.Q, sums: dst.Sums, scale: dst.Scale, weight: weight,
		n: int32(dst.Cols), stride: int32(dst.Stride), group: int32(dst.Group), groups: int32(dst.Groups()), tokens: int32(tokens), eps: eps,
	}
	if weight != 0 {
		a.normalize = 1
	}
	warps := max(1, min(8, forwardShared/(4*dst.Cols)))
	s = Shape{Grid: [3]uint32{uint32((tokens + warps - 1) / warps), 1, 1}, Block: [3]uint32{uint32(32 * warps), 1, 1}, Shared: uint32(4 * warps * dst.Cols)}
	return a, s, nil
}

type quantizeRowsArgs struct {
	rows rowsArgs
	x    Ptr
}

// Quantize is Ops.RMSNormQuantize of x, or Ops.Quantize if weight is 0.
func (f *Forward) Quantize(dst *Act, x, weight Ptr, eps float32, tokens int) error {
	a, s, err := f.rows(dst, weight, eps, tokens)
	if err != nil {
		return err
	}
	return Launch(f.t, f.quantize, s, &quantizeRowsArgs{a, x})
}

type activateRowsArgs struct {
	rows    rowsArgs
	x       Ptr
	kind, _ int32
}

// Activate is Quantize of the activated values of x, float32 [tokens][dst.Cols], or with a gate
// [tokens][2·dst.Cols]: results of up, then of the gate.
func (f *Forward) Activate(dst *Act, x, weight Ptr, kind Activation, eps float32, tokens int) error {
	a, s, err := f.rows(dst, weight, eps, tokens)
	if err != nil {
		return err
	}
	return Launch(f.t, f.activate, s, &activateRowsArgs{rows: a, x: x, kind: int32(kind)})
}

type mixRowsArgs struct {
	rows                                                  rowsArgs
	x, out, left, y, initial, scalars, prior, write, read Ptr
	streams, perToken, mean, _                            int32
}

// ForwardMix is Mix with one more beginning.
type ForwardMix struct {
	Mix
	// Prior [2] are scalars that X has behind it but not in it: with them Prior[0]·X + Prior[1]·Initial
	// takes the place of X. 0: not.
	Prior Ptr
}

// Mix is Ops.Mix and Quantize, with a norm, of what is read: the stream itself, if there is one, and
// else what m.Read makes of all, or, if there is none, their mean. m.U and m.Mean are not written. With
// m.Out 0 the streams are not written either. Reading does not depend on the token.
func (f *Forward) Mix(dst *Act, m *ForwardMix, weight Ptr, eps float32, tokens, streams int) error {
	a, s, err := f.rows(dst, weight, eps, tokens)
	switch {
	case err != nil:
		return err
	case streams != 1 && streams != 2 && streams != 4 || m.CoefStride != 0 && m.CoefStride != CoefFloats:
		return fmt.Errorf("cuda: a mixing of %d streams, %d floats between coefficients: want 1, 2 or 4, and 0 or %d", streams, m.CoefStride, CoefFloats)
	case weight == 0:
		return fmt.Errorf("cuda: a mixing without a norm behind it")
	}
	b := &mixRowsArgs{
		rows: a, x: m.X, out: m.Out, left: m.Left, y: m.Y, initial: m.Initial, scalars: m.Scalars, prior: m.Prior, write: m.Write, read: m.Read,
		streams: int32(streams), perToken: int32(m.CoefStride / CoefFloats),
	}
	if m.Read == 0 {
		b.mean = 1
	}
	return Launch(f.t, f.mix, s, b)
}
