package model

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

type bench struct {
	m    *Model
	w    *Work
	p    *Pool
	team *team.Team
}

func newBench(t testing.TB, m *Model, workers, tokens, pages int, kv kernels.KVType) *bench {
	t.Helper()
	tm := team.New(workers, team.Options{})
	t.Cleanup(tm.Close)
	w, err := NewWork(m, tm, tokens)
	require.NoError(t, err)
	p, err := NewPool(m, pages, kv)
	require.NoError(t, err)
	return &bench{m, w, p, tm}
}

// A sequence that goes on from the middle of a copied page gets the logits that it
// gets alone, and the copied page stays what it was.
func TestCopy(t *testing.T) {
	for _, kv := range []kernels.KVType{kernels.KVF16, kernels.KVI8} {
		c := axes()["three kv heads"]
		m := initModel(t, c, 1, nil)
		b := newBench(t, m, 2, 100, 8, kv)
		const shared, length = 37, 90
		a := text(c, length)
		edited := append(append([]int32(nil), a[:shared]...), text(c, length)[:length-shared]...)
		ahead := func(seq *Seq, ids []int32) (out [][]float32) {
			require.NoError(t, b.p.Grow(seq, len(ids)))
			require.NoError(t, m.Forward(b.w, b.p, &Step{Tokens: ids, Seqs: []SeqStep{{seq, len(ids), LogitsAll, false}}}))
			for i := range ids {
				out = append(out, append([]float32(nil), b.w.Logits(i)...))
			}
			return out
		}
		first, second := &Seq{}, &Seq{Len: shared}
		ahead(first, a[:70])
		page, err := b.p.Alloc()
		require.NoError(t, err)
		b.p.Copy(page, first.Pages[0])
		second.Pages = []int32{page}
		require.Equal(t, run(t, m, 1, kv, edited, length)[shared:], ahead(second, edited[shared:]))
		require.Equal(t, run(t, m, 1, kv, a, length)[70:], ahead(first, a[70:]))
	}
}

// Sequences that share steps, in any mixture of prefill and decoding, with any
// choice of logits, get the logits they get alone.
func TestCompany(t *testing.T) {
	for _, name := range []string{"plain", "three kv heads", "4 streams bvn true", "scalars", "relu2"} {
		c := axes()[name]
		t.Run(name, func(t *testing.T) {
			m := initModel(t, c, 1, nil)
			r := rand.New(rand.NewPCG(1, 2))
			const seqs = 5
			var ids [seqs][]int32
			var want [seqs][][]float32
			for s := range ids {
				for range 40 + 20*s {
					ids[s] = append(ids[s], int32(r.IntN(c.Vocab)))
				}
				want[s] = run(t, m, 1, kernels.KVF16, ids[s], len(ids[s]))
			}
			for _, workers := range []int{1, 2} {
				b := newBench(t, m, workers, 64, 20, kernels.KVF16)
				var seq [seqs]Seq
				for left := seqs; left > 0; {
					var st Step
					type row struct{ s, at int }
					var rows []row
					for _, s := range r.Perm(seqs) {
						n := min(r.IntN(20), len(ids[s])-seq[s].Len, 64-len(st.Tokens))
						if n == 0 {
							continue
						}
						l := Logits(r.IntN(3))
						switch l {
						case LogitsLast:
							rows = append(rows, row{s, seq[s].Len + n - 1})
						case LogitsAll:
							for i := range n {
								rows = append(rows, row{s, seq[s].Len + i})
							}
						}
						require.NoError(t, b.p.Grow(&seq[s], n))
						st.Tokens = append(st.Tokens, ids[s][seq[s].Len:seq[s].Len+n]...)
						st.Seqs = append(st.Seqs, SeqStep{&seq[s], n, l, false})
						if seq[s].Len+n == len(ids[s]) {
							left--
						}
					}
					if len(st.Tokens) == 0 {
						continue
					}
					require.NoError(t, m.Forward(b.w, b.p, &st))
					require.Equal(t, len(rows), b.w.Rows())
					for i, x := range rows {
						require.Equal(t, want[x.s][x.at], b.w.Logits(i), "sequence %d, position %d", x.s, x.at)
					}
				}
			}
		})
	}
}

