package cuda

// ForceHopper makes products of at least 64 tokens use the kernels of hopper, with so many blocks, and
// says whether they are there.
func (o *Ops) ForceHopper(blocks int) bool {
	if o.hopper == nil {
		return false
	}
	o.hopper.least, o.hopper.blocks = 1, blocks
	return true
}

// SlowKernels takes the kernels of hopper away.
func (o *Ops) SlowKernels() { o.hopper = nil }

// GEMMBy is Ternary of many tokens by one of the two kernels with mma.sync.
func (o *Ops) GEMMBy(small bool, dst Ptr, ldd int, w *Ternary, x *Act, tokens int) error {
	return o.gemmBy(small, dst, ldd, w, x, tokens)
}

// PlainGEMM is Ternary of many tokens by mma.sync.
func (o *Ops) PlainGEMM(dst Ptr, ldd int, w *Ternary, x *Act, tokens int) error {
	return o.gemmProduct(dst, ldd, w, x, tokens)
}
