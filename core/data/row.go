package data

import (
	"fmt"

	"github.com/architehc/nanochat/core/internal/rng"
)

// layout is how a stream of documents is cut into rows; it is the same for every
// epoch.
type layout struct {
	data     *Dataset
	seqLen   int
	ordered  bool
	seed     uint64
	bos, eos int32 // put around documents; -1: none
	final    int32 // put at the end of the stream; -1: none
	pad      int32
	extra    int   // tokens around a document
	length   int64 // of the stream of one epoch
	rows     uint64
}

func newLayout(d *Dataset, seqLen int, ordered bool, seed uint64) layout {
	v := &d.vocab
	l := layout{data: d, seqLen: seqLen, ordered: ordered, seed: seed, bos: v.BOS, eos: v.EOS, final: -1}
	if l.bos >= 0 && l.bos == l.eos {
		// One token both ends a document and begins the next one.
		l.eos, l.final = -1, l.bos
	}
	l.pad = max(v.EOS, v.BOS, 0)
	for _, id := range []int32{l.bos, l.eos} {
		if id >= 0 {
			l.extra++
		}
	}
	l.length = d.tokens + int64(l.extra)*int64(d.Docs())
	if l.final >= 0 {
		l.length++
	}
	// The last token of the stream is a target only.
	l.rows = uint64((l.length - 1 + int64(seqLen) - 1) / int64(seqLen))
	return l
}

// A rowMaker builds rows in memory of its own.
type rowMaker struct {
	*layout
	ids    []int32 // seqLen+1 tokens of the stream; below 0: padding
	starts []int32 // for each of them, where in the row its document begins
	fim    *fimMaker
}

// make fills one row: tokens, targets and starts, each of length seqLen. row
// counts through all epochs; plan is that of its epoch. It returns the number of
// targets and the bytes of text they stand for.
func (m *rowMaker) make(plan *epochPlan, row uint64, tokens, targets, starts []int32) (count int, text int64, err error) {
	in := row % m.rows
	if !m.ordered {
		in = plan.rows.at(in)
	}
	m.read(plan, int64(in)*int64(m.seqLen))
	if m.fim != nil {
		m.fim.rng.SetState(rng.State{Seed: m.seed, Stream: fimStream | row&(1<<56-1)})
		m.eachSegment(m.fim.apply)
	}
	sizes := m.data.vocab.Bytes
	for i := range tokens {
		id, next := m.ids[i], m.ids[i+1]
		if int(max(id, next)) >= len(sizes) {
			return 0, 0, fmt.Errorf("id %d in a vocabulary of %d", max(id, next), len(sizes))
		}
		tokens[i], starts[i] = max(id, 0), m.starts[i]
		if id < 0 {
			tokens[i] = m.pad
		}
		// What begins a document cannot be predicted, unless it also ends the one before.
		begins := int(m.starts[i+1]) == i+1
		if next < 0 || id < 0 || begins && (m.final < 0 || m.fim != nil && id == m.final) {
			targets[i] = -1
			continue
		}
		targets[i] = next
		count++
		text += int64(sizes[next])
	}
	return count, text, nil
}

// read takes seqLen+1 tokens of the stream from place at on.
func (m *rowMaker) read(p *epochPlan, at int64) {
	m.ids, m.starts = m.ids[:0], m.starts[:0]
	want := m.seqLen + 1
	for k := p.find(at); k < len(p.ends) && len(m.ids) < want; k++ {
		begin := len(m.ids)
		shard, lo, hi := m.data.doc(p.doc(k))
		skip := int(at - p.start(k)) // tokens of this document that lie before the row
		if m.bos >= 0 {
			if skip == 0 {
				m.ids = append(m.ids, m.bos)
			} else {
				skip--
			}
		}
		n := min(hi-lo, skip+want-len(m.ids))
		if skip < n {
			m.ids = shard.read(m.ids, lo+skip, lo+n)
		}
		if m.eos >= 0 && len(m.ids) < want && n == hi-lo {
			m.ids = append(m.ids, m.eos)
		}
		for len(m.starts) < len(m.ids) {
			m.starts = append(m.starts, int32(begin))
		}
		at = p.ends[k]
	}
	if len(m.ids) < want && m.final >= 0 {
		m.ids = append(m.ids, m.final)
		m.starts = append(m.starts, int32(len(m.starts)))
	}
	for len(m.ids) < want { // the end of the epoch: each pad stands alone
		m.ids = append(m.ids, -1)
		m.starts = append(m.starts, int32(len(m.starts)))
	}
}

// eachSegment calls f for the text tokens of each document in the row.
func (m *rowMaker) eachSegment(f func(ids []int32)) {
	for lo := 0; lo < len(m.ids); {
		hi := lo + 1
		for hi < len(m.ids) && int(m.starts[hi]) == lo {
			hi++
		}
		a, b := lo, hi
		if a < b && m.ids[a] == m.bos {
			a++
		}
		if a < b && m.eos >= 0 && m.ids[b-1] == m.eos {
			b--
		}
		if a < b && m.ids[a] >= 0 {
			f(m.ids[a:b])
		}
		lo = hi
	}
}

// blank fills a row after the last one.
func (m *rowMaker) blank(tokens, targets, starts []int32) {
	for i := range tokens {
		tokens[i], targets[i], starts[i] = m.pad, -1, int32(i)
	}
}
