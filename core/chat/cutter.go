package chat

import "strings"

// cutter finds the first stop text in a stream of text and holds back what may
// be the beginning of one.
type cutter struct {
	stops []string
	held  string
}

// add appends text and returns what can be given out. found says that a stop text
// came: the returned text ends right before it, and the stream is over. Of several
// the one that is complete first counts, of those the longest: so the result
// does not depend on how the text is cut into calls.
func (c *cutter) add(text string) (out string, found bool) {
	all := c.held + text
	start, end := -1, len(all)+1
	for _, s := range c.stops {
		i := strings.Index(all, s)
		if e := i + len(s); i >= 0 && (e < end || e == end && i < start) {
			start, end = i, e
		}
	}
	if start >= 0 {
		c.held = ""
		return all[:start], true
	}
	keep := 0
	for _, s := range c.stops {
		for n := min(len(s)-1, len(all)); n > keep; n-- {
			if strings.HasSuffix(all, s[:n]) {
				keep = n
				break
			}
		}
	}
	c.held = all[len(all)-keep:]
	return all[:len(all)-keep], false
}

// rest returns what was held back, at the end of the stream.
func (c *cutter) rest() string {
	held := c.held
	c.held = ""
	return held
}
