package tokenizer

import (
	"hash/maphash"
)

// EncodeOptions says how text is read.
type EncodeOptions struct {
	// AddBOS puts the BOS token first, if the vocabulary has one.
	AddBOS bool
	// ParseSpecial turns the text of control tokens, such as <|endoftext|>, into
	// those tokens. Without it they are plain text: use it for trusted text only.
	ParseSpecial bool
}

// Encode appends the ids of text to dst. Once warm it allocates only where dst
// must grow.
func (t *Tokenizer) Encode(dst []int32, text string, o EncodeOptions) []int32 {
	if o.AddBOS && t.role[BOS] >= 0 {
		dst = append(dst, t.role[BOS])
	}
	e := t.take()
	for len(text) > 0 {
		lo, hi, id := t.special.find(text, o.ParseSpecial)
		if lo > 0 {
			if t.spm != nil {
				dst = t.spm.encode(dst, e, text[:lo])
			} else {
				dst = t.encodeText(dst, e, text[:lo])
			}
		}
		if id >= 0 {
			dst = append(dst, id)
		}
		text = text[hi:]
	}
	t.give(e)
	return dst
}

// encodeText appends the ids of text without special tokens.
func (t *Tokenizer) encodeText(dst []int32, e *encoder, text string) []int32 {
	next, class := t.pre.next, t.class
	for len(text) > 0 {
		n := min(next(class, text), maxPiece)
		dst = t.encodePiece(dst, e, text[:n])
		text = text[n:]
	}
	return dst
}

// encodePiece appends the ids of one piece of the pre-split.
func (t *Tokenizer) encodePiece(dst []int32, e *encoder, piece string) []int32 {
	v := t.vocab
	if len(piece) == 1 {
		return append(dst, v.byteID[piece[0]])
	}
	var c *cached
	if len(piece) <= cachedBytes {
		c = &e.cache[maphash.String(v.seed, piece)&(cacheSize-1)]
		if string(c.text[:c.len]) == piece {
			return append(dst, c.ids[:c.n]...)
		}
	}
	start := len(dst)
	if id := int32(-1); t.ignoreMerges {
		if id = v.findString(piece); id >= 0 && v.kind[id] == Normal {
			dst = append(dst, id)
		}
	}
	if len(dst) == start {
		if len(piece) <= shortPiece {
			dst = t.mergeShort(dst, e, piece)
		} else {
			dst = t.mergeLong(dst, e, piece)
		}
	}
	if ids := dst[start:]; c != nil && len(ids) <= len(c.ids) {
		c.len, c.n = uint8(copy(c.text[:], piece)), uint8(copy(c.ids[:], ids))
	}
	return dst
}

const (
	maxPiece    = 1 << 28 // longest piece, in bytes, that is merged as one: places are int32
	shortPiece  = 48      // longest piece, in bytes, for mergeShort
	cacheSize   = 1 << 13 // entries of the cache of pieces, a power of two
	cachedBytes = 30      // longest piece in the cache
)

// cached is the result for one piece; 64 bytes, one cache line.
type cached struct {
	text   [cachedBytes]byte
	len, n uint8
	ids    [8]int32
}

// encoder is the working memory of one Encode call.
type encoder struct {
	cache      *[cacheSize]cached // direct-mapped
	short      [shortPiece]int32
	shortPairs [shortPiece]uint64

	ids        []int32
	prev, next []int32
	pair       []uint64
	heap       []uint64
}

// take returns an idle encoder or a new one.
func (t *Tokenizer) take() *encoder {
	select {
	case e := <-t.idle:
		return e
	default:
		return &encoder{cache: new([cacheSize]cached)}
	}
}

// keepSymbols is the longest piece, in bytes, whose working memory is kept.
const keepSymbols = 1 << 16

// give puts an encoder back.
func (t *Tokenizer) give(e *encoder) {
	if cap(e.ids) > keepSymbols {
		e.ids, e.prev, e.next, e.pair, e.heap = nil, nil, nil, nil, nil
	}
	select {
	case t.idle <- e:
	default:
	}
}

