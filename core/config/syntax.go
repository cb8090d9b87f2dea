package config

import "strings"

// syntaxHint says what to do about a fault of the TOML parser: the first row whose
// words it holds, the last one for all others.
func syntaxHint(fault string) string {
	for _, h := range []struct{ words, hint string }{
		{"already", "remove one of the two"},
		{"strings cannot have new lines", "close the quotes on the same line"},
		{"invalid escape", `write \\ for a backslash in "quotes", or use 'single quotes'`},
		{"array is incomplete", "close the list with ]"},
		{"close table name", "a section is [name] on a line of its own"},
		{"'=' after key", "a line is key = value, or [section]; comments begin with #"},
		{"start of key", "a line is key = value, or [section]; comments begin with #"},
		{"", `a value is a number, true, false, "text" in quotes or a [list], and nothing but a # comment may follow it`},
	} {
		if strings.Contains(fault, h.words) {
			return h.hint
		}
	}
	return ""
}
