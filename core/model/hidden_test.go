package model

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/kernels"
)

// Hidden states are what the head multiplies, they do not depend on the step they are
// computed in, and asking for them changes no logits.
func TestHidden(t *testing.T) {
	q8 := small()
	q8.Head = config.TypeQ8_0
	for name, c := range map[string]config.Model{"plain": axes()["plain"], "streams": axes()["4 streams bvn true"], "int8 head": q8} {
		t.Run(name, func(t *testing.T) {
			m := initModel(t, c, 1, nil)
			r := rand.New(rand.NewPCG(3, 4))
			const seqs, length = 4, 70
			var ids [seqs][]int32
			var logits, hidden [seqs][][]float32
			one := newBench(t, m, 1, 1, 8, kernels.KVF16)
			for s := range ids {
				ids[s] = make([]int32, length)
				var seq Seq
				for i := range ids[s] {
					ids[s][i] = int32(r.IntN(c.Vocab))
					require.NoError(t, one.p.Grow(&seq, 1))
					require.NoError(t, m.Forward(one.w, one.p, &Step{Tokens: ids[s][i : i+1], Seqs: []SeqStep{{&seq, 1, LogitsLast, true}}}))
					h := slices.Clone(one.w.Hidden(0, 0))
					row := slices.Clone(one.w.Logits(0))
					hidden[s], logits[s] = append(hidden[s], h), append(logits[s], row)
					want := make([]float32, c.Vocab)
					if m.int8Head() {
						act := kernels.NewAct(1, c.Dim, c.Dim)
						act.N = 1
						act.Scale[0] = m.set.Quantize(act.Q[:act.Stride], act.Sums, h, act.Group)
						m.set.Q8GEMV(want, &m.head, act, 0, c.Vocab)
					} else {
						m.set.DenseGEMV(want, &m.head, h, 0, c.Vocab)
					}
					require.Equal(t, want, row)
				}
				one.p.Truncate(&seq, 0)
			}
			for _, workers := range []int{1, 2} {
				b := newBench(t, m, workers, 40, 20, kernels.KVF16)
				var seq [seqs]Seq
				for range 200 {
					var st Step
					var from [seqs]int
					var order []int
					for _, s := range r.Perm(seqs) {
						n := min(r.IntN(16), length-seq[s].Len, 40-len(st.Tokens))
						if n == 0 {
							continue
						}
						require.NoError(t, b.p.Grow(&seq[s], n))
						from[s] = seq[s].Len
						order = append(order, s)
						st.Tokens = append(st.Tokens, ids[s][seq[s].Len:seq[s].Len+n]...)
						st.Seqs = append(st.Seqs, SeqStep{&seq[s], n, Logits(r.IntN(3)), r.IntN(2) == 0})
					}
					if len(st.Tokens) == 0 {
						break
					}
					require.NoError(t, m.Forward(b.w, b.p, &st))
					row := 0
					for i, s := range order {
						q := st.Seqs[i]
						rows := map[Logits]int{LogitsLast: 1, LogitsAll: q.N}[q.Logits]
						for j := range q.N {
							if q.Hidden {
								require.Equal(t, hidden[s][from[s]+j], b.w.Hidden(i, j))
							}
							if j >= q.N-rows {
								require.Equal(t, logits[s][from[s]+j], b.w.Logits(row), "sequence %d, token %d", s, j)
								row++
							}
						}
					}
					require.Equal(t, row, b.w.Rows())
				}
				for s := range seq {
					require.Equal(t, length, seq[s].Len)
				}
			}
		})
	}
}
