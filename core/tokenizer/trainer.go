package tokenizer

// trainer holds the words of a text as symbols and finds the most frequent pair of
// neighbours, again and again.
//
// Only new pairs ever become more frequent: they hold the id just made. All others
// can only become rarer. So the heap may keep old counts: they are upper bounds, and
// are corrected when they come to the top.
type trainer struct {
	// words holds the words one after the other. A word is known by the place w of
	// its first element: words[w] is its number of symbols, words[w+1] and words[w+2]
	// are the low and high half of its count, and its symbols follow.
	words []int32

	pairs pairTable
	heap  []pairCount

	tokenLen []int32 // bytes of each token
	maxLen   int32
	minCount int64
	fresh    []int32 // pairs that appeared during the current join
}

// pairCount is a pair and how often it occurred when it was put into the heap.
type pairCount struct {
	count int64
	pair  uint64
}

// before orders by falling count, then by ids.
func (a pairCount) before(b pairCount) bool {
	return a.count > b.count || a.count == b.count && a.pair < b.pair
}

// newTrainer takes words with their counts; the table is of no use afterwards.
func newTrainer(words *wordTable, o TrainOptions) *trainer {
	t := &trainer{
		words:    make([]int32, 0, len(words.text)+wordHeader*words.used),
		tokenLen: make([]int32, MinVocab, o.VocabSize), maxLen: int32(o.MaxTokenBytes), minCount: int64(o.MinCount),
	}
	for b := range 256 {
		t.tokenLen[b] = 1
	}
	t.pairs.init()
	for _, s := range words.slots {
		if s.len < 2 {
			continue
		}
		w := len(t.words)
		t.words = append(t.words, int32(s.len), int32(uint32(s.count)), int32(s.count>>32))
		for _, b := range words.text[s.start : s.start+uint64(s.len)] {
			t.words = append(t.words, int32(b))
		}
		sym := t.words[w+wordHeader:]
		for i := range len(sym) - 1 {
			t.appear(pairOf(sym[i], sym[i+1]), w, int64(s.count))
		}
	}
	t.pushFresh()
	return t
}

// wordHeader is the number of elements before the symbols of a word.
const wordHeader = 3

// appear counts one more pair in word w, which occurs n times.
func (t *trainer) appear(pair uint64, w int, n int64) {
	i := t.pairs.find(pair)
	p := &t.pairs.info[i]
	if p.count == 0 && len(p.words) == 0 {
		t.fresh = append(t.fresh, i)
	}
	p.count += n
	if k := len(p.words); k == 0 || p.words[k-1] != w {
		p.words = append(p.words, w)
	}
}

// vanish counts one pair less in a word that occurs n times.
func (t *trainer) vanish(pair uint64, n int64) {
	t.pairs.info[t.pairs.find(pair)].count -= n
}

// pushFresh puts the pairs that have appeared into the heap, except those that may
// never be joined.
func (t *trainer) pushFresh() {
	for _, i := range t.fresh {
		p := &t.pairs.info[i]
		if t.tokenLen[p.pair>>32]+t.tokenLen[uint32(p.pair)] <= t.maxLen && p.count >= t.minCount {
			t.push(pairCount{p.count, p.pair})
		} else {
			p.words = nil
		}
	}
	t.fresh = t.fresh[:0]
}

// best returns the most frequent pair.
func (t *trainer) best() (left, right int32, ok bool) {
	for len(t.heap) > 0 {
		top := t.heap[0]
		now := t.pairs.info[t.pairs.find(top.pair)].count
		if now == top.count {
			return int32(top.pair >> 32), int32(uint32(top.pair)), true
		}
		if now < t.minCount {
			t.drop()
			continue
		}
		t.heap[0].count = now
		t.down(0)
	}
	return 0, 0, false
}

// drop forgets the pair that best found.
func (t *trainer) drop() {
	t.heap[0] = t.heap[len(t.heap)-1]
	t.heap = t.heap[:len(t.heap)-1]
	t.down(0)
}

