package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/architehc/nanochat/core/config"
)

// size is a flag that accepts 200, 32k or 4MiB.
type size int64

// UnmarshalText reads the flag.
func (s *size) UnmarshalText(b []byte) error {
	n, err := config.ParseSize(string(b))
	*s = size(n)
	return err
}

// or0 is the value of a flag that may be left out.
func (s *size) or0() int {
	if s == nil {
		return 0
	}
	return int(*s)
}

// writeJSON writes v as indented JSON and a line break.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// A pair is one line of a description.
type pair struct{ name, value string }

// writePairs writes aligned lines and leaves out empty values.
func writePairs(w io.Writer, pairs []pair) error {
	width := 0
	for _, p := range pairs {
		if p.value != "" {
			width = max(width, len(p.name))
		}
	}
	var b strings.Builder
	for _, p := range pairs {
		if p.value != "" {
			fmt.Fprintf(&b, "%-*s  %s\n", width, p.name, p.value)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// bytesText is a size for people, in binary units.
func bytesText(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB"} {
		v /= 1 << 10
		if v < 1<<10 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// countText is a number of weights for people: 123.5 M.
func countText(n int64) string {
	switch v := float64(n); {
	case n >= 1e9:
		return fmt.Sprintf("%.2f G", v/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f M", v/1e6)
	case n >= 1e4:
		return fmt.Sprintf("%.1f k", v/1e3)
	}
	return fmt.Sprint(n)
}

// plural is n and the noun: 1 thread, 2 threads.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