// mergeShort appends the ids of a piece of at most shortPiece bytes. It looks for
// the lowest rank by going over all pairs, which is fastest for few.
func (t *Tokenizer) mergeShort(dst []int32, e *encoder, piece string) []int32 {
	ids, pair := e.short[:len(piece)], e.shortPairs[:len(piece)]
	for i := range ids {
		ids[i] = t.vocab.byteID[piece[i]]
	}
	for i := range len(ids) - 1 {
		pair[i] = t.merges.find(ids[i], ids[i+1])
	}
	pair = pair[:len(ids)-1]
	for {
		best, at := noPair, 0
		for i, p := range pair {
			if p < best {
				best, at = p, i
			}
		}
		if best == noPair {
			return append(dst, ids...)
		}
		ids[at] = int32(uint32(best))
		ids = append(ids[:at+1], ids[at+2:]...)
		pair = append(pair[:at], pair[at+1:]...)
		if at < len(pair) {
			pair[at] = t.merges.find(ids[at], ids[at+1])
		}
		if at > 0 {
			pair[at-1] = t.merges.find(ids[at-1], ids[at])
		}
	}
}

// mergeLong appends the ids of a piece of any length in O(n log n): symbols are a
// linked list, pairs wait in a heap ordered by rank, then place.
func (t *Tokenizer) mergeLong(dst []int32, e *encoder, piece string) []int32 {
	n := len(piece)
	e.ids, e.prev, e.next = grow(e.ids, n), grow(e.prev, n), grow(e.next, n)
	e.pair, e.heap = grow(e.pair, n), e.heap[:0]
	ids, prev, next, pair := e.ids, e.prev, e.next, e.pair
	for i := range n {
		ids[i] = t.vocab.byteID[piece[i]]
		prev[i], next[i] = int32(i-1), int32(i+1)
	}
	for i := range n {
		pair[i] = noPair
		if i+1 < n {
			pair[i] = t.merges.find(ids[i], ids[i+1])
		}
		if pair[i] != noPair {
			e.heap = append(e.heap, pair[i]&^0xffffffff|uint64(i))
		}
	}
	e.heapify()
	for len(e.heap) > 0 {
		top := e.pop()
		at := int32(uint32(top))
		if pair[at]>>32 != top>>32 || pair[at] == noPair {
			continue // a neighbour has changed since
		}
		gone := next[at]
		ids[at] = int32(uint32(pair[at]))
		pair[gone] = noPair
		next[at] = next[gone]
		pair[at] = noPair
		if r := next[at]; int(r) < n {
			prev[r] = at
			if pair[at] = t.merges.find(ids[at], ids[r]); pair[at] != noPair {
				e.push(pair[at]&^0xffffffff | uint64(at))
			}
		}
		if l := prev[at]; l >= 0 {
			if pair[l] = t.merges.find(ids[l], ids[at]); pair[l] != noPair {
				e.push(pair[l]&^0xffffffff | uint64(l))
			}
		}
	}
	for i := int32(0); int(i) < n; i = next[i] {
		dst = append(dst, ids[i])
	}
	return dst
}

// grow returns s with length n.
func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n, n+n/4)
	}
	return s[:n]
}

// heapify orders e.heap as a binary heap, smallest first.
func (e *encoder) heapify() {
	for i := len(e.heap)/2 - 1; i >= 0; i-- {
		e.down(i)
	}
}

func (e *encoder) push(x uint64) {
	e.heap = append(e.heap, x)
	h := e.heap
	i := len(h) - 1
	for i > 0 && h[(i-1)/2] > x {
		h[i] = h[(i-1)/2]
		i = (i - 1) / 2
	}
	h[i] = x
}

func (e *encoder) pop() uint64 {
	h := e.heap
	top := h[0]
	h[0] = h[len(h)-1]
	e.heap = h[:len(h)-1]
	if len(e.heap) > 0 {
		e.down(0)
	}
	return top
}

func (e *encoder) down(i int) {
	h := e.heap
	x := h[i]
	for {
		c := 2*i + 1
		if c >= len(h) {
			break
		}
		if c+1 < len(h) && h[c+1] < h[c] {
			c++
		}
		if h[c] >= x {
			break
		}
		h[i] = h[c]
		i = c
	}
	h[i] = x
}
