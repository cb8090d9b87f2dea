package model

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The sorted tokens are all of them, by id and, of one id, in order.
func TestBatchSorter(t *testing.T) {
	c := small()
	s := &batchSorter{tokens: 50, vocab: c.Vocab, context: c.Context, next: make([]int32, c.Vocab)}
	for _, seqLen := range []int{20, 24, 7} {
		b := batchOf(c, 2, seqLen)
		require.NoError(t, s.check(b))
		dst := make([]int32, batchLen(50))
		for range 2 { // what was there before does not matter
			s.put(dst, b)
			at := gpuBatchAt(0, 50)
			field := func(p uint64, n int) []int32 { return dst[p/4:][:n] }
			n := 2 * seqLen
			require.Equal(t, b.Tokens, field(uint64(at.ids), n))
			require.Equal(t, b.Targets, field(uint64(at.targets), n))
			require.Equal(t, b.Starts, field(uint64(at.starts), n))
			ids, tokens := field(uint64(at.sortedIDs), n), field(uint64(at.sortedTokens), n)
			seen := map[int32]bool{}
			for i, id := range ids {
				require.Equal(t, id, b.Tokens[tokens[i]])
				require.False(t, seen[tokens[i]])
				seen[tokens[i]] = true
				if i > 0 {
					require.LessOrEqual(t, ids[i-1], id)
					require.True(t, ids[i-1] < id || tokens[i-1] < tokens[i])
				}
			}
			for i := range dst {
				dst[i] = -7
			}
		}
	}
}

func TestBatchSorterRefuses(t *testing.T) {
	c := small()
	s := &batchSorter{tokens: 40, vocab: c.Vocab, context: 15}
	for _, x := range []struct {
		want   string
		change func(b *TrainBatch)
	}{
		{"takes 1 to 40 tokens", func(b *TrainBatch) { *b = *batchOf(c, 3, 20) }},
		{"takes 1 to 40 tokens", func(b *TrainBatch) { b.Rows, b.SeqLen = 1<<62, 4 }},
		{"takes 1 to 40 tokens", func(b *TrainBatch) { b.Rows = 0 }},
		{"39 targets", func(b *TrainBatch) { b.Targets = b.Targets[:39] }},
		{"target 7 is", func(b *TrainBatch) { b.Targets[7] = int32(c.Vocab) }},
		{"target 7 is -2", func(b *TrainBatch) { b.Targets[7] = -2 }},
		{"token 9 is", func(b *TrainBatch) { b.Tokens[9] = int32(c.Vocab) }},
		{"token 9 is -1", func(b *TrainBatch) { b.Tokens[9] = -1 }},
		{"begins at 1", func(b *TrainBatch) { b.Starts[0] = 1 }},
		{"place 0 of row 1", func(b *TrainBatch) { b.Starts[20] = -1 }},
		{"place 19 of row 0", func(b *TrainBatch) { b.Starts[19] = 3 }},
		{"position 15", func(b *TrainBatch) { clear(b.Starts) }},
	} {
		b := batchOf(c, 2, 20)
		for i := range b.Starts {
			b.Starts[i] = int32(i % 20 / 10 * 10)
		}
		require.NoError(t, s.check(b))
		x.change(b)
		require.ErrorContains(t, s.check(b), x.want)
	}
}
