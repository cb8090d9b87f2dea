package cuda

import (
	"errors"
	"fmt"
	"slices"

	"github.com/architehc/nanochat/kernels"
)

// Ops is the kernels on a device. Its methods queue work on the thread that it was loaded
// on. Results are those of kernels.Set, to the bit.
type Ops struct {
	t                               *Thread
	quantize, gemv, gemm, gemmSmall *Kernel
	hopper                          *hopper // nil: not on this device
	notices                         []string

	embed, mix, gather, rotate, attention, activate, headFloat, headQ8 *Kernel
}

// Image gives the compiled code of a kernel source; CodeCache.Cubin is one.
type Image func(name, arch string) ([]byte, error)

// Ops loads the kernels, once for a device.
func (t *Thread) Ops(image Image) (*Ops, error) {
	if t.ops != nil {
		return t.ops, nil
	}
	o := &Ops{t: t}
	err := t.loadKernels(image, "ternary", map[string]**Kernel{"quantize": &o.quantize, "ternary_gemv": &o.gemv, "ternary_gemm": &o.gemm, "ternary_gemm_small": &o.gemmSmall}, "quantize", "ternary_gemv", "ternary_gemm", "ternary_gemm_small")
	if err != nil {
		return nil, err
	}
	err = t.loadKernels(image, "network", map[string]**Kernel{
		"embed": &o.embed, "mix": &o.mix, "gather": &o.gather, "rotate": &o.rotate, "attention": &o.attention,
		"activate": &o.activate, "head_float": &o.headFloat, "head_q8": &o.headQ8,
	}, "head_float", "head_q8")
	if err != nil {
		return nil, err
	}
	mayBeEarly(o.quantize, o.gemv, o.embed, o.headFloat, o.headQ8)
	if err := o.loadHopper(image); err != nil {
		return nil, err
	}
	t.ops = o
	return o, nil
}

// Notices says which kernels for this kind of device are not used, and why. The results are the same
// without them.
func (o *Ops) Notices() []string { return o.notices }

// loadKernels fills in kernels, by name, from the module of a source. Those named in shared may
// ask for as much dynamic shared memory as a block can have.
func (t *Thread) loadKernels(image Image, source string, kernels map[string]**Kernel, shared ...string) error {
	m := t.sources[source]
	if m == nil {
		code, err := image(source, t.device.Arch())
		if err != nil {
			return err
		}
		m, err = t.Load(code)
		if e, ok := errors.AsType[*Error](err); ok && unloadable[e.Code] {
			newer, missing := image(source, t.device.Arch()+Again)
			if missing != nil {
				return fmt.Errorf("%w (and it cannot be compiled here: %w)", err, missing)
			}
			m, err = t.Load(newer)
		}
		if err != nil {
			return err
		}
		t.sources[source] = m
	}
	for name, k := range kernels {
		bytes := 0
		if slices.Contains(shared, name) {
			bytes = t.device.dynamicShared()
		}
		var err error
		if *k, err = t.Kernel(m, name, bytes); err != nil {
			return err
		}
	}
	return nil
}

// unloadable are the codes of a driver that is too old for what it is to load: invalid image, no binary for
// the GPU, invalid PTX, unsupported version.
var unloadable = map[int]bool{200: true, 209: true, 218: true, 222: true}

// dynamicShared is the dynamic shared memory that the launches of some kernels may ask for, in bytes:
// what a block can have without what a kernel has of its own, at most ownShared. The driver
// refuses more when a kernel is loaded.
func (v *Device) dynamicShared() int { return v.SharedBytes - ownShared }

const ownShared = 8 << 10

// Ternary is a ternary matrix on a device, in the layout of kernels.Ternary.
type Ternary struct {
	Rows, Cols, Group int
	Tiles, Scales     Ptr
	Gain              float32
}

