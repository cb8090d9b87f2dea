package cuda

import (
	"fmt"
	"slices"
	"unsafe"

	"github.com/architehc/nanochat/kernels"
)

// hopper is the products of src/hopper.cu: those of GPUs of compute capability 9.0.
type hopper struct {
	groups128, groups64, long *Kernel
	// least is the fewest pieces of 128 rows by 128 tokens that are worth it, blocks the most blocks:
	// one on each multiprocessor, which go through the pieces.
	least, blocks int
}

const (
	hopperSide    = 128     // rows and tokens of a piece
	hopperThreads = 384     // of a block
	hopperColumns = 1 << 15 // of a group: its sums are below 2^22
	// Shared memory: ten stages of activations and of what their sums begin at, eight of weights, 16
	// times 128 factors, and what aligns them.
	hopperShared = 10*(128*128+2*128*4) + 8*8*(512+64) + 16*128*4 + 1024
)

// tensorMap is the description of a matrix for the copying engine, aligned as C wants it.
type tensorMap [16]uint64

// hopperArgs mirrors HopperArgs, whose size is a multiple of its alignment of 64.
type hopperArgs struct {
	q, tiles, scales                           tensorMap
	dst, sums, scale, failed                   Ptr
	gain                                       float32
	rows, nTokens, group, groups, tiles16, ldd int32
	pairs                                      int32
}

// matrixOfBytes describes a dense matrix of columns by rows bytes, of which boxes of width by height are
// copied; exchanged: in the order in which the tensor cores read, else row by row.
func (t *Thread) matrixOfBytes(m *tensorMap, at Ptr, columns, rows, width, height int, exchanged bool) error {
	const (
		uint8s, plain        = 0, 0
		swizzle128, ahead256 = 3, 3
		zeros                = 0
	)
	var room [32]uint64 // somewhere in it 128 bytes are aligned to 64
	first := (64 - uintptr(unsafe.Pointer(&room))%64) % 64 / 8
	dims, strides := [2]uint64{uint64(columns), uint64(rows)}, [1]uint64{uint64(columns)}
	box, steps := [2]uint32{uint32(width), uint32(height)}, [2]uint32{1, 1}
	swizzle := int32(0)
	if exchanged {
		swizzle = swizzle128
	}
	err := t.check("cuTensorMapEncodeTiled", t.api.TensorMap(unsafe.Pointer(&room[first]), uint8s, 2, at, unsafe.Pointer(&dims), unsafe.Pointer(&strides),
		unsafe.Pointer(&box), unsafe.Pointer(&steps), plain, swizzle, ahead256, zeros))
	*m = tensorMap(room[first : first+16])
	return err
}

// kernel is the one for a product, or nil if another kind is better or the only one.
func (h *hopper) kernel(w *Ternary, x *Act, tokens int) *Kernel {
	if h == nil || x.Q%16 != 0 || x.Stride%16 != 0 || w.Tiles%16 != 0 || w.Scales%16 != 0 || min(w.Group, w.Cols) > hopperColumns {
		return nil
	}
	pieces := (w.Rows + hopperSide - 1) / hopperSide * ((tokens + hopperSide - 1) / hopperSide)
	if pieces < h.least || tokens < hopperSide/2 {
		return nil
	}
	switch {
	case w.Group == 128:
		return h.groups128
	case w.Group == 64:
		return h.groups64
	case w.Group%128 == 0 || w.Group >= w.Cols:
		return h.long
	}
	return nil
}

// hopperProduct queues a product with a kernel of hopper. failed, unless it is 0, is a number
// of 32 bits that becomes 1 if the kernel waits for something that does not come.
func (o *Ops) hopperProduct(h *hopper, k *Kernel, dst Ptr, ldd int, w *Ternary, x *Act, tokens int, failed Ptr) error {
	side := kernels.TileSide
	a := hopperArgs{
		dst: dst, sums: x.Sums, scale: x.Scale, failed: failed, gain: w.Gain,
		rows: int32(w.Rows), nTokens: int32(tokens), group: int32(w.Group), groups: int32(x.Groups()),
		tiles16: int32((w.Cols + side - 1) / side), ldd: int32(ldd),
	}
	if dst%8 == 0 && ldd%2 == 0 {
		a.pairs = 1
	}
	blocks, groups := (w.Rows+side-1)/side, 1 // in a box of scales
	if w.Group < hopperSide && x.Groups() > 1 {
		groups = 2
	}
	for _, m := range []struct {
		to                           *tensorMap
		at                           Ptr
		columns, rows, width, height int
		exchanged                    bool
	}{
		{&a.q, x.Q, x.Stride, tokens, hopperSide, hopperSide, true},
		{&a.tiles, w.Tiles, 64 * int(a.tiles16), blocks, 256, hopperSide / side, false},
		{&a.scales, w.Scales, 32 * x.Groups(), blocks, 32 * groups, hopperSide / side, false},
	} {
		if err := o.t.matrixOfBytes(m.to, m.at, m.columns, m.rows, m.width, m.height, m.exchanged); err != nil {
			return err
		}
	}
	pieces := (w.Rows + hopperSide - 1) / hopperSide * ((tokens + hopperSide - 1) / hopperSide)
	grid := uint32(min(pieces, h.blocks))
	return Launch(o.t, k, Shape{Grid: [3]uint32{grid, 1, 1}, Block: [3]uint32{hopperThreads, 1, 1}, Shared: hopperShared}, &a)
}

