package cuda

import "fmt"

// This file queues the kernels of src/train.cu: backward of what stands between the products of a layer
// function. Every structure of arguments has the layout of the one in the source.
//
// n is the number of tokens of a launch. Widths are multiples of 16.

// Train is the token-wise kernels of training. Its methods queue work on the thread that it was loaded on;
// all of it can be recorded in a graph.
type Train struct {
	t *Thread

	leave, enter, lastNorm                           map[int]*Kernel // by streams; streams and elements; elements
	activateNorm, subNorm                            map[int]*Kernel // by elements
	activateBack, factors, round, rotate, rotateBack *Kernel
	addPartials, embedBack, embedJoin                *Kernel
}

// Train loads the kernels.
func (t *Thread) Train(image Image) (*Train, error) {
	x := &Train{t: t, leave: map[int]*Kernel{}, enter: map[int]*Kernel{}, lastNorm: map[int]*Kernel{}, activateNorm: map[int]*Kernel{}, subNorm: map[int]*Kernel{}}
	var err error
	load := func(source, name string) *Kernel {
		var k *Kernel
		if err == nil {
			err = t.loadKernels(image, source, map[string]**Kernel{name: &k})
		}
		return k
	}
	for _, streams := range []int{1, 2, 4} {
		x.leave[streams] = load("streams", fmt.Sprintf("leave_%d", streams))
		for _, elements := range []int{1, 2} {
			x.enter[enterKey(streams, elements)] = load("streams", fmt.Sprintf("enter_%d_%d", streams, elements))
			x.lastNorm[elements] = load("streams", fmt.Sprintf("last_norm_%d", elements))
		}
	}
	for _, elements := range []int{1, 2, 4, 8} {
		x.activateNorm[elements] = load("train", fmt.Sprintf("activate_norm_back_%d", elements))
		if elements <= 4 {
			x.subNorm[elements] = load("train", fmt.Sprintf("sub_norm_back_%d", elements))
		}
	}
	x.activateBack, x.factors, x.round = load("train", "activate_back"), load("train", "factors"), load("train", "round_floats")
	x.rotate, x.rotateBack = load("rotary", "rotate_train"), load("rotary", "rotate_back")
	x.addPartials, x.embedBack, x.embedJoin = load("sums", "add_partials"), load("sums", "embed_back"), load("sums", "embed_join")
	if err != nil {
		return nil, err
	}
	return x, nil
}

func enterKey(streams, elements int) int { return 10*streams + elements }

// Factor is the input of a product, where it becomes a factor of the gradient of the weights.
type Factor struct {
	// Act is its int8 values; nil: the input is not int8, its gain is 1, and nothing is converted.
	Act *Act
	// BF16 and F16 [n][Act.Cols] are where the values go, exactly; 0: they are not wanted.
	BF16, F16 Ptr
}

// int8Args is Int8 of src/train.cuh.
type int8Args struct {
	q, bf16, f16 Ptr
	stride, cols int32
}

func (f *Factor) args() (a int8Args, err error) {
	if f.Act == nil || f.BF16 == 0 && f.F16 == 0 {
		return a, nil
	}
	if f.Act.Cols%16 != 0 {
		return a, widthError(f.Act.Cols)
	}
	return int8Args{f.Act.Q, f.BF16, f.F16, int32(f.Act.Stride), int32(f.Act.Cols)}, nil
}

// scaleOf is the scales by which gains are told.
func scaleOf(a *Act) Ptr {
	if a == nil {
		return 0
	}
	return a.Scale
}

func widthError(width int) error {
	return fmt.Errorf("cuda: training with vectors of %d elements, expected a multiple of 16", width)
}

// plan is how a token's vector lies over the threads of its block: each has four elements, that many times.
type plan struct{ threads, elements int }

// planFor finds the plan for a width with the fewest elements for a thread.
func planFor(width, maxThreads, maxElements int) (plan, error) {
	if width < 16 || width%16 != 0 {
		return plan{}, widthError(width)
	}
	for elements := 1; elements <= maxElements; elements *= 2 {
		if threads := (width + 4*elements - 1) / (4 * elements); threads <= maxThreads {
			return plan{(threads + 31) &^ 31, elements}, nil
		}
	}
	return plan{}, fmt.Errorf("cuda: training with vectors of %d elements, at most %d are supported", width, 4*maxThreads*maxElements)
}

// residentThreads is about the number of threads that the kernels' registers let a multiprocessor have.
const residentThreads = 1536

// blocks is the number of blocks that go over n tokens: about those that the device runs at the same time.
func (x *Train) blocks(n, threads int) int {
	return max(1, min(n, x.t.device.Multiprocessors*min(16, residentThreads/threads)))
}

func (x *Train) shape(n, threads int) Shape {
	return Shape{Grid: [3]uint32{uint32(x.blocks(n, threads)), 1, 1}, Block: [3]uint32{uint32(threads), 1, 1}}
}

// PartialBytes is room for the partial sums of any one launch for n tokens and vectors of the given widths:
// 2·HeadDim for RotateBack.
func (x *Train) PartialBytes(n int, widths ...int) uint64 {
	bytes := 0
	for _, w := range widths {
		// Wider vectors than the plan takes are errors of the launches.
		if p, err := planFor(max(16, w), 512, 8); err == nil {
			bytes = max(bytes, x.blocks(n, p.threads)*(w+4)*4)
		}
	}
	return uint64(bytes)
}

