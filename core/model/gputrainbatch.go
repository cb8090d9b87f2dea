package model

import (
	"fmt"

	"github.com/architehc/nanochat/kernels/cuda"
)

// gpuBatch is where the numbers of a micro batch stand on the device, int32 [tokens] each.
type gpuBatch struct {
	ids, targets, starts cuda.Ptr
	// The tokens by id: the ids, ascending, and the number of each token, ascending within an
	// id.
	sortedIDs, sortedTokens cuda.Ptr
}

// batchFields is the number of fields of a gpuBatch.
const batchFields = 5

// batchStride is the numbers of a field. Each begins where an allocation could.
func batchStride(tokens int) int { return (tokens + 63) &^ 63 }

// batchLen is the numbers that a micro batch takes.
func batchLen(tokens int) int { return batchFields * batchStride(tokens) }

// gpuBatchAt is the batch that begins at p.
func gpuBatchAt(p cuda.Ptr, tokens int) gpuBatch {
	next := cuda.Ptr(4 * batchStride(tokens))
	return gpuBatch{p, p + next, p + 2*next, p + 3*next, p + 4*next}
}

// batchSorter puts micro batches into the form that the device reads.
type batchSorter struct {
	tokens, vocab, context int
	next                   []int32 // [vocab]
}

// check reports what b has wrong.
func (s *batchSorter) check(b *TrainBatch) error {
	if err := b.check(s.tokens); err != nil {
		return err
	}
	for i := range b.Tokens {
		id, target, in, start := b.Tokens[i], b.Targets[i], int32(i%b.SeqLen), b.Starts[i]
		switch {
		case id < 0 || int(id) >= s.vocab:
			return fmt.Errorf("model: token %d is %d, the vocabulary has 0 to %d", i, id, s.vocab-1)
		case target < -1 || int(target) >= s.vocab:
			return fmt.Errorf("model: target %d is %d, expected -1 (none) or 0 to %d", i, target, s.vocab-1)
		case start != in && (in == 0 || start != b.Starts[i-1]):
			return fmt.Errorf("model: place %d of row %d says that its document begins at %d", in, i/b.SeqLen, start)
		case int(in-start) >= s.context:
			return fmt.Errorf("model: place %d of row %d is position %d of its document, the model has 0 to %d", in, i/b.SeqLen, in-start, s.context-1)
		}
	}
	return nil
}

// put writes b to dst, [batchLen(tokens)].
func (s *batchSorter) put(dst []int32, b *TrainBatch) {
	var field [batchFields][]int32
	for i := range field {
		field[i] = dst[i*batchStride(s.tokens):][:len(b.Tokens)]
	}
	copy(field[0], b.Tokens)
	copy(field[1], b.Targets)
	copy(field[2], b.Starts)
	ids, tokens := field[3], field[4]
	clear(s.next)
	for _, id := range b.Tokens {
		s.next[id]++
	}
	at := int32(0)
	for id, n := range s.next {
		s.next[id] = at
		at += n
	}
	for i, id := range b.Tokens {
		to := s.next[id]
		ids[to], tokens[to] = id, int32(i)
		s.next[id]++
	}
}
