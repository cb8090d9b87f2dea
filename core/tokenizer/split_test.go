package tokenizer

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/dlclark/regexp2/v2"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func cut(p *presplit, text string) []string {
	var out []string
	for text != "" {
		n := p.next(classes(), text)
		out, text = append(out, text[:n]), text[n:]
	}
	return out
}

// oracle cuts text with the regular expression itself.
func oracle(t testing.TB, re *regexp2.Regexp, text string) []string {
	var out []string
	var runes []rune
	var starts []int // byte offset of each rune
	for i, r := range text {
		runes, starts = append(runes, r), append(starts, i)
	}
	starts = append(starts, len(text))
	m, err := re.FindRunesMatch(runes)
	for end := 0; m != nil; m, err = re.FindNextMatch(m) {
		require.NoError(t, err)
		require.Equal(t, end, m.RuneIndex, "the pattern leaves text out")
		end = m.RuneIndex + m.RuneLength
		out = append(out, text[starts[m.RuneIndex]:starts[end]])
	}
	require.NoError(t, err)
	return out
}

func oracleFor(p *presplit) *regexp2.Regexp {
	re := regexp2.MustCompile(p.pattern)
	re.MatchTimeout = time.Minute
	return re
}

func TestSplitExamples(t *testing.T) {
	const text = "fn add(a: u32) -> u32 {\n    a + 1000  // it's a_b\n\n\treturn;\n}"
	for _, c := range []struct {
		pre  string
		want string
	}{
		{"nanochat", "fn| add|(a|:| u32|)| ->| u32| {|\n    |a| +| 1|0|0|0|  |//| it|'s| a_b|\n\n\t|return|;|\n|}"},
		{"gpt-2", "fn| add|(|a|:| u|32|)| ->| u|32| {|\n   | a| +| 1000| | //| it|'s| a|_|b|\n\n|\t|return|;|\n|}"},
		{"llama-bpe", "fn| add|(a|:| u|32|)| ->| u|32| {\n|   | a| +| |100|0| | //| it|'s| a|_b|\n\n|\treturn|;\n|}"},
		{"qwen2", "fn| add|(a|:| u|3|2|)| ->| u|3|2| {\n|   | a| +| |1|0|0|0| | //| it|'s| a|_b|\n\n|\treturn|;\n|}"},
	} {
		require.Equal(t, c.want, strings.Join(cut(presplitNamed(c.pre), text), "|"), c.pre)
	}
}

// TestSplitMatchesRegexp compares every scanner with its regular expression.
func TestSplitMatchesRegexp(t *testing.T) {
	for _, p := range presplits {
		re := oracleFor(p)
		t.Run(p.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 11))
			for range 3000 {
				text := randomText(r, 1+r.IntN(60))
				require.Equal(t, oracle(t, re, text), cut(p, text), "%q", text)
			}
			rapid.Check(t, func(t *rapid.T) {
				parts := rapid.SliceOfN(rapid.SampledFrom(fragments), 0, 12).Draw(t, "parts")
				text := strings.Join(parts, "")
				if got, want := cut(p, text), oracle(nil, re, text); fmt.Sprint(got) != fmt.Sprint(want) || len(got) != len(want) {
					t.Fatalf("%q: got %q, want %q", text, got, want)
				}
			})
		})
	}
}

// TestSplitLongS checks the one character whose lower case the contractions of
// llama-bpe take in and regexp2 does not: the long s folds to s.
func TestSplitLongS(t *testing.T) {
	require.Equal(t, []string{"'ſ", "a"}, cut(presplitNamed("llama-bpe"), "'ſa"))
	require.Equal(t, []string{"'ſa"}, cut(presplitNamed("nanochat"), "'ſa"))
}

// TestClasses pins the table at places that differ between Unicode versions.
func TestClasses(t *testing.T) {
	for c, want := range map[rune]class{
		'a': letter, '_': other, '7': number, ' ': space, '\n': newline, '\r': newline, '\u0085': space,
		'\u200b': other, '\u0301': mark, 'ß': letter, '½': number, '日': letter, '\U0010ffff': other,
		0x1c89: letter, 0x0897: mark, 0x10d40: number, // new in Unicode 16
	} {
		got, n := classes().at(string(c))
		require.Equal(t, want, got, "U+%04X", c)
		require.Equal(t, utf8.RuneLen(c), n)
		got, n = classes().last("x" + string(c))
		require.Equal(t, want, got, "U+%04X", c)
		require.Equal(t, utf8.RuneLen(c), n)
	}
	got, n := classes().at("\xff\xfe")
	require.Equal(t, other, got)
	require.Equal(t, 1, n)
}

// FuzzSplit: every scanner takes any bytes, makes progress, and cuts as its regular
// expression does. Long runs: go test -fuzz FuzzSplit ./core/tokenizer
func FuzzSplit(f *testing.F) {
	for _, s := range fragments {
		f.Add(s + " " + s + "\n" + s)
	}
	f.Add("a\xff\xfeb \xe2\x82 c")
	var res []*regexp2.Regexp
	for _, p := range presplits {
		res = append(res, oracleFor(p))
	}
	f.Fuzz(func(t *testing.T, text string) {
		for i, p := range presplits {
			got := cut(p, text)
			comparable := !strings.Contains(text, "ſ")
			for _, c := range text {
				comparable = comparable && agreed(c)
			}
			if comparable {
				require.Equal(t, oracle(t, res[i], text), got, "%s: %q", p.name, text)
			} else {
				require.Equal(t, text, strings.Join(got, ""))
			}
		}
	})
}
