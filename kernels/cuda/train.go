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

	leave            map[int]*trainKernel    // by streams
	enter, enterNext map[[2]int]*trainKernel // by streams and elements
	lastNorm         map[int]*trainKernel    // by elements
	activateNorm     map[[2]int]*trainKernel // by gate (0 or 1) and elements
	activate         [2]*trainKernel         // without and with a gate
	subNorm          map[int]*trainKernel    // by elements
	rotate           [3]*trainKernel         // by 64 elements of a head
	rotateBack       [3]*trainKernel
	factors, round   *trainKernel

	addPartials, embedBack, embedJoin *trainKernel
}

// trainKernel is a kernel whose registers let a multiprocessor have that many of its threads, by the launch
// bounds of its source.
type trainKernel struct {
	*Kernel
	resident int
}

// Train loads the kernels.
func (t *Thread) Train(image Image) (*Train, error) {
	x := &Train{t: t, leave: map[int]*trainKernel{}, enter: map[[2]int]*trainKernel{}, enterNext: map[[2]int]*trainKernel{}, lastNorm: map[int]*trainKernel{},
		activateNorm: map[[2]int]*trainKernel{}, subNorm: map[int]*trainKernel{}}
	var err error
	load := func(source, name string, resident int) *trainKernel {
		k := &trainKernel{resident: resident}
		if err == nil {
			err = t.loadKernels(image, source, map[string]**Kernel{name: &k.Kernel})
		}
		return k
	}
	for i, streams := range []int{1, 2, 4} {
		x.leave[streams] = load("streams", fmt.Sprintf("leave_%d", streams), []int{2048, 1024, 512}[i])
		for _, elements := range []int{1, 2, 4} {
			resident := 512
			if elements == 1 {
				resident = []int{1024, 640, 512}[i]
			}
			key := [2]int{streams, elements}
			x.enter[key] = load("streams", fmt.Sprintf("enter_%d_%d", streams, elements), resident)
			x.enterNext[key] = load("streams", fmt.Sprintf("enter_next_%d_%d", streams, elements), resident)
		}
	}
	for i, elements := range []int{1, 2, 4} {
		x.lastNorm[elements] = load("streams", fmt.Sprintf("last_norm_%d", elements), []int{1024, 512, 512}[i])
	}
	for i, elements := range []int{1, 2, 4, 8} {
		x.activateNorm[[2]int{0, elements}] = load("train", fmt.Sprintf("relu2_norm_back_%d", elements), []int{1536, 1024, 512, 512}[i])
		if elements != 2 { // 1,024 threads with four elements each take as much
			x.activateNorm[[2]int{1, elements}] = load("train", fmt.Sprintf("gated_norm_back_%d", elements), []int{1024, 0, 512, 512}[i])
		}
		if elements <= 4 {
			x.subNorm[elements] = load("train", fmt.Sprintf("sub_norm_back_%d", elements), []int{1024, 1024, 512}[i])
		}
	}
	x.activate = [2]*trainKernel{load("train", "relu2_back", 1536), load("train", "gated_back", 1280)}
	x.factors, x.round = load("train", "factors", 2048), load("train", "round_floats", 2048)
	for chunks := 1; chunks <= 2; chunks++ {
		x.rotate[chunks] = load("rotary", fmt.Sprintf("rotate_train_%d", chunks), 1536)
		x.rotateBack[chunks] = load("rotary", fmt.Sprintf("rotate_back_%d", chunks), []int{0, 1280, 768}[chunks])
	}
	x.addPartials = load("sums", "add_partials", 2048)
	x.embedBack, x.embedJoin = load("sums", "embed_back", 1024), load("sums", "embed_join", 1024)
	if err != nil {
		return nil, err
	}
	return x, nil
}

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

// blocksPerMultiprocessor is the most blocks of a kernel that lie on a multiprocessor at the same time, with
// blocks of that many threads.
func (k *trainKernel) blocksPerMultiprocessor(threads int) int {
	return max(1, min(16, k.resident/threads))
}

