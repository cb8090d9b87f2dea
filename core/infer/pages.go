package infer

import (
	"slices"

	"github.com/architehc/nanochat/kernels"
)

const (
	pageLen = kernels.PageLen
	nothing = int32(-1)
)

// pageCache shares pages of the key-value cache between sequences.
//
// A full page whose tokens are known is linked into a tree: the path from the
// root spells the tokens of a sequence, 64 at a time. A sequence that starts
// with the same tokens uses the same pages. Pages that no sequence uses stay
// until the memory is needed, the longest unused first. A sequence that parts from
// the others inside a page gets a copy of it.
//
// All arrays have one entry per page, so nothing is allocated after newPageCache.
type pageCache struct {
	b    backend
	node []node
	// tokens of linked pages [pages][pageLen].
	tokens []int32
	// buckets are the heads of the hash chains over (parent, tokens).
	buckets []int32
	// oldest and newest are the ends of the list of linked pages without users.
	// A page stands behind all of its children there: users of a child use the
	// parent too, and release gives back the children first. So the oldest page
	// has no children.
	oldest, newest int32
	// used pages have users; unused are in the list; the rest is free.
	used, unused int
	evicted      int64
	off          bool
}

type node struct {
	parent, chain int32 // chain is the next in the bucket
	users         int32
	linked        bool
	older, newer  int32
}

func newPageCache(b backend, off bool) *pageCache {
	n := b.pages()
	size := 1
	for size < 2*n {
		size *= 2
	}
	return &pageCache{b: b, node: make([]node, n), tokens: make([]int32, n*pageLen),
		buckets: slices.Repeat([]int32{nothing}, size), oldest: nothing, newest: nothing, off: off}
}

// available is the number of pages that alloc can give.
func (c *pageCache) available() int { return len(c.node) - c.used }

// alloc returns a page with one user. It evicts the longest unused page if
// none is free; ok is false if all have users.
func (c *pageCache) alloc() (page int32, ok bool) {
	page, ok = c.b.alloc()
	if !ok {
		if c.oldest == nothing {
			return 0, false
		}
		c.evict(c.oldest)
		if page, ok = c.b.alloc(); !ok {
			return 0, false
		}
	}
	c.node[page] = node{users: 1}
	c.used++
	return page, true
}

// acquire adds a user.
func (c *pageCache) acquire(page int32) {
	n := &c.node[page]
	n.users++
	if n.users == 1 {
		c.used++
		c.removeUnused(page)
	}
}

// release removes a user from each page of a sequence.
func (c *pageCache) release(pages []int32) {
	for i := len(pages) - 1; i >= 0; i-- {
		page := pages[i]
		n := &c.node[page]
		n.users--
		if n.users > 0 {
			continue
		}
		c.used--
		if n.linked {
			n.older, n.newer = c.newest, nothing
			if c.newest == nothing {
				c.oldest = page
			} else {
				c.node[c.newest].newer = page
			}
			c.newest = page
			c.unused++
		} else {
			c.b.free(page)
		}
	}
}

// match appends the pages that hold the beginning of ids, in whole pages, to
// dst and adds a user to each.
func (c *pageCache) match(dst, ids []int32) []int32 {
	parent := nothing
	for len(ids) >= pageLen {
		page := c.find(parent, ids[:pageLen])
		if page == nothing {
			break
		}
		c.acquire(page)
		dst = append(dst, page)
		parent, ids = page, ids[pageLen:]
	}
	return dst
}

// matched is the number of pages that match would append.
func (c *pageCache) matched(ids []int32) (n, unused int) {
	parent := nothing
	for len(ids) >= pageLen {
		page := c.find(parent, ids[:pageLen])
		if page == nothing {
			break
		}
		if c.node[page].users == 0 {
			unused++
		}
		n++
		parent, ids = page, ids[pageLen:]
	}
	return n, unused
}

// fewest is how many positions a copied page must save: computing fewer in a step is
// about as fast.
const fewest = 8

// split gives a sequence, whose last full page is parent, a copy of the page whose
// tokens have the longest beginning of ids in common, with n positions of it.
// ok is false if none has enough of them or no page can be had.
func (c *pageCache) split(parent int32, ids []int32) (page int32, n int, ok bool) {
	from := nothing
	for i := range c.node {
		if c.node[i].linked && c.node[i].parent == parent {
			if m := common(c.own(int32(i)), ids); m > n {
				from, n = int32(i), m
			}
		}
	}
	if n < fewest {
		return 0, 0, false
	}
	c.acquire(from) // alloc must not evict it
	if page, ok = c.alloc(); ok {
		c.b.copy(page, from)
	}
	c.release([]int32{from})
	return page, n, ok
}

// insert links a full page that has a user. If a page with the same contents
// is linked already, that one is returned with the user moved to it.
func (c *pageCache) insert(parent, page int32, tokens []int32) int32 {
	if c.off {
		return page
	}
	if same := c.find(parent, tokens); same != nothing {
		if same != page {
			c.acquire(same)
			c.release([]int32{page})
		}
		return same
	}
	copy(c.tokens[int(page)*pageLen:], tokens)
	b := c.bucket(parent, tokens)
	n := &c.node[page]
	n.parent, n.linked, n.chain = parent, true, c.buckets[b]
	c.buckets[b] = page
	return page
}

func (c *pageCache) find(parent int32, tokens []int32) int32 {
	if c.off {
		return nothing
	}
	page := c.buckets[c.bucket(parent, tokens)]
	for page != nothing {
		if c.node[page].parent == parent && slices.Equal(c.own(page), tokens) {
			break
		}
		page = c.node[page].chain
	}
	return page
}

func (c *pageCache) own(page int32) []int32 { return c.tokens[int(page)*pageLen:][:pageLen] }

func (c *pageCache) bucket(parent int32, tokens []int32) int {
	h := uint64(uint32(parent)) + 1
	for _, t := range tokens {
		h = (h ^ uint64(uint32(t))) * 0x9E3779B97F4A7C15
		h ^= h >> 29
	}
	return int(h & uint64(len(c.buckets)-1))
}

// evict unlinks and frees a page without users and children.
func (c *pageCache) evict(page int32) {
	c.removeUnused(page)
	n := &c.node[page]
	at := &c.buckets[c.bucket(n.parent, c.own(page))]
	for *at != page {
		at = &c.node[*at].chain
	}
	*at = n.chain
	n.linked = false
	c.b.free(page)
	c.evicted++
}

func (c *pageCache) removeUnused(page int32) {
	n := &c.node[page]
	if n.older == nothing {
		c.oldest = n.newer
	} else {
		c.node[n.older].newer = n.newer
	}
	if n.newer == nothing {
		c.newest = n.older
	} else {
		c.node[n.newer].older = n.older
	}
	c.unused--
}
