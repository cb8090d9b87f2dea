package data

import (
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// firstString returns the first field of names that is a string, or a list whose
// strings are joined with " AND ": files under several licences name them so.
func firstString(fields map[string]json.RawMessage, names []string) (string, bool) {
	for _, name := range names {
		raw, ok := fields[name]
		if !ok || len(raw) == 0 {
			continue
		}
		switch raw[0] {
		case '"':
			var s string
			if json.Unmarshal(raw, &s) == nil {
				return s, true
			}
		case '[':
			var list []string
			if json.Unmarshal(raw, &list) == nil && len(list) > 0 {
				return strings.Join(list, " AND "), true
			}
		}
	}
	return "", false
}

// invalidUTF8 reports whether the field that firstString takes has bytes that are
// not UTF-8.
func invalidUTF8(fields map[string]json.RawMessage, names []string) bool {
	for _, name := range names {
		if raw, ok := fields[name]; ok && len(raw) > 0 && raw[0] == '"' {
			return !utf8.Valid(raw)
		}
	}
	return false
}

// allStrings returns every string value of a JSON text, in order, a line each.
func allStrings(dec *json.Decoder) (string, error) {
	var b strings.Builder
	type level struct{ object, value bool } // value: the next token is a value
	var stack []level
	for {
		tok, err := dec.Token()
		if err != nil {
			return b.String(), err
		}
		top := len(stack) - 1
		if d, ok := tok.(json.Delim); ok {
			switch d {
			case '{', '[':
				stack = append(stack, level{object: d == '{'})
				continue
			}
			stack = stack[:top]
		} else if top >= 0 && stack[top].object && !stack[top].value {
			stack[top].value = true // that was a key
			continue
		} else if s, ok := tok.(string); ok {
			b.WriteString(s)
			b.WriteByte('\n')
		}
		if len(stack) == 0 {
			return b.String(), nil
		}
		stack[len(stack)-1].value = false
	}
}