func checkTokens(n int) error {
	if n < 1 || n > 1<<30 {
		return fmt.Errorf("cuda: %d tokens", n)
	}
	return nil
}

// ActivateBack is the backward from the input of the down projection to the results of the up projection.
type ActivateBack struct {
	D    Ptr // f32 [n][FFN]: the gradient of the down projection's input, times its gain
	Rows Ptr // f32 [n][FFN or 2·FFN]: what the up projection gave, then the gate
	// Weight [FFN] is the norm in front of the down projection, 0 for none; with it Partial has PartialBytes.
	Weight, Partial Ptr
	Act             *Act // of the down projection; nil: it has no int8 input
	DYB             Ptr  // bf16 [n][FFN or 2·FFN]: dy of up, then of the gate, times the gain of Input
	Input           Factor
	FFN             int
	Kind            Activation
	Eps             float32
}

type activateBackArgs struct {
	d, rows, weight, scale, inScale, dyb, partial Ptr
	input                                         int8Args
	tokens, ffn, kind                             int32
	eps                                           float32
}

// ActivateBack queues a. The rows of partial sums are those of the result; none without a norm.
func (x *Train) ActivateBack(a *ActivateBack, n int) (PartialSum, error) {
	input, err := a.Input.args()
	if err != nil {
		return PartialSum{}, err
	}
	p, err := planFor(a.FFN, 512, 8)
	if err == nil {
		err = checkTokens(n)
	}
	if err != nil {
		return PartialSum{}, err
	}
	args := &activateBackArgs{
		d: a.D, rows: a.Rows, weight: a.Weight, scale: scaleOf(a.Act), inScale: scaleOf(a.Input.Act), dyb: a.DYB, partial: a.Partial,
		input: input, tokens: int32(n), ffn: int32(a.FFN), kind: int32(a.Kind), eps: a.Eps,
	}
	if a.Weight == 0 {
		return PartialSum{}, Launch(x.t, x.activateBack, x.shape(n, 256), args)
	}
	s := x.shape(n, p.threads)
	return partialSum(a.Partial, s, a.FFN, a.FFN), Launch(x.t, x.activateNorm[p.elements], s, args)
}

// SubNormBack is the backward of an input of a product: of its quantisation, which only takes the gain off,
// and of its norm.
type SubNormBack struct {
	D Ptr // f32 [n][Width]: the gradient of the product's input, times the gain
	// Weight [Width] is the norm's, 0 for none; with it X f32 [n][Width] is what was normed, and Partial has
	// PartialBytes.
	Weight, X, Partial Ptr
	Act                *Act   // of the product; nil: its input is not int8
	Dst                Ptr    // bf16 [n][Width]: the gradient of X
	Input              Factor // any that is to be converted on the way
	Width              int
	Eps                float32
}

type normBackArgs struct {
	d, x, weight, scale, dst, partial Ptr
	input                             int8Args
	tokens, width                     int32
	eps                               float32
	_                                 int32
}

// SubNormBack queues a.
func (x *Train) SubNormBack(a *SubNormBack, n int) (PartialSum, error) {
	input, err := a.Input.args()
	if err != nil {
		return PartialSum{}, err
	}
	p, err := planFor(a.Width, 512, 4)
	if err == nil {
		err = checkTokens(n)
	}
	if err != nil {
		return PartialSum{}, err
	}
	args := &normBackArgs{
		d: a.D, x: a.X, weight: a.Weight, scale: scaleOf(a.Act), dst: a.Dst, partial: a.Partial, input: input,
		tokens: int32(n), width: int32(a.Width), eps: a.Eps,
	}
	s := x.shape(n, p.threads)
	out := PartialSum{}
	if a.Weight != 0 {
		out = partialSum(a.Partial, s, a.Width, a.Width)
	}
	return out, Launch(x.t, x.subNorm[p.elements], s, args)
}

type factorsArgs struct {
	input     int8Args
	tokens, _ int32
}

// Factors converts the int8 vectors of n tokens.
func (x *Train) Factors(f Factor, n int) error {
	a, err := f.args()
	if err == nil {
		err = checkTokens(n)
	}
	if err != nil || a.q == 0 {
		return err
	}
	return Launch(x.t, x.factors, x.shape(n, 128), &factorsArgs{input: a, tokens: int32(n)})
}

type roundArgs struct {
	x, bf16, f16 Ptr
	n            int64
}

// Round writes n numbers of x, a multiple of 4, in bfloat16 and in half precision, where these are not 0.
func (x *Train) Round(bf16, f16, src Ptr, n int) error {
	if n < 4 || n%4 != 0 {
		return fmt.Errorf("cuda: %d numbers to round, expected a multiple of 4", n)
	}
	s := Shape{Grid: [3]uint32{uint32(min((n+1023)/1024, 8*x.t.device.Multiprocessors)), 1, 1}, Block: [3]uint32{256, 1, 1}}
	return Launch(x.t, x.round, s, &roundArgs{src, bf16, f16, int64(n)})
}
