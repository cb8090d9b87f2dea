package cuda

import "fmt"

// This file queues the kernels of src/decode.cu.

// Decode is the kernels of steps that have one token of each sequence. Each does what several of
// Ops do, with the same results, to the bit.
type Decode struct {
	t                                *Thread
	mix, activate, scores, attention *Kernel
}

// Decode loads the kernels.
func (t *Thread) Decode(image Image) (*Decode, error) {
	d := &Decode{t: t}
	err := t.loadKernels(image, "decode", map[string]**Kernel{
		"mix_quantize": &d.mix, "activate_quantize": &d.activate, "decode_scores": &d.scores, "decode_attention": &d.attention,
	}, "mix_quantize", "activate_quantize", "decode_attention")
	if err != nil {
		return nil, err
	}
	mayBeEarly(d.mix, d.activate, d.scores, d.attention)
	return d, nil
}

// Normed is a vector on its way into a product.
type Normed struct {
	// Weight of the norm; 0: it is not normed.
	Weight Ptr
	Eps    float32
	// Out takes what is quantised, [tokens][n]; 0: nothing does.
	Out Ptr
}

// quantized is the part of the arguments that is about dst, which may be nil with n values.
func (d *Decode) quantized(dst *Act, v Normed, n, tokens int) (a quantizeArgs, s Shape, err error) {
	a = quantizeArgs{norm: v.Out, weight: v.Weight, n: int32(n), eps: v.Eps}
	if v.Weight != 0 {
		a.normalize = 1
	}
	s = perToken(tokens)
	s.Shared = uint32(4 * n)
	if tokens < 1 || 4*n > d.t.device.dynamicShared() {
		return a, s, fmt.Errorf("cuda: %d vectors of %d elements, of which at most %d fit", tokens, n, d.t.device.dynamicShared()/4)
	}
	if dst == nil {
		return a, s, nil
	}
	if n != dst.Cols || tokens > dst.Tokens {
		return a, s, fmt.Errorf("cuda: %d vectors of %d elements into room for %d of %d", tokens, n, dst.Tokens, dst.Cols)
	}
	a.q, a.sums, a.scale = dst.Q, dst.Sums, dst.Scale
	a.stride, a.group, a.groups = int32(dst.Stride), int32(dst.Group), int32(dst.Groups())
	return a, s, nil
}

// MixQuantize is Mix, and Quantize or RMSNormQuantize of U or Mean, of which one is set to any
// address: it is not written. dst may be nil where only v.Out is wanted.
func (d *Decode) MixQuantize(dst *Act, m Mix, v Normed, tokens, streams, dim int) error {
	var a struct {
		mix      mixArgs
		quantize quantizeArgs
	}
	var s Shape
	var err error
	if (m.U == 0) == (m.Mean == 0) {
		return fmt.Errorf("cuda: neither what the next function reads nor the mean goes on, or both")
	}
	if a.mix, err = m.args(streams, dim); err != nil {
		return err
	}
	if a.quantize, s, err = d.quantized(dst, v, dim, tokens); err != nil {
		return err
	}
	return Launch(d.t, d.mix, s, &a)
}

// ActivateQuantize is Activate of up and gate, [tokens] vectors of dst.Cols, ld apart, and Quantize or
// RMSNormQuantize.
func (d *Decode) ActivateQuantize(dst *Act, up, gate Ptr, ld int, kind Activation, v Normed, tokens int) error {
	a := struct {
		up, gate Ptr
		quantize quantizeArgs
		ld, kind int32
	}{up: up, gate: gate, ld: int32(ld), kind: int32(kind)}
	var s Shape
	var err error
	if a.quantize, s, err = d.quantized(dst, v, dst.Cols, tokens); err != nil {
		return err
	}
	return Launch(d.t, d.activate, s, &a)
}

// DecodeAttend is the arguments of Attend.
type DecodeAttend struct {
	Scores       Ptr // [tokens][Heads][Room], scratch
	Dst          Ptr // [tokens][Heads][HeadDim]
	QKV          Ptr // [tokens][LD]: heads of queries, then of keys, then of values
	QNorm, KNorm Ptr // [HeadDim], or 0
	Cosine, Sine Ptr // [positions][Half]
	// Positions and FirstPage [tokens] say where a token stands, and where the pages of its
	// sequence begin in Pages.
	Positions, FirstPage, Pages Ptr
	Cache                       Cache
	LD, Heads, Half             int32
	Interleaved                 int32
	Room                        int32 // a multiple of 64 that no position reaches
	Eps, Scale                  float32
	_                           int32
}

// decodeRing is the pages of values that decode_attention has on their way.
const decodeRing = 4

// pageLen is kernels.PageLen.
const pageLen = 64

// Attend is Rotate and Attention, which it computes in two launches: scores of all pages at once, and
// what they weigh.
func (d *Decode) Attend(a *DecodeAttend, tokens int) error {
	element := 2
	if a.Cache.Int8 != 0 {
		element = 1
	}
	shared := decodeRing * pageLen * int(a.Cache.HeadDim) * element
	if a.Room < pageLen || a.Room%pageLen != 0 || a.Cache.HeadDim > MaxHeadDim || a.Cache.KVHeads < 1 || a.Heads%a.Cache.KVHeads != 0 || tokens < 1 || shared > d.t.device.dynamicShared() {
		return fmt.Errorf("cuda: attention of %d tokens, %d heads of %d over %d, room for %d positions", tokens, a.Heads, a.Cache.HeadDim, a.Cache.KVHeads, a.Room)
	}
	s := Shape{Grid: [3]uint32{uint32(a.Heads), uint32(a.Room / pageLen), uint32(tokens)}, Block: [3]uint32{64, 1, 1}}
	if err := Launch(d.t, d.scores, s, a); err != nil {
		return err
	}
	s = Shape{Grid: [3]uint32{uint32(a.Heads), uint32(tokens), 1}, Block: [3]uint32{256, 1, 1}, Shared: uint32(shared)}
	return Launch(d.t, d.attention, s, a)
}
