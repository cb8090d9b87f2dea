package server

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDocumentedLimits: the table in docs/SERVER.md is the one that is checked.
// NANOCHAT_GOLDEN=write writes it anew.
func TestDocumentedLimits(t *testing.T) {
	const doc = "../../docs/SERVER.md"
	b, err := os.ReadFile(doc)
	require.NoError(t, err)
	before, rest, found := strings.Cut(string(b), "<!-- limits -->\n")
	require.True(t, found)
	table, after, found := strings.Cut(rest, "<!-- end -->")
	require.True(t, found)
	want := DefaultLimits.Markdown(512)
	if os.Getenv("NANOCHAT_GOLDEN") == "write" {
		require.NoError(t, os.WriteFile(doc, []byte(before+"<!-- limits -->\n"+want+"<!-- end -->"+after), 0o644))
		return
	}
	require.Equal(t, want, table)
}

// TestEveryNumberHasARange: a value outside is refused with the value and the range.
func TestEveryNumberHasARange(t *testing.T) {
	for _, l := range DefaultLimits.Table(512) {
		require.LessOrEqual(t, l.Min, l.Max, l.Name)
		require.NotEmpty(t, l.What, l.Name)
		require.Nil(t, l.check(l.Min, "x"))
		require.Nil(t, l.check(l.Max, "x"))
		for _, v := range []float64{l.Min - 1e4, l.Max*2 + 1} {
			e := l.check(v, "VALUE")
			require.NotNil(t, e, l.Name)
			require.Contains(t, e.message, "VALUE")
			require.Equal(t, 400, e.status)
		}
	}
	narrow := Limits{MaxTokens: 7}
	for _, l := range narrow.Table(512) {
		if l.Name == "max_tokens" {
			require.EqualValues(t, 7, l.Max)
		}
	}
}