// join replaces the pair by id, a new token of size bytes, in every word.
func (t *trainer) join(left, right, id int32, size int) {
	t.tokenLen = append(t.tokenLen, int32(size))
	pair := pairOf(left, right)
	i := t.pairs.find(pair)
	words := t.pairs.info[i].words
	t.pairs.info[i].words = nil
	for _, w := range words {
		t.joinWord(w, left, right, id)
	}
	t.pushFresh()
}

func (t *trainer) joinWord(w int, left, right, id int32) {
	head := t.words[w : w+wordHeader : w+wordHeader]
	s := t.words[w+wordHeader:][:head[0]]
	k := 0
	for k+1 < len(s) && (s[k] != left || s[k+1] != right) {
		k++
	}
	if k+1 >= len(s) {
		return // another join has taken the pair since
	}
	count := int64(uint32(head[1])) | int64(head[2])<<32
	n := k         // symbols written back
	after := false // the symbol before n was just made: its old pair with s[i] is gone
	for i := k; i < len(s); {
		if i+1 >= len(s) || s[i] != left || s[i+1] != right {
			s[n] = s[i]
			if after {
				t.appear(pairOf(id, s[n]), w, count)
			}
			n, i, after = n+1, i+1, false
			continue
		}
		if n > 0 {
			if !after {
				t.vanish(pairOf(s[n-1], left), count)
			}
			t.appear(pairOf(s[n-1], id), w, count)
		}
		t.vanish(pairOf(left, right), count)
		if i+2 < len(s) {
			t.vanish(pairOf(right, s[i+2]), count)
		}
		s[n] = id
		n, i, after = n+1, i+2, true
	}
	head[0] = int32(n)
}

func (t *trainer) push(x pairCount) {
	t.heap = append(t.heap, x)
	h := t.heap
	i := len(h) - 1
	for i > 0 && x.before(h[(i-1)/2]) {
		h[i] = h[(i-1)/2]
		i = (i - 1) / 2
	}
	h[i] = x
}

// down moves the entry at i to its place.
func (t *trainer) down(i int) {
	h := t.heap
	if i >= len(h) {
		return
	}
	x := h[i]
	for {
		c := 2*i + 1
		if c >= len(h) {
			break
		}
		if c+1 < len(h) && h[c+1].before(h[c]) {
			c++
		}
		if !h[c].before(x) {
			break
		}
		h[i] = h[c]
		i = c
	}
	h[i] = x
}

// pairInfo is what is known of a pair.
type pairInfo struct {
	pair  uint64
	count int64
	words []int // words that have it or had it, ascending; nil once of no use
}

// pairTable finds pairInfo by pair: an open-addressed hash table of indices.
type pairTable struct {
	info  []pairInfo
	slots []int32 // index+1; length is a power of two
	shift uint
}

func (p *pairTable) init() {
	p.slots, p.shift = make([]int32, 1<<16), 64-16
}

func (p *pairTable) home(pair uint64) int {
	return int((pair ^ pair>>29) * 0x9E3779B97F4A7C15 >> p.shift)
}

// find returns the index of pair, which it enters if it is new.
func (p *pairTable) find(pair uint64) int32 {
	mask := len(p.slots) - 1
	i := p.home(pair)
	for ; p.slots[i] != 0; i = (i + 1) & mask {
		if p.info[p.slots[i]-1].pair == pair {
			return p.slots[i] - 1
		}
	}
	p.info = append(p.info, pairInfo{pair: pair})
	p.slots[i] = int32(len(p.info))
	if 2*len(p.info) > len(p.slots) {
		p.grow()
	}
	return int32(len(p.info)) - 1
}

func (p *pairTable) grow() {
	p.slots = make([]int32, 2*len(p.slots))
	p.shift--
	mask := len(p.slots) - 1
	for k := range p.info {
		i := p.home(p.info[k].pair)
		for p.slots[i] != 0 {
			i = (i + 1) & mask
		}
		p.slots[i] = int32(k) + 1
	}
}