// A prefix that two sequences share, and one that was truncated and written
// again, change nothing.
func TestSharedPrefix(t *testing.T) {
	c := small()
	m := initModel(t, c, 1, nil)
	b := newBench(t, m, 2, 128, 8, kernels.KVI8)
	ids := text(c, 128)
	want := run(t, m, 1, kernels.KVI8, ids, 128)
	var a, s Seq
	require.NoError(t, b.p.Grow(&a, 128))
	require.NoError(t, m.Forward(b.w, b.p, &Step{Tokens: ids, Seqs: []SeqStep{{&a, 128, LogitsNone, false}}}))
	b.p.Retain(a.Pages[0])
	s = Seq{Pages: []int32{a.Pages[0]}, Len: kernels.PageLen}
	require.Equal(t, 2, b.p.Refs(a.Pages[0]))
	require.NoError(t, b.p.Grow(&s, 20))
	require.NoError(t, m.Forward(b.w, b.p, &Step{Tokens: []int32{1, 2, 3}, Seqs: []SeqStep{{&s, 3, LogitsAll, false}}}))
	b.p.Truncate(&s, kernels.PageLen)
	require.NoError(t, b.p.Grow(&s, 20))
	require.NoError(t, m.Forward(b.w, b.p, &Step{Tokens: ids[64:84], Seqs: []SeqStep{{&s, 20, LogitsAll, false}}}))
	for i := range 20 {
		require.Equal(t, want[64+i], b.w.Logits(i))
	}
	b.p.Truncate(&s, 60) // into the shared page
	err := m.Forward(b.w, b.p, &Step{Tokens: ids[:1], Seqs: []SeqStep{{&s, 1, LogitsNone, false}}})
	require.ErrorContains(t, err, "shared")
	b.p.Truncate(&s, 0)
	b.p.Truncate(&a, 0)
	require.Equal(t, b.p.Pages(), b.p.Free())
}

func TestForwardRejects(t *testing.T) {
	c := small()
	m := initModel(t, c, 1, nil)
	b := newBench(t, m, 1, 8, 3, kernels.KVF16)
	s, empty := &Seq{}, &Seq{}
	require.NoError(t, b.p.Grow(s, 8))
	for name, x := range map[string]struct {
		st   Step
		says string
	}{
		"nothing":         {Step{}, "0 tokens"},
		"too many":        {Step{Tokens: make([]int32, 9), Seqs: []SeqStep{{s, 9, LogitsNone, false}}}, "9 tokens"},
		"no sequence":     {Step{Tokens: make([]int32, 2)}, "sequences 0"},
		"nil sequence":    {Step{Tokens: make([]int32, 2), Seqs: []SeqStep{{nil, 2, LogitsNone, false}}}, "sequence 0"},
		"no tokens":       {Step{Tokens: make([]int32, 2), Seqs: []SeqStep{{s, 0, LogitsNone, false}}}, "sequence 0"},
		"tokens left":     {Step{Tokens: make([]int32, 3), Seqs: []SeqStep{{s, 2, LogitsNone, false}}}, "3 tokens, its sequences 2"},
		"sequence twice":  {Step{Tokens: make([]int32, 3), Seqs: []SeqStep{{s, 2, LogitsNone, false}, {s, 1, LogitsNone, false}}}, "twice"},
		"no pages":        {Step{Tokens: make([]int32, 1), Seqs: []SeqStep{{empty, 1, LogitsNone, false}}}, "Pool.Grow"},
		"negative token":  {Step{Tokens: []int32{-1}, Seqs: []SeqStep{{s, 1, LogitsNone, false}}}, "token 0 is -1"},
		"token too large": {Step{Tokens: []int32{0, int32(c.Vocab)}, Seqs: []SeqStep{{s, 2, LogitsNone, false}}}, "token 1 is 211"},
		"foreign page":    {Step{Tokens: []int32{0}, Seqs: []SeqStep{{&Seq{Pages: []int32{2}}, 1, LogitsNone, false}}}, "not in use"},
	} {
		require.ErrorContains(t, m.Forward(b.w, b.p, &x.st), x.says, name)
		require.Zero(t, s.Len, name)
	}
	s.Len = c.Context - 1
	err := m.Forward(b.w, b.p, &Step{Tokens: make([]int32, 2), Seqs: []SeqStep{{s, 2, LogitsNone, false}}})
	var ce *ContextError
	require.ErrorAs(t, err, &ce)
	require.Equal(t, ContextError{c.Context - 1, 2, c.Context}, *ce)

	other := initModel(t, c, 2, nil)
	require.ErrorContains(t, other.Forward(b.w, b.p, &Step{}), "another model")
	require.ErrorIs(t, b.p.Grow(empty, 200), ErrPoolFull)
	require.Empty(t, empty.Pages)
	_, err = NewPool(m, 0, kernels.KVF16)
	require.Error(t, err)
	_, err = NewPool(m, 1, 9)
	require.Error(t, err)
	_, err = NewWork(m, b.team, 0)
	require.Error(t, err)
}

