package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

// signed appends the line with the checksum.
func signed(body string) []byte {
	return fmt.Appendf([]byte(body), "sha256 %x\n", sha256.Sum256([]byte(body)))
}

func sampleManifest() *manifest {
	m := &manifest{step: 1234, sequence: 7, score: 1.25}
	for i := range m.files {
		m.files[i] = fileInfo{int64(i * 1000), sha256.Sum256([]byte{byte(i)})}
	}
	return m
}

func TestManifest(t *testing.T) {
	m := sampleManifest()
	got, what := parseManifest(m.text())
	require.Empty(t, what)
	require.Equal(t, m, got)
	m.score = math.NaN()
	got, what = parseManifest(m.text())
	require.Empty(t, what)
	require.True(t, math.IsNaN(got.score))

	text := string(m.text())
	body := text[:len(text)-len("sha256 \n")-64]
	for old, bad := range map[string][2]string{
		"checkpoint 1\n": {"checkpoint 2\n", "expected to begin with"},
		"step 1234\n":    {"step -1\n", "line 2: expected"},
		"step 1234":      {"step 01234", "not written as it should be"},
		"sequence 7\n":   {"sequence 99999999999999999999\n", "line 3"},
		"sequence":       {"Sequence", "line 3"},
		"score none":     {"score NaN", "line 4"},
		"score":          {"scores", "line 4"},
		"score none\n":   {"score 1.50\n", "not written as it should be"},
		"state.json":     {"../state.json", "line 7"},
		"file weights":   {"file  weights", "line 5"},
		"tensors 1000 ":  {"tensors -1 ", "line 6"},
		"\nfile state":   {"\nx\nfile state", "9 lines, expected 8"},
	} {
		require.Contains(t, body, old)
		_, what := parseManifest(signed(string(bytes.Replace([]byte(body), []byte(old), []byte(bad[0]), 1))))
		require.Contains(t, what, bad[1], "%q", bad[0])
	}
	_, what = parseManifest([]byte(body))
	require.Contains(t, what, "ends in")
	_, what = parseManifest(nil)
	require.Contains(t, what, "0 bytes")
}

// FuzzManifest: a manifest has one form, whatever stands above its checksum.
func FuzzManifest(f *testing.F) {
	text := string(sampleManifest().text())
	f.Add(text[:len(text)-len("sha256 \n")-64])
	f.Fuzz(func(t *testing.T, body string) {
		b := signed(body)
		m, what := parseManifest(b)
		if m == nil {
			require.NotEmpty(t, what)
			return
		}
		require.Equal(t, b, m.text())
	})
}
