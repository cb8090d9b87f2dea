package tokenizer

import (
	"math/bits"
)

// noPair marks two neighbours that do not merge. It is larger than any real pair.
const noPair = ^uint64(0)

// merges is an open-addressed hash table from a pair of ids to rank<<32 | merged id.
// Lower ranks merge first.
type merges struct {
	slots []mergeSlot
	shift uint
	// list holds the pairs by rank, for writing the vocabulary.
	list []uint64
}

type mergeSlot struct{ pair, value uint64 }

func newMerges(n int) *merges {
	width := bits.Len(uint(2*n + 1))
	m := &merges{slots: make([]mergeSlot, 1<<width), shift: uint(64 - width), list: make([]uint64, 0, n)}
	for i := range m.slots {
		m.slots[i].pair = noPair
	}
	return m
}

// pairOf packs two neighbours into a key. Ids are not negative, so no key is noPair.
func pairOf(left, right int32) uint64 { return uint64(uint32(left))<<32 | uint64(uint32(right)) }

// home is where the search for pair starts.
func (m *merges) home(pair uint64) int {
	h := (pair ^ pair>>29) * 0x9E3779B97F4A7C15
	return int(h >> m.shift)
}

// add appends the merge of the next rank and reports whether the pair is new.
func (m *merges) add(left, right, merged int32) bool {
	pair := pairOf(left, right)
	i := m.home(pair)
	for m.slots[i].pair != noPair {
		if m.slots[i].pair == pair {
			return false
		}
		i = (i + 1) & (len(m.slots) - 1)
	}
	m.slots[i] = mergeSlot{pair, uint64(len(m.list))<<32 | uint64(uint32(merged))}
	m.list = append(m.list, pair)
	return true
}

// find returns rank<<32 | merged id of two neighbours, or noPair.
func (m *merges) find(left, right int32) uint64 {
	pair := pairOf(left, right)
	for i := m.home(pair); ; i = (i + 1) & (len(m.slots) - 1) {
		s := &m.slots[i]
		if s.pair == pair {
			return s.value
		}
		if s.pair == noPair {
			return noPair
		}
	}
}

// addMerge enters the merge of tokens a and b, given by their bytes, into m.
// buf is scratch space.
func (v *vocab) addMerge(m *merges, a, b, buf []byte) *Error {
	left, right := v.find(a), v.find(b)
	if left < 0 || right < 0 {
		missing := a
		if left >= 0 {
			missing = b
		}
		return errf("", "its part %s is not a token", quote(missing)).hint("the merges belong to another vocabulary")
	}
	buf = append(append(buf[:0], a...), b...)
	merged := v.find(buf)
	if merged < 0 {
		return errf("", "its result %s is not a token", quote(buf)).hint("the merges belong to another vocabulary")
	}
	if !m.add(left, right, merged) {
		return errf("", "the pair %s %s is listed twice", quote(a), quote(b))
	}
	return nil
}
