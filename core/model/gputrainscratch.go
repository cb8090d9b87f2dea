package model

import (
	"github.com/architehc/nanochat/kernels/cuda"
)

// gpuScratchSpace is what a step works in besides the tape. What is used in different
// parts of a step shares memory.
type gpuScratchSpace struct {
	// Of the whole step.
	initial   cuda.Ptr    // embeddings, [tokens][Dim], with ResidualScalars
	dx        cuda.Ptr    // the streams' gradient, [tokens][Streams·Dim]
	dembed    cuda.Ptr    // [tokens][Dim], with ResidualScalars
	din       cuda.Ptr    // gradient of an input of width Dim, bf16 [tokens][Dim]
	coefGrads [2]cuda.Ptr // of the mixing around attention and the feed-forward part, [tokens][24]
	partial   [5]cuda.Ptr // sums of blocks of tokens: of ffnSub, ffnNorm, attnSub, qNorm and kNorm, attnNorm
	embedPart cuda.Ptr    // scratch of EmbedBack
	results   cuda.Ptr    // [tokens][4]
	finalAct  cuda.Act    // in front of an int8 head
	final     cuda.Ptr    // in front of a float head: the mean of the streams, then its norm, [tokens][Dim]

	// Of the forward.
	u    cuda.Ptr // what a layer function reads where that depends on the token, [tokens][Dim]
	qkvY cuda.Ptr // where the tape does not keep it
	y    cuda.Ptr // the same

	// Of the head.
	logits, dz        cuda.Ptr // f32, bf16 [block][vocabStride]
	headX, headFactor cuda.Ptr // f16, bf16 [tokens][Dim]

	// Of the backward of a layer.
	dy, x      cuda.Ptr // bf16: both factors of dyᵀ·x
	dout       cuda.Ptr // bf16 [tokens][q]: of the result of attention
	wideGrad   cuda.Ptr // bf16 [tokens][FFN]
	datt       cuda.Ptr // bf16 [tokens][q]
	dq, dk, dv cuda.Ptr // bf16 [tokens][q], [tokens][kv], [tokens][kv]
	delta      cuda.Ptr // f32 [Heads][tokens]

	sums, own        cuda.Ptr // f64 [lossSums]: of the group, of this device
	terms, evalTerms cuda.Ptr // f32 [lossTerms]
	flags            cuda.Ptr // i32 [quantised]: weights that are not finite
}

// numbers of a step's small results.
const (
	lossSums  = 6 // f64: see cuda.Loss.Sum
	lossTerms = 5 // f32: scale, z, entropy, smoothing, cap
)

// layOutScratch places the scratch and the batches.
func (n *gpuNet) layOutScratch() {
	r := &n.regions[gpuScratch]
	floats := func(width int) cuda.Ptr { return r.take(4 * n.tokens * width) }
	halves := func(width int) cuda.Ptr { return r.take(2 * n.tokens * width) }
	if n.cfg.ResidualScalars {
		n.initial, n.dembed = floats(n.dim), floats(n.dim)
	}
	n.dx, n.din, n.results = floats(n.streams), halves(n.dim), floats(4)
	if n.cfg.Streams > 1 {
		n.coefGrads = [2]cuda.Ptr{floats(cuda.CoefFloats), floats(cuda.CoefFloats)}
	}
	if n.int8Head {
		n.finalAct = n.actIn(gpuScratch, n.dim, n.dim)
	}
	if !n.int8Head {
		n.final = floats(n.dim)
	}
	for i, width := range []int{n.ffn, n.dim, n.q, 2 * n.cfg.HeadDim, n.dim} {
		n.partial[i] = r.take(n.partialBytes(width))
	}
	n.embedPart = r.take(int(cuda.EmbedBackBytes(n.tokens, n.dim)))
	n.sums, n.own = r.take(8*lossSums), r.take(8*lossSums)
	n.terms, n.evalTerms = r.take(4*lossTerms), r.take(4*lossTerms)
	n.flags = r.take(4 * n.quantised())

	shared := r.at
	if !n.cfg.QKNorm {
		n.qkvY = floats(n.stack)
	}
	if n.cfg.Streams == 1 {
		n.y = floats(n.dim)
	} else if n.dynamic() {
		n.u = floats(n.dim)
	}
	r.at = shared
	n.logits, n.dz = r.take(4*n.block*n.vocabStride()), r.take(2*n.block*n.vocabStride())
	n.headX, n.headFactor = halves(n.dim), halves(n.dim)
	r.at = shared
	n.dy, n.x = halves(max(n.stack, n.wide, n.dim)), halves(max(n.dim, n.ffn, n.q))
	n.datt, n.dout = halves(n.q), halves(n.q)
	gradients := r.at
	n.wideGrad = halves(n.ffn)
	r.at = gradients
	n.dq, n.dk, n.dv, n.delta = halves(n.q), halves(n.kv), halves(n.kv), floats(n.cfg.Heads)
	r.at = r.end

	b := &n.regions[gpuBatches]
	size := 4 * batchLen(n.tokens)
	n.batch = gpuBatchAt(b.take(size), n.tokens)
	for i := range n.slots {
		n.slots[i] = b.take(size * n.micros)
	}
	n.evalSlot = b.take(size)
}

// quantised is the number of stacks and tables that an update quantises.
func (s *gpuShape) quantised() int {
	if s.cfg.TieEmbeddings {
		return 4*s.cfg.Layers + 1
	}
	return 4*s.cfg.Layers + 2
}

// vocabStride is the numbers between the logits of two tokens: products like rows that begin
// at multiples of 16 bytes.
func (s *gpuShape) vocabStride() int { return (s.vocab + 7) &^ 7 }

// partialBytes is room for the partial sums of a vector's gradient, as cuda.Train has it.
func (s *gpuShape) partialBytes(width int) int {
	return min(s.tokens, s.processors*warpsOfProcessor) * (width + 4) * 4
}

// warpsOfProcessor is the most blocks of a launch that work on one multiprocessor.
const warpsOfProcessor = 48
