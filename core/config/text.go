package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// sizeUnits are the suffixes of ParseSize, longest first. A context of "32k"
// means 32768 positions, so k, M and G count in 1024s; kB, MB and GB in 1000s.
var sizeUnits = []struct {
	suffix string
	factor int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"k", 1 << 10}, {"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40},
}

// ParseSize reads a whole number with an optional unit: "200", "32k" (32768),
// "4MiB", "2GB" (2·10⁹). Underscores may separate digits.
func ParseSize(s string) (int64, error) {
	digits, factor := strings.TrimSpace(s), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(digits, u.suffix); ok {
			digits, factor = strings.TrimSpace(rest), u.factor
			break
		}
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(digits, "_", ""), 10, 64)
	if err != nil || n > math.MaxInt64/factor || n < math.MinInt64/factor {
		return 0, fmt.Errorf("%q is not a whole number with an optional unit (200, 32k, 4MiB)", s)
	}
	return n * factor, nil
}

// Nearest returns the candidate most like word, or "" when none is close: at
// most a third of its letters (and at least two) differ. A dotted candidate is
// also compared by its last part.
func Nearest(word string, candidates []string) string {
	best, bestD := "", math.MaxInt
	last := word[strings.LastIndexByte(word, '.')+1:]
	for _, c := range candidates {
		d := math.MaxInt
		consider := func(distance, limit int) {
			if distance <= limit {
				d = min(d, distance)
			}
		}
		consider(editDistance(word, c), max(2, len(c)/3))
		if i := strings.LastIndexByte(c, '.'); i >= 0 {
			// One more than the parts differ by: a match of the whole key wins.
			part := c[i+1:]
			consider(editDistance(last, part)+1, max(2, len(part)/3)+1)
			if len(last) >= 3 && (strings.HasPrefix(last, part) || strings.HasPrefix(part, last)) {
				d = min(d, 2)
			}
		}
		if d < bestD {
			best, bestD = c, d
		}
	}
	return best
}

// editDistance counts insertions, deletions, substitutions and swaps of
// neighbours (optimal string alignment) that turn a into b.
func editDistance(a, b string) int {
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return prev[len(b)]
}
