package data

// eachWord calls f with the hash of each word of text. A word is a run of
// letters, digits, underscores and bytes beyond ASCII; with punctuation, so is
// every other byte that is not white space. With fold, the case of ASCII letters
// does not matter. alpha says that the word has a letter and is longer than that.
func eachWord(text string, punctuation, fold bool, f func(hash uint64, alpha bool)) {
	const (
		offset = 14695981039346656037 // FNV-1a, 64 bits
		prime  = 1099511628211
	)
	for i := 0; i < len(text); {
		class := byteClass[text[i]]
		if class < classDigit {
			if punctuation && class == classPunct {
				f(mix((offset^uint64(text[i]))*prime), false)
			}
			i++
			continue
		}
		h, alpha, start := uint64(offset), false, i
		for ; i < len(text) && byteClass[text[i]] >= classDigit; i++ {
			c := text[i]
			letter := byteClass[c] == classLetter
			alpha = alpha || letter
			if fold && letter && c < 0x80 {
				c |= 0x20
			}
			h = (h ^ uint64(c)) * prime
		}
		f(mix(h), alpha && i-start > 1)
	}
}

const (
	classSpace = iota
	classPunct
	classDigit // and the underscore
	classLetter
)

var byteClass = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case c|0x20 >= 'a' && c|0x20 <= 'z' || c >= 0x80:
			t[c] = classLetter
		case c >= '0' && c <= '9' || c == '_':
			t[c] = classDigit
		case c > ' ' && c != 0x7f:
			t[c] = classPunct
		}
	}
	return t
}()
