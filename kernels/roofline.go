package kernels

// Peak is a loop of independent instructions that runs at a limit of the CPU.
type Peak struct {
	// Name is the instruction, such as "vpdpbusd" (512 bits wide where the CPU
	// has it) or "sdot".
	Name string
	// Ops is the number of operations of one iteration; a multiply-add is two.
	Ops int
	// Run runs n iterations on the calling thread.
	Run func(n int)
}

// Limits is the loops that measure what this CPU can do, for a roofline.
type Limits struct {
	// Dot8 is the int8 dot product, FMA is float32; DotBF16 has a nil Run where the CPU
	// has no such instruction.
	Dot8, FMA, DotBF16 Peak
	// Read loads all of buf once with the widest loads.
	Read func(buf []byte)
}

// Roofline is this CPU's limits. ok is false in builds without C, which have none.
func Roofline() (l Limits, ok bool) { return limits() }
