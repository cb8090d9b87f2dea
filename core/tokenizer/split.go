package tokenizer

import "strings"

// presplit is one way of cutting text into the pieces that BPE works on.
type presplit struct {
	// name is the value of tokenizer.ggml.pre.
	name string
	// aliases are other values of tokenizer.ggml.pre that mean the same.
	aliases []string
	// pattern is the regular expression that next is equal to.
	pattern string
	// nearest is the name of the most similar form that llama.cpp knows.
	nearest string
	// next returns the length of the first piece of s, which must not be empty.
	next func(t *classTable, s string) int
}

const (
	gpt2Pattern  = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	llamaPattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwenPattern  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	codePattern  = `[\r\n]+[ \t]*|[^\S\r\n]{2,}|(?: |[^\s\p{L}\p{M}\p{N}])?[\p{L}\p{M}][\p{L}\p{M}\p{N}_]*| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s`
)

// presplits lists every form known, by GGUF name. The aliases are those whose
// regular expression in llama.cpp is the same.
var presplits = []*presplit{
	{name: "nanochat", pattern: codePattern, nearest: "qwen2", next: nextCode},
	{name: "gpt-2", aliases: []string{"phi-2", "jina-es", "jina-de", "gigachat"},
		pattern: gpt2Pattern, nearest: "gpt-2", next: nextGPT2},
	{name: "llama-bpe", aliases: []string{"llama3", "llama-v3", "falcon3", "pixtral"},
		pattern: llamaPattern, nearest: "llama-bpe", next: nextLlama},
	{name: "qwen2", aliases: []string{"deepseek-r1-qwen", "stablelm2"},
		pattern: qwenPattern, nearest: "qwen2", next: nextQwen},
}

// presplitNamed finds a form by its GGUF name.
func presplitNamed(name string) *presplit {
	for _, p := range presplits {
		if p.name == name {
			return p
		}
		for _, a := range p.aliases {
			if a == name {
				return p
			}
		}
	}
	return nil
}

// presplitMatching finds a form by its regular expression.
func presplitMatching(pattern string) *presplit {
	for _, p := range presplits {
		if p.pattern == pattern {
			return p
		}
	}
	return nil
}

// presplitNames lists the names for messages.
func presplitNames() string {
	var names []string
	for _, p := range presplits {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

// nextGPT2 returns the length of the first match of gpt2Pattern.
func nextGPT2(t *classTable, s string) int {
	if s[0] == '\'' {
		if n := contraction(s); n > 0 {
			return n
		}
	}
	i := 0
	if s[0] == ' ' && len(s) > 1 {
		i = 1
	}
	c, n := t.at(s[i:])
	if c >= space {
		return spaces(t, s)
	}
	if c == mark {
		c = other
	}
	for i += n; i < len(s); i += n {
		var d class
		if d, n = t.at(s[i:]); d == mark {
			d = other
		}
		if d != c {
			break
		}
	}
	return i
}

// contraction returns the length of 's, 't, 're, 've, 'm, 'll or 'd at the start
// of s, or 0.
func contraction(s string) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case 's', 't', 'm', 'd':
		return 2
	}
	if len(s) >= 3 {
		switch s[1:3] {
		case "re", "ve", "ll":
			return 3
		}
	}
	return 0
}

// contractionFold is contraction without regard to case. The long s (U+017F)
// folds to s.
func contractionFold(s string) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] | 0x20 {
	case 's', 't', 'm', 'd':
		return 2
	}
	if len(s) < 3 {
		return 0
	}
	if s[1:3] == "ſ" {
		return 3
	}
	switch a, b := s[1]|0x20, s[2]|0x20; {
	case (a == 'r' || a == 'v') && b == 'e', a == 'l' && b == 'l':
		return 3
	}
	return 0
}

// spaces returns the length of \s+(?!\S)|\s+ at the start of s: the run of white
// space, less its last character when text follows and one is left.
func spaces(t *classTable, s string) int {
	end := spaceRun(t, s)
	if end == len(s) {
		return end
	}
	if _, n := t.last(s[:end]); n < end {
		return end - n
	}
	return end
}

// spaceRun returns the length of \s* at the start of s.
func spaceRun(t *classTable, s string) int {
	i := 0
	for i < len(s) {
		c, n := t.at(s[i:])
		if c < space {
			break
		}
		i += n
	}
	return i
}

func nextLlama(t *classTable, s string) int { return nextTiktoken(t, s, 3) }
func nextQwen(t *classTable, s string) int  { return nextTiktoken(t, s, 1) }

// nextTiktoken returns the length of the first match of llamaPattern, with at most
// digits characters of class number in one piece.
func nextTiktoken(t *classTable, s string, digits int) int {
	if s[0] == '\'' {
		if n := contractionFold(s); n > 0 {
			return n
		}
	}
	c, i := t.at(s)
	switch c {
	case letter:
		return i + run(t, s[i:], letter)
	case number:
		for k := 1; k < digits && i < len(s); k++ {
			d, n := t.at(s[i:])
			if d != number {
				break
			}
			i += n
		}
		return i
	}
	// Here c is other, mark, space or newline.
	if c != newline {
		if n := run(t, s[i:], letter); n > 0 {
			return i + n
		}
	}
	if c < space || s[0] == ' ' {
		j := 0
		if s[0] == ' ' {
			j = 1
		}
		if n := punctRun(t, s[j:]); n > 0 {
			j += n
			for j < len(s) && (s[j] == '\r' || s[j] == '\n') {
				j++
			}
			return j
		}
	}
	end := spaceRun(t, s)
	if k := strings.LastIndexAny(s[:end], "\r\n"); k >= 0 {
		return k + 1
	}
	return spaces(t, s)
}

// run returns the length of the run of class c at the start of s.
func run(t *classTable, s string, c class) int {
	i := 0
	for i < len(s) {
		d, n := t.at(s[i:])
		if d != c {
			break
		}
		i += n
	}
	return i
}

// punctRun returns the length of [^\s\p{L}\p{N}]* at the start of s.
func punctRun(t *classTable, s string) int {
	i := 0
	for i < len(s) {
		d, n := t.at(s[i:])
		if d != other && d != mark {
			break
		}
		i += n
	}
	return i
}

// nextCode returns the length of the first match of codePattern.
func nextCode(t *classTable, s string) int {
	c, i := t.at(s)
	switch c {
	case newline:
		for i < len(s) && (s[i] == '\r' || s[i] == '\n') {
			i++
		}
		for i < len(s) && (s[i] == ' ' || s[i] == '\t') {
			i++
		}
		return i
	case space:
		if n := run(t, s[i:], space); n > 0 {
			return i + n
		}
		if s[0] != ' ' || len(s) == 1 {
			return i
		}
		d, n := t.at(s[1:])
		switch d {
		case letter, mark:
			return 1 + n + identifierRun(t, s[1+n:])
		case number:
			return 1 + n
		case other:
			return 1 + n + run(t, s[1+n:], other)
		}
		return 1 // before a line break
	case letter, mark:
		return i + identifierRun(t, s[i:])
	case number:
		return i
	}
	if i < len(s) {
		if d, n := t.at(s[i:]); d == letter || d == mark {
			return i + n + identifierRun(t, s[i+n:])
		}
	}
	return i + run(t, s[i:], other)
}

// identifierRun returns the length of [\p{L}\p{M}\p{N}_]* at the start of s.
func identifierRun(t *classTable, s string) int {
	i := 0
	for i < len(s) {
		if s[i] == '_' {
			i++
			continue
		}
		d, n := t.at(s[i:])
		if d != letter && d != mark && d != number {
			break
		}
		i += n
	}
	return i
}
