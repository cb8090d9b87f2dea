package cuda

import "fmt"

// This file queues the kernels of src/sums.cu: sums in a fixed order.

// PartialSum adds the columns of Src f32 [Rows][Stride] to Dst f32 [Width].
type PartialSum struct {
	Dst, Src Ptr
	rows     int32
	width    int32
	stride   int32
	_        int32
}

// partialSum is what the blocks of a launch have left at src.
func partialSum(src Ptr, s Shape, width, stride int) PartialSum {
	return PartialSum{Src: src, rows: int32(s.Grid[0]), width: int32(width), stride: int32(stride)}
}

// Into is p with its destination. With 0, or where there are no rows, AddPartials does nothing.
func (p PartialSum) Into(dst Ptr) PartialSum {
	p.Dst = dst
	return p
}

// NewPartialSum describes rows of partial sums, of which the first width columns are added.
func NewPartialSum(dst, src Ptr, rows, width, stride int) PartialSum {
	return PartialSum{Dst: dst, Src: src, rows: int32(rows), width: int32(width), stride: int32(stride)}
}

// partialJobs is the number of sums of one launch.
const partialJobs = 64

type addPartialsArgs struct{ jobs [partialJobs]PartialSum }

// AddPartials adds all sums, in float64 and in a fixed order, in one launch for 64 of them. Their
// destinations must not overlap.
func (x *Train) AddPartials(sums ...PartialSum) error {
	a := &addPartialsArgs{}
	n, width := 0, 0
	flush := func() error {
		if n == 0 {
			return nil
		}
		s := Shape{Grid: [3]uint32{uint32((width + 31) / 32), uint32(n), 1}, Block: [3]uint32{1024, 1, 1}}
		n, width = 0, 0
		return Launch(x.t, x.addPartials.Kernel, s, a)
	}
	for _, p := range sums {
		if p.Dst == 0 || p.rows == 0 {
			continue
		}
		a.jobs[n] = p
		n, width = n+1, max(width, int(p.width))
		if n == partialJobs {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// embedChunk is the number of tokens that a block adds.
const embedChunk = 32

// EmbedBack adds tokens' gradients to the rows of the embedding's, in a fixed order.
type EmbedBack struct {
	G Ptr // f32 [vocab][Dim], added to
	// DX f32 [n][Streams][Dim] and, unless it is 0, DEmbed f32 [n][Dim]: a token's gradient is the sum of
	// its streams and of DEmbed.
	DX, DEmbed Ptr
	// Ids and Tokens int32 [n] are the tokens in order: Ids ascends, and Tokens, the number of each, ascends
	// within an id.
	Ids, Tokens  Ptr
	Partial      Ptr // EmbedBackBytes(n, Dim) of scratch
	Streams, Dim int
}

type embedBackArgs struct {
	g, dx, dembed, ids, tokens, partial Ptr
	n, dim, streams, _                  int32
}

// EmbedBackBytes is the scratch that EmbedBack needs for n tokens.
func EmbedBackBytes(n, dim int) uint64 {
	return uint64((n+embedChunk-1)/embedChunk) * 2 * uint64(dim) * 4
}

// EmbedBack queues e.
func (x *Train) EmbedBack(e *EmbedBack, n int) error {
	if e.Dim < 4 || e.Dim%4 != 0 || e.Streams < 1 {
		return fmt.Errorf("cuda: an embedding of %d elements, expected a multiple of 4", e.Dim)
	}
	if err := checkTokens(n); err != nil {
		return err
	}
	s := Shape{Grid: [3]uint32{uint32((n + embedChunk - 1) / embedChunk), 1, 1}, Block: [3]uint32{uint32(min(256, (e.Dim/4+31)&^31)), 1, 1}}
	a := &embedBackArgs{e.G, e.DX, e.DEmbed, e.Ids, e.Tokens, e.Partial, int32(n), int32(e.Dim), int32(e.Streams), 0}
	if err := Launch(x.t, x.embedBack.Kernel, s, a); err != nil {
		return err
	}
	return Launch(x.t, x.embedJoin.Kernel, s, a)
}
