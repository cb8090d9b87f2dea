package infer

// lookup guesses the next tokens of a sequence from the sequence itself: it
// finds where the last few tokens stood before and proposes what followed
// (prompt lookup decoding). Guesses are verified, so they change speed only.
type lookup struct {
	ids []int32 // the sequence so far, owned by the caller
	// last[h] is the index of the token that followed the last n-gram with hash
	// h, 0 if there was none, for n = 3 and n = 2.
	last [2][]int32
	mask uint32

	k    int // tokens to propose, adapted to how many are accepted
	most int
	rest int // steps to sit out
	miss int // failures in a row
}

var gramLen = [2]int{3, 2}

// newLookup makes tables for sequences of up to context tokens and at most
// most proposed tokens.
func newLookup(context, most int) *lookup {
	size := 64
	for size < context {
		size *= 2
	}
	l := &lookup{mask: uint32(size - 1), most: most, k: min(most, 2)}
	for i := range l.last {
		l.last[i] = make([]int32, size)
	}
	return l
}

// extend takes the sequence, which is the one of the last call with tokens added.
func (l *lookup) extend(ids []int32) {
	from := max(len(l.ids), 2)
	l.ids = ids
	for next := from; next < len(ids); next++ {
		for i, n := range gramLen {
			if next >= n {
				l.last[i][l.hash(ids[next-n:next])] = int32(next)
			}
		}
	}
}

// propose appends at most limit tokens to dst.
func (l *lookup) propose(dst []int32, limit int) []int32 {
	if l.rest > 0 {
		l.rest--
		return dst
	}
	end := len(l.ids)
	for i, n := range gramLen {
		if end <= n {
			continue
		}
		tail := l.ids[end-n:]
		at := int(l.last[i][l.hash(tail)])
		if at < n || at >= end || !same(l.ids[at-n:at], tail) {
			continue
		}
		// A repetition shorter than what is proposed goes on with itself.
		base := len(dst)
		for j := range min(l.k, limit) {
			if at+j < end {
				dst = append(dst, l.ids[at+j])
			} else {
				dst = append(dst, dst[base+at+j-end])
			}
		}
		return dst
	}
	return dst
}

// learn adapts to how many of the proposed tokens were right.
func (l *lookup) learn(proposed, accepted int) {
	switch {
	case proposed == 0:
	case accepted == proposed:
		l.miss = 0
		l.k = min(l.k*2, l.most)
	case accepted > 0:
		l.miss = 0
		l.k = max(1, min(accepted+1, l.most))
	default:
		l.k = max(1, l.k/2)
		l.miss = min(l.miss+1, 5)
		l.rest = 1<<l.miss - 2
	}
}

func (l *lookup) hash(gram []int32) uint32 {
	h := uint32(2166136261)
	for _, t := range gram {
		h = (h ^ uint32(t)) * 0x9E3779B1
		h ^= h >> 15
	}
	return h & l.mask
}

func same(a, b []int32) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
