package tokenizer

import "strings"

// specials finds special tokens in text: the leftmost, and of those that start
// at one place the longest. It is a trie over bytes; node 0 is the root.
type specials struct {
	nodes []trieNode
	first [256]bool // bytes a special token may start with
	// lone is the only byte a special token may start with, or -1 if there are more.
	lone int
	// always reports that there are tokens that are found without asking.
	always bool
}

type trieNode struct {
	edges   []trieEdge
	id      int32 // token that ends here, or -1
	control bool  // it counts only when special tokens are parsed
}

type trieEdge struct {
	b  byte
	to int32
}

// add enters a token. Empty texts match nothing and are left out.
func (s *specials) add(text []byte, id int32, control bool) {
	if len(text) == 0 {
		return
	}
	if s.nodes == nil {
		s.nodes = []trieNode{{id: -1}}
		s.lone = int(text[0])
	}
	if s.lone != int(text[0]) {
		s.lone = -1
	}
	s.first[text[0]] = true
	s.always = s.always || !control
	at := int32(0)
	for _, b := range text {
		next := s.step(at, b)
		if next < 0 {
			next = int32(len(s.nodes))
			s.nodes = append(s.nodes, trieNode{id: -1})
			s.nodes[at].edges = append(s.nodes[at].edges, trieEdge{b, next})
		}
		at = next
	}
	if n := &s.nodes[at]; n.id < 0 {
		n.id, n.control = id, control
	}
}

// step follows the edge of byte b, or returns -1.
func (s *specials) step(at int32, b byte) int32 {
	for _, e := range s.nodes[at].edges {
		if e.b == b {
			return e.to
		}
	}
	return -1
}

// find returns the place and id of the first special token in text; id is -1 and
// lo is len(text) where there is none.
func (s *specials) find(text string, parseSpecial bool) (lo, hi int, id int32) {
	if s.nodes == nil || !parseSpecial && !s.always {
		return len(text), len(text), -1
	}
	for i := 0; i < len(text); i++ {
		if s.lone >= 0 {
			k := strings.IndexByte(text[i:], byte(s.lone))
			if k < 0 {
				break
			}
			i += k
		} else if !s.first[text[i]] {
			continue
		}
		id, hi = -1, 0
		at := int32(0)
		for j := i; j < len(text); j++ {
			if at = s.step(at, text[j]); at < 0 {
				break
			}
			if n := &s.nodes[at]; n.id >= 0 && (parseSpecial || !n.control) {
				id, hi = n.id, j+1
			}
		}
		if id >= 0 {
			return i, hi, id
		}
	}
	return len(text), len(text), -1
}
