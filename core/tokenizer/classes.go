package tokenizer

import (
	"sync"
	"unicode/utf8"
)

// class is what the pre-split scanners need to know of a character.
type class uint8

// The order matters: every class from space on is white space.
const (
	other   class = iota // punctuation, symbols, controls, unassigned, invalid bytes
	letter               // \p{L}
	mark                 // \p{M}
	number               // \p{N}
	space                // \s except \r and \n
	newline              // \r and \n
)

// classRange says that the code points lo to hi, both included, are of class c.
type classRange struct {
	lo, hi rune
	c      class
}

// classTable gives the class of any code point in two steps: page[r>>8] is an
// index into blocks, blocks[page][r&255] the class.
type classTable struct {
	page   [0x1100]uint8
	blocks [][256]class
}

// classes returns the table, built from classRanges on first use.
var classes = sync.OnceValue(func() *classTable {
	t := &classTable{}
	index := map[[256]class]uint8{}
	var block [256]class
	next := 0 // first range that may reach into the block
	for p := range t.page {
		block = [256]class{}
		lo := rune(p) << 8
		for next < len(classRanges) && classRanges[next].hi < lo {
			next++
		}
		for i := next; i < len(classRanges) && classRanges[i].lo <= lo+255; i++ {
			r := classRanges[i]
			for c := max(r.lo, lo); c <= min(r.hi, lo+255); c++ {
				block[c-lo] = r.c
			}
		}
		if p == 0 {
			block['\n'], block['\r'] = newline, newline
		}
		n, ok := index[block]
		if !ok {
			n = uint8(len(t.blocks))
			index[block] = n
			t.blocks = append(t.blocks, block)
		}
		t.page[p] = n
	}
	return t
})

// at returns the class and the length in bytes of the first character of s,
// which must not be empty.
func (t *classTable) at(s string) (class, int) {
	if b := s[0]; b < utf8.RuneSelf {
		return t.blocks[0][b], 1
	}
	r, n := utf8.DecodeRuneInString(s)
	if r == utf8.RuneError && n == 1 {
		return other, 1
	}
	return t.blocks[t.page[r>>8]][r&255], n
}

// last returns the class and the length in bytes of the last character of s,
// which must not be empty.
func (t *classTable) last(s string) (class, int) {
	r, n := utf8.DecodeLastRuneInString(s)
	if r == utf8.RuneError && n == 1 {
		return other, 1
	}
	return t.blocks[t.page[r>>8]][r&255], n
}