// Once warm a step allocates nothing.
func TestForwardDoesNotAllocate(t *testing.T) {
	for name, c := range axes() {
		m := initModel(t, c, 1, nil)
		for _, n := range []int{1, 2, 9} {
			b := newBench(t, m, 2, n, 2, kernels.KVF16)
			seq := &Seq{}
			require.NoError(t, b.p.Grow(seq, 128))
			st := &Step{Tokens: text(c, n), Seqs: []SeqStep{{seq, n, LogitsAll, false}}}
			got := testing.AllocsPerRun(3, func() {
				seq.Len = 0
				if err := m.Forward(b.w, b.p, st); err != nil {
					t.Fatal(err)
				}
			})
			require.Zero(t, got, "%s, %d tokens", name, n)
		}
	}
}

// requireClose allows for keys and values that round to the other half-precision
// neighbour.
func requireClose(t *testing.T, want, got [][]float32, name string) {
	t.Helper()
	require.Equal(t, len(want), len(got), name)
	for i := range want {
		require.InDeltaSlice(t, want[i], got[i], 1e-3, name)
	}
}

// Query head h reads key/value head h/(Heads/KVHeads).
func TestHeadGroups(t *testing.T) {
	for _, x := range [][2]int{{4, 4}, {4, 2}, {8, 2}, {16, 4}, {6, 3}} {
		c := small()
		c.Heads, c.KVHeads, c.HeadDim = x[0], x[1], 16
		c.Head = config.TypeF16 // which does not round activations to int8
		for seed := range uint64(3) {
			m := initModel(t, c, seed, nil)
			densify(t, m)
			ids := text(c, 20)
			got := run(t, m, 2, kernels.KVF16, ids, 7, 1)
			want := reference(t, m, ids)
			requireClose(t, want, got, fmt.Sprint(x, seed))
		}
	}
}

// At the start of training, before anything moves the streams apart, a network
// with hyper-connections is the plain one.
func TestStreamsStartAsThePlainNetwork(t *testing.T) {
	base := small()
	base.NormEps = 1e-9 // what is left of the streams' different magnitudes
	base.Head = config.TypeF16
	plain := initModel(t, base, 4, nil)
	densify(t, plain)
	ids := text(small(), 30)
	want := run(t, plain, 1, kernels.KVF16, ids, 30)
	for _, n := range []int{2, 4} {
		for _, kind := range []string{config.MHCBvN, config.MHCSinkhorn} {
			for _, dynamic := range []bool{false, true} {
				c := base
				c.Streams, c.MHC, c.MHCDynamic = n, kind, dynamic
				m := initModel(t, c, 4, nil)
				for i := range m.layers {
					l := &m.layers[i]
					a, f := l.mhcAttn, l.mhcFFN
					*l = plain.layers[i]
					l.mhcAttn, l.mhcFFN = a, f
					for _, p := range append(a.Params(), f.Params()...) {
						clear(p.Data)
					}
					a.Init(i)
					f.Init(i)
					a.Prepare(m.set)
					f.Prepare(m.set)
				}
				m.embed, m.head, m.norm = plain.embed, plain.head, plain.norm
				got := run(t, m, 1, kernels.KVF16, ids, 30)
				requireClose(t, want, got, fmt.Sprint(n, kind, dynamic))
			}
		}
	}
}