// shape is a launch of a kernel that goes over n tokens: as many blocks as the device runs at the same time.
func (x *Train) shape(k *trainKernel, n, threads int) Shape {
	blocks := max(1, min(n, x.t.device.Multiprocessors*k.blocksPerMultiprocessor(threads)))
	return Shape{Grid: [3]uint32{uint32(blocks), 1, 1}, Block: [3]uint32{uint32(threads), 1, 1}}
}

// mostResident is the most threads of a kernel with partial sums on a multiprocessor.
const mostResident = 1536

// PartialBytes is room for the partial sums of any one launch for n tokens and vectors of the given widths:
// 2·HeadDim for RotateBack.
func (x *Train) PartialBytes(n int, widths ...int) uint64 {
	bytes := 0
	for _, w := range widths {
		// Wider vectors than the plan takes are errors of the launches.
		if p, err := planFor(max(16, w), 512, 8); err == nil {
			bytes = max(bytes, int(x.shape(&trainKernel{resident: mostResident}, n, p.threads).Grid[0])*(w+4)*4)
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
	// D [n][FFN] is the gradient of the down projection's input, times its gain: float32, or, with HalfD,
	// bfloat16.
	D     Ptr
	HalfD bool
	Rows  Ptr // f32 [n][FFN or 2·FFN]: what the up projection gave, then the gate
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
	tokens, ffn, kind, half                       int32
	eps                                           float32
	_                                             int32
}

// ActivateBack queues a. The rows of partial sums are those of the result; none without a norm.
func (x *Train) ActivateBack(a *ActivateBack, n int) (PartialSum, error) {
	input, err := a.Input.args()
	if err != nil {
		return PartialSum{}, err
	}
	gated, most := 1, 1024
	if a.Kind == ReLU2 {
		gated, most = 0, 768
	}
	p, err := planFor(a.FFN, most, 1)
	if err != nil {
		p, err = planFor(a.FFN, 512, 8)
	}
	if err == nil {
		err = checkTokens(n)
	}
	if err != nil {
		return PartialSum{}, err
	}
	args := &activateBackArgs{
		d: a.D, rows: a.Rows, weight: a.Weight, scale: scaleOf(a.Act), inScale: scaleOf(a.Input.Act), dyb: a.DYB, partial: a.Partial,
		input: input, tokens: int32(n), ffn: int32(a.FFN), kind: int32(a.Kind), half: flag(a.HalfD), eps: a.Eps,
	}
	k := x.activate[gated]
	if a.Weight == 0 {
		return PartialSum{}, Launch(x.t, k.Kernel, x.shape(k, n, 256), args)
	}
	k = x.activateNorm[[2]int{gated, p.elements}]
	s := x.shape(k, n, p.threads)
	return partialSum(a.Partial, s, a.FFN, a.FFN), Launch(x.t, k.Kernel, s, args)
}

// flag is a boolean argument of a kernel.
func flag(on bool) int32 {
	if on {
		return 1
	}
	return 0
}

// SubNormBack is the backward of an input of a product: of its quantisation, which only takes the gain off,
// and of its norm.
type SubNormBack struct {
	// D [n][Width] is the gradient of the product's input, times the gain: float32, or, with HalfD, bfloat16.
	D     Ptr
	HalfD bool
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
	tokens, width, half               int32
	eps                               float32
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
		tokens: int32(n), width: int32(a.Width), half: flag(a.HalfD), eps: a.Eps,
	}
	k := x.subNorm[p.elements]
	s := x.shape(k, n, p.threads)
	out := PartialSum{}
	if a.Weight != 0 {
		out = partialSum(a.Partial, s, a.Width, a.Width)
	}
	return out, Launch(x.t, k.Kernel, s, args)
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
	return Launch(x.t, x.factors.Kernel, x.shape(x.factors, n, 128), &factorsArgs{input: a, tokens: int32(n)})
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
	return Launch(x.t, x.round.Kernel, s, &roundArgs{src, bf16, f16, int64(n)})
}
