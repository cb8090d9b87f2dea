package sample

// history counts the tokens that penalties see. Its size follows the
// vocabulary and the window; nothing is allocated after it is made.
type history struct {
	// slot[id] is 1 + the index of id in seen, 0 if it is not there.
	slot []int32
	seen []count
	// ring holds the last tokens, oldest at start once it is full. It is empty if
	// the window is the whole context.
	ring  []int32
	start int
}

type count struct {
	id int32
	// total counts prompt and generated tokens, generated the latter only.
	total, generated int32
}

// generatedBit marks generated tokens in the ring; ids are never negative.
const generatedBit = -1 << 31

func newHistory(vocab, window int) *history {
	n := vocab
	if window > 0 && window < vocab {
		n = window
	}
	h := &history{slot: make([]int32, vocab), seen: make([]count, 0, n+1)}
	if window > 0 {
		h.ring = make([]int32, 0, window)
	}
	return h
}

func (h *history) reset() {
	for _, c := range h.seen {
		h.slot[c.id] = 0
	}
	h.seen, h.ring, h.start = h.seen[:0], h.ring[:0], 0
}

func (h *history) add(id int32, generated bool) {
	s := h.slot[id]
	if s == 0 {
		h.seen = append(h.seen, count{id: id})
		s = int32(len(h.seen))
		h.slot[id] = s
	}
	c := &h.seen[s-1]
	c.total++
	entry := id
	if generated {
		c.generated++
		entry |= generatedBit
	}
	switch n := cap(h.ring); {
	case n == 0:
	case len(h.ring) < n:
		h.ring = append(h.ring, entry)
	default:
		old := h.ring[h.start]
		h.ring[h.start] = entry
		h.start++
		if h.start == n {
			h.start = 0
		}
		h.remove(old&^generatedBit, old < 0)
	}
}

func (h *history) remove(id int32, generated bool) {
	s := h.slot[id]
	c := &h.seen[s-1]
	c.total--
	if generated {
		c.generated--
	}
	if c.total > 0 {
		return
	}
	last := h.seen[len(h.seen)-1]
	h.seen[s-1] = last
	h.slot[last.id] = s
	h.slot[id] = 0
	h.seen = h.seen[:len(h.seen)-1]
}