// UploadTernary copies a matrix to the device.
func (t *Thread) UploadTernary(w *kernels.Ternary) (d Ternary, err error) {
	d = Ternary{Rows: w.Rows, Cols: w.Cols, Group: w.Group, Gain: w.Gain}
	if d.Tiles, err = t.Alloc(uint64(len(w.Tiles))); err != nil {
		return d, err
	}
	if d.Scales, err = t.Alloc(uint64(2 * len(w.Scales))); err != nil {
		return d, err
	}
	if err = Upload(t, d.Tiles, w.Tiles); err != nil {
		return d, err
	}
	return d, Upload(t, d.Scales, w.Scales)
}

// Act is quantised vectors on a device, in the layout of kernels.Act.
type Act struct {
	Tokens, Cols, Stride, Group int
	Q, Scale, Sums              Ptr
}

// Groups is the number of sums of one token.
func (x *Act) Groups() int { return (x.Cols + x.Group - 1) / x.Group }

// NewAct allocates room for that many tokens.
func (t *Thread) NewAct(tokens, cols, group int) (x Act, err error) {
	x = Act{Tokens: tokens, Cols: cols, Stride: kernels.ActStride(cols), Group: group}
	if x.Q, err = t.Alloc(uint64(tokens * x.Stride)); err != nil {
		return x, err
	}
	if x.Scale, err = t.Alloc(uint64(4 * tokens)); err != nil {
		return x, err
	}
	x.Sums, err = t.Alloc(uint64(4 * tokens * x.Groups()))
	return x, err
}

type quantizeArgs struct {
	norm, q, sums, scale, x, weight Ptr
	n, stride, group, groups        int32
	eps                             float32
	normalize                       int32
}

// Quantize writes the first tokens of x [tokens][x.Cols] to dst: kernels.Set.Quantize of
// each.
func (o *Ops) Quantize(dst *Act, x Ptr, tokens int) error {
	return o.quantizeRows(dst, quantizeArgs{x: x}, tokens)
}

// RMSNormQuantize is Quantize of the RMS norm of x, which goes to norm too unless that
// is 0. A weight of 0 is all ones.
func (o *Ops) RMSNormQuantize(dst *Act, norm, x, weight Ptr, eps float32, tokens int) error {
	return o.quantizeRows(dst, quantizeArgs{norm: norm, x: x, weight: weight, eps: eps, normalize: 1}, tokens)
}

func (o *Ops) quantizeRows(dst *Act, a quantizeArgs, tokens int) error {
	if tokens < 1 || tokens > dst.Tokens {
		return fmt.Errorf("cuda: %d tokens into room for %d", tokens, dst.Tokens)
	}
	if shared := 4 * dst.Cols; shared > o.t.device.dynamicShared() {
		return fmt.Errorf("cuda: a vector of %d elements, at most %d fit", dst.Cols, o.t.device.dynamicShared()/4)
	}
	a.q, a.sums, a.scale = dst.Q, dst.Sums, dst.Scale
	a.n, a.stride, a.group, a.groups = int32(dst.Cols), int32(dst.Stride), int32(dst.Group), int32(dst.Groups())
	return Launch(o.t, o.quantize, Shape{Grid: [3]uint32{uint32(tokens), 1, 1}, Block: [3]uint32{256, 1, 1}, Shared: uint32(4 * dst.Cols)}, &a)
}

type productArgs struct {
	dst, tiles, scales, q, sums, scale                  Ptr
	gain                                                float32
	rows, group, groups, colTiles, stride, ldd, nTokens int32
}

// gemmTokens is the number of tokens from which tensor cores are used.
const gemmTokens = 16

