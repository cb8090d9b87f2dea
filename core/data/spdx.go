package data

import (
	"slices"
	"strings"
)

// permitted reports whether a licence expression can be satisfied with the
// licences in allowed: one side of OR, both sides of AND. "/" and "," are read as
// OR, as in old Cargo.toml files. What cannot be read is not permitted.
func permitted(expression string, allowed []string) bool {
	r := strings.NewReplacer("/", " OR ", ",", " OR ", "(", " ( ", ")", " ) ")
	p := spdx{words: strings.Fields(r.Replace(expression)), allowed: allowed}
	ok := p.or()
	return ok && !p.bad && len(p.words) == 0
}

type spdx struct {
	words   []string
	allowed []string
	bad     bool
	depth   int
}

func (p *spdx) next(word string) bool {
	if len(p.words) > 0 && strings.EqualFold(p.words[0], word) {
		p.words = p.words[1:]
		return true
	}
	return false
}

func (p *spdx) or() bool {
	ok := p.and()
	for p.next("OR") {
		ok = p.and() || ok
	}
	return ok
}

func (p *spdx) and() bool {
	ok := p.one()
	for p.next("AND") {
		ok = p.one() && ok
	}
	return ok
}

func (p *spdx) one() bool {
	if p.next("(") {
		if p.depth++; p.depth > 100 {
			p.bad, p.words = true, nil
			return false
		}
		ok := p.or()
		p.bad = p.bad || !p.next(")")
		p.depth--
		return ok
	}
	if len(p.words) == 0 {
		p.bad = true
		return false
	}
	id := p.words[0]
	p.words = p.words[1:]
	if p.next("WITH") { // an exception permits more, never less
		if len(p.words) == 0 {
			p.bad = true
			return false
		}
		p.words = p.words[1:]
	}
	return slices.ContainsFunc(p.allowed, func(a string) bool { return strings.EqualFold(a, id) })
}