// loadHopper loads the kernels of hopper and compares them with the plain kernel. What is wrong is a
// notice, and they are not used.
func (o *Ops) loadHopper(image Image) error {
	v := o.t.device
	if v.Major != 9 || v.dynamicShared() < hopperShared {
		return nil
	}
	if slices.Contains(v.driver.off, FeatureHopper) {
		o.notices = append(o.notices, fmt.Sprintf("the products for %s are turned off by %s; slower ones are used", v.Arch(), OffVariable))
		return nil
	}
	h := &hopper{least: v.Multiprocessors / 2, blocks: max(v.Multiprocessors, 1)}
	err := o.t.loadKernels(image, "hopper", map[string]**Kernel{
		"ternary_wgmma": &h.groups128, "ternary_wgmma_64": &h.groups64, "ternary_wgmma_long": &h.long,
	}, "ternary_wgmma", "ternary_wgmma_64", "ternary_wgmma_long")
	if err == nil {
		err = o.checkHopper(h)
	}
	if err != nil {
		o.notices = append(o.notices, fmt.Sprintf("the products for %s are not used: %v; slower ones are", v.Arch(), err))
		return v.gone() // after some faults nothing can be computed
	}
	o.hopper = h
	return nil
}

// checkHopper computes a product of each kind, with tails of rows, tokens and columns, as ternary_gemv
// does too, and compares the results.
func (o *Ops) checkHopper(h *hopper) (err error) {
	t := o.t
	var parts []Ptr
	defer func() {
		for _, p := range parts {
			if failed := t.Free(p); err == nil {
				err = failed
			}
		}
	}()
	send := func(bytes []byte) Ptr {
		var p Ptr
		if err == nil {
			if p, err = t.Alloc(uint64(len(bytes))); err == nil {
				parts = append(parts, p)
				err = Upload(t, p, bytes)
			}
		}
		return p
	}
	const rows, tokens = 40, 70
	for _, c := range []struct {
		kernel      *Kernel
		cols, group int
	}{{h.groups128, 272, 128}, {h.groups64, 208, 64}, {h.long, 528, 256}} {
		state := uint64(c.group)
		random := func(n int) int { // Knuth's linear congruence; its high bits
			state = state*6364136223846793005 + 1442695040888963407
			return int(state>>33) % n
		}
		w := Ternary{Rows: rows, Cols: c.cols, Group: c.group, Gain: 1.5}
		x := Act{Tokens: tokens, Cols: c.cols, Stride: kernels.ActStride(c.cols), Group: c.group}
		tiles := make([]byte, (rows+15)/16*(c.cols/16)*64)
		for i := range tiles {
			for j := range 4 {
				tiles[i] |= byte(random(3)) << (2 * j)
			}
		}
		scales := make([]byte, (rows+15)/16*x.Groups()*32)
		for i := 0; i < len(scales); i += 2 {
			scales[i], scales[i+1] = byte(random(256)), byte(0x2c+random(8)) // halves near 1/16
		}
		q, sums := make([]byte, tokens*x.Stride), make([]int32, tokens*x.Groups())
		for i := range tokens {
			for j := range c.cols {
				v := random(255) - 127
				q[i*x.Stride+j] = byte(int8(v))
				sums[i*x.Groups()+j/c.group] += int32(v)
			}
		}
		scale := make([]float32, tokens)
		for i := range scale {
			scale[i] = float32(random(1<<24)) / (1 << 24)
		}
		w.Tiles, w.Scales, x.Q = send(tiles), send(scales), send(q)
		x.Sums, x.Scale = send(make([]byte, 4*len(sums))), send(make([]byte, 4*len(scale)))
		zeros := make([]byte, 4*rows*tokens)
		failed, plain, fast := send(zeros[:4]), send(zeros), send(zeros)
		if err != nil {
			return err
		}
		want, got, hung := make([]float32, rows*tokens), make([]float32, rows*tokens), make([]int32, 1)
		for _, f := range []func() error{
			func() error { return Upload(t, x.Sums, sums) },
			func() error { return Upload(t, x.Scale, scale) },
			func() error { return o.gemvProduct(plain, rows, &w, &x, tokens) },
			func() error { return o.hopperProduct(h, c.kernel, fast, rows, &w, &x, tokens, failed) },
			func() error { return Download(t, want, plain) },
			func() error { return Download(t, got, fast) },
			func() error { return Download(t, hung, failed) },
		} {
			if err = f(); err != nil {
				return err
			}
		}
		if hung[0] != 0 {
			return fmt.Errorf("%s waits for something that does not come", c.kernel.name)
		}
		for i := range want {
			if want[i] != got[i] {
				return fmt.Errorf("%s computes %g for row %d of token %d, and not %g", c.kernel.name, got[i], i%rows, i/rows, want[i])
			}
		}
	}
	return nil
}

// gone is why the device cannot be used any more, or nil.
func (v *Device) gone() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.lost
}
