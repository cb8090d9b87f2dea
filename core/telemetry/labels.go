package telemetry

import (
	"strings"
	"sync"
	"unicode/utf8"
)

// A label bounds the values of a label of metrics: what clients send must not be able
// to make a server's memory grow. The first values pass, further ones are "other".
type label struct {
	mu   sync.Mutex
	most int
	seen map[string]bool
}

// labelLength is the most bytes of a value.
const labelLength = 64

func newLabel(most int, known ...string) *label {
	l := &label{most: most, seen: map[string]bool{}}
	for _, v := range known {
		l.seen[v] = true
	}
	return l
}

// of is v, valid as a label, or "other".
func (l *label) of(v string) string {
	if len(v) > labelLength {
		v = v[:labelLength]
	}
	if !utf8.ValidString(v) {
		v = strings.ToValidUTF8(v, "")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.seen[v] {
		if len(l.seen) >= l.most {
			return "other"
		}
		l.seen[v] = true
	}
	return v
}
