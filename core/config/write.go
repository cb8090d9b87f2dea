package config

import (
	"fmt"
	"strconv"
	"strings"
)

// TOML is c as a file: every key, the derived ones too, so that Parse gives an
// equal configuration whatever defaults and presets become.
func (c *Config) TOML() string {
	var b strings.Builder
	at := ""
	for i := range fields {
		f := &fields[i]
		section, last, ok := cutLast(f.key)
		if f.key == "preset" {
			continue // its keys are all here
		}
		if ok && section != at {
			at = section
			fmt.Fprintf(&b, "\n[%s]\n", section)
		}
		fmt.Fprintf(&b, "%s = %s\n", last, f.text(c))
	}
	return b.String()
}

// text is the value in c as TOML.
func (f *field) text(c *Config) string {
	switch p := f.at(c).(type) {
	case *string:
		return quote(*p)
	case *bool:
		return strconv.FormatBool(*p)
	case *int:
		return strconv.Itoa(*p)
	case *int64:
		return strconv.FormatInt(*p, 10)
	case *float64:
		return strconv.FormatFloat(*p, 'g', -1, 64)
	}
	return ""
}

// quote is s as a basic string of TOML.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Difference is a key whose values differ.
type Difference struct {
	Key, Old, New string
}

// Differences lists the keys whose values in c are not those in old.
func (c *Config) Differences(old *Config) []Difference {
	var out []Difference
	for i := range fields {
		f := &fields[i]
		if f.key == "preset" {
			continue
		}
		if a, b := f.text(old), f.text(c); a != b {
			out = append(out, Difference{f.key, a, b})
		}
	}
	return out
}
