package data

import "slices"

// An overlap finds texts that share n consecutive words with evaluation data.
// Only letters, digits and underscores make words and case does not matter, so
// that other formatting does not hide a copy.
type overlap struct {
	n      int
	grams  map[uint64]struct{}
	filter [1 << 14]uint64 // a bit for the low 20 bits of each gram: most texts share none
	docs   int             // evaluation documents
	short  int             // those with no n-gram of their own
}

func newOverlap(n int) *overlap { return &overlap{n: n, grams: map[uint64]struct{}{}} }

// learn enters the n-grams of an evaluation text. Grams in which fewer than half
// of the words are different ones of two or more characters with a letter are
// left out: lists of numbers, the alphabet and repetitions are found in texts that
// have nothing to do with each other.
func (o *overlap) learn(text string) {
	o.docs++
	var words []uint64
	var alpha []bool
	eachWord(text, false, true, func(h uint64, a bool) {
		words, alpha = append(words, h), append(alpha, a)
	})
	found := false
	var distinct []uint64
	o.eachGram(words, func(at int, gram uint64) bool {
		distinct = distinct[:0]
		for i := at; i < at+o.n; i++ {
			if alpha[i] && !slices.Contains(distinct, words[i]) {
				distinct = append(distinct, words[i])
			}
		}
		if 2*len(distinct) >= o.n {
			o.grams[gram] = struct{}{}
			o.filter[gram>>6&(1<<14-1)] |= 1 << (gram & 63)
			found = true
		}
		return true
	})
	if !found {
		o.short++
	}
}

// found reports whether text shares a gram. words is memory to use; the grown
// slice is returned for the next call.
func (o *overlap) found(text string, words []uint64) (bool, []uint64) {
	words = words[:0]
	if len(o.grams) == 0 {
		return false, words
	}
	eachWord(text, false, true, func(h uint64, _ bool) { words = append(words, h) })
	hit := false
	o.eachGram(words, func(_ int, gram uint64) bool {
		if o.filter[gram>>6&(1<<14-1)]>>(gram&63)&1 != 0 {
			_, hit = o.grams[gram]
		}
		return !hit
	})
	return hit, words
}

// eachGram calls f with the hash of each n consecutive words until it returns
// false. The hash is a polynomial that is updated from one place to the next.
func (o *overlap) eachGram(words []uint64, f func(at int, gram uint64) bool) {
	const p = 0x9e3779b97f4a7c15
	top := uint64(1)
	for range o.n {
		top *= p
	}
	h := uint64(0)
	for i, w := range words {
		h = h*p + w
		if i >= o.n {
			h -= top * words[i-o.n]
		}
		if i >= o.n-1 && !f(i-o.n+1, mix(h)) {
			return
		}
	}
}
