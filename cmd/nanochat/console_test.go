package main

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// typedInto gives a console chunks and returns what its line editor gets, with ^C for
// every interrupt.
func typedInto(chunks []string) (got string, c *console) {
	c = &console{chunks: make(chan []byte, len(chunks))}
	for _, s := range chunks {
		c.chunks <- []byte(s)
	}
	close(c.chunks)
	b := make([]byte, 256)
	for {
		n, err := c.Read(b)
		got += string(b[:n])
		switch {
		case errors.Is(err, errInterrupt):
			got += "^C"
		case errors.Is(err, io.EOF):
			return got, c
		}
	}
}

func TestPastes(t *testing.T) {
	long := strings.Repeat("x", pasteShort+1)
	for _, test := range []struct{ typed, line, message string }{
		{"plain\x1b[A\x1b\x1b.", "plain\x1b[A\x1b\x1b.", "plain\x1b[A\x1b\x1b."},
		{"a\x1b[200~b c\x1b[201~d", "ab cd", "ab cd"},
		{"a\x1b[200~1\r\n2\r3\n\x1b[201~d", "a[paste 1: 3 lines]d", "a1\n2\n3\nd"},
		{"\x1b[200~\tx\x1b[201~", "[paste 1: 1 line]", "\tx"},
		{"\x1b[200~" + long + "\x1b[201~", "[paste 1: 1 line]", long},
		{"\x1b[200~1\n2\x1b[201~\x1b[200~3\n4\n5\x1b[201~", "[paste 1: 2 lines][paste 2: 3 lines]", "1\n23\n4\n5"},
		{"\x1b[200~\x03\x1b[200~\n\x1b[201~", "[paste 1: 1 line]", "\x03\x1b[200~\n"}, // nothing in a paste is a key
		{"ab\x03cd\x03\x03", "ab^Ccd^C^C", "ab^Ccd^C^C"},
		{"\x1b[200~\x1b[201~", "", ""},
	} {
		for _, n := range []int{1, 2, 3, 5, 1 << 20} {
			var chunks []string
			for rest := test.typed; rest != ""; {
				k := min(n, len(rest))
				chunks = append(chunks, rest[:k])
				rest = rest[k:]
			}
			line, c := typedInto(chunks)
			require.Equal(t, test.line, line, "%q in pieces of %d", test.typed, n)
			require.Equal(t, test.message, c.expand(line))
		}
	}
}

// TestTypingDoesNotDependOnChunks: whatever is typed comes out, however it is cut.
func TestTypingDoesNotDependOnChunks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{pasteBegin, pasteEnd, "\x1b", "[", "2", "0", "~", "a", "ö", "\r", "\x03", "\x1b[2~"}), 0, 12).Draw(t, "parts")
		all := strings.Join(parts, "")
		want, _ := typedInto([]string{all})
		var chunks []string
		for rest := all; rest != ""; {
			n := min(rapid.IntRange(1, 7).Draw(t, "chunk"), len(rest))
			chunks = append(chunks, rest[:n])
			rest = rest[n:]
		}
		got, _ := typedInto(chunks)
		if got != want {
			t.Fatalf("%q: %q in %q", want, got, chunks)
		}
	})
}

func TestVisible(t *testing.T) {
	require.Equal(t, "a\tb\nö␛[31m␇␡\ufffd", visible("a\tb\nö\x1b[31m\a\x7f\u009b"))
}

func TestCommandOf(t *testing.T) {
	for text, want := range map[string][2]string{
		"/help": {"help"}, "/set temperature 0.7": {"set", "temperature 0.7"}, "/save  my file ": {"save", "my file"},
	} {
		name, arg, ok := commandOf(text)
		require.True(t, ok, text)
		require.Equal(t, want, [2]string{name, arg})
	}
	for _, text := range []string{"", "help", "//", "// a comment", "/* a comment", "/usr/bin", "/", "/ x", "/X", "///"} {
		_, _, ok := commandOf(text)
		require.False(t, ok, text)
	}
}

// TestSplit cuts at every place of a text that is between characters, and nowhere else.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.RuneFrom([]rune("aö\n\r世")), 0, 30, -1).Draw(t, "text")
		lines := strings.Split(text, "\n")
		before := 0
		for i, line := range lines {
			content := strings.TrimSuffix(line, "\r")
			chars := 0
			for at := range content {
				chars++
				for _, unit := range []struct {
					col   int
					chars bool
				}{{at + 1, false}, {chars, true}} {
					g, col, err := split("f", text, i+1, unit.col, unit.chars)
					if err != nil || g.before != text[:before+at] || g.after != text[before+at:] || col != at+1 {
						t.Fatalf("%d:%d of %q: %q, %d, %v", i+1, unit.col, text, g, col, err)
					}
				}
			}
			if g, _, err := split("f", text, i+1, 0, false); err != nil || g.before != text[:before+len(content)] {
				t.Fatalf("end of line %d of %q: %q, %v", i+1, text, g, err)
			}
			if _, _, err := split("f", text, i+1, len(content)+2, false); err == nil {
				t.Fatalf("column %d of %q is after its end", len(content)+2, content)
			}
			before += len(line) + 1
		}
		if _, _, err := split("f", text, len(lines)+1, 1, false); err == nil {
			t.Fatalf("%q has no line %d", text, len(lines)+1)
		}
	})
}