// Ternary computes dst[t*ldd+r] for all rows of w and the first tokens of x:
// kernels.Set.TernaryGEMM.
func (o *Ops) Ternary(dst Ptr, ldd int, w *Ternary, x *Act, tokens int) error {
	if w.Cols != x.Cols || w.Group != x.Group || tokens < 1 || tokens > x.Tokens || ldd < w.Rows {
		return fmt.Errorf("cuda: a matrix [%d][%d] in groups of %d, %d of %d vectors of %d in groups of %d, %d between results",
			w.Rows, w.Cols, w.Group, tokens, x.Tokens, x.Cols, x.Group, ldd)
	}
	if k := o.hopper.kernel(w, x, tokens); k != nil {
		return o.hopperProduct(o.hopper, k, dst, ldd, w, x, tokens, 0)
	}
	if tokens >= gemmTokens && (w.Group%32 == 0 || w.Group >= w.Cols) {
		return o.gemmProduct(dst, ldd, w, x, tokens)
	}
	return o.gemvProduct(dst, ldd, w, x, tokens)
}

func product(dst Ptr, ldd int, w *Ternary, x *Act, tokens int) productArgs {
	side := kernels.TileSide
	return productArgs{
		dst: dst, tiles: w.Tiles, scales: w.Scales, q: x.Q, sums: x.Sums, scale: x.Scale, gain: w.Gain,
		rows: int32(w.Rows), group: int32(w.Group), groups: int32(x.Groups()), colTiles: int32((w.Cols + side - 1) / side),
		stride: int32(x.Stride), ldd: int32(ldd), nTokens: int32(tokens),
	}
}

// gemmProduct queues a product by mma.sync: in pieces of 128 rows by 128 tokens, or of 64 by 64 if
// those would not do for the multiprocessors.
func (o *Ops) gemmProduct(dst Ptr, ldd int, w *Ternary, x *Act, tokens int) error {
	pieces := (w.Rows + 127) / 128 * ((tokens + 127) / 128)
	return o.gemmBy(4*pieces < 3*o.t.device.Multiprocessors, dst, ldd, w, x, tokens)
}

func (o *Ops) gemmBy(small bool, dst Ptr, ldd int, w *Ternary, x *Act, tokens int) error {
	a := product(dst, ldd, w, x, tokens)
	k, side, threads := o.gemm, 128, 256
	if small {
		k, side, threads = o.gemmSmall, 64, 64
	}
	// Bytes of a stage: activations, tiles, and of at most four groups sums and scales.
	stage := side*128 + side*32 + 4*side*4 + 4*side*2
	grid := [3]uint32{uint32((w.Rows + side - 1) / side), uint32((tokens + side - 1) / side), 1}
	return Launch(o.t, k, Shape{Grid: grid, Block: [3]uint32{uint32(threads), 1, 1}, Shared: uint32(4 * stage)}, &a)
}

// gemvShared is the dynamic shared memory of ternary_gemv in bytes: sums of 16 rows by runs of 128
// columns or by groups, and by groups scales and what is to be taken off.
func gemvShared(w *Ternary, groups int) int {
	runs := groups
	if w.Group%128 == 0 || groups == 1 {
		runs = (w.Cols + 127) / 128
	}
	return 4 * (kernels.TileSide*(runs+groups) + groups)
}

// gemvTokens is the most tokens that a block of ternary_gemv goes through, with its weights in
// registers.
const gemvTokens = 4

func (o *Ops) gemvProduct(dst Ptr, ldd int, w *Ternary, x *Act, tokens int) error {
	a := product(dst, ldd, w, x, tokens)
	shared := gemvShared(w, x.Groups())
	if shared > o.t.device.dynamicShared() {
		return fmt.Errorf("cuda: %d columns in groups of %d need %d bytes of shared memory", w.Cols, w.Group, shared)
	}
	// Of 16 rows, 4 times 16 bytes a tile. A thread has four of them, fewer if there are few.
	chunks := 4 * int(a.colTiles)
	threads := min((max(chunks/4, min(chunks, 256))+31)/32*32, 512)
	grid := [3]uint32{uint32((w.Rows + kernels.TileSide - 1) / kernels.TileSide), uint32((tokens + gemvTokens - 1) / gemvTokens), 1}
	return Launch(o.t, o.gemv, Shape{Grid: grid, Block: [3]uint32{uint32(threads), 1, 1}, Shared: uint32(shared)}, &a)
}
